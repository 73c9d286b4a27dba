"""The catalogue against the study that it describes: names, what each family varies, budgets, mistakes."""
import json
from pathlib import Path
import numpy as np
import pytest
import torch
import yaml
from trm_nb.cli import call
from trm_nb.config import flatten, load_config
from trm_nb.data.basics import UserError
from trm_nb.data.format import PuzzleDataset
from trm_nb.data.resources import experiments_path
from trm_nb.lab.catalogue import budget_changes, build_data, built, choose, configure, grid, listing, load_catalogue, parse_grid, plan, read_catalogue
from trm_nb.learn.trainer import LearnSettings, Trainer
from trm_nb.data.loader import TrainLoader
from trm_nb.data.sudoku import generate_sudoku_set, write_generated
from trm_nb.models.act import PuzzleShape
from trm_nb.models.zoo import build_model
from trm_nb.run import compose, prepare

ATAN = 'adam_atan2'
DOCUMENT = { # family: (settings, {experiment: their values}), as the study's tables have them
    'exp01': (('model.hidden_size', 'model.num_heads'), dict(exp01a=(256, 4), exp01b=(384, 6), exp01c=(512, 8), exp01d=(768, 8), exp01e=(1024, 8), exp01f=(1536, 8))),
    'exp02a': (('model.L_cycles',), {f'exp02a_0{i}': (v,) for i, v in enumerate((2, 4, 6, 8, 10, 12), 1)}),
    'exp02b': (('model.H_cycles',), {f'exp02b_0{i}': (i,) for i in range(1, 6)}),
    'exp03': (('model.L_layers', 'model.L_cycles'), dict(exp03a=(1, 12), exp03b=(2, 6), exp03c=(3, 4), exp03d=(4, 3), exp03e=(6, 2))),
    'exp04a': (('dataset.train',), {f'exp04a_{n}': (n,) for n in (100, 250, 500, 1000, 2000, 5000)}),
    'exp04b': (('dataset.num_aug',), {f'exp04b_{n:04}': (n,) for n in (10, 100, 500, 1000, 2000)}),
    'exp05': (('model.halt_max_steps',), {f'exp05_{c}': (n,) for c, n in zip('abcdef', (4, 8, 12, 16, 24, 32))}),
    'exp06': (('learn.batch_size', 'learn.lr'), dict(exp06_a=(1536, 5e-5), exp06_b=(3072, 7e-5), exp06_c=(6144, 1e-4), exp06_d=(12288, 1.4e-4), exp06_e=(24576, 2e-4), exp06_f=(49152, 2.8e-4))),
    'exp07': (('model.forward_dtype',), dict(exp07a=('float32',), exp07b=('bfloat16',), exp07c=('float16',))),
    'exp08': (('learn.ema',), dict(exp08a=(None,), exp08b=(0.99,), exp08c=(0.995,), exp08d=(0.999,), exp08e=(0.9995,))),
    'exp09': (('learn.optimiser', 'learn.betas'), dict(exp09a=(ATAN, [0.9, 0.95]), exp09b=('adamw', [0.9, 0.95]), exp09c=('adamw', [0.9, 0.99]), exp09d=('adamw', [0.9, 0.999]), exp09e=('lion', [0.9, 0.99]))),
    'exp10': (('learn.lr', 'learn.lr_min_ratio'), dict(exp10a=(3e-5, 1.0), exp10b=(1e-4, 1.0), exp10c=(3e-4, 1.0), exp10d=(1e-4, 0.1), exp10e=(1e-4, 0.01))),
    'contrib02': (('model.halt_exploration_prob', 'learn.exploration_end'), dict(contrib02_baseline=(0.1, None), contrib02_adaptive=(0.3, 0.05))),
}
BASELINE = {'model.hidden_size': 512, 'model.num_heads': 8, 'model.L_layers': 2, 'model.H_cycles': 3, 'model.L_cycles': 6, 'model.halt_max_steps': 16, 'model.mlp_t': False, 'model.pos_encodings': 'rope',
            'learn.batch_size': 6144, 'learn.lr': 1e-4, 'learn.lr_min_ratio': 1.0, 'learn.ema': 0.999, 'learn.optimiser': ATAN, 'learn.steps': round(50_000 * 1000 / 6144)}

