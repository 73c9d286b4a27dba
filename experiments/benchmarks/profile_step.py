"""Where the time of a training step goes: by part of the model and by kernel.

The step is the one of train_step.py. Each kernel counts for the part of the step that started it; a backward kernel for the part
whose forward operation it undoes. A compiled recursion starts its kernels without saying which layer they belong to: there a product
is told by its shapes, other kernels by the operations in their names. --no-compile gives every layer its own.
On a CPU the operators take the place of the kernels, each with the time it spends itself.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/profile_step.py --preset sudoku-extreme-mixer
  ... --preset sudoku-extreme-mixer --no-compile --top 40 --json profile.json --trace trace.json
  PYTHONPATH=. python3 experiments/benchmarks/profile_step.py --preset demo --device cpu --batch 8 --steps 2
"""
import bisect, functools, json, re, tempfile
from argparse import BooleanOptionalAction
from collections import defaultdict
from pathlib import Path
import common as c
import trm_nb.learn.trainer, trm_nb.models.layers
from torch.profiler import ProfilerActivity, profile, record_function

PREFIX = 'part: '
INSIDE = 'rest of the recorded or compiled step' # what is left of the compiled recursion when neither shapes nor names tell more


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('pairs', nargs='*', metavar='KEY=VALUE', help='settings, as `trm train` takes them')
    p.add_argument('--preset', default='sudoku-extreme-mixer', help='preset')
    p.add_argument('--batch', type=int, help='slots (default: 768, for 30x30 grids 192)')
    p.add_argument('--steps', type=int, default=3, help='profiled steps')
    p.add_argument('--warmup', type=int, default=5, help='steps before')
    p.add_argument('--compile', action=BooleanOptionalAction, help='compile the recursion (default: on CUDA)')
    p.add_argument('--top', type=int, default=25, help='kernels to list')
    p.add_argument('--trace', metavar='FILE.json', help='also keep the trace, for chrome://tracing or Perfetto')
    p.add_argument('--data', metavar='DIR', help='dataset folder (default: made up)')
    return p.parse_args()

# marks on the parts

def marked(function, name):
    "The function, within a range that the profiler sees."
    @functools.wraps(function)
    def run(*args, **kwargs):
        with record_function(PREFIX + name): return function(*args, **kwargs)
    return run

def mark(owner, attribute, name):
    "Mark a method or function where there is one of that name."
    if getattr(owner, attribute, None) is not None: setattr(owner, attribute, marked(getattr(owner, attribute), name))

LAYERS = dict(mlp_t='mixing (SwiGLU over positions)', mlp='SwiGLU', self_attn='attention') # by the names of a block's modules

def mark_layers(inner):
    "Mark the layers of a recursion that is not compiled."
    for name, module in inner.named_modules():
        if name.split('.')[-1] in LAYERS: mark(module, 'forward', LAYERS[name.split('.')[-1]])
    if hasattr(trm_nb.models.layers, 'rms_norm'): mark(trm_nb.models.layers, 'rms_norm', 'norm')

def mark_parts(trainer, layers):
    "Mark the parts of a step; `layers` too?"
    inner = trainer.act.inner
    for owner, attribute, name in ((trainer.loader, 'batch', 'loader'), (trainer.act, 'refill', 'refill'), (inner, 'read_rows', 'puzzle table'), (inner, 'embed', 'embedding'),
                                   (inner, 'recur', INSIDE), (inner, 'heads', 'heads'), (trm_nb.learn.trainer, 'act_loss', 'loss and metrics'), (trainer.act, '_halted', 'halting'),
                                   (trainer.optimiser, 'step', 'optimiser'), (trainer.table_optimiser, 'step', 'puzzle table'), (trainer.ema, 'update', 'EMA'), (trainer.ranks, 'sum_', 'gradient sync')):
        mark(owner, attribute, name)
    if layers: mark_layers(inner)

# reading the trace

class Ranges:
    "Nested time ranges of a thread: which are open at a moment?"
    def __init__(self, events):
        self.events = sorted(events, key=lambda e: (e['ts'], -e['dur']))
        self.starts, self.parents, open_ = [e['ts'] for e in self.events], [], []
        for i, e in enumerate(self.events):
            while open_ and self.end(open_[-1]) <= e['ts']: open_.pop()
            self.parents.append(open_[-1] if open_ else None)
            open_.append(i)

    def end(self, i): return self.events[i]['ts'] + self.events[i]['dur']

    def at(self, ts):
        "Ranges that are open at a time, the innermost first."
        i = bisect.bisect_right(self.starts, ts) - 1
        i = i if i >= 0 else None
        while i is not None:
            if ts <= self.end(i): yield self.events[i]
            i = self.parents[i]

