"""Solving, tracing and drawing by a model whose answers are known, and by a real one with random weights."""
from dataclasses import replace
import json
import sys
import numpy as np
import pytest
import torch
import typer
from fake_model import KnownAnswers
from trm_nb.data.basics import MissingExtra, UserError
from trm_nb.data.format import PUZZLES, Puzzle
from trm_nb.evaluate.figures import COLOURS, Picture
from trm_nb.explore import analyse, movie, probe
from trm_nb.explore.plots import draw_accuracy
from trm_nb.explore.draw import LOOKS, Look, draw_curves, draw_film, draw_grid, draw_halting, grid_text, look_of, marks
from trm_nb.explore import record as recording_module
from trm_nb.explore.solver import Solver, several, solve_command
from trm_nb.explore.trace import AXES, Trace
from trm_nb.explore.record import one_batch
from trm_nb.models.act import PuzzleShape, ponder
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import MODELS, build_model

SOLUTION = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
TEXT = '1234341221434321'


def puzzles(n): return np.stack([np.where(np.arange(16) <= i, 1, SOLUTION) for i in range(n)])


@pytest.fixture
def solver():
    """Three puzzles: solved at 1 and stopping at 1; solved at 3, stopping at 3; solved at 4, stopping (too soon) at 2."""
    return Solver(KnownAnswers(puzzles(3), np.tile(SOLUTION, (3, 1)), [1, 3, 4], [.5, 2.5, 1.5], 6), PUZZLES['sudoku-4x4'])


@pytest.fixture
def real():
    act = build_model(dict(name='trm', hidden_size=32, num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=4), PuzzleShape(6, 16), seed=1)
    torch.nn.init.normal_(act.inner.q_head.weight, std=.3)
    return Solver(act, PUZZLES['sudoku-4x4'])


def test_answer_by_value(solver):
    a = solver.solve(puzzles(3)[1] - 1, early_exit=False)
    assert a.text.replace('\n', '') == TEXT and a.grid.tolist()[0] == [1, 2, 3, 4]
    assert a.q_halt == pytest.approx([-1.5, -.5, .5, 1.5]) and a.halted_at == 3 and a.steps == 4
    assert a.valid and a.conflicts == 0
    p = np.exp(8) / (np.exp(8) + 5)
    assert a.confidence == pytest.approx(p)


def test_a_verdict_counts(solver):
    answer = solver.solve(puzzles(3)[0] - 1)
    said = {n: replace(answer, conflicts=n).verdict.partition(' ·')[0] for n in (None, 0, 1, 2)}
    assert said == {None: 'rules not known', 0: 'valid', 1: 'NOT valid: 1 rule or given broken', 2: 'NOT valid: 2 rules or givens broken'}


def test_text_lists_and_arrays_are_one_puzzle(solver):
    for form in ('..34341221434321', '00343412\n21434321', [[0, 0, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]], np.array([0, 0, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])):
        assert (solver.solve(form).tokens == SOLUTION).all()


def test_steps_and_early_exit(solver):
    grids = list(puzzles(3) - 1)
    assert [a.valid for a in solver.solve_many(grids, steps=2, progress=False)] == [True, False, False]
    early = solver.solve_many(grids, early_exit=True, progress=False)
    assert [a.steps for a in early] == [1, 3, 2] and [a.halted_at for a in early] == [1, 3, 2]
    assert [a.valid for a in early] == [True, True, False]         # the third stops before it is solved, and its answer says so
    assert [len(a.q_halt) for a in early] == [1, 3, 2]
    solver.act.calls = 0
    solver.solve(grids[0])
    assert solver.act.calls == 1                                   # really stopped
    assert solver.solve(grids[0], steps=7).steps == 7


def test_many_equal_one(real):
    grids = list(puzzles(5) - 1)
    many = real.solve_many(grids, batch_size=2, progress=False)
    assert [a.text for a in many] == [real.solve(g).text for g in grids]
    assert real.solve_many([], progress=False) == []


def test_trace_equals_solve(real):
    for grid in puzzles(4) - 1:
        answer, trace = real.solve(grid, early_exit=False), real.trace(grid, SOLUTION - 1)
        assert (trace.answers[-1] == answer.tokens).all() and trace.q_halt == pytest.approx(answer.q_halt, abs=1e-6)
        assert trace.confidence[-1] == pytest.approx(answer.confidence, abs=1e-6) and trace.halted_at == answer.halted_at
        again = real.answer_of(trace)
        assert (again.text, again.valid, again.halted_at) == (answer.text, answer.valid, answer.halted_at)
        for steps in (1, 3): assert (real.solve(grid, steps=steps).tokens == trace.answers[steps - 1]).all()


def test_trace_by_value(solver):
    trace = solver.trace(puzzles(3)[1] - 1, TEXT)
    assert trace.correct.tolist() == [False, False, True, True] and trace.halted_at == 3
    assert trace.wrong.sum(1).tolist() == [2, 2, 0, 0] and trace.changed.sum(1).tolist() == [0, 0, 2, 0]
    p = np.array([np.exp(8)] + [1] * 5) / (np.exp(8) + 5)
    assert trace.entropy == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-4)
    assert trace.latents == ('z_H',)
    size = lambda step: np.sqrt((step ** 2 + (puzzles(3)[1] ** 2).sum()) / 17)
    assert trace.latent_change[1:, 0] == pytest.approx([np.sqrt(1 / 17) / size(s) for s in (2, 3, 4)], rel=1e-5)
    assert solver.trace(puzzles(3)[1] - 1).correct is None


