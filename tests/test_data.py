"""The data room: folders, symmetries and keys, Sudoku sources and the generator, the loader."""
import itertools, json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner
from trm_nb.data.augment import Dihedral
from trm_nb.data.basics import UserError, check_settings
from trm_nb.data.folders import join, read_folders
from trm_nb.data.format import PUZZLES, DatasetMetadata, PuzzleDataset, PuzzleSet, overlap, puzzle_of
from trm_nb.data.loader import DataSettings, Sampler, TrainLoader, eval_batches
from trm_nb.data.random import draw
from trm_nb.data.sudoku import SIZES, check_command, generate, generate_sudoku_set, solve, sudoku_command, write_generated

HEAD = 'source,question,answer,rating\n'
QUESTION = '...7.2..5....95.8.19..8..67..4...6....79...2.26...1......5......39.....8....784..'
ANSWER = '846712935372695184195483267984237651517964823263851749728549316439126578651378492'

@pytest.fixture(scope='module')
def six(tmp_path_factory):
    "A generated 6x6 folder: 80 training puzzles with two copies each, 40 test puzzles."
    return write_generated(tmp_path_factory.mktemp('data')/'six', size=6, train=80, test=40, seed=3, num_aug=2)

@pytest.fixture
def trm():
    "Calls `sudoku` and `check` as the command line does; returns (exit code, output or error)."
    app = typer.Typer()
    app.command('sudoku')(sudoku_command)
    app.command('check')(check_command)
    def call(*words):
        result = CliRunner().invoke(app, [str(w) for w in words])
        return (2, str(result.exception)) if isinstance(result.exception, UserError) else (result.exit_code, result.stdout)
    return call

def transformed(symmetry, rows, seed):
    "Each row under a random symmetry."
    t = torch.from_numpy(np.array(rows))
    return symmetry.apply(t, t, draw(seed, 'test', 0, torch.arange(len(t)), symmetry.numbers))[0].numpy()

def count_plainly(tokens, size, box, limit=2):
    "Number of solutions (up to `limit`) by the simplest backtracking there is."
    grid = [t - 1 for t in tokens.tolist()]
    def fits(i, d):
        r, c = divmod(i, size)
        top, left = r // box[0] * box[0], c // box[1] * box[1]
        rows, columns = [grid[r * size + x] for x in range(size)], [grid[x * size + c] for x in range(size)]
        return d not in rows + columns + [grid[(top + y) * size + left + x] for y in range(box[0]) for x in range(box[1])]
    def search():
        options = {i: [d for d in range(1, size + 1) if fits(i, d)] for i, d in enumerate(grid) if not d}
        if not options: return 1
        i, found = min(options, key=lambda i: len(options[i])), 0
        for d in options[i]:
            grid[i] = d
            found += search()
            grid[i] = 0
            if found >= limit: break
        return found
    return search()

# Folders

def test_what_is_written_is_read(six):
    train, test = (PuzzleDataset.read(six, s) for s in ('train', 'test'))
    assert (len(train), len(test)) == (240, 40) and train.puzzle is SIZES[6]
    assert train.merged.group_indices.tolist() == list(range(0, 241, 3)) and test.merged.group_indices.tolist() == list(range(41))
    assert train.merged.inputs.dtype == np.uint8 and train.merged.puzzle_indices.dtype == np.int32
    assert json.loads((six/'identifiers.json').read_text()) == ['<blank>']
    official = {'pad_id', 'ignore_label_id', 'blank_identifier_id', 'vocab_size', 'seq_len', 'num_puzzle_identifiers', 'total_groups', 'mean_puzzle_examples', 'total_puzzles', 'sets'}
    assert official <= json.loads((six/'train/dataset.json').read_text()).keys()
    assert {f.name for f in (six/'train').glob('*.npy')} >= {f'all__{n}.npy' for n in ('inputs', 'labels', 'puzzle_identifiers', 'puzzle_indices', 'group_indices')}

