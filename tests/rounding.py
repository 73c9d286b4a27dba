"""Nearness to recorded results, as far as rounding allows it."""
import copy
import numpy as np
import torch


def array(x): return np.asarray(x.detach().double() if torch.is_tensor(x) else x, dtype=np.float64)


def close(mine, golden, rtol, twin=None, scale=None):
    """float32: every value to 1e-4 (of itself or of the largest), or to thrice what the last bit of the weights changes,
    where that is more: the recursion of the mixer case makes a rounding error six times as large with every ACT step, so
    that after four of them two correct programs, and two processors, differ by 1e-3. bfloat16, whose roundings of 2^-9
    pile up over 64 blocks in a row: the norm of the difference to 3e-2 of the norm of the reference, for gradients 1e-1.
    (A float32 run of the same weights lies as far from that reference: 1.6e-2 and 8.5e-2 at worst, ours 1.7e-2 and 7.2e-2.)"""
    mine, golden = array(mine), array(golden)
    if rtol > 1e-3:
        assert np.linalg.norm(mine - golden) <= rtol * np.linalg.norm(golden)
        return
    largest = np.abs(golden).max() if scale is None else scale
    rounding = 0 if twin is None or not largest else np.abs(mine - array(twin)).max() / largest
    np.testing.assert_allclose(mine, golden, rtol=rtol, atol=max(rtol, 3 * rounding) * largest)


def twin_of(act):
    "A copy whose weights differ in their last bit, or not at all, at random."
    twin, g = copy.deepcopy(act), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in twin.parameters(): p.mul_(1 + 2.**-23 * (torch.randint(0, 3, p.shape, generator=g) - 1))
    return twin
