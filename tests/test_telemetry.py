"""Telemetry as sinks keep it: a real wandb log, TensorBoard's events and trackio's database, read back."""
import base64, importlib.util, io, json, os, re, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from trm_nb.config import load_config
from trm_nb.data.format import PuzzleDataset
from trm_nb.data.sudoku import write_generated
from trm_nb.evaluate.evaluator import Cells, evaluate
from trm_nb.evaluate.metrics import sigmoid
from trm_nb.explore.draw import draw_film, look_of
from trm_nb.explore.solver import Solver
from trm_nb.learn import telemetry
from trm_nb.learn.callbacks import Recorder
from trm_nb.learn.charts import architecture_rows, detail, draw_cells, draw_confidence, draw_puzzles
from trm_nb.learn.checkpoint import saved_steps
from trm_nb.learn.launch import Ranks, torchrun_command
from trm_nb.models.pretrained import load_pretrained
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
    found, = logs_of(run)
    return found

def logs_of(config, count=1):
    "The logs of a run that has ended; wandb closes the last one a moment later."
    until = time.time() + 30
    while len(logs := read_logs(config.folder)) != count or logs[-1].exit is None: assert time.time() < until; time.sleep(.1)
    return logs

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

def test_all_is_drawn_against_the_step(log):
    "wandb is told so, and does not draw the step itself."
    assert log.metrics == {'train/step': ('', True), '*': ('train/step', False)}

def test_metadata_of_a_checkpoint(run, data):
    "What metadata.json of a real run says, by name."
    said = json.loads((run.folder/'checkpoints/step_20/metadata.json').read_text())
    assert {'step', 'epoch', 'examples', 'train', 'evaluation', 'best', 'config_hash', 'data', 'commit', 'versions', 'seed', 'hardware', 'world', 'seconds', 'model', 'shape', 'puzzle'} <= set(said)
    assert (said['step'], said['examples'], said['epoch'], said['seed'], said['world']) == (20, 320, 320 / 64, run.seed, 1) and said['config_hash'] == run.hash
    assert said['data']['fingerprint'] == PuzzleDataset.read(data, 'train').fingerprint() and said['data']['leakage']['checked'] == 24
    assert said['train']['loss'] > 0 and said['evaluation']['puzzles'] == 24 and 0 <= said['evaluation']['exact_accuracy'] <= 1 and set(said['best']) >= {'step', 'value', 'metric'}
    assert said['versions']['torch'] == torch.__version__ and set(said['versions']) >= {'trm_nb', 'python', 'numpy'} and 'cpu' in said['hardware'] and 0 < said['seconds'] < 600
    git = lambda *args: subprocess.run(['git', *args], cwd=Path(telemetry.__file__).parents[1], capture_output=True, text=True)
    if git('ls-files', '--error-unmatch', 'run.py').returncode: assert said['commit'] is None         # no git keeps this copy of the library
    else: assert re.fullmatch('[0-9a-f]{40}(-dirty)?', said['commit']) and git('merge-base', '--is-ancestor', said['commit'][:40], 'HEAD').returncode == 0

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

def test_every_group_s_rate_is_told(configure, monkeypatch):
    "Under muon the matrices of the blocks move at a rate of their own; a resumed run goes on telling it, also from a checkpoint that does not name the groups."
    told = {}
    class Memory(telemetry.Sink):
        def log(self, step, values): told[step] = {k: v for k, v in values.items() if k.startswith('train/') and 'lr' in k}
    monkeypatch.setitem(telemetry.SINKS, 'memory', Memory)
    make = lambda steps: configure('muon', 'telemetry.sinks=[memory]', 'telemetry.charts=false', 'learn.optimiser=muon', 'learn.muon.lr=0.5', 'learn.warmup_steps=10', f'learn.steps={steps}', 'learn.lr_min_ratio=1', 'evaluate.evaluators=[]', 'telemetry.artifacts=false')
    trained(make(10))
    state = torch.load(saved := make(10).folder/'checkpoints/last/train_state.pt', weights_only=True)
    for part in state['optimiser']['parts']: part['param_groups'][0].pop('name')
    torch.save(state, saved)
    prepare(make(15), resume=True)
    work(make(15).folder, resume=True)
    for step, scale in ((5, .5), (10, 1), (15, 1)): assert told[step] == pytest.approx({'train/lr': 3e-3 * scale, 'train/lr_blocks': .5 * scale, 'train/lr_others': 3e-3 * scale, 'train/puzzle_lr': 1e-4 * scale})
    own = [json.loads(l) for l in (make(15).folder/'metrics.jsonl').read_text().splitlines()]
    assert [r['lr_blocks'] for r in own if r['kind'] == 'train'] == pytest.approx([.25, .5, .5])

