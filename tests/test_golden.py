"""Every architecture of the zoo against what the official code computed, in float32 (see tests/golden)."""
import json, os
from pathlib import Path
import numpy as np
import pytest
import torch
from trm_nb.learn.losses import LOSSES, LossSettings, act_loss
from trm_nb.learn.optim import AdamATan2, SignSGD
from trm_nb.learn.schedule import learning_rate
from trm_nb.models.act import PuzzleShape
from trm_nb.models.embedding import PuzzleTable
from trm_nb.models.zoo import MODELS, build_model

GOLDEN = Path(os.environ.get('TRM_GOLDEN', Path(__file__).parent/'golden'))
CASES = sorted(p.parent.name for p in GOLDEN.glob('*/io.npz'))
RTOL = {'float32': 1e-4, 'bfloat16': 3e-2}
GRAD_RTOL = {3e-2: 1e-1}


def load(case):
    return json.loads((GOLDEN/case/'config.json').read_text()), dict(np.load(GOLDEN/case/'weights.npz')), dict(np.load(GOLDEN/case/'io.npz'))


def golden_model(case):
    config, weights, io = load(case)
    arch = config.pop('arch')
    if arch not in MODELS: pytest.skip(f'the zoo has no {arch} yet')
    shape = PuzzleShape(*(config.pop(k) for k in ('vocab_size', 'seq_len', 'num_puzzle_identifiers')))
    fields = MODELS[arch].settings.model_fields
    act = build_model({'name': arch} | {k: v for k, v in config.items() if k in fields}, shape)
    state = {k.removeprefix('model.'): torch.from_numpy(v) for k, v in weights.items()}
    act.load_state_dict(state, strict=True)
    return act, io, RTOL[config['forward_dtype']]


def batch_of(io, i):
    batch = {k.split('.')[1]: torch.from_numpy(v) for k, v in io.items() if k.startswith(f'batch{i}.')}
    return batch | {'labels': batch['labels'].long()}


def close(mine, golden, rtol, scale=None):
    """float32: every value to 1e-4 (of itself or of the largest). bfloat16, whose roundings of 2^-9 pile up over 64
    blocks in a row: the norm of the difference to 3e-2 of the norm of the reference, for gradients 1e-1. (A float32 run
    of the same weights lies as far from that reference: 1.6e-2 and 8.5e-2 at worst, ours 1.7e-2 and 7.2e-2.)"""
    mine, golden = (np.asarray(a.detach().double() if torch.is_tensor(a) else a, dtype=np.float64) for a in (mine, golden))
    if rtol > 1e-3: assert np.linalg.norm(mine - golden) <= rtol * np.linalg.norm(golden)
    else: np.testing.assert_allclose(mine, golden, rtol=rtol, atol=rtol * (np.abs(golden).max() if scale is None else scale))


def check_metrics(metrics, io, where, rtol):
    for name in ('count', 'accuracy', 'exact_accuracy', 'q_halt_accuracy', 'steps', 'lm_loss', 'q_halt_loss', 'q_continue_loss'):
        if f'{where}.metric.{name}' in io: close(metrics[name], io[f'{where}.metric.{name}'], rtol)


@pytest.mark.parametrize('case', CASES)
def test_eval_steps(case):
    act, io, rtol = golden_model(case)
    act.eval()
    batch = batch_of(io, 0)
    carry = act.initial_carry(batch)
    for k in range(4):
        carry, out = act(carry, batch)
        loss, metrics = act_loss(out, carry, LossSettings())
        where = f'eval.step{k}'
        close(out.logits, io[f'{where}.logits'], rtol)
        close(out.q_halt, io[f'{where}.q_halt_logits'], rtol)
        close(out.q_continue, io[f'{where}.q_continue_logits'], rtol)
        close(loss, io[f'{where}.loss'], rtol)
        assert carry.halted.tolist() == io[f'{where}.halted'].tolist()
        if rtol < 1e-3: assert (out.logits.argmax(-1).numpy() == io[f'{where}.preds']).all()
        check_metrics(metrics, io, where, rtol)
    for name, z in carry.latents.items():
        if f'eval.step3.{name}' in io: close(z, io[f'eval.step3.{name}'], rtol)


@pytest.mark.parametrize('case', CASES)
def test_train_steps(case):
    act, io, rtol = golden_model(case)
    act.train()
    carry = act.initial_carry(batch_of(io, 0))
    for k in range(3):
        batch = batch_of(io, k)
        carry, out = act(carry, batch)
        loss, metrics = act_loss(out, carry, LossSettings())
        act.zero_grad()
        (loss / len(batch['inputs'])).backward()
        _, table_grad = act.inner.puzzle_emb.take()
        where = f'train.step{k}'
        close(loss, io[f'{where}.loss'], rtol)
        assert carry.halted.tolist() == io[f'{where}.halted'].tolist()
        assert carry.steps.tolist() == io[f'{where}.steps'].tolist()
        check_metrics(metrics, io, where, rtol)
        close(table_grad, io[f'{where}.grad.puzzle_emb'], GRAD_RTOL.get(rtol, rtol))
        check_gradients(act, io, where, GRAD_RTOL.get(rtol, rtol))


def check_gradients(act, io, where, rtol):
    checked = 0
    for name, p in act.named_parameters():
        key = f'model.{name}'
        norm = io.get(f'{where}.grad_norm.{key}')
        if norm is None: continue
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        close(grad.norm(), norm, rtol)
        close(grad.flatten()[:64], io[f'{where}.grad_head.{key}'], rtol, scale=float(norm) / max(1, p.numel()) ** 0.5 * 10)
        checked += 1
    assert checked == sum(k.startswith(f'{where}.grad_norm.') for k in io) > 0


def test_losses():
    p = np.load(GOLDEN/'pieces.npz')
    logits, labels = torch.from_numpy(p['loss.logits']), torch.from_numpy(p['loss.labels'])
    for name in ('stablemax', 'softmax'): close(LOSSES[name](logits, labels), p[f'loss.{name}'], 1e-5)


def test_sign_sgd():
    p = np.load(GOLDEN/'pieces.npz')
    table = PuzzleTable(*p['sparse.before'].shape)
    table.weights.copy_(torch.from_numpy(p['sparse.before']))
    SignSGD(table, lr=0.05, weight_decay=0.1).step(torch.from_numpy(p['sparse.ids']), torch.from_numpy(p['sparse.grad']))
    close(table.weights, p['sparse.after'], 1e-6)


def test_adam_atan2():
    p = np.load(GOLDEN/'pieces.npz')
    lr, decay, b1, b2 = p['adam_atan2.settings']
    w = torch.nn.Parameter(torch.from_numpy(p['adam_atan2.param0'].copy()))
    optimiser = AdamATan2([w], lr, (b1, b2), decay)
    for grad, after in zip(p['adam_atan2.grads'], p['adam_atan2.params']):
        w.grad = torch.from_numpy(grad.copy())
        optimiser.step()
        close(w.double(), after, 1e-12)


def test_schedule():
    p = np.load(GOLDEN/'pieces.npz')
    for ratio in (1.0, 0.1, 0.0):
        mine = [learning_rate(int(s), 1e-3, 100, int(p['schedule.steps'][-1]), ratio) for s in p['schedule.steps']]
        close(mine, p[f'schedule.min_ratio{ratio}'], 1e-9)