def test_copies_are_the_puzzle_they_follow(six):
    arrays, puzzle = PuzzleDataset.read(six, 'train').merged, SIZES[6]
    keys = puzzle.keys(arrays.inputs).reshape(80, 3)
    assert (keys == keys[:, :1]).all() and len(np.unique(keys)) == 80
    assert not puzzle.conflicts(arrays.inputs, arrays.labels).any()
    assert (arrays.inputs[1::3] != arrays.inputs[::3]).any(1).all()

def change(name, f):
    def spoil(folder):
        file = folder/f'train/all__{name}.npy'
        np.save(file, f(np.load(file)))
    return spoil

def cut(folder): (folder/'train/all__labels.npy').write_bytes((folder/'train/all__labels.npy').read_bytes()[:-100])

def edit(**values):
    def spoil(folder):
        file = folder/'train/dataset.json'
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return spoil

SPOILED = {
    'missing': (lambda d: (d/'train/all__labels.npy').unlink(), 'all__labels.npy is missing'),
    'truncated': (cut, 'all__labels.npy: truncated'),
    'pickled': (lambda d: np.save(d/'train/all__labels.npy', np.array([{}], object), allow_pickle=True), 'all__labels.npy: truncated, or no array of numbers'),
    'float': (change('inputs', lambda a: a.astype(np.float32)), 'all__inputs.npy: must be a 2-d array of integers, not 2-d float32'),
    'flat': (change('labels', lambda a: a.reshape(-1)), 'all__labels.npy: must be a 2-d array of integers, not 1-d'),
    'token': (change('inputs', lambda a: a + 100), 'all__inputs.npy: token 10'),
    'negative token': (change('inputs', lambda a: a.astype(np.int8) - 2), 'all__inputs.npy: token -1 is outside'),
    'rows': (change('labels', lambda a: a[1:]), 'all__labels.npy: has 239 rows, inputs.npy has 240'),
    'width': (change('labels', lambda a: a[:, 1:]), 'all__labels.npy: rows have 35 tokens, dataset.json says seq_len 36'),
    'falling': (change('puzzle_indices', lambda a: np.where(a == 7, 2, a)), 'all__puzzle_indices.npy: must increase, but entry 7 does not'),
    'short': (change('puzzle_indices', lambda a: a[:-1]), 'all__puzzle_indices.npy: ends at 239, but there are 240 examples'),
    'long': (change('group_indices', lambda a: a + (a > 200)), 'all__group_indices.npy: ends at 241, but there are 240 puzzles'),
    'start': (change('group_indices', lambda a: a[1:]), 'all__group_indices.npy: must begin with 0, not 3'),
    'identifier': (change('puzzle_identifiers', lambda a: a - 1), 'all__puzzle_identifiers.npy: identifier -1 is outside 0 to 0'),
    'identifiers': (change('puzzle_identifiers', lambda a: a[1:]), 'all__puzzle_identifiers.npy: has 239 entries, but there are 240 puzzles'),
    'json': (lambda d: (d/'train/dataset.json').write_text('{"pad_id": 0'), 'dataset.json: cannot be read as JSON'),
    'key': (edit(seq_len=None), "dataset.json: setting 'seq_len'"),
    'total': (edit(total_groups=81), 'dataset.json: says total_groups 81, the arrays hold 80'),
    'sets': (edit(sets=['none']), 'none__inputs.npy is missing'),
    'puzzle': (edit(puzzle='sudocu'), "unknown puzzle 'sudocu': did you mean 'sudoku'?"),
    'kind': (edit(puzzle='sudoku'), 'dataset.json: sudoku puzzles have vocab_size 11 and seq_len 81'),
    'names': (lambda d: (d/'identifiers.json').write_text('["a", "b"]'), 'identifiers.json: must be a list of 1 names'),
}

@pytest.mark.parametrize('what', SPOILED)
def test_a_spoiled_folder_is_one_line(what, six, tmp_path):
    spoil, says = SPOILED[what]
    shutil.copytree(six, tmp_path/'d')
    spoil(tmp_path/'d')
    with pytest.raises(UserError) as error: PuzzleDataset.read(tmp_path/'d')
    assert says in str(error.value) and '\n' not in str(error.value)

