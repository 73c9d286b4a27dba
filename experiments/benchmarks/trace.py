"""How long a trace of one 9x9 puzzle takes with a model of full size, when its first frame comes, how large it is: python experiments/benchmarks/trace.py"""
import json, os, time, tempfile
import numpy as np
import torch
import typer
from trm_nb.data.format import PUZZLES
from trm_nb.explore.solver import Solver
from trm_nb.models.act import ponder
from trm_nb.models.zoo import PRESETS, build_model

PUZZLE = '.......12.5.4............3.7..6..4....1..........8....92....8.....51.7.......3...'

def timed(steps):
    "Seconds to the first and to the last item of an iterator, and the last item."
    began, times = time.perf_counter(), []
    for last in steps: times.append(time.perf_counter() - began)
    return times[0], times[-1], last

def first_trace(frames):
    "Frames, each with its trace made."
    for frame in frames: yield frame.trace()

def size_on_disk(trace):
    "Bytes of the saved trace."
    with tempfile.TemporaryDirectory() as folder:
        trace.save(f'{folder}/a.npz')
        return os.path.getsize(f'{folder}/a.npz')

def main(preset:str='sudoku-extreme-mixer', threads:int=2, device:str='cpu'):
    "Random weights of a preset; they cost what trained ones cost."
    torch.set_num_threads(threads)
    p = PRESETS[preset]
    solver = Solver(build_model(p.settings, p.shape).to(device), PUZZLES['sudoku'])
    batch = dict(inputs=torch.as_tensor(solver.puzzle.parse(PUZZLE).astype(np.int32), device=device)[None], puzzle_identifiers=torch.zeros(1, dtype=torch.int32, device=device))
    list(ponder(solver.act, batch, 2))                      # warm
    plain = timed(ponder(solver.act, batch))[1]
    first, whole, trace = timed(first_trace(solver.trace_steps(PUZZLE, PUZZLE)))
    once = timed([solver.trace(PUZZLE)] for _ in range(1))[1]
    print(json.dumps(dict(preset=preset, threads=threads, device=device, load=round(os.getloadavg()[0], 2), untraced_seconds=round(plain, 2), first_frame_seconds=round(first, 2), every_frame_seconds=round(whole, 2),
                          trace_seconds=round(once, 2), updates=trace.updates, bytes=trace.nbytes, bytes_on_disk=size_on_disk(trace))))

if __name__ == '__main__': typer.run(main)
