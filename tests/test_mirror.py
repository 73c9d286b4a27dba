"""run.mirror: what is sent, what is removed, what is refused before a run begins; the Hub's protocol on a loopback Hub."""
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from tooling.fake_hub import FakeHub, Repo
from trm_nb.cli import call
from trm_nb.data.sudoku import write_generated
from trm_nb.lab.jobs import Job
from trm_nb.learn.checkpoint import point, save_checkpoint
from trm_nb.publish.mirror import Copies

TINY = ['model.hidden_size=16', 'model.num_heads=2', 'model.halt_max_steps=2', 'learn.batch_size=8', 'learn.log_every=2', 'learn.eval_every=4', 'learn.keep_last=1', 'device=cpu']

def save(run, *steps):
    for step in steps:
        save_checkpoint(run/'checkpoints', step, {}, {}, {'step': step})
        point(run/'checkpoints', 'last', step)

def mirrored(store): return sorted(p.parent.name for p in store.glob('*/checkpoints/step_*/metadata.json'))

def test_another_process_knows_what_is_there(tmp_path):
    "Nothing is sent twice, and what a run has removed since leaves the store, whoever copies."
    run, store = tmp_path/'run', tmp_path/'store'
    save(run, 10, 20)
    assert Copies(run, f'file://{store}').update() == 6 and Copies(run, f'file://{store}').update() == 0
    shutil.rmtree(run/'checkpoints'/'step_10')
    save(run, 30)
    assert Copies(run, f'file://{store}').update() == 3 and mirrored(store) == ['step_20', 'step_30']
    assert Copies(run, f'file://{tmp_path}/other').update() == 6 and mirrored(tmp_path/'other') == ['step_20', 'step_30']  # another store has nothing yet

def test_a_renamed_run_is_sent_anew(tmp_path):
    "Under its new name it has nothing yet; what lies under the old one is left alone."
    run, url = tmp_path/'old', f'file://{tmp_path}/store'
    save(run, 10)
    Copies(run, url).update()
    run = run.rename(tmp_path/'new')
    save(run, 20)
    assert Copies(run, url).update() == 6 and Copies(run, url).update() == 0
    assert [(p.parent.name, sorted(s.name for s in p.glob('step_*'))) for p in sorted((tmp_path/'store').glob('*/checkpoints'))] == [('new', ['step_10', 'step_20']), ('old', ['step_10'])]

def test_only_what_was_sent_is_removed(tmp_path):
    "A run that begins on an empty machine takes nothing out of a store that others filled."
    store = tmp_path/'store'
    save(tmp_path/'a'/'run', 10)
    Copies(tmp_path/'a'/'run', f'file://{store}').update()
    save(tmp_path/'b'/'run', 20)
    Copies(tmp_path/'b'/'run', f'file://{store}').update()
    assert mirrored(store) == ['step_10', 'step_20']
    shutil.rmtree(store/'run'/'checkpoints'/'step_20') # somebody removes it: no reason to fail for ever
    shutil.rmtree(tmp_path/'b'/'run'/'checkpoints'/'step_20')
    save(tmp_path/'b'/'run', 30)
    Copies(tmp_path/'b'/'run', f'file://{store}').update()
    assert mirrored(store) == ['step_10', 'step_30']

def test_what_vanishes_while_it_is_copied(tmp_path, monkeypatch):
    "The run prunes its checkpoints meanwhile: no reason to complain."
    run = tmp_path/'run'
    save(run, 10, 20)
    put = Copies._put
    def late(self, fs, path, file, name, stamp):
        shutil.rmtree(run/'checkpoints'/'step_10', ignore_errors=True)
        put(self, fs, path, file, name, stamp)
    monkeypatch.setattr(Copies, '_put', late)
    Copies(run, f'file://{tmp_path}/store').update()
    assert mirrored(tmp_path/'store') == ['step_20']

