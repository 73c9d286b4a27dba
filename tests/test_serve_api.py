"""The engine and the API around it: what clients get, whatever they send, and what they cannot break."""
import asyncio, contextlib, gzip, io, json, logging, os, re, signal, socket, subprocess, sys, threading, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
import numpy as np
import pytest
from trm_nb.data.arc import copy_name
from trm_nb.data.basics import MissingExtra, UserError, check_settings, write_json
from trm_nb.data.format import PUZZLES
from trm_nb.data.sudoku import generate
from trm_nb.explore.solver import Solver
from trm_nb.models.act import PuzzleShape
from trm_nb.models.pretrained import SHIPPED, save_pretrained
from trm_nb.models.zoo import build_model
from trm_nb.serve import api
from trm_nb.serve.api import AnswerOut, ModelInfo, SolveRequest, SolveResponse, create_app, log_json, serve
from trm_nb.serve.engine import Closed, Engine, Full, Models, ServeSettings
from trm_nb.serve.tasks import NAMELESS, RANDOM, UNTOLD

testclient = pytest.importorskip('fastapi.testclient')
SMALL = dict(name='trm', mlp_t=True, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1, L_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=1, halt_max_steps=3)
FOUR = '1...............'
TASK = dict(train=[dict(input=[[0, 1], [2, 3]], output=[[1, 0], [3, 2]])], test=[dict(input=[[4, 5]], output=[[5, 4]]), dict(input=[[6]])])


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('serve')/'small'
    return save_pretrained(build_model(SMALL, PuzzleShape(6, 16)), folder, 'sudoku-4x4', step=7, evaluation=dict(exact_accuracy=.5, seconds=float('nan')))


@pytest.fixture(scope='module')
def puzzles():
    kind = PUZZLES['sudoku-4x4']
    return [kind.to_text(x).replace('\n', '').replace('_', '.') for x in generate(30, 4, seed=5).inputs]


@pytest.fixture
def solver(checkpoint): return Solver.from_pretrained(checkpoint, 'cpu')


@contextlib.contextmanager
def client(models, **settings):
    "A client of the application, in this process."
    settings = ServeSettings(**settings)
    if isinstance(models, Solver): models = Engine(models, settings, 'small')
    with testclient.TestClient(create_app(models, settings)) as client: yield client


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not come to pass'
        time.sleep(.005)


class Gated:
    "A model whose ACT steps wait for a permission."
    def __init__(self, solver): self.inner, self.gate, self.steps = solver.act.inner, threading.Semaphore(0), 0

    def __enter__(self):
        recur = self.inner.recur
        def wait(*args):
            self.gate.acquire(timeout=60)
            self.steps += 1
            return recur(*args)
        self.inner.recur = wait
        return self

    def open(self):
        self.gate.release(10_000)

    def __exit__(self, *error):
        self.open()
        del self.inner.recur


# what a client gets

def test_solve(solver, puzzles):
    expected = [solver.solve(p, steps=3) for p in puzzles]
    with client(solver, max_batch=4) as c:
        one = c.post('/api/solve', json=dict(puzzle=puzzles[0], early_exit=False, every_step=True, confidence=True)).json()
        many = c.post('/api/solve', json=dict(puzzles=puzzles, early_exit=False)).json()
        again = c.post('/api/solve', json=dict(puzzles=puzzles, early_exit=False)).json()
    for response in (one, many): SolveResponse(**response)
    assert [a['text'] for a in many['answers']] == [e.text for e in expected] and [a['conflicts'] for a in many['answers']] == [e.conflicts for e in expected]
    assert many['answers'][4]['q_halt'] == pytest.approx(expected[4].q_halt, abs=1e-3)
    answer = one['answers'][0]
    assert answer['grid'] == answer['moments'][-1]['grid'] == expected[0].grid.tolist() and [m['step'] for m in answer['moments']] == [1, 2, 3]
    assert np.allclose(answer['confidence'], expected[0].confidence.reshape(4, 4), atol=1e-3) and answer['moments'][-1]['q_halt'] == answer['q_halt'][-1]
    assert not any(a['cached'] for a in many['answers']) and all(a['cached'] for a in again['answers'])
    assert 'moments' not in again['answers'][0] and [a['grid'] for a in again['answers']] == [a['grid'] for a in many['answers']]


def test_forms_of_a_puzzle(solver):
    grid = [[int(x) if x != '.' else 0 for x in FOUR[i:i + 4]] for i in range(0, 16, 4)]
    with client(solver) as c: texts = [c.post('/api/solve', json=dict(puzzle=p)).json()['answers'][0]['text'] for p in (FOUR, FOUR.replace('.', '0'), grid, '\n'.join(FOUR[i:i + 4] for i in range(0, 16, 4)))]
    assert len(set(texts)) == 1


def test_maze(tmp_path):
    save_pretrained(build_model(SMALL, PuzzleShape(6, 36)), tmp_path/'maze', 'maze-6x6')
    with client(Solver.from_pretrained(tmp_path/'maze', 'cpu')) as c:
        example = c.get('/api/examples').json()[0]
        answer = c.post('/api/solve', json=dict(puzzle=example['puzzle'])).json()['answers'][0]
        AnswerOut(**answer)
        assert len(answer['grid']) == 6 and c.get(f"/api/task/{example['id']}").json() == example
        named = c.post('/api/solve', json=dict(task_id=example['id'])).json()
        assert named['answers'][0]['text'] == answer['text'] and not [note for note in named['notes'] if 'no answer' in note]
        assert 'a maze with no goal: no answer can be right' in c.post('/api/solve', json=dict(puzzle=example['puzzle'].replace('G', ' '))).json()['notes']


class Echo:
    "An engine's answers, replaced by the puzzles themselves: turned, recoloured copies must then agree."
    def __init__(self, solver): self.solver = solver

    def __enter__(self):
        def heads(z, inner=self.solver.act.inner):
            import torch
            logits = torch.nn.functional.one_hot(self.tokens, 12).float() * 20
            return logits, torch.ones(len(logits)), torch.zeros(len(logits))
        def embed(tokens, rows, embed=self.solver.act.inner.embed):
            self.tokens, self.rows = tokens.long(), rows
            return embed(tokens, rows)
        self.solver.act.inner.heads, self.solver.act.inner.embed = heads, embed
        return self

    def __exit__(self, *error): del self.solver.act.inner.heads, self.solver.act.inner.embed


def arc_checkpoint(folder, rows, table=16, **metadata):
    return save_pretrained(build_model(SMALL | dict(hidden_size=8, puzzle_emb_ndim=table, puzzle_emb_len=2, halt_max_steps=1, mlp_t=False), PuzzleShape(12, 900, rows)), folder, 'arc', **metadata)


