"""Mazes: search against a plain one, labels, what is refused, what is held out, and what answers are worth."""
from collections import deque
import numpy as np
import pytest
from trm_nb.data import maze as mazes
from trm_nb.data.basics import UserError
from trm_nb.data.format import PUZZLES, PuzzleDataset, overlap
from trm_nb.data.maze import GOAL, PATH, SPACE, START, WALL
from trm_nb.data.source import read_csv

def beside(cell, n):
    r, c = divmod(cell, n)
    return [(r + y) * n + c + x for y, x in ((1, 0), (0, -1), (0, 1), (-1, 0)) if 0 <= r + y < n and 0 <= c + x < n]

def plain_search(open_, start, n):
    "Distances and numbers of shortest paths from one cell, by a queue."
    distance, ways, queue = {start: 0}, {start: 1}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in (c for c in beside(cell, n) if open_[c]):
            if other not in distance:
                distance[other], ways[other] = distance[cell] + 1, 0
                queue.append(other)
            if distance[other] == distance[cell] + 1: ways[other] += ways[cell]
    return distance, ways

@pytest.fixture(scope='module')
def random_mazes():
    "60 mazes of 9x9 with S and G anywhere, some of them without a way."
    rng = np.random.default_rng(0)
    inputs = np.where(rng.random((60, 81)) < .4, WALL, SPACE).astype(np.uint8)
    for row in inputs: row[rng.choice(81, 2, replace=False)] = START, GOAL
    return inputs

def test_search_equals_a_plain_one(random_mazes):
    found, counts, labels = mazes.distances(random_mazes), mazes.count_shortest(random_mazes), mazes.shortest_paths(random_mazes)
    blocked = 0
    for row, distance, count, label in zip(random_mazes, found, counts, labels):
        start, goal = (int(np.flatnonzero(row == t)[0]) for t in (START, GOAL))
        plain, ways = plain_search(row != WALL, start, 9)
        assert {c: d for c, d in enumerate(distance.tolist()) if d >= 0} == plain
        assert count == ways.get(goal, 0)
        assert (label == PATH).sum() == (plain[goal] - 1 if goal in plain else 0)
        blocked += goal not in plain
    assert 0 < blocked < 60

def test_labels_walk_from_s_to_g_down_left_right_up(random_mazes):
    for row, label in zip(random_mazes, mazes.shortest_paths(random_mazes)):
        at, goal = (int(np.flatnonzero(row == t)[0]) for t in (START, GOAL))
        left, _ = plain_search(row != WALL, goal, 9)
        walk = set()
        while at in left and left[at] > 1:
            at = next(c for c in beside(at, 9) if left.get(c) == left[at] - 1)
            walk.add(at)
        assert walk == set(np.flatnonzero(label == PATH).tolist())

@pytest.mark.parametrize('size, paths, length', [(30, 'many', 108), (30, 'one', 108), (10, 'many', 28), (7, 'one', 16), (5, 'many', 8)])
def test_generated_mazes(size, paths, length):
    rows = mazes.generate_mazes(12, size, paths, seed=5)
    mazes.check_mazes(rows)
    assert rows.ratings.min() >= length and (rows.ratings == (rows.labels == PATH).sum(1)).all()
    assert rows.inputs.shape == (12, size * size) and rows.inputs.dtype == np.uint8
    if paths == 'one': assert (mazes.count_shortest(rows.inputs) == 1).all()
    assert not PUZZLES[mazes.maze_name(size)].conflicts(rows.inputs, rows.labels).any()

def test_the_seed_decides():
    a, b, c = (mazes.generate_mazes(n, 10, seed=s).inputs for n, s in ((5, 1), (20, 1), (5, 2)))
    assert (a == b[:5]).all() and (a != c).any()

def walls(arrays, puzzle): return set(puzzle.keys(np.where(arrays.inputs == WALL, WALL, SPACE)).tolist())

