"""How fast puzzles are answered: an ACT step by batch size, whole runs with and without early exit, and one puzzle at a time.

With --checkpoint the model is a trained one, and early exit stops its puzzles where it would stop; --data names a dataset folder or a CSV
file. A preset alone has random weights, which never halt: then only the first table tells something. Ways: `plain` is the model
as it is, `fast` what trm eval does (on a GPU fused kernels, else compiled; weights cast once; small batches recorded as CUDA graphs),
`launched` the same with every kernel launched by itself, `compiled` torch.compile on any device.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/inference.py --checkpoint runs/demo --data data/demo
  ... --checkpoint runs/first --data test.csv --puzzles 4096 --batch 64,512 --ways plain,fast --json inference.json
  ... --preset sudoku-extreme-mixer --device cpu --threads 2 --batch 1,4,16 --dtype float32,bfloat16 --puzzles 1
"""
import statistics, time
import common as c
import numpy as np
from trm_nb.data.device import DTYPES, pick_dtype
from trm_nb.evaluate.evaluator import read_split
from trm_nb.explore.solver import Solver
from trm_nb.models import halting
from trm_nb.models.halting import accelerated, solve_until
from trm_nb.models.pretrained import load_pretrained

torch = c.torch
WAYS = dict(plain=None, fast=None, launched=None, compiled=True) # what `accelerated` is told; plain does not ask it


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('--checkpoint', metavar='SOURCE', help='run folder, checkpoint, shipped name or Hub id')
    p.add_argument('--preset', default='sudoku-extreme-mixer', help='random weights of this preset, where no checkpoint is named')
    p.add_argument('--data', metavar='DIR|FILE.csv', help='puzzles (default: made up)')
    p.add_argument('--puzzles', type=int, default=256, help='puzzles of the whole runs')
    p.add_argument('--single', type=int, default=10, help='puzzles answered one at a time')
    p.add_argument('--batch', type=c.numbers, default=[1, 16, 64], metavar='N,M', help='puzzles at once')
    p.add_argument('--steps', type=int, help="ACT steps at most (default: the model's)")
    p.add_argument('--dtype', type=c.words, default=['auto'], metavar='A,B', help='auto, float32, bfloat16')
    p.add_argument('--ways', type=c.words, metavar='A,B', help='plain, fast, launched, compiled (default: fast)')
    p.add_argument('--threads', type=int, help='CPU threads')
    p.add_argument('--repeats', type=int, default=5, help='timed repetitions of an ACT step')
    return check(p.parse_args())

def check(a):
    "The arguments; `UserError` names a wrong one."
    for name, allowed in (('dtype', DTYPES), ('ways', tuple(WAYS))):
        for value in getattr(a, name) or ():
            if value not in allowed: raise c.UserError(f'--{name} {value}: allowed are {", ".join(allowed)}')
    return a

def the_model(a, device):
    "The model, and what to call it."
    if a.checkpoint:
        found = load_pretrained(a.checkpoint, device)
        return found.act, a.checkpoint
    p = c.PRESETS[a.preset]
    return c.build_model(p.settings, p.shape).to(device).eval(), f'{a.preset}, random weights'

def the_puzzles(a, act, device):
    "Batch of puzzles on the device, their labels and their kind; they repeat where there are too few."
    data = read_split(a.data) if a.data else c.made_up(act.shape, min(a.puzzles, 256))
    arrays = data.merged
    rows = np.arange(a.puzzles) % len(arrays.inputs)
    send = lambda x: torch.from_numpy(np.array(x[rows])).to(device).int()
    return dict(inputs=send(arrays.inputs), puzzle_identifiers=torch.zeros(a.puzzles, dtype=torch.int32, device=device)), send(arrays.labels), data.puzzle

class Way:
    "The model sped up in one way, for a `with` block."
    def __init__(self, act, way): self.context, self.limit = None if way == 'plain' else accelerated(act, WAYS[way]), 0 if way == 'launched' else halting.RECORDED

    def __enter__(self):
        self.kept, halting.RECORDED = halting.RECORDED, self.limit
        return self.context.__enter__() if self.context else 'plain'

    def __exit__(self, *error):
        halting.RECORDED = self.kept
        return self.context.__exit__(*error) if self.context else None

