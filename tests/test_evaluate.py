"""Metrics by hand-computed cases; evaluation by a model whose answers are known, on one rank and on two."""
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from fake_model import KnownAnswers
from trm_nb.data.basics import UserError, check_settings
from trm_nb.data.format import PUZZLES, PuzzleDataset, PuzzleSet, describe
from trm_nb.data.arc import Task, build_arc
from trm_nb.evaluate.command import eval_command, report
from trm_nb.evaluate.compute import chosen, gaussian
from trm_nb.evaluate.evaluator import EVALUATORS, EvaluateSettings, Evaluator, check_evaluators, evaluate, fitting, leakage, make_evaluators, memory_advice, read_split, thin
from trm_nb.evaluate.predictions import read_predictions
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model
from trm_nb.evaluate.metrics import Score, by_bins, calibration, exact, halting_steps, token_accuracy, wilson

SOLUTION = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
SOLVED_AT, HALT_AT = [1, 2, 3, 9, 2, 9, 1], [0.5, 2.5, 1.5, 9, 3.5, 0.5, 9]


def puzzles(n):
    """n different 4x4 puzzles with the same solution, each with one more blank."""
    return np.stack([np.where(np.arange(16) <= i, 1, SOLUTION) for i in range(n)])


@pytest.fixture
def data():
    kind = PUZZLES['sudoku-4x4']
    arrays = PuzzleSet.one_each(puzzles(7).astype(np.uint8), np.tile(SOLUTION, (7, 1)).astype(np.uint8), np.arange(7))
    return PuzzleDataset(Path('made'), 'test', describe(kind, arrays), {'all': arrays})


@pytest.fixture
def model(): return KnownAnswers(puzzles(7), np.tile(SOLUTION, (7, 1)), SOLVED_AT, HALT_AT, 6)


def score(model, data, **settings): return evaluate(model, data, EvaluateSettings(**settings), progress=False)


def test_evaluation_by_value(model, data):
    e = score(model, data, batch_size=3)
    steps = np.arange(1, 5)
    assert e.index.tolist() == list(range(7))
    assert (e.correct == (steps >= np.array(SOLVED_AT)[:, None])).all()
    assert e.q_halt == pytest.approx(steps - np.array(HALT_AT)[:, None])
    assert e.halted_at.tolist() == [1, 3, 2, 4, 4, 1, 4]
    assert e.exact().value == pytest.approx(5 / 7) and e.at(1).value == pytest.approx(2 / 7)
    assert e.halting().value == pytest.approx(4 / 7)            # puzzle 2 stops before it is solved
    assert e.accuracy[3, 0] == pytest.approx(12 / 16)           # four blanks left as they are
    s = e.summary()
    assert s['exact_accuracy'] == pytest.approx(5 / 7) and s['steps'] == pytest.approx(19 / 7) and s['puzzles'] == 7
    assert s['q_halt_accuracy'] == pytest.approx(5 / 7)         # wrong on puzzle 5 (stops, unsolved) and 6 (solved, would go on)
    assert [b[2].n for b in e.by_difficulty([0, 3, 6])] == [3, 4]


def test_summary_is_json_without_clock(model, data):
    a, b = score(model, data), score(model, data, batch_size=2)
    assert json.loads(json.dumps(a.summary())) == b.summary()
    assert not any('second' in k for k in a.summary())


@pytest.mark.parametrize('batch_size', [2, 4, 6, 100])
def test_two_ranks_equal_one(model, data, batch_size):
    sent = []
    def first(x): sent.append(x); return x
    def second(x): return torch.cat([sent.pop(0), x])
    settings, one = EvaluateSettings(batch_size=batch_size), score(model, data)
    evaluate(model, data, settings, rank=0, world=2, gather=first, progress=False)
    two = evaluate(model, data, settings, rank=1, world=2, gather=second, progress=False)
    assert sent == []
    for name in ('index', 'correct', 'accuracy', 'q_halt', 'halts', 'ratings'): assert (getattr(one, name) == getattr(two, name)).all(), name
    assert one.summary() == two.summary()


