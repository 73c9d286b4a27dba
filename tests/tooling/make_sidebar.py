"""Write sidebar.yml and nbs/reference.ipynb from the folders of nbs/: lessons, how-to pages, explanations, then the reference, room by room."""
import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/'nbs'
EXPLAINED = ('how_fast', 'how_halting_works')  # lessons that explain rather than teach by doing

def place(path):
    "Where a notebook comes in its folder: 03, 035, 04."
    return path.name.partition('_')[0], path.name

def pages(folder):
    "Notebooks of `folder` in reading order, as paths below nbs/."
    return [p.relative_to(NBS).as_posix() for p in sorted(folder.glob('*.ipynb'), key=place) if p.name[0] not in '._']

def bare(name):
    "`nbs/05_how_fast.ipynb` or `01_data` without number and suffix."
    return re.sub(r'^\d+_', '', Path(name).stem)

def title(name):
    "`01_data` as a heading: Data."
    return bare(name).replace('_', ' ').capitalize()

def lessons():
    "(those that teach, those that explain)"
    found = pages(NBS/'tutorials')
    return [p for p in found if bare(p) not in EXPLAINED], [p for p in found if bare(p) in EXPLAINED]

def rooms():
    "(heading, pages) of every room, then of the modules at the top."
    top = [p for p in pages(NBS) if p not in ('index.ipynb', 'reference.ipynb')]
    folders = sorted(d for d in NBS.iterdir() if d.is_dir() and d.name[0].isdigit())
    return [(title(d.name), pages(d)) for d in folders if pages(d)] + [('Config and command line', top)]

def section(heading, listed, depth=3):
    "Lines of a part of the sidebar; `listed` holds pages, or lines of parts of it."
    if not listed: return []
    pad = '  ' * depth
    return [f'{pad}- section: {heading}', f'{pad}  contents:', *(p if p.startswith(' ') else f'{pad}    - {p}' for p in listed)]

def sidebar():
    "The text of sidebar.yml."
    teaching, explaining = lessons()
    reference = ['          - reference.ipynb'] + [line for r in rooms() for line in section(*r, depth=5)]
    parts = [('Tutorials', teaching), ('How-to guides', pages(NBS/'howto')), ('Explanations', pages(NBS/'explain') + explaining), ('Reference', reference)]
    return '\n'.join(['website:', '  sidebar:', '    contents:', '      - index.ipynb', *(line for p in parts for line in section(*p))]) + '\n'

def told(page):
    "(module, what it is for) of a page of the reference."
    cells = [''.join(c['source']) for c in json.loads((NBS/page).read_text(encoding='utf-8'))['cells']]
    module = re.search(r'^#\| *default_exp +(\S+)', cells[0], re.M)
    return module[1] if module else bare(page), next((m[1] for c in cells if (m := re.search(r'^> *(.+)$', c, re.M))), '')

def overview():
    "The text of the reference's first page: every module and what it is for."
    parts = ['# Reference\n\n> Every module and what it is for. Its page explains, shows and tests it, with a table of parameters and a link to the source for every public name.']
    for heading, listed in rooms():
        rows = [(*told(p), p) for p in listed]
        parts.append('\n'.join([f'## {heading}\n', '| module | what it is for |', '|---|---|', *(f'| [{m}]({p}) | {said} |' for m, said, p in rows)]))
    return '\n\n'.join(parts)

def reference():
    "The text of nbs/reference.ipynb."
    cell = dict(cell_type='markdown', id='c000', metadata={}, source=overview().splitlines(keepends=True))
    kernel = dict(display_name='python3', language='python', name='python3')
    return json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5), indent=1, sort_keys=True, ensure_ascii=False) + '\n'

def generated():
    "{file: text} of all that is made here."
    return {ROOT/'sidebar.yml': sidebar(), NBS/'reference.ipynb': reference()}

if __name__ == '__main__':
    for path, text in generated().items(): path.write_text(text, encoding='utf-8')
