"""Telemetry as sinks keep it: a real wandb log, TensorBoard's events and trackio's database, read back."""
import importlib.util, io, json, os, re, signal, subprocess, sys, time
import numpy as np
import pytest
import torch
from PIL import Image
from trm_nb.config import load_config
from trm_nb.data.format import PuzzleDataset
from trm_nb.data.sudoku import write_generated
from trm_nb.evaluate.evaluator import EvaluateSettings
from trm_nb.learn import telemetry
from trm_nb.learn.checkpoint import saved_steps
from trm_nb.learn.launch import Ranks, torchrun_command
from trm_nb.models.zoo import build_model, parameters
from trm_nb.run import compose, prepare, shape_of, work

sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'tooling'))
from wandb_log import read_logs

pytestmark = pytest.mark.xdist_group('telemetry')

def needs(package): return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f'{package} is not installed')

SILENT = dict.fromkeys(('WANDB_MODE', 'WANDB_DISABLED', 'WANDB_PROJECT', 'WANDB_ENTITY', 'USE_TRI_CALLBACKS'), '')

@pytest.fixture(autouse=True, scope='module')
def environment():
    "Nothing of the machine's own wandb settings counts; what a run sets goes with the module."
    with pytest.MonkeyPatch.context() as m:
        for name, value in SILENT.items(): m.setenv(name, value)
        for name in ('WANDB_DATA_DIR', 'WANDB_CACHE_DIR', 'TRACKIO_DIR'): m.setenv(name, ''), m.delenv(name)
        yield

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'sudoku4'
    write_generated(folder, size=4, train=64, test=24, seed=0)
    np.save(folder/'test'/'all__ratings.npy', np.arange(24.))
    return folder

@pytest.fixture(scope='module')
def configure(data, tmp_path_factory):
    "Makes the config of a tiny run."
    runs = tmp_path_factory.mktemp('runs')
    def make(name, *pairs):
        return load_config('demo', f'data.path={data}', f'runs={runs}', f'name={name}', 'device=cpu', 'model.hidden_size=32', 'model.num_heads=2', 'model.puzzle_emb_ndim=32', 'model.H_cycles=1', 'model.L_cycles=1',
                           'model.halt_max_steps=4', 'learn.batch_size=16', 'learn.steps=20', 'learn.log_every=5', 'learn.eval_every=10', 'learn.warmup_steps=4', 'learn.lr=3e-3', 'telemetry.mode=offline', *pairs)
    return make

def trained(config):
    "Train in this process."
    prepare(config)
    assert work(config.folder) == 'done'
    return config

@pytest.fixture(scope='module')
def run(configure):
    "A run with wandb and TensorBoard, and a copy of the code."
    names = [n for n in ('wandb', 'tensorboard') if importlib.util.find_spec(n)]
    return trained(configure('told', f'telemetry.sinks={names}', 'telemetry.code=true', 'telemetry.samples=2', 'telemetry.tags=[small]', 'telemetry.project=puzzles'))

@pytest.fixture(scope='module')
def log(run):
    pytest.importorskip('wandb')
    found, = read_logs(run.folder)
    return found

def steps(log): return [row['_step'] for row in log.rows]

# wandb

def test_config_is_told(log, run, data):
    "All settings, and what else made the run."
    config = run.model_dump(mode='json')
    assert {k: log.config[k] for k in config} == config
    train = PuzzleDataset.read(data, 'train')
    assert log.config['parameters'] == parameters(build_model(run.model, shape_of(train)))
    known = log.config['made_with']
    assert known['config_hash'] == run.hash and known['data']['fingerprint'] == train.fingerprint() and known['versions']['torch'] == torch.__version__ and known['hardware'] and 'commit' in known
    assert (log.project, log.name, log.exit) == ('puzzles', 'told', 0)