def test_rows_without_labels_do_not_count(model, data):
    data.sets['all'].labels[[1, 4]] = 0
    e = score(model, data, batch_size=4)
    assert e.index.tolist() == [0, 2, 3, 5, 6] and e.ratings.tolist() == [0, 2, 3, 5, 6]
    data.sets['all'].labels[:] = 0
    with pytest.raises(UserError, match='no puzzle'): score(model, data)


def test_fewer_steps_and_puzzles(model, data):
    e = score(model, data, steps=2, max_puzzles=3)
    assert e.index.tolist() == [0, 3, 6] and e.steps == 2
    assert e.correct[:, -1].tolist() == [True, False, True]


def test_nothing_waits_between_steps(model, data):
    """Grades leave the device only once all batches are done: every step has run before the first .cpu()."""
    seen, cpu = [], torch.Tensor.cpu
    try:
        torch.Tensor.cpu = lambda self, *a, **k: (seen.append(model.calls), cpu(self, *a, **k))[1]
        score(model, data, batch_size=1)
    finally: torch.Tensor.cpu = cpu
    assert set(seen) == {7 * 4}


def test_an_evaluator_sees_every_step_of_every_puzzle(model, data):
    @EVALUATORS.register('count-for-test')
    class Count(Evaluator):
        def begin(self, dataset): self.seen, self.puzzles = torch.zeros(4), len(dataset)
        def update(self, batch, index, step, out): self.seen[step - 1] += (index >= 0).sum()
        def result(self, evaluation, gather): return dict(zip('abcd', gather(self.seen[None]).sum(0).tolist())) | dict(n=self.puzzles)
    try: assert score(model, data, evaluators=['count-for-test'], batch_size=3).summary() == dict(a=7, b=7, c=7, d=7, n=7)
    finally: del EVALUATORS['count-for-test']
    assert score(model, data, evaluators=[]).summary() == {}


def test_an_evaluator_of_other_puzzles_is_refused(model, data):
    with pytest.raises(UserError, match="evaluator 'maze' follows paths in mazes, not in sudoku"): score(model, data, evaluators=['maze'])


def test_an_evaluator_may_remember(model, data):
    class Sum(Evaluator):
        total = 0
        def result(self, evaluation, gather): self.total += len(evaluation.index); return dict(total=self.total)
    mine = [Sum()]
    for total in (7, 14): assert evaluate(model, data, progress=False, evaluators=mine).summary() == dict(total=total)


def test_wrong_shape_is_refused(model, data):
    data.metadata.vocab_size = 11
    with pytest.raises(UserError, match='made for vocab_size 6'): score(model, data)


def test_thin_keeps_groups_whole():
    s = PuzzleSet(np.arange(8)[:, None], np.arange(8)[:, None], np.arange(5), np.array([0, 1, 3, 4, 6, 8]), np.array([0, 2, 3, 5]))
    rows, part = thin(s, 2)
    assert rows.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert part.puzzle_indices.tolist() == [0, 1, 3, 5, 7] and part.group_indices.tolist() == [0, 2, 4] and part.puzzle_identifiers.tolist() == [0, 1, 3, 4]


def test_leakage_sees_through_symmetry(data):
    """The same puzzles with digits exchanged leak; the numbers say how many."""
    kind = PUZZLES['sudoku-4x4']
    swap = np.array([0, 1, 3, 2, 5, 4])
    arrays = PuzzleSet.one_each(swap[puzzles(7)[2:4]].astype(np.uint8), swap[np.tile(SOLUTION, (2, 1))].astype(np.uint8))
    train = PuzzleDataset(Path('train'), 'train', describe(kind, arrays), {'all': arrays})
    found = leakage(train, data)
    assert (found.checked, found.puzzles, found.solutions) == (7, 2, 7)
    assert '2 of 7 test puzzles' in str(found) and found.summary()['puzzles'] == 2
    assert leakage(train, data, max_puzzles=3).checked == 3