def test_trace_survives_saving(real, tmp_path):
    trace = real.trace(puzzles(2)[1] - 1, TEXT, probabilities=[1, 4])
    trace.save(tmp_path/'a.npz')
    again = Trace.load(tmp_path/'a.npz')
    assert again.probabilities_at.tolist() == [*range(6), *range(18, 24)] and again.probabilities.shape == (12, 16, 6)
    missing = {'rating', 'states', 'mixing'}
    for name in AXES:
        assert (getattr(trace, name) is None) == (getattr(again, name) is None) == (name in missing)
        if name not in missing: np.testing.assert_array_equal(getattr(again, name), getattr(trace, name)), getattr(again, name).ndim == len(AXES[name])
    assert (again.look, again.latents) == (trace.look, trace.latents)
    for text in ('', 'nonsense'):
        (tmp_path/'b.npz').write_text(text)
        with pytest.raises(UserError, match='is not a trace'): Trace.load(tmp_path/'b.npz')


def test_html_needs_nothing_else(real, tmp_path):
    page = real.trace(puzzles(2)[1] - 1).to_html(tmp_path/'a.html', title='<x> & y').read_text()
    assert page.count('src="data:image/png;base64,') == page.count('<img') == 2
    assert '://' not in page and '<script' not in page and '<title>&lt;x&gt; &amp; y' in page


@pytest.mark.parametrize('puzzle, says', [('123', '16 cells, not 3'), (TEXT[:-1] + 'x', "cell 16 .* is 'x'"), ([[5] * 4] * 4, 'cell 1 .* is 5'), ([[1, 2], [3]], 'different lengths')])
def test_bad_puzzles(solver, puzzle, says):
    with pytest.raises(UserError, match=says): solver.solve(puzzle)


def test_contradictory_givens_are_reported(real):
    assert real.solve('11' + '.' * 14).valid is False
    lights = Solver(KnownAnswers([[0, 1]], [[1, 1]], [1], [9], 2), Puzzle('lights', (1, 2), 2, symbols='.x'))
    answer = lights.solve('.x')
    assert answer.valid is None and answer.halted_at is None and 'rules not known' in repr(answer) and answer.text == 'xx'


# the command

@pytest.fixture
def checkpoint(real, tmp_path): return str(save_pretrained(real.act, tmp_path/'model', puzzle='sudoku-4x4'))


def test_from_pretrained_is_the_same_model(real, checkpoint):
    loaded = Solver.from_pretrained(checkpoint, device='cpu')
    assert loaded.solve(TEXT).q_halt == pytest.approx(real.solve(TEXT).q_halt)
    assert Solver.from_pretrained(checkpoint, device='cpu', halt_max_steps=9).solve(TEXT).steps == 9


def run(*args, **options):
    try: solve_command(*args, device='cpu', **options)
    except typer.Exit as e: return e.exit_code
    return 0


def test_command(checkpoint, tmp_path, capsys):
    code = run(checkpoint, '..34341221434321', as_json=True, trace=tmp_path/'t.html')
    out = json.loads(capsys.readouterr().out)
    assert code == (0 if out['valid'] else 1) and out['steps'] == 4 and len(out['q_halt']) == 4
    assert np.array(out['grid']).shape == (4, 4) and (tmp_path/'t.html').exists()
    (tmp_path/'p.txt').write_text('..34\n3412\n2143\n4321\n')
    assert run(checkpoint, str(tmp_path/'p.txt')) == code
    text = capsys.readouterr().out
    assert text.splitlines()[2] == '────┼────' and 'q_halt by step' in text
    with pytest.raises(UserError, match='16 cells'): run(checkpoint, '12')
    with pytest.raises(UserError, match='cannot write'): run(checkpoint, TEXT, trace=tmp_path/'p.txt'/'t.html')


# pictures, by what is in them

def test_marks_in_a_grid():
    ax = Picture(2, 2).subplots()
    given, before, answer = puzzles(4)[3], SOLUTION.copy(), SOLUTION.copy()
    answer[[0, 2]], before[[1, 2]] = 5, 2
    assert draw_grid(answer, LOOKS['sudoku-4x4'], given, before, SOLUTION, ax=ax) is ax
    given_text, right, wrong, corners, strikes = (len(c.get_paths()) for c in ax.collections[:5])
    assert (given_text, right, wrong, corners, strikes) == (12, 2, 2, 3, 2)
    background = np.asarray(ax.images[0].get_array())
    from matplotlib.colors import to_rgb
    assert background[0, 0] == pytest.approx(to_rgb(COLOURS['mistaken'])) and background[0, 1] == pytest.approx(to_rgb(COLOURS['changed']))
    assert background[3, 3] == pytest.approx(to_rgb(COLOURS['given'])) and background[0, 3] == pytest.approx([1, 1, 1])


def test_less_confidence_is_a_deeper_shade():
    ax = Picture(2, 2).subplots()
    draw_grid(SOLUTION, LOOKS['sudoku-4x4'], np.ones(16), confidence=np.linspace(1, .2, 16), ax=ax)
    shade = ax.images[0].get_array().sum(2).ravel()
    assert shade[0] == pytest.approx(3) and (np.diff(shade) < 0).all()


