"""Solving, tracing and drawing by a model whose answers are known, and by a real one with random weights."""
from dataclasses import replace
import json
import numpy as np
import pytest
import torch
import typer
from fake_model import KnownAnswers
from trm_nb.data.basics import UserError
from trm_nb.data.format import PUZZLES, Puzzle
from trm_nb.evaluate.figures import COLOURS, Picture
from trm_nb.explore.draw import LOOKS, Look, draw_curves, draw_film, draw_grid, draw_halting, grid_text, look_of, marks
from trm_nb.explore.solver import Solver, solve_command
from trm_nb.explore.trace import AXES, Trace
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model

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
    trace = real.trace(puzzles(2)[1] - 1, TEXT)
    trace.save(tmp_path/'a.npz')
    again = Trace.load(tmp_path/'a.npz')
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
    assert 'http' not in page and '<script' not in page and '<title>&lt;x&gt; &amp; y' in page


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
