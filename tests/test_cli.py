"""The command line: help with examples that hold, and every mistake told in one line with exit code 2, nothing written."""
import errno, hashlib, json, os, re, shlex, shutil, subprocess, sys, time
from pathlib import Path
from unittest.mock import patch
import numpy as np
import pytest
import torch
from browser import free_port
from trm_nb import cli, run
from trm_nb.data.env import VARIABLES, env_markdown
from trm_nb.data.format import PuzzleDataset
from trm_nb.data.sudoku import write_generated
from trm_nb.learn import launch
from trm_nb.learn.checkpoint import saved_steps
from trm_nb.learn.trainer import Trainer
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model
from trm_nb.run import shape_of

SMALL = dict(name='trm', hidden_size=32, num_heads=2, H_cycles=1, L_cycles=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=2)
TRAIN = ['train', 'demo', 'data.path=data', 'device=cpu', 'model.hidden_size=32', 'learn.steps=4', 'learn.batch_size=16']
PUZZLE = '53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79'
ANSWER = '534678912672195348198342567859761423426853791713924856961537284287419635345286179'

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A dataset of 4x4 Sudoku, and a checkpoint for it."
    folder = tmp_path_factory.mktemp('made')
    write_generated(folder/'data', size=4, train=40, test=12, seed=0)
    act = build_model(SMALL, shape_of(PuzzleDataset.read(folder/'data', 'train')))
    save_pretrained(act, folder/'model', 'sudoku-4x4', step=1)
    return folder

@pytest.fixture
def here(made, tmp_path, monkeypatch):
    "A working directory with a copy of both."
    for name in ('data', 'model'): shutil.copytree(made/name, tmp_path/name)
    monkeypatch.chdir(tmp_path)
    return tmp_path

def tree(folder):
    "Every path below a folder, with a hash of what it holds."
    return {p.relative_to(folder).as_posix(): p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob('*')}