def test_film_captions():
    answers = np.stack([puzzles(2)[1], SOLUTION])
    film = draw_film(answers, LOOKS['sudoku-4x4'], puzzles(2)[1], SOLUTION, q_halt=[-1.25, 2])
    assert [t.get_text() for ax in film.axes for t in ax.texts] == ['q_halt −1.2 · 2 wrong', 'q_halt +2.0 · solved']
    assert [ax.get_title() for ax in draw_film(answers, LOOKS['sudoku-4x4'], steps=[2]).axes] == ['step 2']


@pytest.mark.parametrize('name', ['sudoku', 'sudoku-6x6', 'maze', 'arc'])
def test_every_look_draws(name):
    look = LOOKS[name]
    tokens = np.arange(np.prod(look.shape)) % len(look.symbols)
    film = draw_film([tokens, tokens[::-1]], look, tokens, tokens)
    assert film.png().startswith(b'\x89PNG') and len(film.png()) < 100_000


def test_pictures_are_shown_once():
    import matplotlib.pyplot as plt
    draw_grid(SOLUTION, LOOKS['sudoku-4x4']), draw_halting([1, 2]), draw_curves([])
    assert plt.get_fignums() == []


def test_text_and_unknown_looks():
    assert grid_text(puzzles(1)[0], LOOKS['sudoku-4x4']).splitlines()[0] == '. 2 │ 3 4'
    assert look_of(Puzzle('lights', (1, 2), 2, symbols='.x')) == Look((1, 2), '.x')
    with pytest.raises(UserError, match="did you mean 'sudoku'"): look_of('sudku')
    overwritten, kept = (marks(LOOKS['maze'], np.full(900, t), np.full(900, 1)) for t in (2, 1))
    assert overwritten.wrong.all() and not overwritten.given.any() and kept.given.all() and not kept.wrong.any()


# traces: what is recorded is what happens

@pytest.fixture
def latents():
    """Runs a model by hand: the latent written by each update, and the latents before the first."""
    def run(solver, tokens, steps=None):
        found, start = [], solver.act.inner.start(len(tokens))
        for _ in ponder(solver.act, one_batch(tokens, 'cpu'), steps, lambda u, z: found.append((u.latent, z[u.latent].detach()))): pass
        return found, {k: v.detach() for k, v in start.items()}
    return run


def small(name='trm', **settings):
    act = build_model(dict(name=name, hidden_size=32, num_heads=2, H_cycles=2, L_cycles=2, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=3) | settings, PuzzleShape(6, 16), seed=2)
    torch.nn.init.normal_(act.inner.q_head.weight, std=.3)
    return Solver(act, PUZZLES['sudoku-4x4'], name)


@pytest.mark.parametrize('name', sorted(MODELS))
def test_every_architecture_traces_as_it_solves(name):
    solver, grids = small(name), list(puzzles(5) - 1)
    trace, answers = solver.trace(grids, [TEXT] * 5, batch_size=2), solver.solve_many(grids, early_exit=False, progress=False)
    assert (trace.answers[:, -1] == [a.tokens for a in answers]).all()
    np.testing.assert_allclose(trace.q_halt, [a.q_halt for a in answers], atol=1e-5)
    assert trace.latents == tuple(solver.act.inner.latent_names) and trace.schedule == tuple(map(tuple, solver.act.inner.schedule()))
    answering = trace.of(trace.readout)
    assert (trace.inner_answers[:, answering[-1]] == trace.answers[:, -1]).all()


def test_bfloat16_traces_as_it_solves():
    solver, grids = small(forward_dtype='bfloat16'), list(puzzles(3) - 1)
    trace = solver.trace(grids, [TEXT] * 3, states=[1], mixing=[2])
    assert (trace.answers[:, -1] == [a.tokens for a in solver.solve_many(grids, early_exit=False, progress=False)]).all()
    assert np.isfinite(trace.path).all() and np.isfinite(trace.move).all()
    assert probe.influence(solver, grids[0], 1).text and probe.branches(solver, grids[0], runs=3).text and probe.landscape(solver, grids[0], size=2).text