def test_train_and_test_share_nothing_up_to_symmetry(tmp_path, capsys):
    mazes.maze_command('generate', tmp_path/'d', size=6, train=150, test=60, num_aug=3, min_length=9)
    assert f'{tmp_path}/d/train: PuzzleSet(600 examples, 600 puzzles, 150 groups)' in capsys.readouterr().out
    train, test = (PuzzleDataset.read(tmp_path/'d', split) for split in ('train', 'test'))
    assert not overlap(train.merged, test.merged, train.puzzle).puzzles.size
    assert not walls(train.merged, train.puzzle) & walls(test.merged, train.puzzle)
    assert len(walls(train.merged, train.puzzle)) == 150
    groups = train.merged.inputs.reshape(150, 4, 36)
    assert all(len(np.unique(g, axis=0)) >= 2 for g in groups) and len(np.unique(train.puzzle.keys(groups[0]))) == 1
    assert train.merged.ratings.min() >= 9 and not train.puzzle.conflicts(train.merged.inputs, train.merged.labels).any()

def test_a_folder_brings_its_kind_of_puzzle(tmp_path):
    mazes.maze_command('generate', tmp_path/'d', size=7, train=3, test=0, paths='one')
    PUZZLES.pop('maze-7x7')
    puzzle = PuzzleDataset.read(tmp_path/'d', 'train').puzzle
    assert isinstance(puzzle, mazes.Maze) and puzzle.shape == (7, 7)
    with pytest.raises(UserError, match='has no split'): PuzzleDataset.read(tmp_path/'d', 'test')

GOOD = 'S#  #   G,S# o# ooG'
BAD = {
    'S missing': (' #  #   G,S# o# ooG', 'the maze has 0 cells S'), 'G missing': ('S#  #    ,S# o# ooG', 'the maze has 0 cells G'),
    'S twice': ('S#S #   G,S# o# ooG', 'the maze has 2 cells S'), 'G twice': ('S#  # G G,S# o# ooG', 'the maze has 2 cells G'),
    'no path': ('S# ## ##G,S# ## ##G', 'no way leads from S to G'), 'walls changed': ('S#  #   G,S   # ooG', 'alters the maze at row 1, column 2'),
    'G covered': ('S#  #   G,S# o# ooo', 'alters the maze at row 3, column 3'), 'a gap': ('S#  #   G,S#  # ooG', 'does not lead from S to G'),
    'a detour': ('S       G,Soo  oooG'.replace('oo  ooo', 'ooooooo'), 'has 7 cells, a shortest one has 3'), 'a crumb': ('S#  #   G,S#oo# ooG', 'has 4 cells, a shortest one has 3'),
    'already solved': ('S# o# ooG,S# o# ooG', 'already holds a path'), 'too short': ('S#  #   ,S# o# ooG', 'the question has 8 cells'),
    'answer too long': ('S#  #   G,S# o# ooG ', 'the answer has 10 cells'), 'a strange symbol': ('S#  #  .G,S# o# ooG', "cell 8 of the question is '.'")}

@pytest.mark.parametrize('line, says', BAD.values(), ids=BAD)
def test_bad_lines_are_named_and_nothing_is_written(tmp_path, line, says):
    file = tmp_path/'bad.csv'
    file.write_text(f'source,question,answer,rating\na,{GOOD},3\nb,{line},3\nc,{GOOD},3\n')
    with pytest.raises(UserError) as e: mazes.maze_command(str(file), tmp_path/'out', size=3)
    assert 'bad.csv, line 3: ' in str(e.value) and says in str(e.value) and '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['bad.csv']

@pytest.mark.parametrize('options, says', [(dict(split='test'), '--split goes with'), (dict(subsample=3), '--subsample goes with'), (dict(paths='two'), 'allowed are many, one'),
    (dict(size=4, min_length=99), '--min-length 99'), (dict(train=0, test=0), 'at least 1'), (dict(train=-2, test=7), '--train -2: must be at least 0'), (dict(test=-1), '--test -1'), (dict(num_aug=8), '0 to 7'), (dict(size=2), '--size 2')])
