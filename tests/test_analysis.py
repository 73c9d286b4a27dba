"""Reports, comparisons and repetitions of real, tiny runs; and the figures of an analysis against hand-computed values."""
import json, math, re, shutil
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from trm_nb.cli import call
from trm_nb.config import load_config
from trm_nb.data.basics import UserError, write_json
from trm_nb.data.sudoku import write_generated
from trm_nb.evaluate.metrics import Score, wilson
from trm_nb.lab.compare import Comparison, Reproduction, compare, deviation, look, measured, reproduce, weigh
from trm_nb.lab.dispatch import How, order
from trm_nb.lab.plots import draw_axes, draw_frontier, draw_gap, draw_halting_steps, draw_learning, draw_members
from trm_nb.lab.report import answers, level, logs, looks, missing, paper_rows, save_tables
from trm_nb.lab.catalogue import build_data, configure, load_catalogue
from trm_nb.lab.results import against_hypotheses, at_equal_depth, by_experiment, critical_batch, pareto, read_run, read_runs, smallest, spread
from trm_nb.models.act import PuzzleShape
from trm_nb.models.zoo import build_model, step_cost
from trm_nb.explore.solver import Solver
from trm_nb.learn.callbacks import Callback
from trm_nb.learn.checkpoint import saved_steps
from trm_nb.run import compose, prepare, work


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
    told = dict(zip(head, rows[1]))
    assert (told['seeds'], told['puzzles'], told['measured at step'], told['steps']) == ('0, 1', '12', '6', '6')
    for text in (files['table.md'], files['table.tex']): assert 'Hardware' in text and 'Commit' in text and '95' in text and 'smoke' in text
    assert r'own\_b' in files['table.tex'] and files['table.tex'].count(r'\\') == 3 and 'own_b' in files['table.md']
    assert '0.87' not in files['table.md'] + files['table.tex'] and '87.0' not in files['table.md']  # a hypothesis is no result


@pytest.fixture(scope='module')
def broken_off(lab, tmp_path_factory):
    "The lab's runs, of which own_a was stopped at step 5 of 6, two steps after its last evaluation."
    root = tmp_path_factory.mktemp('broken')/'runs'
    shutil.copytree(lab/'runs', root, symlinks=True)
    folder = root/'own_a'
    shutil.rmtree(folder)
    config = load_config(lab/'runs'/'own_a', f'runs={root}', 'learn.log_every=1', 'learn.eval_every=3')
    prepare(config)
    trainer = compose(config)
    trainer.callbacks.append(StopAt(5))
    trainer.fit()
    write_json(folder/'status.json', dict(status='stopped', message=''))
    shutil.copy(lab/'runs'/'own_a'/'experiment.json', folder)
    return root


class StopAt(Callback):
    "Lets a training save and leave after a step."
    order = 1
    def __init__(self, step): self.step = step
    def after_step(self, trainer): trainer.stop = trainer.stop or trainer.step_number == self.step


def test_an_unfinished_run_is_told_as_one(broken_off, tmp_path):
    runs = read_runs(broken_off, ['own_a', 'own_b'])
    groups = by_experiment(runs)
    head, rows = paper_rows(groups, runs)
    told = {r[0]: dict(zip(head, r)) for r in rows}
    assert (told['own_a']['measured at step'], told['own_a']['steps']) == ('3', '5 of 6 (stopped)')
    assert (told['own_b']['measured at step'], told['own_b']['steps']) == ('6', '6')
    assert '5 of 6 (stopped)' in save_tables(tmp_path/'t', runs, groups)[2].read_text()
    said = answers(groups)
    assert 'Not finished, so not ranked: own_a' in said[0] and 'at step 3 of 6' in said[0] and not any('own_a' in s for s in said[1:])
    row = read_run(broken_off/'own_a')
    assert row['train_pflop'] == pytest.approx(3 / 6 * read_run(broken_off/'own_b_s1')['train_pflop'] * step_cost(Solver.from_pretrained(broken_off/'own_a').act).training / step_cost(Solver.from_pretrained(broken_off/'own_b_s1').act).training)
    assert row['examples'] == 24 and row['evaluated_at'] == 3