def test_inner_numbers_by_hand(real, latents):
    tokens = puzzles(3)
    trace = real.trace(list(tokens - 1), [TEXT] * 3, states=True)
    found, before = latents(real, tokens)
    assert trace.updates == len(found) == 4 * 6
    moved = {}
    for i, (name, z) in enumerate(found):
        logits, q_halt, q_continue = (x.detach() for x in real.act.inner.heads(z))
        p = logits.softmax(-1)
        np.testing.assert_allclose(trace.inner_q_halt[:, i], q_halt, atol=1e-5), np.testing.assert_allclose(trace.inner_q_continue[:, i], q_continue, atol=1e-5)
        assert (trace.inner_answers[:, i] == p.argmax(-1).numpy()).all() and trace.latents[trace.index[i, 3]] == name
        np.testing.assert_allclose(trace.decode('inner_confidence')[:, i], p.amax(-1), atol=.5 / 255 + 1e-5)
        np.testing.assert_allclose(trace.decode('inner_entropy')[:, i], -(p * p.log2()).sum(-1), atol=.5 / 255 * np.log2(6) + 1e-5)
        np.testing.assert_allclose(trace.inner_loss[:, i], -p[:, range(16), SOLUTION].log().mean(1), rtol=1e-4)
        step = z - before[name]
        np.testing.assert_allclose(trace.decode('inner_change')[:, i], step[:, 1:].square().mean(-1).sqrt(), rtol=.04)
        np.testing.assert_allclose(trace.move[:, i], step.square().mean((1, 2)).sqrt(), rtol=1e-4)
        if name in moved: np.testing.assert_allclose(trace.turn[:, i], torch.cosine_similarity(step.flatten(1), moved[name].flatten(1)), atol=1e-4)
        else: assert np.isnan(trace.turn[:, i]).all()
        np.testing.assert_allclose(trace.path[:, i], trace.path_basis.project(z[:, 1:].mean(1)), atol=2e-3)
        np.testing.assert_allclose(trace.decode('cell_path')[:, i], trace.cell_basis.project(z[:, 1:]), atol=5e-3)
        np.testing.assert_allclose(trace.states[:, i].astype(np.float32), z[:, 1:], atol=2e-3)
        moved[name], before[name] = step, z
    cells = trace.states.reshape(-1, 32).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(cells.T, bias=True))[::-1]
    np.testing.assert_allclose(trace.cell_basis.explained, values[:3] / values.sum(), rtol=1e-3)


@pytest.mark.parametrize('name', ['trm', 'hrm'])
def test_probabilities_and_q_continue_are_those_of_an_untraced_solve(name, latents, monkeypatch):
    solver, tokens = small(name), puzzles(5)
    usual, trace = solver.trace(list(tokens - 1)), solver.trace(list(tokens - 1), [TEXT] * 5, probabilities=[1, 3], batch_size=2)
    assert usual.probabilities is None and usual.nbytes < trace.nbytes                                  # small by default
    steps = [out for _, out in ponder(solver.act, one_batch(tokens, 'cpu'))]
    np.testing.assert_allclose(trace.q_continue, torch.stack([o.q_continue for o in steps], 1), atol=1e-5)
    np.testing.assert_allclose(trace.inner_q_continue[:, trace.ends], trace.q_continue, atol=1e-6)
    assert (trace.q_continue != trace.q_halt).all()
    per, found = len(trace.schedule), latents(solver, tokens)[0]
    assert trace.probabilities_at.tolist() == [*range(per), *range(2 * per, 3 * per)]
    for k, u in enumerate(trace.probabilities_at):                                                      # read from whatever latent was updated
        np.testing.assert_allclose(trace.probabilities[:, k].astype(np.float32), solver.act.inner.heads(found[u][1])[0].detach().softmax(-1), atol=6e-4)
    end, answers = trace.probabilities[:, -1].astype(np.float32), solver.solve_many(list(tokens - 1), early_exit=False, progress=False)
    assert (end.argmax(-1) == [a.tokens for a in answers]).all()
    np.testing.assert_allclose(end.max(-1), [a.confidence for a in answers], atol=6e-4)
    monkeypatch.setattr(recording_module, 'HOLD', 0)
    streamed = solver.trace(list(tokens - 1), probabilities=[1, 3], batch_size=2, cells=False)
    np.testing.assert_allclose(streamed.probabilities.astype(np.float32), trace.probabilities.astype(np.float32), atol=1e-3)
    assert streamed.inner_answers is None and (streamed[3].probabilities == streamed.probabilities[3]).all()


def test_batches_streams_and_lent_components_agree(real, monkeypatch):
    grids = list(puzzles(7) - 1)
    whole, parts, one = real.trace(grids, batch_size=7), real.trace(grids, batch_size=3), real.trace(grids[2])
    monkeypatch.setattr(recording_module, 'HOLD', 0)
    streamed, lent = real.trace(grids, batch_size=3), real.trace(grids[2], like=whole)
    for other in (parts, streamed):
        assert (other.inner_answers == whole.inner_answers).all()
        np.testing.assert_allclose(other.path, whole.path, atol=1e-3)
        assert np.abs(other.cell_path.astype(int) - whole.cell_path).max() <= 8
    np.testing.assert_allclose(lent.path, whole.path[2], atol=1e-3)
    assert one.cell_basis.explained.sum() > lent.cell_basis.explained.sum() - 1e-6       # its own components hold more of one puzzle
    assert (one.inner_entropy == whole[2].inner_entropy).all()
    monkeypatch.setattr(recording_module, 'PILOTS', 2)
    assert real.trace(grids).path.shape == whole.path.shape and real.trace(grids, cells=False).cell_path is None


def test_nothing_large_is_held_when_streaming(real, monkeypatch):
    monkeypatch.setattr(recording_module, 'HOLD', 0)
    kept = []
    assemble = recording_module.Recorder.arrays
    monkeypatch.setattr(recording_module.Recorder, 'arrays', lambda self, *a: kept.append({k for d in self.done for k in d}) or assemble(self, *a))
    real.trace(list(puzzles(5) - 1), batch_size=2)
    assert kept and not any({'held', 'mean'} & k for k in kept)


