"""Packaging: everything is read from settings.ini. Each `NAME_requirements` there becomes the extra NAME.

experiments/ (catalogue, papermill templates, shipped models) lies at the top level, where people work on it, and is
installed inside the package as trm_nb/experiments: `package_dir` maps it there for wheels and for `pip install -e`.
`trm_nb.data.resources.experiments_path` finds it in an installed package and in a clone alike.
"""
import shlex
from configparser import ConfigParser
from pathlib import Path
import setuptools

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib, suffix, readme = cfg['lib_path'], '_requirements', here/'README.md'

setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Framework :: Jupyter',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=[*setuptools.find_packages(include=[lib, lib + '.*']), f'{lib}.experiments'],
    package_dir={f'{lib}.experiments': 'experiments'}, package_data={f'{lib}.experiments': ['*', '**/*'], f'{lib}.explore': ['static/*']},
    install_requires=shlex.split(cfg['requirements']),
    extras_require={key.removesuffix(suffix): shlex.split(value) for key, value in cfg.items() if key.endswith(suffix)},
    python_requires='>=' + cfg['min_python'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown', zip_safe=False,
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
