"""Weights from wherever they lie: runs, shipped models, the Hub, official files with any prefix; and what must be refused."""
import io, json, sys
import numpy as np
import pytest
import torch
import yaml
from contextlib import redirect_stdout
from rounding import close, twin_of
from safetensors.torch import load_file, save_file
from trm_nb.data.basics import UserError
from trm_nb.models import pretrained
from trm_nb.models.act import PuzzleShape, ponder
from trm_nb.models.official import export_official
from trm_nb.models.pretrained import export_command, find_checkpoint, info_command, load_pretrained, save_pretrained
from trm_nb.models.zoo import build_model

CASES = 'trm_attention trm_mlp_mixer trm_learned_positions trm_single_latent trm_six_latents hrm transformer_baseline'.split()
DATA = ('arch', 'batch_size', 'seq_len', 'vocab_size', 'num_puzzle_identifiers')


@pytest.fixture
def step_file(golden, tmp_path):
    "Makes an official step_5 beside its all_config.yaml from a golden case."
    def make(case, prefix='_orig_mod.model.', config=True, dtype=torch.float32, **arch):
        settings, weights = json.loads((golden/case/'config.json').read_text()), np.load(golden/case/'weights.npz')
        torch.save({prefix + k.removeprefix('model.'): torch.from_numpy(v).to(dtype) for k, v in weights.items()}, tmp_path/'step_5')
        section = {k: v for k, v in settings.items() if k not in DATA} | dict(name=f"recursive_reasoning.{settings['arch']}@Any", loss=dict(name='losses@ACTLossHead')) | arch
        (tmp_path/'all_config.yaml').unlink(missing_ok=True)
        if config: (tmp_path/'all_config.yaml').write_text(yaml.safe_dump(dict(arch={k: v for k, v in section.items() if v != 'leave out'}, lr=1e-4)))
        return tmp_path/'step_5'
    return make


@pytest.fixture
def model(): return build_model(dict(name='trm', mlp_t=True, hidden_size=32, num_heads=2, puzzle_emb_ndim=32, puzzle_emb_len=1), PuzzleShape(6, 16, 3), seed=5)


@pytest.fixture
def run(model, tmp_path):
    "A run folder with two checkpoints, of which the older one is the best."
    for step in (10, 200): save_pretrained(model, tmp_path/f'run/checkpoints/step_{step}', 'sudoku-4x4', step=step)
    (tmp_path/'run/checkpoints/best').symlink_to('step_10')
    (tmp_path/'run/checkpoints/last').symlink_to('step_200')
    return tmp_path/'run'


def same(a, b):
    "Equal tensors under equal names."
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# official files

@pytest.mark.parametrize('prefix', ['', 'model.', '_orig_mod.', '_orig_mod.model.'])
@pytest.mark.parametrize('case', CASES)
def test_official_answers_as_the_reference(step_file, golden, case, prefix):
    "Found from the keys alone, whatever wrappers they name, and right after four steps, as far as rounding allows."
    found = load_pretrained(step_file(case, prefix), seq_len=16)
    golden_io = np.load(golden/case/'io.npz')
    batch = {k: torch.from_numpy(golden_io[f'batch0.{k}']) for k in ('inputs', 'puzzle_identifiers')}
    *_, (step, out) = ponder(found.act, batch)
    *_, (_, twin) = ponder(twin_of(found.act), batch)
    assert step == 4 and found.metadata['step'] == 5 and found.shape == PuzzleShape(7, 16, 5)
    close(out.logits, golden_io['eval.step3.logits'], 1e-4, twin.logits)
    assert found.act.settings.name == json.loads((golden/case/'config.json').read_text())['arch']


@pytest.mark.parametrize('case', CASES)
def test_official_round_trip(step_file, tmp_path, case):
    "Official -> ours -> official: the same names, the same numbers, the same settings."
    file = step_file(case)
    found = load_pretrained(file, seq_len=16)
    save_pretrained(found.act, tmp_path/'ours', step=5)
    again = export_official(load_pretrained(tmp_path/'ours').act, tmp_path/'theirs', 5)
    before, after = torch.load(file, weights_only=True), torch.load(again, weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    claims, ours = (yaml.safe_load((f.parent/'all_config.yaml').read_text())['arch'] for f in (file, again))
    assert {k: ours[k] for k in claims if k not in ('name', 'loss', 'pos_encodings')} == {k: v for k, v in claims.items() if k not in ('name', 'loss', 'pos_encodings')}
    assert ours['name'].split('@')[0] == claims['name'].split('@')[0]
    assert load_pretrained(again).shape == found.shape            # the export also tells seq_len


def test_bfloat16_official_forward_is_auto(step_file, tmp_path):
    "The official type of the forward pass is a GPU's; here it depends on the device, and goes back as it came."
    found = load_pretrained(step_file('trm_bfloat16', dtype=torch.bfloat16), seq_len=16)
    assert found.act.settings.forward_dtype == 'auto' and {p.dtype for p in found.act.parameters()} == {torch.float32}
    state = torch.load(export_official(found.act, tmp_path/'out', 1), weights_only=True)
    assert state['_orig_mod.model.inner.L_init'].dtype == torch.bfloat16 and state['_orig_mod.model.inner.lm_head.weight'].dtype == torch.float32


class Hostile:
    "Creates a file when it is unpickled."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))