def test_frames_and_cancelling(real):
    grid, seen = puzzles(2)[1] - 1, []
    frames = list(real.trace_steps(grid, TEXT))
    assert [f.trace().steps for f in frames] == [1, 2, 3, 4] and [f.done for f in frames] == [.25, .5, .75, 1]
    last, whole = frames[-1].trace(), real.trace(grid, TEXT)
    assert (last.cell_path == whole.cell_path).all() and not last.many
    stopped = real.trace(grid, on_frame=lambda f: seen.append(f.step) or f.step < 2)
    assert stopped.steps == 2 and seen == [1, 2] and (stopped.answers == whole.answers[:2]).all()
    steps = real.trace_steps(grid, mixing=True)
    next(steps), steps.close()
    assert not any(m._forward_pre_hooks for m in real.act.modules())                     # left early, nothing stays behind


def test_the_first_frame_comes_before_the_rest_is_computed(monkeypatch):
    """Of a 9x9 puzzle: after as many updates as one ACT step has, with the answer that solving one step gives."""
    act = build_model(dict(name='trm', hidden_size=16, num_heads=2, H_cycles=2, L_cycles=2, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1), PuzzleShape(11, 81), seed=1)
    solver, done, update = Solver(act, PUZZLES['sudoku']), [], act.inner.update
    monkeypatch.setattr(act.inner, 'update', lambda *a: done.append(0) or update(*a), raising=False)
    frames, per = solver.trace_steps('.' * 80 + '7', '1' * 81), len(act.inner.schedule())
    first = next(frames)
    early = first.trace()
    assert (len(done), first.step, first.steps, first.done) == (per, 1, 16, 1 / 16)
    assert early.steps == 1 and early.inner_answers.shape == (per, 81) and early.path.shape == (per, 3)
    whole = list(frames)[-1].trace()
    assert len(done) == 16 * per and whole.steps == 16 and (whole.answers[:1] == early.answers).all() and (whole.inner_answers[:per] == early.inner_answers).all()
    assert (solver.solve('.' * 80 + '7', steps=1).tokens == early.answers[0]).all()


def test_who_reads_whom(real):
    trace = real.trace(puzzles(2)[1] - 1, mixing=[2], states=True)
    assert trace.mixing.shape == (6 * 2, 2, 16, 16) and trace.mixing_at[:, 0].tolist() == [u for u in range(6, 12) for _ in range(2)]
    z = real.act.inner.start(1)
    x = real.act.inner.embed(torch.as_tensor(puzzles(2)[1][None]), torch.zeros(1, 0))
    for u in real.act.inner.schedule(): z = z | {u.latent: real.act.inner.update(z, x, u)}
    block = real.act.inner.L_level.layers[0]
    seen = []
    hook = block.self_attn.register_forward_pre_hook(lambda m, a: seen.append(a))
    real.act.inner.update(z, x, real.act.inner.schedule()[0]), hook.remove()
    weights = recording_module.attention_weights(block.self_attn, *seen[0])
    assert weights.sum(-1).detach().numpy() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(trace.mixing[0].astype(np.float32), weights[0, :, 1:, 1:].detach(), atol=1e-3)


@pytest.mark.parametrize('given, many', [(TEXT, False), ([TEXT], True), ([[0] * 4] * 4, False), ([[[0] * 4] * 4], True), (list(TEXT), False), (['1234'] * 4, False), (np.zeros((3, 4, 4)), True), (np.zeros((4, 4)), False), (np.zeros((3, 16)), True), (np.zeros(16), False), ([[0] * 16] * 2, True)])
def test_one_or_several(given, many): assert several(given, PUZZLES['sudoku-4x4']) == many


@pytest.mark.slow
def test_size_of_a_trace():
    """336 updates of a 9x9 puzzle take 0.33 MB, 1,000 of them less than 1 GB (the width of the model matters to the components only)."""
    act = build_model(dict(name='trm', mlp_t=True, hidden_size=16, num_heads=2, L_layers=1, puzzle_emb_ndim=0), PuzzleShape(11, 81))
    trace = Solver(act, PUZZLES['sudoku']).trace('.' * 81, '1' * 81)
    assert trace.updates == 336 and trace.nbytes < 330_000 and 1000 * trace.nbytes < 1e9
    assert trace.drop('cell_path', 'inner_answers', 'inner_confidence', 'inner_entropy', 'inner_change').nbytes < 30_000


@pytest.mark.slow
def test_many_puzzles_in_little_memory(monkeypatch, tmp_path):
    """250 puzzles, streamed: less than a quarter of 1 GB, also while they are recorded."""
    import resource
    monkeypatch.setattr(recording_module, 'HOLD', 0)
    act = build_model(dict(name='trm', hidden_size=16, num_heads=2, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1), PuzzleShape(11, 81))
    solver, grids = Solver(act, PUZZLES['sudoku']), np.random.default_rng(0).integers(0, 10, (250, 81))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace = solver.trace(grids, batch_size=25)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert len(trace) == 250 and trace.updates == 336 and 4 * trace.nbytes < 1e9 and grown < 5e8
    trace.save(tmp_path/'many.npz')
    assert 4 * (tmp_path/'many.npz').stat().st_size < 1e9


# analyses: numbers against the same number computed another way

@pytest.fixture(scope='module')
def model(): return small(L_layers=2, halt_max_steps=4)


@pytest.fixture(scope='module')
def many(model): return model.trace(list(puzzles(6) - 1), [TEXT] * 6)