def test_report(model, data):
    text = report(score(model, data), torch.device('cpu'))
    assert 'exact accuracy  71.4%' in text and 'puzzles/s' in text
    assert [line.split()[:2] for line in text.splitlines()[4:8]] == [['1', '28.6%'], ['2', '57.1%'], ['3', '71.4%'], ['4', '71.4%']]


def test_metrics_by_hand():
    labels = np.array([[2, 3, -100], [-100] * 3, [2, 3, 4]])
    answers = np.array([[2, 3, 9], [2, 2, 2], [2, 3, 3]])
    assert exact(answers, labels).tolist() == [True, False, False]
    assert token_accuracy(torch.tensor(answers), torch.tensor(labels)).tolist() == pytest.approx([1, 0, 2 / 3])
    assert wilson(97, 100) == pytest.approx((.9155, .9897), abs=1e-4) and wilson(0, 5)[0] == 0
    assert halting_steps([[-1, 1, -1], [-1, -1, -1]]).tolist() == [2, 3]
    assert calibration([9, 9, -9, -9], [1, 1, 0, 1], 2).error == pytest.approx((2 * 0 + 2 * .5) / 4, abs=1e-3)
    assert [s.n for *_, s in by_bins([1, 0, 1], [3, 3, 3])] == [3]
    assert np.isnan(Score.of([]).value)


@pytest.fixture
def checkpoint(tmp_path):
    from trm_nb.models.act import PuzzleShape
    from trm_nb.models.pretrained import save_pretrained
    from trm_nb.models.zoo import build_model
    act = build_model(dict(name='trm', mlp_t=True, hidden_size=16, num_heads=2, H_cycles=1, L_cycles=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=3), PuzzleShape(6, 16))
    return save_pretrained(act, tmp_path/'model', puzzle='sudoku-4x4')


def write_csv(path, *rows):
    symbols = '_.1234'
    text = lambda tokens: ''.join(symbols[t] for t in tokens)
    path.write_text('\n'.join(['source,question,answer,rating', *(f'made,{text(q)},{text(a)},{r}' for q, a, r in rows)]) + '\n')
    return path


def test_command_on_csv(checkpoint, tmp_path, capsys):
    file = write_csv(tmp_path/'some.csv', *((q, SOLUTION, 3) for q in puzzles(5)))
    eval_command(str(checkpoint), data=str(file), device='cpu', as_json=True)
    out = json.loads(capsys.readouterr().out)
    assert out['puzzles'] == 5 and len(out['by_step']) == 3 and 0 <= out['exact_accuracy'] <= 1
    eval_command(str(checkpoint), data=str(file), device='cpu', steps=5)
    assert 'after 5 steps' in capsys.readouterr().out


def test_bad_input_is_one_line(checkpoint, tmp_path):
    wrong = write_csv(tmp_path/'wrong.csv', (puzzles(1)[0], SOLUTION, 0), (puzzles(1)[0], SOLUTION[::-1][[*range(15), 14]], 0))
    with pytest.raises(UserError, match='line 3: the answer'): read_split(wrong, puzzle='sudoku-4x4')
    with pytest.raises(UserError, match='not on this machine'): eval_command(str(checkpoint), data=str(wrong), device='cuda:99')
    with pytest.raises(UserError, match='no such folder'): eval_command(str(checkpoint), data=str(tmp_path/'nowhere'), device='cpu')
    with pytest.raises(UserError, match='no checkpoint'): eval_command(str(tmp_path/'nothing'), data=str(wrong), device='cpu')


# Options and predictions

@pytest.mark.parametrize('values, says', [
    (dict(options=dict(arc={})), "'arc' is not among the evaluators (exact)"), (dict(options=dict(exact=dict(k=1))), "evaluator 'exact' has no options"),
    (dict(evaluators=['arc'], options=dict(arc=dict(pass_k=[1]))), "unknown setting 'arc.pass_k': did you mean 'pass_ks'?"),
    (dict(evaluators=['arc'], options=dict(arc=dict(pass_ks=[]))), "setting 'arc.pass_ks'"), (dict(evaluators=['arc'], options=dict(arc=3)), 'options.arc'),
    (dict(save_outputs=['answer']), "setting 'predictions.outputs.0'"), (dict(save_outputs='answers'), 'save_outputs'), (dict(evaluators=['mase']), "did you mean 'maze'?")])