def test_a_copy_that_broke_off_goes_on(tmp_path, monkeypatch):
    run, sent = tmp_path/'run', []
    save(run, 10)
    put = Copies._put
    def breaks(self, fs, path, file, name, stamp):
        if len(sent) == 2: raise ConnectionError('gone')
        sent.append(name)
        put(self, fs, path, file, name, stamp)
    with monkeypatch.context() as m:
        m.setattr(Copies, '_put', breaks)
        with pytest.raises(ConnectionError): Copies(run, f'file://{tmp_path}/store').update()
    assert Copies(run, f'file://{tmp_path}/store').update() == 1

@pytest.mark.parametrize('url, says', [('gs://bucket/runs', 'gcsfs is not installed: pip install "trm_nb[gcs]"'), ('s3://bucket/runs', 's3fs is not installed: pip install "trm_nb[s3]"'),
                                       ('ftp://host/runs', 'write gs://, s3://, hf:// or file://'), ('bucket/runs', 'write gs://'), ('gs:/bucket', 'write gs://')])
def test_refused_before_the_run_begins(tmp_path, monkeypatch, capsys, url, says):
    "By trm train and by trm run, in one line, and nothing is written."
    monkeypatch.chdir(tmp_path)
    for package in ('gcsfs', 's3fs'): monkeypatch.setitem(sys.modules, package, None)
    write_generated('data/demo', size=6, train=20, test=10, seed=0)
    for args in (['train', 'demo', *TINY], ['run', 'exp01a', '--budget', 'smoke'], ['sweep', 'demo', '--grid', 'learn.lr=1e-3']):
        assert call([*args, f'run.mirror={url}']) == 2
        line, = capsys.readouterr().err.strip().splitlines()
        assert f'run.mirror {url}: ' in line and says in line and not Path('runs').exists()

def test_extras_of_the_stores(root):
    settings = (root/'settings.ini').read_text()
    assert 'gcs_requirements = gcsfs' in settings and 's3_requirements = s3fs' in settings

WORK = """import sys
from trm_nb.lab.work import execute
print(execute(sys.argv[1]))
"""

@pytest.mark.slow
def test_a_run_on_the_hub(tmp_path):
    "A run and its resumption, carried out by workers: each checkpoint is uploaded once, old ones go, the notebook follows."
    write_generated(tmp_path/'data', size=4, train=24, test=12, seed=0)
    folder, settings = tmp_path/'runs'/'mine', [*TINY, f'data.path={tmp_path}/data', f'runs={tmp_path}/runs', 'name=mine', 'run.mirror=hf://datasets/me/store/lab']
    with FakeHub() as hub:
        repo = hub.repos['dataset', 'me/store'] = Repo('dataset', 'me/store')
        for steps in (8, 16):
            Job(folder=str(folder), preset='demo', settings=[*settings, f'learn.steps={steps}'], steps=steps).save()
            done = subprocess.run([sys.executable, '-c', WORK, str(folder)], env=os.environ | hub.env(tmp_path/'cache') | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True)
            assert done.stdout.strip().endswith('done') and 'run.mirror' not in done.stderr + (folder/'stderr.log').read_text(), done.stderr
    uploads = [m.split()[1] for m in repo.messages if m.startswith('Upload') and 'model.safetensors' in m]
    assert len(uploads) == len(set(uploads)) and {'8', '16'} <= {u.split('/step_')[1].split('/')[0] for u in uploads}, uploads
    there = {p.split('/')[3] for p in repo.files if '/step_' in p}
    assert there == {p.name for p in (folder/'checkpoints').glob('step_*')} and json.loads(repo.files['lab/mine/checkpoints/links.json'])['last'] == 'step_16'
    assert repo.files['lab/mine/metrics.jsonl'] == (folder/'metrics.jsonl').read_bytes() and repo.files['lab/mine/train.ipynb'] == (folder/'train.ipynb').read_bytes()
