"""To the Hub and back, against a Hub of our own that speaks the real one's protocol and breaks on request."""
import contextlib, errno, io, json, os, re, runpy, shlex, shutil, signal, socket, subprocess, sys, time, traceback, urllib.request
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from browser import end
from tooling import slurm_cluster
from tooling.fake_hub import FakeHub, validate
from trm_nb import cli
from trm_nb.config import load_config
from trm_nb.data.basics import UserError, write_json
from trm_nb.data.format import PuzzleDataset
from trm_nb.data.source import hub_folder
from trm_nb.data.sudoku import write_generated
from trm_nb.explore.solver import Solver
from trm_nb.lab.jobs import Job, read_job
from trm_nb.learn import launch
from trm_nb.learn.callbacks import RowLog
from trm_nb.learn.checkpoint import point, save_checkpoint
from trm_nb.learn.telemetry import SINKS, Sink
from trm_nb.models.act import PuzzleShape
from trm_nb.models.zoo import build_model
from trm_nb.publish import pipeline
from trm_nb.publish.auto import AutoPublish, wanted
from trm_nb.publish.cards import check_card, model_card, read_subject, result_rows
from trm_nb.publish.hub import PublishSettings, dataset_files, model_files, publish, publish_dataset, publish_model, requirements, select, tags_of, without_places
from trm_nb.publish.pipeline import State, dry_run, ranks_of, read_pipeline, run_pipeline, write_template
from trm_nb.publish.space import about, space_files, write_folder
from trm_nb.run import prepare, work

pytestmark = pytest.mark.filterwarnings('ignore:Use .content')      # of huggingface_hub's own making

SMALL = dict(name='trm', mlp_t=True, hidden_size=32, num_heads=2, H_cycles=1, L_cycles=1, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=4)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A Hub, and huggingface_hub turned towards it; nobody waits."
    from huggingface_hub import constants
    with FakeHub(part=100_000) as hub:
        for name, value in hub.env(tmp_path/'cache').items(): monkeypatch.setenv(name, value)
        for name, value in hub.constants(tmp_path/'cache').items(): monkeypatch.setattr(constants, name, value, raising=False)
        for name in ('HUGGINGFACE_TOKEN', 'HUGGINGFACE_MODEL_REPO', 'HUGGINGFACE_DATASET_REPO', 'TRM_AUTO_PUBLISH', 'TRI_AUTO_PUBLISH'): monkeypatch.delenv(name, raising=False)
        hub.slept = []
        monkeypatch.setattr(time, 'sleep', hub.slept.append)
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_generated(tmp_path_factory.mktemp('publish')/'sudoku-tiny', size=4, train=40, test=30)


def checkpoint(run, data, step, seed, exact=.5):
    "Write a checkpoint of a run, the best so far."
    act = build_model(SMALL, PuzzleShape(6, 16), seed)
    best = dict(step=step, value=exact)
    metadata = dict(step=step, epoch=1.5, examples=320, evaluation=dict(exact_accuracy=exact, accuracy=.75, puzzles=30), best=best, model=act.settings.model_dump(), shape=act.shape._asdict(), puzzle='sudoku-4x4',
                    data=dict(path=str(data), fingerprint='0123456789abcdef', leakage=dict(checked=30, puzzles=0, solutions=30)), seed=seed, seconds=12.5, hardware='a machine', world=1)
    save_checkpoint(run/'checkpoints', step, act.state_dict(), dict(optimiser=torch.zeros(3)), metadata)
    RowLog(run/'metrics.jsonl').add(dict(step=step, kind='eval', **metadata['evaluation']))
    for name in ('best', 'last'): point(run/'checkpoints', name, step)


@pytest.fixture
def run(tmp_path, data):
    folder = tmp_path/'runs/tiny'
    checkpoint(folder, data, 100, 0)
    (folder/'config.yaml').write_text(yaml.safe_dump(dict(name='tiny', runs=str(tmp_path/'runs'), data=dict(path=str(data)), learn=dict(batch_size=16, lr=1e-3))))
    log = RowLog(folder/'metrics.jsonl')
    for step in (50, 100): log.add(dict(step=step, kind='train', loss=2 - step / 100, accuracy=.5, exact_accuracy=.1))
    return folder


def said(*args):
    "Exit code, stdout and stderr of a command."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err: code = cli.call(list(args))
    return code, out.getvalue(), err.getvalue()

def told(err):
    "Lines of the command itself; a bar of another thread may be drawn once more behind them."
    return [line for line in re.split(r'\x1b\[A|\r|\n', err) if line.startswith('trm')]


# to the Hub and back

def test_model_and_back(hub, run, data):
    publish_model(run, 'me/tiny')
    puzzles = [''.join('.123456789'[t - 1] if t > 1 else '.' for t in row) for row in PuzzleDataset.read(data, 'test').merged.inputs]
    here, there = Solver.from_pretrained(run, 'cpu'), Solver.from_pretrained('me/tiny', 'cpu')
    for a, b in zip(here.solve_many(puzzles, progress=False), there.solve_many(puzzles, progress=False)):
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.q_halt, b.q_halt)
    checkpoint(run, data, 200, 1, .8)
    publish_model(run, 'me/tiny')
    weights = lambda revision: Solver.from_pretrained('me/tiny', 'cpu', revision=revision).act.inner.lm_head.weight
    assert torch.equal(weights('step-100'), here.act.inner.lm_head.weight) and torch.equal(weights('exact-50.0'), weights('step-100'))
    assert torch.equal(weights('step-200'), Solver.from_pretrained(run, 'cpu').act.inner.lm_head.weight) and torch.equal(weights(None), weights('exact-80.0'))
    assert not torch.equal(weights('step-100'), weights('step-200'))
    with pytest.raises(UserError, match=r'me/tiny has no such revision \(404\)'): weights('step-300')
    assert said('solve', 'me/tiny', puzzles[0], '--json')[1].startswith('{"answer"')


def test_what_is_published(hub, run, tmp_path):
    done = publish_model(run, 'me/tiny', PublishSettings(license='mit'), code=True)
    repo = hub.repo('me/tiny')
    assert repo.private and len(repo.messages) == 2 and repo.messages[-1] == 'Publish step 100' and set(repo.tags) == {'step-100', 'exact-50.0'} == set(done.tags)
    assert {'README.md', 'model.safetensors', 'metadata.json', 'config.yaml', 'curves.png', 'example.json', 'inference_example.py', 'handler.py', 'requirements.txt', 'trm_nb/explore/solver.py'} <= set(repo.files)
    assert not [f for f in repo.files if 'train_state' in f]
    (tmp_path/'w').write_bytes(repo.files['model.safetensors'])
    assert set(load_file(tmp_path/'w')) == set(build_model(SMALL, PuzzleShape(6, 16)).state_dict())      # nothing of the optimiser
    for f in ('metadata.json', 'config.yaml', 'README.md'): assert str(tmp_path).encode() not in repo.files[f]
    assert repo.files['curves.png'].startswith(b'\x89PNG') and b'license: mit' in repo.files['README.md']


def test_dataset_and_back(hub, data, tmp_path):
    publish_dataset(data, 'me/sudoku-tiny')
    repo = hub.repo('me/sudoku-tiny', 'dataset')
    assert repo.private and {'train.csv', 'test.csv', 'train.jsonl', 'README.md', 'train/all__inputs.npy', 'identifiers.json'} <= set(repo.files)
    code, out, err = said('data', 'sudoku', '--source', 'hub:me/sudoku-tiny', '--size', '4', '--out', str(tmp_path/'back'))
    assert code == 0, err
    for split in ('train', 'test'): assert PuzzleDataset.read(tmp_path/'back', split).fingerprint() == PuzzleDataset.read(data, split).fingerprint()
    assert said('data', 'sudoku', '--source', 'hub:me/nothing', '--size', '4', '--out', str(tmp_path/'no'))[::2] == (2, 'trm: train.csv of the data set me/nothing cannot be fetched from the Hub: there is no me/nothing that this token may see (404)\n')


def test_folder_with_copies_comes_back_as_it_was(hub, tmp_path):
    "The table holds the originals; the folder, all."
    folder = write_generated(tmp_path/'copies', size=4, train=10, test=5, num_aug=3)
    shutil.rmtree(folder/'test')
    publish_dataset(folder, 'me/copies')
    assert hub.repo('me/copies', 'dataset').files['train.csv'].count(b'\n') == 11
    hub_folder('me/copies', tmp_path/'all')
    assert PuzzleDataset.read(tmp_path/'all').fingerprint() == PuzzleDataset.read(folder).fingerprint()
    assert said('data', 'sudoku', '--source', 'hub:me/copies', '--size', '4', '--out', str(tmp_path/'originals'))[0] == 0      # there is no test split
    assert len(PuzzleDataset.read(tmp_path/'originals')) == 10
    with pytest.raises(UserError, match='exists: choose another place'): hub_folder('me/copies', tmp_path/'all')
    code, out, _ = said('data', 'arc', '--source', 'hub:me/copies', '--out', str(tmp_path/'arc'))
    assert code == 0 and PuzzleDataset.read(tmp_path/'arc').fingerprint() == PuzzleDataset.read(folder).fingerprint()


