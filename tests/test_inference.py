"""Early exit against a plain run, slot by slot; what the solver makes of it; the benchmark scripts at toy size."""
import json, subprocess, sys
import numpy as np
import pytest
import torch
from fake_model import KnownAnswers
from trm_nb.data.basics import UserError
from trm_nb.data.device import multiplies_bfloat16, pick_dtype
from trm_nb.data.format import PUZZLES
from trm_nb.explore import solver as solver_module
from trm_nb.explore.solver import Solver
from trm_nb.models.act import PuzzleShape, ponder
from trm_nb.models import halting
from trm_nb.models.halting import Slots, accelerated, ponder_until, solve_until
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model

SOLUTION = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
HALT_AT = [.5, 2.5, 1.5, 9, 3.5, .5, 2.5]                        # stops at 1, 3, 2, never, 4, 1, 3


def puzzles(n): return np.stack([np.where(np.arange(16) <= i, 1, SOLUTION) for i in range(n)])


def known(solved_at, halt_at=HALT_AT, steps=4):
    n = len(solved_at)
    return KnownAnswers(puzzles(n), np.tile(SOLUTION, (n, 1)), solved_at, halt_at[:n], 6, steps)


@pytest.fixture(scope='module')
def act():
    "Random weights that halt at all kinds of steps."
    act = build_model(dict(name='trm', hidden_size=32, num_heads=2, H_cycles=1, L_cycles=2, puzzle_emb_ndim=8, puzzle_emb_len=1, halt_max_steps=6), PuzzleShape(6, 16, 3), seed=1).eval()
    torch.nn.init.normal_(act.inner.q_head.weight, std=.3, generator=torch.Generator().manual_seed(6))
    act.inner.q_head.bias.data.fill_(-1)
    torch.nn.init.normal_(act.inner.puzzle_emb.weights, generator=torch.Generator().manual_seed(7))
    return act


@pytest.fixture(scope='module')
def batch():
    g = torch.Generator().manual_seed(0)
    return dict(inputs=torch.randint(1, 6, (23, 16), generator=g), puzzle_identifiers=torch.randint(0, 3, (23,), generator=g).int())


@pytest.fixture(scope='module')
def plain(act, batch):
    "Tokens (n, steps, L), q_halt (n, steps), and the step at which each puzzle halts, of a run without early exit."
    outs = [out for _, out in ponder(act, batch)]
    tokens, q = torch.stack([o.logits.argmax(-1) for o in outs], 1), torch.stack([o.q_halt for o in outs], 1)
    first = torch.where((q > 0).any(1), (q > 0).int().argmax(1) + 1, 6)
    assert len(first.unique()) > 3
    return tokens, q, first


# slots

@pytest.mark.parametrize('width', [1, 4, 23, 100])
def test_equals_a_plain_run_halted_at_the_same_step(act, batch, plain, width):
    tokens, q, first = plain
    found = solve_until(act, batch['inputs'], batch['puzzle_identifiers'], width)
    assert (found.steps == first).all()
    assert (found.tokens == tokens[torch.arange(23), first - 1]).all()
    taken = torch.arange(6) < first[:, None]
    assert found.q_halt[taken].tolist() == pytest.approx(q[taken].tolist(), abs=1e-5) and found.q_halt[~taken].isnan().all()
    assert (found.halts == (taken & (q > 0))).all()


def test_without_early_exit_all_take_all_steps(act, batch, plain):
    tokens, q, _ = plain
    found = solve_until(act, batch['inputs'], batch['puzzle_identifiers'], 5, early_exit=False)
    assert (found.tokens == tokens[:, -1]).all() and (found.steps == 6).all() and (found.halts == (q > 0)).all()
    assert (solve_until(act, batch['inputs'], batch['puzzle_identifiers'], 5, steps=3, early_exit=False).tokens == tokens[:, 2]).all()


def test_refill_in_order_and_shrink_at_the_end():
    seats = []
    found = solve_until(known([1] * 7), torch.as_tensor(puzzles(7)), torch.zeros(7, dtype=torch.int32), 3, watch=lambda s, left: seats.append((s.owner.tolist(), left)))
    assert found.steps.tolist() == [1, 3, 2, 4, 4, 1, 3] and found.halts.any(1).tolist() == [True, True, True, False, True, True, True]
    assert seats == [([0, 1, 2], 7), ([3, 1, 2], 6), ([3, 1, 4], 5), ([3, 5, 4], 4), ([3, 6, 4], 3), ([6, 4], 2), ([6], 1)]


