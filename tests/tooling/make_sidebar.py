"""Write sidebar.yml from the folders of nbs/: tutorials, the rooms in reading order, then the top-level notebooks."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

def pages(folder):
    "Notebooks of `folder` in reading order, as paths below nbs/."
    return sorted(p.relative_to(ROOT/'nbs').as_posix() for p in folder.glob('*.ipynb') if p.name[0] not in '._')

def title(name):
    "`01_data` as a heading: Data."
    return re.sub(r'^\d+_', '', name).replace('_', ' ').capitalize()

def sections():
    "(heading, pages) of every part of the sidebar that has pages."
    nbs = ROOT/'nbs'
    rooms = sorted(d for d in nbs.iterdir() if d.is_dir() and d.name[0].isdigit())
    top = [p for p in pages(nbs) if p != 'index.ipynb']
    found = [(title(d.name), pages(d)) for d in [nbs/'tutorials', *rooms]] + [('Config and command line', top)]
    return [(heading, listed) for heading, listed in found if listed]

def sidebar():
    "The text of sidebar.yml."
    lines = ['website:', '  sidebar:', '    contents:', '      - index.ipynb']
    for heading, listed in sections():
        lines += [f'      - section: {heading}', '        contents:', *(f'          - {page}' for page in listed)]
    return '\n'.join(lines) + '\n'

if __name__ == '__main__': (ROOT/'sidebar.yml').write_text(sidebar(), encoding='utf-8')