def test_numbers_equal_the_run_s_own(log, run):
    "One row a step; the numbers are those of metrics.jsonl."
    assert steps(log) == [row['train/step'] for row in log.rows] == [0, 5, 10, 15, 20]
    by_step = {row['_step']: row for row in log.rows}
    own = [json.loads(l) for l in (run.folder/'metrics.jsonl').read_text().splitlines()]
    for row in own:
        prefix = dict(train='train', eval='eval')[row.pop('kind')]
        told = by_step[row.pop('step')]
        for k, v in row.items():
            if v is not None: assert told[f'{prefix}/{k}'] == pytest.approx(v), (prefix, k)
    assert len(own) == 6
    for step in (5, 10, 15, 20): assert {'train/loss', 'train/lr', 'train/puzzle_lr', 'train/examples', 'train/epoch', 'speed/ms_per_step', 'speed/examples_per_second', 'speed/tflops', 'speed/host_gib', 'gradient/all', 'gradient/highest', 'gradient/L_level', 'gradient/lm_head'} <= set(by_step[step])
    for step in (10, 20): assert {'eval/exact_accuracy', 'eval/confidence', 'eval/calibration_error', 'eval/by_step/01', 'eval/by_step/04'} <= set(by_step[step])
    assert sum(k.startswith('eval/by_rating/') for k in by_step[20]) == 5

def test_gradient_norms_are_right(configure):
    "As torch's own norm says, averaged over the steps of a stretch."
    config = configure('norms', 'evaluate.evaluators=[]')
    prepare(config)
    trainer = compose(config)
    norms, seen = telemetry.GradientNorms(trainer.act), []
    for _ in range(3):
        trainer.step()
        norms.add()
        seen.append([trainer.gradients.norm().item(), torch.cat([p.grad.flatten() for p in trainer.act.inner.L_level.parameters()]).norm().item()])
    found = norms.take()
    assert [found['gradient/all'], found['gradient/L_level']] == pytest.approx(np.mean(seen, 0).tolist(), rel=1e-5)
    assert found['gradient/highest'] == pytest.approx(max(s[0] for s in seen), rel=1e-5)

def test_histograms(log):
    "ACT steps of every test puzzle, and q_halt's confidence."
    row = log.rows[-1]
    for name, bins in (('eval/ACT_steps', 4), ('eval/q_halt_confidence', 20)):
        assert row[name]['_type'] == 'histogram' and len(row[name]['values']) == bins and sum(row[name]['values']) == 24
    assert row['eval/ACT_steps']['bins'] == [.5, 1.5, 2.5, 3.5, 4.5]

def pictures(run, row, name):
    folder, = run.folder.glob('wandb/offline-run-*/files')
    return [Image.open(folder/f) for f in row[name]['filenames']]

def test_images(log, run):
    "The model at the beginning; five charts and the sample puzzles at each evaluation: they are there, and show something."
    assert log.rows[0]['model/weights']['_type'] == 'table-file'
    charts = {'charts/steps_and_difficulty': 1, 'charts/confidence': 1, 'charts/by_cell': 1, 'charts/by_puzzle': 1, 'charts/samples': 2}
    found = {(row['_step'], name): pictures(run, row, name) for row in log.rows for name in row if name.startswith('charts/') or name == 'model/diagram'}
    assert {k: len(v) for k, v in found.items()} == {(0, 'model/diagram'): 1} | {(s, n): c for s in (10, 20) for n, c in charts.items()}
    for images in found.values():
        for image in images: assert min(image.size) > 100 and np.asarray(image.convert('L')).std() > 5
    captions = log.rows[-1]['charts/samples']['captions']
    assert len(captions) == 2 and all('solved' in c for c in captions)

def test_artifacts(log, run):
    "Each checkpoint once, with step and time in its name, what is known of it, and aliases; the code."
    of_kind = lambda kind: [a for a in log.artifacts if a['type'] == kind]
    (code,), models = of_kind('code'), of_kind('model')
    assert 'trm_nb/learn/telemetry.py' in code['files'] and code['name'] == 'code-told' and len(models) == 2
    best = json.loads((run.folder/'checkpoints/best/metadata.json').read_text())['step']
    for step, m in zip((10, 20), models):
        folder = run.folder/f'checkpoints/step_{step}'
        assert m['name'].startswith(f'told-step_{step}-20') and set(m['files']) == {'model.safetensors', 'metadata.json', 'config.yaml'}
        assert m['metadata'] == json.loads((folder/'metadata.json').read_text()) and m['metadata']['step'] == step
        assert m['files']['model.safetensors'] == (folder/'model.safetensors').stat().st_size
    assert [set(m['aliases']) for m in models] == [{'latest', 'best'}, {'latest', 'best'} if best == 20 else {'latest'}]

