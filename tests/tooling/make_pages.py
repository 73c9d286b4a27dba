"""The notebooks as Quarto gets them, in _proc: what nbdev makes of them, with a table of parameters, every method and the constants on the page of each module."""
import ast, importlib, inspect, io, re, shutil, tokenize, typing
from pathlib import Path
import nbdev.serve_drv, nbdev.showdoc, nbformat
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from nbdev.showdoc import BasicMarkdownRenderer

ROOT = Path(__file__).resolve().parents[2]
EMPTY = inspect.Parameter.empty

def type_text(kind):
    "A type as a reader says it: `int or None`."
    if kind in (EMPTY, None): return ''
    text = inspect.formatannotation(kind).strip("'").replace('NoneType', 'None').replace(' | ', ' or ')
    return re.sub(r'\b(?:[a-z_]\w*\.)+(?=\w)', '', text)

def value_text(value):
    "A default as code, shortened where long."
    text = getattr(value, '__name__', None) or ' '.join(repr(value).split())
    return '`' + (text if len(text) <= 40 else text[:37] + '...').replace('|', '/') + '`'

def plain(kind):
    "(type, help) of an annotation: a command's options hold their help themselves."
    if typing.get_origin(kind) is not typing.Annotated: return kind, ''
    kind, *said = typing.get_args(kind)
    return kind, next((s.help for s in said if getattr(s, 'help', None)), '')

def row(name, kind, default, said):
    "A line of the table."
    kind, help = plain(kind)
    cells = [f'**{name}**', f'`{text}`' if (text := type_text(kind)) else '', '' if default is EMPTY else value_text(default), said or help]
    return '| ' + ' | '.join(' '.join(c.split()).replace('|', '\\|') for c in cells) + ' |'

def said_of_fields(symbol):
    "What the comments in the source of a class and its parents say of its fields."
    sources = [inspect.getsource(c) for c in reversed(symbol.__mro__) if c.__module__.startswith('trm_nb')]
    return {m[1]: m[2] for s in sources for m in re.finditer(r'^ +(\w+) *:[^#\n]*# *(.+)$', s, re.M)}

def said_above(owner, name):
    "What the parents of a class say of the parameters of a method."
    above = [vars(c)[name] for c in reversed(owner.__mro__[1:]) if inspect.isfunction(vars(c).get(name))]
    return {n: said for f in above for n, said in docments(f, args_kwargs=True).items() if said}

def settings_rows(symbol):
    "Fields of a settings class."
    said = said_of_fields(symbol)
    default = lambda f: EMPTY if f.is_required() else f.get_default(call_default_factory=True)
    return [row(n, f.annotation, default(f), said.get(n, '')) for n, f in symbol.model_fields.items()]

def call_rows(symbol, said):
    "Parameters of a function, or of what makes an object; what a function returns."
    found = docments(symbol, full=True, args_kwargs=True)
    back = found.pop('return', None)
    rows = [row(n, p['anno'], p['default'], p['docment'] or said.get(n, '')) for n, p in found.items() if n not in ('self', 'cls')]
    if inspect.isclass(symbol) or not back or type_text(back['anno']) in ('', 'None'): return rows
    return [*rows, row('returns', back['anno'], EMPTY, back['docment']).replace('**returns**', '*returns*', 1)]

def table(symbol, said):
    "The parameters, one a line."
    if not callable(symbol) or inspect.isclass(symbol) and not parameters(symbol): return ''
    rows = settings_rows(symbol) if hasattr(symbol, 'model_fields') else call_rows(symbol, said)
    return '\n'.join(['| | type | default | |', '|---|---|---|---|', *rows]) if rows else ''

def parameters(symbol):
    "The parameters of what can be called."
    try: return [p for p in inspect.signature(symbol).parameters.values() if p.name != 'self']
    except (TypeError, ValueError): return []

def call_text(name, symbol):
    "How it is called."
    given = [p.replace(annotation=EMPTY) for p in parameters(symbol)]
    if hasattr(symbol, 'model_fields') or inspect.isclass(symbol) and not given or not callable(symbol): return ''
    text = f'{name}{inspect.Signature(given)}'
    return f'```python\n{text if len(text) <= 110 else name + "(...)"}\n```'

def source_link(symbol):
    "Where the source can be read."
    symbol = inspect.unwrap(getattr(symbol, 'fget', None) or symbol)
    config, file = get_config(path=ROOT), Path(inspect.getsourcefile(symbol)).relative_to(ROOT).as_posix()
    return f'{config.git_url}/blob/{config.branch}/{file}#L{inspect.getsourcelines(symbol)[1]}'

