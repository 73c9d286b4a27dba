"""Rows for a new ARC task: they learn, the weights stay, the copies vote; and what is refused without a trace."""
import json
import numpy as np
import pytest
import torch
from trm_nb import cli
from trm_nb.data.arc import Task
from trm_nb.data.basics import UserError
from trm_nb.data.format import PuzzleDataset
from trm_nb.evaluate.evaluator import evaluate
from trm_nb.learn.adapt import adapt, load_blank
from trm_nb.learn.trainer import Trainer
from trm_nb.models.act import ModelSettings, PuzzleShape, Recursion, Update
from trm_nb.models.official import export_official
from trm_nb.models.pretrained import load_pretrained, save_pretrained
from trm_nb.models.zoo import MODELS, build_model, register_model

TABLE = 'inner.puzzle_emb.weights'
QUICK = dict(device='cpu', progress=False, steps=40, augmentations=5, lr=.1, batch_size=8)
MIXER = dict(name='trm', mlp_t=True, hidden_size=16, num_heads=2, L_layers=1, expansion=.1, H_cycles=1, L_cycles=1, puzzle_emb_ndim=16, puzzle_emb_len=1, halt_max_steps=2)


class PainterSettings(ModelSettings):
    name: str = 'painter'
    hidden_size: int = 12
    num_heads: int = 1
    pos_encodings: str = 'none'
    puzzle_emb_ndim: int = 12
    puzzle_emb_len: int = 1
    halt_max_steps: int = 1


class Painter(Recursion):
    """Paints every coloured cell with the colour that the puzzle's row names."""
    latent_names, grad_updates = ('z_H',), 1
    def build_levels(self): pass
    def schedule(self): return [Update('z_H', 0, 0)]
    def update(self, z, x, u): return torch.where(x[..., 3:].sum(-1, keepdim=True) > 1, x[:, :1], x)


@pytest.fixture(autouse=True)
def registered():
    register_model(PainterSettings)(Painter)
    yield
    del MODELS['painter']


@pytest.fixture
def model(tmp_path):
    "A checkpoint of a painter with forty rows."
    act = build_model(dict(name='painter'), PuzzleShape(12, 900, 40))
    for weight in (act.inner.embed_tokens.embedding_weight, act.inner.lm_head.weight): weight.data.copy_(torch.eye(12))
    act.inner.puzzle_emb.weights.uniform_(-.1, .1, generator=torch.Generator().manual_seed(0))
    return save_pretrained(act, tmp_path/'model', 'arc', step=3)


@pytest.fixture
def task():
    "Every coloured cell becomes green."
    rng = np.random.default_rng(0)
    def pair():
        grid = rng.integers(0, 5, rng.integers(3, 8, 2)).astype(np.uint8)
        return grid, np.where(grid > 0, 3, 0).astype(np.uint8)
    return Task('green', [pair() for _ in range(3)], [pair(), pair()])


def test_rows_learn_and_copies_vote(model, task):
    adapted = adapt(model, task, **QUICK)
    assert adapted.learned == adapted.votes.pass_at(1) == 1
    assert [p.candidates[0].votes for p in adapted.votes.pairs] == [6, 6] and 'attempt 1: 6 votes' in str(adapted)
    assert adapted.curve[-1]['lm_loss'] < .8 * adapted.curve[0]['lm_loss']


def test_only_rows_move(model, task):
    adapted, before = adapt(model, task, **QUICK), load_pretrained(model).act.state_dict()
    after = adapted.act.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k != TABLE) and all(p.grad is None for p in adapted.act.parameters())
    mean, rows = before[TABLE].mean(0), after[TABLE]
    assert torch.equal(rows[0], mean), 'the blank row is never read'
    assert (rows[1:] != mean).any(1).all() and len(rows[1:].unique(dim=0)) == 6


@pytest.mark.parametrize('official', [False, True])
def test_rows_begin_at_the_mean_in_real_models(tmp_path, task, official):
    act = build_model(MIXER, PuzzleShape(12, 900, 9), seed=1)
    act.inner.puzzle_emb.weights.normal_()
    source = export_official(act, tmp_path, 5, 'arc') if official else save_pretrained(act, tmp_path/'m', 'arc')
    assert torch.equal(load_blank(source, 4).act.inner.puzzle_emb.weights, act.inner.puzzle_emb.weights.mean(0).expand(4, -1))
    adapted = adapt(source, task, **QUICK | dict(steps=2, augmentations=1, batch_size=2))
    for a, b in zip(act.parameters(), adapted.act.parameters()): assert torch.equal(a, b)