@pytest.fixture(scope='module')
def experiments(): return load_catalogue()

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def settings(experiment, budget='full'):
    "What a run of it is told, and how its puzzles are made, by dotted keys."
    said = listing([experiment], budget)[0]
    return flatten(said['settings'] | dict(dataset=said['dataset']))

def test_names(experiments):
    named = [n for _, members in DOCUMENT.values() for n in members] + ['contrib01_baseline', 'contrib01_curriculum', 'baseline']
    assert sorted(named) == sorted(experiments) and len(experiments) == 68
    assert len({e.family for e in experiments.values()} - {'baseline'}) == 14

def test_baseline(experiments):
    found = settings(experiments['baseline'])
    assert {k: found[k] for k in BASELINE} == BASELINE
    assert (found['dataset.train'], found['dataset.num_aug']) == (1000, 1000)

@pytest.mark.parametrize('family', DOCUMENT)
def test_varied(experiments, family):
    keys, members = DOCUMENT[family]
    base = settings(experiments['baseline'])
    follow = {'name', 'data.path', 'model.puzzle_emb_ndim'} | ({'learn.steps', 'learn.warmup_steps', 'learn.eval_every'} if family == 'exp06' else set())
    for name, values in members.items():
        found = settings(experiments[name])
        assert tuple(found[k] for k in keys) == values and experiments[name].family == family
        assert {k for k in found if found[k] != base.get(k)} <= {*keys, *follow}, 'nothing else differs from the baseline'

def test_curriculum_becomes_deeper(experiments):
    assert configure(experiments['contrib01_baseline']).learn.curriculum == []
    stages = configure(experiments['contrib01_curriculum']).learn.curriculum
    depths = [(s.H_cycles, s.L_cycles) for s in stages] + [(3, 6)]
    assert len(stages) > 1 and depths == sorted(depths)

def test_mixer():
    assert configure(load_catalogue(model='mixer')['exp02a_01']).model.mlp_t
    with pytest.raises(UserError, match="did you mean 'mixer'"): load_catalogue(model='mixr')

@pytest.mark.parametrize('budget', ['short', 'smoke'])
def test_budgets_keep_what_is_varied(experiments, budget):
    "Members of a family stay apart, and nothing changes that the budget does not list."
    listed = read_catalogue().budgets[budget]
    allowed = {*listed.set, *listed.scale, *listed.power, *listed.recipe}
    for family, (keys, members) in DOCUMENT.items():
        told = [settings(experiments[n], budget) for n in members]
        apart = [tuple(map(str, (t[k] for k in keys))) for t in told]
        assert len(set(apart)) == len(apart), family
        for name in members:
            changed = budget_changes(experiments[name], budget)
            assert set(changed) <= allowed
            assert not set(changed) & set(keys) & {*listed.set, *listed.recipe}
            assert all(k in listed.scale or k in listed.power for k in set(changed) & set(keys))

LENGTHS = {'examples', 'warmup_examples', 'evaluations'}
FOLLOW = {'learn.steps', 'learn.warmup_steps', 'learn.eval_every', 'data.path'} # from the lengths, the batch and the dataset

@pytest.mark.parametrize('budget', ['short', 'smoke'])
def test_budgets_list_exactly_what_they_change(here, capsys, budget):
    "The config of every run differs from the study's in the keys under `changes`, and in nothing else."
    def dry(budget):
        assert call(['run', '--pattern', '.', '--budget', budget, '--dry-run', '--json']) == 0
        return {r['run']: r for r in json.loads(capsys.readouterr().out)}
    study, cut = dry('full'), dry(budget)
    for name, r in cut.items():
        a, b = (flatten(x['config'] | dict(dataset=x['dataset'])) for x in (study[name], r))
        differs = {k for k in a | b if a.get(k) != b.get(k)}
        assert differs - FOLLOW == {k for k in r['changes'] if k not in LENGTHS}, name
        assert all(b.get(k, r.get(k)) == after for k, (before, after) in r['changes'].items())
        assert all(before != after for before, after in r['changes'].values()) and not study[name]['changes']

