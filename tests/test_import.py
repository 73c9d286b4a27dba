"""Importing is quick and pulls in nothing heavy."""
import importlib.util, subprocess, sys, time
import pytest

TIMED = '''
import sys, time
start = time.perf_counter()
import trm_nb
seconds = time.perf_counter() - start
print(seconds, *(name for name in ("torch", "wandb", "huggingface_hub", "matplotlib", "pandas") if name in sys.modules))
'''

def best(measure, times=3): return min(measure() for _ in range(times))

def run(*command): return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout

def test_import():
    def measure():
        seconds, *heavy = run('-c', TIMED).split()
        assert not heavy
        return float(seconds)
    assert best(measure) < 0.3

@pytest.mark.skipif(not importlib.util.find_spec('trm_nb.cli'), reason='no command line yet')
def test_help():
    def measure():
        start = time.perf_counter()
        assert 'train' in run('-m', 'trm_nb.cli', '--help')
        return time.perf_counter() - start
    assert best(measure) < 1.5