def test_public_and_existing(hub, run):
    publish_model(run, 'me/open', PublishSettings(private=False))
    assert not hub.repo('me/open').private
    commits = len(hub.repo('me/open').messages)
    publish_model(run, 'me/open')
    assert len(hub.repo('me/open').messages) == commits       # nothing new, no commit
    with pytest.raises(UserError, match='there is no me/none'): publish_model(run, 'me/none', PublishSettings(create=False))


def test_what_an_older_state_left_goes(hub, run, tmp_path):
    "Config, curves and code of another run do not stay beside weights that have none; whatever else is there does."
    publish({'notes.md': b'mine', 'trm_nb/mine.py': b'mine'}, 'me/tiny')
    publish_model(run, 'me/tiny', code=True)
    assert {'config.yaml', 'curves.png', 'trm_nb/cli.py'} <= set(hub.repo('me/tiny').files)
    shutil.copytree(run/'checkpoints/step_100', tmp_path/'alone')
    publish_model(tmp_path/'alone', 'me/tiny', PublishSettings(ignore=['README.md', '*.png']))
    there = set(hub.repo('me/tiny').files)
    assert not {'config.yaml', 'trm_nb/cli.py'} & there and {'notes.md', 'trm_nb/mine.py', 'README.md', 'curves.png'} <= there      # a file that was left out on purpose stays
    assert str(publish_model(tmp_path/'alone', 'me/tiny')).endswith(', 1 of an older state removed') and 'curves.png' not in hub.repo('me/tiny').files
    publish_model(tmp_path/'alone', 'me/new')
    assert 'model.safetensors' in hub.repo('me/new').files


# what breaks

@pytest.fixture(params=['model', 'dataset'])
def thing(request, hub, run, data):
    "Something to publish as me/tiny: its kind, its folder, its address at the Hub, a file of several parts, and after how many bytes one may break."
    if request.param == 'model': return SimpleNamespace(kind='model', folder=run, send=publish_model, api='/api/models/me/tiny', git='/me/tiny.git', large='model.safetensors', content=(run/'checkpoints/best/model.safetensors').read_bytes(), cut=5000)
    hub.part = 500
    return SimpleNamespace(kind='dataset', folder=data, send=publish_dataset, api='/api/datasets/me/tiny', git='/datasets/me/tiny.git', large='train/all__inputs.npy', content=(data/'train/all__inputs.npy').read_bytes(), cut=100)


def test_upload_cut_off_is_resumed(hub, thing):
    "The second part of a large file is cut: nothing is visible, and the next attempt does not send again what went through."
    hub.fail('PUT /lfs/.*/2$', times=10_000, cut=thing.cut)
    code, out, err = said('publish', thing.kind, str(thing.folder), 'me/tiny')
    assert code == 2 and not out and len(told(err)) == 1 and told(err)[0].startswith('trm: the Hub cannot be reached ('), err
    assert set(hub.repo('me/tiny', thing.kind).files) == {'.gitattributes'} and hub.asked('PUT /lfs/.*/2$')
    hub.faults.clear()
    before = {entry[1] for entry in hub.asked('PUT /lfs/[0-9a-f]+$') if entry[2] == 200}
    hub.log.clear()
    thing.send(thing.folder, 'me/tiny')
    again = {entry[1] for entry in hub.asked('PUT /lfs/[0-9a-f]+$')}
    assert before and not before & again and hub.repo('me/tiny', thing.kind).files[thing.large] == thing.content


def test_upload_cut_off_once_goes_on_by_itself(hub, thing):
    hub.fail('PUT /lfs/.*/2$', cut=thing.cut)
    thing.send(thing.folder, 'me/tiny')
    assert hub.repo('me/tiny', thing.kind).files[thing.large] == thing.content


@pytest.mark.parametrize('where, status, message', [
    ('POST /api/repos/create', 500, r'the Hub is out of order \(500\): try again later'),
    ('POST {api}/commit', 409, r'me/tiny was changed by somebody else at the same moment \(409\)'),
    ('POST {api}/commit', 403, r'the token may not write to me/tiny \(403\)'),
    ('POST {git}/info/lfs', 503, r'the Hub is out of order \(503\)'),
    ('POST {api}/commit', 429, r'the Hub asks for a pause \(429\): try again in 7 s'),
    ('POST {api}/commit', 500, r'the Hub is out of order \(500\): try again later'),
    ('POST /api/repos/create', 429, r'the Hub asks for a pause \(429\): try again in 7 s'),
    ('POST /api/repos/create', 401, r'the Hub does not know this token \(401\): HF_TOKEN must be'),
    ('POST {api}/preupload', 401, r'the Hub does not know this token \(401\): HF_TOKEN must be')])
def test_errors_are_one_line(hub, thing, where, status, message):
    hub.fail(where.format(api=thing.api, git=thing.git), status, times=1000, Retry_After='7' if status == 429 else '')
    code, out, err = said('publish', thing.kind, str(thing.folder), 'me/tiny')
    assert code == 2 and re.match('trm: ' + message, told(err)[-1]) and hub.token not in out + err
    assert not hub.repo('me/tiny', thing.kind) or len(hub.repo('me/tiny', thing.kind).messages) == 1


@pytest.mark.parametrize('status, message', [(401, 'the Hub does not know this token (401): HF_TOKEN must be a valid one from https://huggingface.co/settings/tokens'), (403, 'the token has no access to me/tiny (403): if it is gated, ask for access on its page'),
                                             (429, 'the Hub asks for a pause (429): try again in 7 s'), (500, 'the Hub is out of order (500): try again later')])
def test_errors_of_reading_are_one_line(hub, thing, tmp_path, status, message):
    "What was published is not given back: one line, nothing half done, and all is well when the Hub is."
    thing.send(thing.folder, 'me/tiny')
    read = ['solve', 'me/tiny', '1' + 15 * '.'] if thing.kind == 'model' else ['data', 'sudoku', '--source', 'hub:me/tiny', '--size', '4', '--out', str(tmp_path/'back')]
    hub.fail('(GET|HEAD) .*me/tiny', status, times=1000, Retry_After='7' if status == 429 else '')
    code, out, err = said(*read)
    assert (code, out) == (2, '') and err.startswith('trm: ') and err.endswith(f': {message}\n') and err.count('\n') == 1 and hub.token not in err and not (tmp_path/'back').exists()
    hub.faults.clear()
    code, out, err = said(*read)
    assert code == (thing.kind == 'model') and 'trm:' not in err and ('q_halt by step' in out if thing.kind == 'model' else (tmp_path/'back/train').is_dir())


def test_refused_tag_leaves_the_model(hub, run):
    hub.fail('POST /api/models/me/tiny/tag', 429, times=1000, Retry_After='7')
    code, _, err = said('publish', 'model', str(run), 'me/tiny')
    assert code == 2 and 'the Hub asks for a pause (429)' in told(err)[-1] and 'model.safetensors' in hub.repo('me/tiny').files


@pytest.mark.parametrize('where', ['POST /api/repos/create', 'POST {api}/preupload', 'POST {api}/commit'])
@pytest.mark.parametrize('status', [429, 500])
def test_tried_again(hub, thing, where, status):
    "Twice out of order, then well; the pause is the one that the Hub asks for."
    hub.fail(where.format(api=thing.api), status, times=2, **({'Retry_After': '7'} if status == 429 else {}))
    thing.send(thing.folder, 'me/tiny')
    assert thing.large in hub.repo('me/tiny', thing.kind).files
    assert set(hub.slept) <= ({7., 8.} if status == 429 else {1., 2., 4.}) and len(hub.slept) == 2


@pytest.mark.parametrize('status', [429, 500])
def test_tag_is_tried_again(hub, run, status):
    hub.fail('POST /api/models/me/tiny/tag', status, times=2)
    publish_model(run, 'me/tiny')
    assert set(hub.repo('me/tiny').tags) == {'step-100', 'exact-50.0'} and len(hub.slept) == 2


def test_refused(hub, thing, monkeypatch):
    send = lambda: said('publish', thing.kind, str(thing.folder), 'me/tiny')
    for token, message in ((hub.read_token, r'may not write to me/tiny \(403\): it needs the write role'), ('hf_nonsense', r'does not know this token \(401\)')):
        monkeypatch.setenv('HF_TOKEN', token)
        code, _, err = send()
        assert code == 2 and re.search(message, err) and token not in err and err.count('\n') == 1
    monkeypatch.delenv('HF_TOKEN')
    assert send()[2].startswith('trm: HF_TOKEN is not set: publishing needs a token')
    assert not hub.repos
    monkeypatch.setenv('HUGGINGFACE_TOKEN', hub.token)
    assert send()[0] == 0      # the other name
    monkeypatch.delenv('HUGGINGFACE_TOKEN')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    with pytest.raises(UserError, match='does not exist, or is private and HF_TOKEN is not set' if thing.kind == 'model' else 'HF_TOKEN'):
        Solver.from_pretrained('me/tiny', 'cpu') if thing.kind == 'model' else hub_folder('me/tiny', 'back')