def step_row(act, puzzles, batch, device, a):
    "One ACT step of a batch."
    inner = act.inner
    rows = torch.arange(batch, device=device) % len(puzzles['inputs'])
    x = inner.embed(puzzles['inputs'][rows], inner.read_rows(puzzles['puzzle_identifiers'][rows]))
    z = {k: v.contiguous() for k, v in inner.start(batch).items()}
    def step(): return inner.heads(inner.recur(z, x)[inner.readout])
    s = statistics.median(c.timed(step, device, a.repeats, 2))
    return dict(batch=batch, ms=1000 * s, ms_a_puzzle=1000 * s / batch, **{'gflop/s': c.step_cost(act).forward * batch / s / 1e9, 'puzzle steps/s': batch / s})

def timed_once(work, device):
    "Seconds, and the result."
    c.wait(device)
    began = time.perf_counter()
    found = work()
    c.wait(device)
    return time.perf_counter() - began, found

def run(act, puzzles, width, steps, early):
    "Tokens and steps of all puzzles."
    found = solve_until(act, puzzles['inputs'], puzzles['puzzle_identifiers'], width, steps, early)
    return found.tokens, found.steps

def by_solver(act, puzzles, width, steps, kind):
    "The same by Solver.solve_many, which goes on with answers that break the rules."
    answers = Solver(act, kind).solve_many([kind.to_grid(x) for x in puzzles['inputs'].cpu().numpy()], batch_size=width, progress=False)
    return (torch.tensor(np.array(x), device=puzzles['inputs'].device) for x in ([a.tokens for a in answers], [a.steps for a in answers]))

def whole_rows(act, puzzles, labels, batch, device, a, kind):
    "All puzzles, by all steps, by the model's own halting, and as a user gets them from the solver."
    few, rows, base = {k: v[:2 * batch] for k, v in puzzles.items()}, [], None
    modes = dict(all=lambda p: run(act, p, batch, a.steps, False), halting=lambda p: run(act, p, batch, a.steps, True))
    if not a.steps: modes['solver'] = lambda p: by_solver(act, p, batch, a.steps, kind)
    for mode, work in modes.items():
        work(few)
        seconds, (tokens, steps) = timed_once(lambda: work(puzzles), device)
        base = base or (seconds, tokens, steps.max())
        late = steps == base[2]
        rows.append(dict(batch=batch, steps=mode, seconds=seconds, **{'puzzles/s': len(labels) / seconds}, times=base[0] / seconds, mean_steps=float(steps.float().mean()),
                         exact=float((tokens == labels).all(1).float().mean()), halted_late=int(late.sum()), same_there=int((tokens == base[1]).all(1)[late].sum())))
    return rows

def single_rows(act, puzzles, labels, device, a):
    "One puzzle after the other, with early exit."
    one = lambda i: {k: v[i:i + 1] for k, v in puzzles.items()}
    work = lambda i: run(act, one(i), 1, a.steps, True)
    work(0)
    answers = [timed_once(lambda: work(i), device) for i in range(min(a.single, len(labels)))]
    seconds, steps = [s for s, _ in answers], [int(found[1][0]) for _, found in answers]
    return [dict(puzzles=len(answers), median_s=statistics.median(seconds), slowest_s=max(seconds), median_steps=float(statistics.median(steps)), most_steps=max(steps))]

@torch.inference_mode()
def measured(a, act, puzzles, labels, kind, device):
    "Rows of the three tables."
    tables = [], [], []
    for dtype in a.dtype:
        act.settings.forward_dtype = pick_dtype(dtype, device, act.settings.hidden_size)
        for way in a.ways or ['fast']:
            with Way(act, way) as how:
                about = dict(dtype=str(act.inner.dtype).removeprefix('torch.'), how=how)
                tables[0].extend(about | step_row(act, puzzles, b, device, a) for b in a.batch)
                tables[1].extend(about | r for b in a.batch for r in whole_rows(act, puzzles, labels, b, device, a, kind))
                tables[2].extend(about | r for r in single_rows(act, puzzles, labels, device, a))
    return tables

def main():
    "Measure, print the tables."
    a = arguments()
    if a.threads: torch.set_num_threads(a.threads)
    device = c.pick_device(a.device)
    act, name = the_model(a, device)    # outside of inference mode: its weights are cast for a while
    puzzles, labels, kind = the_puzzles(a, act, device)
    tables = measured(a, act, puzzles, labels, kind, device)
    captions = (f'{name}, on {device}. One ACT step', f'{len(labels)} puzzles by all steps, by own halting, and by Solver.solve_many, which goes on where an answer breaks the rules; `times`: faster than all steps; `same_there`: of those that halted late, how many got the same answer', 'One puzzle at a time, with early exit')
    c.finish('Inference', c.machine(device) | dict(model=name, data=a.data), dict(zip(captions, tables)), a.json)

if __name__ == '__main__': c.start(main)