def by_hand(solver, tokens, steps=None): return [(out.logits.argmax(-1).numpy(), {k: v.numpy() for k, v in out.latents.items()}, out.q_halt.numpy()) for _, out in ponder(solver.act, one_batch(tokens, 'cpu'), steps)]


def test_film(model, many, latents):
    found, _ = latents(model, puzzles(6))
    decoded = [(n, model.act.inner.heads(z)[0].argmax(-1).detach().numpy()) for n, z in found]
    flips, last = [], {}
    for name, a in decoded:
        flips.append((a != last[name]).sum() / 6 if name in last else 0)
        last[name] = a
    numbers = analyse.film(many).numbers
    assert numbers.flips.tolist() == pytest.approx(flips)
    assert numbers.agree.tolist() == pytest.approx([(a == decoded[-1][1]).mean() for _, a in decoded])
    assert numbers.wrong.tolist() == pytest.approx([(a != SOLUTION).sum() / 6 for _, a in decoded])


def test_aha(solver):
    """Known answers: solved at 1, 3 and 4 of four steps."""
    found = analyse.aha(solver.trace(list(puzzles(3) - 1), [TEXT] * 3))
    assert found.numbers.stable.tolist() == [1, 0, 1, 1] and found.numbers.right.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert found.numbers.wrong.tolist() == pytest.approx([5 / 3, 5 / 3, 1, 0]) and '3 of 3 right for good' in found.text
    right, wrong = (-np.log(np.exp(a) / (np.exp(8) + 5)) for a in (8, 0))
    assert found.numbers.loss[0] == pytest.approx(np.mean([right, right + 2 / 16 * (wrong - right), right + 3 / 16 * (wrong - right)]), rel=1e-4)


def test_orbit_and_settle(model, many):
    steps = by_hand(model, puzzles(6))
    way = np.stack([many.path_basis.project(z['z_H'][:, 1:].mean(1)) for _, z, _ in steps], 1)
    numbers = analyse.orbit(many).numbers.query("latent == 'z_H'")
    assert numbers.length.tolist() == pytest.approx(np.linalg.norm(np.diff(way, axis=1), axis=-1).sum(1), abs=5e-3)
    assert numbers.distance.tolist() == pytest.approx(np.linalg.norm(way[:, -1] - way[:, 0], axis=-1), abs=5e-3)
    change = [np.linalg.norm((steps[3][1]['z_L'] - steps[2][1]['z_L']).reshape(6, -1), axis=1) / np.linalg.norm(steps[3][1]['z_L'].reshape(6, -1), axis=1)]
    row = analyse.settle(many).numbers.query("latent == 'z_L' and step == 4").iloc[0]
    assert (row.low, row['median'], row.high) == pytest.approx(tuple(np.quantile(change, [.1, .5, .9])), rel=1e-3)


def test_outcomes(solver):
    trace = solver.trace(list(puzzles(3) - 1), [TEXT] * 3, steps=3)
    numbers = analyse.outcomes(trace, threshold=trace.latent_change[:, -1, 0].mean()).numbers.set_index(['settled', 'right'])
    still, right = trace.latent_change[:, -1, 0] < trace.latent_change[:, -1, 0].mean(), np.array([True, True, False])
    for s in (True, False):
        for r in (True, False): assert numbers.puzzles[s, r] == (((still == s) & (right == r)).sum())
    assert analyse.outcomes(trace, threshold=99).numbers.q_halt.tolist()[:2] == pytest.approx([np.median([2.5, .5]), 1.5])


def test_geometry(model, many, latents):
    found, z = latents(model, puzzles(6))
    moved, cosines = {}, {}
    for i, (name, new) in enumerate(found):
        step = (new - z[name]).flatten(1)
        if name in moved: cosines.setdefault((name, many.index[i, 2], many.index[i, 1] == 0), []).append(torch.cosine_similarity(step, moved[name]).mean().item())
        z[name], moved[name] = new, step
    numbers = analyse.geometry(many).numbers.set_index(['latent', 'kind']).cosine
    assert numbers['z_L', 'within a cycle'] == pytest.approx(np.mean(cosines['z_L', 1, True] + cosines['z_L', 1, False]), abs=1e-4)
    assert numbers['z_L', 'across cycles'] == pytest.approx(np.mean(cosines['z_L', 0, False]), abs=1e-4)
    assert numbers['z_L', 'across steps'] == pytest.approx(np.mean(cosines['z_L', 0, True]), abs=1e-4)


def test_lens(model, latents):
    found, _ = latents(model, puzzles(3)[2:])
    p = torch.stack([model.act.inner.heads(z)[0][0].detach().softmax(-1) for _, z in found]).numpy()
    a = probe.lens(model, puzzles(3)[2] - 1, TEXT)
    assert a.numbers.entropy.tolist() == pytest.approx(-(p * np.log2(p)).sum(-1).mean(1), rel=1e-4)
    assert a.numbers['rank'].tolist() == pytest.approx((p > p[:, range(16), SOLUTION][..., None]).sum(-1).mean(1) + 1)
    assert a.numbers.kl.tolist() == pytest.approx((p[-1] * np.log2(p[-1] / p)).sum(-1).mean(1), abs=1e-4)
    both = a.compare(probe.lens(model, puzzles(3)[1] - 1, TEXT))
    assert both.numbers['entropy difference'].tolist() == pytest.approx((both.numbers['entropy (second)'] - both.numbers['entropy (first)']).tolist())


