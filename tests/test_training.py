"""Training as it is really run: under torchrun, killed, resumed, on one rank and on two."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from trm_nb.config import load_config
from trm_nb.data.basics import UserError
from trm_nb.data.format import PuzzleDataset
from trm_nb.learn.checkpoint import load_train_state, save_checkpoint, saved_steps
from trm_nb.learn.launch import torchrun_command
from trm_nb.run import Cluster, compose, launch_command, outcome, prepare, train, work

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
    one, two, parts = config('one', *CALM), config('two', *CALM), config('parts', 'learn.micro_batch=4', *CALM)
    assert train(one) == train(two, Cluster(nproc=2)) == train(parts) == 'done'
    same(rows(one), rows(two), 2e-6)
    same(rows(one), rows(parts), 2e-6)


def start(config, step):
    """Start a run, and return when `step` is logged."""
    prepare(config)
    run = subprocess.Popen(launch_command(config.folder), start_new_session=True)
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


def rows_so_far(config):
    lines = [l for l in (config.folder/'metrics.jsonl').read_text().splitlines(keepends=True) if l.endswith('\n')]
    return json.loads(lines[-1])['step'] if lines else 0


@pytest.mark.parametrize('after', [1, 2])
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


def test_ctrl_c_saves_and_leaves(config):
    c = config('stopped', 'learn.steps=100000', 'learn.eval_every=50000')
    run = start(c, 8)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(30) is not None
    assert outcome(c.folder)['status'] == 'stopped'
    step, = saved_steps(c.folder/'checkpoints')
    assert step >= 8 and load_train_state(c.folder/'checkpoints'/'last')['step'] == step


def test_resume_refuses_other_settings(config):
    c = config('kept', 'learn.steps=4')
    train(c)
    before = {p: p.stat().st_mtime_ns for p in c.folder.rglob('*')}
    for pairs, flags in (('learn.lr=5',), dict(resume=True)), ((), {}), (('name=fresh',), dict(resume=True)):
        with pytest.raises(UserError): train(config('kept', 'learn.steps=4', *pairs), **flags)
    assert {p: p.stat().st_mtime_ns for p in c.folder.rglob('*')} == before
    assert train(config('kept', 'learn.steps=8'), resume=True) == 'done'


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