@pytest.fixture
def refused(here, capsys):
    "Calls a command that must fail for a user's mistake; gives its one line."
    def call(*args):
        before = tree(here)
        assert cli.call([str(a) for a in args]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith('trm'), lines
        assert tree(here) == before, 'something was written'
        return lines[0]
    return call

# help

@pytest.mark.parametrize('path', cli.COMMANDS)
def test_help_has_examples_that_parse(path, capsys):
    "What the help shows can be typed: options and arguments exist."
    assert cli.call([*path.split(), '--help']) == 0
    examples = re.findall(r'^ +(trm .*)$', capsys.readouterr().out, re.M)
    assert examples and all(e.startswith(f'trm {path}') for e in examples)
    for example in examples:
        target, _ = cli.COMMANDS[path]
        cli.load_command(target, path).make_context(path, shlex.split(example)[1 + len(path.split()):])

def test_overview_imports_nothing_heavy():
    code = "import sys, trm_nb.cli; trm_nb.cli.call(['--help']); print(*{'torch', 'numpy', 'matplotlib', 'huggingface_hub', 'rich'} & set(sys.modules))"
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'Commands:' in said and said.splitlines()[-1] == ''

def test_dry_run(here, capsys):
    before = tree(here)
    assert cli.call([*TRAIN, '--nproc', '2', '--dry-run']) == 0
    said = capsys.readouterr().out
    assert 'hidden_size: 32' in said and '--nproc-per-node 2' in said and tree(here) == before

def test_entry(tmp_path):
    "As a user's shell sees it: exit code, one line, no traceback; a closed pipe is no error to talk about."
    trm = [sys.executable, '-m', 'trm_nb.cli']
    wrong = subprocess.run([*trm, 'trian'], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == '' and "'train'" in wrong.stderr and wrong.stderr.count('\n') == 1
    piped = subprocess.run(shlex.join([*trm, '--help']) + ' | head -n 1', shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert piped.stderr == ''

# a config

@pytest.mark.parametrize('pairs, said', [
    (['learn.batchsize=3'], "unknown setting 'learn.batchsize': did you mean 'batch_size'?"), (['lern.lr=1'], "did you mean 'learn'?"),
    (['model.H_cycle=2'], "did you mean 'H_cycles'?"), (['model.name=trn'], "did you mean 'trm'?"),
    (['learn.lr=fast'], "'learn.lr'"), (['learn.steps=1.5'], "'learn.steps'"), (['model.mlp_t=perhaps'], "'model.mlp_t'"), (['learn.lr=-1'], "'learn.lr'"),
    (['learn.lr'], 'write key=value'), (['plugins=[no_such_module]'], "plugin 'no_such_module'"), (['device=cuda:77'], "device 'cuda:77' is not on this machine"),
    (['learn.batch_size=16', '--nproc', '3'], 'cannot be divided among 3 ranks'), (['learn.micro_batch=5'], 'does not divide'),
    (['data.path=nowhere'], "no folder 'nowhere'"), (['--resume'], 'no checkpoint to resume'), (['--nnodes', '2'], '--rendezvous'), (['--no-such-option'], '--no-such-option')])
def test_config(pairs, said, refused): assert said in refused(*TRAIN, *pairs)

def test_preset(refused): assert "did you mean 'demo'?" in refused('train', 'dmo')

def test_unknown_key_in_yaml(here, refused):
    (here/'mine.yaml').write_text('preset: demo\nlearn: {stepps: 3}\n')
    assert "did you mean 'steps'?" in refused('train', 'mine.yaml')

# a CSV file

def csv_with(here, puzzle, answer):
    "A file whose third line is that pair."
    path = here/'puzzles.csv'
    path.write_text('\n'.join(['source,question,answer,rating', f'a,{PUZZLE},{ANSWER},0', f'a,{puzzle},{answer},0']) + '\n')
    return path

@pytest.mark.parametrize('puzzle, answer', [
    (PUZZLE[:80], ANSWER), (PUZZLE, ANSWER[:80]), ('9' + PUZZLE[1:], ANSWER), (PUZZLE, ANSWER[::-1]), ('x' + PUZZLE[1:], ANSWER)],
    ids=['80 characters', 'answer of 80', 'contradiction', 'other answer', 'letter'])
def test_csv(puzzle, answer, here, refused):
    csv_with(here, puzzle, answer)
    assert 'line 3' in refused('data', 'sudoku', '--source', 'puzzles.csv', '--out', 'new')

def test_good_csv(here, capsys):
    csv_with(here, PUZZLE, ANSWER)
    assert cli.call(['data', 'sudoku', '--source', 'puzzles.csv', '--out', 'new']) == 0
    assert len(PuzzleDataset.read('new', 'train')) == 2

# a dataset folder

def misfit(folder, name, change):
    file = folder/f'data/train/all__{name}.npy'
    a = np.load(file)
    change(a)
    np.save(file, a)

DAMAGE = {
    'missing': lambda d: (d/'data/train/all__labels.npy').unlink(),
    'truncated': lambda d: os.truncate(d/'data/train/all__inputs.npy', 300),
    'must increase': lambda d: misfit(d, 'puzzle_indices', lambda a: a.__setitem__(3, 99)),
    'ends at': lambda d: misfit(d, 'group_indices', lambda a: a.__setitem__(-1, a[-1] + 5)),
    'outside the vocabulary': lambda d: misfit(d, 'inputs', lambda a: a.__setitem__((0, 0), 77)),
    'outside 0 to': lambda d: misfit(d, 'puzzle_identifiers', lambda a: a.__setitem__(2, 9)),
    'dataset.json': lambda d: (d/'data/train/dataset.json').write_text('{"pad_id": 0'),
}

@pytest.mark.parametrize('said', DAMAGE)
def test_dataset(said, here, refused):
    DAMAGE[said](here)
    line = refused(*TRAIN)
    assert said in line and 'data/train' in line

def test_no_test_split(here, refused):
    shutil.rmtree(here/'data/test')
    assert 'evaluate.evaluators=[]' in refused(*TRAIN)

# a checkpoint

def test_checkpoint_of_other_puzzles(here, refused):
    save_pretrained(build_model(SMALL, PuzzleShape(8, 36)), here/'other', 'sudoku-6x6')
    assert 'vocab_size 8' in refused('eval', 'other', '--data', 'data', '--device', 'cpu')

def test_checkpoint_of_other_shape(here, refused):
    file = here/'model/metadata.json'
    values = json.loads(file.read_text())
    values['model']['hidden_size'] = 64
    file.write_text(json.dumps(values))
    assert 'the model needs' in refused('eval', 'model', '--data', 'data', '--device', 'cpu')

def test_damaged_checkpoint(here, refused):
    os.truncate(here/'model/model.safetensors', 100)
    assert 'damaged' in refused('eval', 'model', '--data', 'data', '--device', 'cpu')

@pytest.mark.parametrize('args, said', [
    (['solve', 'model', '1234'], '16'), (['solve', 'model', '12345678........'], 'cell 5'), (['eval', 'model', '--data', 'nowhere'], 'nowhere'),
    (['solve', 'modle', '1' * 16], "no checkpoint 'modle'"), (['info', 'demmo'], 'demmo'), (['eval', 'model'], '--data')])
def test_solve_eval_info(args, said, refused): assert said in refused(*args)

# several folders, options of evaluators

def test_folders_of_two_kinds(here, refused):
    write_generated(here/'six', size=6, train=4, test=2, seed=0)
    assert 'vocab_size is 6 in data and 8 in six' in refused(*TRAIN, 'data.path=[data,six]')
    assert 'vocab_size is 6 in data and 8 in six' in refused(*TRAIN, 'data.test_path=six')

@pytest.mark.parametrize('pairs, said', [
    (['data.path=[data,nowhere]'], "data.path: there is no folder 'nowhere'"), (['data.test_path=nowhere'], "data.test_path: there is no folder 'nowhere'"), (['data.path=[]'], 'at least one folder'),
    (['data.path=[data,data]'], 'named twice'), (['evaluate.options.arc.pass_ks=[1]'], "'arc' is not among the evaluators"), (['evaluate.save_outputs=[answer]'], "'answers'"), (['learn.eval_after=-1'], 'learn.eval_after')])
def test_folders_and_options(pairs, said, refused): assert said in refused(*TRAIN, *pairs)

@pytest.mark.parametrize('args, said', [
    (['--evaluator', 'exat'], "did you mean 'exact'?"), (['--option', 'exact'], 'write NAME.KEY=VALUE'), (['--option', 'arc.pass_ks=[1]'], "'arc' is not among the evaluators"),
    (['--evaluator', 'arc'], 'test_puzzles.json is missing'), (['--save-predictions', 'kept', '--save-outputs', 'answer'], "'answers'"), (['--evaluator', 'exact', '--option', 'exact.n=1'], 'has no options')])
def test_eval_options(args, said, refused): assert said in refused('eval', 'model', '--data', 'data', '--device', 'cpu', *args)

def test_eval_keeps_predictions(here, capsys):
    assert cli.call(['eval', 'model', '--data', 'data', '--device', 'cpu', '--save-predictions', 'kept']) == 0
    assert sorted(f.name for f in (here/'kept').iterdir()) == ['evaluation.json', 'predictions.safetensors']

def test_slurm_without_slurm(refused, monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    pytest.importorskip('submitit')
    assert 'there is no sbatch on this machine' in refused('run', 'exp01b', '--budget', 'smoke', '--backend', 'slurm')

# in mid-run

@pytest.fixture
def in_process(monkeypatch):
    "The rank runs in this process, in place of torchrun."
    def wait(command): return run.main(command[command.index('trm_nb.run') + 1:])
    monkeypatch.setattr(run, 'run_and_wait', wait)

@pytest.mark.parametrize('micro, said', [([], 'learn.micro_batch=8'), (['learn.micro_batch=4'], 'learn.micro_batch=2'), (['learn.micro_batch=1'], 'smaller model')])
def test_out_of_memory(micro, said, here, capsys, in_process, monkeypatch):
    "As CUDA reports it, in the first step: the next smaller micro-batch is named, no checkpoint is left."
    def step(self): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...')
    monkeypatch.setattr(Trainer, 'step', step)
    assert cli.call([*TRAIN, *micro]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1] # behind the progress bar
    assert 'trm: out of memory' in last and said in last
    assert saved_steps(here/'runs/demo/checkpoints') == []

def test_full_disk(here, capsys, in_process, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', 'runs/demo/config.yaml')
    monkeypatch.setattr(run, 'write_text', full)
    assert cli.call(TRAIN) == 2
    assert capsys.readouterr().err.strip() == 'trm: the disk is full: runs/demo/config.yaml'

@pytest.mark.slow
def test_a_disk_that_is_really_full(here):
    "A tmpfs of 1 MiB, on which no checkpoint fits: one line, the run says that it failed, nothing half written."
    (here/'runs').mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1M', 'tmpfs', here/'runs'], capture_output=True).returncode: pytest.skip('no tmpfs can be mounted here')
    try:
        done = subprocess.run([sys.executable, '-m', 'trm_nb.cli', *TRAIN, 'model.hidden_size=128', '--no-torchrun'], capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and last.startswith('trm: No space left on device: ') and last.endswith('runs/demo/checkpoints/step_4') and 'Traceback' not in done.stderr, done.stderr
        assert json.loads((here/'runs/demo/status.json').read_text())['status'] == 'failed' and not list((here/'runs/demo/checkpoints').rglob('*'))
    finally: subprocess.run(['umount', here/'runs'])

@pytest.mark.slow
@pytest.mark.parametrize('shared', [True, False], ids=['one folder', 'a folder each'])
def test_two_machines(here, shared):
    "The same command on each, the second one first; one folder that both see, or one of their own."
    port, own = free_port(), here/'second'
    own.mkdir()
    def start(rank):
        command = [sys.executable, '-m', 'trm_nb.cli', *TRAIN, f'data.path={here}/data', '--nnodes', '2', '--node-rank', str(rank), '--rendezvous', f'127.0.0.1:{port}']
        return subprocess.Popen(command, cwd=own if rank and not shared else here, env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    second = start(1)
    while 'waiting for the first machine' not in second.stdout.readline(): pass
    said = [p.communicate(timeout=120)[0] for p in (start(0), second)]
    assert all('done: runs/demo' in s for s in said), '\n'.join(said)
    assert json.loads((here/'runs/demo/checkpoints/last/metadata.json').read_text())['world'] == 2
    assert shared != (own/'runs').exists() and not (own/'runs/demo/checkpoints').exists()

def test_a_further_machine_has_the_same_settings(here, capsys, in_process, monkeypatch):
    monkeypatch.setattr(launch, 'answers', lambda address: True)
    assert cli.call(TRAIN) == 0
    assert cli.call([*TRAIN, 'learn.lr=1', '--nnodes', '2', '--node-rank', '1', '--rendezvous', 'first:29500']) == 2
    assert "prepared runs/demo with another 'learn.lr'" in capsys.readouterr().err.strip().splitlines()[-1]

def test_trains(here, capsys, in_process):
    "The same call without a mistake."
    assert cli.call(TRAIN) == 0
    assert saved_steps(here/'runs/demo/checkpoints') == [4]
    assert cli.call(TRAIN) == 2 and 'already holds a run' in capsys.readouterr().err

# the environment

def environment_reads(text):
    "Names of the variables that a source reads."
    return set(re.findall(r'''environ(?:\.get\(|\.setdefault\(|\[)\s*f?["']([A-Z_]+)["']''', text) + re.findall(r'''getenv\(["']([A-Z_]+)''', text))

def test_every_variable_is_listed(root):
    found = {name for p in (root/'trm_nb').rglob('*.py') for name in environment_reads(p.read_text())}
    assert found and found <= set(VARIABLES), 'add it to data.env'

def test_readme_has_the_table(root): assert env_markdown() in (root/'README.md').read_text(encoding='utf-8')

def test_promised_variables_are_listed(capsys, root):
    "Those of publishing and telemetry, by all their names, in `trm env` and in the README."
    assert cli.call(['env']) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in 'HF_TOKEN HUGGINGFACE_DATASET_REPO HUGGINGFACE_MODEL_REPO WANDB_API_KEY WANDB_PROJECT WANDB_ENTITY WANDB_DISABLED TRM_AUTO_PUBLISH USE_TRI_CALLBACKS TRM_CHECKPOINT_PATH'.split():
        assert name in said and re.search(rf'^\| `{name}`[^|]*\| \w', (root/'README.md').read_text(encoding='utf-8'), re.M), name
    for name, alias in (('HF_TOKEN', 'HUGGINGFACE_TOKEN'), ('TRM_AUTO_PUBLISH', 'TRI_AUTO_PUBLISH')): assert said[name].endswith(f'; also {alias}') and f'| `{name}`, `{alias}` |' in (root/'README.md').read_text(encoding='utf-8')

def test_env_file(here, capsys):
    (here/'.env').write_text('HF_TOKEN=hf_secret\nHF_HOME=/from/file\n')
    with patch.dict(os.environ, HF_HOME='/from/environment'):
        os.environ.pop('HF_TOKEN', None)
        assert cli.call(['env']) == 0
        assert os.environ['HF_TOKEN'] == 'hf_secret'
    said = capsys.readouterr().out
    assert '/from/environment' in said and '/from/file' not in said and 'hf_secret' not in said
    assert re.search(r'^HF_TOKEN +\(hidden\) +\.env ', said, re.M) and re.search(r'^HF_HOME +/from/environment +environment ', said, re.M)

def test_doctor(capsys):
    assert cli.call(['doctor', '--json']) in (0, 1)
    assert {'Python', 'torch', 'cores'} <= {f['about'] for f in json.loads(capsys.readouterr().out)['findings']}

# what a run folder goes through

def trained(*pairs):
    "A run of one process, by the command line."
    assert cli.call([*TRAIN, '--no-torchrun', *pairs]) == 0

def written(folder): return len((Path('runs')/folder/'metrics.jsonl').read_text().splitlines())

def test_the_folder_that_is_named_goes_on(here):
    "Copied or moved, from wherever it is named; `name` and `runs` in its config are where it once lay."
    trained('name=first', 'learn.log_every=1')
    before = written('first')
    shutil.copytree(here/'runs/first', here/'elsewhere/second', symlinks=True)
    os.chdir(here/'elsewhere')
    assert cli.call(['train', 'second', '--resume', 'data.path=../data', 'learn.steps=6', '--no-torchrun']) == 0
    os.chdir(here)
    assert written('first') == before and len((here/'elsewhere/second/metrics.jsonl').read_text().splitlines()) > before

def test_two_do_not_train_in_one_folder(here, capsys):
    "Also where the first was left behind by the one who started it: then it saves and leaves."
    command = [sys.executable, '-m', 'trm_nb.cli', *TRAIN, 'name=busy', 'learn.steps=100000', 'learn.log_every=1']
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        until = time.monotonic() + 60
        while not Path('runs/busy/metrics.jsonl').exists(): assert first.poll() is None and time.monotonic() < until; time.sleep(.1)
        for more in (['--overwrite'], []):
            assert cli.call([*TRAIN, 'name=busy', *more]) == 2
            assert 'runs/busy is being worked on by another process' in capsys.readouterr().err
        assert cli.call(['runs']) == 0 and 'running' in capsys.readouterr().out
        first.kill()
    while not Path('runs/busy/status.json').exists(): assert time.monotonic() < until; time.sleep(.1)
    assert json.loads(Path('runs/busy/status.json').read_text())['status'] == 'stopped' and saved_steps(Path('runs/busy/checkpoints'))

@pytest.mark.parametrize('name', ['', '.', '..', '../up', 'a/b', 'x' * 300])
def test_names_that_are_no_folder_of_runs(here, refused, name):
    assert "setting 'name'" in refused(*TRAIN, f'name={name}', '--overwrite')

def test_a_run_that_never_began_does_not_hold_its_name(here, refused, capsys):
    assert "unknown loss 'foo'" in refused(*TRAIN, 'name=typo', 'learn.loss.name=foo')
    assert "unknown callback 'foo'" in refused(*TRAIN, 'name=typo', 'callbacks=[foo]')
    Path('runs/typo').mkdir(parents=True)
    Path('runs/typo/config.yaml').write_text('name: typo')               # as Ctrl-C leaves it, early on
    trained('name=typo')
    assert 'already holds a run: --resume goes on with it' in refused(*TRAIN, 'name=typo')

def test_a_loss_that_is_no_number_ends_the_run(here, capsys):
    assert cli.call([*TRAIN, '--no-torchrun', 'name=wild', 'learn.lr=1e30', 'learn.weight_decay=1e30', 'learn.warmup_steps=0', 'learn.log_every=1', 'learn.steps=8']) == 2
    assert re.search(r'the loss is (nan|inf) at step \d', capsys.readouterr().err) and json.loads(Path('runs/wild/status.json').read_text())['status'] == 'failed'

@pytest.mark.parametrize('pair', ['learn.lr=.inf', 'learn.weight_decay=.nan', 'seed=99999999999999999999999', 'model=3'])
def test_numbers_out_of_range(refused, pair): assert pair.split('=')[0] in refused(*TRAIN, pair)

@pytest.mark.parametrize('options', [['--nproc', 0], ['--nproc', -2], ['--nnodes', 0], ['--node-rank', -1], ['--resume', '--overwrite']])
def test_processes_out_of_range(refused, options): refused(*TRAIN, *options)

@pytest.mark.parametrize('kind, size', [('sudoku', '6'), ('maze', '5')])
def test_a_dataset_of_other_puzzles_is_not_replaced(here, capsys, kind, size):
    before = tree(here)
    assert cli.call(['data', kind, '--source', 'generate', '--size', size, '--train', '4', '--test', '2', '--out', 'data']) == 2
    assert re.search(r"trm: data holds a split 't\w+' of other puzzles \(vocab_size 6, seq_len 16\)", capsys.readouterr().err) and tree(here) == before

@pytest.mark.parametrize('file, text', [('status.json', '{'), ('config.yaml', ''), ('job.json', '{}'), ('job.json', '[]')])
def test_a_damaged_run_does_not_hide_the_others(here, capsys, file, text):
    trained('name=whole')
    shutil.copytree('runs/whole', 'runs/broken', symlinks=True)
    (here/'runs/broken'/file).write_text(text)
    with (here/'runs/whole/metrics.jsonl').open('a') as f: f.write('\0\0\0\n')
    capsys.readouterr()
    assert cli.call(['runs', '--json']) == 0
    states = {r['name']: r['state'] for r in json.loads(capsys.readouterr().out)}
    assert states == dict(broken='damaged', whole='done')

def test_a_run_is_not_its_own_repetition(here, refused):
    trained('name=once')
    assert 'is the run itself' in refused('reproduce', 'once', '--out', 'runs/once', '--overwrite')

def test_a_file_where_a_folder_belongs(refused, here):
    (here/'file').write_text('')
    assert 'file' in refused('export', 'model', '--out', 'file')
    assert 'file' in refused(*TRAIN, 'runs=file')

def test_a_run_whose_processes_are_gone(here, capsys):
    "It left no word and nobody holds its folder: not running, from the second minute on."
    trained('name=gone')
    Path('runs/gone/status.json').unlink()
    states = []
    for seconds in (0, 90):
        os.utime('runs/gone/config.yaml', (time.time() - seconds,) * 2)
        capsys.readouterr()
        assert cli.call(['runs', '--json']) == 0
        states += [(r['state'], r['error']) for r in json.loads(capsys.readouterr().out)]
    assert states[0] == ('running', None) and states[1][0] == 'failed' and 'its processes are gone' in states[1][1]

def test_a_full_disk_that_names_no_file():
    "As a write to an open file tells it; a bug of another kind stays one."
    assert cli.explain_error(OSError(errno.ENOSPC, 'No space left on device')) == ('trm: the disk is full: [Errno 28] No space left on device', 2)
    assert cli.explain_error(OSError('of another kind')) is None
