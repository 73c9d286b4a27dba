"""Requests a second, waiting times and memory of the server, over HTTP on loopback: distinct Sudokus, cache off, a request after the other in each client.

The server is a process of its own, and the clients are others, so that what is measured is the server. `--max-batch 1,64` compares a server that
takes puzzles one by one with one that batches them. `--requests` sends so many more and looks at the server's memory meanwhile.

examples:
  PYTHONPATH=. python3 experiments/benchmarks/serve_load.py --checkpoint runs/demo --clients 64 --seconds 60
  ... --checkpoint sudoku-extreme --max-batch 1,256 --clients 512 --processes 8 --seconds 30 --json serve.json
  ... --checkpoint runs/demo --seconds 10 --requests 20000
"""
import asyncio, json, multiprocessing, os, signal, subprocess, sys, threading, time
from collections import Counter
import common as c
import numpy as np
from trm_nb.data.sudoku import generate
from trm_nb.explore.solver import Solver

SERVER = '''
import sys
from trm_nb.serve.api import create_app, serve
from trm_nb.serve.engine import Models, ServeSettings
checkpoint, device, width = sys.argv[1:]
settings = ServeSettings(port=0, cache_mb=0, max_batch=int(width) or None, queue=4096)
models = Models(checkpoint, settings, device)
engine = models.get()
serve(create_app(models, settings), ready=lambda url: print(url, engine.width, flush=True))
'''


def arguments():
    "What the user wants."
    p = c.parser(__doc__)
    p.add_argument('--checkpoint', metavar='SOURCE', required=True, help='run folder, checkpoint, shipped name or Hub id; of a Sudoku model')
    p.add_argument('--clients', type=int, default=64, help='requests under way at any time')
    p.add_argument('--seconds', type=float, default=60, help='time of a row')
    p.add_argument('--processes', type=int, default=1, help='processes of clients; raise it where one of them is busy all the time')
    p.add_argument('--max-batch', type=c.numbers, default=[0], metavar='N,M', help="puzzles on the device at once, a row each; 0: the server's default")
    p.add_argument('--puzzles-a-request', type=int, default=1, help='puzzles in a request')
    p.add_argument('--steps', type=int, help="ACT steps of every puzzle, without early exit (default: the model stops where it would)")
    p.add_argument('--requests', type=int, default=0, help='afterwards, send so many requests and watch the memory')
    return p.parse_args()

# distinct puzzles

def texts(
    grids:np.ndarray, # (N, size, size) puzzles
    number:int, # of the process that asks
):
    "Puzzles as text without end, no two the same: with their digits renamed, some of them upside down."
    rng, seen, size = np.random.default_rng(number), set(), grids.shape[1]
    while True:
        for grid in grids:
            names = np.array([0, *rng.permutation(np.arange(1, size + 1))])
            text = ''.join('.123456789'[d] for d in names[grid[::rng.choice([1, -1])]].ravel())
            if text in seen: continue
            seen.add(text)
            yield text

# clients

async def client(host, port, bodies, until, found):
    "Send requests one after the other over one connection, until the time is over or the bodies are."
    reader, writer = await asyncio.open_connection(host, port)
    for body in bodies:
        if time.perf_counter() > until: break
        began = time.perf_counter()
        writer.write(b'POST /api/solve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b' % (len(body), body))
        head = await reader.readuntil(b'\r\n\r\n')
        length = int(head.lower().split(b'content-length:')[1].split(b'\r\n')[0])
        reply = await reader.readexactly(length)
        status = int(head[9:12])
        found.append((status, time.perf_counter() - began, reply.count(b'"valid": true') + reply.count(b'"valid":true')))
        if status == 429: await asyncio.sleep(.05)
    writer.close()

def body_of(puzzles, steps):
    "A request's body."
    how = f',"max_steps":{steps},"early_exit":false' if steps else ''
    return f'{{"puzzles":{json.dumps(puzzles)}{how}}}'.encode()

def bodies(texts, each, steps, most=None):
    "Requests of `each` puzzles, at most so many."
    sent = 0
    while most is None or sent < most:
        sent += 1
        yield body_of([next(texts) for _ in range(each)], steps)

def one_process(number, address, clients, seconds, grids, each, steps, most, queue):
    "The clients of a process."
    host, port = address.removeprefix('http://').split(':')
    found, shared = [], bodies(texts(grids, number), each, steps, most)
    async def all_clients():
        until = time.perf_counter() + (seconds or 1e9)
        await asyncio.gather(*(client(host, int(port), shared, until, found) for _ in range(clients)))
    used, began = time.process_time(), time.perf_counter()
    asyncio.run(all_clients())
    queue.put((found, time.perf_counter() - began, time.process_time() - used))

