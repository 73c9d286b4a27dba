"""What every architecture of the zoo promises: where the gradient flows, when a slot is refilled, how large it is."""
import pytest
import torch
from dataclasses import replace
from trm_nb.data.basics import UserError
from trm_nb.learn.losses import LossSettings, act_loss
from trm_nb.models.act import PuzzleShape, ponder, reads
from trm_nb.models.zoo import MODELS, PRESETS, build_model, model_settings, parameters

SHAPE = PuzzleShape(vocab_size=7, seq_len=9, num_puzzle_identifiers=4)
SMALL = dict(hidden_size=32, num_heads=2, puzzle_emb_ndim=32, H_cycles=2, L_cycles=2, L_layers=1, halt_max_steps=3, forward_dtype='float32')
NAMES = sorted(MODELS)


def small(name, **settings):
    "A small model whose halting head is not at its constant start."
    act = build_model(SMALL | dict(name=name) | settings, SHAPE)
    torch.nn.init.normal_(act.inner.q_head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return act


def batch(seed=0, n=4):
    g = torch.Generator().manual_seed(seed)
    return dict(inputs=torch.randint(1, 7, (n, 9), generator=g), labels=torch.randint(1, 7, (n, 9), generator=g), puzzle_identifiers=torch.arange(n))


def gradients(act): return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in act.parameters()]


@pytest.mark.parametrize('name', NAMES)
def test_gradient_reaches_the_last_updates_only(name):
    """The gradient is that of the last updates alone, begun from what the earlier ones left; and not that of the whole schedule."""
    inner, rows, tokens = small(name, **({'H_cycles': 3} if name != 'transformers_baseline' else {'H_cycles': 2})).inner, torch.zeros(4, 32), batch()['inputs']
    inner(inner.start(4), tokens, rows).logits.square().sum().backward()
    whole = gradients(inner)

    def by_hand(free):
        inner.zero_grad()
        z, x = inner.start(4), inner.embed(tokens, rows)
        for i, u in enumerate(inner.schedule()):
            with torch.set_grad_enabled(i >= free): z = z | {u.latent: inner.update(z, x, u)}
        inner.heads(z[inner.readout])[0].square().sum().backward()
        return gradients(inner)

    for mine, same in zip(whole, by_hand(len(inner.schedule()) - inner.grad_updates)): torch.testing.assert_close(mine, same)
    assert any(not torch.allclose(a, b) for a, b in zip(whole, by_hand(0)))


@pytest.mark.parametrize('name', NAMES)
def test_refill_touches_halted_slots_only(name):
    act = small(name).train()
    carry, _ = act(act.initial_carry(batch()), batch())
    filled = act.refill(replace(carry, halted=torch.tensor([True, False, True, False])), batch(seed=1))
    for latent, start in act.inner.start(4).items():
        for slot, halted in enumerate((True, False, True, False)):
            assert torch.equal(filled.latents[latent][slot], (start if halted else carry.latents[latent])[slot])
    assert torch.equal(filled.data['inputs'][0], batch(seed=1)['inputs'][0]) and torch.equal(filled.data['inputs'][1], batch()['inputs'][1])
    assert filled.steps.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize('name', NAMES)
def test_nothing_outlives_a_step_but_values(name):
    "Latents handed on carry no graph, so that memory does not grow from step to step."
    act = small(name).train()
    carry, _ = act(act.initial_carry(batch()), batch())
    assert not any(z.requires_grad for z in carry.latents.values())


@pytest.mark.parametrize('name', NAMES)
def test_ponder_equals_evaluation(name):
    act = small(name).eval()
    carry = act.initial_carry(batch())
    for _, out in ponder(act, batch()):
        carry, same = act(carry, batch())
        assert torch.equal(out.logits, same.logits) and torch.equal(out.q_halt, same.q_halt)
    assert carry.halted.all()


@pytest.mark.parametrize('name', NAMES)
def test_slots_do_not_see_each_other(name):
    act, some = small(name).eval(), batch()
    *_, (_, together) = ponder(act, some)
    *_, (_, alone) = ponder(act, {k: v[2:3] for k, v in some.items()})
    torch.testing.assert_close(together.logits[2:3], alone.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_every_weight_is_trained(name):
    "No tensor without gradient, the puzzle rows included."
    act = small(name).train()
    carry, out = act(act.initial_carry(batch()), batch())
    act_loss(out, carry, LossSettings())[0].backward()
    assert [n for n, p in act.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert act.inner.puzzle_emb.take()[1].abs().sum() > 0


@pytest.mark.parametrize('name', NAMES)
def test_the_question_reaches_the_answer(name):
    "Along what the updates read, x reaches the latent that is read out."
    inner, known = small(name).inner, {'x'}
    for u in inner.schedule():
        if known & set(reads(inner, u)): known.add(u.latent)
    assert inner.readout in known


@pytest.mark.parametrize('continues, trained', [(True, True), (True, False), (False, True)])
def test_continue_head(continues, trained):
    """Halting compares the two values when the continue head is on; its loss exists only when it is trained too."""
    act = small('hrm', no_ACT_continue=not continues, train_continue=trained).train()
    carry, out = act(act.initial_carry(batch()), batch())
    assert torch.equal(carry.halted, out.q_halt > (out.q_continue if continues else 0))
    _, metrics = act_loss(out, carry, LossSettings())
    assert (out.q_target is not None) == (metrics['q_continue_loss'] > 0) == (continues and trained)


@pytest.mark.parametrize('preset, count', [('sudoku-extreme-mixer', 5_028_866), ('sudoku-extreme-attention', 6_828_034), ('maze-hard', 6_822_914),
                                           ('arc-agi-1', 6_829_058), ('hrm', 27_275_266), ('trm_singlez', 6_828_034), ('trm_hier6', 6_828_034)])
def test_parameter_counts(preset, count):
    with torch.device('meta'): act = build_model(PRESETS[preset].settings, PRESETS[preset].shape)
    assert parameters(act) == count


@pytest.mark.parametrize('values, message', [
    (dict(name='hmr'), "unknown model 'hmr': did you mean 'hrm'?"), (dict(name='trm', H_layers=2), "unknown setting 'model.H_layers'"),
    (dict(name='trm_hier6', L_cycles=7), "setting 'model.L_cycles'"), (dict(name='trm', hidden_size=0), "setting 'model.hidden_size'")])
def test_wrong_settings(values, message):
    with pytest.raises(UserError, match=message.replace('?', r'\?')): model_settings(values)


def test_heads_need_not_divide_the_width():
    act = build_model(dict(name='transformers_baseline', hidden_size=32, num_heads=3, H_layers=1, puzzle_emb_ndim=32), SHAPE).eval()
    assert act.inner.H_level.layers[0].self_attn.head_dim == 10
    assert all(out.logits.isfinite().all() for _, out in ponder(act, batch(), 1))
