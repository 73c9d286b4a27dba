"""Every architecture learns 32 puzzles by heart: forward pass, loss, gradient, halting, puzzle table and optimisers work together."""
from itertools import permutations, product
import pytest
import torch
from trm_nb.learn.losses import LossSettings, act_loss
from trm_nb.learn.optim import AdamATan2, SignSGD
from trm_nb.models.act import PuzzleShape, ponder
from trm_nb.models.zoo import build_model

STEPS, WARM_UP = 400, 20
SMALL = dict(hidden_size=64, num_heads=4, puzzle_emb_ndim=64, halt_max_steps=2, halt_exploration_prob=1.0, forward_dtype='float32')
ROUNDS = dict(H_cycles=2, L_cycles=2, puzzle_emb_len=1)
MODELS = {
    'trm attention': dict(name='trm', L_layers=1, **ROUNDS), 'trm mixer': dict(name='trm', mlp_t=True, L_layers=1, **ROUNDS),
    'single latent': dict(name='trm_singlez', L_layers=1, **ROUNDS), 'six latents': dict(name='trm_hier6', L_layers=1, **ROUNDS),
    'hrm': dict(name='hrm', H_layers=1, L_layers=1, **ROUNDS), 'transformer': dict(name='transformers_baseline', H_layers=2, puzzle_emb_len=1)}


def solutions():
    "All 288 solved 4x4 Sudoku grids, as rows of 16 digits."
    rows = list(permutations(range(1, 5)))
    for grid in product(rows, repeat=4):
        columns, boxes = zip(*grid), ([*a[k:k + 2], *b[k:k + 2]] for a, b in (grid[:2], grid[2:]) for k in (0, 2))
        if all(len(set(part)) == 4 for part in (*columns, *boxes)): yield sum(grid, ())


@pytest.fixture(scope='module')
def puzzles():
    "32 grids with 4 of 16 cells empty, each with an identifier of its own: a batch."
    g = torch.Generator().manual_seed(0)
    grids = torch.tensor(list(solutions()))
    assert len(grids) == 288
    labels = grids[torch.randperm(288, generator=g)[:32]] + 1
    given = torch.rand(labels.shape, generator=g).argsort(1) < 12
    return dict(inputs=torch.where(given, labels, 1), labels=labels, puzzle_identifiers=torch.arange(32, dtype=torch.int32))


def solved(act, batch):
    "Share of puzzles answered right in all cells after the last ACT step."
    act.eval()
    *_, (_, out) = ponder(act, batch)
    act.train()
    return (out.logits.argmax(-1) == batch['labels']).all(-1).float().mean().item()


@pytest.mark.parametrize('name', MODELS)
def test_learns_by_heart(name, puzzles):
    act = build_model(SMALL | MODELS[name], PuzzleShape(6, 16, 32)).train()
    optimiser, table = AdamATan2(act.parameters(), 3e-3, (0.9, 0.95), 0.1), SignSGD(act.inner.puzzle_emb)
    carry, to_the_end = act.initial_carry(puzzles), torch.zeros(32, 2)     # always explore: every sequence takes both steps
    for step in range(STEPS):
        optimiser.param_groups[0]['lr'], table.lr = (lr * min((step + 1) / WARM_UP, 1 - step / STEPS) for lr in (3e-3, 0.1))
        carry, out = act(carry, puzzles, to_the_end)
        loss, _ = act_loss(out, carry, LossSettings(q_weight=0.1))
        optimiser.zero_grad()
        (loss / 32).backward()
        optimiser.step()
        table.step(*act.inner.puzzle_emb.take())
        if step % 20 == 0 and solved(act, puzzles) == 1: break
    assert solved(act, puzzles) == 1