def test_landscape(model):
    a = probe.landscape(model, puzzles(3)[2] - 1, TEXT, size=3, reach=2., step=2)
    basis, steps = model.trace(puzzles(3)[2] - 1).cell_basis, by_hand(model, puzzles(3)[2:], 3)
    z = {k: torch.as_tensor(v) for k, v in steps[1][1].items()}
    pushed = z | {'z_H': z['z_H'] + torch.cat([torch.zeros(1, 32), torch.as_tensor(2 * basis.components[1] - 2 * basis.components[0]).expand(16, -1)])}
    answer = model.act.inner.heads(pushed['z_H'])[0].argmax(-1).numpy()
    corner = a.numbers.sort_values(['b', 'a']).iloc[6]                                   # -2 along the first, +2 along the second
    assert corner.bad == model.puzzle.conflicts(puzzles(3)[2:], answer)[0]
    x = model.act.inner.embed(torch.as_tensor(puzzles(3)[2:]), torch.zeros(1, 0))
    after = basis.project(model.act.inner.recur(pushed, x)['z_H'][0, 1:].mean(0).detach())
    assert (corner.a + corner.da, corner.b + corner.db) == pytest.approx(tuple(after[:2]), abs=1e-2)


def test_fixed_point(model):
    a = probe.fixed_point(model, puzzles(3)[2] - 1, TEXT, steps=3, blanks=2)
    rows = a.numbers.set_index(['experiment', 'step'])
    assert [rows.wrong['extended run', s] for s in (1, 2, 3)] == [(x != SOLUTION).sum() for x, _, _ in by_hand(model, puzzles(3)[2:], 3)]
    ends = [np.where(np.arange(16) == i, 1, SOLUTION) for i in (0, 15)]
    assert [rows.wrong['one blank', s] for s in (1, 2, 3)] == [(x != SOLUTION).sum() / 2 for x, _, _ in by_hand(model, np.stack(ends), 3)]
    z = {k: torch.as_tensor(v) for k, v in by_hand(model, SOLUTION[None])[-1][1].items()}
    x = model.act.inner.embed(torch.as_tensor(puzzles(3)[2:]), torch.zeros(1, 0))
    assert rows.wrong['from the solution', 1] == (model.act.inner.heads(model.act.inner.recur(z, x)['z_H'])[0].argmax(-1).numpy() != SOLUTION).sum()


def test_branches(model):
    answers, _, q = by_hand(model, puzzles(3)[2:])[-1]
    quiet, noisy, again = (probe.branches(model, puzzles(3)[2] - 1, TEXT, runs=5, noise=n, seed=s).numbers for n, s in ((0, 0), (1., 3), (1., 3)))
    assert quiet.runs.tolist() == [5] and quiet.q_halt[0] == pytest.approx(q[0], abs=1e-4) and quiet.wrong[0] == (answers != SOLUTION).sum()
    assert noisy.equals(again) and len(noisy) > 1 and noisy.runs.sum() == 5 and noisy.q_halt.is_monotonic_decreasing
    assert noisy.wrong[noisy.undisturbed].item() == quiet.wrong[0]


def test_influence(model):
    steps = by_hand(model, puzzles(3)[2:], 2)
    z, start = {k: torch.as_tensor(v).clone() for k, v in steps[0][1].items()}, model.act.inner.start(1)
    x = model.act.inner.embed(torch.as_tensor(puzzles(3)[2:]), torch.zeros(1, 0))
    p = lambda z: model.act.inner.heads(model.act.inner.recur(z, x)['z_H'])[0][0].softmax(-1).detach().numpy()
    plain = p(z)
    for k in z: z[k][:, 1 + 6] = start[k][:, 1 + 6].detach()
    effect = np.abs(p(z) - plain).sum(-1) / 2
    assert probe.influence(model, puzzles(3)[2] - 1, (1, 2)).numbers.effect.tolist() == pytest.approx(effect, abs=1e-4)
    every = probe.influence(model, puzzles(3)[2] - 1, batch_size=5).numbers
    assert every.effect[every.patched == 6].tolist() == pytest.approx(effect, abs=1e-4) and len(every) == 256
    assert probe.distances(Puzzle('p', (2, 3), 3))[0].tolist() == [0, 1, 2, 1, 2, 3]


def test_influence_says_what_is_wrong(model):
    grid = puzzles(3)[2] - 1
    for wrong, says in ((dict(cell=(9, 9)), 'rows go to 3, columns to 3'), (dict(cell=1, after=0), 'at least 1 ACT step'), (dict(cell=1, step=-1), 'at least 0')):
        with pytest.raises(UserError, match=says): probe.influence(model, grid, **wrong)
    fresh = probe.influence(model, grid, 6, step=0).numbers          # set back where it is already: nobody feels it
    assert fresh.effect.max() == pytest.approx(0, abs=1e-6) and '(step 0, 1 later)' in probe.influence(model, grid, 6, step=0).text
    with pytest.raises(UserError, match="latent 'z_X'"): probe.landscape(model, grid, latent='z_X')
    with pytest.raises(UserError, match='at least 1'): probe.landscape(model, grid, step=0)