def test_memory_of_a_gpu_is_told(configure, monkeypatch):
    "What torch says of it, in GiB; here torch and the device are played."
    told, speed = {}, Recorder._speed
    class Memory(telemetry.Sink):
        def log(self, step, values): told[step] = values.get('speed/peak_gib')
    monkeypatch.setitem(telemetry.SINKS, 'memory', Memory)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: 3 * 2**29)
    monkeypatch.setattr(Recorder, '_speed', lambda self, t: speed(self, SimpleNamespace(step_number=t.step_number, settings=t.settings, ranks=SimpleNamespace(device=torch.device('cuda')))))
    trained(configure('gpu', 'telemetry.sinks=[memory]', 'learn.steps=10', 'evaluate.evaluators=[]', 'telemetry.artifacts=false'))
    assert {s: told[s] for s in (5, 10)} == {5: 1.5, 10: 1.5}

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
    folder, = run.folder.glob('wandb/offline-run-*/files')
    table = json.loads((folder/log.rows[0]['model/weights']['path']).read_text())
    act = load_pretrained(run.folder).act
    assert table['columns'] == ['weight', 'shape', 'parameters'] and table['data'] == [list(r.values()) for r in architecture_rows(act)] and table['data'][-1][-1] == log.config['parameters']
    captions = log.rows[-1]['charts/samples']['captions']
    assert len(captions) == 2 and all('solved' in c for c in captions)

def test_what_evaluations_tell(log, run, data):
    "The checkpoints evaluated anew: the same ACT steps, confidence and calibration, the same accuracy by step and by difficulty, and, dot by dot, the same pictures of calibration, of cells, of puzzles over evaluations, and of samples with their answers by step."
    test, history = PuzzleDataset.read(data, 'test'), []
    for step in (10, 20):
        row = next(r for r in log.rows if r['_step'] == step)
        e = evaluate(load_pretrained(run.folder/f'checkpoints/step_{step}').act, test, run.evaluate, torch.device('cpu'), evaluators=[Cells()])
        assert row['eval/ACT_steps']['values'] == [int((e.halted_at == s).sum()) for s in range(1, 5)]
        assert row['eval/q_halt_confidence']['values'] == np.histogram(sigmoid(e.q_halt[:, -1]), np.linspace(0, 1, 21))[0].tolist()
        told = detail(e)
        assert {k: row[f'eval/{k}'] for k in told} == pytest.approx(told, abs=1e-6) and {'confidence', 'calibration_error', 'by_step/04'} <= set(told)
        rows = telemetry.spread(e, run.telemetry.puzzles)
        history.append((step, e.accuracy[rows, -1].round(3)))
        solver, samples = Solver.from_pretrained(run.folder, 'cpu', checkpoint=f'step_{step}'), [(i, test.merged.inputs[i], test.merged.labels[i]) for i in (0, 23)]
        films = [draw_film([solver.solve(puzzle.astype(int) - 1, steps=s, early_exit=False).tokens for s in range(1, 5)], look_of('sudoku-4x4'), puzzle, solution, e.q_halt[i], steps=[1, 2, 4]) for i, puzzle, solution in samples]
        for name, drawn in dict(confidence=[draw_confidence(e)], by_cell=[draw_cells(e.cells[-1], (4, 4), (2, 2))], by_puzzle=[draw_puzzles(history, e.ratings[rows])], samples=films).items():
            shown = [np.asarray(image.convert('RGB')) for image in pictures(run, row, f'charts/{name}')]
            assert all(np.array_equal(a, Image.open(io.BytesIO(b.png())).convert('RGB')) for a, b in zip(shown, drawn, strict=True)), (step, name)

