"""The queue when something goes wrong: signals at bad moments, runs that others work on, disks that are full, folders that were moved."""
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path
import papermill
import pytest
from trm_nb.config import load_config
from trm_nb.data import locks
from trm_nb.data.locks import Hold
from trm_nb.lab import dispatch
from trm_nb.lab.jobs import Job, Queue, ask_to_stop, asked_to_stop, fork_worker, read_job, state_of
from trm_nb.lab.work import execute_notebook, parameters
from trm_nb.learn.checkpoint import save_checkpoint, saved_steps

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def jobs(*names): return [Job(folder=f'runs/{n}', preset='demo').save() for n in names]

def patient(folder):
    "A worker that works until it is asked to stop, or for a minute."
    mine, until = Hold(Path(folder)/'job.lock'), time.time() + 60
    read_job(folder).update(state='running', pid=os.getpid(), host=os.uname().nodename)
    while not asked_to_stop(folder) and time.time() < until: time.sleep(.02)
    read_job(folder).update(state='stopped' if asked_to_stop(folder) else 'done')

def states(*names): return [state_of(read_job(f'runs/{n}')) for n in names]

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_a_worker_starts(here, number):
    "It comes after the fork and before the queue has noted the worker: that one is asked to stop too, and waited for."
    real, before = fork_worker(patient), signal.getsignal(number)
    def start(*args):
        poll = real(*args)
        os.kill(os.getpid(), number)
        return poll
    ended = Queue(jobs('a', 'b'), [{}], start, 'runs/q.lock', pause=.01).run()
    assert sorted(j.name for j in ended) == ['a', 'b'] and states('a', 'b') == ['stopped'] * 2
    assert signal.getsignal(number) == before and not Path('runs/q.lock').exists()

def test_signal_while_the_queue_stops(here):
    "A second Ctrl-C while those that wait are taken out: none of them is left waiting."
    names = [f'r{n}' for n in range(9)]
    def tell(event, job): os.kill(os.getpid(), signal.SIGINT)
    ended = Queue(jobs(*names), [{}], fork_worker(patient), 'runs/q.lock', tell, pause=.01).run()
    assert sorted(j.name for j in ended) == names and states(*names[1:]) == ['stopped'] * 8
    assert states('r0')[0] in ('stopped', 'failed') # ended at once, or just before

def test_signals_of_a_worker(here):
    "Ctrl-C is the queue's; SIGTERM is not what the queue makes of it."
    def work(folder): read_job(folder).update(state='done', settings=[str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)])
    Queue(jobs('a'), [{}], fork_worker(work), 'runs/q.lock', pause=.01).run()
    assert read_job('runs/a').settings == ['1', '0'] # SIG_IGN, SIG_DFL

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_takes_no_word(here, monkeypatch):
    "What is told of the queue cannot be written: the queue goes on."
    def work(folder): read_job(folder).update(state='done')
    with suppress(OSError), open('/dev/full', 'w') as full, monkeypatch.context() as m: # it cannot be closed either
        m.setattr(sys, 'stderr', full)
        ended = Queue(jobs('a', 'b', 'c'), [{}], fork_worker(work), 'runs/q.lock', dispatch.Teller(3), pause=.01).run()
    assert [(j.name, j.state) for j in ended] == [('a', 'done'), ('b', 'done'), ('c', 'done')]

@pytest.mark.parametrize('stop', [False, True], ids=['', 'asked to stop'])
def test_a_run_of_another_process(here, stop):
    "It is told that somebody else has it; neither its job.json nor its worker notices."
    theirs, mine = jobs('theirs', 'mine')
    hold = Hold('runs/theirs/job.lock')
    theirs.update(state='running', pid=os.getpid())
    before = Path('runs/theirs/job.json').read_bytes()
    if stop: ask_to_stop('runs/theirs')
    def work(folder): read_job(folder).update(state='done')
    ended = {j.name: j for j in Queue([read_job('runs/theirs'), mine], [{}], fork_worker(work), 'runs/q.lock', pause=.01).run()}
    assert Path('runs/theirs/job.json').read_bytes() == before and states('theirs', 'mine') == ['running', 'done']
    assert (ended['theirs'].state, ended['theirs'].error) == ('failed', 'runs/theirs is being worked on by another process') and ended['mine'].state == 'done'
    hold.release()

def test_another_process_is_quicker(here):
    "It takes the run after the queue has looked: the worker finds no place, and the queue leaves the run alone."
    held = []
    def start(job, env, hold):
        held.append(Hold('runs/a/job.lock'))
        read_job('runs/a').update(state='running', pid=os.getpid())
        return lambda: 1
    ended, = Queue(jobs('a'), [{}], start, 'runs/q.lock', pause=.01).run()
    assert (ended.state, ended.error) == ('failed', 'runs/a is being worked on by another process') and states('a') == ['running'] and not read_job('runs/a').error
    held[0].release()

def test_who_only_looks_is_waited_for(here, monkeypatch):
    "A look, as of `trm runs`, takes the lock for a moment: nobody believes that the run is worked on."
    job, = jobs('a')
    look = Hold('runs/a/job.lock')
    monkeypatch.setattr(locks.time, 'sleep', lambda seconds: look.release())
    def start(*args):
        read_job('runs/a').update(state='done')
        return lambda: 0
    ended, = Queue([job], [{}], start, 'runs/q.lock').run()
    assert ended.state == 'done' and states('a') == ['done']

def test_waiting_is_seen_from_everywhere(here, monkeypatch):
    "The place of the queue's lock does not depend on where one stands."
    job, = jobs('a')
    queue = Queue([job], [{}], None, dispatch._lock('runs'))
    monkeypatch.chdir(here.parent)
    assert state_of(read_job(f'{here.name}/runs/a')) == 'queued'
    queue.close()
    assert state_of(read_job(f'{here.name}/runs/a')) == 'died'

def test_a_moved_run_goes_on_where_it_lies(here):
    "Settings of the original do not lead back to it."
    settings = ['name=a', 'runs=runs', 'learn.steps=7', 'model.H_cycles=1']
    Job(folder='runs/a', preset='demo', settings=settings).save()
    Path('other').mkdir()
    Path('runs/a').rename('other/007')
    config = load_config('demo', *parameters(read_job('other/007'))['settings'])
    assert (str(config.folder), config.learn.steps, config.model.H_cycles) == ('other/007', 7, 1)
    assert config == load_config('demo', *settings).model_copy(update=dict(name='007', runs='other'))

def test_killed_before_anything_is_overwritten(here, monkeypatch):
    "The old checkpoints are gone before it is forgotten that they were to go."
    job = Job(folder='runs/a', preset='demo', overwrite=True).save()
    save_checkpoint(job.path/'checkpoints', 10, {}, {}, dict(step=10))
    def killed(*args, **kwargs): raise SystemExit('kill -9')
    monkeypatch.setattr(papermill, 'execute_notebook', killed)
    with pytest.raises(SystemExit): execute_notebook(read_job('runs/a'))
    given = parameters(read_job('runs/a'))
    assert (given['resume'], given['overwrite']) == (False, True) and not saved_steps(job.path/'checkpoints')
    save_checkpoint(job.path/'checkpoints', 5, {}, {}, dict(step=5)) # the new run's
    with pytest.raises(SystemExit): execute_notebook(read_job('runs/a'))
    assert parameters(read_job('runs/a'))['resume'] and saved_steps(job.path/'checkpoints') == [5]
