# Needs only make and Python 3.11 to 3.13. The first call fills .venv; it is filled anew when the pins change.
PYTHON ?= python3
READY  := .venv/.ready
RUN    := PATH="$(CURDIR)/.venv/bin:$$PATH"
PACE   := OMP_NUM_THREADS=1

.PHONY: help demo test test-all lab docs docs-check readme prepare clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

DEMO := runs/demo

demo: $(READY) ## generate puzzles, train, evaluate, solve one: runs/demo/report.html; the shipped model on the hardest Sudokus
	@echo "== 3,600 puzzles, 600 of them held out"
	@$(RUN) trm data sudoku --source generate --size 6 --train 3000 --test 600 --out data/demo
	@mkdir -p $(DEMO)
	@echo "== training on this machine, some minutes (what the processes say: $(DEMO)/stderr.log)"
	@$(RUN) papermill experiments/train.ipynb $(DEMO)/train.ipynb -p preset demo -p overwrite True
	@$(RUN) jupyter nbconvert $(DEMO)/train.ipynb --to html --no-input --output report.html --log-level ERROR
	@echo "== the model that ships, on Sudokus that were called the hardest, each seen in eight forms"
	@$(RUN) trm solve sudoku-extreme experiments/hardest.txt --rollouts 8 --symmetries || true
	@$(RUN) trm solve sudoku-extreme "$$(sed -n 4p experiments/hardest.txt | cut -d' ' -f1)" --trace $(DEMO)/hardest.html > /dev/null
	@echo "== done: open $(DEMO)/report.html, and $(DEMO)/hardest.html, where the answer to one of them can be played update by update"
	@echo "   next: make lab (lessons), trm serve sudoku-extreme (a web page), trm train demo name=mine learn.lr=1e-3"

test: $(READY) ## notebooks and library in step, nbdev_test, pytest with coverage
	@echo "== notebooks, library and README in step"
	@$(RUN) python tests/tooling/check_sync.py
	@echo "== notebooks"
	@$(RUN) $(PACE) nbdev_test --n_workers 2 --timing
	@echo "== pytest"
	@$(RUN) $(PACE) python -m pytest tests -m "not slow" -n 2 --dist loadgroup --durations 10 --cov trm_nb --cov-config tests/tooling/coverage.ini --cov-report term

test-all: $(READY) docs-check ## the slow tier: every page, slow cells and slow tests
	@echo "== system packages"
	@sh tests/tooling/system_packages.sh
	@echo "== packages of the slow tier"
	@.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,wandb,trackio,arc,slurm,video,serve,slow]'
	@echo "== slow cells"
	@grep -rlE '"#\| *slow' nbs --include '*.ipynb' | $(RUN) $(PACE) xargs -r -n 1 nbdev_test --n_workers 0 --flags slow --path
	@echo "== slow tests"
	@$(RUN) $(PACE) python -m pytest tests -m slow --durations 10

lab: $(READY) ## JupyterLab on the tutorials
	$(RUN) jupyter lab --LabApp.default_url=/lab/tree/nbs/tutorials $$([ "$$(id -u)" != 0 ] || echo --allow-root)

docs: $(READY) ## the website in _docs, with Quarto
	@command -v quarto >/dev/null || { echo "Quarto is not installed (https://quarto.org/docs/get-started); make docs-check renders every page without it"; exit 1; }
	$(RUN) $(PACE) python tests/tooling/make_pages.py
	cd _proc && quarto render --no-cache
	rm -rf _docs && mv _proc/_docs _docs

docs-check: $(READY) ## render every page without Quarto; fail on broken pages, dead links and undocumented symbols
	@echo "== pages"
	@$(RUN) $(PACE) python tests/tooling/docs_check.py

readme: $(READY) ## README.md from nbs/index.ipynb
	@$(RUN) python tests/tooling/make_readme.py

prepare: $(READY) ## before a commit: export, clean, sidebar, reference, README
	@$(RUN) nbdev_export
	@$(RUN) nbdev_clean
	@$(RUN) python tests/tooling/make_sidebar.py
	@$(RUN) python tests/tooling/make_readme.py

clean: ## remove what was built; .venv, data and runs stay
	rm -rf _proc _docs build dist .pytest_cache .coverage coverage.xml
	find nbs tests trm_nb -name __pycache__ -prune -exec rm -rf {} +

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12" % v)'
	@echo "== filling .venv: some minutes the first time"
	@$(PYTHON) -m venv .venv || { echo "python3 cannot make an environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	.venv/bin/python -m pip install --constraint constraints.txt --editable '.[dev,wandb,tensorboard,arc,slurm]'
	@touch $@