def test_bad_options(values, says):
    with pytest.raises(UserError) as e: check_settings(EvaluateSettings, values, 'evaluate')
    assert says in str(e.value) and "setting 'evaluate." in str(e.value)


def test_options_reach_the_evaluator():
    settings = EvaluateSettings(evaluators=['exact', 'arc'], options=dict(arc=dict(pass_ks=[3], sum_evaluations=True)), save_outputs=['logits'])
    _, arc, kept = make_evaluators(settings)
    assert (arc.settings.pass_ks, arc.settings.sum_evaluations, kept.settings.outputs) == ([3], True, ['logits'])
    assert make_evaluators(settings)[1] is not arc


def test_what_is_used_unasked(data):
    assert fitting(data) == ['exact']
    maze = PuzzleDataset(Path('nowhere'), 'test', data.metadata.model_copy(update=dict(puzzle='maze', vocab_size=6, seq_len=900)), data.sets)
    assert fitting(maze) == ['exact', 'maze']
    arc = PuzzleDataset(Path('nowhere'), 'test', data.metadata.model_copy(update=dict(puzzle='arc', vocab_size=12, seq_len=900)), data.sets)
    assert fitting(arc) == ['exact']                            # without test_puzzles.json there is nothing to vote on


def kept(model, data, rank=0, world=1, gather=lambda x: x, outputs=('answers', 'q_halt', 'logits', 'inputs', 'labels'), **settings):
    settings = EvaluateSettings(save_outputs=list(outputs), **settings)
    evaluators = make_evaluators(settings)
    evaluate(model, data, settings, rank=rank, world=world, gather=gather, progress=False, evaluators=evaluators)
    return evaluators[-1].found


@pytest.mark.parametrize('batch_size', [2, 4, 100])
def test_predictions_by_value(model, data, batch_size, tmp_path):
    data.sets['all'].labels[1] = 0                              # a puzzle without an answer is predicted, too
    one = kept(model, data, batch_size=batch_size)
    solved = np.array(SOLVED_AT) <= 4
    assert (one['answers'] == np.where(solved[:, None], SOLUTION, puzzles(7))).all() and one['answers'].dtype == np.uint8
    assert one['q_halt'] == pytest.approx(4 - np.array(HALT_AT)) and one['logits'].shape == (7, 16, 6)
    assert (one['inputs'] == puzzles(7)).all() and (one['labels'][1] == -100).all() and (one['labels'][2] == SOLUTION).all()
    assert one['index'].tolist() == list(range(7)) and one.about['steps'] == '4'
    sent = []
    def first(x): sent.append(x); return x
    def second(x): return torch.cat([sent.pop(0), x])
    kept(model, data, 0, 2, first, batch_size=batch_size)
    two = kept(model, data, 1, 2, second, batch_size=batch_size)
    assert sent == [] and all((one[k] == two[k]).all() for k in one.outputs)
    assert two.save(tmp_path) == tmp_path/'predictions.safetensors' and [f.name for f in tmp_path.iterdir()] == ['predictions.safetensors']
    again = read_predictions(tmp_path)
    assert again.about == one.about and all((one[k] == again[k]).all() and one[k].dtype == again[k].dtype for k in one.outputs)


def test_predictions_of_some_puzzles(model, data):
    some = kept(model, data, max_puzzles=3, outputs=['inputs'])
    assert some['index'].tolist() == [0, 3, 6] and (some['inputs'] == puzzles(7)[[0, 3, 6]]).all() and set(some.outputs) == {'index', 'puzzle_identifiers', 'inputs'}


