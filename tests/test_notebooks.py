"""The notebooks' own tests, run against the exported modules: what is shipped is what was shown (and counts as covered)."""
import importlib, os, re, sys
from pathlib import Path
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
SKIPPED = set(get_config(path=ROOT).tst_flags.split())

def module_of(path):
    "Dotted name of the module that the notebook exports, if any."
    found = re.search(r'^#\| *default_exp +(\S+)', read_nb(path).cells[0].source, re.M)
    return found and f'trm_nb.{found.group(1)}'

EXPORTING = {path: module for path in sorted(NBS.glob('[0-9]*/*.ipynb')) + sorted(NBS.glob('[0-9]*.ipynb'))
             if (module := module_of(path))}

LONG = {'03_evaluate/06_compute', '03_evaluate/07_command', '04_explore/01_draw', '04_explore/027_plots', '04_explore/04_analyse', '04_explore/05_probe', '05_learn/10_telemetry', '08_lab/07_plots'}
def case(path):
    "A notebook by its name; those that take long belong to the slow tier (nbdev_test runs them in the fast one)."
    name = path.relative_to(NBS).with_suffix('').as_posix()
    return pytest.param(path, id=name, marks=[pytest.mark.slow] * (name in LONG))

def flags(cell): return {flag.rstrip(':') for flag in getattr(cell, 'directives_', {})}

def runs(cell):
    "Whether a cell is run here: code that neither was exported nor is kept for other machines."
    never = getattr(cell, 'directives_', {}).get('eval:', [''])[0] == 'false'
    return cell.cell_type == 'code' and not never and not flags(cell) & {'export', 'exporti', 'exports', 'default_exp', *SKIPPED}

@pytest.fixture
def apart(monkeypatch):
    "Undo what a notebook does to the process: folder, path, environment, figures."
    environment, path = dict(os.environ), list(sys.path)
    monkeypatch.setenv('IN_TEST', '1')
    yield monkeypatch
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

@pytest.mark.parametrize('path', [case(p) for p in EXPORTING])
def test_module(path, apart):
    apart.chdir(path.parent)
    shell = CaptureShell(path)
    shell.user_ns.update({k: v for k, v in vars(importlib.import_module(EXPORTING[path])).items() if not k.startswith('__')})
    cells = NBProcessor(path, process=True).nb.cells
    shell.run_all(read_nb(path), exc_stop=True, preproc=lambda cell: not runs(cells[cell.idx_]))
