"""The explorer: packs to the byte, the module's pure functions in Node, pages without a kernel in Chromium, the widget in JupyterLab and Voila."""
import gzip, json, shutil, statistics, subprocess, threading, time
from importlib.util import find_spec
import nbformat
import numpy as np
import pytest
import torch
from browser import theirs, READY, chromium, lab, offline, run_notebook, voila, watched
from trm_nb.data.format import PUZZLES
from trm_nb.data.sudoku import generate
from trm_nb.explore.ablate import ablate
from trm_nb.explore.labs import AblationBench, HaltingLab, LatentMap, ablations_pack, halting_pack, halting_worth, map_pack, shipped_trace, stops_at
from trm_nb.explore.player import Page, Player, pack, static_file, trace_pack, unpack
from trm_nb.explore.solver import Solver
from trm_nb.explore.widgets import Explorer, RunMonitor
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model

def small_solver(name, steps=4):
    "A model with random weights, whose q_halt is not constant."
    kind = PUZZLES[name]
    act = build_model(dict(name='trm', hidden_size=32, num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=steps), PuzzleShape(kind.vocab_size, kind.seq_len), seed=1)
    torch.nn.init.normal_(act.inner.q_head.weight, std=.5, generator=torch.Generator().manual_seed(1))
    return Solver(act, kind, name)

@pytest.fixture(scope='module')
def solver(): return small_solver('sudoku-4x4')

@pytest.fixture(scope='module')
def traces(solver):
    rows = generate(2, 4, seed=3)
    grids = lambda tokens: [solver.puzzle.to_grid(t) for t in tokens]
    return solver.trace(grids(rows.inputs), grids(rows.labels), mixing=[1, 4])


# packs

def test_packs_to_the_byte(traces):
    data = trace_pack(traces[0], 'left')
    about, arrays = unpack(data)
    assert pack(about, arrays) == data                       # and so nothing is lost or added
    for name in ('inputs', 'solution', 'answers', 'q_halt', 'halts', 'inner_answers', 'inner_confidence', 'inner_entropy', 'inner_change', 'inner_q_halt', 'move', 'path', 'cell_path'):
        expected = getattr(traces[0], name)
        assert (arrays[name].tobytes(), arrays[name].shape) == (expected.tobytes(), expected.shape), name
    assert about['label'] == 'left' and about['basis'] and len(about['explained'][0]) == 3
    assert [a['offset'] % 8 for a in json.loads(data[8:8 + int.from_bytes(data[4:8], 'little')])['arrays']] == [0] * len(arrays)

def test_a_large_pack_is_small_enough():
    trace = small_solver('sudoku', steps=16).trace('.' * 81)
    assert len(gzip.compress(trace_pack(trace), 3)) < 400_000


# pure functions of the module, in Node

PROBE = '''
import { readFileSync } from 'node:fs';
import * as m from './explorer.mjs';
const out = {}, packed = readFileSync('trace.pack'), { about, arrays } = m.unpack(packed);
for (const [k, a] of Object.entries(arrays)) out[k] = [a.shape, Buffer.from(a.buffer, a.byteOffset, a.byteLength).toString('base64')];
const t = m.readTrace({ about, arrays }), all = f => Array.from({ length: t.T }, (_, u) => f(u));
out.names = all(u => m.nameOf(t, u));
out.sources = ['', ...t.latents].map(n => all(u => m.sourceOf(t, u, n)));
out.frames = ['step', 'cycle', 'update'].map(g => m.framesOf(t, g));
out.at = [0, 2, 3, 5, 23].map(u => m.frameAt(m.framesOf(t, 'cycle'), u));
out.read = all(u => [...m.readAt(t, u, t.readout).tokens]);
out.just = all(u => [...m.readAt(t, u, '').tokens]);
out.wrong = [...m.counts(t, '').wrong]; out.changed = [...m.counts(t, '').changed];
out.order = m.restingOrder(t); out.givens = [...m.givensOf(t)];
out.flips = [3, 7].map(c => m.flips(t, c, 'z_H'));
out.aligned = [m.aligned(t, t, 7), m.aligned(t, { T: 9, U: 9 }, 5), m.aligned(t, { T: 9, U: 9 }, 23)];
out.smooth = m.smooth([1, 2, 4, 8], 2); out.ticks = [m.ticks(0, 8), m.ticks(-3, 5, 4), m.whole(0, 2, 8), m.ticks(0, .3, 3), m.ticks(1, 1)];
out.mix = [m.mix('#000000', '#ffffff', .5), m.mix('#102030', '#ffffff', 0), m.ramp(['#000000', '#ff0000', '#ffffff'], .5)];
out.scaled = [...m.scaled([0, 1, 2])];
const body = (data, cls = '') => ({ dataset: data, className: cls });
out.dark = [m.isDark(body({ jpThemeLight: 'false' }), false), m.isDark(body({ jpThemeLight: 'true' }), true), m.isDark(body({ vscodeThemeKind: 'vscode-dark' }), false), m.isDark(body({}, 'quarto-light'), true), m.isDark(body({}), true)];
out.inflated = Buffer.from(await m.inflate(readFileSync('trace.pack.gz'))).equals(packed);
try { m.unpack(new Uint8Array(20)); } catch (e) { out.refused = e.message; }
out.shifted = m.unpack(new DataView(new Uint8Array([7, 7, 7, ...packed]).buffer, 3)).arrays.inputs.length;
const many = m.readMany(readFileSync('many.pack')), right = m.rightAt(many), rules = [[-9, 1, 1], [0, 1, 1], [.1, 2, 1], [-.5, 1, 2], [9, 1, 1]];
out.right = [...right];
out.stops = rules.map(([t, least, often]) => [...m.stopsAt(many.arrays.q_halt, many.steps, t, least, often)]);
out.worth = rules.map(([t, least, often]) => m.worth(right, many.steps, m.stopsAt(many.arrays.q_halt, many.steps, t, least, often)));
out.trade = m.tradeOff(many.arrays.q_halt, right, many.steps, 1, 1);
console.log(JSON.stringify(out));
'''