def test_a_write_that_fails_leaves_nothing(model, data, tmp_path, monkeypatch):
    found = kept(model, data)
    found.save(tmp_path)
    before = (tmp_path/'predictions.safetensors').read_bytes()
    def full(tensors, path, about): Path(path).write_bytes(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr('trm_nb.evaluate.predictions.save_file', full)
    with pytest.raises(OSError): found.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ['predictions.safetensors'] and (tmp_path/'predictions.safetensors').read_bytes() == before


def test_command_keeps_predictions(checkpoint, tmp_path, capsys):
    file = write_csv(tmp_path/'some.csv', *((q, SOLUTION, 3) for q in puzzles(5)))
    eval_command(str(checkpoint), data=str(file), device='cpu', save_predictions=tmp_path/'kept', save_outputs='answers,labels', as_json=True)
    said, found = json.loads(capsys.readouterr().out), read_predictions(tmp_path/'kept')
    assert (found['answers'] == found['labels']).all(1).mean() == said['exact_accuracy']
    assert json.loads((tmp_path/'kept/evaluation.json').read_text())['checkpoint'] == said['checkpoint']


def test_memory_advice_halves():
    for now, says in ((768, 'try --batch-size 384 or less'), (1, 'a smaller model')):
        with pytest.raises(UserError, match=says), memory_advice(EvaluateSettings(batch_size=now), '--batch-size '): raise torch.OutOfMemoryError('CUDA out of memory')


def test_noise_is_always_a_number():
    "Every one of the 2^24 uniform numbers gives another one, and none is infinite."
    u = torch.arange(2 ** 24) / 2 ** 24
    z = gaussian(u)
    assert torch.isfinite(z).all() and (z.diff() > 0).all() and z.std().item() == pytest.approx(1, abs=1e-4) and abs(z.mean().item()) < 1e-4


@pytest.mark.parametrize('how', ['q', 'majority'])
def test_a_rollout_that_broke_is_not_chosen(how):
    assert chosen(np.array([[1, 2, 3]]), np.array([[np.nan, -2., -5.]], np.float32), how).tolist() == [1]


def secret_tasks(folder):
    "An ARC folder whose tested answers are not told."
    rng = np.random.default_rng(0)
    grid = lambda: rng.integers(0, 10, (3, 4)).astype(np.uint8)
    build_arc(folder, {'training': [Task('t', [(grid(), grid())], [(grid(), grid())])], 'test': [Task(n, [(grid(), grid()), (grid(), grid())], [(grid(), None)]) for n in ('s1', 's2')]}, test_set='test', num_aug=2)
    return PuzzleDataset.read(folder, 'test')

TINY = dict(name='trm', hidden_size=16, num_heads=2, puzzle_emb_ndim=16, puzzle_emb_len=1, H_cycles=1, L_cycles=1, L_layers=1, halt_max_steps=2)


def test_answers_that_nobody_knows(tmp_path, capsys):
    "A competition's tasks: there is a submission, and no accuracy."
    data = secret_tasks(tmp_path/'data')
    act = build_model(TINY, PuzzleShape(12, 900, data.metadata.num_puzzle_identifiers)).eval()
    save_pretrained(act, tmp_path/'model', 'arc', step=1)
    eval_command(str(tmp_path/'model'), str(tmp_path/'data'), evaluator=['exact', 'arc'], save_predictions=tmp_path/'out', device='cpu', dtype='float32')
    assert 'no answer of these puzzles is known' in capsys.readouterr().out
    assert set(json.loads((tmp_path/'out/submission.json').read_text())) == {'s1', 's2'}
    assert read_predictions(tmp_path/'out')['answers'].shape[1] == 900
    with pytest.raises(UserError, match='no puzzle of the data set has a labelled cell'): evaluate(act, data, EvaluateSettings(evaluators=['exact']), progress=False)
    with pytest.raises(UserError, match='labelled cell'): check_evaluators(EvaluateSettings(evaluators=['exact']), data)
    check_evaluators(EvaluateSettings(evaluators=['exact', 'arc']), data)
    with pytest.raises(UserError, match='symmetries: none are known'): eval_command(str(tmp_path/'model'), str(tmp_path/'data'), rollouts=2, symmetries=True, device='cpu', dtype='float32')