def test_other_name_of_the_token(hub, thing, monkeypatch, tmp_path):
    "HUGGINGFACE_TOKEN alone publishes and reads what is private, from a notebook as from the command line."
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setenv('HUGGINGFACE_TOKEN', hub.token)
    thing.send(thing.folder, 'me/tiny')
    read = lambda: Solver.from_pretrained('me/tiny', 'cpu') if thing.kind == 'model' else hub_folder('me/tiny', tmp_path/'back')
    monkeypatch.setenv('HUGGINGFACE_TOKEN', 'hf_nonsense')
    with pytest.raises(UserError, match='401'): read()
    monkeypatch.setenv('HUGGINGFACE_TOKEN', hub.token)
    assert hub.repo('me/tiny', thing.kind).private and read() and 'HF_TOKEN' not in os.environ


def test_dry_run_sends_nothing(hub, run, data, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    code, out, _ = said('publish', 'model', str(run), 'me/tiny', '--dry-run')
    assert code == 0 and 'private, created if it is missing' in out and re.search(r'\d+ KB  model.safetensors', out) and 'tags step-100, exact-50.0' in out
    assert 'train/all__inputs.npy' in said('publish', 'dataset', str(data), 'me/data', '--dry-run')[1]
    assert 'app.py' in said('publish', 'space', str(run), 'me/page', '--dry-run')[1]
    assert not hub.log


@pytest.mark.parametrize('command', [['model', 'me/tiny'], ['model', 'me/tiny', '--dry-run'], ['space', 'me/page', '--dry-run']], ids=' '.join)
def test_damaged_weights_are_not_published(hub, run, command):
    weights = run/'checkpoints/step_100/model.safetensors'
    weights.write_bytes(weights.read_bytes()[:500])
    code, _, err = said('publish', command[0], str(run), *command[1:])
    assert code == 2 and 'model.safetensors is damaged or truncated' in err and err.count('\n') == 1 and not hub.repos


def test_options(hub, run, data, tmp_path, monkeypatch):
    monkeypatch.setenv('HUGGINGFACE_DATASET_REPO', 'me/from-env')
    (tmp_path/'card.md').write_text('---\nlicense: mit\n---\n# Mine\n')
    (tmp_path/'notes.txt').write_text('notes')
    code, out, err = said('publish', 'dataset', str(data), '--ignore', '*.npy', '--extra', 'docs/notes.txt=notes.txt', '--card', 'card.md', '--message', 'All of it', '--public')
    assert code == 0, err
    repo = hub.repo('me/from-env', 'dataset')
    assert not [f for f in repo.files if f.endswith('.npy')] and repo.files['docs/notes.txt'] == b'notes' and b'# Mine' in repo.files['README.md'] and repo.messages[-1] == 'All of it' and not repo.private
    assert said('publish', 'dataset', str(data), 'me/x', '--card', 'none.md')[2] == 'trm: the card none.md cannot be read (No such file or directory)\n'
    assert 'no YAML' in said('publish', 'dataset', str(data), 'me/x', '--card', 'notes.txt')[2]
    (tmp_path/'binary.md').write_bytes(b'\xff\xfe\x00')
    for kind, source in (('dataset', data), ('model', run), ('space', run)):
        for card, wrong in (('none.md', 'cannot be read (No such file or directory)'), ('binary.md', 'is not UTF-8')):
            assert said('publish', kind, str(source), 'me/x', '--card', card, '--dry-run') == (2, '', f'trm: the card {card} {wrong}\n')
    assert "is no repository: write user/name" in said('publish', 'model', str(run), 'tiny')[2]
    assert 'set HUGGINGFACE_MODEL_REPO' in said('publish', 'model', str(run))[2]
    assert 'is not a dataset folder' in said('publish', 'dataset', 'nowhere', 'me/x')[2]
    assert said('publish', 'model', str(run), 'me/x', '--include', '*.safetensors', '--include', 'metadata.json')[0] == 0
    assert set(hub.repo('me/x').files) == {'.gitattributes', 'model.safetensors', 'metadata.json'}


@pytest.mark.parametrize('name', ['.env', '.env.local', 'prod.env'])
def test_no_environment_file(hub, run, tmp_path, name):
    "Neither named itself, nor under another name, nor found in a folder."
    (tmp_path/name).write_text('WANDB_API_KEY=abc')
    (tmp_path/'link').symlink_to(name)
    for extra in (name, f'notes.txt={name}', f'a/{name}=link', 'link'):
        code, out, err = said('publish', 'model', str(run), 'me/tiny', '--extra', extra)
        assert (code, out) == (2, '') and re.fullmatch(r'trm: .* is an environment file, which is never published\n', err), err
    assert not hub.log and list(select({'a': b'', name: b'', f'b/{name}': b''}, PublishSettings())) == ['a']


def test_places_stay_here(hub, run, data, tmp_path):
    "Neither paths of this machine nor the mirror's address, whatever a file spells them like."
    assert without_places(dict(a='file:///data/jane/secret/runs', b='~/secret/y', c='~jane/secret/z', d='~5 cells/s', e='hub:me/x')) == dict(a='runs', b='y', c='z', d='~5 cells/s', e='hub:me/x')
    settings = yaml.safe_load((run/'config.yaml').read_text())
    (run/'config.yaml').write_text(yaml.safe_dump(settings | dict(run=dict(mirror='gs://secret/runs'))))
    assert yaml.safe_load(model_files(read_subject(run), 'me/tiny')['config.yaml']) == settings | dict(runs='runs', data=dict(path=data.name), run={})
    folder = shutil.copytree(data, tmp_path/'built')
    write_json(folder/'built.json', dict(source=str(tmp_path/'jane'), train=40))
    assert json.loads(dataset_files(folder, 'me/x')['built.json']) == dict(source='jane', train=40)
    (folder/'built.json').write_text('{')
    with pytest.raises(UserError, match='built.json is not JSON'): dataset_files(folder, 'me/x')


def test_secrets_stay_here(hub, thing, tmp_path, capfd):
    "The token is in no file that was written, sent or kept, and in nothing that was said."
    (tmp_path/'helper.py').write_text(f'login(token="{hub.token}")')
    send = lambda repo, *args: said('publish', thing.kind, str(thing.folder), repo, *args)
    code, out, err = send('me/tiny', '--extra', 'helper.py')
    assert code == 2 and 'helper.py holds your token: nothing was published' in err and not hub.repos
    (tmp_path/'helper.py').unlink()
    text, code = out + err, ['--code'] * (thing.kind == 'model')
    for n, faults in enumerate(([], [('POST .*commit', 500)], [('POST .*create', 401)], [('PUT /lfs', 403)], [('POST .*commit', 409)], [('POST .*preupload', 429)], [('PUT /lfs', 0)])):
        for pattern, status in faults: hub.fail(pattern, status, times=50, cut=None if status else 100)
        text += ''.join(send(f'me/tiny{n}', *(code if not faults else []))[1:])
        hub.faults.clear()
    Solver.from_pretrained('me/tiny0', 'cpu') if thing.kind == 'model' else hub_folder('me/tiny0', tmp_path/'back')
    text += ''.join(capfd.readouterr())
    kept = [p for p in tmp_path.rglob('*') if p.is_file()]
    sent = [c for repo in hub.repos.values() for files in repo.commits.values() for c in files.values()]
    assert len(kept) > 10 and len(sent) > 10 and hub.token not in text
    assert not [p for p in kept if hub.token.encode() in p.read_bytes()] and not [c for c in sent if hub.token.encode() in c]
    assert not any(hub.token in entry[1] for entry in hub.log)      # nor in an address


def test_names_from_the_environment(hub, run, data, tmp_path, monkeypatch):
    "HUGGINGFACE_MODEL_REPO and HUGGINGFACE_DATASET_REPO, also from .env, say where to; TRM_CHECKPOINT_PATH, which checkpoint: to trm eval, to an endpoint, to a Space."
    monkeypatch.setenv('HUGGINGFACE_MODEL_REPO', 'me/from-env')
    code, out, err = said('publish', 'model', str(run))
    assert code == 0 and 'published' in out and 'model.safetensors' in hub.repo('me/from-env').files, err
    monkeypatch.delenv('HUGGINGFACE_MODEL_REPO')
    (tmp_path/'.env').write_text('HUGGINGFACE_MODEL_REPO=me/from-file\nHUGGINGFACE_DATASET_REPO=me/data-from-file\n')
    run_pipeline(write_pipeline(tmp_path, dataset=dict(local_path=str(data)), model=dict(checkpoint_dir=str(run), include_code_snapshot=False)))
    assert 'model.safetensors' in hub.repo('me/from-file').files and 'train.csv' in hub.repo('me/data-from-file', 'dataset').files
    named = lambda *checkpoint: {k: v for k, v in json.loads(said('eval', *checkpoint, '--data', str(data), '--device', 'cpu', '--json')[1]).items() if 'accuracy' in k}
    first = named(str(run))
    checkpoint(run, data, 200, 1)
    monkeypatch.setenv('TRM_CHECKPOINT_PATH', str(run/'checkpoints/step_100'))
    assert named() == first != named(str(run))
    folder, example, started = write_folder(space_files(read_subject(run), 'me/page'), tmp_path/'page'), json.loads((tmp_path/'page/space.json').read_text())['example']['puzzle'], []
    handler = runpy.run_path(str(folder/'handler.py'))['EndpointHandler']
    q = lambda source: Solver.from_pretrained(source, 'cpu').solve(example).q_halt.tolist()
    assert handler(str(folder/'model'))(dict(inputs=example))[0]['q_halt'] == pytest.approx(q(run/'checkpoints/step_100'), abs=1e-3) != pytest.approx(q(folder/'model'), abs=1e-3)
    from trm_nb.serve import app
    monkeypatch.setattr(app, 'start', lambda source, **how: started.append(source))
    runpy.run_path(str(folder/'app.py'), run_name='__main__')
    monkeypatch.delenv('TRM_CHECKPOINT_PATH')
    runpy.run_path(str(folder/'app.py'), run_name='__main__')
    assert started == [str(run/'checkpoints/step_100'), 'model']


# cards

def test_cards_are_valid(hub, run, data):
    from huggingface_hub import DatasetCard, ModelCard
    publish_model(run, 'me/tiny', dataset='me/sudoku-tiny')
    publish_dataset(data, 'me/sudoku-tiny')
    model, dataset = (ModelCard(hub.repo('me/tiny').files['README.md'].decode()), DatasetCard(hub.repo('me/sudoku-tiny', 'dataset').files['README.md'].decode()))
    model.validate(), dataset.validate()
    assert validate(str(model), 'model') == validate(str(dataset), 'dataset') == ([], [])
    result = model.data.eval_results[0]
    assert (result.metric_value, result.dataset_type, result.dataset_split, model.data.model_name) == (.5, 'me/sudoku-tiny', 'test', 'tiny')
    for part in ('## Use', '## Results', '## Architecture', '## Data', '## Training', '## Limits', '## Licence', '## Citation', '50.0%', '33.2% to 66.8%', 'Of 30 test puzzles checked, 0 are', 'curves.png'): assert part in model.text, part
    assert dict(config_name='default', data_files=[dict(split='train', path='train.jsonl'), dict(split='test', path='test.jsonl')]) in dataset.data.configs


def test_the_fake_hub_refuses_bad_cards(hub):
    "So that passing it says something."
    from huggingface_hub import ModelCard
    with pytest.raises(ValueError): ModelCard('---\nlicense: mine\n---\n# x').validate()
    for bad in ('tags: trm', 'model-index:\n- name: x\n  results:\n  - task: {type: other}\n    dataset: {name: d}\n    metrics: []'): assert validate(f'---\n{bad}\n---\n# x', 'model')[0]


def test_usage_in_the_card_runs(hub, run):
    publish_model(run, 'me/tiny')
    code = re.search(r'```python\n(.*?)```', hub.repo('me/tiny').files['README.md'].decode(), re.S)[1]
    with contextlib.redirect_stdout(io.StringIO()) as out: exec(code, {})
    assert 'q_halt' in out.getvalue()


def test_inference_example_runs(hub, run, tmp_path):
    from huggingface_hub import snapshot_download
    publish_model(run, 'me/tiny')
    folder = Path(snapshot_download('me/tiny', local_dir=tmp_path/'download'))
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', ['inference_example.py'])
        runpy.run_path(str(folder/'inference_example.py'))
    example = json.loads((folder/'example.json').read_text())
    assert out.getvalue().strip() == repr(Solver.from_pretrained(run, 'cpu').solve(example['puzzle']))
    handler = runpy.run_path(str(folder/'handler.py'))['EndpointHandler'](str(folder))
    assert handler(dict(inputs=example['puzzle']))[0]['answer'] == Solver.from_pretrained(run, 'cpu').solve(example['puzzle']).text


def test_card_of_other_models(tmp_path):
    "Identifiers, another architecture, no evaluation, leaked puzzles: each is said."
    act = build_model(dict(name='hrm', hidden_size=32, num_heads=2, puzzle_emb_ndim=32), PuzzleShape(12, 900, 50))
    metadata = dict(step=5, model=act.settings.model_dump(), shape=act.shape._asdict(), puzzle='arc', data=dict(path='nowhere', leakage=dict(checked=10, puzzles=2, solutions=3)))
    save_checkpoint(tmp_path, 5, act.state_dict(), {}, metadata)
    card = check_card(model_card(read_subject(tmp_path/'step_5'), 'me/arc'))
    for part in ('ARC-AGI', 'Hierarchical Reasoning Model', 'were not evaluated', '2 are in the training set', 'puzzle identifiers', 'example.json'): assert part in card, part
    assert 'model-index' not in card and validate(card, 'model') == ([], []) and tags_of(read_subject(tmp_path/'step_5')) == ['step-5']


def test_votes_are_not_over_copies(run):
    "pass@k is a share of tasks; what was counted are their augmented copies."
    subject = read_subject(run)
    subject.rows = [dict(kind='eval', step=100, exact_accuracy=.3, accuracy=.8, puzzles=368150, **{'pass@1': .4, 'pass@2': .45})]
    assert [r[2:4] for r in result_rows(subject) if r[0].startswith('pass@')] == [('', ''), ('', '')] and result_rows(subject)[0][2:4] == ('29.9% to 30.1%', '368,150')
    assert about(subject).endswith(' Of the test tasks it solves 40.0% (pass@1).') and '368,150' not in about(subject)


def test_figures_of_other_weights_are_not_told(run):
    "metadata.json of a later step repeats the last evaluation; the card must not."
    shutil.copytree(run/'checkpoints/step_100', run/'checkpoints/step_130')
    write_json(run/'checkpoints/step_130/metadata.json', json.loads((run/'checkpoints/step_100/metadata.json').read_text()) | dict(step=130))
    assert read_subject(run, 'step_130').evaluation == {} and read_subject(run, 'step_100').evaluation['exact_accuracy'] == .5


# publishing by itself

def config(data, tmp_path, name, *pairs):
    return load_config('demo', f'data.path={data}', f'runs={tmp_path}/auto', f'name={name}', 'device=cpu', 'model.hidden_size=32', 'model.num_heads=2', 'model.H_cycles=1', 'model.L_cycles=1', 'model.halt_max_steps=2',
                       'learn.batch_size=8', 'learn.steps=6', 'learn.log_every=2', 'learn.eval_every=3', 'learn.warmup_steps=2', *pairs)


def test_auto_publish(hub, data, tmp_path, monkeypatch, capfd):
    plain, sent, failed = config(data, tmp_path, 'plain'), config(data, tmp_path, 'sent', 'auto_publish=me/auto'), config(data, tmp_path, 'failed', 'auto_publish.when=best', 'auto_publish.repo=you/auto')
    assert [work(prepare(c)) for c in (plain, sent)] == ['done', 'done']
    best = read_subject(sent.folder)
    assert f'step-{best.step}' in hub.repo('me/auto').tags and hub.repo('me/auto').files['model.safetensors'] == (best.checkpoint/'model.safetensors').read_bytes()
    monkeypatch.delenv('HF_TOKEN')
    assert work(prepare(failed)) == 'done'
    assert 'HF_TOKEN is not set' in (failed.folder/'publish.log').read_text() and 'trm publish model' in capfd.readouterr().err
    rows = [(c.folder/'metrics.jsonl').read_text() for c in (plain, sent, failed)]
    assert rows[0] == rows[1] == rows[2]      # the same run, whatever became of the push


def test_auto_publish_from_the_environment(hub, monkeypatch):
    assert wanted(None) is None
    monkeypatch.setenv('TRM_AUTO_PUBLISH', 'true')
    assert wanted(None) == AutoPublish() and wanted(AutoPublish(when='no')) is None
    for pair, found in (('auto_publish=true', 'end'), ('auto_publish=false', 'no'), ('auto_publish.when=best', 'best')): assert load_config('demo', pair).auto_publish.when == found
    with pytest.raises(UserError, match='auto_publish'): load_config('demo', 'auto_publish.when=sometimes')
    with pytest.raises(UserError, match="did you mean 'when'"): load_config('demo', 'auto_publish.wen=best')


@pytest.mark.parametrize('name', ['TRM_AUTO_PUBLISH', 'TRI_AUTO_PUBLISH'])
def test_environment_alone_publishes_a_run(hub, data, tmp_path, monkeypatch, name):
    "By either name, to where HUGGINGFACE_MODEL_REPO says; a config that says no wins."
    monkeypatch.setenv(name, 'true')
    monkeypatch.setenv('HUGGINGFACE_MODEL_REPO', 'me/by-itself')
    assert work(prepare(config(data, tmp_path, 'kept', 'auto_publish=false'))) == 'done' and not hub.log
    assert work(prepare(config(data, tmp_path, 'sent'))) == 'done'
    assert f'step-{read_subject(tmp_path/"auto/sent").step}' in hub.repo('me/by-itself').tags


# space

def test_space(hub, run, tmp_path):
    code, out, err = said('publish', 'space', str(run), 'me/page', '--out', str(tmp_path/'page'), '--model', 'me/tiny')
    assert code == 0 and 'python app.py there serves the page' in out
    assert 'exists already' in said('publish', 'space', str(run), 'me/page', '--out', str(tmp_path/'page'))[2]
    assert said('publish', 'space', str(run), 'me/page')[0] == 0
    repo = hub.repo('me/page', 'space')
    assert repo.private and repo.sdk == 'gradio' and {p.relative_to(tmp_path/'page').as_posix() for p in (tmp_path/'page').rglob('*') if p.is_file()} <= set(repo.files)
    compile(repo.files['app.py'], 'app.py', 'exec')
    assert b'gradio==6.31.0' in repo.files['requirements.txt'] and b'sdk_version: 6.31.0' in repo.files['README.md']


def test_requirements_can_be_resolved():
    "Every line is one requirement with its version."
    for line in requirements('gradio==6.31.0').splitlines()[1:]: assert re.fullmatch(r'[\w.-]+==[\w.]+', line), line


def tool(name):
    "A program of this environment, or of the system."
    found = shutil.which(name, path=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    if not found: pytest.skip(f'{name} is not installed')
    return found


@pytest.mark.slow
def test_dockerfile_is_clean(root):
    checked = subprocess.run([tool('hadolint'), '--failure-threshold', 'style', str(root/'experiments/hub/Dockerfile')], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


CHROMIUM = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage'.split()


@contextlib.contextmanager
def served(folder, log):
    "The page of a Space folder, in a process that sees nothing but the folder; yields its address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'PYTHONPATH'))} | dict(GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    with log.open('wb') as out: app = subprocess.Popen([sys.executable, 'app.py'], cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        until = time.time() + 180
        while True:
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=2); break
            except OSError: assert app.poll() is None and time.time() < until, log.read_text()
            time.sleep(.5)
        yield f'http://127.0.0.1:{port}/'
    finally:
        end(app)


@pytest.mark.slow
def test_space_solves_in_a_browser(run, tmp_path):
    pytest.importorskip('gradio')
    playwright = pytest.importorskip('playwright.sync_api')
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
    if not browser: pytest.skip('no Chromium here')
    subject = read_subject(run)
    folder, puzzle = write_folder(space_files(subject, 'me/page'), tmp_path/'page'), subject.example['puzzle']
    answer = Solver.from_pretrained(run, 'cpu').solve(puzzle)
    with served(folder, tmp_path/'app.log') as address, playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser, args=CHROMIUM)
        page = chromium.new_page(viewport=dict(width=1200, height=1000))
        page.goto(address)
        done = "x => (x = document.querySelector('.trm')?.explorer) && x.sides.a && !x.busy"
        page.wait_for_function(done, timeout=120_000)
        page.get_by_role('button', name='Paste', exact=True).click()
        page.locator('.trm textarea').fill('12')
        page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
        page.locator('.trm-error').wait_for(timeout=60_000)
        page.locator('.trm textarea').fill(puzzle)
        page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
        page.wait_for_function(f"{done} && x.info.puzzles[x.info.entry] === 'pasted'", timeout=60_000)
        page.get_by_role('button', name='The answer as text').click()
        page.wait_for_function("text => [...document.querySelectorAll('#text textarea')].some(t => t.value === text)", arg=answer.text, timeout=60_000)
        chromium.close()


@pytest.mark.slow
def test_load_dataset(hub, data, tmp_path):
    "In a process of its own, as a user would."
    pytest.importorskip('datasets')
    publish_dataset(data, 'me/sudoku-tiny')
    code = 'from datasets import load_dataset; d = load_dataset("me/sudoku-tiny"); print({k: (len(v), v.column_names) for k, v in d.items()}); print([f.dtype for f in d["train"].features.values()]); print(d["test"][0]["question"])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env=os.environ | hub.env(tmp_path/'other'))
    assert done.returncode == 0, done.stderr[-3000:]
    columns = "['source', 'question', 'answer', 'rating']"
    assert f"'train': (40, {columns}), 'test': (30, {columns})" in done.stdout and "['string', 'string', 'string', 'int64']" in done.stdout and hub.repo('me/sudoku-tiny', 'dataset').files['test.csv'].decode().split(',')[4] == done.stdout.split()[-1]


# pipeline

def write_pipeline(tmp_path, **sections):
    file = tmp_path/'project.yaml'
    file.write_text(yaml.safe_dump(dict(project_root=str(tmp_path)) | sections))
    return file


def test_template_has_every_key(tmp_path):
    file = tmp_path/'p.yaml'
    write_template(file)
    found, said = read_pipeline(file), yaml.safe_load(file.read_text())
    assert set(said) == set(type(found).model_fields)
    for name in ('telemetry', 'dataset', 'training', 'model', 'space'): assert set(said[name]) == set(type(getattr(found, name)).model_fields)
    assert set(said['training']['slurm']) == set(type(found.training.slurm).model_fields) and found.training.slurm == type(found.training.slurm)()
    keys = dict(dataset='local_path repo_id private token add_readme readme_path commit_message allow_create files_include files_ignore',
                training='use_torchrun nproc_per_node nnodes node_rank rdzv_backend rdzv_endpoint rdzv_id python_executable dry_run checkpoint_dir env overrides',
                model='checkpoint_dir repo_id private token commit_message allow_create config_filename include_code_snapshot model_card_path extra_files')
    for section, names in keys.items(): assert set(names.split()) <= set(said[section])      # of the design document
    with pytest.raises(UserError, match='exists: choose another name'): write_template(file)
    assert 'train demo runs=runs name=sudoku-6x6 data.path=data/sudoku-6x6 learn.eval_every=200' in dry_run(file)


DOCUMENT = """
project_root: "."
dataset:
  local_path: "data/arc1concept-aug-1000"
  repo_id: "your-username/arc-trm-dataset" # Set your HF username
  private: true
  token: null # Uses HUGGINGFACE_TOKEN env var if null
  add_readme: true
  readme_path: null # Auto-generate if null
  commit_message: "dataset upload"
  allow_create: true
  files_include: null # Include all files
  files_ignore:
    - ".DS_Store"
    - "Thumbs.db"
    - "*.tmp"
training:
  use_torchrun: true
  nproc_per_node: 4
  nnodes: 1
  node_rank: 0
  rdzv_backend: "c10d"
  rdzv_endpoint: "localhost:29500"
  rdzv_id: null # Auto-generated if null
  python_executable: "python"
  dry_run: false
  checkpoint_dir: "checkpoints/arc1-trm-experiment"
  env:
    WANDB_PROJECT: "tiny-recursive-models"
    # WANDB_API_KEY: "your_key"
  overrides:
    - "model.L_layers=2"
model:
  checkpoint_dir: "checkpoints/arc1-trm-experiment"
  repo_id: "your-username/arc-trm-model"
  private: true
  token: null
  commit_message: "model upload"
  allow_create: true
  config_filename: "all_config.yaml"
  include_code_snapshot: true
  model_card_path: null
  extra_files:
    # "inference_example.py": "scripts/inference_example.py"
"""


def test_pipeline_of_the_design_document(tmp_path):
    "Its own file, key by key, is understood: what it sets is set, and a key with nothing behind it, as extra_files there, means the default."
    (tmp_path/'p.yaml').write_text(DOCUMENT)
    found = read_pipeline(tmp_path/'p.yaml')
    for section, values in yaml.safe_load(DOCUMENT).items():
        for key, value in values.items() if isinstance(values, dict) else (): assert getattr(getattr(found, section), key) == ({} if key == 'extra_files' else value), key
    assert found.project_root == '.' and found.space is None
    (tmp_path/'p.yaml').write_text('telemetry:\nspace:\ntraining:\n  checkpoint_dir: runs/a\n  env:\n  overrides:\n  slurm:\n')
    assert read_pipeline(tmp_path/'p.yaml') == pipeline.check_pipeline(dict(training=dict(checkpoint_dir='runs/a')))
    for text, message in (('training:\n  checkpoint_dir:\n', "'training.checkpoint_dir'"), ('training:\n  checkpoint_dir: a\n  nodes:\n', "unknown setting 'training.nodes'"), ('modle:\n', "unknown setting 'modle'")):
        (tmp_path/'p.yaml').write_text(text)
        with pytest.raises(UserError, match=message): read_pipeline(tmp_path/'p.yaml')


def test_training_keys_reach_torchrun(tmp_path, monkeypatch):
    "Machines, rendezvous and its id, python, environment and overrides: all are in what is started; dry_run starts nothing."
    keys = dict(checkpoint_dir='runs/a', preset='demo', nproc_per_node=4, nnodes=2, rdzv_endpoint='node0:29511', rdzv_id='meeting', python_executable='other-python', env=dict(WANDB_PROJECT='theirs'), overrides=['seed=3'])
    def call(command, environment):
        started.append((shlex.join(command), environment))
        write_json(tmp_path/'runs/a/checkpoints/step_7/metadata.json', {})
    started = []
    monkeypatch.setattr(pipeline, 'call', call)
    (tmp_path/'runs/a/checkpoints/step_7').mkdir(parents=True)
    run_pipeline(write_pipeline(tmp_path, training=keys))
    (command, environment), = started
    assert command == 'other-python -m trm_nb.cli train demo runs=runs name=a seed=3 --nproc 4 --nnodes 2 --rendezvous node0:29511 --overwrite' and environment == dict(WANDB_PROJECT='theirs', PET_RDZV_ID='meeting')
    file = write_pipeline(tmp_path, training=keys | dict(dry_run=True))
    assert command.replace('--overwrite', '').strip() in run_pipeline(file, force=['train']) and len(started) == 1


@pytest.mark.parametrize('sections, message', [
    (dict(dataset=dict(local_path='x', token='hf_secret')), 'dataset.token: a token does not belong in this file'),
    (dict(training=dict(checkpoint_dir='x', env=dict(MY_API_KEY='secret'))), 'training.env.MY_API_KEY: a secret does not belong'),
    (dict(training=dict(checkpoint_dir='x', nodes=2)), "unknown setting 'training.nodes': did you mean 'nnodes'"),
    (dict(training=dict(checkpoint_dir='x', backend='slurm', use_torchrun=False)), 'use_torchrun false is for backend local'),
    (dict(training=dict(checkpoint_dir='x', backend='slurm', nnodes=2, node_rank=1)), 'training.node_rank is for backend local'),
    (dict(training=dict(checkpoint_dir='x', backend='slurm', slurm=dict(partion='gpu'))), "unknown setting 'training.slurm.partion': did you mean 'partition'"),
    (dict(training=dict(checkpoint_dir='x', backend='pbs')), "setting 'training.backend': Input should be 'local' or 'slurm', got 'pbs'"),
    (dict(training=dict(checkpoint_dir='x', use_torchrun=False, nproc_per_node=2)), 'several need torchrun'),
    (dict(training=dict(checkpoint_dir='x', node_rank=1)), 'training.node_rank 1: allowed are 0 to 0, as training.nnodes is 1'),
    (dict(training=dict(checkpoint_dir='x', nnodes=2, rdzv_endpoint='node0')), "training.rdzv_endpoint 'node0': write HOST:PORT"),
    (dict(modle={}), "did you mean 'model'")])
def test_mistakes_in_a_pipeline(tmp_path, sections, message):
    code, out, err = said('pipeline', str(write_pipeline(tmp_path, **sections)))
    assert code == 2 and message in err and err.count('\n') == 1 and 'secret' not in err.replace('a secret does', '')


def test_pipeline_needs_its_token_at_once(hub, run, data, tmp_path, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    file = write_pipeline(tmp_path, dataset=dict(local_path=str(data), repo_id='me/data'), model=dict(checkpoint_dir=str(run), repo_id='me/tiny'))
    assert 'HF_TOKEN is not set' in said('pipeline', str(file))[2] and not file.with_suffix('.state.json').exists()
    assert said('pipeline', str(file), '--skip', 'dataset', '--skip', 'model')[0] == 0
    assert 'me/data (private' in said('pipeline', str(file), '--dry-run')[1]


@pytest.mark.parametrize('space, first', [(dict(out='page'), 'would write the folder page:'), (dict(repo_id='me/page'), 'would publish to the space me/page (private, created if it is missing):'), (dict(repo_id='me/page', out='page'), 'would write the folder page, and:')])
def test_dry_run_shows_the_space(hub, run, tmp_path, space, first):
    "Every file of the page with its size, before anything is written or sent; exactly those are made then."
    file = write_pipeline(tmp_path, model=dict(checkpoint_dir=str(run)), space=space)
    shown = said('pipeline', str(file), '--dry-run')[1]
    assert not hub.log and not (tmp_path/'page').exists()
    title, *lines = shown.split('== space: make a web page\n')[1].split('\n\nstage')[0].splitlines()
    assert title == first
    listed = dict(re.findall(r'^ *[\d.]+ [KM]?B  (?!in )(\S+)()$', '\n'.join(lines), re.M))
    assert {'app.py', 'Dockerfile', 'requirements.txt', 'model/model.safetensors', 'trm_nb/explore/solver.py'} <= set(listed) and lines[-1].endswith(f'in {len(listed)} files')
    assert said('pipeline', str(file))[0] == 0
    made = set(hub.repo('me/page', 'space').files) - {'.gitattributes'} if 'repo_id' in space else {p.relative_to(tmp_path/'page').as_posix() for p in (tmp_path/'page').rglob('*') if p.is_file()}
    assert made == set(listed)


def test_pipeline_goes_on_after_a_failure(hub, run, data, tmp_path):
    file = write_pipeline(tmp_path, dataset=dict(local_path=str(data), repo_id='me/data'), model=dict(checkpoint_dir=str(run), repo_id='me/tiny', include_code_snapshot=False, config_filename='all.yaml'), space=dict(out='page'))
    hub.fail('POST /api/models/me/tiny/commit', 500, times=1000)
    code, out, err = said('pipeline', str(file))
    assert code == 2 and told(err)[-1] == f"trm: stage 'model' failed: the Hub is out of order (500): try again later. Go on with: trm pipeline {file}"
    assert [State(file).get(s).get('status') for s in ('dataset', 'model', 'space')] == ['done', 'failed', None]
    hub.faults.clear()
    hub.log.clear()
    code, out, err = said('pipeline', str(file))
    assert code == 0 and '2/5 dataset: done before' in err and not hub.asked('datasets') and (tmp_path/'page/app.py').is_file() and 'all.yaml' in hub.repo('me/tiny').files
    code, out, err = said('pipeline', str(file))
    assert err.count('done before') == 3
    assert said('pipeline', str(file), '--force', 'dataset')[2].count('done before') == 2
    assert said('pipeline', str(file), '--skip', 'modle')[2] == "trm: unknown stage 'modle': did you mean 'model'?\n"
    assert hub.token not in file.with_suffix('.state.json').read_text()


@pytest.mark.parametrize('error, code, last', [
    (OSError(errno.ENOSPC, 'No space left on device', 'page/app.py'), 2, "trm: stage 'space' failed: No space left on device: page/app.py. Go on with: "), (KeyboardInterrupt(), 130, "trm: stage 'space' was interrupted. Go on with: "),
    (ZeroDivisionError('a bug'), None, "stage 'space' failed. Go on with: "), (UserError('no such thing'), 2, "trm: stage 'space' failed: no such thing. Go on with: ")])
@pytest.mark.parametrize('full', [False, True], ids=['', 'nothing can be written'])
def test_every_failure_names_its_stage(run, tmp_path, monkeypatch, error, code, last, full):
    "A mistake, a full disk, Ctrl-C: one line, and no more; a bug keeps its traceback, and the last line of that says how to go on."
    def fail(*args): raise error
    def broken(*args): raise OSError(errno.ENOSPC, 'No space left on device', 'project.state.json')
    def make(*args):
        if full: monkeypatch.setattr(pipeline, 'write_json', broken)
        fail()
    monkeypatch.setattr(pipeline, 'write_folder', make)
    file = write_pipeline(tmp_path, model=dict(checkpoint_dir=str(run)), space=dict(out='page'))
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try: found = cli.call(['pipeline', str(file), '--skip', 'dataset', '--force', 'model'])
        except ZeroDivisionError: found, _ = None, traceback.print_exc()
    lines = err.getvalue().splitlines()
    assert found == code and lines[-1] == f'{last}trm pipeline {file} --skip dataset' and ('Traceback' in err.getvalue()) == (code is None)
    assert [l.split()[:2] for l in lines if l.startswith('space ')] and State(file).get('space')['status'] == ('running' if full else 'stopped' if code == 130 else 'failed')


def test_failures_before_a_stage_runs(run, tmp_path, monkeypatch):
    "Also where it is only looked at whether a stage is done, and where its program is not there."
    def fail(*args): raise OSError(errno.EACCES, 'Permission denied', 'card.md')
    file = write_pipeline(tmp_path, training=dict(checkpoint_dir=str(run), python_executable='no-such-python'))
    assert said('pipeline', str(file))[2].splitlines()[-1] == f"trm: stage 'train' failed: there is no program 'no-such-python'. Go on with: trm pipeline {file}"
    monkeypatch.setattr(pipeline, 'hash_files', fail)
    file = write_pipeline(tmp_path, model=dict(checkpoint_dir=str(run)), space=dict(out='page'))
    assert said('pipeline', str(file))[2].splitlines()[-1] == f"trm: stage 'space' failed: Permission denied: card.md. Go on with: trm pipeline {file}"


def test_edited_files_are_published_again(hub, run, data, tmp_path, monkeypatch):
    "What counts is what stands in a card, in a further file and in the library's code, not what they are called."
    for name in ('data.md', 'model.md'): (tmp_path/name).write_text(f'---\nlicense: mit\n---\n# {name}\n')
    for name in ('a.txt', 'b.txt', 'c.txt', 'code.py'): (tmp_path/name).write_text('first')
    monkeypatch.setattr(pipeline, 'code_files', lambda: {'trm_nb/code.py': tmp_path/'code.py'})
    file = write_pipeline(tmp_path, dataset=dict(local_path=str(data), repo_id='me/data', readme_path='data.md', extra_files={'a.txt': 'a.txt'}), space=dict(out='page', extra_files={'c.txt': 'c.txt'}),
                          model=dict(checkpoint_dir=str(run), repo_id='me/tiny', model_card_path='model.md', extra_files={'docs/b.txt': 'b.txt'}))
    assert said('pipeline', str(file))[0] == 0
    due = lambda: re.findall(r'^== (\w+): (?!done before|dataset.build|there is no)', dry_run(file), re.M)
    assert due() == []
    for name, stages in (('data.md', ['dataset']), ('model.md', ['model']), ('a.txt', ['dataset']), ('b.txt', ['model']), ('c.txt', ['space']), ('code.py', ['model', 'space'])):
        (tmp_path/name).write_text('---\nlicense: mit\n---\n# Edited\n')
        assert due() == stages, name
        assert said('pipeline', str(file))[0] == 0 and due() == []
    assert b'# Edited' in hub.repo('me/tiny').files['README.md'] and b'# Edited' in hub.repo('me/tiny').files['docs/b.txt'] and b'# Edited' in hub.repo('me/data', 'dataset').files['README.md']


def test_progress_is_told(hub, run, data, tmp_path, monkeypatch):
    "Two calls are one story; a sink that fails costs a line."
    told = []
    class Fake(Sink):
        def log(self, step, values): told.append((self.run.id, step, *values))
        def summary(self, values): told.append(values)
        def finish(self, done): told.append(done)
    class Broken(Sink):
        def __init__(self, run): raise OSError('no disk')
    monkeypatch.setitem(SINKS, 'fake', Fake)
    monkeypatch.setitem(SINKS, 'broken', Broken)
    file = write_pipeline(tmp_path, telemetry=dict(sinks=['broken', 'fake']), dataset=dict(local_path=str(data), repo_id='me/data'))
    hub.fail('POST /api/datasets/me/data/commit', 403)
    for code in (2, 0):
        result = said('pipeline', str(file))
        assert result[0] == code and 'note: telemetry: no disk' in result[2]
    rows = [t for t in told if isinstance(t, tuple)]
    assert len({r[0] for r in rows}) == 1 and [r[1] for r in rows] == list(range(1, 8)) and {'pipeline/dataset': 'failed'} in told and told[-1] is True and False in told


TINY = ['model.hidden_size=32', 'model.num_heads=2', 'model.H_cycles=1', 'model.L_cycles=1', 'model.halt_max_steps=2', 'learn.batch_size=8', 'learn.log_every=5', 'learn.eval_every=60', 'learn.save_every=20',
        'learn.warmup_steps=5', 'device=cpu', 'evaluate.max_puzzles=20']


def rows(run): return RowLog(run/'metrics.jsonl').rows()


def test_a_further_machine_only_trains(tmp_path, monkeypatch):
    "It publishes nothing, needs no token, keeps an account of its own, throws nothing away, and ends no processes, which may be the first machine's."
    monkeypatch.delenv('HF_TOKEN', raising=False)
    file = write_pipeline(tmp_path, dataset=dict(local_path='data', build='sudoku --source generate', repo_id='me/data'), training=dict(checkpoint_dir='runs/a', nnodes=2, node_rank=1), model=dict(repo_id='me/a'), space=dict(out='page'))
    (tmp_path/'runs/a').mkdir(parents=True)
    stages = {s.name: s for s in pipeline.stages_of(read_pipeline(file))}
    assert {n for n, s in stages.items() if not s.unwanted} == {'train'} and 'the first machine does it' in dry_run(file)
    monkeypatch.setattr(pipeline, 'ranks_of', lambda folder: [os.getpid()])
    monkeypatch.setattr(os, 'kill', lambda *a: pytest.fail('it ended a process'))
    called = []
    monkeypatch.setattr(launch, 'answers', lambda address: True)
    monkeypatch.setattr(pipeline, 'call', lambda command, environment: called.append(command) or write_json(tmp_path/'runs/a/status.json', dict(status='done', message='')))
    State(file, 1).put('train', status='running')
    run_pipeline(file)
    assert '--node-rank 1' in ' '.join(*called) and 'overwrite' not in ' '.join(*called) and State(file, 1).get('train')['status'] == 'done' and not State(file).stages
    write_json(tmp_path/'runs/a/status.json', dict(status='failed', message='no room'))
    monkeypatch.setattr(pipeline, 'call', lambda *a: None)
    with pytest.raises(UserError, match="stage 'train' failed: no room"): run_pipeline(file, force=['train'])


def test_one_pipeline_at_a_time(tmp_path, monkeypatch):
    "A second call while the first one trains ends no processes and changes nothing; what only looks, and another machine, may."
    file, told = write_pipeline(tmp_path, training=dict(checkpoint_dir='runs/a')), []
    def call(command, environment):
        before = file.with_suffix('.state.json').read_bytes()
        told.append(said('pipeline', str(file)))
        assert file.with_suffix('.state.json').read_bytes() == before and 'running' in dry_run(file)
        with pipeline._alone(file, 1): pass
        save_checkpoint(tmp_path/'runs/a/checkpoints', 5, {}, {}, dict(step=5))
    monkeypatch.setattr(pipeline, 'call', call)
    monkeypatch.setattr(pipeline, 'end_ranks', lambda folder: pytest.fail('it ended the training'))
    assert said('pipeline', str(file))[0] == 0
    assert told == [(2, '', f'trm: {file} is being worked on by another process\n')] and sorted(p.name for p in tmp_path.glob('project.*')) == ['project.state.json', 'project.yaml']


def test_ranks_that_are_just_gone(monkeypatch):
    "Between the look and the signal a process may end by itself."
    gone = subprocess.Popen(['true'])
    gone.wait()
    looks = iter([[gone.pid], []])
    monkeypatch.setattr(pipeline, 'ranks_of', lambda folder: next(looks))
    pipeline.end_ranks('runs/a')


def test_training_knows_its_pipeline(tmp_path, monkeypatch):
    "It ends with it, also where the pipeline is killed before the training has begun to listen."
    monkeypatch.setattr(pipeline, 'die_with_parent', lambda parent: (tmp_path/'parent').write_text(str(parent)))
    pipeline.call(['true'])
    assert (tmp_path/'parent').read_text() == str(os.getpid())


def test_slurm_is_looked_for_at_once(hub, tmp_path, monkeypatch):
    "Before anything is made; not where the training is left out. A dry run shows what would be sent."
    file = write_pipeline(tmp_path, dataset=dict(local_path='data', build='sudoku --source generate --size 4 --train 9 --test 9'), training=dict(checkpoint_dir='runs/a', backend='slurm', nproc_per_node=8, slurm=dict(partition='gpu'), overrides=['seed=3']))
    monkeypatch.setenv('PATH', str(tmp_path))
    code, _, err = said('pipeline', str(file))
    assert code == 2 and err == 'trm: training.backend slurm: there is no sbatch on this machine; run the pipeline where Slurm is\n' and not (tmp_path/'data').exists()
    assert said('pipeline', str(file), '--skip', 'train', '--skip', 'build')[0] == 0
    words = shlex.split(re.search(r'^.*lab.attach.*$', dry_run(file), re.M)[0])
    job = Job(**json.loads(words[-1]))
    assert (job.folder, job.preset, job.settings, job.nproc, job.slurm) == ('runs/a', 'demo', ['runs=runs', 'name=a', 'data.path=data', 'seed=3'], 8, dict(partition='gpu')) and job.mark
    assert not Job(**json.loads(shlex.split(re.search(r'^.*lab.attach.*$', dry_run(file), re.M)[0])[-1])).overwrite and '"overwrite": true' in dry_run(file, force=['train'])


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or 'there is a cluster')
def test_pipeline_on_slurm(tmp_path, monkeypatch):
    "Sent, killed -9 with all that it had started here, and run again, twice: the job goes on, is followed again, and is never sent a second time."
    monkeypatch.chdir(tmp_path)
    with slurm_cluster.Cluster(tmp_path/'cluster') as cluster:
        overrides, run = [*TINY[:-4], 'learn.log_every=50', 'learn.eval_every=3000', 'learn.save_every=500', 'learn.warmup_steps=5', 'device=cpu', 'learn.steps=6000'], tmp_path/'runs/tiny'
        training = dict(checkpoint_dir='runs/tiny', backend='slurm', slurm=dict(gpus=0, time=60), overrides=overrides)
        file = write_pipeline(tmp_path, dataset=dict(local_path='data/tiny', build='sudoku --source generate --size 4 --train 40 --test 20'), training=training, space=dict(out='page'))
        environment = cluster.env | dict(OMP_NUM_THREADS='1')
        def start():
            with open('said', 'wb') as out: return subprocess.Popen([sys.executable, '-m', 'trm_nb.cli', 'pipeline', str(file)], env=environment, start_new_session=True, stdout=out, stderr=out)
        def wait_for(what, process):
            until = time.time() + 300
            while not what(): assert process.poll() is None and time.time() < until, Path('said').read_text()[-3000:]; time.sleep(.1)
        def kill(process): os.killpg(process.pid, signal.SIGKILL), process.wait()
        first = start()
        wait_for(lambda: (run/'metrics.jsonl').exists() and rows(run), first)
        kill(first)
        number = read_job(run).job
        assert State(file).get('train')['status'] == 'running' and number and 'is sent' in Path('said').read_text()
        second = start()
        wait_for(lambda: f'Slurm job {number} was sent before and is followed again' in Path('said').read_text(), second)
        kill(second)
        assert cluster.run('squeue', '-h', '-o', '%T').stdout.strip() == 'RUNNING' and not (run/'checkpoints/step_6000').exists()
        read_job(run).update(job=None)          # as if the first had been killed before it could write it down
        third = start()
        wait_for(lambda: f'Slurm job {number} was sent before and is followed again' in Path('said').read_text(), third)
        assert third.wait(600) == 0, Path('said').read_text()[-3000:]
        assert [r['step'] for r in rows(run) if r['kind'] == 'train'] == list(range(50, 6001, 50)) and (tmp_path/'page/app.py').is_file()
        assert len(list((run/'slurm').glob('*_submitted.pkl'))) == 1 and cluster.run('squeue', '-h', '--states=all', '-o', '%i').stdout.split() == [number]
        again = start()
        assert again.wait(60) == 0 and Path('said').read_text().count(': done before') == 3
        training['overrides'] = [*overrides[:-1], 'learn.steps=6000', 'learn.lr=9e-3']
        write_pipeline(tmp_path, dataset=dict(local_path='data/tiny'), training=training)
        refused = start()
        assert refused.wait(60) == 2 and "runs/tiny was trained with another 'learn.lr'" in Path('said').read_text() and Path('said').read_text().rstrip().endswith('--force train')
        assert len(list((run/'slurm').glob('*_submitted.pkl'))) == 1


@pytest.mark.slow
def test_changed_training_starts_anew_when_forced(data, tmp_path, monkeypatch, capfd):
    "A run goes on only with its own settings and data; what the last line says helps, and nothing is advised that a pipeline cannot do."
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, 'data')
    training = dict(checkpoint_dir='runs/a', use_torchrun=False, overrides=[*TINY, 'learn.steps=20', 'learn.lr=1e-3'])
    file = write_pipeline(tmp_path, dataset=dict(local_path='data'), training=training)
    assert said('pipeline', str(file))[0] == 0
    write_pipeline(tmp_path, dataset=dict(local_path='data'), training=training | dict(overrides=[*TINY, 'learn.steps=20', 'learn.lr=2e-3']))
    def refused():
        code, _, err = said('pipeline', str(file))
        child = capfd.readouterr().err.splitlines()[-1]
        assert code == 2 and 'name=' not in child and '--' not in child and err.splitlines()[-1].endswith(f'start anew, which throws away what runs/a holds: trm pipeline {file} --force train')
        return child
    assert refused() == refused() == "trm: runs/a was trained with another 'learn.lr': set it back to go on, or start anew in another folder"
    write_pipeline(tmp_path, dataset=dict(local_path='data'), training=training)
    shutil.rmtree('data')
    write_generated(tmp_path/'data', size=4, train=30, test=20)
    assert 'was trained on other puzzles' in refused()
    assert said('pipeline', str(file), '--force', 'train')[0] == 0 and said('pipeline', str(file))[2].count('done before') == 1


