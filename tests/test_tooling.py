"""The checks of `make` find what they are for."""
from pathlib import Path
import pytest
from tooling.docs_check import Page, dead, undocumented
from tooling.make_readme import as_text, from_root, shown, without_directives
from nbformat.v4 import new_code_cell, new_output

PAGES = {'index.html': Page('<h1 id="Home">x</h1>'), '01_data/basics.html': Page('<h3 id="Registry">x</h3>')}
SOURCES = {'index.html': Path('index.ipynb'), '01_data/basics.html': Path('01_data/00_basics.ipynb')}
SITE = 'https://example.org/docs'

@pytest.mark.parametrize('link', ['../index.ipynb', '../index.ipynb#home', '#registry', '00_basics.ipynb', '../styles.css', '/index.html',
    'https://elsewhere.org/x', 'data:image/png;base64,AA', f'{SITE}/01_data/basics.html#registry.register', SITE])
def test_good_links(link, tmp_path):
    (tmp_path/'styles.css').touch()
    assert dead(link, '01_data/basics.html', PAGES, SOURCES, tmp_path, SITE) is None

@pytest.mark.parametrize('link', ['index.ipynb', '#home', 'gone.png', f'{SITE}/01_data/gone.html', '../index.ipynb#nowhere'])
def test_dead_links(link, tmp_path): assert dead(link, '01_data/basics.html', PAGES, SOURCES, tmp_path, SITE)

def test_undocumented(tmp_path):
    (tmp_path/'part.py').write_text('def _private(): pass\ndef told():\n    "What it does."\n    def inner(): pass\n'
                                    'class Bare:\n    def method(self): pass\n')
    assert [line.split(': ')[1] for line in undocumented(tmp_path)] == ['Bare has no docstring', 'method has no docstring']

def test_readme():
    assert from_root('[a](01_data/x.ipynb) [b](https://x.org/y.ipynb) [c](#d)') == '[a](nbs/01_data/x.ipynb) [b](https://x.org/y.ipynb) [c](#d)'
    assert not shown(new_code_cell('#| hide\nx = 1'))
    assert without_directives(new_code_cell('#| slow\nx = 1')).source == 'x = 1'
    table = new_code_cell('#| echo: false\nx', outputs=[new_output('display_data', {'text/markdown': '| a |'})])
    assert as_text(table).source == '| a |' and as_text(table).cell_type == 'markdown'