def test_arc_task_is_answered_honestly(tmp_path):
    solver = Solver.from_pretrained(arc_checkpoint(tmp_path/'arc', 4), 'cpu')
    with Echo(solver), client(solver, max_batch=64) as c:
        response = c.post('/api/solve', json=dict(task=TASK, votes=6)).json()
    SolveResponse(**response)
    task = response['task']
    assert (task['name'], task['identifier'], task['copies']) == (NAMELESS, 'blank', 6) and 'blank row 0' in task['note'] and 'guess' in task['note']
    assert [[(a['grid'], a['votes'], a['right']) for a in p['attempts']] for p in task['pairs']] == [[([[4, 5]], 6, False)], [([[6]], 6, None)]]
    assert [a['grid'] for a in response['answers']] == [[[4, 5]], [[6]]]


def test_arc_identifiers_that_are_known(tmp_path):
    names = ['<blank>', 'mine', copy_name('mine', 3, np.array([0, 2, 1, *range(3, 10)], np.uint8)), '007bbfb7']
    folder = arc_checkpoint(tmp_path/'arc', 4)
    write_json(folder/'identifiers.json', names)
    solver = Solver.from_pretrained(folder, 'cpu')
    with Engine(solver) as engine, client(engine) as c:
        asked, wish = [], engine.wish
        engine.wish = lambda puzzle, **o: (asked.append((np.array(puzzle).tolist(), o['identifier'])), wish(puzzle, **o))[1]
        known = c.post('/api/solve', json=dict(task=TASK, task_id='mine', votes=5)).json()['task']
        given = c.post('/api/solve', json=dict(task=TASK, identifier=3)).json()['task']
        assert c.post('/api/solve', json=dict(task=TASK, identifier=4)).status_code == 422
        engine.wish = wish
        sent = c.get('/api/task/007bbfb7').json()['task']
        recognised = c.post('/api/solve', json=dict(task=sent)).json()['task']
        assert (recognised['name'], recognised['identifier']) == ('007bbfb7', 'known')
    assert (known['identifier'], known['copies'], given['identifier']) == ('known', 2, 'given')
    assert asked == [([[4, 5]], 1), ([[6]], 1), ([[4], [5]], 2), ([[6]], 2), ([[4, 5]], 3), ([[6]], 3), ([[4, 5]], 4)]


def test_arc_without_a_table(tmp_path):
    with client(Solver.from_pretrained(arc_checkpoint(tmp_path/'arc', 1, 0), 'cpu')) as c:
        assert c.post('/api/solve', json=dict(task=TASK)).json()['task']['identifier'] == 'none'
        assert c.post('/api/solve', json=dict(task=TASK, votes=200)).status_code == 422
        known = c.post('/api/solve', json=dict(task_id='007bbfb7')).json()
        assert known['task']['name'] == '007bbfb7' and known['task']['pairs'][0]['attempts'][0]['right'] is False
        assert c.post('/api/solve', json=dict(task_id='00000000')).status_code == 404 and len(c.get('/api/examples').json()) == 5


def test_a_name_that_nobody_gave_is_not_known(tmp_path):
    "A checkpoint that has learned a task.json answers another task that came without a name as what it is: unknown."
    folder = arc_checkpoint(tmp_path/'arc', 2)
    write_json(folder/'identifiers.json', ['<blank>', 'task'])
    with client(Solver.from_pretrained(folder, 'cpu')) as c:
        assert [c.post('/api/solve', json=dict(task=TASK) | name).json()['task']['identifier'] for name in ({}, dict(task_id='task'))] == ['blank', 'known']


def test_several_arc_tasks(tmp_path):
    "Tasks and names of tasks in one request; votes are counted task by task."
    folder = arc_checkpoint(tmp_path/'arc', 4)
    write_json(folder/'identifiers.json', ['<blank>', 'x', 'y', '007bbfb7'])
    other = dict(train=TASK['train'], test=[dict(input=[[7, 8, 9]], output=[[7, 8, 9]])])
    solver = Solver.from_pretrained(folder, 'cpu')
    with Echo(solver), client(solver, max_batch=64, max_puzzles=20) as c:
        response = c.post('/api/solve', json=dict(tasks=[TASK, '007bbfb7', other], votes=4)).json()
        SolveResponse(**response)
        first, known, last = response['tasks']
        assert [(t['name'], t['identifier'], t['copies']) for t in (first, known, last)] == [(NAMELESS, 'blank', 4), ('007bbfb7', 'known', 1), (NAMELESS, 'blank', 4)]
        assert [[p['attempts'][0]['grid'] for p in t['pairs']] for t in (first, last)] == [[[[4, 5]], [[6]]], [[[7, 8, 9]]]] and last['pairs'][0]['attempts'][0]['right'] is True
        grids = [a['grid'] for a in response['answers']]
        assert len(grids) == 4 and grids[:2] == [[[4, 5]], [[6]]] and grids[3] == [[7, 8, 9]] and 'task' not in response
        single = c.post('/api/solve', json=dict(task=TASK, votes=4)).json()
        assert single['task'] == first and 'tasks' not in single
        for tasks, status, words in (([TASK] * 3, 422, 'at most 20 puzzles'), ([TASK, {}], 422, 'number 2'), (['inkala-2012'], 422, 'no ARC task'), (['00000000'], 404, 'no task'), (['../x'], 404, 'no task'), ([], 422, 'list of tasks'), ([TASK] * 21, 422, 'at most 20'), ('007bbfb7', 422, 'list')):
            refused = c.post('/api/solve', json=dict(tasks=tasks, votes=4))
            assert refused.status_code == status and words in refused.json()['error'], (tasks, refused.text)
        assert c.post('/api/solve', json=dict(tasks=[TASK], task=TASK)).status_code == c.post('/api/solve', json=dict(tasks=[TASK], task_id='x')).status_code == 422


@pytest.mark.parametrize('rows, table, step, random, said', [(4, 16, 100, False, 'blank'), (4, 16, 0, True, 'blank'), (1, 16, None, False, 'blank'), (4, 0, 100, False, 'none')])
def test_a_grid_without_a_task_is_answered_honestly(tmp_path, rows, table, step, random, said):
    with client(Solver.from_pretrained(arc_checkpoint(tmp_path/'arc', rows, table, step=step), 'cpu')) as c:
        ask = lambda **body: c.post('/api/solve', json=body).json()['notes']
        assert ask(puzzle=[[1, 2]]) == ask(puzzles=[[[1, 2]], [[3]]]) == [RANDOM] * random + [UNTOLD[said]]
        assert ask(task=TASK) == [RANDOM] * random                               # the task has its own note
        if table and rows > 1: assert ask(puzzle=[[1, 2]], identifier=2) == [RANDOM] * random
        assert c.get('/api/model-info').json()['trained'] == (None if step is None else not random)