@pytest.mark.slow
def test_two_machines(tmp_path, monkeypatch):
    "Two pipelines on this machine play two machines; the second begins before there are any data."
    monkeypatch.chdir(tmp_path)
    with FakeHub() as hub, socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
        s.close()
        environment = os.environ | hub.env(tmp_path/'cache') | dict(OMP_NUM_THREADS='1')
        def start(rank, env):
            training = dict(checkpoint_dir='runs/tiny', overrides=[*TINY, 'learn.steps=60'], nnodes=2, node_rank=rank, rdzv_endpoint=f'127.0.0.1:{port}', rdzv_id='pair')
            file = write_pipeline(tmp_path, dataset=dict(local_path='data/tiny', build='sudoku --source generate --size 4 --train 40 --test 20', repo_id='me/sudoku-tiny'), training=training, model=dict(repo_id='me/tiny'))
            command = [sys.executable, '-m', 'trm_nb.cli', 'pipeline', str(file.rename(tmp_path/f'machine{rank}.yaml'))]
            return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        second = start(1, {k: v for k, v in environment.items() if k != 'HF_TOKEN'})
        first = start(0, environment)
        said = [p.communicate(timeout=300)[0] for p in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), '\n'.join(said)[-3000:]
        assert [r['step'] for r in rows(tmp_path/'runs/tiny') if r['kind'] == 'train'] == list(range(5, 61, 5))
        assert json.loads((tmp_path/'runs/tiny/checkpoints/last/metadata.json').read_text())['world'] == 2
        assert 'runs/tiny, as machine 1' in said[1] and said[1].count('the first machine does it') >= 3
        assert [len(hub.repo(*r).messages) for r in (('me/tiny',), ('me/sudoku-tiny', 'dataset'))] == [2, 2]       # the first commit, and one publication
        again = start(1, environment)
        assert 'train: done before' in again.communicate(timeout=60)[0] and again.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize('left', [False, True], ids=['all killed', 'ranks left behind'])