@pytest.mark.parametrize('legacy', [False, True])
def test_hostile_pickle_is_refused(tmp_path, legacy):
    torch.save({'model.inner.lm_head.weight': Hostile(tmp_path/'harm')}, tmp_path/'step_1', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match='holds code'): load_pretrained(tmp_path/'step_1')
    assert not (tmp_path/'harm').exists()
    torch.load(tmp_path/'step_1', weights_only=False)             # the trap was a live one
    assert (tmp_path/'harm').exists()


def test_code_beside_a_checkpoint_is_not_run(step_file, tmp_path, monkeypatch):
    for name in ('trm.py', 'losses.py', '__init__.py'): (tmp_path/name).write_text('raise SystemExit("run")')
    monkeypatch.chdir(tmp_path)
    load_pretrained(step_file('trm_attention'), seq_len=16)
    assert not {'trm', 'losses'} & set(sys.modules)


@pytest.mark.parametrize('case, arch, message', [
    ('trm_attention', dict(mlp_t=True), 'says mlp_t True, the weights in .* say False'),
    ('trm_attention', dict(L_layers=4), 'says L_layers 4, the weights in .* say 2'),
    ('trm_attention', dict(hidden_size=128), 'says hidden_size 128, the weights in .* say 64'),
    ('trm_attention', dict(pos_encodings='learned'), "says pos_encodings 'learned', but .* has no embed_pos"),
    ('trm_learned_positions', dict(pos_encodings='rope'), "says pos_encodings 'rope', the weights in .* say 'learned'"),
    ('trm_attention', dict(num_heads=3), r'even head width'),
    ('trm_attention', dict(expansion=8), r'mlp.*is \((512, 64|64, 256)\), the model needs'),
    ('trm_attention', dict(L_cycles='leave out'), 'no tensor tells L_cycles'),
    ('hrm', dict(H_layers=4), 'says H_layers 4, the weights in .* say 2'),
    ('trm_six_latents', dict(L_cycles=7), "setting 'model.L_cycles'")])
def test_config_against_weights(step_file, case, arch, message):
    with pytest.raises(UserError, match=message): load_pretrained(step_file(case, **arch), seq_len=16)


def test_without_config(step_file):
    "Without all_config.yaml the caller must say what no tensor tells."
    file = step_file('trm_mlp_mixer', config=False)
    with pytest.raises(UserError, match='no tensor tells H_cycles, L_cycles'): load_pretrained(file)
    assert load_pretrained(file, H_cycles=2, L_cycles=3, puzzle_emb_len=3).shape.seq_len == 16
    with pytest.raises(UserError, match='no tensor tells how many cells'): load_pretrained(step_file('trm_attention'))


def test_wrong_cycles_are_refused(step_file, run):
    with pytest.raises(UserError, match='L_cycles 6 was asked for, but .* was trained with 3'): load_pretrained(step_file('trm_attention'), seq_len=16, L_cycles=6)
    with pytest.raises(UserError, match='L_cycles 4 was asked for, but .* was trained with 6'): load_pretrained(run, L_cycles=4)
    assert load_pretrained(run, halt_max_steps=64, L_cycles=6).act.settings.halt_max_steps == 64


@pytest.mark.parametrize('settings, message', [
    (dict(name='trm', num_heads=4, num_key_value_heads=2), 'num_key_value_heads'), (dict(name='hrm', mlp_t=True), "no mlp_t for 'hrm'"),
    (dict(name='trm', gate_norm=True), 'no gate_norm'), (dict(name='trm', latent_start='random'), 'no random latent_start')])
def test_no_official_counterpart(tmp_path, settings, message):
    act = build_model(dict(hidden_size=32, num_heads=4, puzzle_emb_ndim=32) | settings, PuzzleShape(6, 16))
    with pytest.raises(UserError, match=message): export_official(act, tmp_path/'out', 1)
    assert not (tmp_path/'out').exists()


# our own

def test_run_folder(run, model):
    assert load_pretrained(run).metadata['step'] == 10 and load_pretrained(run, checkpoint='last').metadata['step'] == 200
    assert load_pretrained(run/'checkpoints/step_200').metadata['step'] == 200 and load_pretrained(str(run/'checkpoints/best')).metadata['step'] == 10
    found = load_pretrained(run)
    assert same(found.act, model) and not found.act.training and found.puzzle == 'sudoku-4x4'
    (run/'checkpoints/best').unlink()
    assert load_pretrained(run).metadata['step'] == 200           # before the first evaluation
    (run/'checkpoints/last').unlink()
    assert load_pretrained(run).metadata['step'] == 200           # by number, not by letters