def test_weights_are_those_of_the_figure(broken_off):
    folder = broken_off/'own_a'
    assert {3, 5} <= set(saved_steps(folder/'checkpoints')) and (folder/'checkpoints'/'last').resolve().name == 'step_5'
    weights = lambda step: (folder/'checkpoints'/step/'model.safetensors').read_bytes()
    assert measured(folder) == 'step_3' and weights('step_3') != weights('step_5')
    row = read_run(folder)
    assert look(folder).evaluation.accuracy[:, -1].mean() == pytest.approx(row['cells'], abs=1e-6)
    shutil.rmtree(folder/'checkpoints'/'step_3')
    runs = read_runs(broken_off, ['own_a', 'own_b'])
    seen, unseen = looks(runs, 6)
    assert list(seen) == ['own_b'] and 'own_a was last evaluated at step 3, and that checkpoint is gone (there are 5)' in unseen[0]


def test_side_by_side_at_equal_steps(broken_off):
    frame = read_runs(broken_off, ['own_a', 'own_b'])
    (first, at_step), (second, in_time) = level(broken_off, ['own_a', 'own_b'], frame).items()
    assert 'step 3' in first and set(at_step.evaluated_at) == {3} and 'of training' in second
    there = in_time[in_time.accuracy.notna()]
    assert len(there) and (there.train_seconds <= frame.train_seconds.min()).all()


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


def test_a_run_beside_itself(tmp_path):
    with pytest.raises(UserError, match='twice: name two runs'): compare(tmp_path, f'{tmp_path}/../{tmp_path.name}')

def test_the_interval_is_that_of_paired_data():
    "A run that solves 40 puzzles more and 12 fewer of 8,192: interval and McNemar's p say the same."
    both = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [6990, 40, 12, 1150], 0).astype(bool)
    looks = tuple(SimpleNamespace(evaluation=SimpleNamespace(correct=c[:, None])) for c in both.T)
    said = Comparison((dict(run='a'), dict(run='b')), [], looks).verdict()
    assert re.search(r'difference \+0.3 points \(95%: \+0.2 to \+0.5\)', said) and 'they differ (p = 0.00013)' in said
    namesakes = Comparison((dict(run='a', folder='x/a'), dict(run='a', folder='y/a')), [], looks)
    assert [len(g) for g in namesakes.groups.values()] == [6990, 40, 12, 1150] and namesakes.verdict().startswith('x/a solves 85.8%, y/a 85.5%')


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


def test_a_number_that_is_not_there_is_no_agreement():
    then = [dict(step=1, kind='train', loss=.5, accuracy=.1), dict(step=2, kind='train', loss=.4, accuracy=.2)]
    def told(a, b):
        worst, missing = deviation(a, b)
        return Reproduction(('a', 'b'), [], worst, missing, (Score.of([]),) * 2)
    for last in (dict(loss=math.nan, accuracy=.2), dict(loss=.4), dict(loss=math.inf, accuracy=.2)):
        other = [then[0], dict(step=2, kind='train') | last]
        assert told(other, other).identical
        for pair in ((then, other), (other, then)): assert told(*pair).worst[0] == math.inf and 'do not agree' in told(*pair).verdict()
    assert [told(*pair).missing for pair in ((then, then[:1]), (then[:1], then), (then, then))] == [1, 1, 0]
    assert told(then, [then[0], then[0] | dict(step=3)]).missing == 2


@pytest.mark.slow
def test_reproduce_from_the_folder_alone(lab, tmp_path, capsys):
    folder = tmp_path/'elsewhere'/'own_a'
    shutil.copytree(lab/'runs'/'own_a', folder, symlinks=True)
    assert call(['reproduce', str(folder)]) == 0
    out = capsys.readouterr().out
    assert 'every number of every row is the same' in out and (tmp_path/'elsewhere'/'own_a_again'/'checkpoints'/'last').exists()


def test_a_repetition_tells_nobody(lab, tmp_path, monkeypatch):
    "Neither telemetry nor the Hub nor the mirror hears of a repetition."
    folder, trained = tmp_path/'own_a', []
    shutil.copytree(lab/'runs'/'own_a', folder, symlinks=True)
    loud = load_config(folder, f'run.mirror=file://{tmp_path}/mirror', 'telemetry.sinks=["tensorboard"]', 'auto_publish=me/model')
    (folder/'config.yaml').write_text(loud.to_yaml())
    def train(config, *_, **__):
        trained.append(config)
        shutil.copytree(folder, config.folder, symlinks=True)
    monkeypatch.setattr('trm_nb.lab.compare.train', train)
    assert reproduce(folder).identical
    assert (trained[0].run.mirror, trained[0].auto_publish, trained[0].telemetry.sinks) == (None, None, None)


