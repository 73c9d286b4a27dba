"""Reports, comparisons and repetitions of real, tiny runs; and the figures of an analysis against hand-computed values."""
import json, math, shutil
import numpy as np
import pandas as pd
import pytest
from trm_nb.cli import call
from trm_nb.config import load_config
from trm_nb.data.basics import write_json
from trm_nb.data.sudoku import write_generated
from trm_nb.lab.compare import compare, look, weigh
from trm_nb.lab.plots import draw_axes, draw_frontier, draw_gap, draw_halting_steps, draw_learning, draw_members
from trm_nb.lab.report import answers, logs, looks, missing, paper_rows, save_tables
from trm_nb.lab.results import at_equal_depth, by_experiment, critical_batch, pareto, read_run, read_runs, smallest, spread
from trm_nb.models.zoo import step_cost
from trm_nb.explore.solver import Solver
from trm_nb.run import prepare, work


def begin(root, name, family, seed=0, *pairs, data='data', **varied):
    "A tiny run as the lab leaves it."
    keys = {k.replace('__', '.'): v for k, v in varied.items()}
    config = load_config('demo', f'data.path={root/data}', f'runs={root/"runs"}', f'name={name}', f'seed={seed}', 'device=cpu', 'model.hidden_size=16', 'model.num_heads=2', 'model.halt_max_steps=2', 'learn.batch_size=8', 'learn.steps=6',
                         'learn.log_every=2', 'learn.eval_every=3', 'learn.warmup_steps=2', *(f'{k}={json.dumps(v)}' for k, v in keys.items()), *pairs)
    write_json(config.folder/'status.json', dict(status=work(prepare(config)), message=''))
    write_json(config.folder/'experiment.json', dict(name=name.split('_s')[0], family=family, title='Recursion', question='How deep?', preset='demo', varied=keys, settings=keys, expects=dict(accuracy=.87, claim='Deep is good.'), budget='smoke', seed=seed))
    return config.folder


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Two experiments, one of them with two seeds; one run on other puzzles; one that failed; one that only waits."
    root = tmp_path_factory.mktemp('lab')
    for seed, name in enumerate(('data', 'others')): write_generated(root/name, size=4, train=24, test=12, seed=seed)
    begin(root, 'own_a', 'own', model__H_cycles=1)
    begin(root, 'own_b_s0', 'own', model__H_cycles=2)
    begin(root, 'own_b_s1', 'own', 1, model__H_cycles=2)
    begin(root, 'elsewhere', 'elsewhere', data='others')
    failed = root/'runs'/'own_c'
    failed.mkdir()
    for name in ('config.yaml', 'experiment.json'): shutil.copy(root/'runs'/'own_a'/name, failed/name)
    write_json(failed/'experiment.json', json.loads((failed/'experiment.json').read_text()) | dict(name='own_c'))
    write_json(failed/'status.json', dict(status='failed', message='out of memory'))
    return root


def said(capsys, *args):
    "Exit code and last line on stderr of a command."
    code = call(list(map(str, args)))
    return code, capsys.readouterr().err.strip().splitlines()[-1:]


def test_a_row_says_what_the_run_folder_says(lab):
    folder = lab/'runs'/'own_b_s1'
    row, rows = read_run(folder), [json.loads(l) for l in (folder/'metrics.jsonl').read_text().splitlines()]
    last = [r for r in rows if r['kind'] == 'eval'][-1]
    assert (row['experiment'], row['family'], row['seed'], row['label'], row['state'], row['step']) == ('own_b', 'own', 1, 'H_cycles 2', 'done', 6)
    assert (row['accuracy'], row['puzzles'], row['evaluated_at']) == (last['exact_accuracy'], 12, 6)
    assert (row['low'], row['high']) == pytest.approx((last['exact_low'], last['exact_high']))
    act = Solver.from_pretrained(folder).act
    assert row['parameters'] == sum(p.numel() for p in act.parameters())
    assert row['train_pflop'] == pytest.approx(6 * 8 * step_cost(act).training / 1e15)
    assert row['examples'] == 48 and row['train_seconds'] > 0 and row['learn.batch_size'] == 8


