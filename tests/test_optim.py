"""Optimisers and losses as a run uses them: which weights are whose, rates that follow the schedule, resuming to the last bit."""
import copy
from types import SimpleNamespace
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trm_nb.data.basics import UserError
from trm_nb.data.loader import TrainLoader
from trm_nb.data.sudoku import generate_sudoku_set
from trm_nb.learn.checkpoint import load_train_state, save_checkpoint
from trm_nb.learn.ema import EMA
from trm_nb.learn.losses import LossSettings, softmax_cross_entropy
from trm_nb.learn.optim import OPTIMISERS, Lion, Muon, MuonSettings, Several, of_blocks, orthogonalise
from trm_nb.learn.schedule import learning_rate
from trm_nb.learn.trainer import LearnSettings, Trainer, restore, train_state
from trm_nb.models.act import PuzzleShape
from trm_nb.models.zoo import build_model

SMALL = dict(name='trm', hidden_size=32, num_heads=2, L_layers=1, H_cycles=1, L_cycles=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=2, forward_dtype='float32')
ARCHITECTURES = {'attention': SMALL, 'mixer': SMALL | dict(mlp_t=True), 'hrm': dict(name='hrm', hidden_size=32, num_heads=2, H_layers=1, L_layers=1)}


@pytest.fixture(scope='module')
def puzzles(): return generate_sudoku_set(size=4, n=32, seed=0)


@pytest.fixture
def trainer(puzzles):
    def make(**learn):
        settings = LearnSettings(**dict(steps=20, batch_size=16, lr=1e-3, weight_decay=0.1, warmup_steps=4, lr_min_ratio=0.1, ema=0.95) | learn)
        act = build_model(SMALL | dict(mlp_t=True), PuzzleShape(puzzles.metadata.vocab_size, puzzles.metadata.seq_len))
        return Trainer(act, TrainLoader(puzzles, 16), settings)
    return make


def walk(trainer, steps):
    """The metrics of some steps."""
    def step():
        trainer.step()
        return trainer.take_metrics()
    return [step() for _ in range(steps)]


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_muon_takes_the_blocks_matrices(name):
    act = build_model(ARCHITECTURES[name], PuzzleShape(6, 16))
    optimiser = OPTIMISERS['muon'](act.named_parameters(), LearnSettings(optimiser='muon'))
    names = {id(p): n for n, p in act.named_parameters()}
    blocks, rest = ({names[id(p)] for p in group['params']} for group in optimiser.param_groups)
    assert blocks | rest == set(names.values()) and not blocks & rest
    assert blocks == {n for n in names.values() if 'L_level' in n or 'H_level' in n}
    assert rest == {f'inner.{n}' for n in ('embed_tokens.embedding_weight', 'lm_head.weight', 'q_head.weight', 'q_head.bias')}


def test_biases_within_blocks_are_not_muons():
    assert of_blocks('inner.L_level.layers.0.mlp.weight', torch.zeros(2, 2))
    assert not of_blocks('inner.L_level.layers.0.norm.weight', torch.zeros(2))
    assert not of_blocks('inner.top_level_head.weight', torch.zeros(2, 2))


def test_muon_without_blocks():
    with pytest.raises(UserError, match='no matrices in a stack'): OPTIMISERS['muon'](nn.Linear(2, 2).named_parameters(), LearnSettings())


@pytest.mark.parametrize('shape', [(24, 8), (8, 24), (16, 16)])
def test_muon_moves_all_directions_alike(shape):
    w = nn.Parameter(torch.zeros(shape))
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, min(shape), generator=g))[0] for n in shape)
    w.grad = u * torch.linspace(1, 0.1, min(shape)) @ v.T                    # the largest is ten times the least
    Muon([w], lr=1.0, steps=5).step()
    values = torch.linalg.svdvals(w.detach()) / max(1, shape[0] / shape[1])**0.5
    assert 0.65 < values.min() and values.max() < 1.25
    assert ((u.T @ -w.detach() @ v).diagonal() > 0).all()                     # along the gradient's own directions, downhill


def test_muon_equals_torchs():
    if not hasattr(torch.optim, 'Muon'): pytest.skip('this torch has no Muon')
    g = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (12, 12)]
    start = [torch.randn(s, generator=g) for s in shapes]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    a = Muon(ours, lr=0.05, momentum=0.6, steps=3, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.05, momentum=0.6, nesterov=True, ns_steps=3, weight_decay=0.1, adjust_lr_fn='original')
    for _ in range(5):
        for p, q in zip(ours, theirs): p.grad = torch.randn(p.shape, generator=g); q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q, s in zip(ours, theirs, start):
        assert (p - q).norm() < 0.02 * (p - s).norm()                         # theirs iterates in bfloat16


def test_batched_muon_equals_one_by_one():
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=g) for s in ((6, 4), (4, 6), (6, 4), (5, 5))]
    grads = [torch.randn(t.shape, generator=g) for t in start]
    together, alone = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    for p, q, grad in zip(together, alone, grads): p.grad, q.grad = grad.clone(), grad.clone()
    Muon(together).step()
    for q in alone: Muon([q]).step()
    for p, q, grad in zip(together, alone, grads):
        torch.testing.assert_close(p, q)
        assert torch.equal(p.grad, grad)                                      # windows into the trainer's one buffer