def test_only_a_repetition_is_thrown_away(lab, tmp_path, monkeypatch):
    "--overwrite makes room where an earlier repetition lies, and nowhere else."
    for name in ('own_a', 'own_b_s0'): shutil.copytree(lab/'runs'/name, tmp_path/name, symlinks=True)
    trained = []
    monkeypatch.setattr('trm_nb.lab.compare.train', lambda config, *_, overwrite: trained.append((config.folder, overwrite)))
    monkeypatch.setattr('trm_nb.lab.compare.weigh', lambda *folders: folders)
    before = {f: f.read_bytes() for f in (tmp_path/'own_b_s0').rglob('*') if f.is_file()}
    with pytest.raises(UserError, match="own_b_s0 is no repetition of .*own_a, its '.*' is another: .*--out"): reproduce(tmp_path/'own_a', tmp_path/'own_b_s0', overwrite=True)
    assert not trained and {f: f.read_bytes() for f in (tmp_path/'own_b_s0').rglob('*') if f.is_file()} == before
    shutil.copytree(tmp_path/'own_a', tmp_path/'own_a_again', symlinks=True)
    reproduce(tmp_path/'own_a', overwrite=True)
    assert trained == [(tmp_path/'own_a_again', True)]


@pytest.mark.slow
def test_reproduce_builds_lost_data(tmp_path, monkeypatch, capsys):
    "An experiment of the catalogue whose puzzles are gone: they are made anew, and every figure comes back."
    monkeypatch.chdir(tmp_path)
    o = order(load_catalogue()['exp04b_0100'], How(runs='runs', data='data'), 'smoke', pairs=['examples=160', 'evaluations=2', 'model.halt_max_steps=2', 'device=cpu'])
    data = build_data(o.experiment, root='data')
    write_json(o.config.folder/'status.json', dict(status=work(prepare(o.config)), message=''))
    write_json(o.config.folder/'experiment.json', o.said)
    shutil.rmtree('data')
    assert call(['reproduce', 'exp04b_0100']) == 0
    said = capsys.readouterr()
    assert f'making {data} anew' in said.err and 'every number of every row is the same' in said.out and data.is_dir()
    shutil.rmtree('data')
    (o.config.folder/'experiment.json').unlink()
    assert call(['reproduce', 'exp04b_0100', '--overwrite']) == 2 and 'nothing says how they were made' in capsys.readouterr().err


@pytest.mark.slow
def test_report_end_to_end(lab, tmp_path, capsys):
    (left := tmp_path/'own/figures/batch.png').parent.mkdir(parents=True)
    left.touch()                                    # a picture of an earlier report, which this one has not
    assert call(['report', 'own', '--runs', str(lab/'runs'), '--out', str(tmp_path), '--puzzles', '6', '--target', '.5']) == 0
    folder = tmp_path/'own'
    assert {f.name for f in folder.iterdir()} == {'analysis.ipynb', 'report.html', 'runs.csv', 'experiments.csv', 'table.md', 'table.tex', 'figures'}
    assert not left.exists()
    page = (folder/'report.html').read_text()
    assert 'own_c failed at step 0 of 6: out of memory' in page and 'These are not results' in page and 'Deep is good.' in page and page.count('data:image/png') >= 6
    assert {f.stem for f in (folder/'figures').glob('*.pdf')} >= {'members', 'axes', 'frontier', 'learning', 'gap', 'halting', 'hypotheses'}
    assert 'own_b' in capsys.readouterr().out


def test_hypotheses_are_measured_as_the_study_means_them(lab):
    runs = read_runs(lab/'runs', ['own_a', 'own_b'])
    groups = by_experiment(runs).assign(budget='full', ms_per_step=[30., 15.], train_seconds=7200., peak_gib=[4., 2.], **{'dataset.train': 24.})
    runs = runs.assign(budget='full')
    of_a = dict(accuracy=0.0, epochs=100, speed=1.0, hours=40, memory=None)
    groups['expects'] = [of_a, of_a | dict(accuracy=1.01, speed=1.8)]
    found = {(r.experiment, r.quantity): (r.measured, r.note) for r in against_hypotheses(groups, runs).itertuples()}
    assert found['own_a', 'epochs to 0%'] == (3 * 8 / 24, 'reached by 1 of 1 runs')  # the first evaluation, not the length of the run
    assert math.isnan(found['own_b', 'epochs to 101%'][0]) and found['own_b', 'epochs to 101%'][1] == 'reached by 0 of 2 runs'
    assert (found['own_a', 'speed'][0], found['own_b', 'speed'][0], found['own_b', 'hours'][0]) == (1, 2, 2)
    assert found['own_b', 'memory'] == (2, 'the study has no figure')


