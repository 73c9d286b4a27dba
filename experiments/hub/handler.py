"""Hugging Face Inference Endpoint for the model beside this file.

Request:  {"inputs": "4..1" or a list of puzzles, "parameters": {"steps": 16, "identifier": 0}}
Response: one object for each puzzle: answer, grid, valid, steps, halted_at, q_halt, lowest_confidence; or error.
"""
import os
from pathlib import Path
from trm_nb.data.basics import UserError
from trm_nb.explore.solver import Solver

def describe(answer):
    "An answer as plain values."
    return dict(answer=answer.text, grid=answer.grid.tolist(), valid=answer.valid, steps=answer.steps, halted_at=answer.halted_at,
                q_halt=[round(float(q), 4) for q in answer.q_halt], lowest_confidence=round(float(answer.confidence.min()), 4))

class EndpointHandler:
    "Answers requests; made once, when the endpoint starts."
    def __init__(self, path=''): self.solver = Solver.from_pretrained(os.environ.get('TRM_CHECKPOINT_PATH') or path or Path(__file__).resolve().parent)

    def __call__(self, data):
        "Answer the puzzles of one request."
        puzzles, parameters = data.get('inputs'), data.get('parameters') or {}
        unknown = set(parameters) - {'steps', 'identifier'}
        if unknown: return [dict(error=f'unknown parameter {sorted(unknown)[0]}: allowed are identifier, steps')]
        if not puzzles: return [dict(error='inputs must be a puzzle as text or a grid, or a list of texts')]
        several = isinstance(puzzles, list) and isinstance(puzzles[0], str)
        return [self.answer(p, parameters) for p in (puzzles if several else [puzzles])]

    def answer(self, puzzle, parameters):
        "Answer one puzzle, or say what is wrong with it."
        steps, identifier = parameters.get('steps'), parameters.get('identifier', 0)
        if steps is not None and not (isinstance(steps, int) and 0 < steps <= 1024): return dict(error='steps must be a whole number from 1 to 1024')
        try: return describe(self.solver.solve(puzzle, steps, identifier=identifier))
        except UserError as e: return dict(error=str(e))
