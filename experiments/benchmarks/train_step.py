"""How long a training step takes: refill, recursion, loss, backward pass, optimisers and running mean, as `trm train` does them.

Prints one table: median milliseconds of a step after warm-up, TFLOP and TFLOP/s (operations of the model's products, counted by
models.zoo.step_cost), the share of what a large matrix product reaches in the same run, puzzles a second, peak memory.
Without --data the puzzles are made up. Under torchrun --batch counts the slots of each GPU.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/train_step.py --preset sudoku-extreme-mixer
  ... --preset sudoku-extreme-mixer,sudoku-extreme-attention,maze-hard --json steps.json
  ... --preset sudoku-extreme-mixer --hidden 256,512,1024 --batch 96,768,3072
  ... --preset sudoku-extreme-mixer --no-compile model.H_cycles=2 learn.micro_batch=384
  PYTHONPATH=. torchrun --nproc-per-node 2 experiments/benchmarks/train_step.py --preset sudoku-extreme-mixer
  PYTHONPATH=. python3 experiments/benchmarks/train_step.py --preset demo --device cpu --batch 16 --steps 5
"""
import statistics
from argparse import BooleanOptionalAction
from functools import cache
import common as c


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('pairs', nargs='*', metavar='KEY=VALUE', help='settings, as `trm train` takes them')
    p.add_argument('--preset', type=c.words, default=['sudoku-extreme-mixer'], metavar='A,B', help='presets')
    p.add_argument('--batch', type=c.numbers, metavar='N,M', help="slots of each GPU (default: 768, for 30x30 grids 192)")
    p.add_argument('--hidden', type=c.numbers, default=[None], metavar='N,M', help="hidden sizes (default: the preset's)")
    p.add_argument('--steps', type=int, default=20, help='timed steps')
    p.add_argument('--warmup', type=int, default=10, help='steps before, the compilation not counted')
    p.add_argument('--compile', action=BooleanOptionalAction, help='compile the recursion (default: on CUDA)')
    p.add_argument('--data', metavar='DIR', help='dataset folder (default: made up)')
    return p.parse_args()

def most(value, ranks):
    "The largest of a number over the ranks."
    if value is None or ranks.world == 1: return value
    return float(ranks.gather(c.torch.tensor([value], device=ranks.device)).max())

def measure(preset, batch, hidden, a, ranks, top):
    "One row: a trainer is made, warmed up and timed; `top` is the ceiling of a type."
    c.fresh(ranks.device)
    config = c.run_config(preset, a.pairs, learn__batch_size=batch * ranks.world, learn__compile=a.compile, model__hidden_size=hidden)
    t = c.make_trainer(config, c.training_data(preset, a.data), ranks)
    first = c.timed(t.step, ranks.device, 1, 0)[0]
    seconds = c.timed(t.step, ranks.device, a.steps, a.warmup)
    dtype, flop = str(t.act.inner.dtype).removeprefix('torch.'), c.step_cost(t.act).training * batch
    ms = most(1000 * statistics.median(seconds), ranks)
    compiled = config.learn.compile if config.learn.compile is not None else ranks.device.type == 'cuda'
    how = 'fused' if t.fused else 'compiled' if compiled else 'plain'
    return dict(preset=preset, hidden=config.model.hidden_size, batch=batch, gpus=ranks.world, device=ranks.device.type, dtype=dtype, how=how, ms=ms,
                slowest=1000 * max(seconds), tflop=flop / 1e12, **{'tflop/s': flop / ms / 1e9, 'share': flop / ms * 1000 / top(dtype), 'puzzles/s': 1000 * batch * ranks.world / ms},
                peak_gib=most(c.peak_gib(ranks.device), ranks), first_step_s=first)

def row_or_why(preset, batch, hidden, a, ranks, top):
    "A row, or one that says that memory ran out."
    try: return measure(preset, batch, hidden, a, ranks, top)
    except c.torch.OutOfMemoryError: return dict(preset=preset, hidden=hidden, batch=batch, gpus=ranks.world, note='out of memory')

def main():
    "Measure every combination and print the table."
    a = arguments()
    ranks = c.Ranks.start(a.device)
    top = cache(lambda dtype: c.ceiling(ranks.device, getattr(c.torch, dtype)))
    rows = [row_or_why(p, b, h, a, ranks, top) for p in a.preset for b in a.batch or [c.usual_batch(p)] for h in a.hidden]
    if ranks.first:
        reached = {r['dtype']: top(r['dtype']) / 1e12 for r in rows if 'dtype' in r}
        caption = f'Large matrix product: {", ".join(f"{v:.4g} TFLOP/s in {k}" for k, v in reached.items())}. Median of {a.steps} steps after {a.warmup}.'
        c.finish('Training step', c.machine(ranks.device) | dict(ceiling_tflops=reached, settings=a.pairs), {' '.join([caption, *a.pairs]): rows}, a.json)
    ranks.finish()

if __name__ == '__main__': c.start(main)