def test_half_precision_weights(run, model):
    file = run/'checkpoints/step_10/model.safetensors'
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file)
    found = load_pretrained(run).act
    assert all(a.dtype == torch.float32 and torch.equal(a, b.bfloat16().float()) for a, b in zip(found.parameters(), model.parameters()))


def test_nothing_there(tmp_path, run):
    (tmp_path/'new/checkpoints').mkdir(parents=True)
    with pytest.raises(UserError, match='none has been written yet'): load_pretrained(tmp_path/'new')
    with pytest.raises(UserError, match="no checkpoint in .*: a run has checkpoints/"): load_pretrained(tmp_path/'new/checkpoints')
    with pytest.raises(UserError, match='no such path'): load_pretrained(tmp_path/'never')
    with pytest.raises(UserError, match="did you mean 'step_200'"): load_pretrained(run, checkpoint='step_20')
    with pytest.raises(UserError, match='no such path, not shipped'): load_pretrained('nonsense')


def cut(path, keep): path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize('keep', [0, 5, 100, -8])
def test_truncated_weights(run, step_file, keep):
    cut(run/'checkpoints/step_10/model.safetensors', keep)
    with pytest.raises(UserError, match='damaged or truncated'): load_pretrained(run)
    file = step_file('trm_mlp_mixer')
    cut(file, keep if keep >= 0 else -2000)
    with pytest.raises(UserError, match='damaged, truncated'): load_pretrained(file)


@pytest.mark.parametrize('text, message', [
    ('{"model"', 'metadata.json is damaged'), ('[]', "has no section 'model'"), ('{"model": {"name": "trm"}}', "has no section 'shape'"),
    ('{"model": {"name": "trm"}, "shape": {"vocab": 6}}', "section 'shape' needs vocab_size"),
    ('{"model": {"name": "nosuch"}, "shape": {"vocab_size": 6, "seq_len": 16}}', "unknown model 'nosuch'")])
def test_damaged_metadata(run, text, message):
    (run/'checkpoints/step_10/metadata.json').write_text(text)
    with pytest.raises(UserError, match=message): load_pretrained(run)


def test_checkpoint_of_another_shape(run):
    "The tensor is named, with both shapes; so is one that is missing or too many."
    file, folder = run/'checkpoints/step_10/metadata.json', run/'checkpoints/step_10'
    metadata, state = json.loads(file.read_text()), load_file(folder/'model.safetensors')
    file.write_text(json.dumps(metadata | dict(shape=metadata['shape'] | dict(vocab_size=9))))
    with pytest.raises(UserError, match=r'inner\.\S+ is \(6, 32\), the model needs \(9, 32\)'): load_pretrained(run)
    file.write_text(json.dumps(metadata))
    save_file({k: v for k, v in state.items() if k != 'inner.q_head.bias'}, folder/'model.safetensors')
    with pytest.raises(UserError, match='lacks the tensor inner.q_head.bias'): load_pretrained(run)
    save_file(state | {'inner.extra': torch.ones(1)}, folder/'model.safetensors')
    with pytest.raises(UserError, match='tensor inner.extra that the model does not know'): load_pretrained(run)


def test_puzzle_table(step_file, golden):
    file, old = step_file('trm_attention'), torch.from_numpy(np.load(golden/'trm_attention'/'weights.npz')['model.inner.puzzle_emb.weights'])
    table = lambda **how: load_pretrained(file, seq_len=16, **how).act.inner.puzzle_emb.weights
    torch.testing.assert_close(table(puzzle_table='resize', num_puzzle_identifiers=7), torch.cat([old, old.mean(0).expand(2, -1)]))
    assert torch.equal(table(puzzle_table='resize', num_puzzle_identifiers=2), old[:2])
    torch.testing.assert_close(table(puzzle_table='reset', num_puzzle_identifiers=3), old.mean(0).expand(3, -1))
    with pytest.raises(UserError, match="say puzzle_table='resize' or 'reset'"): table(num_puzzle_identifiers=7)


# elsewhere

def test_shipped(model, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path/'pretrained/tiny')
    monkeypatch.setattr(pretrained, 'experiments_path', lambda name: tmp_path/name)
    assert same(load_pretrained('tiny').act, model)
    with pytest.raises(UserError, match='shipped: tiny'): find_checkpoint('tinny')