def test_the_official_builders_folder(shared):
    for split, (examples, puzzles, groups) in {'train': (333, 90, 10), 'test': (54, 54, 6)}.items():
        data = PuzzleDataset.read(shared/'golden/arc_mini', split)
        assert (len(data), len(data.merged.puzzle_identifiers), len(data.merged.group_indices) - 1) == (examples, puzzles, groups)
        assert data.puzzle.name == 'arc' and len(data.identifiers) == 91 and data.merged.ratings is None
        loader = TrainLoader(data, 32, seed=1)
        assert loader.examples_per_epoch == pytest.approx(groups * examples / puzzles)
        assert loader.batch()['inputs'].shape == (32, 900)

def test_kinds_without_a_name():
    meta = lambda vocab, length: DatasetMetadata(vocab_size=vocab, seq_len=length, num_puzzle_identifiers=1, total_groups=1, mean_puzzle_examples=1, sets=['all'])
    assert [puzzle_of(meta(*m)).name for m in ((11, 81), (8, 36), (6, 16), (6, 900), (12, 900), (7, 49))] == ['sudoku', 'sudoku-6x6', 'sudoku-4x4', 'maze', 'arc', 'grid']
    assert puzzle_of(meta(7, 49)).shape == (7, 7) and puzzle_of(meta(7, 50)).shape == (1, 50)

# Symmetries

@pytest.mark.parametrize('size', SIZES)
def test_keys_do_not_change_under_symmetry(size):
    puzzle, rows = SIZES[size], generate(10, size, seed=7)
    for what in (rows.inputs, rows.labels):
        assert (puzzle.keys(transformed(puzzle.symmetry, what.repeat(100, 0), 1)) == puzzle.keys(what).repeat(100)).all()
    assert len(np.unique(puzzle.keys(rows.inputs))) == 10

@pytest.mark.parametrize('size', SIZES)
def test_symmetries_keep_validity_uniqueness_and_difficulty_of_solution(size):
    puzzle, rows = SIZES[size], generate(25, size, seed=8)
    inputs, labels = (torch.from_numpy(x) for x in (rows.inputs, rows.labels))
    u = draw(1, 'test', 0, torch.arange(25), puzzle.symmetry.numbers)
    inputs, labels = puzzle.symmetry.apply(inputs, labels, u)
    found = solve(inputs.numpy(), size)
    assert (found.count == 1).all() and (found.solutions == labels.numpy()).all()
    assert (puzzle.symmetry.undo(inputs, u).numpy() == rows.inputs).all() and (puzzle.symmetry.undo(labels, u).numpy() == rows.labels).all()

@pytest.mark.parametrize('size', SIZES)
def test_the_exact_search_agrees_with_the_keys(size):
    puzzle, rows = SIZES[size], generate(12, size, seed=9)
    turned = transformed(puzzle.symmetry, rows.inputs, 1)
    for (i, a), (j, b) in itertools.product(enumerate(rows.inputs), enumerate(turned)): assert puzzle.same(a, b) == (i == j)

def test_swapping_two_rows_of_different_bands_is_another_puzzle():
    p = SIZES[9].parse(QUESTION)
    swap = lambda a, b: p.reshape(9, 9)[[b if r == a else a if r == b else r for r in range(9)]].reshape(-1)
    assert SIZES[9].same(p, swap(0, 2)) and not SIZES[9].same(p, swap(0, 3))
    assert SIZES[9].keys(p[None]) == SIZES[9].keys(swap(0, 2)[None]) != SIZES[9].keys(swap(0, 3)[None])
    assert not SIZES[9].symmetry.same_up_to_symmetry(p, swap(0, 3))

def test_oblong_boxes_are_not_transposed():
    rows = generate(20, 6, seed=4)
    sideways = rows.inputs.reshape(-1, 6, 6).transpose(0, 2, 1).reshape(-1, 36)
    assert not np.isin(SIZES[6].keys(sideways), SIZES[6].keys(rows.inputs)).any()