def test_short_recipe_is_that_of_minutes(experiments):
    "The recipe of the preset that was made for minutes; families that vary a part of it keep the study's."
    fast, short = (flatten(c.model_dump()) for c in (load_config('sudoku-extreme-fast'), configure(experiments['exp02a_01'], 'short')))
    keys = ('learn.loss.name', 'learn.loss.label_smoothing', 'learn.loss.q_weight', 'model.gate_norm', 'learn.optimiser', 'learn.lr_min_ratio', 'learn.ema')
    assert {k: short[k] for k in keys} == {k: fast[k] for k in keys} and short['learn.loss.name'] == 'softmax'
    for name in ('exp06_a', 'exp08b', 'exp09b', 'exp10d'):
        c = configure(experiments[name], 'short')
        assert (c.learn.loss.name, c.model.gate_norm) == ('stablemax', False)

def test_smoke_keeps_ratios(experiments):
    batch = [settings(experiments[f'exp06_{c}'], 'smoke')['learn.batch_size'] for c in 'abcdef']
    assert batch == [4, 8, 16, 32, 64, 128]
    rates = [settings(experiments[f'exp10{c}'], 'smoke')['learn.lr'] for c in 'abc']
    assert np.allclose(np.array(rates) / rates[1], [0.3, 1, 3])

def test_hypotheses_are_apart(experiments):
    said = json.loads(json.dumps(listing(list(experiments.values()))))
    assert len(said) == 68 and all('accuracy' in s['hypotheses'] or 'halting_steps' in s['hypotheses'] for s in said)
    assert not any('expect' in k or 'hypothes' in k for s in said for k in flatten(s['settings']))

@pytest.mark.parametrize('names, says', [(['exp1a'], 'exp01a'), (['basline'], 'baseline'), (['exp01a', 'exp01a'], 'named twice'), (['zzzz'], '--pattern')])
def test_wrong_names(experiments, names, says):
    with pytest.raises(UserError, match=says): choose(experiments, names)

@pytest.mark.parametrize('extra, says', [('learn.lrr=1', "did you mean 'lr'"), ('learn.lr=fast', 'learn.lr'), ('dataset.trian=5', "did you mean 'train'"), ('model.L_cycles=3', 'is what exp02a varies'),
                                         ('evaluations=0', 'evaluations'), ('model.num_heads=7', 'RoPE|num_')])
def test_wrong_settings(experiments, extra, says):
    with pytest.raises(UserError, match=says): configure(experiments['exp02a_01'], extra=[extra])

def test_unknown_budget(experiments):
    with pytest.raises(UserError, match="did you mean 'smoke'"): configure(experiments['baseline'], 'smok')

def changed_file(tmp_path, change):
    "A catalogue of one's own."
    values = yaml.safe_load(experiments_path('catalogue.yaml').read_text())
    change(values)
    file = tmp_path/'catalogue.yaml'
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file

@pytest.mark.parametrize('change, says', [
    (lambda v: v['families']['exp02b']['members'].update(exp02a_01=[1, 6, 0.8]), "'exp02a_01' is used twice"),
    (lambda v: v['families']['exp02b']['members'].update(exp02b_06=[1]), 'exp02b_06: 1 values'),
    (lambda v: v['families']['exp02b'].update(varies=[1]), "did you mean 'vary'"),
    (lambda v: v.pop('families'), 'no families')])
def test_wrong_catalogue(tmp_path, change, says):
    with pytest.raises(UserError, match=says): load_catalogue(changed_file(tmp_path, change))

def test_key_twice_in_file(tmp_path):
    file = tmp_path/'catalogue.yaml'
    file.write_text(experiments_path('catalogue.yaml').read_text().replace('exp02a_02:', 'exp02a_01:'))
    with pytest.raises(UserError, match="names 'exp02a_01' twice"): load_catalogue(file)