def test_secret_answers_change_nothing(model, task):
    """Test outputs are never learned from: without them rows and attempts are the same."""
    known, secret = adapt(model, task, **QUICK), adapt(model, Task(task.name, task.train, [(a, None) for a, _ in task.test]), **QUICK)
    assert torch.equal(known.act.inner.puzzle_emb.weights, secret.act.inner.puzzle_emb.weights)
    assert known.submission() == secret.submission() and secret.votes.pairs[0].candidates[0].right is None
    assert 'right' in str(known).split('test pair')[1] and 'right' not in str(secret).split('test pair')[1]


def test_seed(model, task):
    a, b, c = (adapt(model, task, **QUICK, seed=seed).act.inner.puzzle_emb.weights for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_what_is_saved_is_a_checkpoint_with_its_data(model, task, tmp_path):
    adapted = adapt(model, task, **QUICK)
    folder = adapted.save(tmp_path/'out')
    again, test = load_pretrained(folder), PuzzleDataset.read(folder/'data', 'test')
    assert evaluate(again.act, test, progress=False).exact().value == 1 and again.puzzle == 'arc'
    assert again.metadata['adapted']['steps'] == 40 and json.loads((folder/'submission.json').read_text())['green'] == adapted.submission()['green']
    with pytest.raises(UserError, match='exists already'): adapted.save(folder)


# the command

@pytest.fixture
def call(model, task, tmp_path, capsys):
    "Calls trm adapt on a task's JSON; gives exit code, what was said, and whether something was written."
    def run(value=None, checkpoint=model, text=None):
        (tmp_path/'green.json').write_text(json.dumps(value or task.json()) if text is None else text)
        code = cli.call(['adapt', str(checkpoint), str(tmp_path/'green.json'), '--out', str(tmp_path/'out'), *'--steps 30 --augmentations 3 --lr 0.1 --batch-size 4 --device cpu'.split()])
        out, err = capsys.readouterr()
        return code, out, err.strip(), sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(('out', '.out')))
    return run


def test_command(call, task):
    code, out, err, written = call()
    assert (code, written) == (0, ['out']) and 'test pair 2: 4 answers' in out
    assert '\n'.join('  ' + ''.join(map(str, row)) for row in task.test[0][1]) in out
    code, _, err, _ = call()
    assert code == 2 and 'exists already' in err


def spoiled(task, **parts): return task.json() | parts

@pytest.mark.parametrize('parts, said', [
    (dict(train=[]), 'has no train pairs'), (dict(test=[]), 'has no test pairs'), (dict(train=[dict(input=[[1]])]), "has no 'output'"),
    (dict(train=[dict(input=[[1, 2], [3]], output=[[1]])]), 'row 2 has 1 cells'), (dict(test=[dict(input=[[10]])]), 'colour 10'),
    (dict(train=[dict(input=[[0] * 31], output=[[1]])]), '30 by 30')])
def test_bad_tasks(call, task, parts, said):
    code, _, err, written = call(spoiled(task, **parts))
    assert (code, written, len(err.splitlines())) == (2, [], 1) and said in err and 'green.json' in err


def test_other_bad_input(call, tmp_path):
    assert 'cannot be read as JSON' in call(text='{"train": [')[2]
    for settings, shape, said in ((MIXER, (6, 900, 3), 'is no ARC model'), (MIXER | dict(puzzle_emb_ndim=0), (12, 900, 3), 'has no puzzle table')):
        code, _, err, written = call(checkpoint=save_pretrained(build_model(settings, PuzzleShape(*shape)), tmp_path/'bad'))
        assert (code, written, len(err.splitlines())) == (2, [], 1) and said in err
    assert "no checkpoint 'nowhere'" in call(checkpoint='nowhere')[2]
    with pytest.raises(UserError, match="unknown setting 'step'"): adapt('nowhere', 'task.json', step=3)


@pytest.mark.parametrize('error, code, said', [(KeyboardInterrupt, 130, 'interrupted'), (torch.OutOfMemoryError('full'), 2, 'try --batch-size 2')])
def test_what_breaks_off_leaves_nothing(call, monkeypatch, error, code, said):
    def fail(self): raise error
    monkeypatch.setattr(Trainer, 'step', fail)
    got, _, err, written = call()
    assert (got, written) == (code, []) and said in err