def by_thread(events, *kinds):
    "thread -> Ranges of the events of some kinds."
    groups = defaultdict(list)
    for e in events:
        if e.get('cat') in kinds: groups[e['tid']].append(e)
    return defaultdict(lambda: Ranges([]), {tid: Ranges(found) for tid, found in groups.items()})

def number_of(event): return event.get('args', {}).get('Sequence number', -1)

class Parts:
    "Which part of the step a moment of a thread belongs to."
    def __init__(self, events):
        self.ranges = by_thread(events, 'user_annotation', 'cpu_op')
        self.owner = {}
        for e in events:
            if e.get('cat') == 'cpu_op' and number_of(e) >= 0 and not is_backward(e):
                part = self.marked(e['tid'], e['ts'])
                if part: self.owner[number_of(e)] = part # the innermost operation with a number is the one with a gradient

    def marked(self, tid, ts):
        "The innermost mark; None outside of all."
        return next((e['name'].removeprefix(PREFIX) for e in self.ranges[tid].at(ts) if e['name'].startswith(PREFIX)), None)

    def of(self, tid, ts):
        "The part, and whether it runs backward."
        part = self.marked(tid, ts)
        if part: return part, ''
        node = next((e for e in self.ranges[tid].at(ts) if is_backward(e)), None)
        if node is None: return 'other', ''
        return self.owner.get(number_of(node), 'other'), 'backward'

    def operation(self, tid, ts):
        "The innermost operator with its shapes."
        e = next((e for e in self.ranges[tid].at(ts) if e['cat'] == 'cpu_op' and (e.get('args', {}).get('Input Dims') or 0)), None)
        return (e['name'], e['args']['Input Dims']) if e else (None, None)

def is_backward(event): return event['name'].startswith('autograd::engine::evaluate_function')

def gpu_work(events):
    "(kernel, event that started it) for each kernel and copy."
    started = {e['args']['correlation']: e for e in events if e.get('cat') in ('cuda_runtime', 'cuda_driver') and 'correlation' in e.get('args', {})}
    for e in events:
        if e.get('cat') in ('kernel', 'gpu_memcpy', 'gpu_memset'):
            yield e['name'], e['dur'], started.get(e['args'].get('correlation'))

def cpu_work(events):
    "(operator, its own time, itself) for each operator on the processor."
    for tid, ranges in by_thread(events, 'cpu_op').items():
        own = [e['dur'] for e in ranges.events]
        for i, parent in enumerate(ranges.parents):
            if parent is not None: own[parent] -= ranges.events[i]['dur']
        yield from ((e['name'], max(0, t), e) for e, t in zip(ranges.events, own))

# guessing within compiled code

def product_part(dims, act):
    "The layer that a product with such shapes belongs to."
    if not dims: return None
    sizes, s, p = {n for d in dims if isinstance(d, list) for n in d if isinstance(n, int)}, act.settings, act.inner.positions
    if s.mlp_t and any(p <= n < p + 64 and n != s.hidden_size for n in sizes): return LAYERS['mlp_t'] # the axis of positions, perhaps padded
    width = c.inner_width(s.hidden_size, s.expansion)
    return 'SwiGLU' if s.mlp_t or sizes & {width, 2 * width} else 'attention'

NAMES = (('mlp_t|mixing|mixer|^_mix', LAYERS['mlp_t']), ('^_gate_back', 'SwiGLU, elementwise'), ('^_gate', 'SwiGLU, first product and gate'), ('swiglu|silu|gate', 'SwiGLU, elementwise'),
         ('^_project', 'attention, projections'), ('flash|attention|fmha|sdpa|softmax|cos_|sin_|^_attend|^_turn|dot_do_o|convert_dq', 'attention'), ('rsqrt|rms|norm|mean', 'norm'),
         ('nvjet|gemm|cublas|splitKreduce', 'products of cuBLAS'), ('^_add', 'what is injected'), ('stablemax|loss', 'loss and metrics'), ('copy|memcpy|memset|fill', 'copies and casts'))