def test_artifacts(log, run):
    "Each checkpoint once, with step and time in its name, what is known of it, and aliases; the code."
    of_kind = lambda kind: [a for a in log.artifacts if a['type'] == kind]
    (code,), models = of_kind('code'), of_kind('model')
    assert 'trm_nb/learn/telemetry.py' in code['files'] and code['name'] == 'code-told' and len(models) == 2
    best = json.loads((run.folder/'checkpoints/best/metadata.json').read_text())['step']
    for step, m in zip((10, 20), models):
        folder = run.folder/f'checkpoints/step_{step}'
        at = time.mktime(time.strptime(m['name'].removeprefix(f'told-step_{step}-'), '%Y%m%dT%H%M%S'))
        assert 0 <= at + 1 - (folder/'metadata.json').stat().st_mtime < 60 and set(m['files']) == {'model.safetensors', 'metadata.json', 'config.yaml'}
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
    log, = logs_of(config)
    assert steps(log) == [0, 5] and not {'model', 'code'} & {a['type'] for a in log.artifacts}        # neither was asked for

def test_project_and_entity_from_the_environment(configure, monkeypatch, tmp_path):
    "Also from .env, where the config names none; USE_TRI_CALLBACKS alone makes it a wandb run, and WANDB_DISABLED leaves nothing of it."
    pytest.importorskip('wandb')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('USE_TRI_CALLBACKS', 'true')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    def told(name, *pairs):
        config = trained(configure(name, 'learn.steps=2', 'learn.log_every=1', 'learn.warmup_steps=1', 'evaluate.evaluators=[]', 'telemetry.artifacts=false', 'telemetry.mode=null', *pairs))
        return [(log.project, log.entity) for log in logs_of(config, flag)] if (flag := (config.folder/'wandb').exists()) else []
    (tmp_path/'.env').write_text('WANDB_PROJECT=from-file\nWANDB_ENTITY=file-team\n')
    assert told('of_file') == [('from-file', 'file-team')]
    monkeypatch.setenv('WANDB_PROJECT', 'theirs')
    monkeypatch.setenv('WANDB_ENTITY', 'their-team')
    assert told('of_environment') == [('theirs', 'their-team')] and told('of_config', 'telemetry.project=ours', 'telemetry.entity=us') == [('ours', 'us')]
    monkeypatch.setenv('WANDB_DISABLED', 'true')
    assert told('of_nobody') == []

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

class Server:
    "Stands in for wandb's server and its client: artifacts by name, each with its aliases."
    offline, entity, project = False, 'me', 'puzzles'
    def __init__(self): self.aliases, self.asked, self.slow = {}, [], threading.Event()
    def Artifact(self, name, kind, metadata): return name
    def Api(self): return self
    def artifact_exists(self, path):
        self.asked.append(path)
        name, alias = path.removeprefix('me/puzzles/').split(':')
        return alias in self.aliases.get(name, [])
    def artifact(self, path): return self.Sent(self, path.removeprefix('me/puzzles/').split(':')[0])
    def log_artifact(self, made, aliases):
        self.aliases[made] = list(aliases)
        return self.Sent(self, made)
    def finish(self, exit_code): self.closed = True
    class Sent:
        def __init__(self, server, name): self.server, self.name, self.aliases = server, name, list(server.aliases[name])
        def wait(self, timeout=None): return self if not self.server.slow.is_set() else time.sleep(timeout or 1000)
        def save(self): self.server.aliases[self.name] = self.aliases

def sink_of(server, state, patience=5):
    "A sink that is connected to it, as after an opening."
    sink = object.__new__(telemetry.WandbSink)
    sink.handle = sink.wandb = server
    sink.run, sink.sent, sink.threads, sink.patience = telemetry.Run(state.path.parent, 'x', state.id, state.told, {}, telemetry.TelemetrySettings(), state.holders), {}, [], patience
    return sink

def send(sink, state, name, *aliases):
    state.hold(name, list(aliases))
    sink.artifact(name, 'model', {}, {}, list(aliases))
    for t in sink.threads: t.join()

