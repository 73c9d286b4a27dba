"""Trace 200 puzzles with the shipped model, and try it with parts taken away: python experiments/traces/make.py

Writes NAME.npz and NAME-ablations.npz beside this file, anew after every few puzzles: two minutes of a quiet CPU core to find the puzzles, half an hour to run the model on them.
A trace that was left off is gone on with, and one that is whole is asked for its puzzles: remove the file to begin anew.
100 puzzles are as the generator gives them. The other 100 are hard: descendants of six published puzzles, one given in another place at each birth, which are not solved by crossing out, again and again, each digit that singles refute. The model had no part in the choice.
"""
from pathlib import Path
import numpy as np
import torch
import typer
from tqdm import tqdm
from trm_nb.data.neighbours import one_given_away
from trm_nb.data.source import Rows
from trm_nb.data.sudoku import SIZES, _candidates, _decided, _propagate, generate, join_rows, solve
from trm_nb.explore.ablate import Ablations, ablate, changeable, standard_conditions
from trm_nb.explore.solver import Solver
from trm_nb.explore.trace import Trace
from trm_nb.models.pretrained import SHIPPED

HERE, KIND = Path(__file__).parent, SIZES[9]
UNUSED = ('entropy', 'q_continue', 'inner_q_continue')  # arrays that are not kept
KEPT_BITS = 9                       # of a float's 23: the file is a third as large
PUBLISHED = ('1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3..', # Arto Inkala, 2006
             '8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..', # Arto Inkala, 2012
             '1.......2.9.4...5...6...7...5.9.3.......7.......85..4.7.....6...3...9.8...2.....1', # Easter Monster
             '.......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7.....', # Golden Nugget
             '.......12........3..23..4....18....5.6..7.8.......9.....85.....9...4.5..47...6...', # Platinum Blonde
             '..1..4.......6.3.5...9.....8.....7.3.......285...7.6..3...8...6..92......4...1...') # tarek, 2007

def withstands(inputs):
    "Which puzzles stay open when each candidate that singles alone refute is crossed out, again and again?"
    cand = _propagate(_candidates(inputs, KIND), KIND)[0]
    while True:
        digit, cell, at = np.nonzero((cand >> np.arange(9)[:, None, None] & 1) & ~_decided(cand))
        tried = cand[:, at]
        tried[cell, np.arange(len(at))] = 1 << digit
        bad = _propagate(tried, KIND)[1]
        if not bad.any(): return ~_decided(cand).all(0)
        np.bitwise_and.at(cand, (cell[bad], at[bad]), (~(1 << digit[bad])).astype(cand.dtype))
        cand = _propagate(cand, KIND)[0]

def hard(n, seed, births=8):
    "Descendants of the published puzzles: a child has one given in another place, and of the children that withstand any n are the next parents."
    rng, puzzles = np.random.default_rng(seed), np.stack([KIND.parse(text) for text in PUBLISHED])
    for _ in tqdm(range(births), desc='hard puzzles'):
        children = np.unique(one_given_away(np.resize(puzzles, (10 * n, 81)), KIND, rng, each=6), axis=0)
        puzzles = rng.permutation(children[withstands(children)])[:n]
    known = solve(puzzles)
    return Rows(puzzles, known.solutions, known.guesses.astype(np.int32))

def chosen(n, seed=2026):
    "Rows of puzzles, easy and hard in turn."
    rows = join_rows([generate(n // 2, 9, seed), hard(n // 2, seed)])
    return rows.take(np.arange(n).reshape(2, -1).T.ravel())

def puzzles_of(path, n):
    "Rows of the trace that is there, if it is whole; else rows that are chosen."
    if path.exists() and len(trace := Trace.load(path)) == n: return Rows(trace.inputs, trace.solution, trace.rating)
    return chosen(n)

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
        Ablations(solver.look, rows.inputs, rows.labels, results, solver.puzzle.name, solver.source, changeable(solver.act)).save(path)
        print(results[-1], flush=True)

def main(name:str=SHIPPED, puzzles:int=200, few:int=24, steps:int=8, threads:int=2, part:str='both'):
    "Make both files, or one (part: trace, ablations)."
    torch.set_num_threads(threads)
    solver, rows = Solver.from_pretrained(name), puzzles_of(HERE/f'{name}.npz', puzzles)
    solver.source = name
    if part in ('both', 'trace'): make_trace(solver, rows, HERE/f'{name}.npz')
    if part in ('both', 'ablations'): make_ablations(solver, rows.take(np.arange(few)), HERE/f'{name}-ablations.npz', steps)

if __name__ == '__main__': typer.run(main)