def load(address, a, grids, seconds, most=None):
    "Status, seconds and valid answers of every request; seconds it took; share of a core that a process of clients was busy."
    fork = multiprocessing.get_context('fork')
    queue, share = fork.Queue(), a.clients // a.processes
    make = lambda i: fork.Process(target=one_process, args=(i, address, share, seconds, grids, a.puzzles_a_request, a.steps, most and most // a.processes, queue))
    processes = [make(i) for i in range(a.processes)]
    for p in processes: p.start()
    parts = [queue.get() for _ in processes]
    for p in processes: p.join()
    return [x for found, _, _ in parts for x in found], max(s for _, s, _ in parts), max(used / s for _, s, used in parts)

# the server

class Server:
    "A server in a process of its own."
    def __init__(self, a, width):
        self.process = subprocess.Popen([sys.executable, '-c', SERVER, a.checkpoint, a.device, str(width)], stdout=subprocess.PIPE, text=True, env=os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(c.ROOT), os.environ.get('PYTHONPATH')]))))
        line = self.process.stdout.readline().split()
        if not line: raise c.UserError('the server did not start')
        self.address, self.width = line[0], int(line[1])

    def memory(self):
        "Resident memory in MB."
        pages = open(f'/proc/{self.process.pid}/statm').read().split()[1]
        return int(pages) * os.sysconf('SC_PAGE_SIZE') / 1e6

    def __enter__(self): return self
    def __exit__(self, *error):
        self.process.send_signal(signal.SIGTERM)
        self.code = self.process.wait(60)

def row(server, found, seconds, busy, each):
    "What became of the requests."
    statuses, times = Counter(s for s, _, _ in found), np.array([t for s, t, _ in found if s == 200])
    p = lambda q: float(np.percentile(times, q)) if len(times) else None
    return dict(max_batch=server.width, requests=len(found), **{'puzzles/s': len(times) * each / seconds, 'p50_s': p(50), 'p90_s': p(90), 'p99_s': p(99), 'max_s': p(100)},
                refused=statuses[429], errors=len(found) - statuses[200] - statuses[429], valid=sum(v for _, _, v in found) / max(len(times) * each, 1), client_busy=busy)

def measure(a, grids):
    "A row for each width."
    rows = []
    for width in a.max_batch:
        with Server(a, width) as server:
            load(server.address, a, grids, 3)
            rows.append(row(server, *load(server.address, a, grids, a.seconds), a.puzzles_a_request))
    first = rows[0]['puzzles/s']
    return [r | dict(times=r['puzzles/s'] / first) for r in rows]

def watch_memory(a, grids):
    "The server's memory while it answers."
    samples, stop = [], threading.Event()
    with Server(a, a.max_batch[-1]) as server:
        load(server.address, a, grids, 3)
        def look():
            while not stop.wait(.2): samples.append(server.memory())
        watcher = threading.Thread(target=look)
        watcher.start()
        found, seconds, _ = load(server.address, a, grids, None, a.requests)
        stop.set()
        watcher.join()
    parts = [float(np.mean(p)) for p in np.array_split(samples, 5)]
    return [dict(requests=len(found), errors=sum(s != 200 for s, _, _ in found), seconds=seconds, **{f'mb_in_fifth_{i}': m for i, m in enumerate(parts, 1)}, most_mb=max(samples))]

def main():
    "Measure, print the tables."
    a = arguments()
    solver = Solver.from_pretrained(a.checkpoint, a.device)
    if not solver.puzzle.name.startswith('sudoku'): raise c.UserError(f'{a.checkpoint} answers {solver.puzzle.name} puzzles: name a Sudoku model')
    size, device = solver.puzzle.shape[0], solver.device
    grids = generate(3000 if size == 4 else 500, size, seed=1000).inputs.reshape(-1, size, size) - 1
    tables = {f'{a.checkpoint} on {device}: {a.clients} clients for {a.seconds:g} s each row; `valid`: share of answers that obey the rules; `client_busy`: of a core': measure(a, grids)}
    if a.requests: tables['The server\'s resident memory (MB) while it answers'] = watch_memory(a, grids)
    c.finish('Serving', c.machine(device) | dict(model=a.checkpoint), tables, a.json)

if __name__ == '__main__': c.start(main)
