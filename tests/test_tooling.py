"""The checks of `make` find what they are for."""
from pathlib import Path
import pytest
from tooling.docs_check import Page, dead, uncommented, undocumented, unshown
from make_pages import ROOT, call_text, constants, constants_table, entry, own, row, said_above, said_of_fields, type_text
from make_sidebar import EXPLAINED, bare, rooms, section, sidebar
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

def test_uncommented(tmp_path):
    (tmp_path/'part.py').write_text('BESIDE = 1 # told\n# told\nABOVE = 2\n_OWN = 3\nMANY = dict( # told\n    a=1)\nOption = Annotated[str, typer.Option(help="Told.")]\n'
                                    '# %% ../nbs/x.ipynb #c1\nMARK: int = 4\nONE, TWO = 1, 2\nTEXT = """\n# not told\n"""\nLONG = dict(\n    a=1, # of a alone\n    b=2)\nx = 1 # told\nNEXT = 5\n')
    assert [line.split(': ')[1] for line in uncommented(tmp_path)] == [f'{name} has no comment' for name in ('MARK', 'ONE, TWO', 'TEXT', 'LONG', 'NEXT')]

def test_what_is_said_of_constants(tmp_path):
    (tmp_path/'part.py').write_text('# one\n# two\nA = 1\nB = 2 # beside\nMANY = dict(\n    a=1) # at its end\n')
    assert constants(tmp_path/'part.py') == [('A', 3, '1', 'one two'), ('B', 4, '2', 'beside'), ('MANY', 5, 'dict(a=1)', 'at its end')]
    row = next(l for l in constants_table(ROOT/'trm_nb'/'lab'/'jobs.py').splitlines() if '**STREAMS**' in l)
    assert '/trm_nb/lab/jobs.py#L' in row and "`dict(out='stdout.log', err='stderr.log')`" in row and 'run\'s folder' in row
    assert constants_table(ROOT/'trm_nb'/'lab'/'slurm.py') == ''

def test_every_constant_is_explained(root): assert not uncommented(root/'trm_nb')

def test_unshown(tmp_path):
    (tmp_path/'part.py').write_text('# File to edit: ../nbs/01_data/00_basics.ipynb.\ndef registry():\n    "Shown."\ndef forgotten():\n    "Not shown."\n')
    page = Page(f'<h3 id="registry">x</h3><a href="https://x.org/{tmp_path.name}/part.py#L2">source</a>')
    told = lambda page: unshown(tmp_path, {'01_data/basics.html': page}, {'01_data/basics.html': Path('01_data/00_basics.ipynb')})
    assert told(page) == ['01_data/00_basics.ipynb: forgotten is not documented']
    assert 'no link to line 2' in told(Page('<h3 id="registry">x</h3>'))[0]

def test_table_of_parameters():
    from trm_nb.explore.solver import Answer, solve_command
    from trm_nb.learn.trainer import LearnSettings
    assert type_text(Path | None) == 'Path or None'
    assert row('n', int, 3, 'how | many') == '| **n** | `int` | `3` | how \\| many |'
    assert '**confidence** | `ndarray` |  | float32 (L,)' in entry(Answer, 'Answer', 3, {})
    assert '**batch_size** | `int` | `768` | slots over all ranks' in entry(LearnSettings, 'LearnSettings', 3, {})
    assert '**device** | `str` | `\'auto\'` | auto, cpu' in entry(solve_command, 'solve_command', 3, {}) # what typer is told
    assert {'draw', 'valid'} <= dict(own(Answer)).keys() and call_text('Answer.pretty', Answer.pretty) == '```python\nAnswer.pretty(bold=False)\n```'

def test_what_a_parent_says():
    from trm_nb.data.maze import Maze
    from trm_nb.data.format import Puzzle
    assert said_of_fields(Maze)['vocab_size'] == said_of_fields(Puzzle)['vocab_size'] != ''
    assert 'inputs' in said_above(Maze, 'conflicts')

def test_sidebar_of_parts():
    assert section('Empty', []) == [] and bare('02_gallery.ipynb') == 'gallery'
    text = sidebar()
    assert [text.index(f'section: {p}') for p in ('Tutorials', 'How-to', 'Explanations', 'Reference')] == sorted(text.index(f'section: {p}') for p in ('Tutorials', 'How-to', 'Explanations', 'Reference'))
    assert all(text.index('section: Explanations') < text.index(page) for page in EXPLAINED if page in text)
    assert all(text.count(f'- {page}\n') == 1 for _, listed in rooms() for page in listed)

def test_readme():
    assert from_root('[a](01_data/x.ipynb) [b](https://x.org/y.ipynb) [c](#d)') == '[a](nbs/01_data/x.ipynb) [b](https://x.org/y.ipynb) [c](#d)'
    assert not shown(new_code_cell('#| hide\nx = 1'))
    assert without_directives(new_code_cell('#| slow\nx = 1')).source == 'x = 1'
    table = new_code_cell('#| echo: false\nx', outputs=[new_output('display_data', {'text/markdown': '| a |'})])
    assert as_text(table).source == '| a |' and as_text(table).cell_type == 'markdown'
