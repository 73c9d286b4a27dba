"""Training as it is really run: under torchrun, killed, resumed, on one rank and on two."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from trm_nb.config import load_config
from trm_nb.data.arc import Task, build_arc
from trm_nb.data.basics import UserError
from trm_nb.data.format import PuzzleDataset
from trm_nb.evaluate.command import eval_command
from trm_nb.evaluate.predictions import read_predictions
from trm_nb.learn.callbacks import Callback
from trm_nb.learn.checkpoint import load_train_state, save_checkpoint, saved_steps
from trm_nb.learn.launch import torchrun_command
from trm_nb.run import Cluster, compose, launch_command, out_of_memory, outcome, prepare, read_data, train, work

pytestmark = pytest.mark.xdist_group('training')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from trm_nb.data.sudoku import write_generated
    folder = tmp_path_factory.mktemp('data')/'sudoku4'
    write_generated(folder, size=4, train=64, test=24, seed=0)
    return folder


@pytest.fixture
def config(data, tmp_path):
    def make(name, *pairs):
        return load_config('demo', f'data.path={data}', f'runs={tmp_path}', f'name={name}', 'device=cpu', 'model.hidden_size=32', 'model.num_heads=2',
                           'model.puzzle_emb_ndim=32', 'learn.batch_size=16', 'learn.steps=24', 'learn.log_every=4', 'learn.eval_every=8', 'learn.warmup_steps=4', *pairs)
    return make


# An untrained recursion is chaotic: a rounding error grows eightfold an ACT step, 10^7-fold over a full carry. To compare
# orders of summation, the latents must be short-lived.
CALM = ('model.halt_max_steps=2', 'model.H_cycles=1', 'learn.lr=1e-4')


def rows(config): return [json.loads(l) for l in (config.folder/'metrics.jsonl').read_text().splitlines()]


def same(a, b, rtol):
    assert [(r['step'], r['kind'], *r) for r in a] == [(r['step'], r['kind'], *r) for r in b]
    for x, y in zip(a, b):
        for k in x:
            if isinstance(x[k], float) and isinstance(y[k], float): assert x[k] == pytest.approx(y[k], rel=rtol, abs=rtol), (x['step'], k)


def test_two_ranks_equal_one(config):
    keep = 'evaluate.save_outputs=[answers,q_halt]'
    one, two, parts = config('one', keep, *CALM), config('two', keep, *CALM), config('parts', 'learn.micro_batch=4', *CALM)
    assert train(one) == train(two, Cluster(nproc=2)) == train(parts) == 'done'
    same(rows(one), rows(two), 2e-6)
    same(rows(one), rows(parts), 2e-6)
    for step in (8, 16, 24):
        a, b = (read_predictions(c.folder, step) for c in (one, two))
        assert a['index'].tolist() == b['index'].tolist() == list(range(24)) and (a['answers'] == b['answers']).mean() > .99
        assert a['q_halt'] == pytest.approx(b['q_halt'], abs=1e-4)


def start(config, step, cluster=Cluster()):
    """Start a run, and return when `step` is logged."""
    prepare(config)
    with (config.folder/'said.txt').open('wb') as said: run = subprocess.Popen(launch_command(config.folder, cluster), start_new_session=True, stderr=said)
    while not (config.folder/'metrics.jsonl').exists() or rows_so_far(config) < step:
        assert run.poll() is None, f'the run ended too early: {outcome(config.folder)}'
        time.sleep(.005)
    return run


def kill_at(config, step):
    """Start a run and kill -9 all of its processes once `step` is logged."""
    run = start(config, step)
    os.killpg(run.pid, signal.SIGKILL)
    subprocess.run(['pkill', '-9', '-f', f'trm_nb.run {config.folder}'])
    run.wait()


def metadata(config, name='last'): return json.loads((config.folder/'checkpoints'/name/'metadata.json').read_text())


def test_what_a_killed_process_left_is_mended(config):
    """A link not yet moved, half a checkpoint, links that a copy followed, a removal broken off."""
    c = config('left', 'learn.best=train.loss', 'learn.best_is=min', 'learn.keep_last=1', 'learn.save_every=4')
    assert train(c) == 'done'
    before, best = metadata(c), metadata(c)['best']['step']
    links = c.folder/'checkpoints'
    (links/'best').unlink()
    shutil.copytree(links/'last', links/'.step_28.abc.tmp')
    assert train(config('left', 'learn.best=train.loss', 'learn.best_is=min', 'learn.keep_last=1', 'learn.save_every=4'), resume=True) == 'done'
    assert metadata(c) == before and before['evaluation'] and before['train'], 'a finished run is not written again'
    assert metadata(c, 'best')['step'] == best and not list(links.glob('.step_*'))
    copied = config('copied', 'learn.steps=28')
    shutil.copytree(c.folder, copied.folder)                                                # links become folders
    assert not (copied.folder/'checkpoints'/'last').is_symlink()
    assert train(config('copied', 'learn.best=train.loss', 'learn.best_is=min', 'learn.keep_last=1', 'learn.save_every=4', 'learn.steps=28'), resume=True) == 'done'
    assert metadata(copied)['step'] == 28 and (copied.folder/'checkpoints'/'last').is_symlink()
    for name in ('metrics.jsonl', 'timing.jsonl', 'config.yaml'): (copied.folder/name).unlink()   # `rm -r` by an earlier version, killed
    assert train(config('copied', 'learn.steps=8'), overwrite=True) == 'done'
    assert saved_steps(copied.folder/'checkpoints') == [8]


def test_the_last_row_of_training_is_kept(config):
    """So the best checkpoint by it is the same after a resume."""
    pairs = 'learn.best=train.loss', 'learn.best_is=min', 'learn.log_every=6', 'learn.eval_every=5', 'learn.save_every=7', 'learn.keep_last=9'
    class StopAt14(Callback):
        def after_step(self, trainer): trainer.stop |= trainer.step_number == 14
    unbroken, broken = config('whole', *pairs), config('parts', *pairs)
    assert work(prepare(unbroken)) == 'done'
    assert work(prepare(broken), ready=lambda t: t.callbacks.append(StopAt14())) == 'stopped'
    assert work(prepare(broken, resume=True), resume=True) == 'done'
    assert saved_steps(broken.folder/'checkpoints') == saved_steps(unbroken.folder/'checkpoints')
    for step in (15, 21, 24):
        a, b = (metadata(c, f'step_{step}') for c in (unbroken, broken))
        assert (a['best'], a['train']) == (b['best'], b['train']), step


def test_an_evaluation_that_fails(config, tmp_path, monkeypatch):
    """What can be known before the training is said before it; what fails after it leaves a checkpoint to go on from."""
    with pytest.raises(UserError, match="the evaluator 'maze' follows paths in mazes, not in sudoku-4x4"): prepare(config('wrong', 'evaluate.evaluators=[exact,maze]'))
    c = config('bad', 'learn.steps=6', 'learn.eval_every=1000')
    prepare(c)
    def broken(*args, **options): raise UserError('out of GPU memory')
    with monkeypatch.context() as m:
        m.setattr('trm_nb.run.evaluate', broken)
        with pytest.raises(UserError, match='out of GPU memory'): work(c.folder)
    assert saved_steps(c.folder/'checkpoints') == [6] and load_train_state(c.folder/'checkpoints'/'last')['step'] == 6


def test_two_commands_at_once(config):
    """The second is refused from the moment that the first has begun, not only once its ranks train."""
    first = config('both', 'learn.steps=100000', 'learn.eval_every=50000')
    code = f'import sys; from trm_nb.config import load_config; from trm_nb.run import train; train(load_config(sys.argv[1]))'
    copy = first.folder.parent/'both.yaml'
    copy.write_text(first.to_yaml())
    run = subprocess.Popen([sys.executable, '-c', code, str(copy)], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (first.folder/'config.yaml').exists(): assert run.poll() is None; time.sleep(.005)
    written = (first.folder/'config.yaml').read_bytes()
    try:
        with pytest.raises(UserError, match='is being worked on by another process'): train(config('both', 'learn.steps=4'))
        assert (first.folder/'config.yaml').read_bytes() == written
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    c = config('both', 'learn.steps=4')
    while True:                                                                             # its ranks save and leave
        try: assert train(c, overwrite=True) == 'done'; break
        except UserError as e: assert 'is being worked on' in str(e)
    assert not (c.folder/'.lock').exists()


def rows_so_far(config):
    lines = [l for l in (config.folder/'metrics.jsonl').read_text().splitlines(keepends=True) if l.endswith('\n')]
    return json.loads(lines[-1])['step'] if lines else 0


@pytest.mark.parametrize('after', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_and_resumed(config, after):
    settings = (*CALM, 'learn.steps=300', 'learn.eval_every=100', 'learn.save_every=30')
    unbroken, broken = config('unbroken', *settings), config('broken', *settings)
    train(unbroken)
    kill_at(broken, 150)
    steps = saved_steps(broken.folder/'checkpoints')
    assert steps and steps[-1] < 300, 'killed in mid-run'
    for step in steps: load_train_state(broken.folder/'checkpoints'/f'step_{step}')          # nothing half written under its name
    assert train(broken, Cluster(nproc=after), resume=True) == 'done'
    if after == 1: assert (broken.folder/'metrics.jsonl').read_bytes() == (unbroken.folder/'metrics.jsonl').read_bytes()
    else: same(rows(broken), rows(unbroken), 1e-4)


@pytest.mark.parametrize('optimiser', ['muon', 'adam_atan2'])
def test_tied_digits(config, optimiser):
    """Two ranks and a resumed run end where one unbroken rank does, and none of them can tell digits apart; nor does a run on untied weights begin from them."""
    bound = ('model.symbols=4', 'model.puzzle_emb_ndim=0', f'learn.optimiser={optimiser}', 'learn.lr_min_ratio=1', *CALM)
    one, two, cut = config('bound', *bound), config('bound2', *bound), config('cut', *bound)
    assert train(one) == train(two, Cluster(nproc=2)) == train(config('cut', *bound, 'learn.steps=16')) == 'done'
    assert train(cut, resume=True) == 'done'
    same(rows(one), rows(two), 2e-6)
    saved = {c.name: load_file(c.folder/'checkpoints'/'last'/'model.safetensors') for c in (one, two, cut)}
    assert all(torch.equal(v, saved['cut'][k]) for k, v in saved['bound'].items())
    for w in saved.values():
        gate = w['inner.L_level.layers.0.mlp.gate_up_proj.weight'].unflatten(0, (2, 4, -1)).unflatten(-1, (4, -1))       # (half, digit, row, digit, column)
        assert len({gate[:, s, :, t].numpy().tobytes() for s in range(4) for t in range(4)}) == 2
    with pytest.raises(UserError, match='another model: to start from it set model.symbols=4'): train(config('free', 'model.puzzle_emb_ndim=0', *CALM, f'learn.start_from={one.folder}'))


def test_the_end_of_the_terminal_lets_it_save_and_leave(config):
    c = config('hung', 'learn.steps=100000', 'learn.eval_every=50000')
    run = start(c, 8, Cluster(torchrun=False))
    run.send_signal(signal.SIGHUP)
    run.wait(60)
    assert outcome(c.folder)['status'] == 'stopped' and saved_steps(c.folder/'checkpoints')[-1] >= 8


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_signals_let_it_save_and_leave(config, number):
    """However often they come, and to whom: all of Slurm's go to every process, and torchrun hands its own on."""
    c = config('stopped', 'learn.steps=100000', 'learn.eval_every=50000')
    run = start(c, 8)
    while run.poll() is None:
        subprocess.run(['pkill', f'-{number.value}', '-f', str(c.folder)])
        time.sleep(.002)
    assert outcome(c.folder)['status'] == 'stopped'
    step, = saved_steps(c.folder/'checkpoints')
    assert step >= 8 and load_train_state(c.folder/'checkpoints'/'last')['step'] == step
    said = (c.folder/'said.txt').read_text()
    assert 'step/s' in said and 'Traceback' not in said and 'elastic' not in said