def test_hub(model, step_file, tmp_path, monkeypatch):
    "Asked once, for the files of a checkpoint only; never for a path that could be meant."
    hub, asked = tmp_path/'hub', []
    for name in ('a', 'b'): save_pretrained(model, hub/name)
    def fetch(repo, revision, allow_patterns, token):
        asked.append((repo, revision))
        assert not any(p.endswith('.py') for p in allow_patterns)
        return str(hub)
    monkeypatch.setattr('huggingface_hub.snapshot_download', fetch)
    monkeypatch.chdir(tmp_path)
    assert same(load_pretrained('user/repo/a', revision='v1').act, model) and asked == [('user/repo', 'v1')]
    with pytest.raises(UserError, match='holds several checkpoints: name one of a, b'): load_pretrained('user/repo')
    (tmp_path/'runs').mkdir()
    with pytest.raises(UserError, match="no checkpoint 'runs/demo'"): load_pretrained('runs/demo')
    assert len(asked) == 2


def test_hub_out_of_reach(monkeypatch):
    def fail(*_, **__): raise ConnectionError('no route\nto host')
    monkeypatch.setattr('huggingface_hub.snapshot_download', fail)
    with pytest.raises(UserError, match="^cannot fetch 'user/repo' from the Hub, and no such path is here: .*no route.$"): load_pretrained('user/repo')


# commands

def said(command, *args, **options):
    with redirect_stdout(io.StringIO()) as out: command(*args, **options)
    return out.getvalue()


def test_export_command(run, tmp_path, model):
    said(export_command, str(run), str(tmp_path/'theirs'), official=True)
    assert (tmp_path/'theirs/step_10').is_file()
    said(export_command, str(tmp_path/'theirs'), str(tmp_path/'ours'))
    back = load_pretrained(tmp_path/'ours')
    assert back.puzzle == 'sudoku-4x4' and back.metadata['step'] == 10
    assert all(torch.equal(a, b) for a, b in zip(back.act.parameters(), model.parameters()))
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    with pytest.raises(UserError, match='exists already: choose another place'): export_command(str(tmp_path/'theirs'), str(run))
    assert {p: p.read_bytes() for p in run.rglob('*') if p.is_file()} == before


def test_info_command(run, tmp_path):
    text = said(info_command, 'sudoku-extreme-mixer')
    assert '5,028,866' in text and '87.4%' in text and 'not measured here' in text and 'z_L  oooooo.oooooo.######.' in text
    assert 'step 10' in said(info_command, str(run)) and 'paper' not in said(info_command, str(run))
    data = tmp_path/'data/train'
    data.mkdir(parents=True)
    sizes = dict(vocab_size=6, seq_len=25, num_puzzle_identifiers=1, total_groups=64, mean_puzzle_examples=1, total_puzzles=64, sets=['all'])
    (data/'dataset.json').write_text(json.dumps(sizes))
    assert '25 cells, 6 tokens' in said(info_command, 'demo', data=str(data.parent), batch_size=32)
    with pytest.raises(UserError, match='is for 16 cells of 6 tokens, the data has 25 of 6'): info_command(str(run), data=str(data.parent))
    (data/'dataset.json').write_text('{}')
    with pytest.raises(UserError, match='is damaged'): info_command('demo', data=str(data.parent))
    with pytest.raises(UserError, match="did you mean 'maze-hard'"): info_command('maze-hrd')

# weights to begin a training with

@pytest.mark.parametrize('config', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_a_training_begins_with_an_official_file(step_file, case, config):
    "With its all_config.yaml, or where the settings of the new model say what no tensor tells; the new table is its mean row."
    known = load_pretrained(step_file(case), seq_len=16)
    new = build_model(known.act.settings, known.shape._replace(num_puzzle_identifiers=9), seed=1)
    pretrained.warm_start(new, step_file(case, config=config))
    state, table = known.act.state_dict(), 'inner.puzzle_emb.weights'
    assert all(torch.equal(v, state[k].mean(0, keepdim=True).expand(9, -1) if k == table else state[k]) for k, v in new.state_dict().items())

def test_a_training_does_not_begin_with_another_model(step_file):
    known = load_pretrained(step_file('trm_attention'), seq_len=16)
    other = build_model(known.act.settings.model_copy(update=dict(L_cycles=5, halt_max_steps=2)), known.shape)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UserError, match=rf'set model.L_cycles={known.act.settings.L_cycles}$'): pretrained.warm_start(other, step_file('trm_attention'))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())

@pytest.mark.parametrize('config', [True, False])
def test_tied_digits_do_not_begin_with_untied_ones(step_file, config):
    known = load_pretrained(step_file('trm_mlp_mixer'), seq_len=16)
    other = build_model(known.act.settings.model_copy(update=dict(symbols=2, puzzle_emb_ndim=0)), known.shape)
    with pytest.raises(UserError, match=r'another model: to start from it set .*model.symbols=0'): pretrained.warm_start(other, step_file('trm_mlp_mixer', config=config))