def test_a_row_that_is_not_there():
    act = build_model(dict(name='trm', hidden_size=16, num_heads=2, puzzle_emb_ndim=16, puzzle_emb_len=1, halt_max_steps=2), PuzzleShape(6, 16, 3))
    solver = Solver(act, PUZZLES['sudoku-4x4'])
    assert len(solver.solve(TEXT, identifier=2, early_exit=False).q_halt) == 2
    for look in (solver.solve, solver.trace, lambda p, **o: next(solver.trace_steps(p, **o))):
        for row in (3, -1):
            with pytest.raises(UserError, match=f'puzzle identifier {row}: this model has 3'): look(TEXT, identifier=row)


def test_traces_of_other_components_are_not_joined(model):
    first, second = puzzles(3)[1] - 1, puzzles(3)[2] - 1
    one = model.trace(first, TEXT)
    with pytest.raises(UserError, match='components of their own.*like='): Trace.join([one, model.trace(second, TEXT)])
    both = Trace.join([one, model.trace(second, TEXT, like=one)])
    assert both.answers.shape[0] == 2 and np.array_equal(both.path[0], one.path)


def test_cells_without_a_solution_do_not_count(model):
    "As in accuracy: tokens 0 of a solution are padding."
    part = np.where(np.arange(16) < 4, SOLUTION, 0)
    answers = np.stack([np.where(np.isin(np.arange(16), (1, 9)), 2, SOLUTION)] * 2)
    film = draw_film(answers, LOOKS['sudoku-4x4'], solution=part, q_halt=[-1, -1])
    assert [t.get_text() for ax in film.axes for t in ax.texts] == ['q_halt −1.0 · 1 wrong'] * 2
    trace = model.trace(list(puzzles(3) - 1), [TEXT] * 3)
    whole, some = trace, replace(trace, solution=np.where(np.arange(16) < 4, trace.solution, 0))
    cells = lambda t: next(l for l in draw_accuracy(t).axes[0].lines if l.get_label() == 'cells').get_ydata()
    assert cells(whole) == pytest.approx(100 * (trace.answers == SOLUTION).mean((0, 2)), abs=1e-4)
    assert cells(some) == pytest.approx(100 * (trace.answers == SOLUTION)[..., :4].mean((0, 2)), abs=1e-4)


def test_freeze(model):
    a = probe.freeze(model, list(puzzles(3) - 1), [TEXT] * 3, steps=2).numbers.set_index(['condition', 'step'])
    x = model.act.inner.embed(torch.as_tensor(puzzles(3)), torch.zeros(3, 0))
    z = model.act.inner.start(3)
    for _ in range(2):
        for u in model.act.inner.schedule():
            if u.latent == 'z_H': z = z | {'z_H': model.act.inner.update(z, x, u)}
    held = (model.act.inner.heads(z['z_H'])[0].argmax(-1).numpy() == SOLUTION).mean()
    assert a.cells['z_L held', 2] == pytest.approx(held)
    assert a.cells['as it is', 2] == pytest.approx((by_hand(model, puzzles(3), 2)[1][0] == SOLUTION).mean())
    assert (a.cells['z_H fresh each step', 1], a.cells['z_H held', 1]) == pytest.approx((a.cells['as it is', 1], (model.act.inner.heads(model.act.inner.start(3)['z_H'])[0].argmax(-1).numpy() == SOLUTION).mean()))


@pytest.mark.parametrize('name', [n if n == 'trm_hier6' else pytest.param(n, marks=pytest.mark.slow) for n in sorted(MODELS)])
def test_analyses_of_every_architecture(name):
    """All of them run and draw, whatever the latents are called."""
    solver = small(name)
    traces = solver.trace(list(puzzles(4) - 1), [TEXT] * 4)
    found = [f(traces) for f in (analyse.film, analyse.aha, analyse.orbit, analyse.settle, analyse.outcomes, analyse.geometry)]
    grid = puzzles(3)[2] - 1
    found += [probe.lens(solver, grid), probe.landscape(solver, grid, size=2), probe.fixed_point(solver, grid, TEXT, 2), probe.branches(solver, grid, runs=3), probe.influence(solver, grid, 1), probe.freeze(solver, grid, TEXT)]
    for a in found: assert len(a.numbers) and a.text and a.plot().png().startswith(b'\x89PNG')


# movies

def test_movie(real, tmp_path, monkeypatch):
    from PIL import Image
    trace = real.trace(puzzles(2)[1] - 1, TEXT)
    film = Image.open(movie.save_movie(trace, tmp_path/'a.gif'))
    assert film.n_frames == 4 and len({film.seek(i) or film.size for i in range(4)}) == 1
    film.seek(3)
    assert film.info['duration'] == 2000
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(MissingExtra, match=r'trm_nb\[video\]'): movie.save_movie(trace, tmp_path/'a.mp4')
    assert not (tmp_path/'a.mp4').exists()
    with pytest.raises(UserError, match='.gif or an .mp4'): movie.save_movie(trace, tmp_path/'a.avi')


def test_movie_as_mp4(real, tmp_path):
    reader = pytest.importorskip('imageio_ffmpeg')
    path = movie.save_movie(real.trace(puzzles(2)[1] - 1), tmp_path/'a.mp4')
    about = next(reader.read_frames(str(path)))
    assert about['codec'] == 'h264' and about['size'] == (560, 300)
