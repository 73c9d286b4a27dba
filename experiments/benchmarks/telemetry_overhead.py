"""What telemetry costs a training step: stretches of steps with and without it, in turn, in one process.

Both kinds of stretch write their row of metrics.jsonl, as every run does. Those with telemetry also take the norms of all gradients at
each step and send a row to the sink (wandb offline, its log in a temporary folder). Pairs change their order, so that a drift of the
machine falls on both alike. Evaluations, pictures and checkpoints are no part of a step. Needs the extra wandb.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/telemetry_overhead.py --preset sudoku-extreme-mixer --json overhead.json
  ... --preset sudoku-extreme-mixer,maze-hard --stretch 50 --pairs 10
  ... --sink tensorboard telemetry.gradients=false
  PYTHONPATH=. python3 experiments/benchmarks/telemetry_overhead.py --preset demo --device cpu --batch 16 --steps 5 --pairs 4
"""
import statistics, tempfile, time
from pathlib import Path
import common as c
from trm_nb.learn.callbacks import Recorder
from trm_nb.learn.telemetry import Telemetry, Watch, chosen_sinks


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('settings', nargs='*', metavar='KEY=VALUE', help='settings, as `trm train` takes them')
    p.add_argument('--preset', type=c.words, default=['sudoku-extreme-mixer'], metavar='A,B', help='presets')
    p.add_argument('--batch', type=int, metavar='N', help='slots (default: 768, for 30x30 grids 192)')
    p.add_argument('--sink', type=c.words, default=['wandb'], metavar='A,B', help='sinks, all at once')
    p.add_argument('--steps', '--stretch', dest='stretch', type=int, default=50, metavar='N', help='steps of a stretch, and between rows')
    p.add_argument('--pairs', type=int, default=8, help='pairs of stretches')
    p.add_argument('--warmup', type=int, default=20, help='steps before, the compilation not counted')
    p.add_argument('--data', metavar='DIR', help='dataset folder (default: made up)')
    return p.parse_args()

def prepare(preset, a, ranks, folder):
    "A trainer, and its callbacks without and with telemetry."
    config = c.run_config(preset, [*a.settings, 'telemetry.mode=offline'], telemetry__sinks=a.sink, name=preset, runs=str(folder), learn__batch_size=a.batch or c.usual_batch(preset), learn__log_every=a.stretch)
    data = c.training_data(preset, a.data)
    trainer = c.make_trainer(config, data, ranks)
    config.folder.mkdir(parents=True)
    plain = [Recorder(config.folder)]
    told = Telemetry(config.telemetry, config.folder, preset, config.model_dump(mode='json'), lambda t: dict(seed=config.seed), Watch(0), data.puzzle)
    trainer.callbacks = [*plain, told]
    trainer.call('before_fit')
    if len(told.sinks) < len(chosen_sinks(config.telemetry)): raise c.UserError('a sink could not be opened: what it said stands above')
    return trainer, {'off': plain, 'on': [*plain, told]}

def stretch(trainer, callbacks, steps, device):
    "Milliseconds of a step, over a stretch that ends with a row."
    trainer.callbacks = callbacks
    for callback in callbacks:
        if isinstance(callback, Recorder): callback.restart(trainer)
    c.wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step()
        trainer.call('after_step')
    c.wait(device)
    return 1000 * (time.perf_counter() - began) / steps

def measure(preset, a, ranks):
    "One row, and the single stretches."
    c.fresh(ranks.device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer, kinds = prepare(preset, a, ranks, Path(folder))
        for _ in range(-(-a.warmup // a.stretch)): [stretch(trainer, kinds[k], a.stretch, ranks.device) for k in ('off', 'on')]
        found = {'off': [], 'on': []}
        for i in range(a.pairs):
            for kind in (('off', 'on'), ('on', 'off'))[i % 2]: found[kind].append(stretch(trainer, kinds[kind], a.stretch, ranks.device))
        trainer.callbacks = kinds['on']
        trainer.call('after_fit')
    return summary(preset, a, trainer, found), [dict(preset=preset, pair=i + 1, off_ms=x, on_ms=y, ratio=y / x) for i, (x, y) in enumerate(zip(found['off'], found['on']))]

def summary(preset, a, trainer, found):
    "Medians, and what telemetry adds."
    off, on = (statistics.median(found[k]) for k in ('off', 'on'))
    ratios = sorted(y / x for x, y in zip(found['off'], found['on']))
    return dict(preset=preset, batch=trainer.settings.batch_size, device=trainer.ranks.device.type, sink='+'.join(a.sink), steps=a.stretch, pairs=a.pairs, off_ms=off, on_ms=on,
                ratio=on / off, **{'overhead, %': 100 * (on / off - 1), 'median pair, %': 100 * (statistics.median(ratios) - 1), 'lowest, %': 100 * (ratios[0] - 1), 'highest, %': 100 * (ratios[-1] - 1)})

def main():
    "Measure every preset and print the tables."
    a = arguments()
    ranks = c.Ranks(device=c.pick_device(a.device))
    rows, pairs = zip(*(measure(p, a, ranks) for p in a.preset))
    about = c.machine(ranks.device) | {f'{s}_version': c._version(s) for s in a.sink}
    c.finish('Overhead of telemetry', about, {'medians of stretches': list(rows), 'single stretches': [r for p in pairs for r in p]}, a.json)

if __name__ == '__main__': c.start(main)