def own(symbol):
    "(name, item) of the public methods and properties that a class defines itself."
    for name, item in vars(symbol).items():
        if isinstance(item, (staticmethod, classmethod)): item = getattr(symbol, name)
        if name[0] != '_' and (inspect.isroutine(item) or isinstance(item, property)) and (item.fget if isinstance(item, property) else item).__module__.startswith('trm_nb'): yield name, item

def entry(symbol, name, level, said):
    "One symbol: source, heading, call, docstring, table; `said` of its parameters elsewhere."
    source = f'[source]({source_link(symbol)}){{target="_blank" style="float:right; font-size:smaller"}}'
    text = '\n\n'.join(filter(None, [source, f'{"#" * level} {name}', call_text(name, symbol), inspect.getdoc(symbol), table(symbol, said)]))
    for p in parameters(symbol): text = text.replace(f'`{p.name}`', f'`` {p.name} ``') # code still, but nbdev takes it for no symbol of that name
    return text

def comments(source):
    "(text of a comment by line, lines that hold nothing else) of a module; nbdev's own marks do not count."
    found = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT and not re.match(r'# %%|#\|', t.string)]
    return {t.start[0]: t.string.lstrip('# ') for t in found}, {t.start[0] for t in found if t.start[1] == 0}

def given(node):
    "Public names that a statement gives a value."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and not n.id.startswith('_')]

def explained(node, beside, above):
    "What a comment on the first or last line of a statement says, or those above it; for a command's option, its help."
    line, text, before = node.lineno - 1, beside.get(node.lineno) or beside.get(node.end_lineno), []
    while line in above: before, line = [beside[line], *before], line - 1
    text = text or ' '.join(before)
    return text or next((ast.literal_eval(k.value) for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg == 'help'), '')

def constants(path):
    "(names, line, value, what is said of it) of the public constants of a module."
    source = path.read_text(encoding='utf-8')
    found = [n for n in ast.parse(source).body if given(n)]
    return [(', '.join(given(n)), n.lineno, ast.unparse(n.value) if n.value else '', explained(n, *comments(source))) for n in found]

def constants_table(path):
    "The constants of a module, each with a link to its source; empty where there are none."
    config = get_config(path=ROOT)
    link = lambda line: f'{config.git_url}/blob/{config.branch}/{path.relative_to(ROOT).as_posix()}#L{line}'
    short = lambda text: '`' + (text if len(text) <= 60 else text[:57] + '...').replace('|', '/').replace('`', "'") + '`'
    rows = [f'| [**{names}**]({link(line)}) | {short(value)} | {said.replace("|", "&#124;")} |' for names, line, value, said in constants(path)]
    return '\n'.join(['## Constants', '', '| | value | |', '|---|---|---|', *rows]) if rows else ''

def add_constants(page, module):
    "Put the constants of a module at the end of its page."
    text, notebook = constants_table(module), nbformat.read(page, as_version=4)
    if not text: return
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, page)

def shipped(symbol, name):
    "The symbol as the module has it; a notebook makes it anew."
    found = importlib.import_module(HERE['module']) if HERE['module'] else None
    for part in name.split('.'): found = getattr(found, part, None)
    return symbol if found is None else found

class Reference(BasicMarkdownRenderer):
    "What `show_doc` shows: the symbol, and below a class its methods."
    def _repr_markdown_(self):
        symbol = shipped(self.sym, self.nm)
        parts = ['---', entry(symbol, self.nm, self.title_level, said_of_fields(symbol) if inspect.isclass(symbol) else {})]
        if inspect.isclass(symbol): parts += [entry(item, f'{self.nm}.{name}', self.title_level + 1, said_above(symbol, name)) for name, item in own(symbol)]
        return '\n\n'.join(parts)

HERE = dict(module='') # exported by the notebook at hand
nbdev.showdoc.BasicMarkdownRenderer = Reference
nbdev_main = nbdev.serve_drv.main

def process(item):
    "Prepare one notebook; a worker that imports this module has the renderer above."
    found = re.search(r'#\| *default_exp +([\w.]+)', Path(item[0]).read_text(encoding='utf-8'))
    HERE['module'] = f'trm_nb.{found[1]}' if found else ''
    nbdev_main(item)
    if found: add_constants(item[1], (ROOT/'trm_nb'/found[1].replace('.', '/')).with_suffix('.py'))

def processed():
    "The folder of prepared notebooks; their imports and exported cells are run for this."
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)
    refresh_quarto_yml()
    nbdev.serve_drv.main = process
    return proc_nbs(force=True, n_workers=2)

if __name__ == '__main__': processed()
