"""What the benchmark scripts share: the machine in words, data made up where none is given, timing, one table, JSON."""
import argparse, gc, json, os, platform, statistics, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
try: import trm_nb
except ImportError: sys.path.insert(0, str(ROOT)) # run from a clone that is not installed

import numpy as np
import torch
import trm_nb
from trm_nb.config import Config, load_config, make_config
from trm_nb.data.basics import UserError, write_json
from trm_nb.data.device import pick_device
from trm_nb.data.format import PuzzleDataset, PuzzleSet, describe, puzzle_of
from trm_nb.data.loader import TrainLoader
from trm_nb.data.maze import generate_mazes
from trm_nb.data.sudoku import generate, in_memory
from trm_nb.learn.launch import Ranks
from trm_nb.learn.trainer import Trainer
from trm_nb.models.act import PuzzleShape
from trm_nb.models.layers import inner_width
from trm_nb.models.zoo import PRESETS, build_model, step_cost


def cpu_name()->str:
    "The processor's name, as the system gives it."
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    return next((l.split(':', 1)[1].strip() for l in lines if l.startswith('model name')), platform.processor() or platform.machine())

def commit()->str | None:
    "The clone's commit, with + where files differ from it."
    try: return subprocess.run(['git', 'describe', '--always', '--dirty=+', '--exclude=*'], cwd=ROOT, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.SubprocessError): return None

def machine(
    device:torch.device, # where the benchmark runs
)->dict:
    "Hardware and versions."
    found = dict(cpu=cpu_name(), cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, trm_nb=trm_nb.__version__, commit=commit())
    if device.type != 'cuda': return found | dict(cpu_capability=torch.backends.cpu.get_cpu_capability())
    p = torch.cuda.get_device_properties(device)
    return dict(gpu=p.name, gpus=torch.cuda.device_count(), memory_gib=round(p.total_memory / 2**30, 1), cuda=torch.version.cuda, triton=_version('triton')) | found

def _version(package):
    from importlib.metadata import PackageNotFoundError, version
    try: return version(package)
    except PackageNotFoundError: return None

# data

def made_up(
    shape:PuzzleShape, # what the model is made for
    count:int=64, # puzzles
    seed:int=0, # same seed, same puzzles
    kind:str|None=None, # name of the kind of puzzle; None: by the shape
)->PuzzleDataset:
    "A training split of the right kind that lies in no folder: generated Sudokus or mazes, else random tokens."
    kind = puzzle_of(SimpleNamespace(puzzle=kind, vocab_size=shape.vocab_size, seq_len=shape.seq_len))
    if kind.name.startswith('sudoku'): return _with_table(in_memory(generate(count, kind.shape[0], seed), kind, 'train'), shape)
    if kind.name.startswith('maze'): return _with_table(in_memory(generate_mazes(count, kind.shape[0], seed=seed), kind, 'train'), shape)
    rng = np.random.default_rng(seed)
    inputs, labels = rng.integers(1, shape.vocab_size, (2, count, shape.seq_len), dtype=np.uint8)
    arrays = PuzzleSet.one_each(inputs, labels)
    arrays.puzzle_identifiers[:] = rng.integers(0, shape.num_puzzle_identifiers, count)
    return PuzzleDataset(Path('made-up'), 'train', describe(kind, arrays, shape.num_puzzle_identifiers), {'all': arrays})

def _with_table(dataset, shape):
    dataset.metadata.num_puzzle_identifiers = shape.num_puzzle_identifiers
    return dataset

def training_data(
    preset:str, # whose shape is wanted
    folder:str|None=None, # dataset folder; None: made up
)->PuzzleDataset:
    "A training split."
    return PuzzleDataset.read(folder, 'train') if folder else made_up(PRESETS[preset].shape)

# a run

def usual_batch(
    preset:str, # whose
)->int:
    "Slots of a GPU in the measured official runs: 768 Sudokus, 192 larger grids."
    return 768 if PRESETS[preset].shape.seq_len < 200 else 192

def run_config(
    preset:str, # name
    pairs:list[str]=(), # KEY=VALUE, as `trm train` takes them
    **settings, # further KEY=VALUE with dots written as __; None is left out
)->Config:
    "A preset's config with overrides; it names no data."
    given = [f'{k.replace("__", ".")}={json.dumps(v)}' for k, v in settings.items() if v is not None]
    return load_config(preset, 'data.path=made-up', *given, *pairs)

def make_trainer(
    config:Config, # of the run
    data:PuzzleDataset, # training split
    ranks:Ranks, # this process
)->Trainer:
    "The trainer of a run without callbacks."
    m = data.metadata
    act = build_model(config.model, PuzzleShape(m.vocab_size, m.seq_len, m.num_puzzle_identifiers), config.seed)
    loader = TrainLoader(data, config.learn.batch_size, config.seed, ranks.device, ranks.rank, ranks.world, config.data.augment)
    return Trainer(act, loader, config.learn, ranks, seed=config.seed)