@pytest.fixture(scope='module')
def found(traces, tmp_path_factory):
    node = shutil.which('node')
    if not node: pytest.skip('no Node')
    folder, data = tmp_path_factory.mktemp('node'), trace_pack(traces[0])
    shutil.copy(static_file('explorer.js'), folder/'explorer.mjs')
    (folder/'trace.pack').write_bytes(data), (folder/'trace.pack.gz').write_bytes(gzip.compress(data)), (folder/'probe.mjs').write_text(PROBE), (folder/'many.pack').write_bytes(halting_pack(traces))
    done = subprocess.run([node, 'probe.mjs'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

def test_the_browser_reads_the_same_bytes(found, traces):
    import base64
    _, arrays = unpack(trace_pack(traces[0]))
    for name, array in arrays.items(): assert found[name] == [list(array.shape), base64.b64encode(array.tobytes()).decode()], name
    assert found['inflated'] and found['refused'] == 'this is not a pack' and found['shifted'] == 16

def test_the_browser_reads_the_same_meaning(found, traces):
    t = traces[0]
    assert found['names'] == [f'step {a} · H {h + 1} · L {l + 1} · {t.latents[k]}' for a, h, l, k in t.index]
    last = lambda u, n: max([v for v in t.of(n) if v <= u], default=-1)
    assert found['sources'] == [list(range(t.updates))] + [[last(u, n) for u in range(t.updates)] for n in t.latents]
    assert found['frames'] == [t.ends.tolist(), t.of('z_H').tolist(), list(range(t.updates))]
    assert found['at'] == [0, 0, 0, 1, 7]
    assert found['just'] == t.inner_answers.tolist() and found['read'][2] == t.inner_answers[2].tolist() and found['read'][0] == t.inputs.tolist()
    assert [found['read'][u] for u in t.ends] == t.answers.tolist()
    assert found['wrong'] == t.inner_wrong.sum(1).tolist() and found['changed'] == t.inner_changed.sum(1).tolist()
    rest = np.where(t.changed, np.arange(t.steps)[:, None], 0).max(0)
    assert found['order'] == np.lexsort((np.arange(16), rest)).tolist()
    assert found['givens'] == (t.inputs != 1).astype(int).tolist()
    for cell, flips in zip((3, 7), found['flips']):
        seen = [r[cell] for r in found['read']]
        assert flips == [dict(update=u, token=seen[u]) for u in range(len(seen)) if not u or seen[u] != seen[u - 1]]

def test_small_functions(found):
    from trm_nb.evaluate.figures import CYCLE
    assert f'cycle: {CYCLE}' in static_file('explorer.js').read_text()
    assert found['aligned'] == [7, 8, 8]
    assert found['smooth'] == pytest.approx([1, 5 / 3, (1 * .25 + 2 * .5 + 4) / 1.75, (1 * .125 + 2 * .25 + 4 * .5 + 8) / 1.875])
    assert found['ticks'] == [[0, 2, 4, 6, 8], [-2, 0, 2, 4], [0, 1, 2], [0, .1, .2, .3], [1]]
    assert found['mix'] == ['#808080', '#102030', [255, 0, 0]] and found['scaled'] == [0, 128, 255]
    assert found['dark'] == [True, False, True, False, True]

def test_the_browser_halts_as_the_kernel_does(found, traces):
    rules = [dict(threshold=t, least=l, often=o) for t, l, o in ((-9, 1, 1), (0, 1, 1), (.1, 2, 1), (-.5, 1, 2), (9, 1, 1))]
    assert found['right'] == traces.correct.ravel().astype(int).tolist()
    assert found['stops'] == [stops_at(traces.q_halt, **r).tolist() for r in rules]
    for here, rule in zip(found['worth'], rules): assert {k: here[k] for k in ('accuracy', 'cost', 'early')} == pytest.approx(halting_worth(traces, **rule))
    assert found['trade'][0]['cost'] == 1 and found['trade'][-1]['cost'] == traces.steps


# bad input

def test_bad_input_is_one_line_and_all_goes_on(tmp_path, monkeypatch):
    "Wrong size, wrong symbols, contradictions, a checkpoint that has vanished, an interrupt while a cell waits."
    solver, sent = small_solver('sudoku-4x4'), []
    kept = save_pretrained(solver.act, tmp_path/'model', 'sudoku-4x4')
    w = Explorer({'kept': str(kept), 'other': str(tmp_path/'other')}, '1...' + '.' * 12)
    w.send = lambda content, buffers=None: sent.append(content)
    def tell(**m):
        w._receive(w, m, [])
        assert w.wait(60)
        return w.status['text']
    assert w.wait(60) and w.trace is not None
    assert '16 cells' in tell(type='read', id='r', text='12') and "'x'" in tell(type='read', id='r', text='x' * 16) and 'JSON' in tell(type='read', id='r', text='[[1,')
    assert 'Contradictory' in tell(type='solve', a=dict(settings={}), tokens=[2, 2] + [1] * 14) and w.status['offer']
    assert tell(type='solve', a=dict(settings={}), tokens=[2, 2] + [1] * 14, anyway=True) == '' and w.trace.inputs[1] == 2
    shutil.rmtree(kept)
    tell(type='entry', entry=0)
    assert tell(type='solve', a=dict(settings=dict(steps=2))) == '' and w.trace.steps == 2        # what is loaded stays
    assert 'other' in tell(type='model', name='other') and 'gone' in tell(type='model', name=str(tmp_path/'gone')) and list(w.models) == ['kept', 'other']
    assert tell(type='solve', a=dict(settings=dict(steps=3))) == '' and w.trace.steps == 3
    def interrupted(seconds=None): raise KeyboardInterrupt
    w._receive(w, dict(type='solve', a=dict(settings=dict(steps=500))), [])
    while not w.status.get('done'): time.sleep(.005)
    join, thread = w.worker.thread.join, w.worker.thread
    monkeypatch.setattr(thread, 'join', lambda seconds=None: monkeypatch.undo() or interrupted())
    w.wait()
    join()
    assert 'left off after step' in w.status['text'] and tell(type='solve', a=dict(settings=dict(steps=2))) == ''
    assert w.plot().png().startswith(b'\x89PNG')


# never in the way: models are read, and files written, beside the notebook

def two_models(folder):
    "Two checkpoints of one kind of puzzle, with other weights, on disk."
    one, two = small_solver('sudoku-4x4'), small_solver('sudoku-4x4')
    with torch.no_grad():
        for p in two.act.parameters(): p.add_(.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return {n: str(save_pretrained(s.act, folder/n, 'sudoku-4x4')) for n, s in (('one', one), ('two', two))}

def until(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(.005)

def test_a_model_is_read_beside_the_notebook_and_can_be_left_off(tmp_path, monkeypatch):
    w, go, read = Explorer(two_models(tmp_path), generate(2, 4, seed=3)), threading.Event(), Solver.from_pretrained
    tell = lambda **m: w._receive(w, m, [])
    assert w.wait(60) and w.trace is not None and w.board['model'] == 'one'
    before, threads = w.trace, []
    def slow(source):
        threads.append(threading.current_thread())
        go.wait(60)
        return read(source)
    monkeypatch.setattr(Solver, 'from_pretrained', slow)
    tell(type='model', name='two')                                   # comes back at once
    until(lambda: '1 s' in w.status['text'])
    assert w.status['text'] == 'loading two · 1 s' and w.status['busy'] and threads[0] is not threading.main_thread()
    tell(type='cancel')
    assert w.wait(2) and not go.is_set()                             # although the model is still being read
    assert (w.status['text'], w.status['busy'], w.board['model'], list(w.models)) == ('left off loading two', False, 'one', ['one', 'two'])
    tell(type='solve', a=dict(settings=dict(steps=2)))
    assert w.wait(60) and w.trace.steps == 2 and w.status['level'] == 'quiet'
    tell(type='model', name='two'), until(lambda: 'loading' in w.status['text']), tell(type='entry', entry=1)      # other work ends it too
    assert w.wait(60) and w.board['model'] == 'one' and w.trace.inputs.tolist() == w.entries[1].tokens.tolist()
    go.set()
    tell(type='model', name='two')
    assert w.wait(60) and w.board['model'] == 'two' and not (w.trace.inner_confidence == before.inner_confidence).all()

@pytest.mark.parametrize('what', ['gif', 'mp4'])
def test_a_movie_is_written_beside_the_notebook_and_can_be_left_off(what, solver):
    if what == 'mp4': pytest.importorskip('imageio_ffmpeg')
    w, sent, said = Explorer(solver, generate(2, 4, seed=3), steps=12), [], []
    assert w.wait(60)
    w.send = lambda content, buffers=None: sent.append((content, buffers))
    w.observe(lambda change: said.append(change.new), 'status')
    tell = lambda **m: w._receive(w, m, [])
    tell(type='export', what=what, id='a')
    until(lambda: said and said[-1]['done'] > .1)
    tell(type='cancel')
    assert w.exports.wait(60) and sent == [(dict(id='a', ok=False), None)] and w.status['text'] == f'left off writing the {what} file' and not w.busy
    tell(type='export', what=what, id='b')
    until(lambda: w.status['busy'])
    tell(type='entry', entry=1)                                      # a solve goes on beside it, and says how far it is
    assert w.wait(60) and w.trace.steps == 12 and w.trace.inputs.tolist() == w.entries[1].tokens.tolist()
    assert w.exports.wait(60) and sent[-1][0] == dict(id='b', ok=True) and len(sent[-1][1][0]) > 1000
    assert w.status == dict(text='', level='quiet', busy=False, done=0.)
    shares = [s['done'] for s in said if 'writing' in s['text']]
    assert len(shares) > 10 and 0 < min(filter(None, shares)) < .2


# two checkpoints side by side

def test_two_checkpoints_side_by_side(tmp_path):
    "Each side answers as its own checkpoint does, on its own components; told apart by name."
    paths, rows = two_models(tmp_path), generate(2, 4, seed=3)
    w, sent = Explorer({'one': paths['one']}, rows, other={'two': paths['two']}), []
    assert w.wait(60) and w.board['comparing'] and (w.board['model'], w.board['other']) == ('one', 'two')
    tell = lambda **m: (w._receive(w, m, []), w.wait(60), w.queries.wait(60))
    own = {n: Solver.from_pretrained(p, device='cpu') for n, p in paths.items()}
    def both(steps=4):
        found = {n: s.trace(s.puzzle.to_grid(w.entries[w.entry].tokens), steps=steps) for n, s in own.items()}
        for (n, t), side in zip(found.items(), (w.trace, w.other)):
            assert (side.inner_answers == t.inner_answers).all() and side.q_halt == pytest.approx(t.q_halt, abs=1e-5), n
        assert not (found['one'].inner_confidence == found['two'].inner_confidence).all()
        packs = [unpack(gzip.decompress(p)) for p in (w.pack_a, w.pack_b)]
        assert [about['label'].split(' · ')[0] for about, _ in packs] == ['one', 'two'] and packs[0][0]['basis'] != packs[1][0]['basis']
        for (_, arrays), t in zip(packs, found.values()): assert (arrays['answers'] == t.answers).all()
    both()
    tell(type='entry', entry=1)                                       # another puzzle: both follow
    both()
    tell(type='solve', a=dict(settings=dict(steps=2)), b=dict(model='two', settings=dict(steps=2)))
    both(2)
    tell(type='solve', a=dict(settings={}), b=dict(model='one', settings={}))          # and any that is listed can stand on the right
    assert (w.other.inner_answers == w.trace.inner_answers).all() and w.board['other'] == 'one'
    w.send = lambda content, buffers=None: sent.append((content, buffers))
    tell(type='reads', side='b', cell=3, step=2, what='reads', id='x')
    assert sent[-1][0]['ok'] and len(sent[-1][1][0]) == 32


# pages without a kernel

@pytest.fixture(scope='module')
def browser():
    with chromium() as found: yield found

LOOK = "x => [x, document.querySelector('.trm').explorer][1]"
CELL = '''([side, cell]) => { const x = document.querySelector('.trm').explorer, c = x.board[side].canvas, [rows, cols] = x.look().shape, s = (c.width - 4 * devicePixelRatio) / cols;
  const r = Math.floor(cell / cols), q = cell % cols; return [...c.getContext('2d').getImageData(2 * devicePixelRatio + (q + .12) * s, 2 * devicePixelRatio + (r + .5) * s, 1, 1).data].slice(0, 3); }'''
DO = "code => { const x = document.querySelector('.trm').explorer; return new Function('x', code)(x); }"

def rgb(hex): return [int(hex[i:i + 2], 16) for i in (1, 3, 5)]

def mixed(a, b, share): return [round(x + (y - x) * share) for x, y in zip(rgb(a), rgb(b))]

def expected(trace, step, cell, sure=True):
    "Colour of a cell's background after a step, in light mode."
    if trace.wrong[step, cell]: return rgb('#fbdcc6')
    if trace.inputs[cell] != 1: return rgb('#eceff2')
    return mixed('#ffffff', '#9b6fb0', .8 * (1 - trace.inner_confidence[trace.ends[step], cell] / 255))

@pytest.mark.slow
def test_a_page_plays_offline(traces, tmp_path, browser):
    path = Player(traces, traces[::-1], labels=('one', 'other')).to_html(tmp_path/'play.html', 'Title')
    page = offline(browser, viewport=dict(width=1200, height=900), color_scheme='light')
    page.goto(path.as_uri())
    page.wait_for_function(READY, timeout=20000)
    for n, (trace, other) in enumerate(zip(traces, traces[::-1])):
        page.locator('.trm select[title=puzzle]').select_option(str(n))
        page.wait_for_function(f'''() => document.querySelector('.trm').explorer.sides.a.arrays.inputs.join() === "{','.join(map(str, trace.inputs))}"''')
        pictures = []
        for step in range(trace.steps):
            page.evaluate(DO, f'x.setStep({step + 1})')
            for cell in range(16):
                assert page.evaluate(CELL, ['a', cell]) == pytest.approx(expected(trace, step, cell), abs=1), (step, cell)
            assert page.evaluate(CELL, ['b', 5]) == pytest.approx(expected(other, step, 5), abs=1)
            pictures.append(page.evaluate("() => document.querySelector('.trm').explorer.panels.q.canvas.toDataURL()"))
        assert len(set(pictures)) == trace.steps                                # the cursor moves
    before = page.evaluate(DO, 'x.go(-Infinity); x.paint(); return x.u')
    page.keyboard.press('Tab')
    page.evaluate(DO, 'x.root.focus()')
    page.keyboard.press('ArrowRight')
    assert page.evaluate(DO, 'return x.u') > before
    page.keyboard.press('Space')                                                # plays to the end
    page.wait_for_function("() => { const x = document.querySelector('.trm').explorer; return !x.playing && x.u === x.sides.a.T - 1 }", timeout=20000)
    page.evaluate(DO, "x.shade.value = 'reads'; x.pickCell(6, true)")
    page.wait_for_function("() => document.querySelector('.trm').explorer.influences.size > 0")
    assert page.bad == [] and page.asked == []

SLOWLY = '''async (root, name) => {
  const read = Response.prototype.arrayBuffer, pack = name === 'lab' ? 'pack' : 'pack_a', values = { live: true, status: { busy: true }, kind: 'x' }, heard = {};
  const model = { get: k => values[k], on: (n, f) => { heard[n] = f; }, off() {}, send() {}, tell(k, v) { values[k] = v; heard['change:' + k]?.(); } };
  const x = new root[name].constructor(model, document.createElement('div')), shown = () => !!(x.sides ? x.sides.a : x.data), seen = () => [x.busy, shown()];
  const pause = () => new Promise(r => setTimeout(r, 20)), until = async f => { for (let i = 0; i < 500 && !f(); i++) await pause(); };
  x.begin?.();
  await until(() => x.busy);
  let goOn;
  Response.prototype.arrayBuffer = async function () { const bytes = await read.call(this); await new Promise(r => { goOn = r; }); return bytes; };
  model.tell(pack, root[name].model.get(pack));
  model.tell('status', { busy: false });
  await until(() => goOn);
  await pause();
  const before = seen();
  goOn();
  await until(() => shown() && !x.busy);
  Response.prototype.arrayBuffer = read;
  return [before, seen()]; }'''

@pytest.mark.slow
@pytest.mark.parametrize('name', ['explorer', 'lab'])
def test_busy_until_all_is_seen(name, solver, traces, tmp_path, browser):
    "The kernel says that it is done right behind the last pack, which takes a while to unpack."
    page = offline(browser)
    path = Player(traces[0]).to_html(tmp_path/'page.html') if name == 'explorer' else lab_pages(solver, tmp_path)[2][1]
    page.goto(path.as_uri())
    page.wait_for_function(READY if name == 'explorer' else LAB_READY)
    assert page.evaluate(f"() => ({SLOWLY})(document.querySelector('.trm'), '{name}')") == [[True, False], [False, True]] and page.bad == []

@pytest.mark.slow
def test_a_frame_in_a_notebook_plays(traces, tmp_path, browser):
    (tmp_path/'frame.html').write_text(f'<!doctype html><meta charset="utf-8"><body>{Player(traces[0])._repr_html_()}')
    page = offline(browser)
    page.goto((tmp_path/'frame.html').as_uri())
    frame = page.frame_locator('iframe')
    frame.locator('.trm canvas.trm-board').first.wait_for(timeout=20000)
    frame.locator('button[title^="one on"]').click()
    assert frame.locator('.trm-where').inner_text().startswith('step 1 · H 2') and page.bad == [] and page.asked == []

def lab_pages(solver, folder, n=12):
    "The three pages of many puzzles, of a small model."
    rows = generate(n, 4, seed=3)
    grids = lambda tokens: [solver.puzzle.to_grid(t) for t in tokens]
    trace = solver.trace(grids(rows.inputs), grids(rows.labels), cells=False)
    found = ablate(solver, grids(rows.inputs), grids(rows.labels))
    return trace, found, [Page(kind, data).to_html(folder/f'{kind}.html') for kind, data in (('map', map_pack(trace)), ('halting', halting_pack(trace)), ('ablations', ablations_pack(found)))]

LAB = "code => { const x = document.querySelector('.trm').lab; return new Function('x', code)(x); }"
LAB_READY = "() => document.querySelector('.trm')?.lab?.shown !== undefined"

def drag(page, fractions):
    "Draw a rectangle over the map, from and to shares of its canvas."
    box = page.locator('.trm-left canvas').first.bounding_box()
    (x, y), (x2, y2) = [(box['x'] + a * box['width'], box['y'] + b * box['height']) for a, b in fractions]
    page.mouse.move(x, y), page.mouse.down(), page.mouse.move((x + x2) / 2, (y + y2) / 2), page.mouse.move(x2, y2), page.mouse.up()

@pytest.mark.slow
def test_pages_of_many_puzzles(solver, tmp_path, browser):
    trace, found, (map_page, halting_page, bench_page) = lab_pages(solver, tmp_path)
    page = offline(browser, viewport=dict(width=1300, height=950))
    page.goto(map_page.as_uri())
    page.wait_for_function(LAB_READY)
    page.evaluate(LAB, 'x.setStep(2)')
    x, y = np.array(page.evaluate(LAB, 'return x.spots')).T
    places = trace.path[:, trace.find(2)]
    assert np.corrcoef(x, places[:, 0])[0, 1] > .999 and np.corrcoef(y, places[:, 1])[0, 1] < -.999        # up is more
    middle = np.median(x)
    page.evaluate(LAB, 'return x.panels.map.canvas.scrollIntoView()')
    width = page.locator('.trm-left canvas').first.bounding_box()['width']
    drag(page, [(.001, .001), (middle / width, .999)])
    assert page.evaluate(LAB, 'return [...x.chosen].sort((a, b) => a - b)') == np.flatnonzero(x <= middle).tolist()
    page.locator('.trm-thumb').first.click()
    page.wait_for_function("() => /sel=/.test(location.hash) && /pick=/.test(location.hash)")
    again = offline(browser, viewport=dict(width=1300, height=950))
    again.goto(page.url)
    again.wait_for_function("() => document.querySelector('.trm')?.lab?.chosen.size > 0")
    state = 'return JSON.stringify(x.state())'
    assert again.evaluate(LAB, state) == page.evaluate(LAB, state)
    page.keyboard.press('Escape')
    page.evaluate(LAB, "x.rate = 60; x.play()")
    page.wait_for_function("() => { const x = document.querySelector('.trm').lab; return !x.playing && x.now === x.updates().length - 1 }")
    page.goto(halting_page.as_uri())
    page.wait_for_function(LAB_READY)
    for threshold in (-9., 0., .2):
        shown = page.evaluate(LAB, f'x.setThreshold({threshold}); return x.tiles.innerText')
        assert f'{100 * halting_worth(trace, threshold=threshold)["accuracy"]:.1f}%' in shown and f'{halting_worth(trace, threshold=threshold)["cost"]:.2f}' in shown
    page.locator('.trm-slider').focus()
    before = page.evaluate(LAB, 'x.setThreshold(-9); return x.threshold')       # below every q_halt
    for _ in range(40): page.keyboard.press('ArrowRight')
    assert page.evaluate(LAB, 'return x.threshold') > before
    page.goto(bench_page.as_uri())
    page.wait_for_function(LAB_READY)
    assert page.evaluate(LAB, 'return x.data.conditions') == found.names
    assert page.evaluate(LAB, 'return x.data.conditions.map((_, c) => x.data.share(c, x.data.last(c)))') == pytest.approx([r.right.mean() for r in found.results])
    page.evaluate(LAB, 'x.chosen = 3; x.relayout()')
    page.locator('.trm-thumb').first.click()
    assert page.locator('.trm-thumb').count() == len(found.names)
    assert page.bad == [] and page.asked == [] and again.bad == []

@pytest.mark.slow
def test_an_address_keeps_what_is_looked_at(traces, tmp_path, browser):
    path = Player(traces).to_html(tmp_path/'play.html')
    page = offline(browser)
    page.goto(path.as_uri() + '#p=1&u=11&cell=6&shade=entropy&lens=z_L&grain=update&heat=pc0&theme=dark')
    page.wait_for_function("() => { const x = document.querySelector('.trm')?.explorer; return x && x.cell === 6 && x.u === 11 }")
    seen = page.evaluate(DO, 'return [x.puzzles.value, x.shade.value, x.lens.value, x.grain.value, x.heat.value, x.root.dataset.theme, [...x.sides.a.arrays.inputs].join()]')
    assert seen == ['1', 'entropy', 'z_L', 'update', 'pc0', 'dark', ','.join(map(str, traces[1].inputs))]
    page.evaluate(DO, 'x.setStep(1)')
    page.wait_for_function("() => /u=5(&|$)/.test(location.hash)")
    page.evaluate("() => { location.hash = 'u=17&cell=2' }")
    page.wait_for_function("() => { const x = document.querySelector('.trm').explorer; return x.cell === 2 && x.u === 17 }")
    page.goto(path.as_uri() + '#u=99999&cell=400&shade=nothing&p=7')                    # what makes no sense is left out
    page.reload()
    page.wait_for_function(READY)
    assert page.evaluate(DO, 'return [x.cell, x.shade.value]') == [-1, 'sure'] and page.bad == []

@pytest.mark.slow
def test_a_map_of_what_ships_moves_smoothly(tmp_path, browser):
    page = offline(browser, viewport=dict(width=1400, height=1000))
    page.goto(LatentMap().to_html(tmp_path/'map.html').as_uri())
    page.wait_for_function(LAB_READY, timeout=60000)
    times = page.evaluate("""async () => { const x = document.querySelector('.trm').lab, times = [];
      for (let i = 0; i < 40; i++) { const to = (i * 7) % x.updates().length, from = performance.now(); x.slider.value = String(to); x.slider.dispatchEvent(new Event('input')); while (x.shown !== to) await new Promise(requestAnimationFrame); times.push(performance.now() - from); }
      return times; }""")
    print(f'map of {len(shipped_trace())} puzzles: a new frame after {statistics.median(times):.1f} ms (median), {max(times):.1f} ms at most')
    assert sorted(times)[len(times) // 4] < 50 and page.bad == []           # a quarter: other work may hold the machine

SCRUB = '''async () => { const x = document.querySelector('.trm').explorer, times = [], n = x.frames.length; x.grain.value = 'update'; x.regrain(); await new Promise(requestAnimationFrame);
  for (let i = 0; i < 60; i++) { const to = (i * 37) % x.frames.length, from = performance.now(); x.slider.value = String(to); x.slider.dispatchEvent(new Event('input')); while (x.shown !== x.frames[to]) await new Promise(requestAnimationFrame); times.push(performance.now() - from); }
  return times; }'''

@pytest.mark.slow
@pytest.mark.parametrize('name', ['sudoku', 'arc'])
def test_scrubbing_is_quick(name, tmp_path, browser):
    solver = small_solver(name, steps=16)
    puzzle = '.' * 81 if name == 'sudoku' else np.tile(np.arange(10), (30, 3))
    page = offline(browser, viewport=dict(width=1400, height=1000))
    page.goto(solver.trace(puzzle).play().to_html(tmp_path/'play.html').as_uri())
    page.wait_for_function(READY, timeout=60000)
    times = page.evaluate(SCRUB)
    print(f'{name}: a new frame after {statistics.median(times):.1f} ms (median), {max(times):.1f} ms at most')
    assert statistics.median(times) < 50 and page.bad == []


# in JupyterLab

SETUP = '''
import torch, numpy as np
torch.set_num_threads(1)
from trm_nb.data.format import PUZZLES
from trm_nb.data.sudoku import generate
from trm_nb.data.maze import generate_mazes
from trm_nb.explore.solver import Solver
from trm_nb.explore.widgets import Explorer
from trm_nb.models.act import PuzzleShape
from trm_nb.models.zoo import build_model
def solver(name, steps=4):
    kind = PUZZLES[name]
    act = build_model(dict(name='trm', hidden_size=32, num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=steps), PuzzleShape(kind.vocab_size, kind.seq_len), seed=1)
    return Solver(act, kind, name)
empty = np.full((10, 10), ' '); empty[0, 0], empty[9, 9] = 'S', 'G'
w = Explorer({'small': solver('sudoku-4x4'), 'maze': solver('maze-10x10'), 'arc': solver('arc', 2)}, {'sudoku-4x4': generate(3, 4, seed=3), 'maze-10x10': [empty], 'arc': [[[1, 2], [3, 4]]]})
'''

def notebook(folder, *cells, name='explore.ipynb'):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbformat.write(nb, folder/name)
    return folder/name

def settled(page, condition='true', seconds=60):
    "Wait until the explorer is not busy and a condition on `x` holds."
    page.wait_for_function(f"() => {{ const x = document.querySelector('.trm')?.explorer; return x && x.sides.a && !x.busy && ({condition}) }}", timeout=1000 * seconds)

def click_cell(page, cell, side='a'):
    x, y = page.evaluate("([side, cell]) => { const x = document.querySelector('.trm').explorer, b = x.board[side].canvas.getBoundingClientRect(), [rows, cols] = x.look().shape, s = (b.width - 4) / cols; return [b.left + 2 + (cell % cols + .5) * s, b.top + 2 + (Math.floor(cell / cols) + .5) * s]; }", [side, cell])
    page.mouse.click(x, y)

def through(page):
    "What a reader does with the explorer, in JupyterLab or Voila."
    inputs = "x.sides.a.arrays.inputs"
    settled(page)
    page.locator('.trm').scroll_into_view_if_needed()
    first = page.evaluate(DO, f'return [...{inputs}]')
    page.get_by_role('button', name='to the beginning').click()
    page.get_by_role('button', name='play or pause').click()
    settled(page, '!x.playing && x.u === x.sides.a.T - 1')
    page.locator('.trm-slider').focus()
    page.keyboard.press('ArrowLeft')
    settled(page, 'x.shown < x.sides.a.T - 1')
    click_cell(page, 5)
    settled(page, 'x.cell === 5')
    assert 'row 2, column 2' in page.locator('.trm-left .trm-title').inner_text()
    page.locator('.trm select[title="what the colour of a cell shows"]').select_option('reads')
    settled(page, 'x.influences.size === 1 && [...x.influences.values()][0].reads.length === 16')
    page.locator('.trm select[title="what the colour of a cell shows"]').select_option('patch')
    settled(page, '[...x.influences.values()][0].patch?.length === 16')
    page.locator('.trm select[title="what the colour of a cell shows"]').select_option('sure')
    # another puzzle, then an edited one
    page.get_by_role('button', name='next puzzle').click()
    settled(page, f'[...{inputs}].join() !== "{",".join(map(str, first))}"')
    given = page.evaluate(DO, f'return [...{inputs}]')
    blank, other = given.index(1), next(i for i, t in enumerate(given) if t > 1)
    page.get_by_role('button', name='Edit', exact=True).click()
    click_cell(page, other)
    page.keyboard.press('Backspace')
    page.keyboard.press('Enter')
    settled(page, f'{inputs}[{other}] === 1 && x.draft === null')
    # contradictory givens: shown, and solved anyway
    page.get_by_role('button', name='Edit', exact=True).click()
    for cell in (0, 1):
        click_cell(page, cell)
        page.keyboard.press('3')
    page.keyboard.press('Enter')
    page.get_by_text('Contradictory givens').wait_for()
    page.get_by_role('button', name='Solve anyway').click()
    settled(page, f'{inputs}[0] === 4 && {inputs}[1] === 4 && x.draft === null')
    # pasted: refused, then taken
    page.get_by_role('button', name='Paste', exact=True).click()
    page.locator('.trm textarea').fill('123')
    page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
    page.get_by_text('16 cells, not 3').wait_for()
    page.locator('.trm textarea').fill('1...' * 4)
    page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
    page.get_by_text('Contradictory givens').wait_for()
    page.locator('.trm select[title=puzzle]').select_option('0')
    settled(page, f'[...{inputs}].join() === "{",".join(map(str, first))}"')
    # settings, and two of them side by side
    page.get_by_role('button', name='Compare').click()
    settled(page, 'x.sides.b !== null')
    page.locator('fieldset[data-side=b] input[name=steps]').press_sequentially('2')
    page.keyboard.press('Enter')
    settled(page, 'x.sides.b && x.sides.b.steps === 2 && x.sides.a.steps === 4')
    page.locator('fieldset[data-side=b] input[name=steps]').press('Control+a')
    page.keyboard.type('0')
    page.keyboard.press('Enter')
    page.get_by_text("setting 'steps'").wait_for()

@pytest.fixture(scope='module')
def running(tmp_path_factory, browser):
    "A page of JupyterLab with the explorer, and the picture it took."
    folder = tmp_path_factory.mktemp('lab')
    notebook(folder, SETUP, 'w')
    with lab(folder) as address:
        page = watched(browser.new_context(viewport=dict(width=1400, height=1000), accept_downloads=True))
        run_notebook(page, address, 'explore.ipynb')
        page.folder, page.address = folder, address
        yield page

def ours(page):
    "Complaints of the console that name us, and all that our scripts threw and nobody caught."
    named = [m for m in page.bad if any(word in m.lower() for word in ('trm', 'explorer', 'widget'))]
    return named + [e for e in page.thrown if not theirs(e)]

@pytest.mark.slow
def test_our_errors_are_seen(running):
    "The check below can fail: an error thrown by the module's own code is told from one of JupyterLab's."
    running.evaluate(DO, "setTimeout(() => x.model.get('no such trait').length)")
    running.wait_for_timeout(300)
    assert len(ours(running)) == 1 and theirs('TypeError: x\n    at f (http://127.0.0.1:8888/static/lab/jlab_core.js:1:2)') and not theirs('TypeError: x\n    at blob:http://127.0.0.1:8888/1a:3:4')
    running.bad.clear(), running.thrown.clear()

@pytest.mark.slow
def test_in_jupyterlab(running):
    through(running)
    assert ours(running) == []

def exports(page):
    "Each file that the explorer gives."
    settled(page)
    for what, first in (('png', b'\x89PNG'), ('gif', b'GIF8'), *([('mp4', b'\0\0\0')] if find_spec('imageio_ffmpeg') else []), ('npz', b'PK'), ('html', b'<!do')):
        page.get_by_role('button', name='Export').click()
        with page.expect_download(timeout=60000) as download: page.locator(f'[data-export={what}]').click()
        assert open(download.value.path(), 'rb').read(4).startswith(first), what

def another_kind(page):
    "Mazes, a checkpoint that is gone, and back to Sudokus."
    page.locator('.trm select[title=model]').select_option('maze')
    settled(page, 'x.sides.a.cells === 100 && x.sides.b === null')
    page.evaluate(DO, "x.model.send({ type: 'model', name: 'runs/gone' })")
    page.locator('.trm-error').get_by_text('runs/gone').wait_for()
    page.locator('.trm select[title=model]').select_option('small')
    settled(page, 'x.sides.a.cells === 16')

@pytest.mark.slow
def test_exports_in_jupyterlab(running): exports(running)

@pytest.mark.slow
def test_another_kind_in_jupyterlab(running): another_kind(running)

@pytest.mark.slow
def test_files_in_jupyterlab(running):
    "A Sudoku as text and an ARC task as JSON, each from a file; one that is neither is refused, and what was there stays."
    page, drawer = running, running.get_by_role('button', name='Paste', exact=True)
    give = lambda name, text: page.locator('.trm input[type=file]').set_input_files(dict(name=name, mimeType='text/plain', buffer=text.encode()))
    drawer.click()
    give('mine.txt', '1...\n..2.\n.3..\n...4')
    settled(page, '[...x.sides.a.arrays.inputs].join("") === "2111113114111115"')
    assert page.locator('.trm select[title=puzzle] option:checked').inner_text() == 'mine.txt'
    page.locator('.trm select[title=model]').select_option('arc')
    settled(page, 'x.sides.a.cells === 900')
    if not page.locator('.trm-drawer textarea').is_visible(): drawer.click()
    give('task.json', json.dumps(dict(train=[dict(input=[[5, 0], [0, 5]], output=[[0, 5], [5, 0]])], test=[dict(input=[[7, 7, 7]])])))
    settled(page, 'x.sides.a.arrays.inputs[0] === 7 && x.sides.a.arrays.inputs[31] === 7')       # the first pair: two rows of 5 and 0 in a corner of 30 x 30
    entries = page.locator('.trm select[title=puzzle] option').all_inner_texts()
    assert entries[-2:] == ['task: train 1', 'task: test 1']
    page.locator('.trm select[title=puzzle]').select_option(label='task: test 1')
    settled(page, '[0, 1, 2].every(i => x.sides.a.arrays.inputs[i] === 9)')
    if not page.locator('.trm-drawer textarea').is_visible(): drawer.click()
    give('broken.json', '{"train": [')
    page.get_by_text('this looks like JSON, but is broken').wait_for()
    assert page.evaluate(DO, 'return x.sides.a.arrays.inputs[0]') == 9
    page.locator('.trm select[title=model]').select_option('small')
    settled(page, 'x.sides.a.cells === 16')
    assert ours(page) == []

@pytest.mark.slow
def test_left_off_in_jupyterlab(running):
    "Cancelled by the button, and by an interrupt of the idle kernel; usable after both."
    interrupt = "() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.interrupt()"
    for stop in (lambda: running.get_by_role('button', name='Cancel').click(), lambda: running.evaluate(interrupt)):
        running.evaluate(DO, "x.model.send({ type: 'solve', a: { settings: { steps: 500 } }, b: null, tokens: null })")
        running.wait_for_function("() => document.querySelector('.trm').explorer.model.get('status').done > 0")
        stop()
        running.get_by_text('left off after step').wait_for()
        running.evaluate(DO, "x.model.send({ type: 'solve', a: { settings: { steps: 3 } }, b: null, tokens: null })")
        settled(running, 'x.sides.a.steps === 3')
    assert running.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], .jp-RenderedText[data-mime-type*=error]').count() == 0

@pytest.mark.slow
def test_a_movie_is_left_off_in_jupyterlab(running):
    "The board plays on while it is drawn; the button cancels it."
    running.evaluate(DO, "x.model.send({ type: 'solve', a: { settings: { steps: 60 } }, b: null, tokens: null })")
    settled(running, 'x.sides.a.steps === 60')
    running.get_by_role('button', name='Export').click()
    running.locator('[data-export=gif]').click()
    running.get_by_text('writing the gif file').wait_for()
    running.wait_for_function("() => document.querySelector('.trm').explorer.model.get('status').done > .05")
    running.screenshot(path=running.folder/'movie.png')
    assert running.evaluate(DO, "x.setStep(7); return x.busy && x.u") == 7 * 6 - 1
    running.get_by_role('button', name='Cancel').click()
    running.get_by_text('left off writing the gif file').wait_for()
    running.evaluate(DO, "x.model.send({ type: 'solve', a: { settings: { steps: 3 } }, b: null, tokens: null })")
    settled(running, 'x.sides.a.steps === 3')
    assert ours(running) == []

TWO = SETUP.partition('empty =')[0] + '''
from trm_nb.models.pretrained import save_pretrained
for name, scale in (('one', 0), ('two', .3)):
    s = solver('sudoku-4x4')
    with torch.no_grad():
        for p in s.act.parameters(): p.add_(scale * torch.randn(p.shape))
    save_pretrained(s.act, name, 'sudoku-4x4')
w = Explorer({'one': 'one', 'two': 'two'}, generate(3, 4, seed=3))
'''

@pytest.mark.slow
def test_two_checkpoints_in_jupyterlab(running):
    notebook(running.folder, TWO, 'w', name='two.ipynb')
    page = watched(running.context)
    run_notebook(page, running.address, 'two.ipynb')
    settled(page)
    page.get_by_role('button', name='Compare').click()
    settled(page, "x.sides.b !== null && x.sides.b.label === 'one'")
    same = "return x.sides.a.arrays.inner_confidence.join() === x.sides.b.arrays.inner_confidence.join()"
    assert page.evaluate(DO, same)
    if not page.locator('[data-model=b]').is_visible(): page.get_by_role('button', name='Settings').click()
    page.locator('[data-model=b]').select_option('two')
    settled(page, "x.sides.b?.label === 'two' && x.sides.a.label === 'one'")
    assert not page.evaluate(DO, same)
    page.get_by_role('button', name='next puzzle').click()
    settled(page, "x.puzzles.value === '1' && x.sides.a.arrays.inputs.join() === x.sides.b.arrays.inputs.join() && x.sides.b.label === 'two'")
    page.screenshot(path=running.folder/'two.png')
    assert ours(page) == []
    page.close()

@pytest.mark.slow
def test_scrubbing_in_jupyterlab(running):
    running.bring_to_front()                                 # a hidden tab gets a frame a second
    settled(running)
    times = running.evaluate(SCRUB)
    print(f'JupyterLab: a new frame after {statistics.median(times):.1f} ms (median), {max(times):.1f} ms at most')
    assert statistics.median(times) < 50

@pytest.mark.slow
def test_a_training_is_watched_in_jupyterlab(running):
    folder, write = running.folder/'run', lambda step, **more: (running.folder/'run'/'metrics.jsonl').open('a').write(json.dumps(dict(step=step, kind='train', loss=5 / step, **more)) + '\n')
    folder.mkdir()
    notebook(running.folder, 'from trm_nb.explore.widgets import RunMonitor', 'RunMonitor("run", every=.2)', name='watch.ipynb')
    page = watched(running.context)
    run_notebook(page, running.address, 'watch.ipynb')
    page.get_by_text('no metrics.jsonl yet').wait_for(timeout=60000)
    for step in range(1, 9): write(10 * step)
    page.get_by_text('step 80').wait_for()
    picture = lambda: page.evaluate("() => document.querySelector('.trm').monitor.panels[0].canvas.toDataURL()")
    before = picture()
    page.locator('.trm-slider').focus()
    for _ in range(20): page.keyboard.press('ArrowRight')
    assert picture() != before
    (folder/'status.json').write_text('{"status": "done"}')
    page.get_by_text('step 80 · done').wait_for()
    assert page.get_by_role('button', name='Stop watching').is_hidden() and ours(page) == []
    page.close()

@pytest.mark.slow
def test_in_voila(tmp_path, browser):
    pytest.importorskip('voila')
    path = notebook(tmp_path, SETUP, 'w')
    with voila(tmp_path, path) as address:
        page = watched(browser.new_context(viewport=dict(width=1200, height=1000)))
        page.goto(address)
        page.wait_for_selector('.trm canvas.trm-board', timeout=90000)
        through(page), exports(page), another_kind(page)
        assert ours(page) == []

LABS = SETUP.replace('w = Explorer(', 'from trm_nb.explore.labs import AblationBench, HaltingLab, LatentMap\ns, rows = solver("sudoku-4x4"), generate(12, 4, seed=3)\nnothing = lambda *a, **k: None\nnothing(')

def labs(page):
    "What a reader does with the three widgets of many puzzles."
    ready = lambda kind, more='true', seconds=60: page.wait_for_function(f"() => {{ const x = document.querySelector('.trm-{kind}')?.lab; return x && x.data && !x.busy && x.shown !== undefined && ({more}) }}", timeout=1000 * seconds)
    lab = lambda kind, code: page.evaluate("([kind, code]) => { const x = document.querySelector('.trm-' + kind).lab; return new Function('x', code)(x); }", [kind, code])
    ready('bench', 'x.data.C === 9', 90), ready('halting', 'x.data.n === 12'), ready('map')
    page.locator('.trm-map').scroll_into_view_if_needed()
    page.locator('.trm-map .trm-play').click()
    ready('map', '!x.playing && x.now > 0')
    drag(page, [(.001, .001), (.999, .999)])
    ready('map', 'x.chosen.size === 12')
    page.locator('.trm-bench').scroll_into_view_if_needed()
    page.get_by_role('button', name='Another run').click()
    page.locator('.trm-bench select[name=hold]').select_option('z_L')
    page.locator('.trm-bench input[name=after]').press_sequentially('2')
    page.locator('.trm-bench button[type=submit]').click()
    ready('bench', 'x.data.C === 10')
    assert lab('bench', 'return x.data.conditions.at(-1)') == 'z_L held after step 2'
    page.locator('.trm-bench input[name=steps]').press_sequentially('500')
    page.locator('.trm-bench button[type=submit]').click()
    page.locator('.trm-bench').get_by_role('button', name='Cancel').click()
    page.locator('.trm-bench').get_by_text('left off in').wait_for()
    page.locator('.trm-halting .trm-slider').focus()
    page.keyboard.press('Home')                        # the lowest q_halt; untrained models have none above 0
    ready('halting', 'x.threshold < 0')
    return lab('halting', 'return x.threshold')

SHOWN = ('m = LatentMap(s.trace([s.puzzle.to_grid(x) for x in rows.inputs], [s.puzzle.to_grid(x) for x in rows.labels])); m', 'h = HaltingLab(s, rows); h', 'b = AblationBench(s, rows); b')

@pytest.mark.slow
def test_labs_in_voila(tmp_path, browser):
    "The three labs, and a training that goes on while it is watched."
    pytest.importorskip('voila')
    log = tmp_path/'run/metrics.jsonl'
    log.parent.mkdir()
    tell = lambda step: log.open('a').write(json.dumps(dict(step=step, kind='train', loss=5 / step)) + '\n')
    tell(10)
    path = notebook(tmp_path, LABS, 'from trm_nb.explore.widgets import RunMonitor\nRunMonitor("run", every=.2)', *SHOWN)
    with voila(tmp_path, path) as address:
        page = watched(browser.new_context(viewport=dict(width=1300, height=1000)))
        page.goto(address)
        page.get_by_text('step 10').wait_for(timeout=90000)
        tell(20)
        page.get_by_text('step 20').wait_for()
        labs(page)
        assert ours(page) == []

@pytest.mark.slow
def test_labs_in_jupyterlab(running):
    notebook(running.folder, LABS, *SHOWN, name='labs.ipynb')
    page = watched(running.context)
    page.set_viewport_size(dict(width=1300, height=1000))
    run_notebook(page, running.address, 'labs.ipynb')
    labs(page)
    assert ours(page) == []
    page.close()

def training(folder, rows=40):
    "A run folder as a training leaves it."
    folder.mkdir()
    lines = [dict(step=10 * i, kind='train', loss=4 / i + .1 * (i % 3), accuracy=1 - 1 / i, exact_accuracy=.5 - .5 / i, lr=1e-4, steps=4) for i in range(1, rows + 1)] + [dict(step=10 * rows, kind='eval', accuracy=.9, exact_accuracy=.4)]
    (folder/'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in lines))
    (folder/'status.json').write_text('{"status": "done"}')
    return folder

@pytest.mark.slow
def test_curves_on_a_page_without_a_kernel(tmp_path, browser):
    page = offline(browser, viewport=dict(width=1200, height=900))
    page.goto(RunMonitor(training(tmp_path/'small')).to_html(tmp_path/'curves.html').as_uri())
    page.wait_for_function("() => document.querySelector('.trm')?.monitor?.data")
    monitor = lambda code: page.evaluate("code => { const x = document.querySelector('.trm').monitor; return new Function('x', code)(x); }", code)
    assert monitor('return x.data.train.loss.y') == pytest.approx([4 / i + .1 * (i % 3) for i in range(1, 41)])
    assert page.locator('.trm-monitor strong').first.inner_text() == 'small' and page.get_by_text('step 400 · done').is_visible() and page.get_by_role('button', name='Stop watching').is_hidden()
    picture = 'return x.panels[0].canvas.toDataURL()'
    before = monitor(picture)
    page.locator('.trm-slider').focus()
    for _ in range(20): page.keyboard.press('ArrowRight')
    assert monitor(picture) != before
    page.wait_for_function("() => /smooth=45/.test(location.hash)")
    again = offline(browser, viewport=dict(width=1200, height=900))
    again.goto(page.url)
    again.wait_for_function("() => document.querySelector('.trm')?.monitor?.span.value === '45'")
    assert page.bad == page.asked == again.bad == []

@pytest.mark.slow
def test_a_notebook_turned_into_a_page_keeps_widgets(tmp_path, browser):
    "Widgets that were shown leave a picture, and what `static` gives plays, where there is no kernel."
    import nbclient
    from nbconvert import HTMLExporter
    training(tmp_path/'run')
    made = """from trm_nb.explore.widgets import Explorer, RunMonitor
grids = lambda tokens: [s.puzzle.to_grid(x) for x in tokens]
found = [Explorer(s, rows), RunMonitor('run'), LatentMap(s.trace(grids(rows.inputs))), HaltingLab(s, rows), AblationBench(s, rows)]
for w in found: getattr(w, 'wait', nothing)()"""
    nb = nbformat.read(notebook(tmp_path, LABS, made, *[f'found[{i}]' for i in range(5)], *[f'found[{i}].static()' for i in range(5)]), 4)
    nbclient.NotebookClient(nb, timeout=120, store_widget_state=False, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    for cell in nb.cells[2:7]: assert {'application/vnd.jupyter.widget-view+json', 'image/png'} <= set(cell.outputs[0]['data'])
    (tmp_path/'page.html').write_text(text := HTMLExporter().from_notebook_node(nb)[0])
    assert text.count('<img') == text.count('<iframe') == 5 and 'Traceback' not in text
    page = offline(browser, viewport=dict(width=1300, height=1000))
    page.goto((tmp_path/'page.html').as_uri(), wait_until='domcontentloaded')
    for i, (name, shown) in enumerate([('explorer', 'shown >= 0'), ('monitor', 'data'), *[('lab', 'shown !== undefined')] * 3]):
        page.locator('iframe').nth(i).scroll_into_view_if_needed()
        frame = page.locator('iframe').nth(i).element_handle().content_frame()
        frame.wait_for_function(f"() => document.querySelector('.trm')?.{name}?.{shown}")
        assert frame.evaluate("() => [...document.querySelectorAll('canvas')].some(c => c.width && new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 8)"), i
        page.screenshot(path=tmp_path/f'frame-{i}.png')
    assert not [e for e in page.thrown if 'trm' in e or 'srcdoc' in e], page.thrown
    sizes = page.evaluate("() => [...document.images].map(x => x.complete ? x.naturalWidth : 0)")
    assert len(sizes) == 5 and min(sizes) > 200, sizes
