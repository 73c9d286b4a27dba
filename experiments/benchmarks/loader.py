"""How fast training batches are made: sampling on the processor, gathering and symmetries on the device.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/loader.py
  ... --kind sudoku,maze --batch 192,768 --device cuda --json loader.json
  ... --data data/arc-agi-1,data/sudoku-extreme --batch 768
"""
import statistics
import common as c
from trm_nb.data.format import PUZZLES


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('--kind', type=c.words, default=['sudoku', 'maze', 'arc'], metavar='A,B', help='kinds of puzzle to make up, where no data is named')
    p.add_argument('--data', type=c.words, metavar='DIR,DIR', help='dataset folders')
    p.add_argument('--batch', type=c.numbers, default=[768], metavar='N,M', help='examples of a batch')
    p.add_argument('--batches', type=int, default=50, help='timed batches')
    return p.parse_args()

def datasets(a):
    "Training splits."
    if a.data: return [c.training_data(None, folder) for folder in a.data]
    kinds = [PUZZLES[k] for k in a.kind]
    return [c.made_up(c.PuzzleShape(k.vocab_size, k.seq_len), 64, kind=k.name) for k in kinds]

def measure(data, batch, augment, a, device):
    "One row."
    loader = c.TrainLoader(data, batch, device=device, augment=augment)
    seconds = c.timed(loader.batch, device, a.batches, 5)
    s = statistics.median(seconds)
    return dict(puzzle=data.puzzle.name, data=str(data.path) if a.data else 'made up', batch=batch, symmetry=loader.symmetry is not None, ms=1000 * s, slowest=1000 * max(seconds), **{'batches/s': 1 / s, 'examples/s': batch / s})

def main():
    "Measure every combination and print the table."
    a = arguments()
    device = c.pick_device(a.device)
    rows = [measure(d, b, augment, a, device) for d in datasets(a) for b in a.batch for augment in ((True, False) if d.puzzle.training_symmetry(d) else (False,))]
    c.finish('Loader', c.machine(device), {f'Median of {a.batches} batches on {device}': rows}, a.json)

if __name__ == '__main__': c.start(main)
