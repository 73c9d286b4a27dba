"""A loopback Hub that huggingface_hub uploads to and downloads from: models, datasets and Spaces, with faults on request."""
import base64, hashlib, json, os, re, threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse
import yaml

LARGE = ('.safetensors', '.bin', '.pt', '.npy', '.npz', '.parquet', '.zip', '.png')
LICENCES = {'apache-2.0', 'mit', 'cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0', 'bsd-3-clause', 'gpl-3.0', 'odc-by', 'unknown', 'other'}
SIZES = {'n<1K', '1K<n<10K', '10K<n<100K', '100K<n<1M', '1M<n<10M', '10M<n<100M'}
COLOURS = {'red', 'yellow', 'green', 'blue', 'indigo', 'purple', 'pink', 'gray'}

def git_oid(content): return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()

def sha256(content): return hashlib.sha256(content).hexdigest()

def large(path): return path.endswith(LARGE)

# ---- what the Hub says of a card

def model_index_errors(index):
    "Complaints about `model-index`."
    if not isinstance(index, list): return ['"model-index" must be an array']
    found = []
    for i, model in enumerate(index):
        if not isinstance(model.get('name'), str): found.append(f'"model-index[{i}].name" is required')
        for j, r in enumerate(model.get('results') or []):
            where = f'"model-index[{i}].results[{j}]'
            if not (r.get('task') or {}).get('type'): found.append(f'{where}.task.type" is required')
            for key in ('name', 'type'):
                if not isinstance((r.get('dataset') or {}).get(key), str): found.append(f'{where}.dataset.{key}" is required')
            if not r.get('metrics'): found.append(f'{where}.metrics" is required')
            for m in r.get('metrics') or []:
                if not m.get('type') or m.get('value') is None: found.append(f'{where}.metrics" need type and value')
    return found

def card_errors(data, kind):
    "Complaints about a card's metadata."
    found = [f'"{k}" must be an array of strings' for k in ('tags', 'task_categories', 'datasets', 'models', 'size_categories')
             if k in data and not (isinstance(data[k], list) and all(isinstance(x, str) for x in data[k]))]
    if 'license' in data and data['license'] not in LICENCES: found.append(f'"license" must be one of {sorted(LICENCES)}')
    if kind == 'model' and 'model-index' in data: found += model_index_errors(data['model-index'])
    if kind == 'dataset':
        if set(data.get('size_categories', [])) - SIZES: found.append('"size_categories" must be one of the known ones')
        for c in data.get('configs', []):
            if not c.get('config_name') or not all(d.get('split') and d.get('path') for d in c.get('data_files', [])): found.append('"configs" need config_name, split and path')
    if kind == 'space':
        if data.get('sdk') not in ('gradio', 'docker', 'static'): found.append('"sdk" must be one of [gradio, docker, static]')
        if not {data.get('colorFrom'), data.get('colorTo')} <= COLOURS: found.append(f'"colorFrom" must be one of {sorted(COLOURS)}')
    return found

def validate(content, kind):
    "(errors, warnings) of a README.md."
    head = re.match(r'\A---\r?\n(.*?)\r?\n---\s', content, re.S)
    if not head: return [], ['empty or missing yaml metadata in repo card']
    try: data = yaml.safe_load(head[1])
    except yaml.YAMLError as e: return [f'YAML metadata error: {e}'], []
    if not isinstance(data, dict): return ['YAML metadata must be an object'], []
    return card_errors(data, kind), []

# ---- repositories

@dataclass
class Repo:
    "One repository: commits, branches, tags."
    kind: str
    id: str
    private: bool = False
    sdk: str | None = None
    commits: dict = field(default_factory=dict) # oid -> {path: content}
    messages: list = field(default_factory=list)
    refs: dict = field(default_factory=dict) # main
    tags: dict = field(default_factory=dict)

    def __post_init__(self): self.commit({'.gitattributes': b''.join(b'*%s filter=lfs\n' % e.encode() for e in LARGE)}, 'initial commit')

    def commit(self, files, message):
        oid = hashlib.sha1(repr((self.refs.get('main'), message, sorted((k, sha256(v)) for k, v in files.items()))).encode()).hexdigest()
        self.commits[oid] = files
        self.refs['main'] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision): return self.refs.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self): return self.commits[self.refs['main']]

@dataclass
class Fault:
    "What goes wrong with the next requests that match."
    pattern: str # on 'METHOD /path'
    status: int = 500
    times: int = 1
    headers: dict = field(default_factory=dict)
    cut: int | None = None # close the connection after so many bytes of the body