def test_whole_pipeline_killed_while_it_trains(tmp_path, left, monkeypatch):
    "From a generator to the Hub and a page, killed -9 in the train stage and run again."
    monkeypatch.chdir(tmp_path)
    with FakeHub() as hub:
        environment = os.environ | hub.env(tmp_path/'cache') | dict(OMP_NUM_THREADS='1')
        file = write_pipeline(tmp_path, dataset=dict(local_path='data/tiny', build='sudoku --source generate --size 4 --train 40 --test 20', repo_id='me/sudoku-tiny'),
                              telemetry=dict(sinks=['wandb'], mode='offline'), training=dict(checkpoint_dir='runs/tiny', overrides=[*TINY, 'learn.steps=240'], env=dict(LOGLEVEL='ERROR')), model=dict(repo_id='me/tiny'), space=dict(repo_id='me/page'))
        command = [sys.executable, '-m', 'trm_nb.cli', 'pipeline', str(file)]
        first, run = subprocess.Popen(command, env=environment, start_new_session=True), tmp_path/'runs/tiny'
        while not (run/'checkpoints/last').exists() or rows(run)[-1]['step'] < 30:
            assert first.poll() is None
            time.sleep(.01)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        if not left:
            for pid in ranks_of('runs/tiny'):
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)        # left alone, they save and leave
        reached = rows(run)[-1]['step']
        assert reached < 240 and State(file).get('train')['status'] == 'running' and State(file).get('dataset')['status'] == 'done' and hub.repo('me/tiny') is None
        hub.log.clear()
        second = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert second.returncode == 0, second.stderr[-3000:]
        assert '1/5 build: done before' in second.stderr and '2/5 dataset: done before' in second.stderr and not hub.asked('datasets/me')
        assert [r['step'] for r in rows(run) if r['kind'] == 'train'] == list(range(5, 241, 5))       # nothing twice, nothing missing
        assert not ranks_of('runs/tiny') and tags_of(read_subject(run))[0] in hub.repo('me/tiny').tags and list((tmp_path/'project.progress').rglob('*.wandb'))
        assert 'app.py' in hub.repo('me/page', 'space').files and 'train    done' in second.stdout
        third = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert third.stderr.count('done before') == 5 and hub.token not in second.stdout + second.stderr + third.stdout + third.stderr
        assert not [p for p in tmp_path.rglob('*') if p.is_file() and hub.token.encode() in p.read_bytes()]