def test_bad_wishes(tmp_path, options, says):
    with pytest.raises(UserError, match=says): mazes.maze_command('generate', tmp_path/'out', **dict(size=5, train=2, test=1) | options)
    assert not list(tmp_path.iterdir())

def test_splits_are_added_and_mixed_sizes_refused(tmp_path):
    file = tmp_path/'some.csv'
    file.write_text(f'source,question,answer,rating\na,{GOOD},3\n')
    for split in ('train', 'test'): mazes.maze_command(str(file), tmp_path/'d', split=split, size=3)
    data = PuzzleDataset.read(tmp_path/'d', 'test')
    assert data.puzzle.to_text(data.merged.labels[0]) == 'S# \no# \nooG' and data.merged.ratings.tolist() == [3]
    with pytest.raises(UserError, match='other puzzles'): mazes.maze_command('generate', tmp_path/'d', size=5, train=2, test=0)
    file.write_text('source,question,answer,rating\n' + f'a,{GOOD},3\n' * 4)
    mazes.maze_command(str(file), tmp_path/'few', split='test', size=3, subsample=2, seed=-1)
    assert len(PuzzleDataset.read(tmp_path/'few', 'test')) == 2
    with pytest.raises(UserError, match='--train goes with --source generate'): mazes.maze_command(str(file), tmp_path/'d', train=3)

def test_hub(tmp_path, monkeypatch):
    import huggingface_hub
    asked = []
    def download(repo, name, repo_type, token=None):
        asked.append((repo, name, repo_type))
        if repo == 'no/where': raise OSError('no network\nat all')
        (tmp_path/name).write_text(f'source,question,answer,rating\n' + f'a,{GOOD},3\n' * (3 if name == 'train.csv' else 2))
        return str(tmp_path/name)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    mazes.maze_command('hub', tmp_path/'d', size=3, subsample=1)
    assert asked == [('sapientinc/maze-30x30-hard-1k', f'{s}.csv', 'dataset') for s in ('train', 'test')]
    assert [len(PuzzleDataset.read(tmp_path/'d', s)) for s in ('train', 'test')] == [1, 2]
    with pytest.raises(UserError, match=r'train.csv of the data set no/where cannot be fetched from the Hub: no network'): mazes.maze_command('hub:no/where', tmp_path/'e')

def test_real_mazes(shared, tmp_path):
    for split, n in (('train', 1000), ('test', 500)):
        mazes.maze_command(str(shared/f'data/maze-hard/{split}.csv'), tmp_path/'d')
        data = PuzzleDataset.read(tmp_path/'d', split)
        arrays = data.merged
        assert data.puzzle is PUZZLES['maze'] and len(arrays) == n
        assert (mazes.shortest_paths(arrays.inputs) == arrays.labels).all() and not data.puzzle.conflicts(arrays.inputs, arrays.labels).any()
        assert (arrays.ratings == (arrays.labels == PATH).sum(1)).all() and arrays.ratings.min() == 108

# answers

def plain_report(row, answer, n):
    "shortest, line, joined, pieces, share reached and gap of one answer, by plain search."
    start, goal = (int(np.flatnonzero(row == t)[0]) for t in (START, GOAL))
    path = {c for c in range(n * n) if row[c] == SPACE and answer[c] == PATH}
    walk, kept = path | {start, goal}, all(a == i or c in path for c, (a, i) in enumerate(zip(answer, row)))
    reach = lambda c: set(plain_search([x in walk for x in range(n * n)], c, n)[0])
    pieces = {frozenset(reach(c)) for c in walk}
    degree = {c: sum(o in walk for o in beside(c, n)) for c in walk}
    joined = kept and goal in reach(start)
    best = plain_search(row != WALL, start, n)[0].get(goal)
    cost, queue = {start: 0}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in (c for c in beside(cell, n) if row[c] != WALL):
            price = cost[cell] + (other not in walk)
            if price < cost.get(other, 99): cost[other] = price; queue.append(other)
    line = joined and len(pieces) == 1 and all(d == (2 if c in path else 1) for c, d in degree.items())
    return joined and len(path) == best - 1, line, joined, len(pieces), len(reach(start) & path) / max(len(path), 1), cost.get(goal, -1)