def test_datasets_are_shared_and_nested(experiments, tmp_path):
    folders = {n: build_data(experiments[n], 'smoke', tmp_path) for n in ('baseline', 'exp02a_01', 'exp04a_100', 'exp04a_500')}
    assert folders['baseline'] == folders['exp02a_01'] and len(set(folders.values())) == 3
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
    rows = lambda n, split: {bytes(r) for r in np.asarray(PuzzleDataset.read(folders[n], split).merged.inputs)}
    assert rows('exp04a_100', 'train') < rows('exp04a_500', 'train') and rows('exp04a_100', 'test') == rows('baseline', 'test')
    assert built(folders['exp04a_500'])['generated'] == 50

def test_full_disk(experiments, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda p: type('Usage', (), dict(free=1000)))
    with pytest.raises(UserError, match='MiB are needed, the disk has 0.00 MiB left'): build_data(experiments['exp04a_5000'], root=tmp_path)
    assert not list(tmp_path.iterdir())

def test_plan(experiments, tmp_path):
    rows = plan(list(experiments.values()))
    assert [r.family for r in rows[:2]] == ['baseline', 'exp01'] and sum(bool(r.same_as) for r in rows) == 14
    by = {r.name: r for r in rows}
    assert by['exp06_f'].steps * 48 == pytest.approx(by['exp06_a'].steps * 1536, rel=1) and by['exp01f'].hours > by['exp01a'].hours
    assert 'assumed' in by['exp07a'].basis and 'assumed' not in by['baseline'].basis
    file = tmp_path/'ms.json'
    file.write_text(json.dumps(dict(baseline=1000)))
    mine = plan([experiments['baseline']], ms_per_step=file)[0]
    assert mine.ms_per_step == 1000 and mine.hours == pytest.approx(mine.steps / 3600, rel=0.1)

def test_plan_counts_the_puzzles_that_are_tested(experiments):
    hours = [plan([experiments['baseline']], extra=[f'evaluate.max_puzzles={n}'] if n else [])[0].hours for n in (1, 64, 8192, 10**6, None)]
    assert hours[0] < hours[1] < hours[2] == hours[3] == hours[4]