def test_seeds_are_one_experiment(lab):
    runs = read_runs(lab/'runs', ['own_a', 'own_b', 'own_c'])
    groups = by_experiment(runs)
    assert groups.experiment.tolist() == ['own_a', 'own_b'] and groups.seeds.tolist() == [1, 2]
    of_b = runs[runs.experiment == 'own_b'].accuracy
    assert groups.accuracy[1] == pytest.approx(of_b.mean()) and groups['std'][1] == pytest.approx(abs(of_b.iloc[0] - of_b.iloc[1]) / math.sqrt(2)) and math.isnan(groups['std'][0])
    assert missing(['own_a', 'own_b', 'own_c', 'own_d'], runs) == ['Not run: own_d.', 'own_c failed at step 0 of 6: out of memory.']


def test_tables_hold_what_a_paper_needs(lab, tmp_path):
    runs = read_runs(lab/'runs', ['own_a', 'own_b'])
    groups = by_experiment(runs)
    files = {f.name: f.read_text() for f in save_tables(tmp_path/'own', runs, groups)}
    assert len(pd.read_csv(tmp_path/'own'/'runs.csv')) == 3 and len(pd.read_csv(tmp_path/'own'/'experiments.csv')) == 2
    head, rows = paper_rows(groups, runs)
    assert dict(zip(head, rows[1]))['seeds'] == '0, 1' and dict(zip(head, rows[1]))['puzzles'] == '12' and dict(zip(head, rows[1]))['steps'] == '6'
    for text in (files['table.md'], files['table.tex']): assert 'Hardware' in text and 'Commit' in text and '95' in text and 'smoke' in text
    assert r'own\_b' in files['table.tex'] and files['table.tex'].count(r'\\') == 3 and 'own_b' in files['table.md']
    assert '0.87' not in files['table.md'] + files['table.tex'] and '87.0' not in files['table.md']  # a hypothesis is no result


def test_every_picture_takes_what_runs_give(lab):
    runs = read_runs(lab/'runs', ['own_a', 'own_b'])
    groups, (seen, unseen) = by_experiment(runs), looks(runs, 6)
    assert unseen == [] and [len(l.evaluation.index) for l in seen.values()] == [6, 6]
    pictures = [draw_members(groups), draw_axes(groups), draw_frontier(groups), draw_gap(groups), draw_learning(logs(runs)), draw_halting_steps({k: l.evaluation for k, l in seen.items()})]
    assert all(p.png()[:4] == b'\x89PNG' for p in pictures)
    assert any('Most accurate' in line for line in answers(groups))


def test_looking_again_finds_what_the_run_found(lab):
    for name in ('own_a', 'own_b_s0'):
        again, row = look(lab/'runs'/name), read_run(lab/'runs'/name)
        assert again.evaluation.exact().value == pytest.approx(row['accuracy']) and again.evaluation.accuracy[:, -1].mean() == pytest.approx(row['cells'], abs=1e-6)
        labels = again.test.merged.labels[again.evaluation.index]
        assert ((again.answers == labels).mean(1) == pytest.approx(again.evaluation.accuracy[:, -1]))


def test_two_runs_side_by_side(lab, tmp_path, capsys):
    found = compare(lab/'runs'/'own_a', lab/'runs'/'own_b_s1')
    assert found.settings == [('seed', 0, 1), ('model.H_cycles', 1, 2)]
    assert sum(map(len, found.groups.values())) == 12 and found.solved.shape == (12, 2)
    page = tmp_path/'c.html'
    assert call(['compare', 'own_a', 'own_b_s1', '--runs', str(lab/'runs'), '--puzzles', '6', '--out', str(page)]) == 0
    out = capsys.readouterr().out
    assert 'model.H_cycles' in out and 'of the same 6 puzzles' in out and 'data:image/png' in page.read_text()


def test_puzzles_that_one_solves_alone(lab):
    found = compare(lab/'runs'/'own_a', lab/'runs'/'own_b_s0')
    for l, right in zip(found.looks, ([1, 1, 0, 0], [1, 0, 1, 0])): l.evaluation.correct = np.array(right * 3, bool)[:, None]
    assert {k: len(v) for k, v in found.groups.items()} == {'both': 3, 'only own_a': 3, 'only own_b_s0': 3, 'neither': 3}
    assert found.groups['only own_a'].tolist() == [1, 5, 9] and 'cannot be told apart' in found.verdict()
    assert found.draw(0, 1).png()[:4] == b'\x89PNG'