def test_alias_leaves_the_checkpoint_before(tmp_path):
    "With a server, `best` and `latest` are taken from the artifact that had them, also by the sink of a resumed run."
    server, state = Server(), telemetry.State(tmp_path, 0)
    sink = sink_of(server, state)
    send(sink, state, 'a', 'latest', 'best')
    send(sink, state, 'b', 'latest')
    assert server.aliases == dict(a=['best'], b=['latest'])
    state = telemetry.State(tmp_path, 20)
    sink = sink_of(server, state)
    send(sink, state, 'c', 'latest')
    assert server.aliases == dict(a=['best'], b=[], c=['latest']) and 'me/puzzles/b:latest' in server.asked
    send(sink, state, 'd', 'latest', 'best')
    assert server.aliases == dict(a=[], b=[], c=[], d=['latest', 'best'])
    state.hold('e', ['latest', 'best'])         # killed before it arrived
    state = telemetry.State(tmp_path, 40)
    send(sink_of(server, state), state, 'f', 'latest', 'best')
    assert {n for n, a in server.aliases.items() if a} == {'f'}
    sink.artifact('code-x', 'code', {}, {}, ['latest'])
    assert server.aliases['f'] == ['latest', 'best']      # the code has its own latest

def test_slow_server_holds_up_nobody(tmp_path, capfd):
    "A step does not wait for aliases to move, and the end of a run waits only so long."
    server, state = Server(), telemetry.State(tmp_path, 0)
    sink = sink_of(server, state, patience=2)
    send(sink, state, 'a', 'latest')
    server.slow.set()
    began = time.time()
    state.hold('b', ['latest'])
    sink.artifact('b', 'model', {}, {}, ['latest'])
    assert time.time() - began < 2
    sink.finish(True)
    assert 2 <= time.time() - began < 60 and server.closed       # it would take 1,000 s

def test_aliases_are_kept_with_the_run(configure, monkeypatch):
    "Names are in telemetry.json before a checkpoint is sent; a resumed run gives them to its sinks."
    seen = []
    class Memory(telemetry.Sink):
        def artifact(self, name, kind, files, metadata, aliases): seen.append((name, aliases, json.loads((self.run.folder/'telemetry.json').read_text())['holders'], dict(self.run.holders)))
    monkeypatch.setitem(telemetry.SINKS, 'memory', Memory)
    make = lambda steps: configure('holders', 'telemetry.sinks=[memory]', f'learn.steps={steps}', 'telemetry.charts=false', 'learn.eval_every=5')
    trained(make(5))
    config = make(15)
    prepare(config, resume=True)
    work(config.folder, resume=True)
    names = [name for name, *_ in seen]
    assert len(set(names)) == 3 and [written['latest'] for _, _, written, _ in seen] == [names[:1], names[:2], names] and all(written == given for *_, written, given in seen)

def test_key_from_env_file_reaches_the_server(configure, monkeypatch, tmp_path):
    "As under papermill and Jupyter, where no `trm` command has read .env: wandb itself shows the key to a server of ours."
    pytest.importorskip('wandb')
    shown = []
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get('Content-Length') or 0))
            shown.append(self.headers.get('Authorization'))
            self.send_response(401)
            self.send_header('Content-Length', '0')
            self.end_headers()
        def log_message(self, *_): pass
    key = 'f' * 40
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.chdir(tmp_path)
        (tmp_path/'.env').write_text(f'WANDB_API_KEY={key}\nWANDB_BASE_URL=http://127.0.0.1:{server.server_port}\n')
        config = configure('keyed', 'telemetry.sinks=[wandb]', 'telemetry.mode=online', 'learn.steps=5', 'evaluate.evaluators=[]', 'telemetry.artifacts=false')
        prepare(config)
        done = subprocess.run([sys.executable, '-m', 'trm_nb.run', str(config.folder)], capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k not in ('WANDB_API_KEY', 'WANDB_BASE_URL', 'WANDB_SERVICE')})
        server.shutdown()
    assert done.returncode == 0 and base64.b64encode(f'api:{key}'.encode()).decode() in shown[0], done.stderr[-2000:]
    log, = logs_of(config)
    assert 'refuses the key' in done.stderr          # and the run is recorded offline
    assert steps(log) == [0, 5] and not [p for p in config.folder.rglob('*') if p.is_file() and key.encode() in p.read_bytes()] and key not in done.stdout + done.stderr

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
    first, second = logs_of(config, 2)
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
    first, second = logs_of(config, 2)
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
    log, = logs_of(config)
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
