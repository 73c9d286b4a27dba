"""Trace 200 generated puzzles with the shipped model, and try it with parts taken away: python experiments/traces/make.py

Writes NAME.npz and NAME-ablations.npz beside this file, anew after every few puzzles: about 35 minutes of one quiet CPU core, a minute of a GPU.
A trace that was left off is gone on with: remove the file to begin anew.
Of 800 puzzles (seed 2026) 100 are taken as they come, and the 100 that the backtracking solver finds hardest.
"""
from pathlib import Path
import numpy as np
import torch
import typer
from trm_nb.data.sudoku import generate
from trm_nb.explore.ablate import Ablations, ablate, standard_conditions
from trm_nb.explore.solver import Solver
from trm_nb.explore.trace import Trace
from trm_nb.models.pretrained import SHIPPED

HERE = Path(__file__).parent
UNUSED = ('entropy', 'q_continue')  # arrays that are not kept
KEPT_BITS = 9                       # of a float's 23: the file is a third as large

def chosen(n, seed=2026):
    "Rows of puzzles, easy and hard in turn."
    rows = generate(4 * n, 9, seed, progress=True)
    hard = np.argsort(-rows.ratings, kind='stable')[:n // 2]
    easy = np.setdiff1d(np.arange(4 * n), hard)[:n // 2]
    return rows.take(np.stack([easy, hard], 1).ravel())

def rounded(x, bits=KEPT_BITS):
    "Floats with a shorter mantissa, which compress."
    if x is None or x.dtype != np.float32: return x
    step = np.uint32(1 << 23 - bits)
    return ((np.ascontiguousarray(x).view(np.uint32) + step // 2) & ~(step - np.uint32(1))).view(np.float32)

def small(trace):
    "A trace without what a map of many puzzles does not need."
    trace = trace.drop(*UNUSED)
    for k in ('loss', 'latent_change', 'inner_q_halt', 'inner_loss', 'move', 'turn', 'path'): setattr(trace, k, rounded(getattr(trace, k)))
    trace.confidence = (np.rint(trace.confidence * 255) / 255).astype(np.float32)
    return trace

def make_trace(solver, rows, path, piece=20):
    "Write the trace, piece by piece; what is there already is gone on with."
    parts = [Trace.load(path)] if path.exists() else []
    for i in range(sum(map(len, parts)), len(rows.inputs), piece):
        part = slice(i, i + piece)
        parts.append(solver.trace(rows.inputs[part] - 1, rows.labels[part] - 1, ratings=rows.ratings[part], cells=False, batch_size=5, like=parts[0] if parts else None))
        small(Trace.join(parts)).save(path)
        print(f'{min(i + piece, len(rows.inputs))} puzzles traced, {path.stat().st_size:,} bytes', flush=True)

def make_ablations(solver, rows, path, steps):
    "Write what every condition does, condition by condition."
    results = []
    for c in standard_conditions(solver.act):
        results += ablate(solver, rows.inputs - 1, rows.labels - 1, [c], steps=steps).results
        Ablations(solver.look, rows.inputs, rows.labels, results, solver.puzzle.name, solver.source).save(path)
        print(results[-1], flush=True)

def main(name:str=SHIPPED, puzzles:int=200, few:int=24, steps:int=8, threads:int=2, part:str='both'):
    "Make both files, or one (part: trace, ablations)."
    torch.set_num_threads(threads)
    solver, rows = Solver.from_pretrained(name), chosen(puzzles)
    solver.source = name
    if part in ('both', 'trace'): make_trace(solver, rows, HERE/f'{name}.npz')
    if part in ('both', 'ablations'): make_ablations(solver, rows.take(np.arange(few)), HERE/f'{name}-ablations.npz', steps)

if __name__ == '__main__': typer.run(main)
