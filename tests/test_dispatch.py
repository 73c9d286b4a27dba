"""The lab's commands: what is asked for, what is refused, and runs on a real Slurm cluster of one node."""
import json, os, shutil, signal, subprocess, sys, time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
import psutil
import pytest
from trm_nb import cli
from trm_nb.config import load_config
from trm_nb.lab import dispatch
from trm_nb.data.sudoku import write_generated
from trm_nb.data.locks import Hold, held
from trm_nb.lab.jobs import Job, describe, read_job
from trm_nb.lab.slurm import looker
from trm_nb.lab.work import execute
from trm_nb.learn.checkpoint import saved_steps

sys.path.insert(0, str(Path(__file__).parent/'tooling'))
import slurm_cluster

TINY = ['model.H_cycles=1', 'model.L_cycles=1', 'model.halt_max_steps=2', 'examples=6400', 'learn.log_every=5', 'learn.save_every=20', 'device=cpu']

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_all_68_as_json(here, capsys):
    assert cli.call(['run', '--pattern', '.', '--dry-run', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 68 and len({r['folder'] for r in rows}) == 68
    assert all('trm_nb.learn.launch --standalone --nproc-per-node 1 -m trm_nb.run runs/' + r['run'] in r['command'] for r in rows)
    by = {r['run']: r['config'] for r in rows}
    assert (by['exp01a']['model']['hidden_size'], by['exp02b_05']['model']['H_cycles']) == (256, 5)
    assert not list(here.iterdir())

def test_notebook_gets_the_same_config(here):
    "The preset and pairs that papermill is given make up the config."
    for name in ('exp06_f', 'exp07c', 'exp09c', 'contrib01_curriculum'):
        for budget in ('full', 'smoke'):
            o = dispatch.order(dispatch.catalogue.load_catalogue()[name], dispatch.How(), budget, 3)
            assert load_config(o.job.preset, *o.job.settings) == o.config

def test_slurm_dry_run(here, capsys):
    assert cli.call(['run', 'exp01a', '--backend', 'slurm', '--partition', 'gpu', '--nodes', '2', '--nproc', '8', '--time', '1-00:00:00', '--sbatch', 'account=mine', '--dry-run']) == 0
    said = capsys.readouterr().out
    for line in ('sbatch runs/exp01a/slurm/', '--nodes=2', '--gpus-per-node=8', '--partition=gpu', '--time=1440', '--requeue', '--account=mine'): assert line in said

@pytest.mark.parametrize('args, said', [
    (['exp1a'], "unknown experiment 'exp1a': did you mean"), (['exp01a', 'exp01a'], 'named twice'), (['exp01a', 'learn.batchsize=3'], "did you mean 'batch_size'?"), (['exp01a', 'model.hidden_size=3'], 'what exp01 varies'),
    (['exp01a', '--budget', 'smok'], "did you mean 'smoke'?"), (['exp01a', '--backend', 'pbs'], 'local or slurm'), (['exp01a', '--seeds', '0'], '--seeds 0'), (['exp01a', '--nodes', '2'], '--backend slurm'), ([], '--pattern'),
    (['exp01a', '--backend', 'slurm', '--time', 'soon'], 'H:MM:SS'), (['exp01a', 'name=x'], 'named after')])
def test_refused(args, said, here, capsys):
    assert cli.call(['run', *args]) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('trm') and said in line and not (here/'runs').exists()

def test_other_runs_are_left_alone(here, capsys, monkeypatch):
    sent = []
    monkeypatch.setattr(dispatch, 'queue_of', lambda jobs, *_: SimpleNamespace(run=lambda: [sent.append(j.name) or j.update(state='done') for j in jobs]))
    assert cli.call(['run', 'exp01a', 'exp01b', '--budget', 'smoke']) == 0 and sent == ['exp01a', 'exp01b']
    before = {p: p.read_bytes() for p in (here/'runs').rglob('*') if p.is_file()}
    assert cli.call(['run', 'exp01a', 'exp01c', '--budget', 'short']) == 2
    assert "exp01a holds a run with another '" in capsys.readouterr().err
    Usage = namedtuple('Usage', 'total used free')
    with monkeypatch.context() as m:
        m.setattr(shutil, 'disk_usage', lambda p: Usage(1, 1, 1000))
        assert cli.call(['run', 'exp01c', '--budget', 'smoke']) == 2 and 'the disk has 0.00 MiB left' in capsys.readouterr().err
    hold = Hold(here/'runs/exp01b/job.lock')
    read_job('runs/exp01b').update(state='running')
    assert cli.call(['run', 'exp01b', '--budget', 'smoke', '--overwrite']) == 2 and 'exp01b is running already' in capsys.readouterr().err
    hold.release()
    read_job('runs/exp01b').update(state='done')
    assert before == {p: p.read_bytes() for p in (here/'runs').rglob('*') if p in before}
    assert not (here/'runs/exp01c').exists() and len(sent) == 2
    assert cli.call(['run', 'exp01a', 'exp01c', '--budget', 'smoke']) == 0 and sent == ['exp01a', 'exp01b', 'exp01c'] # what is done stays
    assert cli.call(['stop', 'exp01a']) == 2 and cli.call(['resume', 'exp01a']) == 2 and cli.call(['logs', 'exp01']) == 2 and cli.call(['runs']) == 0

def test_one_command_sends_at_a_time(here, capsys, monkeypatch):
    "From the look at what is there until the queue has its runs, no other command looks; while they are carried out others may. What is refused leaves nothing behind."
    seen, busy = [], lambda: seen.append(held('runs/.lab/.lock'))
    def queue_of(jobs, *_):
        busy()
        return SimpleNamespace(run=lambda: busy() or [j.update(state='stopped') for j in jobs])
    look = dispatch.looker
    monkeypatch.setattr(dispatch, 'looker', lambda folders: busy() or look(folders))
    monkeypatch.setattr(dispatch, 'queue_of', queue_of)
    assert cli.call(['run', 'exp01a', '--budget', 'smoke']) == 130 and cli.call(['resume', 'exp01a']) == 130 and seen == [True, True, False] * 2
    hold = Hold(here/'runs/exp01a/job.lock') # its worker still sends copies to the mirror
    before = Path('runs/exp01a/job.json').read_bytes()
    assert cli.call(['run', 'exp01a', '--budget', 'smoke']) == 2 and capsys.readouterr().err == 'trm: runs/exp01a is being worked on by another process\n' and Path('runs/exp01a/job.json').read_bytes() == before
    hold.release()
    assert cli.call(['resume', 'exp01a', '--runs', 'nowhere']) == 2 and not Path('nowhere').exists()

def test_sweep(here, capsys):
    Path('mine.yaml').write_text('preset: demo\nlearn: {steps: 30}\n')
    assert cli.call(['sweep', 'mine.yaml', '--grid', 'learn.lr=1e-4,3e-4', '--seeds', '3', '--dry-run', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len({r['run'] for r in rows}) == 6 and {(r['config']['learn']['lr'], r['config']['seed'], r['config']['learn']['steps']) for r in rows} == {(lr, s, 30) for lr in (1e-4, 3e-4) for s in range(3)}

def wait_for(said, process=None, seconds=900):
    until = time.time() + seconds
    while not said():
        assert time.time() < until and (process is None or process.poll() is None)
        time.sleep(.1)

def lines(file): return file.read_text().splitlines() if file.exists() else []

def trm(*args, env=None): return subprocess.run([sys.executable, '-m', 'trm_nb.cli', *args], env=(env or os.environ) | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True)

def state(name, runs='runs'):
    folder = Path(runs, name)
    return describe(folder, looker([folder]))['state']

@pytest.mark.slow
@pytest.mark.parametrize('times, pause', [(1, 0), (20, .1), (400, .002)])
def test_signals_to_every_process(here, times, pause):
    "As Slurm sends them: to worker, kernel, torchrun and rank. The run saves and is stopped, however often they come."
    queue = subprocess.Popen([sys.executable, '-m', 'trm_nb.cli', 'run', 'exp01a', '--budget', 'smoke', '--slots', '1', *TINY], env=os.environ | dict(OMP_NUM_THREADS='1'), start_new_session=True)
    wait_for((here/'runs/exp01a/metrics.jsonl').exists, queue)
    family = psutil.Process(queue.pid).children(recursive=True)
    assert len(family) >= 4
    for _ in range(times):
        for p in family:
            with suppress(psutil.NoSuchProcess): p.send_signal(signal.SIGTERM)
        time.sleep(pause)
    assert queue.wait(120) is not None
    assert state('exp01a') == 'stopped' and saved_steps(here/'runs/exp01a/checkpoints'), (here/'runs/exp01a/job.json').read_text()

@pytest.mark.slow
def test_in_the_background(here):
    "A queue left to itself: followed, stopped and gone on with, it ends as an unbroken run does; the other run is not touched."
    sent = trm('run', 'exp01a', 'exp01b', '--budget', 'smoke', '--slots', '1', '--detach', *TINY)
    assert sent.returncode == 0 and '2 runs wait in the background' in sent.stdout, sent.stderr
    log = Path(next(w for w in sent.stdout.split() if w.endswith('.log')))
    wait_for(lambda: len(lines(here/'runs/exp01a/metrics.jsonl')) > 2)
    assert [state(n) for n in ('exp01a', 'exp01b')] == ['running', 'queued']
    follower = subprocess.Popen([sys.executable, '-m', 'trm_nb.cli', 'logs', 'exp01a', '-f'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stopped = trm('stop', 'exp01a')
    assert stopped.returncode == 0 and 'exp01a saves and leaves' in stopped.stdout, stopped.stderr
    out, err = follower.communicate(timeout=120) # it ends with the run
    assert follower.returncode == 0 and 'step/s' in err and err.strip() == (here/'runs/exp01a/stderr.log').read_text().strip()
    assert state('exp01a') == 'stopped' and 0 < saved_steps(here/'runs/exp01a/checkpoints')[-1] < 400
    wait_for(lambda: state('exp01b') == 'done')
    wait_for(lambda: 'exp01b done' in log.read_text())
    assert 'exp01a stopped' in log.read_text() and trm('stop', 'exp01a').returncode == 2
    again, whole = trm('resume', 'exp01a'), trm('run', 'exp01a', '--budget', 'smoke', '--runs', 'whole', *TINY)
    assert (again.returncode, whole.returncode) == (0, 0) and '1 of 1 runs are done' in again.stdout, again.stderr + whole.stderr
    assert lines(here/'runs/exp01a/metrics.jsonl') == lines(here/'whole/exp01a/metrics.jsonl') and state('exp01a') == 'done'

def start(*args): return subprocess.Popen([sys.executable, '-m', 'trm_nb.cli', *args], env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

@pytest.fixture
def none_left(here):
    "Runs that would go on for ever end with their test."
    yield
    for job in here.rglob('job.json'): (job.parent/'stop').touch()

LONG = ['model.hidden_size=16', 'model.num_heads=2', 'model.halt_max_steps=2', 'learn.batch_size=8', 'learn.steps=1000000', 'learn.log_every=5', 'learn.eval_every=1000000', 'learn.save_every=20', 'device=cpu']

@pytest.mark.slow
@pytest.mark.parametrize('how', [[], ['--detach']], ids=['', 'in the background'])
def test_two_at_once(here, none_left, how):
    "The same command from two terminals: one carries it out, the other one says so, and harms nothing; so it is with resume."
    write_generated('data/demo', size=4, train=60, test=20, seed=0)
    name, step = 'demo_lr0.001', 0
    for command in (['sweep', 'demo', *LONG, '--grid', 'learn.lr=1e-3', *how], ['resume', name, *how]):
        both = [start(*command), start(*command)]
        wait_for(lambda: any(p.poll() for p in both)) # a queue in the background is sent with code 0
        lost = next(p for p in both if p.poll())
        said = lost.communicate()[0]
        assert lost.returncode == 2 and (' already: trm stop' in said or f'{name} is ' in said), said
        wait_for(lambda: (saved_steps(f'runs/{name}/checkpoints') or [0])[-1] > step)
        assert state(name) == 'running' and trm('stop', name).returncode == 0
        wait_for(lambda: state(name) == 'stopped')
        won = next(p for p in both if p is not lost)
        assert won.communicate()[1] is None and won.returncode == (0 if how else 130)
        step = saved_steps(f'runs/{name}/checkpoints')[-1]

@pytest.mark.slow
def test_copied_and_moved(here, none_left):
    "What is resumed and stopped is the run that was named, wherever it came from; the original is not touched."
    write_generated('data/demo', size=4, train=60, test=20, seed=0)
    def carried_out(folder, *args):
        "Train until there is a further checkpoint, then stop."
        before, process = (saved_steps(folder/'checkpoints') or [0])[-1], start(*args)
        wait_for(lambda: (saved_steps(folder/'checkpoints') or [0])[-1] > before, process, 90)
        assert trm('stop', folder.name, '--runs', str(folder.parent)).returncode == 0
        assert process.wait(60) == 130 and state(folder.name, folder.parent) == 'stopped', process.stdout.read()
    first, copy, moved = Path('runs/demo_lr0.001'), Path('runs/copy'), Path('elsewhere/moved')
    carried_out(first, 'sweep', 'demo', *LONG, '--grid', 'learn.lr=1e-3')
    content = lambda: {p: p.read_bytes() for p in first.rglob('*') if p.is_file()}
    before = content()
    shutil.copytree(first, copy, symlinks=True)
    carried_out(copy, 'resume', 'copy')
    moved.parent.mkdir()
    copy.rename(moved)
    carried_out(moved, 'resume', 'moved', '--runs', 'elsewhere')
    assert content() == before and not copy.exists() and lines(moved/'metrics.jsonl')[:len(lines(first/'metrics.jsonl'))] == lines(first/'metrics.jsonl')

@pytest.mark.slow
def test_sweep_runs_and_is_reported(here):
    "A grid with seeds, carried out, listed and reported on."
    write_generated('data/demo', size=4, train=60, test=20, seed=0)
    tiny = ['model.hidden_size=16', 'model.num_heads=2', 'model.halt_max_steps=2', 'learn.batch_size=8', 'learn.steps=20', 'learn.log_every=5', 'learn.eval_every=10', 'device=cpu']
    swept = trm('sweep', 'demo', *tiny, '--grid', 'learn.lr=1e-3,1e-2', '--seeds', '2')
    assert swept.returncode == 0 and '4 of 4 runs are done' in swept.stdout, swept.stderr
    rows = json.loads(trm('runs', '--json').stdout)
    assert [r['name'] for r in rows] == [f'demo_lr{lr}_s{s}' for lr in ('0.001', '0.01') for s in (0, 1)] and all(r['state'] == 'done' and r['best'] is not None for r in rows)
    assert len({(here/'runs'/r['name']/'metrics.jsonl').read_text() for r in rows}) == 4
    told = trm('report', 'demo_grid', '--puzzles', '10', '--target', '0.5')
    assert told.returncode == 0, told.stderr
    table = [l for l in told.stdout.splitlines() if l.startswith('| demo_lr')]
    assert len(table) == 2 and all('0, 1' in l and '| 20 |' in l for l in table) and 'lr 0.01' in table[1]
    assert (here/'reports/demo_grid/report.html').read_text().count('data:image/png') >= 4

TASK = """import os, signal, sys
from trm_nb.lab.slurm import Task
task, folder, node = Task(), sys.argv[1], int(os.environ['SLURM_NODEID'])
def warned(*_): # as submitit does: only the first task acts
    if node: return
    task.checkpoint(folder)
    sys.exit(255)
signal.signal(signal.SIGUSR2, warned)
sys.exit(task(folder) or 0)
"""

def two_machines(folder, port):
    "The two tasks of a Slurm job, on this machine."
    env = os.environ | dict(SLURM_JOB_ID=str(port - 20_000), SLURM_JOB_NODELIST='localhost', OMP_NUM_THREADS='1')
    return [subprocess.Popen([sys.executable, '-c', TASK, str(folder)], env=env | dict(SLURM_NODEID=str(n)), start_new_session=True) for n in range(2)]

def port_of_a_job():
    "A free port that a Slurm job's number can mean."
    return next(p for p in iter(slurm_cluster.free_port, None) if 20_000 <= p < 40_000)

def warn(process):
    "Slurm's warning: SIGUSR2 to all processes of a task."
    parent = psutil.Process(process.pid)
    for p in [*parent.children(recursive=True), parent]: p.send_signal(signal.SIGUSR2)

@pytest.mark.slow
def test_warning_on_two_machines(here):
    "Ranks of both machines live through Slurm's warning, save and leave; what goes on has the metrics of an unbroken run."
    write_generated('data', size=4, train=60, test=20, seed=0)
    settings = ['model.hidden_size=32', 'model.num_heads=2', 'model.halt_max_steps=2', 'learn.steps=400', 'learn.eval_every=200', 'learn.log_every=5', 'learn.batch_size=16', 'device=cpu', f'data.path={here}/data']
    job = lambda name, **how: Job(folder=str(here/'runs'/name), preset='demo', settings=[*settings, f'runs={here}/runs', f'name={name}'], steps=400, **how).save()
    broken, whole = job('broken', nnodes=2, backend='slurm'), job('whole', nproc=2)
    tasks = two_machines(broken.path, port_of_a_job())
    wait_for(lambda: len(lines(broken.path/'metrics.jsonl')) > 2, tasks[0])
    for t in reversed(tasks): warn(t)
    assert [t.wait(120) for t in tasks] == [255, 0], 'the first task asks to be queued again, the other one ends well'
    assert read_job(broken.path).state == 'stopped' and 0 < saved_steps(broken.path/'checkpoints')[-1] < 400
    tasks = two_machines(broken.path, port_of_a_job())
    assert [t.wait(300) for t in tasks] == [0, 0] and read_job(broken.path).state == 'done'
    execute(whole.folder)
    assert lines(broken.path/'metrics.jsonl') == lines(whole.path/'metrics.jsonl')

@pytest.mark.slow
@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or 'there is a cluster')
def test_slurm(here, monkeypatch):
    "Three runs: one cancelled and resumed, one unbroken with the same metrics, one that fails."
    with slurm_cluster.Cluster(here/'cluster') as cluster:
        monkeypatch.setenv('SLURM_CONF', str(cluster.conf))
        send = lambda *args: trm('run', *args, '--budget', 'smoke', '--backend', 'slurm', '--gpus', '0', '--time', '60', env=cluster.env)
        broken, whole, bad = send('exp01a', *TINY), send('exp01a', *TINY, '--runs', 'whole'), send('exp01b', *TINY[:-1], 'device=cuda:7')
        assert [broken.returncode, whole.returncode, bad.returncode] == [0] * 3, broken.stderr + whole.stderr + bad.stderr
        wait_for(lambda: (here/'runs/exp01a/metrics.jsonl').exists())
        subprocess.run(['scancel', read_job('runs/exp01a').job], env=cluster.env, check=True)
        wait_for(lambda: state('exp01a') not in ('running', 'queued'))
        assert state('exp01a') == 'stopped' and (here/'runs/exp01a/checkpoints/last').exists(), Path('runs/exp01a/job.json').read_text()
        wait_for(lambda: not cluster.run('squeue', '-h', '-j', read_job('runs/exp01a').job).stdout.strip())
        again = trm('resume', 'exp01a', env=cluster.env)
        assert again.returncode == 0, again.stderr
        wait_for(lambda: all(state(n, r) in ('done', 'failed') for n, r in (('exp01a', 'runs'), ('exp01a', 'whole'), ('exp01b', 'runs'))))
        assert (state('exp01a'), state('exp01a', 'whole'), state('exp01b')) == ('done', 'done', 'failed'), Path('runs/exp01a/job.json').read_text()
        assert (here/'runs/exp01a/metrics.jsonl').read_text() == (here/'whole/exp01a/metrics.jsonl').read_text()
        table = trm('runs', env=cluster.env).stdout
        assert 'cuda' in table.split('exp01b')[1] and 'failed' in table and (here/'runs/exp01b/train.ipynb').exists()

@pytest.mark.slow
@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or 'there is a cluster')
def test_slurm_preempts_and_requeues(here, monkeypatch):
    "At Slurm's warning a run saves and is queued again; it goes on from there, with the metrics of an unbroken run."
    with slurm_cluster.Cluster(here/'cluster') as cluster:
        monkeypatch.setenv('SLURM_CONF', str(cluster.conf))
        for runs in ('runs', 'whole'): assert trm('run', 'exp01a', '--budget', 'smoke', '--backend', 'slurm', '--gpus', '0', '--time', '60', '--runs', runs, *TINY, env=cluster.env).returncode == 0
        job = read_job('runs/exp01a').job
        about = lambda key: dict(pair.partition('=')[::2] for pair in cluster.run('scontrol', 'show', 'job', job).stdout.split()).get(key)
        wait_for(lambda: len(lines(here/'runs/exp01a/metrics.jsonl')) > 2)
        cluster.run('scancel', '--signal=USR2', job)
        wait_for(lambda: about('Restarts') == '1' and state('exp01a') == 'queued')
        assert 0 < saved_steps(here/'runs/exp01a/checkpoints')[-1] < 400 and read_job('runs/exp01a').state == 'stopped'
        cluster.run('scontrol', 'update', f'JobId={job}', 'StartTime=now') # Slurm lets a job that was queued again wait for two minutes
        wait_for(lambda: all(state('exp01a', r) in ('done', 'failed', 'stopped', 'died') for r in ('runs', 'whole')))
        assert [state('exp01a', r) for r in ('runs', 'whole')] == ['done', 'done'], Path('runs/exp01a/job.json').read_text()
        assert lines(here/'runs/exp01a/metrics.jsonl') == lines(here/'whole/exp01a/metrics.jsonl')
        assert read_job('runs/exp01a').job == job and about('Restarts') == '1'
