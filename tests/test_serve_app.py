"""The page of trm serve: a visitor's board without a browser, then all of it in Chromium, from one command to played steps."""
import contextlib, os, subprocess, sys, urllib.request
from pathlib import Path
import numpy as np
import pytest
import torch
from browser import READY, chromium, free_port, watched
from trm_nb.data.arc import Task
from trm_nb.data.basics import UserError
from trm_nb.data.format import PUZZLES
from trm_nb.data.sudoku import generate
from trm_nb.explore.bench import Entry
from trm_nb.explore.solver import Solver
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import save_pretrained
from trm_nb.models.zoo import build_model

pytest.importorskip('fastapi')
from trm_nb.serve.app import BANNERS, Asked, Board, Lesson, PageSettings, Shelf, Visitors, engine_frames, facts_html, task_entries, verdict
from trm_nb.serve.engine import Models, ServeSettings

TINY = dict(name='trm', hidden_size=32, num_heads=2, H_cycles=2, L_cycles=1, puzzle_emb_ndim=32, puzzle_emb_len=1, halt_max_steps=3)

def small(name, seed=1):
    kind = PUZZLES[name]
    act = build_model(TINY, PuzzleShape(kind.vocab_size, kind.seq_len, 2), seed=seed)
    torch.nn.init.normal_(act.inner.q_head.weight, std=.5)
    return act

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory): return save_pretrained(small('sudoku-4x4'), tmp_path_factory.mktemp('serve')/'tiny', 'sudoku-4x4', step=10)

