"""Markers and folders that every test may ask for."""
import os, signal
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]

def pytest_configure(config):
    "Name the markers: `make test` leaves out the slow ones, a machine without a GPU the cuda ones."
    config.addinivalue_line('markers', 'slow: runs in `make test-all` only')
    config.addinivalue_line('markers', 'cuda: needs a CUDA GPU')
    signal.signal(signal.SIGHUP, signal.SIG_DFL) # also where the tests themselves were started with nohup

def pytest_collection_modifyitems(items):
    "Skip `cuda` tests where there is no GPU."
    marked = [item for item in items if item.get_closest_marker('cuda')]
    if not marked: return
    import torch
    if not torch.cuda.is_available():
        for item in marked: item.add_marker(pytest.mark.skip(reason='no CUDA GPU'))

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def shared():
    "Folder of real data: TRM_SHARED, or shared/ beside the clone; skips where it is absent."
    folder = Path(os.environ.get('TRM_SHARED', ROOT.parent/'shared'))
    if not folder.is_dir(): pytest.skip(f'no real data: set TRM_SHARED ({folder.name}/ is not there)')
    return folder

@pytest.fixture(scope='session')
def golden():
    "Folder of recorded inputs and results of the official code: TRM_GOLDEN, or tests/golden."
    return Path(os.environ.get('TRM_GOLDEN', ROOT/'tests'/'golden'))