def test_what_it_saves():
    model = known([1] * 7)
    solve_until(model, torch.as_tensor(puzzles(7)), torch.zeros(7, dtype=torch.int32), 7)
    assert model.calls == 4
    assert solve_until(model, torch.zeros(0, 16, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)).tokens.shape == (0, 16) and model.calls == 4


def test_few_shapes_elsewhere_than_on_a_cpu():
    assert [Slots.fit(n, torch.device('cuda')) for n in (1, 2, 3, 33, 64)] == [1, 2, 4, 64, 64] and Slots.fit(33, torch.device('cpu')) == 33


def test_powers_of_two_give_the_same(act, batch, plain, monkeypatch):
    "As on a GPU: some slots stay that nobody sits in."
    monkeypatch.setattr(Slots, 'fit', staticmethod(lambda n, device: 1 << (n - 1).bit_length()))
    found = solve_until(act, batch['inputs'], batch['puzzle_identifiers'], 7)
    assert (found.steps == plain[2]).all() and (found.tokens == plain[0][torch.arange(23), plain[2] - 1]).all()
    for step, out in ponder_until(act, batch):
        at = plain[2].clamp(max=step) - 1
        assert (out.logits.argmax(-1) == plain[0][torch.arange(23), at]).all()
        assert out.q_halt.tolist() == pytest.approx(plain[1][torch.arange(23), at].tolist(), abs=1e-5)
    assert step == 6 and out.latents['z_H'].shape == (23, 17, 32)


def test_acceleration_ends_with_its_block(act):
    recur = act.inner.recur
    with accelerated(act, compile=True) as how:
        assert how in ('compiled', 'fused') and (how == 'fused' or act.inner.recur != recur)
        with accelerated(act, compile=True) as again: assert again == 'plain'           # somebody has accelerated it already
    assert act.inner.recur == recur and not [m for m in act.inner.modules() if 'forward' in vars(m)]
    with pytest.raises(KeyError), accelerated(act, compile=True): raise KeyError
    assert act.inner.recur == recur


def test_weights_are_cast_once_and_come_back(act, batch):
    act.settings.forward_dtype, own = 'bfloat16', {n: (p, p.data_ptr()) for n, p in act.named_parameters()}
    try:
        plain = solve_until(act, batch['inputs'], batch['puzzle_identifiers'])
        with torch.inference_mode(), accelerated(act):
            assert act.inner.lm_head.weight.dtype == torch.bfloat16
            fast = solve_until(act, batch['inputs'], batch['puzzle_identifiers'])
            with accelerated(act) as inside: assert inside == 'plain'                      # a second user finds it done
            assert act.inner.lm_head.weight.dtype == torch.bfloat16
    finally: act.settings.forward_dtype = 'auto'
    assert (fast.tokens == plain.tokens).all() and (fast.steps == plain.steps).all() and (fast.confidence == plain.confidence).all()
    assert all(p.dtype == torch.float32 and p.data_ptr() == own[n][1] and p is own[n][0] for n, p in act.named_parameters())


@pytest.mark.slow
def test_compiled_once_for_all_sizes(act, batch, plain):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with accelerated(act, compile=True): found = solve_until(act, batch['inputs'], batch['puzzle_identifiers'], 9)
    assert (found.steps == plain[2]).all()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


def test_small_batches_that_come_often_are_recorded(act, monkeypatch):
    made, calls = [], []
    class Recorded:
        def __init__(self, function, device, pool): made.append(pool); self.function = function
        def __call__(self, z, x): calls.append((len(x), torch.is_grad_enabled(), torch.is_inference_mode_enabled())); return self.function(z, x)
    monkeypatch.setattr(halting, 'Replay', Recorded)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: 'pool')
    monkeypatch.setattr(halting, 'RECORDED', 4 * act.inner.positions)
    run, inner = halting.replayed(act.inner), act.inner
    def step(n, watch=None): return run(inner.start(n), torch.ones(n, inner.positions, 32), watch)
    with torch.inference_mode():
        for n in (4, 2, 4): out = step(n)
        assert (out['z_H'] == inner.recur(inner.start(4), torch.ones(4, inner.positions, 32))['z_H']).all()
        assert calls == [(4, False, False), (2, False, False), (4, False, False)] and made == ['pool', 'pool']
        seen = []
        step(5)                                                                             # large
        step(4, lambda u, z: seen.append(u))                                                # watched
        with inner.at_depth((1, 1)): step(4)                                                # of another depth
        assert len(calls) == 3 and seen == inner.schedule()
    step(4)['z_H'].sum().backward()                                                         # with a gradient
    assert len(calls) == 3