def imports_torch(pid):
    """Whether a process has got as far as torch's libraries; Python itself has started by then."""
    try: return 'libtorch' in Path(f'/proc/{pid}/maps').read_text()
    except OSError: return False


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='no /proc to see by when a process imports torch')
@pytest.mark.parametrize('nproc', [1, 2])
@pytest.mark.parametrize('when', ['torchrun imports torch', 'ranks start', 'ranks import torch'])
def test_a_ctrl_c_before_it_trains(config, nproc, when):
    "Just ends it: there is nothing to save, and no traceback of imports to read."
    folder = prepare(config('early'), nproc)
    run = subprocess.Popen(launch_command(folder, Cluster(nproc)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True)
    ranks = lambda: [p for p in psutil.Process(run.pid).children() if when == 'ranks start' or 'trm_nb.learn.launch' not in p.cmdline()] # in the first moment they are still torchrun's image
    ready = {'torchrun imports torch': lambda: imports_torch(run.pid), 'ranks start': lambda: len(ranks()) > 0,
             'ranks import torch': lambda: len(ranks()) == nproc and all(imports_torch(r.pid) for r in ranks())}[when]
    while run.poll() is None and not ready(): time.sleep(0 if when == 'ranks start' else .005)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and 'Traceback' not in said and not saved_steps(folder/'checkpoints'), said


def test_a_ctrl_c_when_one_rank_is_ready_and_another_is_not(config, tmp_path, monkeypatch):
    "Ends both: none is left to wait for one that has gone."
    (tmp_path/'slow_start.py').write_text("""
import os, pathlib, time
from trm_nb.learn.callbacks import CALLBACKS, Callback
@CALLBACKS.register('late')
class Late(Callback):
    def __init__(self):
        rank = os.environ.get('RANK', '0')
        pathlib.Path('rank' + rank).touch()
        if rank == '0': time.sleep(60)
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    folder = prepare(config('late', 'plugins=[slow_start]', 'callbacks=[late]'), 2)
    run = subprocess.Popen(launch_command(folder, Cluster(nproc=2)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True)
    while run.poll() is None and not all((tmp_path/f'rank{r}').exists() for r in (0, 1)): time.sleep(.005)
    time.sleep(2)                                                                           # rank 1 goes as far as it can
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=30)
    assert run.returncode != 0 and 'Traceback' not in said and not saved_steps(folder/'checkpoints'), said


@pytest.mark.slow
def test_ranks_with_slow_steps_agree_to_stop_within_seconds(config, tmp_path, monkeypatch):
    "Not only when they next log, which may be long after who asked has lost patience and kills them."
    (tmp_path/'slow_steps.py').write_text("""
import time
from trm_nb.learn.callbacks import CALLBACKS, Callback
@CALLBACKS.register('slow')
class Slow(Callback):
    def after_step(self, trainer):
        time.sleep(.5)
        with open(f'rank{trainer.ranks.rank}', 'a') as f: f.write('x')
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    c = config('slow', 'learn.steps=1000', 'learn.log_every=1000', 'learn.eval_every=1000', 'plugins=[slow_steps]', 'callbacks=[slow]')
    run = subprocess.Popen(launch_command(prepare(c, 2), Cluster(nproc=2)), start_new_session=True)
    steps = lambda: (tmp_path/'rank0').stat().st_size if (tmp_path/'rank0').exists() else 0
    while steps() < 15 and run.poll() is None: time.sleep(.01)
    run.send_signal(signal.SIGTERM)
    run.wait(60)
    assert outcome(c.folder)['status'] == 'stopped' and 15 <= saved_steps(c.folder/'checkpoints')[-1] == steps() <= 35


def test_resume_refuses_other_settings(config):
    c = config('kept', 'learn.steps=4')
    train(c)
    before = {p: p.stat().st_mtime_ns for p in c.folder.rglob('*')}
    for pairs, flags in (('learn.lr=5',), dict(resume=True)), ((), {}), (('name=fresh',), dict(resume=True)):
        with pytest.raises(UserError): train(config('kept', 'learn.steps=4', *pairs), **flags)
    assert {p: p.stat().st_mtime_ns for p in c.folder.rglob('*')} == before
    assert train(config('kept', 'learn.steps=8'), resume=True) == 'done'


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(config):
    pairs = 'learn.steps=8', 'learn.save_every=2', 'learn.keep_last=2', 'learn.lr_min_ratio=1', 'learn.eval_every=100'
    c, whole = config('hurt', *pairs), config('unhurt', *pairs, 'learn.steps=10')
    train(c), train(whole)
    state = c.folder/'checkpoints/step_8/train_state.pt'
    state.write_bytes(state.read_bytes()[:1000])
    more = config('hurt', *pairs, 'learn.steps=10')
    with pytest.raises(UserError, match='step_8/train_state.pt cannot be read .*: remove .*hurt/checkpoints/step_8 and go on from step 6'): train(more, resume=True)
    shutil.rmtree(state.parent)
    assert train(more, resume=True) == 'done' and saved_steps(c.folder/'checkpoints')[-1] == 10
    assert (c.folder/'metrics.jsonl').read_text() == (whole.folder/'metrics.jsonl').read_text()
    for s in saved_steps(c.folder/'checkpoints')[:-1]: shutil.rmtree(c.folder/f'checkpoints/step_{s}')
    (c.folder/'checkpoints/step_10/train_state.pt').write_bytes(b'')
    with pytest.raises(UserError, match='there is no other checkpoint'): train(config('hurt', *pairs, 'learn.steps=12'), resume=True)


def test_out_of_memory_names_the_micro_batch(config, monkeypatch):
    c = config('big')
    folder = prepare(c)
    def full(self, *a): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr('trm_nb.learn.trainer.Trainer._forward_backward', full)
    with pytest.raises(UserError, match=r'learn.micro_batch=8'): work(folder)


def test_batch_that_ranks_do_not_divide(config):
    c = config('odd', 'learn.batch_size=15')
    with pytest.raises(UserError, match='cannot be divided among 2 ranks'): train(c, Cluster(nproc=2))
    assert not c.folder.exists()


def test_same_seed_same_run_other_seed_other_run(config):
    runs = [config('a', 'learn.steps=8'), config('b', 'learn.steps=8'), config('c', 'learn.steps=8', 'seed=1')]
    for c in runs:
        prepare(c)
        work(c.folder)
    a, b, c = map(rows, runs)
    assert a == b and a[0]['loss'] != c[0]['loss']


def test_one_batch_is_learned_by_heart(config):
    c = config('heart', 'data.augment=false', 'data.max_train_puzzles=16', 'learn.lr=3e-3', 'learn.steps=250', 'learn.log_every=50', 'evaluate.evaluators=[]', 'model.hidden_size=64')
    prepare(c)
    work(c.folder)
    assert rows(c)[-1]['exact_accuracy'] > .95


def test_nothing_waits_for_the_device(config):
    """In a step no tensor comes to the host: on a fake device that cannot be read, it would fail."""
    c = config('async')
    prepare(c)
    trainer = compose(c)
    trainer.step()
    seen = []
    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, f, types, args=(), kwargs=None):
            if getattr(f, '__name__', '') in ('item', 'tolist', 'nonzero', '__bool__', '__float__', '__int__', 'numpy', 'unique'): seen.append(f.__name__)
            return f(*args, **(kwargs or {}))
    with Spy(): trainer.step()
    assert not seen


def test_template_refuses_an_unknown_parameter(root, tmp_path):
    """Papermill itself only warns."""
    from papermill.exceptions import PapermillExecutionError
    import papermill
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'presets': did you mean 'preset'"):
        papermill.execute_notebook(root/'experiments'/'train.ipynb', tmp_path/'out.ipynb', dict(presets='demo'), progress_bar=False)


@pytest.fixture(scope='module')
def first(data, tmp_path_factory):
    "A run to start others from."
    c = load_config('demo', f'data.path={data}', f'runs={tmp_path_factory.mktemp("first")}', 'name=first', 'device=cpu', 'model.hidden_size=32', 'model.num_heads=2',
                    'model.puzzle_emb_ndim=32', 'learn.batch_size=16', 'learn.steps=6', 'learn.warmup_steps=0', 'learn.puzzle_lr=0.01')
    prepare(c)
    work(c.folder)
    return c.folder


def weights(folder): return load_file(folder/'checkpoints'/'last'/'model.safetensors')


def test_a_run_starts_from_another(config, first):
    c = config('warm', f'learn.start_from={first}')
    prepare(c)
    trainer, source = compose(c), weights(first)
    for k, v in trainer.act.state_dict().items(): assert torch.equal(v, source[k]), k
    for k, v in trainer.ema.state_dict().items(): assert torch.equal(v, source[k]), k
    assert (source['inner.puzzle_emb.weights'] != 0).all(), 'a table that is zero would prove nothing'


@pytest.mark.parametrize('rows', [1, 4])
def test_rows_of_other_data_begin_at_the_mean(config, first, tmp_path, rows):
    """Other identifiers, and as many of other data: both times no row belongs to its identifier any more."""
    old, source = json.loads((first/'checkpoints/last/metadata.json').read_text()), weights(first)
    old['shape']['num_puzzle_identifiers'] = rows
    if rows == 1: old['data']['fingerprint'] = 'of other data'
    source['inner.puzzle_emb.weights'] = torch.randn(rows, 32)
    save_checkpoint(tmp_path/'old'/'checkpoints', 1, source, {}, old)
    act = compose(config('other', f'learn.start_from={tmp_path/"old"}')).act
    assert torch.equal(act.inner.puzzle_emb.weights, source['inner.puzzle_emb.weights'].mean(0, keepdim=True))


def go(config, resume=False):
    """Train in this process."""
    prepare(config, resume=resume)
    assert work(config.folder, resume) == 'done'
    return weights(config.folder)


def test_frozen_weights_do_not_move_by_a_bit(config, first):
    pairs = (f'learn.start_from={first}', 'learn.freeze_weights=true', 'learn.warmup_steps=0', 'learn.puzzle_lr=0.01')
    old, new = weights(first), go(config('frozen', *pairs))
    assert [k for k in old if not torch.equal(old[k], new[k])] == ['inner.puzzle_emb.weights']
    state = load_train_state(config('frozen').folder/'checkpoints'/'last')
    assert state['optimiser'] is None and state['ema'] is None
    newer = go(config('frozen', *pairs, 'learn.steps=28'), resume=True)
    assert [k for k in old if not torch.equal(newer[k], new[k])] == ['inner.puzzle_emb.weights']


def test_frozen_weights_cost_no_gradient(config, first):
    def flops(*pairs):
        trainer = compose(config('cheap', f'learn.start_from={first}', *pairs))
        with FlopCounterMode(display=False) as counter: trainer.step()
        return counter.get_total_flops(), trainer
    (all_flops, _), (frozen_flops, trainer) = flops(), flops('learn.freeze_weights=true')
    assert len(trainer.gradients) == 0 and all(p.grad is None for p in trainer.act.parameters())
    assert frozen_flops < .85 * all_flops


def test_resume_does_not_start_again(config, first, tmp_path):
    """The resumed half needs neither the old checkpoint nor its weights."""
    gone = tmp_path/'gone'
    shutil.copytree(first, gone, symlinks=True)
    unbroken, broken = ((f'learn.start_from={gone}', f'learn.steps={n}', 'learn.lr_min_ratio=1') for n in (16, 8))
    a = go(config('unbroken', *unbroken))
    go(config('broken', *broken))
    shutil.rmtree(gone)
    b = go(config('broken', *unbroken), resume=True)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('pairs, said', [
    (('model.hidden_size=64', 'model.L_cycles=3'), 'set model.hidden_size=32 model.L_cycles='),
    (('learn.start_from=nowhere',), "no checkpoint 'nowhere'"),
    (('learn.start_from=null', 'learn.freeze_weights=true'), 'name a checkpoint'),
    (('model.puzzle_emb_ndim=0', 'learn.freeze_weights=true'), 'no puzzle table'),
    (('learn.puzzle_lr=0', 'learn.freeze_weights=true'), 'nothing would learn')])
def test_a_start_that_cannot_be(config, first, pairs, said):
    with pytest.raises(UserError, match=said): train(config('bad', f'learn.start_from={first}', *pairs))
    assert not config('bad').folder.exists()


def test_the_first_evaluation_after_n_steps(config):
    c = config('late', 'learn.eval_after=10', 'learn.save_every=8', 'evaluate.save_outputs=[q_halt]')
    go(c)
    assert [r['step'] for r in rows(c) if r['kind'] == 'eval'] == [16, 24]
    assert sorted(p.name for p in (c.folder/'predictions').iterdir()) == ['step_16', 'step_24']
    assert json.loads((c.folder/'predictions/step_24/evaluation.json').read_text())['exact_accuracy'] == rows(c)[-1]['exact_accuracy']
    only_last = config('last', 'learn.eval_after=100', 'learn.steps=10')
    go(only_last)
    assert [r['step'] for r in rows(only_last) if r['kind'] == 'eval'] == [10]
    prepare(c, overwrite=True)
    assert not (c.folder/'predictions').exists()


def test_resume_refuses_other_puzzles(config, data, tmp_path):
    from trm_nb.data.sudoku import write_generated
    c = config('kept', 'learn.steps=4')
    go(c)
    write_generated(tmp_path/'other', size=4, train=64, test=24, seed=9)
    for path in (tmp_path/'other', f'[{data},{tmp_path/"other"}]'):
        with pytest.raises(UserError, match='was trained on other puzzles'): prepare(config('kept', 'learn.steps=8', f'data.path={path}'), resume=True)
    shutil.copytree(data, tmp_path/'copy')
    go(config('kept', 'learn.steps=8', f'data.path={tmp_path/"copy"}'), resume=True)


def test_memory_of_an_evaluation(config, monkeypatch):
    def full(*a, **k): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr('trm_nb.run.evaluate', full)
    with pytest.raises(UserError, match=r'evaluate.batch_size=768: try evaluate.batch_size=384 or less'): go(config('big', 'learn.steps=2'))


@pytest.mark.parametrize('local, micro, says', [(16, 16, '=8 or less'), (12, 6, '=3 or less'), (15, 15, '=5 or less'), (16, 1, 'smaller model')])
def test_out_of_memory_halves(local, micro, says):
    fake = SimpleNamespace(slots=range(local), parts=[range(micro)], ranks=SimpleNamespace(device='cuda:0'))
    assert says in str(out_of_memory(fake))


def test_a_test_folder_of_its_own(config, data, tmp_path):
    from trm_nb.data.sudoku import write_generated
    write_generated(tmp_path/'exam', size=4, train=2, test=7, seed=5)
    c = config('exam', f'data.test_path={tmp_path/"exam"}', 'learn.steps=2')
    train_set, test_set = read_data(c)
    assert (train_set.path, test_set.path, len(test_set)) == (data, tmp_path/'exam', 7)
    go(c)
    assert rows(c)[-1]['puzzles'] == 7
    shutil.rmtree(tmp_path/'exam/test')
    with pytest.raises(UserError, match="exam has no split 'test'"): read_data(c)
    both = config('both', f'data.path=[{data},{tmp_path/"exam"}]')     # only one of them has a test split
    assert [len(d) for d in read_data(both)] == [66, 24]


def turned(i):
    """An ARC task: the answer is the question upside down."""
    grids = [np.random.default_rng([i, k]).integers(1, 10, (2, 3)).astype(np.uint8) for k in range(3)]
    return Task(f'task{i}', [(g, g[::-1]) for g in grids[:2]], [(grids[2], grids[2][::-1])])


@pytest.fixture(scope='module')
def versions(tmp_path_factory):
    """Two ARC folders, made on the fly: the second trains on the task that the first one tests."""
    base = tmp_path_factory.mktemp('arc')
    for name, trained, tested in (('one', (0, 1), (2,)), ('two', (2,), (4,)), ('three', (7,), (8,))):
        build_arc(base/name, dict(training=[turned(i) for i in trained], evaluation=[turned(i) for i in tested]), num_aug=2, on_the_fly=True)
    return base


@pytest.fixture
def arc_run(versions, tmp_path):
    def make(name, *pairs):
        return load_config('arc-agi-1', f'data.path=[{versions/"one"},{versions/"two"}]', f'runs={tmp_path}', f'name={name}', 'device=cpu', 'model.hidden_size=16', 'model.num_heads=2',
            'model.puzzle_emb_ndim=16', 'model.H_cycles=1', 'model.L_cycles=1', 'model.L_layers=1', 'model.halt_max_steps=1', 'model.forward_dtype=float32', 'learn.batch_size=8', 'learn.steps=4',
            'learn.eval_every=2', 'learn.warmup_steps=0', 'learn.puzzle_lr=0.5', 'evaluate.batch_size=8', 'evaluate.save_outputs=[answers,q_halt,logits]', 'evaluate.options.arc.pass_ks=[1,2]', *pairs)
    return make


def test_two_arc_folders(arc_run, versions, capsys):
    """Trained on both, tested on the second: in the run and later, its puzzles find their own rows."""
    c = arc_run('both', f'data.test_path={versions/"two"}', 'evaluate.options.arc.sum_evaluations=true')
    go(c)
    assert 'the answers of 0' not in capsys.readouterr().err
    table = weights(c.folder)['inner.puzzle_emb.weights']
    assert len(table) == 1 + 9 + 6 and (table[1:].abs().sum(1) > 0).sum() > 6
    assert {f'pass@{k}' for k in (1, 2)} <= set(rows(c)[-1])
    votes = [json.loads((c.folder/f'predictions/step_{n}/votes.json').read_text())[0]['votes'] for n in (2, 4)]
    assert votes == [3, 6], 'the evaluator is kept: votes add up over the run, as asked for'
    then, last = read_predictions(c.folder), str(c.folder/'checkpoints'/'last')
    assert sorted(then['puzzle_identifiers']) == [13, 14, 15], "one's nine, then two's first task, then the tested one"
    eval_command(last, data=str(versions/'two'), batch_size=8, device='cpu', save_predictions=c.folder/'again', save_outputs='q_halt,logits', option=['arc.pass_ks=[1]'])
    said = capsys.readouterr().out
    assert 'pass@1' in said and 'pass@2' not in said
    again = read_predictions(c.folder/'again')
    for k in ('q_halt', 'logits', 'puzzle_identifiers'): assert again[k] == pytest.approx(then[k], abs=1e-5), k
    assert set(json.loads((c.folder/'again/submission.json').read_text())) == {'task4'}
    with pytest.raises(UserError, match='it has no rows for these puzzles'): eval_command(str(c.folder), data=str(versions/'three'), device='cpu')
    file = Path(last)/'metadata.json'
    forgotten = json.loads(file.read_text())
    del forgotten['data']['places']
    file.write_text(json.dumps(forgotten))
    eval_command(last, data=str(versions/'two'), batch_size=8, device='cpu', save_predictions=c.folder/'wrong', save_outputs='logits')
    assert abs(read_predictions(c.folder/'wrong')['logits'] - then['logits']).max() > 1e-3, 'with the wrong rows the answers are others'


def test_training_on_both_versions_warns(arc_run, versions, capsys):
    c = arc_run('mixed', 'learn.steps=1', 'evaluate.save_outputs=[]')
    go(c)
    said = capsys.readouterr().err
    assert 'the answers of 1 tested tasks are in the training folders (task2); train on one version only' in said
    assert json.loads((c.folder/'checkpoints/last/metadata.json').read_text())['data']['leakage']['tasks'] == 1
    assert rows(c)[-1]['puzzles'] == 6


def test_arc_folders_without_rows(arc_run, versions):
    with pytest.raises(UserError, match='it has no rows for these puzzles'): read_data(arc_run('x', f'data.test_path={versions/"three"}'))
    _, test_set = read_data(arc_run('x', f'data.test_path={versions/"three"}', 'model.puzzle_emb_ndim=0', 'model.puzzle_emb_len=1'))
    assert len(test_set) == 1