def test_every_family_has_a_panel_for_what_it_varies():
    rows = lambda **columns: pd.DataFrame(dict(experiment=['a', 'b'], family='f', label='', accuracy=[.5, .6], low=[.4, .5], high=[.6, .7], accuracies=[[.5], [.6]], seeds=1) | {k.replace('__', '.'): v for k, v in columns.items()})
    for column, name in (('dataset__num_aug', 'copies of each puzzle'), ('solve_gflop', 'FLOP to solve a puzzle, all ACT steps'), ('dataset__train', 'training puzzles')):
        ax, = draw_axes(rows(**{column: [10, 100]})).axes
        assert ax.get_xlabel() == name
    experiments = load_catalogue()
    costs = [step_cost(build_model(configure(experiments[f'exp05_{c}'], 'smoke').model, PuzzleShape(6, 16))).forward * experiments[f'exp05_{c}'].settings['model.halt_max_steps'] for c in 'ab']
    assert costs[1] == 2 * costs[0]  # what exp05 varies is the cost of an answer


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


def member(experiment, accuracy, family='exp06', budget='full', batch_size=768, train=1000, **varied):
    "An experiment as `by_experiment` has it."
    low, high = map(float, wilson(accuracy * 8192, 8192))
    return dict(experiment=experiment, family=family, budget=budget, label='', finished=True, accuracy=accuracy, low=low, high=high, puzzles=8192., train_seconds=100., depth=18., H_cycles=3, L_layers=2, batch_size=batch_size,
                varied={k.replace('__', '.'): v for k, v in varied.items()}, **{'dataset.train': train})


def test_answers_are_of_what_varies_alone():
    "What else a report holds changes nothing; a family that varies more than the setting says nothing of it."
    batches = [member(f'exp06_{b}', .85, batch_size=b, learn__batch_size=b, learn__lr=b * 1e-7) for b in (384, 768, 1536)]
    few = [member(f'exp04a_{n}', a, 'exp04a', train=n, dataset__train=n) for n, a in ((100, .5), (500, .9))]
    others = [member('few', .10, 'own', train=64, dataset__train=64), member('narrow', .2, 'exp01', batch_size=384, model__hidden_size=64), member('exp06_small', .1, budget='smoke', batch_size=96, learn__batch_size=96)]
    said = lambda rows: [s for s in answers(pd.DataFrame(rows)) if s.startswith(('Critical', 'Training'))]
    batch, = said(batches)
    assert batch == 'Critical batch (exp06, full): no accuracy is surely lost up to a batch of 1,536, the largest that was tried.'
    puzzles, = said(few)
    assert puzzles.startswith('Training puzzles (exp04a, full): 85% was reached with 500; the line')
    assert said([*batches, *few, *others]) == [puzzles, batch] and said(others) == []
    base = member('baseline', .84, 'baseline', train=1000)
    assert said([few[0], base]) == ['Training puzzles (exp04a, full): 85% was not reached.']
    same = [*few, member('exp04a_1000', .95, 'exp04a', dataset__train=1000)]
    assert said([*same, base]) == said(same)
    both = [member(f'x{b}{r}', .8, 'x', batch_size=b, learn__batch_size=b, learn__lr=r) for b in (8, 16) for r in (1e-3, 1e-4)]
    assert said(both) == []  # at each batch two rates: which of them would speak for it?


def test_equal_depth_by_hand():
    groups = pd.DataFrame(dict(experiment=['l', 'h', 'deep'], H_cycles=[3, 6, 3], L_cycles=[4, 2, 8], L_layers=2, depth=[12, 12, 24], accuracy=[.5, .7, .6], puzzles=1000))
    pairs = at_equal_depth(groups)
    assert len(pairs) == 1 and pairs['more H'][0].startswith('h ') and pairs.difference[0] == pytest.approx(.2) and pairs.low[0] > 0
