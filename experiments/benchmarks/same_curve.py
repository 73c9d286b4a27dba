"""Does the fast step train as the plain one does? The same run, same seed and batches, by several ways; losses side by side.

Ways: float32 (plain PyTorch), plain (bfloat16, PyTorch as it is), compiled (bfloat16, torch.compile), fused (bfloat16, Triton kernels and a CUDA graph).
Two bfloat16 ways that differ only in the order of their roundings show how far the noise alone takes a run: an untrained recursion
multiplies a rounding error at every ACT step. Fused is as good as compiled where it lies no farther from plain than compiled does.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/same_curve.py --data data/sudoku-extreme --json curves.json
  ... --preset sudoku-extreme-attention --batch 192 --steps 200 --ways plain,compiled,fused
  PYTHONPATH=. python3 experiments/benchmarks/same_curve.py --preset demo --device cpu --batch 16 --steps 20 --ways float32,plain
"""
import common as c

WAYS = dict(float32=['learn.fused=false', 'learn.compile=false', 'model.forward_dtype=float32'], plain=['learn.fused=false', 'learn.compile=false'],
            compiled=['learn.fused=false', 'learn.compile=true'], fused=['learn.fused=true'])

def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('pairs', nargs='*', metavar='KEY=VALUE', help='settings, as `trm train` takes them')
    p.add_argument('--preset', default='sudoku-extreme-mixer', help='preset')
    p.add_argument('--batch', type=int, default=192, metavar='N', help='slots')
    p.add_argument('--steps', type=int, default=200, help='optimiser steps')
    p.add_argument('--every', type=int, default=10, help='steps between rows')
    p.add_argument('--ways', type=c.words, default=list(WAYS), metavar='A,B', help=f'of {", ".join(WAYS)}')
    p.add_argument('--data', metavar='DIR', help='dataset folder (default: made up)')
    return p.parse_args()

def curve(way, a, ranks):
    "Mean loss of each stretch of steps."
    c.fresh(ranks.device)
    config = c.run_config(a.preset, [*a.pairs, *WAYS[way]], learn__batch_size=a.batch, learn__steps=a.steps)
    t = c.make_trainer(config, c.training_data(a.preset, a.data), ranks)
    if way == 'fused' and not t.fused: raise c.UserError('fused kernels do not run here: they want a Hopper GPU, bfloat16 and Triton')
    losses = []
    for step in range(1, a.steps + 1):
        t.step()
        if step % a.every == 0: losses.append(t.take_metrics()['loss'])
    return losses

def distance(curves, one, other):
    "Root mean square and largest relative difference of two curves."
    away = [abs(x - y) / y for x, y in zip(curves[one], curves[other])]
    return dict(between=f'{one} and {other}', rms=(sum(d * d for d in away) / len(away)) ** 0.5, largest=max(away))

def main():
    "Run every way and compare."
    a = arguments()
    ranks = c.Ranks.start(a.device)
    curves = {w: curve(w, a, ranks) for w in a.ways}
    rows = [dict(step=(i + 1) * a.every, **{w: v[i] for w, v in curves.items()}) for i in range(a.steps // a.every)]
    away = [distance(curves, x, y) for i, y in enumerate(a.ways) for x in a.ways[i + 1:]]
    c.finish('The same curve', c.machine(ranks.device) | dict(preset=a.preset, batch=a.batch, settings=a.pairs),
             {'Mean loss of the steps up to each row': rows, 'Relative difference of the curves': away}, a.json)

if __name__ == '__main__': c.start(main)
