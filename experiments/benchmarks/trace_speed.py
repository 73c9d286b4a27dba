"""How long a trace of one 9x9 puzzle takes with the shipped model, when its first frame comes, how large it is.

examples:

    python experiments/benchmarks/trace_speed.py
    python experiments/benchmarks/trace_speed.py --threads 1
    python experiments/benchmarks/trace_speed.py --model runs/mine --device cuda

Wall and CPU seconds: on a machine that does other work too, CPU seconds over the number of threads say what a quiet one would need.
"""
import json, os, time, tempfile
import torch
import typer
from trm_nb.explore.record import one_batch
from trm_nb.explore.solver import Solver
from trm_nb.models.act import ponder
from trm_nb.models.pretrained import SHIPPED

PUZZLE = '.......12.5.4............3.7..6..4....1..........8....92....8.....51.7.......3...'

def timed(steps):
    "(wall, CPU) seconds to the first and to the last item of an iterator, and the last item."
    began, cpu, times = time.perf_counter(), time.process_time(), []
    for last in steps: times.append((round(time.perf_counter() - began, 2), round(time.process_time() - cpu, 2)))
    return times[0], times[-1], last

def with_traces(frames):
    "Frames, each with its trace made, as a widget does it."
    for frame in frames: yield frame.trace()

def size_on_disk(trace):
    "Bytes of the saved trace."
    with tempfile.TemporaryDirectory() as folder:
        trace.save(f'{folder}/a.npz')
        return os.path.getsize(f'{folder}/a.npz')

@torch.inference_mode()
def untraced(solver, steps=None):
    "ACT steps of a plain solve."
    yield from ponder(solver.act, one_batch(solver.tokens(PUZZLE), solver.device), steps)

def main(model:str=SHIPPED, threads:int=2, device:str='cpu'):
    torch.set_num_threads(threads)
    solver = Solver.from_pretrained(model, device)
    timed(untraced(solver, 2))                              # warm
    plain = timed(untraced(solver))[1]
    first, whole, trace = timed(with_traces(solver.trace_steps(PUZZLE, PUZZLE)))
    print(json.dumps(dict(model=model, threads=threads, device=device, load=round(os.getloadavg()[0], 2), seconds='wall, CPU', untraced=plain, first_frame=first, every_frame=whole,
                          updates=trace.updates, bytes=trace.nbytes, bytes_on_disk=size_on_disk(trace))))

main.__doc__ = __doc__

if __name__ == '__main__': typer.run(main)
