"""Every architecture of the zoo against what the official code computed, in float32 (see tests/golden)."""
import json, os
from pathlib import Path
import numpy as np
import pytest
import torch
from rounding import array, close, twin_of
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


METRICS = ('count', 'accuracy', 'exact_accuracy', 'q_halt_accuracy', 'steps', 'lm_loss', 'q_halt_loss', 'q_continue_loss')


def check_metrics(metrics, twin, io, where, rtol):
    for name in METRICS:
        if f'{where}.metric.{name}' in io: close(metrics[name], io[f'{where}.metric.{name}'], rtol, twin[name])


def eval_steps(act, io):
    "Carry, outputs, loss and metrics of four ACT steps."
    batch = batch_of(io, 0)
    carry = act.eval().initial_carry(batch)
    for _ in range(4):
        carry, out = act(carry, batch)
        yield carry, out, *act_loss(out, carry, LossSettings())


@pytest.mark.parametrize('case', CASES)
def test_eval_steps(case):
    act, io, rtol = golden_model(case)
    for k, ((carry, out, loss, metrics), (other, near, near_loss, near_metrics)) in enumerate(zip(eval_steps(act, io), eval_steps(twin_of(act), io), strict=True)):
        where = f'eval.step{k}'
        for mine, twin, name in zip(out[:3], near[:3], ('logits', 'q_halt_logits', 'q_continue_logits')): close(mine, io[f'{where}.{name}'], rtol, twin)
        close(loss, io[f'{where}.loss'], rtol, near_loss)
        assert carry.halted.tolist() == io[f'{where}.halted'].tolist()
        if rtol < 1e-3: assert (out.logits.argmax(-1).numpy() == io[f'{where}.preds']).all()
        check_metrics(metrics, near_metrics, io, where, rtol)
    for name, z in carry.latents.items():
        if f'eval.step3.{name}' in io: close(z, io[f'eval.step3.{name}'], rtol, other.latents[name])


def train_steps(act, io):
    "Carry, loss, metrics, gradient of the puzzles' rows and gradients of three training steps."
    carry = act.train().initial_carry(batch_of(io, 0))
    for k in range(3):
        batch = batch_of(io, k)
        carry, out = act(carry, batch)
        loss, metrics = act_loss(out, carry, LossSettings())
        act.zero_grad()
        (loss / len(batch['inputs'])).backward()
        yield carry, loss, metrics, act.inner.puzzle_emb.take()[1], {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in act.named_parameters()}


@pytest.mark.parametrize('case', CASES)
def test_train_steps(case):
    act, io, rtol = golden_model(case)
    for k, ((carry, loss, metrics, rows, grads), (_, near_loss, near_metrics, near_rows, near)) in enumerate(zip(train_steps(act, io), train_steps(twin_of(act), io), strict=True)):
        where = f'train.step{k}'
        close(loss, io[f'{where}.loss'], rtol, near_loss)
        assert carry.halted.tolist() == io[f'{where}.halted'].tolist()
        assert carry.steps.tolist() == io[f'{where}.steps'].tolist()
        check_metrics(metrics, near_metrics, io, where, rtol)
        close(rows, io[f'{where}.grad.puzzle_emb'], GRAD_RTOL.get(rtol, rtol), near_rows)
        check_gradients(grads, near, io, where, GRAD_RTOL.get(rtol, rtol))


def check_gradients(grads, near, io, where, rtol):
    checked = 0
    for name, grad in grads.items():
        key = f'model.{name}'
        norm = io.get(f'{where}.grad_norm.{key}')
        if norm is None: continue
        close(grad.norm(), norm, rtol, near[name].norm())
        close(grad.flatten()[:64], io[f'{where}.grad_head.{key}'], rtol, near[name].flatten()[:64], scale=float(norm) / max(1, grad.numel()) ** 0.5 * 10)
        checked += 1
    assert checked == sum(k.startswith(f'{where}.grad_norm.') for k in io) > 0


@pytest.mark.parametrize('case', [c for c in CASES if RTOL['float32'] == golden_model(c)[2]])
def test_rounding_is_small(case):
    "One ACT step amplifies the last bit of the weights far less than the tolerance: what is granted above is for later steps."
    act, io, rtol = golden_model(case)
    (_, out, _, _), (_, near, _, _) = next(eval_steps(act, io)), next(eval_steps(twin_of(act), io))
    golden = io['eval.step0.logits']
    assert np.abs(array(out.logits) - array(near.logits)).max() < rtol / 3 * np.abs(golden).max()
    close(out.logits, golden, rtol / 3)


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