def some_answers(inputs, rng):
    "Labels, labels with cells lost or gained, other cells altered, noise, everything, nothing."
    labels = mazes.shortest_paths(inputs)
    yield from (labels, inputs, np.where(inputs == SPACE, PATH, inputs), rng.integers(0, 6, inputs.shape))
    for lost, gained, altered in ((.1, 0, 0), (0, .1, 0), (.1, .1, 0), (0, 0, .02), (0, .5, 0)):
        chance = rng.random((3, *inputs.shape))
        answer = np.where((labels == PATH) & (chance[0] < lost), SPACE, np.where((labels == SPACE) & (chance[1] < gained), PATH, labels))
        yield np.where(chance[2] < altered, WALL, answer)

def test_path_report_equals_a_plain_one(random_mazes):
    from trm_nb.evaluate.maze import path_report
    inputs = random_mazes[:40]
    seen = np.zeros(3)
    for answers in some_answers(inputs, np.random.default_rng(1)):
        labels = mazes.shortest_paths(inputs)
        report = path_report(inputs, answers, labels)
        for i, (row, answer) in enumerate(zip(inputs, answers)):
            got = report.shortest[i], report.line[i], report.joined[i], report.pieces[i], report.reached[i], report.gap[i]
            assert got == pytest.approx(plain_report(row, answer, 9))
        assert (report.exact == (answers == labels).all(1)).all()
        way = mazes.at_goal(mazes.distances(inputs), inputs) >= 0
        assert ((PUZZLES['maze-9x9'].conflicts(inputs, answers) == 0) == report.shortest)[way].all()
        assert (report.shortest <= report.line).all() and (report.line <= report.joined).all()
        seen += report.shortest.sum(), (report.line & ~report.shortest).sum(), (report.joined & ~report.line).sum()
    assert seen[0] > 20 and seen[2] > 20

def test_ignored_cells_do_not_count_for_exact():
    from trm_nb.evaluate.maze import path_report
    inputs = mazes.generate_mazes(2, 8).inputs
    labels = mazes.shortest_paths(inputs)
    ignored = np.where(labels == PATH, labels.astype(int), -100)
    report = path_report(inputs, labels, ignored)
    assert report.exact.all() and report.shortest.all()
    assert not path_report(inputs, labels, np.full_like(ignored, -100)).exact.any()

def test_the_evaluator_reports_over_ranks(tmp_path):
    import torch
    from types import SimpleNamespace
    from trm_nb.data.loader import eval_batches
    from trm_nb.evaluate.evaluator import EVALUATORS
    import trm_nb.evaluate.maze
    mazes.maze_command('generate', tmp_path/'d', size=6, train=0, test=23)
    data = PuzzleDataset.read(tmp_path/'d', 'test')
    def run(rank, world):
        evaluator = EVALUATORS['maze']()
        evaluator.begin(data)
        for index, batch in eval_batches(data, 8, rank=rank, world=world):
            answers = torch.where((batch['labels'] == PATH) & (index[:, None] % 3 == 0), SPACE, batch['labels'].clamp(0))
            for step, tokens in ((1, batch['inputs'].long()), (2, answers)):
                evaluator.update(batch, index, step, SimpleNamespace(logits=torch.nn.functional.one_hot(tokens, 6).float()))
        return evaluator
    both = [run(rank, 2) for rank in (0, 1)]
    table = torch.cat([e._columns() for e in both])
    alone, shared = run(0, 1), both[0]
    expected = alone.result(None, lambda x: x)
    assert shared.result(None, lambda x: table) == expected
    assert expected['maze_shortest'] == 15 / 23 and len(alone.report) == 23 and expected['maze_failed_pieces'] == 2