def test_lion_by_its_formula():
    g = torch.Generator().manual_seed(0)
    w, mean = nn.Parameter(torch.randn(5, 3, generator=g)), torch.zeros(5, 3)
    want, optimiser = w.detach().clone(), Lion([w], lr=0.01, betas=(0.9, 0.99), weight_decay=0.5)
    for _ in range(4):
        w.grad = torch.randn(5, 3, generator=g)
        want = want * (1 - 0.01 * 0.5) - 0.01 * (0.9 * mean + 0.1 * w.grad).sign()
        mean = 0.99 * mean + 0.01 * w.grad
        optimiser.step()
    torch.testing.assert_close(w.detach(), want)


@pytest.mark.parametrize('name, betas', dict(adam_atan2=(0.9, 0.95), adamw=(0.9, 0.95), lion=(0.9, 0.99), muon=(0.9, 0.95)).items())
def test_betas(name, betas):
    act = build_model(SMALL, PuzzleShape(6, 16))
    of = lambda **learn: OPTIMISERS[name](act.named_parameters(), LearnSettings(**learn)).param_groups[-1]['betas']
    assert tuple(of()) == betas and tuple(of(betas=(0.5, 0.6))) == (0.5, 0.6)


def test_the_schedule_scales_both_rates(trainer):
    t = trainer(optimiser='muon', muon=dict(lr=0.5))
    for step in range(1, 13):
        t.step()
        scale = learning_rate(step, 1.0, 4, 20, 0.1)
        assert [g['lr'] for g in t.optimiser.param_groups] == pytest.approx([0.5 * scale, 1e-3 * scale])
        assert t.lr == pytest.approx(1e-3 * scale)


@pytest.mark.parametrize('name', OPTIMISERS)
def test_resumed_equals_unbroken(name, trainer, tmp_path):
    learn = dict(optimiser=name, ema_bias_correction=True, loss=dict(label_smoothing=0.1))
    first = trainer(**learn)
    walk(first, 6)
    save_checkpoint(tmp_path, 6, first.weights(), copy.deepcopy(train_state(first)), {})
    losses = walk(first, 6)
    second = trainer(**learn)
    restore(second, load_train_state(tmp_path/'step_6'))
    assert walk(second, 6) == losses
    assert all(torch.equal(a, b) for a, b in zip(first.weights().values(), second.weights().values()))


def test_several_refuses_the_state_of_another():
    one, two = ([nn.Parameter(torch.zeros(2, 2))] for _ in range(2))
    with pytest.raises(ValueError): Several(Muon(one), Lion(two)).load_state_dict(Several(Muon(one)).state_dict())


def answer_losses(trainer):
    """Of 40 steps on one batch."""
    batch = trainer.loader.batch()
    trainer.loader = SimpleNamespace(batch=lambda: batch)
    return [row['lm_loss'] for row in walk(trainer, 40)]


def test_muon_learns_by_heart_and_sooner_than_adamw_alone(trainer):
    muon, adamw = (answer_losses(trainer(optimiser=name, steps=40, lr=3e-3, warmup_steps=0, lr_min_ratio=1.0)) for name in ('muon', 'adamw'))
    assert muon[-1] < 0.2 * muon[0]
    assert sum(muon) < 0.95 * sum(adamw)


def test_label_smoothing_equals_torchs():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 9, 11, generator=g), torch.randint(0, 11, (4, 9), generator=g)
    labels[0, :3] = -100
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2)
    assert softmax_cross_entropy(logits, labels, 0.2).sum() / (labels != -100).sum() == pytest.approx(want.item())


def test_label_smoothing_reaches_the_loss(trainer):
    plain, smooth = trainer(), trainer(loss=LossSettings(label_smoothing=0.2))
    a, b = walk(plain, 1)[0], walk(smooth, 1)[0]
    assert a['lm_loss'] != b['lm_loss'] and a['q_halt_loss'] == b['q_halt_loss']


def test_corrected_mean_is_of_trained_weights_only(trainer):
    t = trainer(ema=0.9, ema_bias_correction=True)
    seen = []
    for _ in range(5):
        t.step()
        seen.append(t.act.inner.lm_head.weight.detach().clone())
    share = 0.9 ** torch.arange(4, -1, -1.)
    want = sum(s * w for s, w in zip(share, seen)) / share.sum()
    torch.testing.assert_close(t.weights()['inner.lm_head.weight'], want)


def test_plain_mean_keeps_the_initial_weights():
    m = nn.Linear(1, 1, bias=False)
    with torch.no_grad(): m.weight.fill_(1.0)
    ema = EMA(m, 0.9)
    with torch.no_grad(): m.weight.fill_(0.0)
    for step in range(1, 4): ema.update(step)
    assert ema.shadow['weight'].item() == pytest.approx(0.9**3)


def test_nothing_is_read_back_from_the_device():
    """A step runs on tensors without values: it asks for none."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        w = [nn.Parameter(torch.zeros(s)) for s in ((8, 4), (4, 8), (8, 4))]
        for p in w: p.grad = torch.ones_like(p)
        for optimiser in (Muon(w), Lion(w)): optimiser.step()


@pytest.mark.cuda
def test_orthogonalise_in_bfloat16():
    x = torch.randn(3, 64, 192, device='cuda')
    out = orthogonalise(x)
    assert out.dtype == torch.bfloat16
    values = torch.linalg.svdvals(out.float())
    assert 0.6 < values.min() and values.max() < 1.3
    assert (out.float().cpu() - orthogonalise(x.cpu())).norm() < 0.05 * out.float().norm().cpu()