# time

def wait(
    device:torch.device, # for what
):
    "Until the device has done its work."
    if device.type == 'cuda': torch.cuda.synchronize(device)
    if device.type == 'mps': torch.mps.synchronize()

class Clock:
    "Marks between pieces of work: CUDA events, which do not make the device wait, or the processor's clock."
    def __init__(self,
        device:torch.device, # what is timed
    ): self.cuda, self.device, self.marks = device.type == 'cuda', device, []

    def mark(self):
        "One piece ends here and the next begins."
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            wait(self.device)
            self.marks.append(time.perf_counter())

    def seconds(self)->list[float]:
        "Duration of each piece."
        wait(self.device)
        pairs = list(zip(self.marks, self.marks[1:]))
        return [a.elapsed_time(b) / 1000 for a, b in pairs] if self.cuda else [b - a for a, b in pairs]

def timed(
    work, # function without arguments
    device:torch.device, # where it works
    repeats:int=20, # timed calls
    warmup:int=5, # calls before
)->list[float]: # seconds of each call
    "How long each call takes, back to back."
    for _ in range(warmup): work()
    wait(device)
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        work()
        clock.mark()
    return clock.seconds()

def ceiling(
    device:torch.device, # what to measure
    dtype:torch.dtype, # of the numbers
    size:int|None=None, # of the square matrices; None: 8192 on CUDA, else 2048
)->float: # operations a second
    "Speed of a large matrix product, the most that a model can hope for."
    n = size or (8192 if device.type == 'cuda' else 2048)
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    seconds = timed(lambda: a @ b, device, *((30, 10) if device.type == 'cuda' else (5, 1)))
    return 2 * n**3 / statistics.median(seconds)

def fresh(
    device:torch.device, # which memory
):
    "Forget compiled code and free memory, so that the next row starts as the first did."
    torch._dynamo.reset()
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.init()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

def peak_gib(
    device:torch.device, # which memory
)->float | None:
    "Most memory that tensors took since `fresh`; None where it is not counted."
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == 'cuda' else None

# what is shown

def cell(value)->str:
    "A number with three or four digits; nothing for None."
    if value is None: return ''
    if isinstance(value, bool): return 'yes' if value else 'no'
    if isinstance(value, float): return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:,}' if isinstance(value, int) else str(value)

def table(
    rows:list[dict], # with the same keys
)->str:
    "A Markdown table, columns of equal width, numbers to the right."
    if not rows: return '(no rows)'
    names = list(dict.fromkeys(n for r in rows for n in r))
    texts = [[cell(r.get(n)) for n in names] for r in rows]
    numeric = [not any(isinstance(r.get(n), str) for r in rows) for n in names]
    width = [max(len(n), 3, *(len(t[i]) for t in texts)) for i, n in enumerate(names)]
    line = lambda cells: '| ' + ' | '.join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, width, numeric)) + ' |'
    rule = '|' + '|'.join('-' * (w + 1) + (':' if right else '-') for w, right in zip(width, numeric)) + '|'
    return '\n'.join([line(names), rule, *map(line, texts)])

def machine_line(
    about:dict, # from `machine`
)->str:
    "Hardware and versions in a line."
    a = about
    where = f"{a['gpus']} x {a['gpu']} ({a['memory_gib']} GiB), CUDA {a['cuda']}, Triton {a['triton']}" if 'gpu' in a else f"{a['cpu']}, {a['cores']} cores, {a['threads']} threads, {a['cpu_capability']}"
    return f"{where}; torch {a['torch']}, Python {a['python']}, trm_nb {a['trm_nb']} at {a['commit']}"

def finish(
    title:str, # heading
    about:dict, # from `machine`
    tables:dict[str, list[dict]], # rows by the table's caption
    file:str|None=None, # also write JSON here
):
    "Print heading, machine and tables; write the JSON."
    print(f'# {title}\n\n{machine_line(about)}')
    for caption, rows in tables.items(): print(f'\n{caption}\n\n{table(rows)}' if caption else f'\n{table(rows)}')
    if file: write_json(file, dict(title=title, machine=about, tables=tables))

# the command line

def numbers(text:str)->list[int]:
    "`96,768` as a list."
    return [int(x) for x in text.split(',')]

def words(text:str)->list[str]:
    "`a,b` as a list."
    return [x for x in text.split(',') if x]

def parser(
    about:str, # docstring of the script: what it does, then its examples
)->argparse.ArgumentParser:
    "A parser with what all scripts have: --device and --json."
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    p.add_argument('--json', metavar='FILE', help='also write the figures here')
    return p

def start(
    main, # function of the parsed arguments' list
):
    "Run a script; a user's mistake is one line and exit code 2."
    try: main()
    except UserError as e:
        print(f'{Path(sys.argv[0]).name}: {e}', file=sys.stderr)
        sys.exit(2)