def test_summary_names_the_best(log, run):
    best = log.summary['best'] if 'best' in log.summary else {k.removeprefix('best/'): v for k, v in log.summary.items() if k.startswith('best/')}
    metadata = json.loads((run.folder/'checkpoints/best/metadata.json').read_text())
    assert (best['step'], best['metric'], best['value']) == (metadata['step'], 'exact_accuracy', metadata['evaluation']['exact_accuracy'])
    assert best['path'] == str(run.folder/'checkpoints'/f"step_{metadata['step']}") and os.path.isdir(best['path'])

def test_no_key_is_offline(configure, monkeypatch, capfd):
    "Online without a key neither asks nor fails."
    pytest.importorskip('wandb')
    monkeypatch.delenv('WANDB_API_KEY', raising=False)
    monkeypatch.setattr(telemetry, '_has_key', lambda wandb: False)
    config = trained(configure('keyless', 'telemetry.sinks=[wandb]', 'telemetry.mode=online', 'learn.steps=5', 'evaluate.evaluators=[]', 'telemetry.artifacts=false'))
    assert 'no WANDB_API_KEY' in capfd.readouterr().err
    log, = read_logs(config.folder)
    assert steps(log) == [0, 5] and not any(a['type'] == 'model' for a in log.artifacts)

def lines(capfd): return re.findall(r'telemetry: [^\r\n]*', capfd.readouterr().err) # also behind what a progress bar left

