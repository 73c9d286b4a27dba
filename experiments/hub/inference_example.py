"""Solve a puzzle with the model beside this file: python inference_example.py [PUZZLE]; without one, that of example.json."""
import json, sys
from pathlib import Path
from trm_nb.explore.solver import Solver

here = Path(__file__).resolve().parent
example = json.loads((here/'example.json').read_text(encoding='utf-8'))
solver = Solver.from_pretrained(here)
answer = solver.solve(sys.argv[1] if len(sys.argv) > 1 else example['puzzle'], identifier=example['identifier'])
print(answer)
