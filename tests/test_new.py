"""What `trm new` writes runs as it is, and is a plugin."""
import sys
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from trm_nb import cli
from trm_nb.config import load_config
from trm_nb.data.format import PUZZLES
from trm_nb.tools.new import SKELETONS

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory from which modules can be imported."
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path

@pytest.mark.parametrize('kind', SKELETONS)
def test_runs_top_to_bottom(kind, here):
    assert cli.call(['new', kind, f'my_{kind}']) == 0
    module = here/f'my_{kind}.py'
    before = module.read_text()
    module.unlink()
    CaptureShell(here).run_all(read_nb(here/f'my_{kind}.ipynb'), exc_stop=True)
    assert module.read_text() == before, 'the last cell writes the module'

def test_plugin_in_config(here):
    assert cli.call(['new', 'model', 'slow_thinker']) == 0
    config = load_config('demo', 'plugins=[slow_thinker]', 'model.name=slow_thinker', 'model.damping=0.3')
    assert (config.model.name, config.model.damping) == ('slow_thinker', 0.3)
    assert load_config('demo', 'plugins=[slow_thinker]').model.name == 'trm'

@pytest.mark.parametrize('kind', SKELETONS)
def test_plugin_registers(kind, here):
    name = f'other_{kind}'
    assert cli.call(['new', kind, name]) == 0 and name not in SKELETONS[kind].registry
    load_config('demo', f'plugins=[{name}]')
    assert name in SKELETONS[kind].registry
    del sys.modules[name], SKELETONS[kind].registry[name]

def test_plugin_on_the_command_line(here, capsys):
    assert cli.call(['new', 'puzzle', 'square']) == 0
    import square
    square.write('data', train=20, test=5)
    del PUZZLES['square'], sys.modules['square']
    assert cli.call(['data', 'check', 'data']) == 2 and "unknown puzzle 'square'" in capsys.readouterr().err
    assert cli.call(['--plugin', 'square', 'data', 'check', 'data']) == 0
    assert cli.call(['--plugin', 'sqare', 'data', 'check', 'data']) == 2 and "plugin 'sqare'" in capsys.readouterr().err

@pytest.mark.parametrize('args, said', [
    (['new', 'modle', 'x'], "did you mean 'model'?"), (['new', 'model', 'My-Model'], 'small letters'),
    (['new', 'model', 'trm'], "a model 'trm' already"), (['new', 'puzzle', 'sudoku'], "a puzzle 'sudoku' already"),
    (['new', 'callback', 'json'], "a module 'json' is installed"), (['new', 'callback', 'taken'], 'exists already')])
def test_refuses(args, said, here, capsys):
    (here/'taken.ipynb').write_text('mine')
    assert cli.call(args) == 2
    assert said in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ['taken.ipynb'] and (here/'taken.ipynb').read_text() == 'mine'