class FakeHub:
    "The server: `with FakeHub() as hub`, then `hub.env` for the client."
    def __init__(self, token='hf_write_1234567890', read_token='hf_read_1234567890', user='me', part=4_000_000):
        self.token, self.read_token, self.user, self.part = token, read_token, user, part
        self.repos, self.blobs, self.parts, self.log, self.faults = {}, {}, {}, [], []

    def __enter__(self):
        hub = self
        class Bound(Handler): server_hub = hub
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Bound)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home, token=True):
        "Environment of a client of this Hub."
        settings = dict(HF_ENDPOINT=self.url, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
        return settings | ({'HF_TOKEN': self.token} if token else {})

    def constants(self, home):
        "What huggingface_hub read from such an environment, had it not been imported before."
        return dict(ENDPOINT=self.url, HUGGINGFACE_CO_URL_TEMPLATE=self.url + '/{repo_id}/resolve/{revision}/{filename}', HF_HUB_CACHE=f'{home}/hub', HF_HUB_DISABLE_XET=True, HF_HUB_DISABLE_SHARED_BLOBS=True)

    def use(self, home):
        "Turn this process towards this Hub, for a notebook that may share it with others."
        from huggingface_hub import constants
        os.environ |= self.env(home)
        for name, value in self.constants(home).items(): setattr(constants, name, value)

    def fail(self, pattern, status=500, times=1, cut=None, **headers):
        "Let the next `times` requests that match go wrong."
        self.faults.append(Fault(pattern, status, times, {k.replace('_', '-'): v for k, v in headers.items()}, cut))

    def fault(self, request):
        for f in self.faults:
            if f.times and re.search(f.pattern, request):
                f.times -= 1
                return f

    def repo(self, id, kind='model'): return self.repos.get((kind, id))

    def asked(self, pattern): return [entry for entry in self.log if re.search(pattern, f'{entry[0]} {entry[1]}')]

# ---- the protocol

REPO_API = re.compile(r'/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(.*))?$')
BATCH = re.compile(r'/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$')
RESOLVE = re.compile(r'/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$')

class Cut(Exception): "The connection was cut on purpose."

class Handler(BaseHTTPRequestHandler):
    "One request."
    protocol_version = 'HTTP/1.1'
    server_hub = None

    def log_message(self, *_): pass

    # bodies and answers

    def body(self, cut=None):
        length = self.headers.get('Content-Length')
        if length: return self._limited(int(length), cut)
        if self.headers.get('Transfer-Encoding', '') != 'chunked': return b''
        out = b''
        while size := int(self.rfile.readline().split(b';')[0], 16):
            out += self.rfile.read(size)
            self.rfile.readline()
            if cut is not None and len(out) >= cut: raise Cut
        self.rfile.readline()
        return out

    def _limited(self, length, cut):
        if cut is None: return self.rfile.read(length)
        self.rfile.read(min(cut, length))
        raise Cut

    def send(self, status, value=None, headers=(), raw=None):
        content = raw if raw is not None else b'' if value is None else json.dumps(value).encode()
        self.hub.log.append((self.command, self.path, status, len(self.got)))
        self.send_response(status)
        headers = dict(headers)
        if raw is None: headers.setdefault('Content-Type', 'application/json')
        for k, v in ({'Content-Length': str(len(content))} | headers).items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def refuse(self, status, message, code=None, **headers): self.send(status, {'error': message}, headers | {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {}))

    # who asks

    @property
    def hub(self): return self.server_hub

    @property
    def bearer(self): return (self.headers.get('Authorization') or '').removeprefix('Bearer ').strip()

    def may_write(self):
        "Whether the token may write; otherwise the answer is sent."
        if self.bearer == self.hub.token: return True
        if self.bearer == self.hub.read_token: self.refuse(403, 'You have read access but not the required permissions for this operation')
        else: self.refuse(401, 'Invalid credentials in Authorization header' if self.bearer else 'Invalid username or password.')
        return False

    def readable(self, kind, id):
        "The repository, if the token may see it; otherwise the answer is sent."
        if self.bearer and self.bearer not in (self.hub.token, self.hub.read_token): return self.refuse(401, 'Invalid credentials in Authorization header')
        repo = self.hub.repo(id, kind or 'model')
        if repo and (self.bearer or not repo.private): return repo
        self.refuse(404 if self.bearer else 401, 'Repository not found' if self.bearer else 'Invalid username or password.', 'RepoNotFound')

    # routing

    def handle_one(self):
        url = urlparse(self.path)
        self.query, path = parse_qs(url.query), url.path
        fault = self.hub.fault(f'{self.command} {self.path}')
        self.got = b''
        self.got = self.body(fault and fault.cut)
        if fault: return self.refuse(fault.status, 'injected fault', **fault.headers)
        if path.startswith('/lfs/'): return self.blob(path.split('/')[2:])
        for pattern, answer in ((REPO_API, self.repo_api), (BATCH, self.batch), (RESOLVE, self.resolve)):
            if found := pattern.match(path): return answer(*found.groups())
        plain = {'/api/repos/create': self.create, '/api/whoami-v2': self.whoami, '/api/validate-yaml': self.yaml}
        return plain.get(path, lambda: self.refuse(404, f'no route {path}'))()

    def do(self):
        try: self.handle_one()
        except Cut:
            self.hub.log.append((self.command, self.path, 0, 0))
            self.close_connection = True
            self.connection.close()
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do

    # routes

    def whoami(self):
        if self.bearer not in (self.hub.token, self.hub.read_token): return self.refuse(401, 'Invalid credentials in Authorization header')
        self.send(200, dict(name=self.hub.user, type='user', orgs=[], auth=dict(accessToken=dict(role='write' if self.bearer == self.hub.token else 'read'))))

    def yaml(self):
        asked = json.loads(self.got)
        errors, warnings = validate(asked['content'], asked.get('repoType', 'model'))
        self.send(400 if errors else 200, dict(errors=[dict(message=e) for e in errors], warnings=[dict(message=w) for w in warnings]))

    def create(self):
        if not self.may_write(): return
        asked = json.loads(self.got)
        kind, owner = asked.get('type') or 'model', asked.get('organization') or self.hub.user
        id = f"{owner}/{asked['name']}"
        if owner != self.hub.user: return self.refuse(403, f"You don't have the rights to create a {kind} under the namespace \"{owner}\"")
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{id}"
        if self.hub.repo(id, kind): return self.send(409, dict(error=f'You already created this {kind} repo', url=url))
        self.hub.repos[kind, id] = Repo(kind, id, asked.get('visibility') == 'private', asked.get('sdk'))
        self.send(200, dict(url=url, name=id, id='1'))

    def repo_api(self, kind, id, rest):
        repo = self.readable(kind, id)
        if not repo: return
        verb, _, tail = (rest or '').partition('/')
        if verb in ('', 'revision'): return self.info(repo, unquote(tail) or 'main')
        if verb == 'tree': return self.tree(repo, *map(unquote, (tail.split('/', 1) + [''])[:2]))
        if verb == 'paths-info': return self.paths_info(repo, unquote(tail))
        if verb == 'refs': return self.send(200, dict(branches=self.ref_list(repo.refs, 'heads'), tags=self.ref_list(repo.tags, 'tags'), converts=[]))
        write = dict(preupload=self.preupload, commit=self.commit, tag=self.tag).get(verb)
        if not write: return self.refuse(404, f'no route {self.path}')
        if self.may_write(): write(repo, unquote(tail))

    def ref_list(self, refs, what): return [dict(name=n, ref=f'refs/{what}/{n}', targetCommit=oid) for n, oid in refs.items()]

    def at(self, repo, revision):
        "(commit, files) of a revision; otherwise the answer is sent."
        oid = repo.resolve(revision)
        if oid: return oid, repo.commits[oid]
        self.refuse(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return None, None

    def info(self, repo, revision):
        oid, files = self.at(repo, revision)
        if oid: self.send(200, dict(_id='1', id=repo.id, sha=oid, private=repo.private, tags=[], downloads=0, likes=0, author=repo.id.split('/')[0], gated=False, disabled=False,
            lastModified='2025-01-01T00:00:00.000Z', createdAt='2025-01-01T00:00:00.000Z', siblings=[dict(rfilename=f) for f in sorted(files)]))

    def entry(self, path, content):
        found = dict(type='file', path=path, size=len(content), oid=git_oid(content))
        return found | (dict(lfs=dict(oid=sha256(content), size=len(content), pointerSize=130)) if large(path) else {})

    def tree(self, repo, revision, below):
        oid, files = self.at(repo, revision)
        if not oid: return
        inside = {f: c for f, c in files.items() if not below or f.startswith(below.rstrip('/') + '/')}
        if below and not inside: return self.refuse(404, f'{below} does not exist', 'EntryNotFound')
        skip = len(below.rstrip('/')) + 1 if below else 0
        deep = self.query.get('recursive', ['False'])[0].lower() in ('true', '1')
        folders = sorted({f[:skip] + '/'.join(f[skip:].split('/')[:n]) for f in inside for n in range(1, f[skip:].count('/') + 1 if deep else min(2, f[skip:].count('/') + 1))})
        shown = [self.entry(f, c) for f, c in sorted(inside.items()) if deep or '/' not in f[skip:]]
        self.send(200, [dict(type='directory', path=d, oid=hashlib.sha1(d.encode()).hexdigest(), size=0) for d in folders] + shown)

    def paths_info(self, repo, revision):
        oid, files = self.at(repo, revision)
        if not oid: return
        form = 'json' in (self.headers.get('Content-Type') or '')
        wanted = json.loads(self.got)['paths'] if form else parse_qs(self.got.decode()).get('paths', [])
        found = [self.entry(p, files[p]) for p in wanted if p in files]
        found += [dict(type='directory', path=p, oid='0' * 40, size=0) for p in wanted if p not in files and any(f.startswith(p.rstrip('/') + '/') for f in files)]
        self.send(200, found)

    def preupload(self, repo, revision):
        def one(f):
            there = repo.files.get(f['path'])
            known = {} if there is None else dict(oid=(sha256 if large(f['path']) else git_oid)(there))
            return dict(path=f['path'], uploadMode='lfs' if large(f['path']) else 'regular', shouldIgnore=False) | known
        self.send(200, dict(files=[one(f) for f in json.loads(self.got)['files']]))

    def batch(self, kind, id):
        if not self.may_write(): return
        def one(o):
            if o['oid'] in self.hub.blobs: return dict(oid=o['oid'], size=o['size'])
            upload = dict(href=f"{self.hub.url}/lfs/{o['oid']}")
            if o['size'] > self.hub.part:
                upload = dict(href=f"{self.hub.url}/lfs/{o['oid']}/complete", header={'chunk_size': str(self.hub.part)} | {str(n + 1): f"{self.hub.url}/lfs/{o['oid']}/{n + 1}" for n in range(-(-o['size'] // self.hub.part))})
            return dict(oid=o['oid'], size=o['size'], actions=dict(upload=upload))
        self.send(200, dict(transfer='multipart', objects=[one(o) for o in json.loads(self.got)['objects']]))

    def blob(self, parts):
        "A large file, or one part of it; a wrong hash is refused."
        oid, part = parts[0], parts[1] if len(parts) > 1 else None
        if part and part != 'complete':
            self.hub.parts[oid, int(part)] = self.got
            return self.send(200, {}, {'ETag': f'"{hashlib.md5(self.got).hexdigest()}"'})
        if part: self.got = b''.join(self.hub.parts.pop((oid, p['partNumber'])) for p in json.loads(self.got)['parts'])
        if sha256(self.got) != oid: return self.refuse(400, 'the content does not fit its hash')
        self.hub.blobs[oid] = self.got
        self.send(200, {})

    def commit(self, repo, revision):
        if revision not in repo.refs: return self.refuse(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        files, message = dict(repo.files), ''
        for line in self.got.splitlines():
            entry = json.loads(line)
            key, v = entry['key'], entry['value']
            if key == 'header':
                message = v['summary']
                if v.get('parentCommit') not in (None, repo.refs['main']): return self.refuse(412, 'A commit has happened since. Please refresh and try again.')
            elif key == 'file': files[v['path']] = base64.b64decode(v['content'])
            elif key == 'lfsFile':
                if v['oid'] not in self.hub.blobs: return self.refuse(400, f"LFS pointer of {v['path']} points to a file that does not exist")
                files[v['path']] = self.hub.blobs[v['oid']]
            elif key == 'deletedFile': files.pop(v['path'], None)
            elif key == 'deletedFolder': files = {f: c for f, c in files.items() if not f.startswith(v['path'])}
        oid = repo.commit(files, message)
        self.send(200, dict(success=True, commitOid=oid, commitUrl=f'{self.hub.url}/{repo.id}/commit/{oid}', hookOutput=''))

    def tag(self, repo, name):
        if self.command == 'DELETE':
            if repo.tags.pop(name, None): return self.send(200, {})
            return self.refuse(404, f'no tag {name}', 'RevisionNotFound')
        oid, _ = self.at(repo, name)
        if not oid: return
        wanted = json.loads(self.got)['tag']
        if wanted in repo.tags: return self.refuse(409, f'Tag {wanted} already exists')
        repo.tags[wanted] = oid
        self.send(200, {})

    def resolve(self, kind, id, revision, path):
        repo = self.readable(kind, id)
        if not repo: return
        oid, files = self.at(repo, unquote(revision))
        if not oid: return
        content = files.get(unquote(path))
        if content is None: return self.refuse(404, 'Entry not found', 'EntryNotFound', **{'X-Repo-Commit': oid})
        tag = sha256(content) if large(path) else git_oid(content)
        headers = {'ETag': f'"{tag}"', 'X-Repo-Commit': oid, 'Accept-Ranges': 'bytes', 'Content-Type': 'application/octet-stream'}
        if large(path): headers |= {'X-Linked-Etag': f'"{tag}"', 'X-Linked-Size': str(len(content))}
        asked = re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        if not asked: return self.send(200, None, headers, raw=content)
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        self.send(206, None, headers | {'Content-Range': f'bytes {start}-{min(end, len(content) - 1)}/{len(content)}'}, raw=content[start:end + 1])
