"""Reads back what an offline wandb run wrote: its log is a LevelDB-style log of protocol buffers, which wandb itself only uploads."""
import json, struct, sys, zlib
from dataclasses import dataclass, field
from pathlib import Path

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

def chunks(data):
    "(kind, bytes) of every piece of a log; each is checked against its sum. A log that was cut off ends early."
    at = HEADER # the file begins with a header of its own
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        total, size, kind = struct.unpack('<IHB', data[at:at + HEADER])
        if left < HEADER or (kind == 0 and size == 0): at += left; continue
        piece = data[at + HEADER:at + HEADER + size]
        if len(piece) < size: return
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) & 0xffffffff == total, f'wrong sum at {at}'
        yield kind, piece
        at += HEADER + size

def records(path):
    "The records of a log file."
    from wandb.proto import wandb_internal_pb2
    data, parts = Path(path).read_bytes(), []
    assert data[:4] == b':W&B', 'no log of wandb'
    for kind, piece in chunks(data):
        if kind in (WHOLE, FIRST): parts = []
        parts.append(piece)
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b''.join(parts))
            yield record

def place(values, item):
    "Put an item (a key or a path of keys, and JSON) into a nested dictionary."
    *path, last = list(item.nested_key) or [item.key]
    for key in path: values = values.setdefault(key, {})
    values[last] = json.loads(item.value_json)

@dataclass
class Log:
    "What one process of a run left."
    id: str = ''
    project: str = ''
    entity: str = ''
    name: str = ''
    config: dict = field(default_factory=dict)
    rows: list = field(default_factory=list) # of history, with `_step`
    summary: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)
    metrics: dict = field(default_factory=dict) # name or pattern: the metric it is drawn against, and whether it is hidden
    exit: int | None = None

    def take(self, record):
        "Add a record."
        kind = record.WhichOneof('record_type')
        getattr(self, f'_{kind}', lambda r: None)(getattr(record, kind)) if kind else None

    def _run(self, r):
        self.id, self.project, self.entity, self.name = r.run_id, r.project, r.entity, r.display_name
        self._config(r.config)

    def _config(self, r):
        for item in r.update: place(self.config, item)

    def _history(self, r):
        row = {}
        for item in r.item: place(row, item)
        self.rows.append(row)

    def _summary(self, r):
        for item in r.update: place(self.summary, item)

    def _artifact(self, r):
        self.artifacts.append(dict(name=r.name, type=r.type, aliases=list(r.aliases), metadata=json.loads(r.metadata or '{}'), files={c.path: c.size for c in r.manifest.contents}))

    def _metric(self, r): self.metrics[r.name or r.glob_name] = (r.step_metric, r.options.hidden)

    def _exit(self, r): self.exit = r.exit_code

def read_log(path):
    "A log file as a `Log`."
    log = Log()
    for record in records(path): log.take(record)
    return log

def read_logs(folder):
    "All logs below a folder, in the order of their making."
    return [read_log(p) for p in sorted(Path(folder).glob('wandb/offline-run-*/run-*.wandb'))]

if __name__ == '__main__':
    for log in read_logs(sys.argv[1]):
        print(log.id, log.name, log.exit, json.dumps(log.config, indent=1)[:3000])
        for row in log.rows: print(row['_step'], {k: v if not isinstance(v, dict) else v.get('_type', v) for k, v in row.items()})
        print(log.summary.keys(), log.artifacts)
