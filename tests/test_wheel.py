"""The wheel, in an empty environment and outside any clone."""
import json, os, shutil, subprocess, sys, time, urllib.request, venv
from pathlib import Path
import pytest
from browser import free_port

pytestmark = pytest.mark.slow
SOURCES = 'trm_nb experiments setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE constraints.txt'.split()
INKALA = '8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..'
ALONE = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV') and not k.startswith('TRM_')}

def call(*command, cwd):
    "Run a command away from the clone; its output, or a failure that shows it."
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=ALONE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f'{command}\n{done.stdout[-4000:]}'
    return done.stdout

def copied(root, folder):
    "A copy of what is packaged, so that building leaves nothing in the clone."
    for name in SOURCES:
        copy = shutil.copytree if (root/name).is_dir() else shutil.copy
        copy(root/name, folder/name)
    return folder

@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    call(sys.executable, '-m', 'pip', 'wheel', copied(root, source), '--no-deps', '--wheel-dir', out, cwd=out)
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(root, wheel, tmp_path_factory):
    "Programs of an environment that holds the wheel and what it needs, nothing else."
    home = tmp_path_factory.mktemp('home')
    venv.create(home/'env', with_pip=True)
    call(home/'env/bin/python', '-m', 'pip', 'install', '-c', root/'constraints.txt', wheel, cwd=home)
    return home/'env/bin'

FIND = '''
import trm_nb
from trm_nb.data.resources import experiments_path
print(trm_nb.__file__)
print(experiments_path())
print(*sorted(p.relative_to(experiments_path()).as_posix() for p in experiments_path().rglob("*") if p.is_file() and p.suffix != ".pyc"))
'''

def test_experiments_are_inside(root, installed, tmp_path):
    package, folder, names = call(installed/'python', '-c', FIND, cwd=tmp_path).splitlines()
    assert Path(folder) == Path(package).parent/'experiments'
    shipped = [p.relative_to(root/'experiments') for p in (root/'experiments').rglob('*') if p.is_file() and p.suffix != '.pyc']
    assert set(names.split()) == {p.as_posix() for p in shipped if not any(part[0] == '.' for part in p.parts)}

def test_nothing_optional_is_needed(installed, tmp_path):
    call(installed/'python', '-m', 'pip', 'check', cwd=tmp_path)
    assert 'wandb' not in call(installed/'python', '-m', 'pip', 'list', cwd=tmp_path).split()

def test_train_and_solve(installed, tmp_path):
    trm = installed/'trm'
    call(trm, 'data', 'sudoku', '--source', 'generate', '--size', 4, '--train', 500, '--test', 50, '--out', 'data', cwd=tmp_path)
    call(trm, 'train', 'demo', 'data.path=data', 'learn.steps=300', 'learn.eval_every=300', cwd=tmp_path)
    answer = call(trm, 'solve', 'runs/demo', '1.343412.1434.21', '--json', cwd=tmp_path)
    assert json.loads(answer.splitlines()[-1])['answer'].split() == ['1234', '3412', '2143', '4321']

@pytest.fixture(scope='module')
def with_serve(root, wheel, installed):
    "The same environment, to which the extra serve was added."
    call(installed/'python', '-m', 'pip', 'install', '-c', root/'constraints.txt', f'{wheel}[serve]', cwd=installed)
    return installed

def test_one_command_serves(with_serve, tmp_path):
    "Page and API of the model that ships, without a network: a hard Sudoku is answered right."
    began, port = time.monotonic(), free_port()
    process = subprocess.Popen([str(with_serve/'trm'), 'serve', '--port', str(port), '--device', 'cpu'], cwd=tmp_path, env=ALONE | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1'), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert f'page http://127.0.0.1:{port}/' in process.stdout.readline()
        question = urllib.request.Request(f'http://127.0.0.1:{port}/api/solve', json.dumps(dict(puzzle=INKALA)).encode(), {'content-type': 'application/json'})
        response = json.load(urllib.request.urlopen(question, timeout=60))
        print(f'first answer {time.monotonic() - began:.1f} s after the command')
        assert response['model'] == 'sudoku-extreme' and response['answers'][0]['valid'] and response['answers'][0]['text'].startswith('812753649') and response['notes'] == []
        assert b'gradio' in urllib.request.urlopen(f'http://127.0.0.1:{port}/').read().lower()
    finally: process.terminate()
    assert process.wait(30) == 0