@pytest.fixture
def shelf(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Models(str(checkpoint), ServeSettings(), 'cpu') as models:
        yield Shelf(models)

def settle(board):
    "All news until the work is done."
    found, seen, said = {}, {}, []
    while True:
        got = board.fetch(seen, 5)
        found, seen, said = found | got['state'], got['versions'], said + got['said']
        if not got['busy']: return found, said

def test_a_visitor(shelf):
    "What the page is told is what the solver finds, on the engine's thread."
    board = Visitors(shelf).open('me')
    board._again()
    found, _ = settle(board)
    entry, solver = board.entries[0], shelf.get(shelf.models.first).solver
    trace = Solver(solver.act, solver.puzzle).trace(board.solver.puzzle.to_grid(entry.tokens))
    assert (board.trace.answers == trace.answers).all() and found['pack_a'] and set(found) >= {'board', 'status', 'pack_a'}
    assert found['status']['text'] == verdict(board.trace)[0] and found['status']['level'] in ('good', 'warn')
    assert [f['name'] for f in found['board']['fields']][-1] == 'rollouts' and next(f for f in found['board']['fields'] if f['name'] == 'steps')['max'] == 32
    assert 'parameters' in facts_html(board) and not found['board']['banner']
    assert board.fetch(board.versions)['state'] == {}                       # nothing twice
    again = Visitors(shelf).open('another')
    again._again()
    settle(again)
    assert again.trace is board.trace                                        # the same was asked before

@pytest.mark.parametrize('text, words', [('123', '16 cells, not 3'), ('{"train": 1}', 'object'), ('x' * 16, 'x'), ('', 'nothing was pasted')])
def test_bad_input_is_said(shelf, text, words):
    board = Visitors(shelf).open('me')
    board._again()
    settle(board)
    board._receive(None, dict(type='read', text=text, id=1), [])
    assert words in board.status['text'] and board.status['level'] == 'error' and 'Traceback' not in board.status['text']
    board._receive(None, dict(type='solve', a=dict(settings=dict(steps=2)), tokens=None), [])
    settle(board)
    assert board.trace.steps == 2                                            # and it works on

def test_limits_and_gone_models(shelf):
    board = Visitors(shelf).open('me')
    board._again()
    settle(board)
    for settings, words in ((dict(steps=33), 'steps'), (dict(rollouts=65), 'rollouts'), (dict(H_cycles=0), 'H_cycles')):
        board._receive(None, dict(type='solve', a=dict(settings=settings), tokens=None), [])
        assert words in board.status['text'] and board.status['level'] == 'error'
    board._on_model(dict(name='runs/gone'))
    settle(board)
    assert 'runs/gone' in board.status['text'] and board.sides['a'].model == shelf.models.first
    board._receive(None, dict(type='solve', a=dict(settings={}), tokens=[2, 2] + [1] * 14), [])
    assert 'Contradictory givens' in board.status['text']
    assert Visitors(shelf).ask(dict(session='nobody', seen={})) == dict(gone=True)

def test_rollouts_show_the_surest(shelf):
    pytest.importorskip('trm_nb.evaluate.compute')
    engine, words = shelf.get(shelf.models.first), []
    rows = generate(1, 4, seed=5)
    entry = Entry('x', rows.inputs[0], rows.labels[0])
    run = lambda **settings: list(engine_frames(engine, entry, PageSettings(**settings), told=words.append))[-1].trace()
    plain, many = run(), run(rollouts=16)
    assert many.q_halt[-1] >= plain.q_halt[-1] and words[0] == '' and 'of 16, the surest' in words[1]
    assert (run().answers == plain.answers).all() and (run(noise=.5).q_halt != plain.q_halt).any()
    slower = run(H_cycles=3)
    assert len(slower.schedule) > len(plain.schedule) and engine.solver.act.settings.H_cycles == 2

def task(): return Task('00000001', [(np.eye(3, dtype=np.uint8), 1 - np.eye(3, dtype=np.uint8))] * 2, [(np.eye(2, dtype=np.uint8), None)])

def test_banners_tell_the_truth(shelf):
    "Random weights, and a task without an identifier; both gone where a model has learned the task."
    board = Board(shelf)
    name = shelf.of('arc')
    board.lists['arc'] = task_entries(task())
    board._on_model(dict(name=name))
    settle(board)
    assert board.board['banner'] == BANNERS['random'] and board.board['pairs'][0][1] == [[0, 1, 1], [1, 0, 1], [1, 1, 0]] and board.status['level'] == 'info'
    solver = Solver(small('arc'), PUZZLES['arc'], 'arc model')
    shelf.add('arc model', solver)
    board._on_model(dict(name='arc model'))
    settle(board)
    assert board.board['banner'] == BANNERS['blank']
    shelf.replace('learned', Solver(small('arc', 2), PUZZLES['arc'], 'learned'), board.entries[0].task)
    board._on_model(dict(name='learned'))
    settle(board)
    assert board.board['banner'] == '' and board.row_of(shelf.get('learned'), board.entries[0]) == 1

def test_a_lesson(shelf, tmp_path):
    "A task is learned from the page as by trm adapt; it can be left off."
    source = save_pretrained(small('arc'), tmp_path/'arc', 'arc')
    lesson = Lesson(source, task(), 'cpu', steps=2, augmentations=1, batch_size=2)
    assert all(0 <= share <= 1 for share in lesson.follow(.05)) and lesson.found.votes.pairs and not lesson.error
    stopped = Lesson(source, task(), 'cpu', steps=2000, augmentations=1, batch_size=2)
    stopped.stop.set()
    for _ in stopped.follow(.05): pass
    assert 'left off' in stopped.error and stopped.found is None

def test_only_some_visitors_are_remembered(shelf):
    visitors = Visitors(shelf, most=2)
    for name in 'abc': visitors.open(name)
    assert list(visitors.boards) == ['b', 'c'] and visitors.ask(dict(session='a', seen={})) == dict(gone=True)


# in Chromium

@contextlib.contextmanager
def served(checkpoint, folder):
    "trm serve in a process of its own; yields its address."
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith('HF_')} | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    with open(folder/'serve.log', 'w') as log: process = subprocess.Popen([sys.executable, '-m', 'trm_nb.cli', 'serve', str(checkpoint), '--port', str(port), '--device', 'cpu'], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()                                     # said when it listens
        assert f'page http://127.0.0.1:{port}/' in said, said + (folder/'serve.log').read_text()
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait(60)

SOLVED = "() => { const x = document.querySelector('.trm')?.explorer; return x && x.sides.a && !x.busy && %s }"

@pytest.mark.slow
def test_from_one_command_to_played_steps(checkpoint, tmp_path):
    pytest.importorskip('gradio')
    with chromium() as browser, served(checkpoint, tmp_path) as address:
        assert urllib.request.urlopen(address + '/health').status == 200
        page = watched(browser.new_context(viewport=dict(width=1280, height=900)))
        foreign = []
        page.on('request', lambda r: foreign.append(r.url) if not r.url.startswith((address, 'data:', 'blob:')) else None)
        page.goto(address)
        wait = lambda condition='true': page.wait_for_function(SOLVED % condition, timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)
        wait('x.sides.a.steps === 3')
        # choose a puzzle, then play its steps
        page.locator('#stage select[title=puzzle]').select_option('1')
        wait("x.sides.a.arrays.inputs.join() === x.info.tokens.join() && x.info.entry === 1")
        page.get_by_role('button', name='to the beginning').click()
        page.get_by_role('button', name='play or pause').click()
        wait('!x.playing && x.u === x.sides.a.T - 1')
        page.locator('#numbers').get_by_text('This answer').wait_for()
        # draw: a digit more; then contradictory ones
        blank = page.evaluate("document.querySelector('.trm').explorer.info.tokens.indexOf(1)")
        page.get_by_role('button', name='Edit', exact=True).click()
        page.evaluate("([c, t]) => { const x = document.querySelector('.trm').explorer; x.cell = c; x.write(t); }", [blank, 5])
        page.get_by_role('button', name='Solve', exact=True).click()
        page.wait_for_function(f"() => {{ const x = document.querySelector('.trm').explorer; return !x.busy && (!x.note.hidden || x.sides.a?.arrays.inputs[{blank}] === 5) }}")
        # paste nonsense, then a puzzle
        page.get_by_role('button', name='Paste', exact=True).click()
        for text in ('123', '{"train": '):
            page.locator('.trm textarea').fill(text)
            page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
            page.locator('.trm-error').get_by_text('16 cells' if text == '123' else 'JSON').wait_for()
        page.locator('.trm textarea').fill('1.....3..4.....2')
        page.locator('.trm-drawer').get_by_role('button', name='Load').first.click()
        wait('x.sides.a.arrays.inputs[0] === 2 && x.sides.a.arrays.inputs[15] === 3')
        # a model that is not there, then one with random weights for another kind
        page.locator('#model input').fill('runs/gone')
        page.keyboard.press('Enter')
        page.locator('.trm-error').get_by_text('runs/gone').wait_for()
        page.get_by_label('Maze', exact=True).check()
        page.locator('.page-banner').get_by_text('random').wait_for()
        wait('x.sides.a.cells === 900')
        # a phone
        page.set_viewport_size(dict(width=390, height=844))
        page.wait_for_function("() => document.querySelector('.trm-narrow') && document.documentElement.scrollWidth <= innerWidth")
        assert not foreign and not [m for m in page.bad if 'TypeError' in m], (foreign, page.bad)