def guess(kernel, operation, dims, act):
    "The part of the recursion that a kernel of compiled code belongs to."
    if operation and re.search(r'\b(mm|bmm|addmm|_scaled_mm|linear|matmul)\b', operation): return product_part(dims, act) or INSIDE
    return next((part for pattern, part in NAMES if re.search(pattern, kernel, re.I)), INSIDE)

# tables

def attribute(events, act, cuda):
    "(part, direction, kernel, operation with shapes, microseconds) of all work."
    parts, found = Parts(events), []
    for kernel, micros, by in (gpu_work if cuda else cpu_work)(events):
        where = (by['tid'], by['ts']) if by else (None, 0)
        (part, direction), (operation, dims) = parts.of(*where), parts.operation(*where)
        if part == INSIDE or part == 'other' and direction == '': part = guess(kernel, operation, dims, act)
        found.append((part, direction, kernel, f'{operation or ""} {shapes(dims)}'.strip(), micros))
    return found

def shapes(dims):
    "`[96, 512] x [512, 3072]` of an operator's tensor inputs."
    return ' x '.join(str(d) for d in dims or [] if isinstance(d, list) and d and isinstance(d[0], int))

def grouped(work, key, steps):
    "Milliseconds a step, share and calls a step, by `key` of a piece of work."
    time, count = defaultdict(float), defaultdict(int)
    for w in work:
        time[key(w)] += w[-1]
        count[key(w)] += 1
    total = sum(time.values()) or 1
    return [(k, dict(ms=time[k] / 1000 / steps, share=time[k] / total, calls=count[k] / steps)) for k in sorted(time, key=time.get, reverse=True)]

def short(name, width=90):
    "A kernel's name without templates and spaces, not too long."
    name = re.sub(r'^void ', '', name)
    while re.search('<[^<>]*>', name): name = re.sub('<[^<>]*>', '', name)
    name = re.sub(r'\(.*', '', name)
    return name if len(name) <= width else name[:width - 1] + '…'

def tables(work, steps, top):
    "Rows by part, and by kernel."
    parts = [dict(part=' '.join(k).strip()) | v for k, v in grouped(work, lambda w: w[:2], steps)]
    kernels = [dict(kernel=short(k[0]), part=' '.join(k[1:3]).strip(), product=k[3][:70]) | v for k, v in
               grouped(work, lambda w: (w[2], w[0], w[1], w[3] if re.search('mm|linear|matmul', w[3]) else ''), steps)[:top]]
    return parts, kernels

def record(trainer, a):
    "Events of the profiled steps."
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (trainer.ranks.device.type == 'cuda')
    with profile(activities=activities, record_shapes=True) as p:
        for _ in range(a.steps): trainer.step()
        c.wait(trainer.ranks.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(a.trace or f'{folder}/trace.json')
        p.export_chrome_trace(str(file))
        events = json.loads(file.read_text())['traceEvents']
    return [e for e in events if e.get('ph') == 'X']

def main():
    "Profile a few steps and print the tables."
    a = arguments()
    ranks = c.Ranks.start(a.device)
    cuda = ranks.device.type == 'cuda'
    compiled = cuda if a.compile is None else a.compile
    batch = a.batch or c.usual_batch(a.preset)
    trainer = c.make_trainer(c.run_config(a.preset, a.pairs, learn__batch_size=batch, learn__compile=compiled), c.training_data(a.preset, a.data), ranks)
    mark_parts(trainer, layers=not compiled)
    plain = 1000 * c.statistics.median(c.timed(trainer.step, ranks.device, max(3, a.steps), a.warmup))
    work = attribute(record(trainer, a), trainer.act, cuda)
    busy = sum(w[-1] for w in work) / 1000 / a.steps
    parts, kernels = tables(work, a.steps, a.top)
    what = 'kernels' if cuda else 'operators'
    head = f'{a.preset}, batch {batch}, {"compiled" if compiled else "not compiled"}: a step takes {plain:.4g} ms; its {what} take {busy:.4g} ms' + (f', {max(0, 1 - busy / plain):.1%} of the time the GPU waits' if cuda else '')
    c.finish('Profile of a training step', c.machine(ranks.device) | dict(preset=a.preset, batch=batch, compiled=compiled, settings=a.pairs, step_ms=plain, busy_ms=busy),
             {head + '\n\nBy part': parts, f'By {what[:-1]}, the {a.top} longest': kernels}, a.json)

if __name__ == '__main__': c.start(main)
