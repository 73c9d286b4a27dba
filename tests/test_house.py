"""The rooms of the house: a module imports only from rooms above its own, and nothing imports in a circle."""
import ast
from pathlib import Path
import pytest

ROOMS = 'data models evaluate explore learn publish serve config run lab tools cli'.split()

def modules(package):
    "Dotted name below the package -> file, for every module of the folder `package`."
    files = [p for p in package.rglob('*.py') if p.name != '_modidx.py' and p != package/'__init__.py']
    names = {p: p.relative_to(package).with_suffix('').as_posix().replace('/', '.') for p in files}
    return {name.removesuffix('.__init__'): path for path, name in names.items()}

def imported(node, package, here):
    "Dotted names that an import statement in module `here` may load."
    if isinstance(node, ast.Import): return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    base = here.split('.')[:-node.level] if node.level else []
    stem = '.'.join([*base, *filter(None, [node.module])])
    return [stem, *(f'{stem}.{alias.name}' for alias in node.names)]

def imports(path, name, package, known):
    "Modules of `known` that the file `path`, called `name`, imports, also inside functions."
    here = f'{package}.{name}' + ('.__init__' if path.name == '__init__.py' else '')
    nodes = ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    found = {target.removeprefix(package + '.') for node in nodes for target in imported(node, package, here)}
    return sorted(found & set(known) - {name})

def graph(package):
    "Module -> modules of the same package that it imports."
    known = modules(package)
    return {name: imports(path, name, package.name, known) for name, path in known.items()}

def room(name): return name.split('.')[0]

def downward(edges):
    "Complaints about imports from a lower room, or from something that is no room."
    unknown = sorted({room(n) for n in edges} - set(ROOMS))
    if unknown: return [f'{", ".join(unknown)}: not a room ({" ".join(ROOMS)})']
    return [f'{name} imports {target}, which lies below it' for name, targets in edges.items()
            for target in targets if ROOMS.index(room(target)) > ROOMS.index(room(name))]

def circle(edges):
    "The first circle of imports, as a list that ends where it begins; empty when there is none."
    done, path = set(), []
    def visit(name):
        if name in path: return [*path[path.index(name):], name]
        if name in done: return []
        path.append(name)
        found = next(filter(None, map(visit, edges.get(name, []))), [])
        path.pop()
        done.add(name)
        return found
    return next(filter(None, map(visit, sorted(edges))), [])

def test_house(root):
    edges = graph(root/'trm_nb')
    assert len(edges) > 3
    assert downward(edges) == []
    assert circle(edges) == []

@pytest.fixture
def build(tmp_path):
    "Makes a package `trm_nb` of {module: source} and returns its import graph."
    def make(**sources):
        for name, source in sources.items():
            path = tmp_path/'trm_nb'/(name.replace('__', '/') + '.py')
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent/'__init__.py').touch()
            path.write_text(source)
        return graph(tmp_path/'trm_nb')
    return make

@pytest.mark.parametrize('source', [
    'from ..learn.trainer import Trainer', 'from trm_nb.learn.trainer import Trainer', 'import trm_nb.learn.trainer as t',
    'from ..learn import trainer', 'from .. import learn', 'def late():\n    from trm_nb.learn import trainer',
    'if True: import trm_nb.learn.trainer'])
def test_down_is_found(build, source):
    complaints = downward(build(models__trm=source, learn__trainer=''))
    assert complaints and all('models.trm imports learn' in c for c in complaints)

def test_up_is_allowed(build):
    edges = build(data__format='import numpy', models__trm='from ..data.format import x', cli='from .models import trm', run='')
    assert edges['models.trm'] == ['data.format']
    assert downward(edges) == [] and circle(edges) == []

def test_top_order(build):
    assert downward(build(config='from trm_nb import cli', cli='')) == ['config imports cli, which lies below it']

def test_circle_is_found(build):
    edges = build(data__a='from .b import x', data__b='def f(): from trm_nb.data.c import y', data__c='from . import a')
    assert circle(edges) == ['data.a', 'data.b', 'data.c', 'data.a']

def test_strange_room(build): assert 'attic: not a room' in downward(build(attic__box=''))[0]