# the solver

@pytest.fixture
def solver(): return Solver(known([1, 3, 4]), PUZZLES['sudoku-4x4'])


def test_rules_decide_who_thinks_on(solver):
    grids = list(puzzles(3) - 1)
    assert [(a.steps, a.valid) for a in solver.solve_many(grids, early_exit=True, progress=False)] == [(1, True), (3, True), (2, False)]
    answers = solver.solve_many(grids, progress=False)
    assert [(a.steps, a.valid, a.halted_at) for a in answers] == [(1, True, 1), (3, True, 3), (4, True, 2)]
    assert [len(a.q_halt) for a in answers] == [1, 3, 4] and not np.isnan(np.concatenate([a.q_halt for a in answers])).any()
    assert [solver.solve(g).steps for g in grids] == [1, 3, 4] and solver.solve(grids[0], steps=3).steps == 3 and solver.solve(grids[0], early_exit=False).steps == 4


def test_any_iterable_in_its_order(solver):
    grids = list(puzzles(3) - 1) * 50
    once = solver.solve_many(grids, progress=False)
    for form in (iter(grids), (g for g in grids), np.stack(grids)): assert [a.text for a in solver.solve_many(form, batch_size=2, progress=False)] == [a.text for a in once]
    assert [a.inputs.tolist() for a in once] == [(g + 1).tolist() for g in grids]
    assert solver.solve_many(iter([]), progress=False) == [] and solver.solve_many((), progress=False) == []


def test_mixed_kinds_and_mistakes_are_named(solver):
    with pytest.raises(UserError, match=r'puzzle 2: a sudoku-4x4 puzzle has 16 cells, not 81 \(this model answers sudoku-4x4 puzzles, all of one kind\)'): solver.solve_many(['.' * 16, '.' * 81], progress=False)
    with pytest.raises(UserError, match="puzzle 1: cell 2"): solver.solve_many(['.x' + '.' * 14], progress=False)
    with pytest.raises(UserError, match='list of puzzles'): solver.solve_many('.' * 16)


def test_progress_counts_every_puzzle_once(solver, monkeypatch):
    seen = []
    class Bar(solver_module.tqdm):
        def update(self, n=1):
            seen.append(n)
            return super().update(n)
    monkeypatch.setattr(solver_module, 'tqdm', Bar)
    solver.solve_many(list(puzzles(3) - 1) * 60, batch_size=1, progress=True)
    assert sum(seen) == 180 and min(seen) >= 0 and len(seen) > 10


def test_dtype(tmp_path):
    wide = build_model(dict(name='trm', hidden_size=256, num_heads=2, H_cycles=1, L_cycles=1, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=2), PuzzleShape(6, 16), seed=1)
    folder, cpu = save_pretrained(wide, tmp_path/'m', puzzle='sudoku-4x4'), torch.device('cpu')
    kind = lambda **settings: Solver.from_pretrained(folder, device='cpu', **settings).act.inner.dtype
    assert kind() == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)
    assert kind(dtype='float32') == torch.float32 and kind(dtype='bfloat16') == torch.bfloat16
    assert pick_dtype('auto', cpu, 64) == 'float32' and pick_dtype('auto', torch.device('cuda'), 512) == 'auto'
    with pytest.raises(UserError, match="dtype 'half' is none of auto, float32, bfloat16"): kind(dtype='half')
    answer = Solver.from_pretrained(folder, device='cpu', dtype='bfloat16').solve('.' * 16, early_exit=False)
    assert answer.q_halt.dtype == np.float32 and answer.steps == 2


# the scripts