def test_a_trained_sudoku_model_needs_no_note(solver):
    with client(solver) as c: assert c.post('/api/solve', json=dict(puzzle=FOUR)).json()['notes'] == []


def test_model_info_metrics_health(solver, checkpoint):
    with client(solver) as c:
        info = c.get('/api/model-info').json()
        ModelInfo(**info)
        assert (info['name'], info['kind'], info['step'], info['trained'], info['evaluation']) == ('small', 'sudoku-4x4', 7, True, dict(exact_accuracy=.5, seconds=None))
        assert str(checkpoint) not in json.dumps(info)
        c.post('/api/solve', json=dict(puzzle=FOUR))
        lines = dict(l.rsplit(' ', 1) for l in c.get('/metrics').text.splitlines() if l[0] != '#')
        assert lines['trm_answered_total{model="small"}'] == lines['trm_puzzle_seconds_count{model="small"}'] == lines['trm_requests_total{path="/api/solve",status="200"}'] == '1.0'
        assert c.get('/health').json()['status'] == 'ok' and c.get('/api/models').json() == ['small']


def test_documentation_is_right(solver):
    with client(solver) as c: api = c.get('/openapi.json').json()
    solve = api['paths']['/api/solve']['post']
    for example in solve['requestBody']['content']['application/json']['examples'].values(): SolveRequest(**example['value'])
    assert {'200', '401', '413', '415', '422', '429', '500', '503', '504'} <= set(solve['responses'])
    assert {'/health', '/metrics', '/api/model-info', '/api/examples', '/api/task/{id}'} <= set(api['paths'])
    for path in ('/health', '/api/examples', '/api/task/{id}'): assert api['paths'][path]['get']['responses']['200']['content']['application/json']['schema'], path


def test_documentation_needs_no_network(solver):
    "Every operation, field and example on a page that fetches nothing."
    with client(solver) as c: page, api = c.get('/docs').text, c.get('/openapi.json').json()
    assert not re.search(r'(src|href)="?(https?:)?//|@import|url\(', page) and c.get('/redoc').status_code == 404
    solve = api['paths']['/api/solve']['post']['requestBody']['content']['application/json']
    for words in [*api['paths'], *solve['schema']['properties'], *api['components']['schemas']['AnswerOut']['properties'], 'Several ARC tasks', '&quot;tasks&quot;']: assert words in page, words


# who may ask

def test_token(solver):
    with client(solver, token='sécret') as c:
        right = {'authorization': 'Bearer sécret'.encode()}
        for path in ('/api/model-info', '/api/examples', '/metrics', '/api/task/x'):
            for headers in ({}, {'authorization': 'Bearer secret'}, {'authorization': 'Basic c2VjcmV0'}): assert c.get(path, headers=headers).status_code == 401
        assert c.post('/api/solve', content=b'x' * 10_000_000).status_code == 401        # before anything is read
        assert c.get('/metrics', headers=right).status_code == 200 and c.get('/health').status_code == 200
        assert c.get('/metrics', headers={'authorization': 'bearer sécret'.encode()}).status_code == 200


