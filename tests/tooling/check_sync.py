"""Fail when exporting and cleaning changes the notebooks or the library, or when README.md, sidebar.yml or the reference lag behind."""
import hashlib, subprocess, sys
from make_readme import ROOT, in_step
from make_sidebar import generated

def contents():
    "Hash of every notebook, module and generated file."
    files = [p for folder in ('nbs', 'trm_nb') for p in (ROOT/folder).rglob('*') if p.suffix in ('.ipynb', '.py', '.yml')]
    files = [p for p in [*files, ROOT/'pyproject.toml'] if p.is_file() and '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def changes(before, after):
    "Names of the files that differ between two results of `contents`."
    return sorted(name for name in before | after if before.get(name) != after.get(name))

def main():
    "Export and clean in place; what changed is left changed, ready to be committed."
    before = contents()
    for command in ('nbdev_export', 'nbdev_clean'): subprocess.run([command], cwd=ROOT, check=True)
    late = [f'{name}: changed by export or clean' for name in changes(before, contents())]
    if not in_step(): late.append('README.md: not what nbs/index.ipynb gives')
    late += [f'{path.name}: does not list nbs/ as it is' for path, text in generated().items() if path.read_text(encoding='utf-8') != text]
    if late: sys.exit('\n'.join(['Out of step (make prepare mends it):', *late]))

if __name__ == '__main__': main()