def test_clear_errors(lab, capsys):
    runs = ['--runs', lab/'runs']
    for args, words in ((['compare', 'own_a', 'own_x', *runs], "no run 'own_x'"), (['compare', 'own_a', 'own_c', *runs], 'own_c has no evaluation yet'), (['compare', 'own_a', 'elsewhere', *runs], 'different puzzles'),
                        (['report', 'own_cc', *runs], "did you mean 'own_c'?"), (['report', 'own_c', *runs], 'has been evaluated yet'), (['report', 'exp01', '--runs', lab/'nowhere'], 'no such folder'),
                        (['report', 'exp01', *runs], 'holds no run of exp01a'), (['reproduce', 'own_c', *runs], 'no metrics yet'), (['reproduce', 'nothing', *runs], "no run 'nothing'")):
        code, line = said(capsys, *args)
        assert code == 2 and words in line[0], (args, line)


def test_a_repetition_is_weighed(lab, tmp_path):
    once, twice = lab/'runs'/'own_a', tmp_path/'again'
    shutil.copytree(once, twice, symlinks=True)
    assert weigh(once, twice).identical and weigh(once, twice).agrees
    rows = [json.loads(l) for l in (twice/'metrics.jsonl').read_text().splitlines()]
    rows[-1]['accuracy'] *= 1 + 1e-6
    (twice/'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    near = weigh(once, twice)
    assert not near.identical and near.agrees and near.worst[0] == pytest.approx(1e-6, rel=.01) and 'accuracy at step 6' in near.worst[1]
    (twice/'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows[:-1]))
    assert not weigh(once, twice).agrees and weigh(once, twice).missing == 1


@pytest.mark.slow
def test_reproduce_from_the_folder_alone(lab, tmp_path, capsys):
    folder = tmp_path/'elsewhere'/'own_a'
    shutil.copytree(lab/'runs'/'own_a', folder, symlinks=True)
    assert call(['reproduce', str(folder)]) == 0
    out = capsys.readouterr().out
    assert 'every number of every row is the same' in out and (tmp_path/'elsewhere'/'own_a_again'/'checkpoints'/'last').exists()


@pytest.mark.slow
def test_report_end_to_end(lab, tmp_path, capsys):
    assert call(['report', 'own', '--runs', str(lab/'runs'), '--out', str(tmp_path), '--puzzles', '6', '--target', '.5']) == 0
    folder = tmp_path/'own'
    assert {f.name for f in folder.iterdir()} == {'analysis.ipynb', 'report.html', 'runs.csv', 'experiments.csv', 'table.md', 'table.tex', 'figures'}
    page = (folder/'report.html').read_text()
    assert 'own_c failed at step 0 of 6: out of memory' in page and 'These are not results' in page and 'Deep is good.' in page and page.count('data:image/png') >= 6
    assert {f.stem for f in (folder/'figures').glob('*.pdf')} >= {'members', 'axes', 'frontier', 'learning', 'gap', 'halting', 'hypotheses'}
    assert 'own_b' in capsys.readouterr().out


def test_frontier_by_hand():
    assert pareto([1, 2, 3, 4], [.5, .8, .7, .9]).tolist() == [True, True, False, True]
    assert pareto([3, 2, 1], [.5, .5, .5]).tolist() == [False, False, True]
    assert pareto([1, 1, 2], [.5, .5, .4]).tolist() == [True, True, False]


def test_smallest_by_hand():
    few = smallest([1000, 100, 250, 500], [.90, .60, .80, .90], [.88, .58, .78, .84])
    assert (few.run, few.sure) == (500, 1000) and few.crossing == pytest.approx(250 * 2**.5)  # half of the way, over the logarithm
    assert smallest([100, 250], [.6, .7], target=.85).run is None


def test_spread_and_critical_batch_by_hand():
    assert spread([.8, .9, .85]) == pytest.approx(.05) and math.isnan(spread([.8]))
    groups = pd.DataFrame(dict(batch_size=[64, 16, 32], accuracy=[.70, .85, .85], puzzles=1000))
    assert critical_batch(groups) == 32
    assert critical_batch(groups.assign(puzzles=10)) == 64  # ten puzzles tell nothing apart


def test_equal_depth_by_hand():
    groups = pd.DataFrame(dict(experiment=['l', 'h', 'deep'], H_cycles=[3, 6, 3], L_cycles=[4, 2, 8], L_layers=2, depth=[12, 12, 24], accuracy=[.5, .7, .6], puzzles=1000))
    pairs = at_equal_depth(groups)
    assert len(pairs) == 1 and pairs['more H'][0].startswith('h ') and pairs.difference[0] == pytest.approx(.2) and pairs.low[0] > 0