def test_cors_is_off_unless_asked_for(solver, checkpoint):
    preflight = dict(headers={'origin': 'https://a.org', 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type'})
    with client(solver) as c: assert 'access-control-allow-origin' not in c.options('/api/solve', **preflight).headers and 'access-control-allow-origin' not in c.get('/health', headers={'origin': 'https://a.org'}).headers
    with client(Solver.from_pretrained(checkpoint, 'cpu'), cors=['https://a.org'], token='t') as c:
        assert c.options('/api/solve', **preflight).headers['access-control-allow-origin'] == 'https://a.org'
        assert c.get('/api/models', headers={'origin': 'https://a.org'}).headers['access-control-allow-origin'] == 'https://a.org'       # the 401, too, can be read
        assert 'access-control-allow-origin' not in c.get('/health', headers={'origin': 'https://b.org'}).headers


FOREIGN = [b'https://evil.org', b'null', b'http://testserver.evil.org', b'http://evil.org:80/testserver', b'https://testserver:8443', b'\xff\xfe', b'http://[']


def test_pages_of_other_sites_may_not_ask(solver, checkpoint):
    "Nothing is done for a page of another site, whatever it sends and whatever the application behind would say."
    body = json.dumps(dict(puzzle=FOUR))
    with client(solver) as c:
        c.app.get('/inviting')(lambda: __import__('fastapi').Response('x', headers={'Access-Control-Allow-Origin': '*', 'access-control-allow-credentials': 'true', 'x-other': '1'}))
        for origin in FOREIGN:
            for ask in (lambda h: c.post('/api/solve', content=body, headers=h | {b'content-type': b'application/json'}), lambda h: c.get('/inviting', headers=h), lambda h: c.options('/api/solve', headers=h | {b'access-control-request-method': b'POST'})):
                refused = ask({b'origin': origin})
                assert refused.status_code == 403 and not [k for k in refused.headers if k.startswith('access-control')] and set(refused.json()) == {'error', 'request'}
        assert c.app.state.models.get().stats()['answered'] == 0
        for headers in ({}, {'origin': 'http://testserver'}, {'origin': 'HTTP://TestServer'}, {'origin': 'https://own.example', 'x-forwarded-host': 'own.example'}):
            assert c.post('/api/solve', content=body, headers=headers | {'content-type': 'application/json'}).status_code == 200
            told = c.get('/inviting', headers=headers)
            assert told.status_code == 200 and told.headers['x-other'] == '1' and not [k for k in told.headers if k.startswith('access-control')]
        c.app.state.origins.add('https://share.example')                           # the address of a tunnel
        assert c.get('/health', headers={'origin': 'https://share.example'}).status_code == 200
    with client(Solver.from_pretrained(checkpoint, 'cpu'), cors=['https://a.org']) as c:
        assert c.post('/api/solve', content=body, headers={'origin': 'https://a.org', 'content-type': 'application/json'}).headers['access-control-allow-origin'] == 'https://a.org'
        assert c.post('/api/solve', content=body, headers={'origin': 'https://b.org', 'content-type': 'application/json'}).status_code == 403


def test_names_of_the_server(solver, monkeypatch):
    "Where it listens on this machine alone, a name that a site lets lead here is not its own."
    import uvicorn
    monkeypatch.setattr(uvicorn.Server, 'run', lambda self: None)
    with client(solver, cors=['https://a.org']) as c:
        asked = lambda host: c.get('/health', headers=dict(host=host)).status_code
        serve(c.app, ServeSettings(host='0.0.0.0'))
        assert asked('evil.example:8000') == 200
        serve(c.app)
        assert [asked(host) for host in ('localhost', 'LocalHost:1', '127.0.0.1:8000', '[::1]:8000', 'a.org', 'A.org:443')] == [200] * 6
        assert [asked(host) for host in ('evil.example', 'evil.example:8000', 'localhost.evil.example', '127.0.0.2', '[', 'x@evil.example', '10.0.0.1')] == [403] * 7
        told = c.post('/api/solve', json=dict(puzzle=FOUR), headers=dict(host='evil.example:8000', origin='http://evil.example:8000')).json()['error']
        assert '--host 0.0.0.0' in told and '--cors http://evil.example:8000' in told
        c.app.state.origins.add('https://share.example')
        assert asked('share.example') == 200


def test_settings_that_would_not_hold():
    for bad, words in ((dict(token=''), 'must not be empty'), (dict(token=' '), 'must not be empty'), (dict(token='x '), 'blank'), (dict(cors=['*']), 'is no origin'), (dict(cors=['https://a.org', 'b.org']), 'is no origin'), (dict(cors=['https://a.org/page']), 'without a path')):
        with pytest.raises(UserError, match=words): check_settings(ServeSettings, bad)
    assert ServeSettings(token='a b').token == 'a b' and ServeSettings().token is None
    with pytest.raises(UserError) as said: check_settings(ServeSettings, dict(token='secret '))
    assert 'secret' not in str(said.value) and 'secret' not in repr(ServeSettings(token='secret'))


def test_cors_with_a_slash(solver):
    with client(solver, cors=['https://A.org/']) as c:
        asked = c.get('/health', headers={'origin': 'https://a.org'})
        assert asked.status_code == 200 and asked.headers['access-control-allow-origin'] == 'https://a.org'


# what must not break it

HOSTILE = [b'', b'{', b'null', b'[]', b'[' * 60_000, b'{"puzzle":' * 20_000, b'{"puzzle": ' + b'[' * 900 + b']' * 900 + b'}', b'{"puzzle": NaN}', b'{"puzzle": [[NaN, Infinity, -Infinity, 0]]}', b'{"puzzle": 1e400}', b'\xff\xfe{}', '{"puzzle": "١"}'.encode(),
           b'{"puzzle": "\\ud800"}', b'{"puzzles": "' + b'1' * 50_000 + b'"}', b'{"puzzle": [[' + b'0,' * 400_000 + b'0]]}', b'{"puzzle": {"__class__": "os"}}', b'{"puzzles": []}', b'{"puzzles": [[]]}', b'{"puzzles": [null]}', b'{"puzzles": {"0": "1"}}',
           b'{"puzzle": "1...............", "max_steps": 1e9}', b'{"puzzle": "1...............", "max_steps": true, "identifier": -1}', b'{"puzzle": "1...............", "time_limit": NaN}', b'{"puzzle": "1...............", "model": "../../../etc/passwd"}',
           b'{"puzzle": "1...............", "model": "\\ud800"}', b'{"puzzle": "1...............", "x": 1}', b'{"task": {}}', b'{"task": 3}', b'{"task": {"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[' + b'[' * 200 + b']' * 200 + b']]}]}}',
           b'{"tasks": [{}]}', b'{"tasks": "\\ud800"}', b'{"tasks": ["\\ud800", 3]}', b'{"tasks": [' + b'[' * 200 + b']' * 200 + b']}', b'{"task_id": "../../etc/passwd"}', b'{"task_id": "..%2f"}', b'{"puzzle": [[99999999999999999999999999]]}', b'{"puzzle": [["\\u0000"]]}', b'{"puzzle": [[true, false]]}', b'{"puzzle": ' + b'9' * 5000 + b'}']


def test_hostile_bodies(solver):
    with client(solver, max_body=1_000_000, max_puzzles=8) as c:
        for body in HOSTILE:
            response = c.post('/api/solve', content=body, headers={'content-type': 'application/json'})
            assert 400 <= response.status_code < 500 and len(response.text) < 1000, (body[:80], response.status_code)
            assert set(response.json()) == {'error', 'request'} and response.json()['request'] == response.headers['x-request-id']
        cells = json.dumps(dict(puzzle=[[0] * 1000] * 1000)).encode()
        assert c.post('/api/solve', content=cells, headers={'content-type': 'application/json'}).status_code == 413
        assert c.post('/api/solve', json=dict(puzzle=FOUR)).status_code == 200 and c.get('/health').json()['status'] == 'ok'
    with client(Solver.from_pretrained(solver.source, 'cpu')) as c: assert c.post('/api/solve', content=cells, headers={'content-type': 'application/json'}).status_code == 422


def test_wrong_types_and_addresses(solver):
    body = json.dumps(dict(puzzle=FOUR))
    with client(solver) as c:
        for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/xml', ''): assert c.post('/api/solve', content=body, headers={'content-type': kind}).status_code == 415
        assert c.post('/api/solve', content=body, headers={'content-type': 'Application/JSON; charset=utf-8'}).status_code == 200
        for path in ('..%2f..%2fetc%2fpasswd', '../../../etc/passwd', '%2e%2e', '%00', 'x' * 5000, '%ff', 'a.b', '日本'): assert c.get(f'/api/task/{path}').status_code == 404
        assert c.get('/api/model-info', params=dict(model='/etc')).status_code == 422 and c.get('/api/model-info', params=dict(model='x' * 300)).status_code == 422
        assert [c.request(m, '/api/solve', headers={'content-type': 'application/json'}).status_code for m in ('GET', 'PUT', 'DELETE')] == [405] * 3


def ask(app, messages, path='/api/solve', method='POST'):
    "Talk ASGI: `messages` are what the client sends, one of them may be a coroutine function to wait for; what it got."
    sent, later = [], iter(messages)
    async def receive():
        message = next(later, None)
        if message is None: await asyncio.Event().wait()
        return await message() if callable(message) else message
    async def send(message): sent.append(message)
    scope = dict(type='http', asgi=dict(version='3.0'), http_version='1.1', method=method, path=path, raw_path=path.encode(), query_string=b'', root_path='', scheme='http', headers=[(b'content-type', b'application/json')], client=('127.0.0.1', 1), server=('x', 80))
    asyncio.run(app(scope, receive, send))
    return sent


def part(body, more=False): return dict(type='http.request', body=body, more_body=more)
GONE = dict(type='http.disconnect')
BODY = json.dumps(dict(puzzle=FOUR, early_exit=False)).encode()


def test_slow_and_cut_off_bodies(solver):
    with Engine(solver) as engine:
        app = create_app(engine, ServeSettings(body_seconds=.2, max_body=1000))
        assert ask(app, [part(BODY[:9], True)])[0]['status'] == 408                   # the rest never comes
        assert ask(app, [part(BODY[:9], True), GONE]) == []
        assert ask(app, [part(b' ' * 600, True), part(b' ' * 600, True)])[0]['status'] == 413
        assert ask(app, [part(BODY[:9], True), part(BODY[9:])])[0]['status'] == 200
        assert engine.stats()['answered'] == 1


def test_client_that_leaves_frees_the_device(solver):
    with Gated(solver) as gated, Engine(solver, ServeSettings(cache_mb=0)) as engine:
        async def leaves():
            while not engine.running: await asyncio.sleep(.005)
            return GONE
        assert ask(create_app(engine), [part(BODY), leaves]) == []
        gated.gate.release(1)
        until(lambda: not engine.running)
        assert engine.stats()['cancelled'] == 1 and engine.stats()['answered'] == 0 and gated.steps == 1


def test_time_limit_frees_the_device(solver):
    with Gated(solver) as gated, client(solver, time_limit=1, cache_mb=0) as c:
        engine = c.app.state.models.get()
        with ThreadPoolExecutor() as pool:
            late = pool.submit(c.post, '/api/solve', json=dict(puzzle=FOUR, max_steps=64, early_exit=False))
            until(lambda: engine.running)
            time.sleep(1.05)
            gated.gate.release(1)                                # it is late after the first of 64 steps
            assert late.result().status_code == 504
        until(lambda: not engine.running)
        assert gated.steps == 1 and engine.stats()['late'] == 1
        gated.open()
        assert c.post('/api/solve', json=dict(puzzle=FOUR)).status_code == 200


def test_time_limit_holds_within_a_step(solver):
    "The client is told in time, whatever the device is busy with."
    with Gated(solver) as gated, client(solver, cache_mb=0) as c:
        assert c.post('/api/solve', json=dict(puzzle=FOUR, time_limit=.3)).status_code == 504 and gated.steps == 0
        engine = c.app.state.models.get()
        gated.open()
        until(lambda: not engine.running)
        assert (engine.stats()['late'], engine.stats()['cancelled']) == (1, 0)


def test_full_queue(solver, puzzles):
    with Gated(solver) as gated, client(solver, max_batch=1, queue=2, cache_mb=0) as c:
        engine = c.app.state.models.get()
        with ThreadPoolExecutor() as pool:
            first = pool.submit(c.post, '/api/solve', json=dict(puzzle=puzzles[0]))
            until(lambda: engine.running)
            waiting = pool.submit(c.post, '/api/solve', json=dict(puzzles=puzzles[1:3]))
            until(lambda: len(engine.waiting) == 2)
            refused = c.post('/api/solve', json=dict(puzzle=puzzles[3]))
            assert refused.status_code == 429 and 1 <= int(refused.headers['retry-after']) <= 60
            gated.open()
            assert first.result().status_code == waiting.result().status_code == 200
        never = c.post('/api/solve', json=dict(puzzles=puzzles[:3]))                            # more than ever fit: it is no use to try again
        assert never.status_code == 422 and 'at most 2' in never.json()['error'] and c.get('/api/model-info').json()['limits']['max_puzzles'] == 2


def test_a_fresh_server_asks_for_little_patience(solver, puzzles):
    with Gated(solver) as gated, client(solver, max_batch=1, queue=2, cache_mb=0) as c:
        engine = c.app.state.models.get()
        engine.submit_many(puzzles[:2])
        until(lambda: engine.running)
        engine.submit(puzzles[2])
        assert c.post('/api/solve', json=dict(puzzle=puzzles[3])).headers['retry-after'] == '5'     # nothing was answered yet
        gated.open()


def test_the_answers_of_every_step_are_bounded(solver, puzzles):
    "What would take long to write is refused; what is written is written beside the event loop."
    with client(solver, max_cells=3 * 16 * 4) as c:
        many = c.post('/api/solve', json=dict(puzzles=puzzles[:5], max_steps=3, every_step=True))
        assert many.status_code == 422 and 'at most 4' in many.json()['error'] and c.get('/api/model-info').json()['limits']['max_cells'] == 192
        for more in (dict(puzzles=puzzles[:4], max_steps=3, every_step=True), dict(puzzles=puzzles[:5], max_steps=3)): assert c.post('/api/solve', json=more).status_code == 200


def test_answers_are_written_beside_the_event_loop(solver, monkeypatch):
    threads, understood, written = [], api.understand, api.encoded
    monkeypatch.setattr(api, 'understand', lambda *a: (threads.append(threading.current_thread()), understood(*a))[1])
    monkeypatch.setattr(api, 'encoded', lambda *a: (threads.append(threading.current_thread()), written(*a))[1])
    with client(solver) as c: SolveResponse(**c.post('/api/solve', json=dict(puzzle=FOUR, every_step=True)).json())
    assert len(set(threads)) == 2                                                                   # one puzzle is understood in the loop


def test_retry_after_is_of_what_happens_now(solver, puzzles):
    "Idle time before the last answers, and older answers, tell nothing of the queue."
    with Engine(solver, ServeSettings(time_limit=20)) as engine:
        now = time.monotonic()
        engine.statistics.recent.extend([(now - 900, 1.)] * 50 + [(now - 10, 1.)] * 100)
        assert engine.statistics.rate == pytest.approx(10, rel=.1)
        engine.statistics.recent.clear()
        engine.statistics.recent.extend([(now - 900, 1.)] * 50)
        assert engine.statistics.rate == 0 and 1 <= engine.retry_after() <= 20


def test_puzzles_that_cannot_be_solved_are_named(solver):
    with client(solver) as c:
        notes = c.post('/api/solve', json=dict(puzzles=[FOUR, '11' + '.' * 14])).json()['notes']
        assert [n for n in notes if n.startswith('puzzle 2: two equal givens')] and not [n for n in notes if n.startswith('puzzle 1')]


def test_encoded_bodies_are_refused(solver):
    with client(solver) as c:
        told = c.post('/api/solve', content=gzip.compress(b'{}'), headers={'content-type': 'application/json', 'content-encoding': 'gzip'})
        assert told.status_code == 415 and 'gzip' in told.json()['error']


def test_crash_is_answered_and_logged(solver, puzzles):
    stream, recur = io.StringIO(), solver.act.inner.recur
    def broken(z, x):
        if len(x) == 3: raise RuntimeError('the device is out of memory')
        return recur(z, x)
    log, before = logging.getLogger('trm_nb.serve'), logging.getLogger('trm_nb.serve').handlers
    log_json(stream=stream)
    try:
        solver.act.inner.recur = broken
        with client(solver, cache_mb=0) as c:
            failed = c.post('/api/solve', json=dict(puzzles=puzzles[:3]))
            assert failed.status_code == 500 and 'log' in failed.json()['error'] and 'memory' not in failed.text
            assert c.post('/api/solve', json=dict(puzzles=puzzles[:4])).status_code == 200 and c.get('/health').status_code == 200
            for _ in range(3): c.post('/api/solve', json=dict(puzzles=puzzles[:3]))
            assert c.get('/health').status_code == 503                                   # as a GPU that has failed for good
    finally:
        log.handlers, log.propagate = before, True
        log.setLevel(logging.NOTSET)
    lines = [json.loads(l) for l in stream.getvalue().splitlines()]
    assert 'the device is out of memory' in next(l['traceback'] for l in lines if 'traceback' in l)
    told = next(l for l in lines if l.get('status') == 500)
    assert (told['request'], told['path'], told['puzzles'], told['level']) == (failed.json()['request'], '/api/solve', 3, 'error')


def test_bug_in_the_server_is_a_500(solver, monkeypatch):
    monkeypatch.setattr('trm_nb.serve.api.respond', lambda *a: 1 / 0)
    logging.getLogger('trm_nb.serve').setLevel(logging.CRITICAL + 1)
    with client(solver) as c:
        failed = c.post('/api/solve', json=dict(puzzle=FOUR))
        assert failed.status_code == 500 and 'division' not in failed.text and failed.json()['request']
        monkeypatch.undo()
        assert c.post('/api/solve', json=dict(puzzle=FOUR)).status_code == 200
    logging.getLogger('trm_nb.serve').setLevel(logging.NOTSET)


def test_nan_weights(solver):
    solver.act.inner.lm_head.weight.data.fill_(float('nan'))
    solver.act.inner.q_head.weight.data.fill_(float('nan'))
    with client(solver) as c: answer = c.post('/api/solve', json=dict(puzzle=FOUR, confidence=True, every_step=True)).json()['answers'][0]
    assert answer['q_halt'] == [None] * 3 and answer['lowest_confidence'] is None and answer['valid'] is False


# several models

def test_models(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(build_model(SMALL | dict(halt_max_steps=2), PuzzleShape(6, 16)), tmp_path/'runs/mine/checkpoints/step_5', 'sudoku-4x4')
    loads = []
    def load(source, device):
        loads.append(str(source))
        return Solver.from_pretrained(source, device)
    with Models(checkpoint, ServeSettings(models=1), 'cpu', load=load) as models, client(models) as c:                 # the first stays, beside one other
        assert c.get('/api/models').json()[:2] == ['small', 'runs/mine']
        with ThreadPoolExecutor() as pool: asked = list(pool.map(lambda _: c.post('/api/solve', json=dict(puzzle=FOUR, early_exit=False)), range(4)))
        assert {len(r.json()['answers'][0]['q_halt']) for r in asked} == {3} and len(loads) == 1
        other = c.post('/api/solve', json=dict(puzzle=FOUR, early_exit=False, model='runs/mine')).json()
        assert other['model'] == 'runs/mine' and len(other['answers'][0]['q_halt']) == 2 and len(loads) == 2 and list(models.loaded()) == ['small', 'runs/mine']
        for name in ('runs/other', '/etc', 'me/model', 'runs/../runs/mine', '.'): assert c.post('/api/solve', json=dict(puzzle=FOUR, model=name)).status_code == 422
        assert len(loads) == 2


class Several(Models):
    "Models of several names, all alike; `slow` waits for its gate."
    def __init__(self, checkpoint, **settings):
        self.loads, self.gate = [], threading.Event()
        super().__init__('main', ServeSettings(cache_mb=0, **settings), 'cpu', load=lambda source, device: self.slowly(source, checkpoint))

    def sources(self): return {n: n for n in ('main', 'slow', 'b', 'c', 'd')}

    def slowly(self, source, checkpoint):
        self.loads.append(source)
        if source == 'slow': assert self.gate.wait(60)
        return Solver.from_pretrained(checkpoint, 'cpu')

    def close(self, seconds=None):
        super().close(seconds)
        self.gate.set()


def test_a_load_holds_nobody_up(checkpoint):
    "More requests than the event loop has threads wait for a model; those for another are answered, and time limits hold."
    models = Several(checkpoint)
    models.get()
    with client(models) as c, ThreadPoolExecutor(40) as pool:
        known = c.get('/api/examples').json()[0]['id']
        waiting = [pool.submit(c.post, '/api/solve', json=dict(puzzle=FOUR, model='slow')) for _ in range(36)] + [pool.submit(c.get, '/api/model-info', params=dict(model='slow'))]
        until(lambda: 'slow' in models.loads)
        assert c.post('/api/solve', json=dict(task_id=known)).status_code == c.get('/api/model-info').status_code == 200
        assert c.post('/api/solve', json=dict(puzzle=FOUR, model='slow', time_limit=.1)).status_code == 504
        assert not any(f.done() for f in waiting)
        models.gate.set()
        assert {f.result().status_code for f in waiting} == {200} and models.loads == ['main', 'slow']


def test_a_client_that_leaves_while_a_model_is_loaded(checkpoint):
    models = Several(checkpoint)
    async def leaves():
        while 'slow' not in models.loads: await asyncio.sleep(.005)
        return GONE
    assert ask(create_app(models), [part(json.dumps(dict(puzzle=FOUR, model='slow')).encode()), leaves]) == []
    models.gate.set()
    assert models.get('slow').solve(FOUR).answer.steps                           # it is there for the next one
    models.close()


def test_loads_are_few_at_once(checkpoint):
    with Several(checkpoint, models=1) as models:
        models.wanted('slow')
        assert models.wanted('slow') is models.wanted('slow')
        with pytest.raises(Full): models.wanted('b')
        with pytest.raises(UserError, match='no model'): models.wanted('x')
    assert models.loaded() == {}


def test_closing_while_a_model_is_loaded(checkpoint):
    models = Several(checkpoint)
    models.get()
    with client(models) as c, ThreadPoolExecutor() as pool:
        late = pool.submit(c.post, '/api/solve', json=dict(puzzle=FOUR, model='slow'))
        until(lambda: 'slow' in models.loads)
        loading = next(t for t in threading.enumerate() if t.name == 'load slow')
        models.stop_loading()                                                     # as on SIGTERM
        told = late.result()
        assert told.status_code == 503 and 'stopping' in told.json()['error'] and told.headers['retry-after']
        assert c.post('/api/solve', json=dict(puzzle=FOUR)).status_code == 200 and c.post('/api/solve', json=dict(puzzle=FOUR, model='b')).status_code == 503
    loading.join(60)
    assert models.loaded() == {} and not loading.is_alive() and not [t for t in threading.enumerate() if t.name == 'engine slow']
    for name in (None, 'slow'):
        with pytest.raises(Closed): models.get(name)


def test_the_first_model_stays(checkpoint):
    "Others make room for each other, the one that was used last stays."
    models = Several(checkpoint, models=3)
    with client(models) as c:
        for name in ('main', 'b', 'c', 'b', 'd'): assert c.post('/api/solve', json=dict(puzzle=FOUR, model=name)).status_code == 200
        assert sorted(models.loaded()) == ['b', 'd', 'main'] and models.loads == ['main', 'b', 'c', 'd']


def test_a_model_that_made_room_is_fetched_again(checkpoint, monkeypatch):
    models, understood = Several(checkpoint), api.understand
    def meanwhile(asked, engine):
        if models.loads == ['b']:
            models.get('c')
            until(lambda: engine.closing)
        return understood(asked, engine)
    monkeypatch.setattr(api, 'understand', meanwhile)
    with client(models) as c: assert c.post('/api/solve', json=dict(puzzles=[FOUR], model='b')).status_code == 200 and models.loads == ['b', 'c', 'b']
    with Engine(Solver.from_pretrained(checkpoint, 'cpu')) as engine, client(Models.of(engine)) as c:
        engine.close()
        assert c.post('/api/solve', json=dict(puzzle=FOUR)).status_code == 503            # not for ever


def test_a_name_is_never_taken_for_a_path(checkpoint, tmp_path, monkeypatch):
    "Where the Hub may be asked, me/model is the Hub's, though a folder of that name is here."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'me').mkdir()
    (tmp_path/'me/model').symlink_to(checkpoint)
    fetched = []
    with Models(checkpoint, ServeSettings(hub=True), 'cpu', fetch=lambda name: fetched.append(name) or arc_checkpoint(tmp_path/'hub', 1)) as models:
        assert models.get('me/model').solver.puzzle.name == 'arc' and fetched == ['me/model']
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with Models(checkpoint, ServeSettings(hub=True), 'cpu') as models, pytest.raises(UserError, match='from the Hub'): models.get('me/model')


def test_closing_finishes_what_was_accepted(solver, puzzles):
    with Gated(solver) as gated:
        engine = Engine(solver, ServeSettings(max_batch=2))
        futures = engine.submit_many(puzzles[:6])
        closer = threading.Thread(target=engine.close)
        closer.start()
        until(lambda: engine.closing)
        with pytest.raises(Closed): engine.submit(puzzles[7])
        gated.open()
        closer.join()
    assert all(f.result().answer.steps for f in futures) and not engine.thread.is_alive()
    with Gated(solver) as gated:
        engine = Engine(solver, ServeSettings(max_batch=2))
        futures = engine.submit_many(puzzles[:6])
        engine_closed = threading.Thread(target=engine.close, args=(.1,))
        engine_closed.start()
        for f in futures:
            with pytest.raises(Closed): f.result(30)
        gated.open()
        engine_closed.join()


def test_the_server_waits_as_long_as_a_request_may_take(solver, monkeypatch):
    import uvicorn
    told = []
    monkeypatch.setattr(uvicorn.Server, 'run', lambda self: told.append(self.config.timeout_graceful_shutdown))
    with Engine(solver) as engine:
        for settings in (ServeSettings(), ServeSettings(time_limit=500.), ServeSettings(drain_seconds=3.)): serve(create_app(engine, settings))
    default, longer, asked = told
    assert default >= ServeSettings().time_limit + ServeSettings().body_seconds and longer >= 510 and asked == 3


def test_without_the_extra(solver, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fastapi', None)
    with Engine(solver) as engine, pytest.raises(MissingExtra, match=r'fastapi is not installed: pip install "trm_nb\[serve\]"'): create_app(engine)


# a real server

SERVER = '''
import json, sys
from trm_nb.serve.api import create_app, log_json, serve
from trm_nb.serve.engine import Models, ServeSettings
log_json()
settings = ServeSettings(port=0, **json.loads(sys.argv[2]))
models = Models(sys.argv[1], settings, 'cpu', runs='/nowhere')
models.get()
serve(create_app(models, settings), ready=lambda url: print(url, flush=True))
'''


SLOW = '''
import sys, time
from trm_nb.explore.solver import Solver
from trm_nb.serve.api import create_app, serve
from trm_nb.serve.engine import Models, ServeSettings
class Two(Models):
    def sources(self): return dict(main=sys.argv[1], slow='slow')
def load(source, device):
    if source == 'slow':
        print('loading', flush=True)
        time.sleep(600)
    return Solver.from_pretrained(source, device)
models = Two('main', ServeSettings(port=0), 'cpu', load=load)
models.get()
serve(create_app(models), ready=lambda url: print(url, flush=True))
'''


@pytest.mark.slow
def test_sigterm_while_a_model_is_loaded(checkpoint, root):
    "The client is told, and the server ends, though the load goes on."
    from http.client import HTTPConnection
    with subprocess.Popen([sys.executable, '-c', SLOW, str(checkpoint)], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            connection = HTTPConnection(*process.stdout.readline().strip().removeprefix('http://').split(':'), timeout=60)
            with ThreadPoolExecutor() as pool:
                status = pool.submit(post, connection, dict(puzzle=FOUR, model='slow'))
                assert process.stdout.readline() == 'loading\n'
                process.send_signal(signal.SIGTERM)
                assert status.result() == 503 and process.wait(60) == 0
        finally: process.kill()


@pytest.fixture
def serving(checkpoint, tmp_path, root):
    "Starts servers in processes of their own; each has an address, a process and a log."
    started = []
    def start(source=checkpoint, **settings):
        log = tmp_path/f'{len(started)}.log'
        with open(log, 'w') as f: process = subprocess.Popen([sys.executable, '-c', SERVER, str(source), json.dumps(settings)], stdout=subprocess.PIPE, stderr=f, text=True, cwd=tmp_path, env=os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))))
        started.append(process)
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        host, port = address.removeprefix('http://').split(':')
        lines = lambda: [json.loads(l) for l in log.read_text().splitlines() if l.startswith('{')]
        return dict(address=address, place=(host, int(port)), process=process, log=lines)
    yield start
    for process in started: process.kill()


def post(connection, body):
    "Status of a call over an http.client connection."
    connection.request('POST', '/api/solve', json.dumps(body), {'content-type': 'application/json'})
    response = connection.getresponse()
    response.read()
    return response.status


def statuses_of(place, body, outcomes, begun):
    "Call until the server is gone."
    from http.client import HTTPConnection, HTTPException
    connection = HTTPConnection(*place, timeout=120)
    try:
        while True:
            begun.append(1)
            outcomes.append(post(connection, body))
    except (OSError, HTTPException) as e: outcomes.append(type(e).__name__)
    finally: connection.close()


@pytest.mark.slow
def test_sigterm_under_load(serving, puzzles):
    "Whatever was accepted is answered; the server ends by itself."
    server, outcomes, begun = serving(cache_mb=0, max_batch=8, time_limit=600., drain_seconds=120.), [], []
    body = dict(puzzles=puzzles[:10], max_steps=16, early_exit=False)
    with ThreadPoolExecutor(12) as pool:
        for _ in range(12): pool.submit(statuses_of, server['place'], body, outcomes, begun)
        until(lambda: len(outcomes) >= 12, 120)
        answered = len(outcomes)
        server['process'].send_signal(signal.SIGTERM)
    assert server['process'].wait(60) == 0
    told = [l['status'] for l in server['log']() if l['event'] == 'request']
    assert set(told) <= {200} and outcomes.count(200) == len(told) and len(outcomes) > answered
    assert {o for o in outcomes if o != 200} <= {'RemoteDisconnected', 'ConnectionResetError', 'ConnectionRefusedError', 'BrokenPipeError'}


def dribble(place, data, pause=None):
    "Send raw bytes, wait for what comes back; its first line."
    with socket.create_connection(place, timeout=60) as s:
        s.sendall(data)
        if pause is None: s.shutdown(socket.SHUT_WR)
        return s.recv(4096).split(b'\r\n')[0]


@pytest.mark.slow
def test_hostile_connections(serving):
    server = serving(body_seconds=1.)
    head = b'POST /api/solve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n'
    with ThreadPoolExecutor(32) as pool:
        slow = [pool.submit(dribble, server['place'], head + b'content-length: 500\r\n\r\n{"puzzle"', 'wait') for _ in range(20)]
        endless = pool.submit(dribble, server['place'], head + b'transfer-encoding: chunked\r\n\r\n1\r\n{\r\n', 'wait')
        cut = [pool.submit(dribble, server['place'], head + b'content-length: 500\r\n\r\n{"puzzle"') for _ in range(20)]
        large = pool.submit(dribble, server['place'], head + b'content-length: 99999999999999\r\n\r\n{', 'wait')
        bad = [pool.submit(dribble, server['place'], data, 'wait') for data in (b'\x16\x03\x01\x02\x00\x01\r\n\r\n', head + b'content-length: x\r\n\r\n{}', head + b'content-length: -5\r\n\r\n{}', b'GET / HTTP/9.9\r\n\r\n', b'GET ' + b'/x' * 60_000 + b' HTTP/1.1\r\n\r\n',
                head + b'transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n', head + b'x: ' + b'y' * 100_000 + b'\r\n\r\n')]
        assert {f.result() for f in [*slow, endless]} == {b'HTTP/1.1 408 Request Timeout'}
        assert {f.result() for f in cut} <= {b'', b'HTTP/1.1 400 Bad Request'} and large.result().startswith(b'HTTP/1.1 413')
        assert {f.result()[:10] for f in bad} <= {b'HTTP/1.1 4', b''}
    from http.client import HTTPConnection
    connection = HTTPConnection(*server['place'], timeout=60)
    assert post(connection, dict(puzzle=FOUR)) == 200
    connection.close()
    server['process'].send_signal(signal.SIGTERM)
    assert server['process'].wait(60) == 0
    assert not [l for l in server['log']() if l.get('status', 0) >= 500 or 'traceback' in l]


@pytest.mark.slow
def test_heads_that_do_not_come(serving):
    "Nothing at all, half a head, half a second one: cut off; a body that comes slowly and a second request are not."
    from http.client import HTTPConnection
    server, half = serving(head_seconds=3., body_seconds=5.), b'POST /api/solve HTTP/1.1\r\nhost: localhost\r\n'
    body = half + b'content-type: application/json\r\ncontent-length: 50\r\n\r\n{'
    with ThreadPoolExecutor() as pool: assert list(pool.map(lambda data: dribble(server['place'], data, 'wait'), (b'', half, body))) == [b'', b'', b'HTTP/1.1 408 Request Timeout']
    connection = HTTPConnection(*server['place'], timeout=60)
    assert [post(connection, dict(puzzle=FOUR)) for _ in range(2)] == [200, 200]
    connection.sock.sendall(half)
    assert connection.sock.recv(4096) == b''
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize('kind, examples', [('sudoku', 3), ('arc', 3)])
def test_schemathesis_finds_no_5xx(serving, tmp_path, kind, examples):
    "With the model that ships, and with an ARC model; the examples of the documentation are among what is sent, and those for such a model are answered."
    pytest.importorskip('schemathesis')
    source = SHIPPED if kind == 'sudoku' else arc_checkpoint(tmp_path/'arc', 4, step=0)
    server = serving(source, max_puzzles=64, max_steps=16)
    done = subprocess.run([sys.executable, '-m', 'schemathesis.cli', 'run', server['address'] + '/openapi.json', '--checks', 'not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance', '--max-examples', '40', '--request-timeout', '100', '--seed', '1', '--generation-database', 'none'],
                          capture_output=True, text=True, cwd=tmp_path, timeout=500, env=os.environ | dict(SCHEMATHESIS_REPORT='false'))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    told = [l for l in server['log']() if l['event'] == 'request']
    answered = {path: [l for l in told if l['path'].startswith(path) and l['status'] == 200] for path in ('/api/solve', '/api/task/', '/api/examples', '/health', '/metrics')}
    assert len(told) > 100 and max(l['status'] for l in told) < 500 and all(answered.values())
    assert len(answered['/api/solve']) >= examples and sum(l['puzzles'] for l in answered['/api/solve']) > examples          # batches and votes too
    metrics = urllib.request.urlopen(server['address'] + '/metrics').read().decode()
    assert float(re.search(r'trm_answered_total{.*} (.*)', metrics)[1]) >= examples


@pytest.mark.slow
def test_load_script(root, checkpoint, tmp_path):
    "64 clients, no error; the server's memory stays where it is."
    out = tmp_path/'load.json'
    done = subprocess.run([sys.executable, str(root/'experiments/benchmarks/serve_load.py'), '--checkpoint', str(checkpoint), '--clients', '64', '--seconds', '3', '--max-batch', '1,16', '--requests', '1500', '--device', 'cpu', '--json', str(out)], capture_output=True, text=True, cwd=root, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, (memory,) = json.loads(out.read_text())['tables'].values()
    assert [r['max_batch'] for r in rows] == [1, 16] and all(r['errors'] == 0 and r['requests'] > 64 for r in rows)
    assert memory['requests'] == 1500 and memory['errors'] == 0 and memory['mb_in_fifth_5'] < memory['mb_in_fifth_2'] * 1.02 + 5