def test_absent_wandb_is_one_line(configure, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    trained(configure('absent', 'telemetry.sinks=[wandb]', 'learn.steps=5', 'evaluate.evaluators=[]'))
    assert lines(capfd) == ['telemetry: wandb: wandb is not installed: pip install "trm_nb[wandb]"; training goes on']

@pytest.mark.parametrize('variables, pairs, told', [
    ({}, [], False), (dict(USE_TRI_CALLBACKS='true'), [], True), (dict(USE_TRI_CALLBACKS='true', WANDB_DISABLED='true'), ['telemetry.mode=null'], False),
    (dict(USE_TRI_CALLBACKS='true', WANDB_DISABLED='true'), [], True), (dict(USE_TRI_CALLBACKS='true'), ['telemetry.sinks=[]'], False), (dict(USE_TRI_CALLBACKS='true'), ['telemetry.mode=disabled'], False),
    (dict(USE_TRI_CALLBACKS='true', WANDB_MODE='disabled'), ['telemetry.mode=null'], False)])
def test_on_or_off(variables, pairs, told, configure, monkeypatch):
    "A config wins over the environment, the environment over the default, which is off."
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    config = configure('switch', *pairs)
    if not config.folder.exists(): prepare(config)
    assert any(isinstance(c, telemetry.Telemetry) for c in compose(config).callbacks) == told

def test_collectives_do_not_depend_on_it(configure, monkeypatch):
    "What ranks send each other in an evaluation is the same with and without telemetry, and on a rank that has none."
    sent = []
    monkeypatch.setattr(Ranks, 'gather', lambda self, x: sent.append((tuple(x.shape), x.dtype)) or x)
    monkeypatch.setattr(Ranks, 'sum_', lambda self, x: sent.append((tuple(x.shape), 'sum')) or x)
    found = []
    for name, sinks in (('without', '[]'), ('with', '[memory]')):
        monkeypatch.setitem(telemetry.SINKS, 'memory', telemetry.Sink)
        config = configure(f'{name}_others', f'telemetry.sinks={sinks}', 'learn.steps=10', 'telemetry.charts=false')
        trained(config)
        found.append(list(sent))
        sent.clear()
    assert found[0] == found[1] and found[0]
    assert not any(isinstance(c, telemetry.Telemetry) for c in compose(config, Ranks(rank=1, world=2)).callbacks)

def test_large_checkpoint_is_not_sent(configure, monkeypatch, capfd):
    sent = []
    class Memory(telemetry.Sink):
        def artifact(self, name, *_): sent.append(name)
    monkeypatch.setitem(telemetry.SINKS, 'memory', Memory)
    trained(configure('large', 'telemetry.sinks=[memory]', 'learn.steps=5', 'telemetry.artifact_mib=0.01', 'evaluate.evaluators=[]'))
    assert sent == [] and 'artifact_mib' in lines(capfd)[0]

def test_alias_leaves_the_checkpoint_before():
    "With a server, `best` and `latest` are taken from the artifact that had them."
    class Sent:
        def __init__(self, aliases): self.aliases, self.saved = list(aliases), 0
        def wait(self): return self
        def save(self): self.saved += 1
    class Handle:
        offline = False
        def log_artifact(self, made, aliases): return Sent(aliases)
    sink = object.__new__(telemetry.WandbSink)
    sink.handle, sink.named, sink.wandb = Handle(), {}, type('wandb', (), dict(Artifact=lambda *a, **k: None))
    held = []
    for aliases in (['latest', 'best'], ['latest'], ['latest', 'best']):
        sink.artifact('x', 'model', {}, {}, aliases)
        held.append(sink.named['latest'])
    assert [a.aliases for a in held] == [[], [], ['latest', 'best']] and [a.saved for a in held] == [2, 1, 0]

# killed and resumed

def kill_after(config, step):
    "Start a run of one process, and kill -9 it, and all it has started, once wandb's log on disk is past `step`."
    prepare(config)
    with open(config.folder/'out', 'wb') as out: run = subprocess.Popen([sys.executable, '-m', 'trm_nb.run', str(config.folder)], start_new_session=True, stdout=out, stderr=out)
    while not any(max(steps(log), default=0) > step for log in read_logs(config.folder)):
        assert run.poll() is None, (config.folder/'out').read_text()
        time.sleep(.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()

@pytest.mark.slow
@needs('wandb')
def test_killed_and_resumed(configure):
    "One run id, no step twice, and what is missing is no more than what half a second holds."
    config = configure('killed', 'telemetry.sinks=[wandb]', 'learn.steps=400', 'learn.log_every=2', 'learn.save_every=150', 'learn.eval_every=150', 'telemetry.artifacts=false')
    kill_after(config, 160)
    first, = read_logs(config.folder)
    saved = saved_steps(config.folder/'checkpoints')[-1]
    assert saved == 150 and first.exit is None
    prepare(config, resume=True)
    assert work(config.folder, resume=True) == 'done'
    first, second = read_logs(config.folder)
    assert first.id == second.id == json.loads((config.folder/'telemetry.json').read_text())['id']
    told = steps(first) + steps(second)
    assert told == sorted(set(told)), 'a step is there twice'
    own = {r['step'] for r in map(json.loads, (config.folder/'metrics.jsonl').read_text().splitlines())}
    assert set(told) - {0} <= own and own - set(told) <= set(range(max(steps(first)) + 1, min(steps(second))))
    assert max(steps(first)) > saved, 'the test means something only if steps were taken twice'
    assert {s for s in told if any(r['_step'] == s and 'eval/exact_accuracy' in r for r in first.rows + second.rows)} >= {150, 400}

@pytest.mark.slow
@needs('wandb')
def test_stopped_and_resumed(configure):
    "A run that was asked to stop leaves nothing out: all steps, each once."
    config = configure('stopped', 'telemetry.sinks=[wandb]', 'learn.steps=12', 'learn.log_every=2', 'learn.eval_every=6')
    trained(config)
    longer = configure('stopped', 'telemetry.sinks=[wandb]', 'learn.steps=20', 'learn.log_every=2', 'learn.eval_every=6')
    prepare(longer, resume=True)
    work(longer.folder, resume=True)
    first, second = read_logs(config.folder)
    assert first.id == second.id and steps(first) + steps(second) == list(range(0, 21, 2))
    assert json.loads((config.folder/'telemetry.json').read_text())['history'][-1][0] == 20 and second.summary['last/step'] == 20

@pytest.mark.slow
@needs('wandb')
def test_two_ranks(configure):
    "The first rank alone tells, for all puzzles of both."
    config = configure('pair', 'telemetry.sinks=[wandb]')
    prepare(config, world=2)
    done = subprocess.run(torchrun_command('trm_nb.run', [str(config.folder)], 2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    log, = read_logs(config.folder)
    assert steps(log) == [0, 5, 10, 15, 20] and log.rows[-1]['eval/puzzles'] == 24 and sum(log.rows[-1]['eval/ACT_steps']['values']) == 24
    assert log.config['made_with']['world'] == 2 and done.stderr.count('telemetry: wandb') == 1

# the others

@needs('tensorboard')
def test_tensorboard(run):
    "Numbers, histograms, images and texts, by its own reader."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run.folder/'tensorboard'), size_guidance=dict(images=0, histograms=0, scalars=0, tensors=0))
    events.Reload()
    own = [json.loads(l) for l in (run.folder/'metrics.jsonl').read_text().splitlines()]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars('train/loss')] == [(r['step'], r['loss']) for r in own if r['kind'] == 'train']
    assert [e.step for e in events.Scalars('eval/exact_accuracy')] == [10, 20]
    assert sum(events.Histograms('eval/ACT_steps')[-1].histogram_value.bucket) == 24
    image, = [e for e in events.Images('charts/by_cell') if e.step == 20]
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
    assert {'charts/samples/0', 'charts/samples/1'} <= set(events.Tags()['images'])
    text = {t: events.Tensors(t)[-1].tensor_proto.string_val[0].decode() for t in events.Tags()['tensors']}
    assert 'hidden_size' in text['config/text_summary'] and 'best/step' in text['summary/text_summary'] and 'L_level' in text['model/weights/text_summary']
    assert any(t.startswith('model/told-step_20-') and 'latest' in v for t, v in text.items())

def test_make_installs_every_sink(root):
    "Otherwise its test would always skip."
    installed = {e for extras in re.findall(r"'\.\[(.*?)\]'", (root/'Makefile').read_text()) for e in extras.split(',')}
    pinned = {line.split('==')[0] for line in (root/'constraints.txt').read_text().splitlines()}
    assert {'wandb', 'tensorboard', 'trackio'} <= installed & pinned

@pytest.mark.slow
@needs('trackio')
def test_trackio(configure):
    "In a process of its own, as trackio takes its folder from the environment when it is imported; a Space that the environment names gets nothing."
    config = configure('tracked', 'telemetry.sinks=[trackio]')
    prepare(config)
    done = subprocess.run([sys.executable, '-m', 'trm_nb.run', str(config.folder)], capture_output=True, text=True, timeout=300, env=os.environ | dict(TRACKIO_SPACE_ID='someone/else', HF_HUB_OFFLINE='1'))
    assert done.returncode == 0 and 'training goes on' not in done.stderr, done.stderr[-2000:]
    code = ("import json, trackio\nfrom trackio.sqlite_storage import SQLiteStorage\nrun, = trackio.Api().runs('trm_nb')\n"
            "print(json.dumps(dict(name=run.name, config=run.config, rows=SQLiteStorage.get_logs('trm_nb', run.name), artifacts=sorted(a['name'] for a in SQLiteStorage.get_artifacts('trm_nb'))), default=str))")
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, env=os.environ | dict(TRACKIO_DIR=str(config.folder/'trackio')))
    assert said.returncode == 0, said.stderr[-2000:]
    found = json.loads(said.stdout.splitlines()[-1])
    rows = {r['step']: r for r in found['rows']}
    own = {r['step']: r['loss'] for r in map(json.loads, (config.folder/'metrics.jsonl').read_text().splitlines()) if r['kind'] == 'train'}
    assert {s: r['train/loss'] for s, r in rows.items() if 'train/loss' in r} == pytest.approx(own) and len(found['rows']) == len(rows)
    assert rows[20]['eval/ACT_steps']['_type'] == 'trackio.histogram' and rows[20]['charts/by_cell']['_type'] == 'trackio.image' and found['config']['learn']['steps'] == 20
    assert found['name'].startswith('tracked-') and len(found['artifacts']) == 2 and found['artifacts'][0].startswith('tracked-step_10-')
