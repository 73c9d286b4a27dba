"""README.md from nbs/index.ipynb, without Quarto; with --check, only say whether it is in step."""
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: edit that notebook. -->\n\n'

def shown(cell):
    "Whether a reader sees this cell."
    return cell.cell_type != 'code' or not re.search(r'^#\| *(hide|default_exp)', cell.source, re.M)

def without_directives(cell):
    "The cell without nbdev's `#|` lines."
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    return cell

def as_text(cell):
    "A cell of which only the output is to be seen (`#| echo: false`) as the Markdown that it put out."
    if cell.cell_type != 'code' or not re.search(r'^#\| *echo: *false', cell.source, re.M): return cell
    return nbformat.v4.new_markdown_cell('\n'.join(o.data['text/markdown'] for o in cell.outputs))

def from_root(markdown):
    "Links between notebooks, as seen from the top of the repository."
    return re.sub(r'\]\((?![a-z]+:|[#/])([^)\s]+\.(?:ipynb|png|svg|gif|html))', r'](nbs/\1', markdown)

def readme():
    "The text of README.md."
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [without_directives(as_text(c)) for c in nb.cells if shown(c)]
    body, _ = MarkdownExporter().from_notebook_node(nb)
    return NOTE + re.sub(r'\n{3,}', '\n\n', from_root(body)).strip() + '\n'

def in_step():
    "Whether README.md is what the index notebook gives."
    path = ROOT/'README.md'
    return path.exists() and path.read_text(encoding='utf-8') == readme()

if __name__ == '__main__':
    if '--check' not in sys.argv: (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    elif not in_step(): sys.exit('README.md is not what nbs/index.ipynb gives: make readme')