def test_plan_command(here, capsys):
    "Seeds and GPUs count, measured rates are taken, and what does not fit is refused."
    def told(*args):
        assert call(['run', 'exp02a_01', 'exp01c', '--plan', '--json', *args]) == 0
        return json.loads(capsys.readouterr().out)
    one, three = told(), told('--seeds', '3', '--nproc', '8')
    assert [r['name'] for r in one] == ['exp01c', 'exp02a_01'] and [r['hours'] for r in one] == [r['hours'] for r in three]
    assert [(r['runs'], r['gpus'], r['checkpoints']) for r in three] == [(3, 8, 3 * r['checkpoints']) for r in one]
    Path('rates.json').write_text(json.dumps({'exp02a_01': 1000, 'exp01c': 500, 'demo_lr0.001': 10, 'demo_lr0.002': 20}))
    assert {r['name']: r['ms_per_step'] for r in told('--rates', 'rates.json')} == dict(exp02a_01=1000, exp01c=500)
    assert call(['run', 'exp01c', '--plan', '--seeds', '4', '--nproc', '2', '--rates', 'rates.json']) == 0
    said = capsys.readouterr().out
    assert '1 experiment with 4 seeds each, 4 runs' in said and '2 GPUs a run' in said and '500.0' in said.splitlines()[1]
    write_generated('data/demo', size=6, train=20, test=10, seed=0)
    assert call(['sweep', 'demo', '--grid', 'learn.lr=1e-3,2e-3', '--seeds', '2', '--plan', '--json', '--rates', 'rates.json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r['name'], r['ms_per_step'], r['runs']) for r in rows] == [('demo_lr0.001', 10, 2), ('demo_lr0.002', 20, 2)] and rows[1]['hours'] == pytest.approx(2 * rows[0]['hours'])
    for args, words in ((['run', 'exp01c', '--rates', 'rates.json'], '--rates rates.json: it is for --plan'), (['run', 'exp01d', '--plan', '--rates', 'rates.json'], "no time is known for 'exp01d'"),
                        (['run', 'exp01c', '--plan', '--rates', 'nowhere.json'], 'nowhere.json: cannot be read'), (['run', 'exp01c', '--plan', '--seeds', '0'], '--seeds 0'), (['sweep', 'maze-hard', '--grid', 'seed=1,2', '--plan'], 'there is no folder')):
        assert call(args) == 2 and words in capsys.readouterr().err
    assert not Path('runs').exists()

def test_grid():
    found = grid('demo', parse_grid(['learn.lr=1e-4,3e-4', 'learn.optimiser=adamw,lion']))
    assert len(found) == 4 and found[0].name == 'demo_lr0.0001_optimiseradamw' and configure(found[0]).learn.lr == 1e-4
    with pytest.raises(UserError, match='used twice'): grid('demo', {'seed': [1, 1]})

@pytest.mark.slow
@pytest.mark.parametrize('name', ['contrib01_curriculum', 'exp07c'])
def test_smoke_trains(experiments, name, tmp_path):
    build_data(experiments[name], 'smoke', tmp_path)
    config = configure(experiments[name], 'smoke', runs=str(tmp_path/'runs'), data_root=str(tmp_path), extra=['examples=64', 'model.halt_max_steps=2', 'evaluations=1'])
    prepare(config)
    trainer = compose(config)
    trainer.fit()
    rows = [json.loads(l) for l in (config.folder/'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['kind'] == 'eval' and (config.folder/'checkpoints'/'best'/'model.safetensors').is_file()
    assert ('L_cycles' in rows[0]) == (name == 'contrib01_curriculum') and ('loss_scale' in rows[0]) == (name == 'exp07c')

def test_depth_never_replays_another_graph(monkeypatch):
    "Each depth has a recording of its own: what is replayed is as deep as the step."
    made = []
    class Tape:
        def __init__(self, function, device): self.function, self.depth, _ = function, None, made.append(self)
        def __call__(self, *args):
            now = inner.cycles
            assert self.depth in (None, now), 'a recording of another depth was used'
            self.depth = now
            return self.function(*args)
    monkeypatch.setattr('trm_nb.learn.trainer.Replay', Tape)
    monkeypatch.setattr('trm_nb.learn.trainer.fuse', lambda inner: True)
    data = generate_sudoku_set(4, 16)
    small = dict(name='trm', hidden_size=16, num_heads=2, puzzle_emb_ndim=0, puzzle_emb_len=1, H_cycles=2, L_cycles=2, L_layers=1, halt_max_steps=2)
    stages = [dict(until=0.25, H_cycles=1, L_cycles=1), dict(until=0.5, H_cycles=1, L_cycles=2)]
    trainer = Trainer(build_model(small, PuzzleShape(6, 16)), TrainLoader(data, 4), LearnSettings(steps=8, batch_size=4, micro_batch=2, curriculum=stages))
    inner = trainer.act.inner
    for _ in range(8): trainer.step()
    assert [t.depth for t in made] == [None, (1, 1), (1, 2), (2, 2)] and inner.depth is None

def test_exploration_fades():
    "As many sequences are held back as the present probability says, though the model's own stays."
    data, held = generate_sudoku_set(4, 16), []
    model = build_model(dict(name='trm', hidden_size=16, num_heads=2, puzzle_emb_ndim=0, puzzle_emb_len=1, H_cycles=1, L_cycles=1, L_layers=1, halt_exploration_prob=0.6), PuzzleShape(6, 16))
    trainer = Trainer(model, TrainLoader(data, 16), LearnSettings(steps=10, batch_size=16, exploration_end=0.0))
    for step in (1, 5, 10):
        trainer.step_number = step
        u = trainer._explored(torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)))
        held.append(float((u[:, 0] < model.settings.halt_exploration_prob).float().mean()))
    assert np.allclose(held, [0.54, 0.3, 0.0], atol=0.02)
