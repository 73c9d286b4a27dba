"""Chromium by Playwright, and servers of Jupyter, for the tests that need them; skips where they are absent."""
import contextlib, os, re, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
import pytest

ARGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage'.split()
READY = "() => { const e = document.querySelector('.trm'); return e && e.explorer && e.explorer.shown >= 0 && e.explorer.sides.a && !e.explorer.busy }"

def chromium_path(): return next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)

@contextlib.contextmanager
def chromium():
    "A headless browser."
    sync = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    if not chromium_path(): pytest.skip('no Chromium')
    with sync.sync_playwright() as p:
        found = p.chromium.launch(executable_path=chromium_path(), args=ARGS)
        try: yield found
        finally: found.close()

def watched(context):
    "A page of a context; `page.bad` holds what its console complained of, `page.thrown` what nobody caught, with where it came from."
    page = context.new_page()
    page.bad, page.thrown = [], []
    page.on('console', lambda m: page.bad.append(m.text) if m.type == 'error' else None)
    def thrown(e):
        page.bad.append(str(e))
        page.thrown.append(f'{e}\n{getattr(e, "stack", None) or ""}')
    page.on('pageerror', thrown)
    return page

def theirs(error):
    "Was it thrown by the server's own scripts alone? Ours come as blobs, or from the page itself."
    places = re.findall(r'(?:https?|blob|file|data):[^\s)]+', error)
    return bool(places) and all('/static/' in p and not p.startswith('blob:') for p in places)

def offline(browser, **options):
    "A page that reaches nothing but files; `page.asked` holds what it asked the network for."
    context = browser.new_context(offline=True, **options)
    page = watched(context)
    page.asked = []
    page.on('request', lambda r: page.asked.append(r.url) if not r.url.startswith(('file:', 'data:', 'blob:')) else None)
    return page

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def wait_for(url, process, seconds=90):
    "Until a server answers."
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        try: return urllib.request.urlopen(url, timeout=2).status
        except urllib.error.HTTPError as e: return e.code
        except OSError: time.sleep(.3)
    raise RuntimeError(f'no server at {url}')

def end(process, seconds=60):
    "End a server that is not needed any more, gently at first: one of Jupyter waits for its kernels."
    process.terminate()
    try: process.wait(seconds)
    except subprocess.TimeoutExpired: process.kill()
    process.wait()

@contextlib.contextmanager
def server(folder, command, path):
    "A server of this environment's Jupyter with settings of its own; yields its address."
    port, bin = free_port(), Path(sys.executable).parent
    env = dict(os.environ, PATH=f'{bin}:{os.environ["PATH"]}', OMP_NUM_THREADS='1', **{f'JUPYTER_{n}_DIR': str(folder/n.lower()) for n in ('CONFIG', 'DATA', 'RUNTIME')}, IPYTHONDIR=str(folder/'ipython'))
    with open(folder/'server.log', 'w') as log: process = subprocess.Popen([bin/command[0], *(c.format(port=port) for c in command[1:])], env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        wait_for(f'http://127.0.0.1:{port}{path}', process)
        yield f'http://127.0.0.1:{port}'
    finally:
        end(process)

def lab(folder):
    "JupyterLab on a folder."
    return server(folder, ['jupyter-lab', '--no-browser', '--allow-root', '--ip=127.0.0.1', '--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=t', f'--ServerApp.root_dir={folder}',
                           '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.expose_app_in_browser=True'], '/api?token=t')

def voila(folder, notebook):
    "Voila on a notebook."
    return server(folder, ['voila', str(notebook), '--no-browser', '--Voila.ip=127.0.0.1', '--port={port}', '--show_tracebacks=True'], '/static/')

def run_notebook(page, address, name):
    "Open a notebook in JupyterLab and run it."
    page.goto(f'{address}/lab/tree/{name}?token=t&reset')
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=90000)
    idle = "() => { const w = window.jupyterapp?.shell.currentWidget, k = w?.context?.sessionContext?.session?.kernel; return k && k.status === 'idle' }"
    page.wait_for_function(idle, timeout=60000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