def script(root, name, *args, out=None):
    "Run a benchmark; its tables."
    done = subprocess.run([sys.executable, str(root/'experiments'/'benchmarks'/name), *args, '--device', 'cpu', '--json', str(out)], capture_output=True, text=True, cwd=root, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found['machine']['torch'] == torch.__version__ and '| ' in done.stdout and done.stdout.startswith('# ')
    return found


@pytest.mark.slow
def test_train_step_script(root, tmp_path):
    rows, = script(root, 'train_step.py', '--preset', 'demo', '--batch', '2,4', '--steps', '2', '--warmup', '1', 'model.H_cycles=1', out=tmp_path/'a.json')['tables'].values()
    assert [r['batch'] for r in rows] == [2, 4] and all(r['ms'] > 0 and 0 < r['share'] < 2 for r in rows)
    assert rows[1]['tflop'] == pytest.approx(2 * rows[0]['tflop'])


@pytest.mark.slow
def test_profile_script(root, tmp_path):
    parts, kernels = script(root, 'profile_step.py', '--preset', 'demo', '--batch', '2', '--steps', '1', '--warmup', '1', out=tmp_path/'a.json')['tables'].values()
    names = {r['part'] for r in parts}
    assert {'SwiGLU', 'SwiGLU backward', 'mixing (SwiGLU over positions)', 'optimiser', 'EMA', 'loader', 'refill'} <= names
    assert sum(r['share'] for r in parts) == pytest.approx(1) and len(kernels) == 25


@pytest.mark.slow
def test_inference_script(root, tmp_path):
    tables = list(script(root, 'inference.py', '--preset', 'demo', '--puzzles', '6', '--batch', '1,4', '--repeats', '1', out=tmp_path/'a.json')['tables'].values())
    assert {r['batch'] for r in tables[0]} == {1, 4} and {r['steps'] for r in tables[1]} == {'all', 'halting', 'solver'}


@pytest.mark.slow
def test_loader_script(root, tmp_path):
    rows, = script(root, 'loader.py', '--kind', 'sudoku-4x4,maze-10x10', '--batch', '8', '--batches', '3', out=tmp_path/'a.json')['tables'].values()
    assert {r['puzzle'] for r in rows} == {'sudoku-4x4', 'maze-10x10'} and all(r['batches/s'] > 0 for r in rows)


@pytest.mark.parametrize('name', ['train_step.py', 'profile_step.py', 'inference.py', 'loader.py'])
@pytest.mark.slow
def test_help_has_examples(root, name):
    done = subprocess.run([sys.executable, str(root/'experiments'/'benchmarks'/name), '--help'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and 'examples:' in done.stdout and f'experiments/benchmarks/{name}' in done.stdout


def test_trace_of_a_gpu_is_read(root, act):
    "Kernels are given to the part that started them, backward ones by the sequence number of their forward operation."
    sys.path.insert(0, str(root/'experiments'/'benchmarks'))
    import profile_step as p
    event = lambda cat, name, ts, dur, tid=1, **args: dict(ph='X', cat=cat, name=name, ts=ts, dur=dur, tid=tid, args=args)
    events = [event('user_annotation', 'part: SwiGLU', 0, 10), event('cpu_op', 'aten::mm', 1, 5, **{'Sequence number': 7, 'Input Dims': [[2, 32], [32, 64]]}),
              event('cuda_runtime', 'cudaLaunchKernel', 2, 1, correlation=100), event('kernel', 'gemm', 50, 30, tid=7, correlation=100),
              event('cpu_op', 'autograd::engine::evaluate_function: MmBackward0', 20, 10, tid=2, **{'Sequence number': 7}), event('cpu_op', 'aten::mm', 21, 5, tid=2),
              event('cuda_driver', 'cuLaunchKernel', 22, 1, tid=2, correlation=101), event('kernel', 'gemm', 90, 60, tid=7, correlation=101),
              event('gpu_memset', 'Memset', 200, 10, tid=7, correlation=999)]
    work = p.attribute(events, act, cuda=True)
    assert [w[:3] + w[4:] for w in work] == [('SwiGLU', '', 'gemm', 30), ('SwiGLU', 'backward', 'gemm', 60), ('copies and casts', '', 'Memset', 10)]
    parts, kernels = p.tables(work, steps=2, top=5)
    assert parts[0] == dict(part='SwiGLU backward', ms=.03, share=.6, calls=.5) and kernels[0]['part'] == 'SwiGLU backward' and kernels[1]['product'] == 'aten::mm [2, 32] x [32, 64]'