def test_turning_a_square():
    square, rows = Dihedral(5), np.random.default_rng(0).integers(0, 6, (50, 25))
    assert (square.keys(transformed(square, rows, 3)) == square.keys(rows)).all() and len(np.unique(square.keys(rows))) == 50

@pytest.mark.parametrize('group, puzzle', [(1, 1), (4, 1), (40, 1), (1, 4)], ids=['alone', 'groups of 4', 'one group', 'puzzles of 4 examples'])
def test_a_leak_is_found_however_the_puzzles_are_grouped(group, puzzle):
    rows = generate(40, 4, 0)
    arrays = PuzzleSet.one_each(rows.inputs, rows.labels)
    ends = lambda n, of: np.arange(0, n + 1, of, dtype=np.int32)
    train = replace(arrays, puzzle_identifiers=np.zeros(40 // puzzle, np.int32), puzzle_indices=ends(40, puzzle), group_indices=ends(40 // puzzle, group))
    assert len(np.unique(overlap(train, PuzzleSet.one_each(rows.inputs[5:25], rows.labels[5:25]), PUZZLES['sudoku-4x4']).puzzles[:, 1])) == 20


def test_a_planted_leak_is_found(six):
    train, test = PuzzleDataset.read(six, 'train').merged, PuzzleDataset.read(six, 'test').merged
    assert not len(overlap(train, test, SIZES[6]).puzzles)
    test.inputs = np.array(test.inputs)
    test.inputs[11] = transformed(SIZES[6].symmetry, train.inputs[30:31], 5)[0]
    assert overlap(train, test, SIZES[6]).puzzles.tolist() == [[30, 11]]

# Sudoku

@pytest.mark.parametrize('size', SIZES)
def test_generated_puzzles_have_one_solution(size):
    rows = generate(8, size, seed=5)
    for tokens in rows.inputs[:4]: assert count_plainly(tokens, size, SIZES[size].box) == 1
    assert not SIZES[size].conflicts(rows.inputs, rows.labels).any()

def test_the_solver_counts_as_the_simplest_one_does():
    rows = generate(40, 4, seed=6)
    blanked = np.where(np.random.default_rng(0).random(rows.inputs.shape) < .3, 1, rows.inputs)
    plainly = [count_plainly(t, 4, (2, 2), limit=1000) for t in blanked]
    assert solve(blanked, 4, limit=1000).count.tolist() == plainly and max(plainly) > 1

def test_the_seed_makes_the_puzzles():
    a, b, c = generate(50, 6, 1), generate(50, 6, 1), generate(50, 6, 2)
    assert (a.inputs == b.inputs).all() and (a.ratings == b.ratings).all() and (a.inputs != c.inputs).any()
    few = generate(30, 9, 1, givens=(24, 26))
    assert ((few.inputs > 1).sum(1) >= 24).all() and np.median((few.inputs > 1).sum(1)) <= 26

def csv_of(file, rows, head=HEAD):
    Path(file).write_text(head + '\n'.join(f'x,{q},{a},{r}' for q, a, r in rows) + '\n')
    return file

def test_a_csv_becomes_two_splits_by_two_calls(trm, tmp_path):
    a, b = (csv_of(tmp_path/f'{n}.csv', [(QUESTION, ANSWER, 5), (QUESTION.replace('.', '0'), ANSWER, 7)][:k]) for n, k in (('a', 2), ('b', 1)))
    assert trm('sudoku', '--source', a, '--split', 'train', '--num-aug', 3, '--out', tmp_path/'d')[0] == 0
    code, out = trm('sudoku', '--source', b, '--split', 'test', '--out', tmp_path/'d')
    train, test = (PuzzleDataset.read(tmp_path/'d', s) for s in ('train', 'test'))
    assert code == 0 and (len(train), len(test)) == (8, 1) and 'd/test' in out and 'd/train' in out
    assert train.extra['ratings'].tolist() == [5] * 4 + [7] * 4 and train.merged.group_indices.tolist() == [0, 4, 8]
    assert SIZES[9].to_text(test.merged.labels[0]).replace('\n', '') == ANSWER
    code, out = trm('check', a, tmp_path/'d/test', '--json')
    assert code == 0 and json.loads(out)['shared_puzzles'] == json.loads(out)['shared_solutions'] == 1

BAD_CSV = {
    '80 cells': ((QUESTION[1:], ANSWER, 1), 'line 3: the question has 80 cells'),
    'symbol': ((QUESTION[:-1] + 'x', ANSWER, 1), "line 3: cell 81 of the question is 'x'"),
    'contradiction': (('9' + QUESTION[1:], ANSWER, 1), 'line 3: the answer contradicts the puzzle in cell 1'),
    'rules': ((QUESTION, ANSWER[1] + ANSWER[1:], 1), 'line 3: the answer repeats a digit in row 1'),
    'blank': ((QUESTION, '.' + ANSWER[1:], 1), 'line 3: the answer leaves cell 1 blank'),
    'rating': ((QUESTION, ANSWER, 'hard'), "line 3: the rating 'hard' is no number"),
}

@pytest.mark.parametrize('what', BAD_CSV)
def test_a_bad_csv_names_its_line_and_writes_nothing(what, trm, tmp_path):
    row, says = BAD_CSV[what]
    code, error = trm('sudoku', '--source', csv_of(tmp_path/'bad.csv', [(QUESTION, ANSWER, 1), row]), '--out', tmp_path/'d')
    assert code == 2 and says in error and '\n' not in error and sorted(p.name for p in tmp_path.iterdir()) == ['bad.csv']

@pytest.mark.parametrize('content', [HEAD.encode('utf-16'), HEAD.encode() + b'M\xfcller,1,1,0\n', HEAD.encode() + b'a,"' + b'1' * 200_000 + b'",1,0\n'], ids=['utf-16', 'latin-1', 'a long field'])
def test_a_file_that_is_no_csv(content, trm, tmp_path):
    (tmp_path/'odd.csv').write_bytes(content)
    code, said = trm('check', tmp_path/'odd.csv', tmp_path/'odd.csv')
    assert code == 2 and 'odd.csv cannot be read as CSV' in said


def test_ratings_of_any_size_and_seeds_of_any_sign(trm, tmp_path):
    (tmp_path/'train.csv').write_text(HEAD + ''.join(f'x,{QUESTION},{ANSWER},{r}\n' for r in (3_000_000_000, 1, 2)))
    assert trm('sudoku', '--source', tmp_path/'train.csv', '--subsample', 3, '--seed', -1, '--out', tmp_path/'out')[0] == 0
    assert PuzzleDataset.read(tmp_path/'out').merged.ratings.tolist() == [3e9, 1, 2]


def test_a_csv_without_columns_or_rows(trm, tmp_path):
    for head, says in (('question,rating\n', "no column 'answer'"), (HEAD, 'holds no puzzles'), ('', "no column 'question'")):
        (tmp_path/'bad.csv').write_text(head)
        code, error = trm('sudoku', '--source', tmp_path/'bad.csv', '--out', tmp_path/'d')
        assert code == 2 and says in error

def test_the_hub(trm, tmp_path, monkeypatch):
    asked = []
    def fetch(repo, name, repo_type, token=None):
        asked.append((repo, name, repo_type))
        return csv_of(tmp_path/name, [(QUESTION, ANSWER, 1)])
    monkeypatch.setattr('huggingface_hub.hf_hub_download', fetch)
    assert trm('sudoku', '--source', 'hub:me/mine', '--out', tmp_path/'d')[0] == 0
    assert trm('sudoku', '--source', 'hub', '--split', 'test', '--out', tmp_path/'d')[0] == 0
    assert asked == [('me/mine', 'train.csv', 'dataset'), ('me/mine', 'test.csv', 'dataset'), ('sapientinc/sudoku-extreme', 'test.csv', 'dataset')]
    def fail(*_, **__): raise ConnectionError('no route\nto host')
    monkeypatch.setattr('huggingface_hub.hf_hub_download', fail)
    code, error = trm('sudoku', '--source', 'hub', '--out', tmp_path/'e')
    assert code == 2 and 'no route' in error and '\n' not in error and not (tmp_path/'e').exists()

def test_generated_splits_are_held_out(trm, tmp_path):
    code, out = trm('sudoku', '--source', 'generate', '--size', 4, '--train', 300, '--test', 100, '--seed', 2, '--out', tmp_path/'d')
    assert code == 0
    code, out = trm('check', tmp_path/'d', '--json')
    report = json.loads(out)
    assert code == 0 and (report['shared_puzzles'], report['a_examples'], report['b_examples']) == (0, 300, 100)

@pytest.mark.parametrize('words, says', [
    (('--source', 'generate', '--split', 'test'), '--split goes with published puzzles'),
    (('--source', 'generate', '--size', 7), '--size 7'),
    (('--source', 'generate', '--test', 0), '--test 0'),
    (('--source', 'nothing.csv'), 'no such file'),
    (('--source', 'hub', '--train', 3), '--train goes with --source generate'),
    (('--source', 'generate', '--size', 4, '--train', 90, '--givens', '15-16'), 'ask for fewer'),
    (('--source', 'generate', '--givens', 'few'), '--givens few'),
])
def test_bad_options(words, says, trm, tmp_path):
    code, error = trm('sudoku', *words, '--out', tmp_path/'d')
    assert code == 2 and says in error and not (tmp_path/'d').exists()

def test_real_training_and_test_puzzles_share_nothing(trm, shared):
    folder = shared/'data/sudoku-extreme'
    code, out = trm('check', folder/'train.csv', folder/'validation.csv', '--json')
    report = json.loads(out)
    assert code == 0 and (report['shared_puzzles'], report['shared_solutions'], report['unconfirmed']) == (0, 0, 0)

# Loader

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

def joined(loaders, n):
    "Global batches of several ranks."
    return [{k: torch.cat([p[k] for p in parts]) for k in parts[0]} for parts in ([l.batch() for l in loaders] for _ in range(n))]

def test_ranks_together_are_one_rank(six):
    data = PuzzleDataset.read(six)
    whole = joined([TrainLoader(data, 36, seed=4)], 12)
    for world in (2, 3): assert all(map(same, whole, joined([TrainLoader(data, 36, seed=4, rank=r, world=world) for r in range(world)], 12)))

def test_a_resumed_stream_is_an_unbroken_one(six):
    data = PuzzleDataset.read(six)
    whole = joined([TrainLoader(data, 36, seed=4)], 12)
    for stop in (1, 2, 5):                              # 80 groups: in the middle of an epoch
        before = TrainLoader(data, 36, seed=4)
        joined([before], stop)
        after = [TrainLoader(data, 36, seed=4, rank=r, world=2) for r in range(2)]
        for l in after: l.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert all(map(same, whole[stop:], joined(after, 12 - stop)))
        assert after[0].epoch == pytest.approx(12 * 36 / 80)

def test_each_group_once_an_epoch_and_its_members_in_turn(six):
    arrays = PuzzleDataset.read(six).merged
    sampler = Sampler(arrays, seed=2)
    epochs = np.stack([sampler.take(80)[0] for _ in range(60)])
    assert (np.sort(epochs // 3, 1) == np.arange(80)).all()
    assert (np.bincount((epochs % 3).reshape(-1)) > 1450).all() and (epochs[0] != epochs[1]).any()

def test_examples_of_one_puzzle_stay_together(shared):
    arrays = PuzzleDataset.read(shared/'golden/arc_mini').merged
    sampler, seen = Sampler(arrays, seed=0), 0
    for _ in range(200):
        epoch = sampler.epoch
        examples, puzzles = sampler.take(16)
        assert (arrays.puzzle_indices[puzzles] <= examples).all() and (examples < arrays.puzzle_indices[puzzles + 1]).all()
        if sampler.epoch > epoch: continue              # what follows holds within an epoch
        seen += 1
        assert len(set(examples)) == 16 and 1 + (np.diff(puzzles) != 0).sum() == len(set(puzzles))
        whole = [np.sum(puzzles == p) == sampler.sizes[p] for p in dict.fromkeys(puzzles)]
        assert all(whole[:-1])                          # only the last puzzle of a batch may be cut short
    assert seen > 50

def test_batches_are_solved_puzzles_with_new_faces(six):
    data = PuzzleDataset.read(six)
    faces = set()
    for batch in joined([TrainLoader(data, 80, seed=1)], 5):
        inputs, labels = batch['inputs'].numpy(), batch['labels'].numpy()
        assert not SIZES[6].conflicts(inputs, labels).any()
        assert set(SIZES[6].keys(inputs)) == set(SIZES[6].keys(data.merged.inputs[::3]))
        faces |= set(map(bytes, inputs))
    assert len(faces) == 400

def test_evaluation_sees_every_example_once(six):
    data = PuzzleDataset.read(six, 'test')
    for world, size in ((1, 16), (2, 24), (4, 24), (3, 99)):
        ranks = [list(eval_batches(data, size, rank=r, world=world)) for r in range(world)]
        index = torch.cat([i for steps in ranks for i, _ in steps])
        labels = torch.cat([b['labels'] for steps in ranks for _, b in steps])
        assert sorted(index[index >= 0].tolist()) == list(range(40)) and len({len(i) for steps in ranks for i, _ in steps}) == 1
        assert (labels[index < 0] == -100).all() and (labels[index >= 0].numpy() == data.merged.labels[index[index >= 0]]).all()

def test_indivisible_batches_name_what_would_do(six):
    with pytest.raises(UserError, match=r'batch size 100 cannot be divided among 8 ranks: try batch size 96 or 104'): TrainLoader(PuzzleDataset.read(six), 100, world=8)

@pytest.mark.cuda
def test_the_device_is_not_waited_for(six):
    data = PuzzleDataset.read(six)
    loader = TrainLoader(data, 32, seed=3, device='cuda')
    loader.batch()
    torch.cuda.set_sync_debug_mode('error')
    try: batches = [loader.batch() for _ in range(3)]
    finally: torch.cuda.set_sync_debug_mode('default')
    for there, here in zip(batches, joined([TrainLoader(data, 32, seed=3)], 4)[1:]): assert same({k: v.cpu() for k, v in there.items()}, here)

# Several folders

@pytest.fixture(scope='module')
def more(tmp_path_factory):
    folder = tmp_path_factory.mktemp('more')/'more'
    write_generated(folder, size=6, train=40, test=20, seed=77)
    return folder

def in_sets(name, sets, identifiers):
    "A split of sets with so many puzzles of one example, each a group."
    def one(n, first):
        ids = np.arange(first, first + n) if identifiers else np.zeros(n)
        return PuzzleSet(*(np.full((n, 5), first % 7, np.uint8),) * 2, ids.astype(identifiers or np.int32), *(np.arange(n + 1, dtype=np.int32),) * 2)
    counts = np.cumsum([1, *sets.values()])
    made = {k: one(n, first) for (k, n), first in zip(sets.items(), counts)}
    total = int(counts[-1]) if identifiers else 1
    about = DatasetMetadata(vocab_size=7, seq_len=5, num_puzzle_identifiers=total, total_groups=sum(sets.values()), mean_puzzle_examples=1, sets=list(sets))
    return PuzzleDataset(Path(name), 'train', about, made, [f'{name}{i}' for i in range(total)])


def test_no_set_is_lost_in_a_join():
    "Whatever the sets are called."
    both = join([in_sets('a', dict(all=3, all1=4), None), in_sets('b', dict(all=5), None)])
    assert len(both) == 12 and both.metadata.total_groups == 12


@pytest.mark.parametrize('kind', ['u1', 'u2', '>i4', 'i8'])
def test_joined_identifiers_do_not_wrap(kind):
    n = 40_000 if kind == 'u2' else 200
    both = join([in_sets(name, dict(all=n), kind) for name in 'ab'])
    assert both.merged.puzzle_identifiers.tolist() == list(range(1, 2 * n + 1))


def test_the_first_groups_of_each_folder(six):
    one = in_sets('a', dict(all=11, more=7), None)
    groups = lambda dataset, n: len(TrainLoader(dataset, 2, max_train_puzzles=n).data.arrays.group_indices) - 1
    assert [groups(one, n) for n in (4, 11, 12, 18)] == [4, 11, 12, 18]
    assert groups(join([one, in_sets('b', dict(all=9), None)]), 8) == 16
    with pytest.raises(UserError, match='max_train_puzzles is 19, but the training split has 18 groups'): groups(one, 19)


@pytest.mark.parametrize('kind', ['u2', 'u4', 'u8', '>i4', 'i1'])
def test_tokens_of_any_integers(kind, six):
    "Whatever passes the check can be trained on."
    data = PuzzleDataset.read(six)
    other = replace(data, sets={k: replace(s, inputs=s.inputs.astype(kind), labels=s.labels.astype(kind)) for k, s in data.sets.items()})
    other.check()
    a, b = (TrainLoader(d, 16, seed=1).batch() for d in (data, other))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_joined_folders_are_one_stream(six, more):
    both = read_folders([six, more])
    assert both.metadata.num_puzzle_identifiers == 1 and both.metadata.total_groups == 120
    loader, drawn = TrainLoader(both, 40, seed=1), []
    for _ in range(3): drawn += list(loader.sampler.take(40)[0])       # an epoch: one example of each group
    ends = [len(PuzzleDataset.read(f)) for f in (six, more)]
    assert len({d for d in drawn if d >= ends[0]}) == 40 and len(set(drawn)) == 120
    assert 0 < sum(d >= ends[0] for d in drawn[:40]) < 40              # mixed from the first batch on
    one, two = joined([TrainLoader(both, 36, seed=4)], 6), joined([TrainLoader(both, 36, seed=4, rank=r, world=2) for r in range(2)], 6)
    assert all(map(same, one, two))
    early, late = TrainLoader(both, 36, seed=4), TrainLoader(both, 36, seed=4)
    joined([early], 4)
    late.load_state_dict(early.state_dict())
    assert all(map(same, joined([late], 2), one[4:]))
    symmetric = SIZES[6].keys(np.concatenate([PuzzleDataset.read(f).merged.inputs for f in (six, more)]))
    assert set(SIZES[6].keys(torch.cat([b['inputs'] for b in one]).numpy())) <= set(symmetric)

def test_joined_evaluation_sees_both(six, more):
    both = read_folders([six, more], 'test')
    index = torch.cat([i for i, _ in eval_batches(both, 32)])
    assert sorted(index[index >= 0].tolist()) == list(range(60)) == list(range(len(both)))

def test_fingerprints_cover_all_folders(six, more, tmp_path):
    marks = {read_folders(f).fingerprint() for f in ([six], [more], [six, more], [more, six])}
    assert len(marks) == 4
    shutil.copytree(more, tmp_path/'elsewhere')
    assert read_folders([six, tmp_path/'elsewhere']).fingerprint() == read_folders([six, more]).fingerprint()

@pytest.mark.parametrize('key, value', [('seq_len', 16), ('vocab_size', 9), ('pad_id', 1), ('ignore_label_id', 1), ('blank_identifier_id', 2), ('on_the_fly', True)])
def test_folders_must_agree(key, value, six, more):
    a, b = (PuzzleDataset.read(f) for f in (six, more))
    b = replace(b, metadata=b.metadata.model_copy(update={key: value}))
    with pytest.raises(UserError, match=rf'{key} is .* in {six} and {value} in {more}: folders that are used together must agree'): join([a, b])

@pytest.mark.parametrize('values, says', [
    (dict(path=[]), 'at least one folder'), (dict(path=''), 'at least one folder'), (dict(path=['a', 'a']), 'named twice'),
    (dict(path='a', test_path=[]), 'at least one folder'), (dict(path=3), "setting 'data.path"), (dict(path='a', test_paths='b'), "did you mean 'test_path'?")])
def test_bad_folders_in_a_config(values, says):
    with pytest.raises(UserError) as e: check_settings(DataSettings, values, 'data')
    assert says in str(e.value)
