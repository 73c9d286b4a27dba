"""Render every page without Quarto; fail on a page that breaks, a dead internal link or image, a public symbol that is not documented on its module's page, a public constant that no comment explains."""
import ast, re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbformat, yaml
from nbconvert import HTMLExporter
from nbdev.config import get_config

sys.path.insert(0, str(Path(__file__).parent))
from make_pages import ROOT, constants, processed

class Page(HTMLParser):
    "Collects the anchors and the links of a rendered page."
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        "Note the ids, and what is linked or shown."
        attrs = dict(attrs)
        self.anchors |= {unquote(attrs[k]).lower() for k in ('id', 'name') if attrs.get(k)}
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k) and tag in ('a', 'img', 'iframe', 'source')]

def address(path):
    "Where Quarto puts a notebook: without the number of its file, with that of its folder."
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html').as_posix()

EXPORTER = HTMLExporter(template_name='basic')

def render(path):
    "The page of a processed notebook."
    return EXPORTER.from_notebook_node(nbformat.read(path, as_version=4))[0]

def rendered(folder):
    "({address: Page}, {address: folder of its notebook}, complaints) of every processed notebook."
    pages, sources, broken = {}, {}, []
    for path in sorted(folder.rglob('*.ipynb')):
        where = path.relative_to(folder)
        sources[address(where)] = where
        try: pages[address(where)] = Page(render(path))
        except Exception as e: broken.append(f'{where}: {type(e).__name__}: {e}'.splitlines()[0])
    return pages, sources, broken

def resolve(link, page, site):
    "(path below the site, anchor) of an internal link; None for one that leaves it."
    if link.startswith(site): link = link[len(site):] or '/'
    parts = urlsplit(link)
    if parts.scheme or parts.netloc: return None
    path = unquote(parts.path)
    base = Path('/') if path.startswith('/') else Path('/')/Path(page).parent
    whole = Path('/' + page) if not path else Path(re.sub(r'/+', '/', str(base/path.lstrip('/'))))
    return normal(whole), unquote(parts.fragment).lower()

def normal(path):
    "An absolute path without `..`, below the site."
    kept = []
    for part in path.parts[1:]: kept = kept[:-1] if part == '..' else [*kept, part]
    return '/'.join(kept)

def dead(link, page, pages, sources, folder, site):
    "Why an internal link leads nowhere; None when it leads somewhere."
    found = resolve(link, page, site)
    if found is None: return None
    path, anchor = found
    names = {where.as_posix(): html for html, where in sources.items()}
    target = names.get(path, path or 'index.html')
    if target not in pages: return None if (folder/path).is_file() else 'no such page or file'
    symbol = anchor.split('.')[0] # nbdev links a method that has no entry of its own too: its class will do
    if anchor and not {anchor, symbol} & pages[target].anchors: return f'no place #{anchor} there'

def links(pages, sources, folder, site):
    "Complaints about internal links and images."
    return [f'{sources[page]}: {link}: {why}' for page, content in pages.items() for link in sorted(set(content.links))
            if (why := dead(link, page, pages, sources, folder, site))]

def sidebar(folder):
    "Complaints about entries of the sidebar that have no page."
    listed = re.findall(r'\S+\.ipynb', (ROOT/'sidebar.yml').read_text(encoding='utf-8'))
    for name in ('_quarto.yml', 'sidebar.yml', 'nbs/nbdev.yml'): yaml.safe_load((ROOT/name).read_text(encoding='utf-8'))
    return [f'sidebar.yml: {name}: no such page' for name in listed if not (folder/name).is_file()]

def public(body):
    "Definitions that a user may see, in classes too."
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        yield node
        if isinstance(node, ast.ClassDef): yield from public(node.body)

def again(node):
    "Whether a definition repeats one that has a docstring: a property's setter, an overload."
    return any(re.search(r'\.setter$|overload$', ast.unparse(d)) for d in getattr(node, 'decorator_list', []))

def undocumented(package):
    "Complaints about public symbols of a package without docstring."
    trees = {p: ast.parse(p.read_text(encoding='utf-8')) for p in sorted(package.rglob('[!_]*.py'))}
    return [f'{path.relative_to(package.parent)}:{node.lineno}: {node.name} has no docstring' for path, tree in trees.items()
            for node in public(tree.body) if not ast.get_docstring(node) and not again(node)]

def uncommented(package):
    "Complaints about public constants that no comment explains."
    return [f'{path.relative_to(package.parent)}:{line}: {names} has no comment' for path in sorted(package.rglob('[!_]*.py')) for names, line, _, said in constants(path) if not said]

def symbols(path):
    "(anchor, line) of every public function, class and method that a module defines with a docstring."
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        for found in public([node]):
            if ast.get_docstring(found): yield (node.name if found is node else f'{node.name}.{found.name}').lower(), min([found.lineno, *(d.lineno for d in found.decorator_list)])

def unshown(package, pages, sources):
    "Complaints about public symbols that the page of their module does not show, or shows without a link to their source."
    complaints, names = [], {where.as_posix(): html for html, where in sources.items()}
    for path in sorted(package.rglob('[!_]*.py')):
        module, notebook = path.relative_to(package.parent), re.search(r'File to edit: (?:\.\./)*nbs/(\S+\.ipynb)', path.read_text(encoding='utf-8'))
        page = pages.get(names.get(notebook and notebook[1]))
        for anchor, line in symbols(path) if page else []:
            if anchor not in page.anchors: complaints.append(f'{notebook[1]}: {anchor} is not documented')
            elif not any(link.endswith(f'{module.as_posix()}#L{line}') for link in page.links): complaints.append(f'{notebook[1]}: {anchor} has no link to line {line} of {module}')
    return complaints

def prepared():
    "The folder of prepared notebooks."
    try: return processed()
    except Exception as e: sys.exit(f'a notebook cannot be processed: {e}')

def main():
    "Process, render, check."
    config, folder = get_config(path=ROOT), prepared()
    pages, sources, broken = rendered(folder)
    complaints = broken + links(pages, sources, folder, f'{config.doc_host}{config.doc_baseurl}')
    complaints += sidebar(folder) + undocumented(ROOT/'trm_nb') + uncommented(ROOT/'trm_nb') + unshown(ROOT/'trm_nb', pages, sources)
    if complaints: sys.exit('\n'.join(complaints))
    print(f'{len(pages)} pages: all render, no dead link, every public symbol is documented and linked to its source, every public constant is explained')

if __name__ == '__main__': main()
