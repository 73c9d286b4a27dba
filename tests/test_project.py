"""What must hold of the repository itself."""
import json, re, subprocess
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(NBS).parts))

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def source(cell): return ''.join(cell['source'])

def entries(item):
    "Every page named below an item of the sidebar."
    if isinstance(item, str): return [item]
    return [page for value in (item.values() if isinstance(item, dict) else item) for page in entries(value)
            if not isinstance(value, str) or value.endswith('.ipynb')]

def exports(path):
    "Module that a notebook exports, if any."
    found = re.search(r'^#\| *default_exp +(\S+)', source(cells(path)[0]), re.M)
    return found and found.group(1)

def tracked():
    "Text files under version control, or about to be."
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    return [ROOT/f for f in listed.stdout.splitlines() if Path(f).suffix not in ('.npz', '.npy', '.safetensors', '.png')]

def test_sidebar_lists_every_notebook():
    listed = entries(yaml.safe_load((ROOT/'sidebar.yml').read_text())['website']['sidebar']['contents'])
    assert sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in NOTEBOOKS), 'make prepare renews it'

def test_quarto_files_are_links():
    for name in ('_quarto.yml', 'sidebar.yml'): assert (NBS/name).resolve() == ROOT/name

def test_quarto_names_pages_that_exist():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']
    pages = [i['href'] for side in ('left', 'right') for i in site['navbar'][side] if '://' not in i['href']]
    assert not [p for p in [*pages, site['image']] if not (NBS/p).is_file()]

@pytest.mark.parametrize('path', sorted((ROOT/'.github'/'workflows').glob('*.yml')), ids=lambda p: p.stem)
def test_workflow(path):
    steps = [s for job in yaml.safe_load(path.read_text())['jobs'].values() for s in job['steps']]
    assert all(re.search(r'@v\d', s['uses']) if 'uses' in s else s['run'] for s in steps), 'an action of no fixed version'
    assert all(f'\n{s["run"].split()[1]}:' in (ROOT/'Makefile').read_text() for s in steps if 'run' in s), 'no such target of make'

def test_pictures_are_small():
    assert not [p.name for p in (NBS/'images').iterdir() if p.stat().st_size > 300_000]

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook(path):
    assert exports(path) or path.name in ('index.ipynb', 'reference.ipynb') or path.parent.name in ('tutorials', 'howto', 'explain'), 'first cell: #| default_exp room.module'
    outputs = [output for cell in cells(path) for output in cell.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error'], 'an error is stored as output'
    said = ''.join(text for o in outputs if o.get('name') == 'stderr' for text in o['text'])
    assert not re.search('[\r\x1b]|Warning', said), 'a progress bar or a warning is stored as output'
    assert len(json.dumps(outputs)) < 200_000, 'outputs over 200 KB'
    assert path.stat().st_size < 300_000, 'over 300 KB: what its widgets hold is kept with it?'

def test_room_is_folder():
    "nbs/01_data/... exports trm_nb.data...."
    for path in NOTEBOOKS:
        module = exports(path)
        if not module: continue
        folder = re.sub(r'^\d+_', '', path.parent.name) if path.parent != NBS else ''
        assert module.rpartition('.')[0] == folder, f'{path.name} exports {module}'

def test_every_module_has_its_notebook():
    made = {exports(p) for p in NOTEBOOKS}
    found = [p.relative_to(ROOT/'trm_nb').with_suffix('').as_posix().replace('/', '.') for p in (ROOT/'trm_nb').rglob('[!_]*.py')]
    assert set(found) <= made, 'modules whose notebook is gone'

def test_papermill_tag():
    "nbdev_clean strips tags unless told not to; papermill then ignores the parameters it is given."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini')
    assert 'tags' in config['DEFAULT']['allowed_cell_metadata_keys'].split()
    template = ROOT/'experiments'/'train.ipynb'
    if not template.exists(): pytest.skip('no experiments/train.ipynb')
    assert [c for c in cells(template) if 'parameters' in c['metadata'].get('tags', [])]

def machine_paths(text):
    "Paths in `text` that exist on somebody's machine only."
    homes = r'(?<![\w.])/(?:root|work|home/\w+|Users/\w+)/[\w.]+'
    return [m for m in re.findall(homes, text) + re.findall(re.escape(f'{ROOT}/') + r'\S*', text)]

def test_machine_paths_are_found():
    home = '/'.join(['', 'home', 'ann', 'x.py'])
    assert machine_paths(f'see {home}') and machine_paths(f'{ROOT}/x') and not machine_paths('runs/home/x ../root/x a.b/root/c')

def test_no_machine_paths():
    found = {p.name: machine_paths(p.read_text(encoding='utf-8', errors='ignore')) for p in tracked() if p.is_file()}
    assert not {name: paths[:3] for name, paths in found.items() if paths}
