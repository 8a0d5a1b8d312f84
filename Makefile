# DPM-Solver nodes: set-up, demonstration and tests. `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-ui lab-pictures pictures locales lint test test-fast test-all test-webui compatibility validate bench-quality \
	bench-quick clean
.DELETE_ON_ERROR:

PYTHON ?= python3
TORCH ?= torch==2.13.0 torchvision==0.28.0

# Processes of the tests, each with a ComfyUI of its own.
JOBS ?= 2
# The page and the templates of a newer ComfyUI than 0.30.0.
PAGE ?= 1.58.1
TEMPLATES ?= 0.1.123

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# The uv on the PATH, or the one in the virtual environment.
UV = "$$(command -v uv || echo $(VENV)/bin/uv)"
INSTALL = $(UV) pip install --python $(PY)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv: torch, a real ComfyUI's requirements, the pack (PYTHON=python3.12 at the first time chooses the Python)

$(READY): requirements-test.txt requirements-override.txt pyproject.toml
	@echo "Setting up $(VENV) (the first time downloads torch, some minutes)"
	@test -x $(PY) \
		|| { command -v uv >/dev/null && uv venv --quiet --allow-existing --python $(PYTHON) $(VENV); } \
		|| $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	@$(INSTALL) $(TORCH) -r "$$($(PY) tools/server.py)/requirements.txt" \
		-r requirements-test.txt --override requirements-override.txt
	@$(INSTALL) --no-deps -e .
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/dpm_solver_nodes
	@touch $@

# Small networks on few cores: more threads only wait for each other.
demo lab-pictures pictures test test-fast test-all test-webui compatibility bench-quality bench-quick: export OMP_NUM_THREADS ?= 1

demo: $(READY)  ## sample emoji in a real ComfyUI with many samplers and save the picture grids
	@$(PY) -m dpm_solver_nodes.demo.run

demo-ui: $(READY)  ## keep ComfyUI running and open the demo's graph in the browser
	@$(PY) -m dpm_solver_nodes.demo.run --ui

lab-pictures: $(READY)  ## compare samplers in a real ComfyUI and save the plots and the grid of the pages in docs
	@$(PY) -m dpm_solver_nodes.tools.lab_pictures

pictures: $(READY)  ## make the pictures of templates, help pages, README and docs, from ComfyUI's own page (needs Chromium)
	@$(PY) -m dpm_solver_nodes.tools.pictures

locales: $(READY)  ## write locales/en from the nodes, and list what the other languages lack
	@$(PY) -m dpm_solver_nodes.tools.translations

lint: $(READY)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	MYPYPATH=$(VENV)/typing $(VENV)/bin/mypy -p dpm_solver_nodes

test-fast: $(READY)  ## while you work: a minute, one sampler per path through the code, no ComfyUI
	WEBUI_PATH= $(VENV)/bin/pytest -n $(JOBS) --few-samplers tests --each-value-once -m "not slow" \
		tests/samplers tests/hosts tests/lab tests/docs tests/webui

test: lint  ## lint, unit tests, and tests on ComfyUI 0.30.0 (one sampler per path through the code)
	$(VENV)/bin/pytest -n $(JOBS) --dist loadfile --few-samplers tests/comfyui

test-all: lint  ## all samplers, on ComfyUI 0.30.0, 0.24.0 and 0.16.3, with every workflow and template, on a newer page too
	COMFYUI_VERSIONS=0.30.0,0.24.0,0.16.3 FUZZ_PROMPTS=700 WORKFLOWS=all BENCHMARK_PEERS=1 \
		$(VENV)/bin/pytest -n $(JOBS) --dist loadfile
	COMFYUI_FRONTEND=$(PAGE) COMFYUI_TEMPLATES=$(TEMPLATES) WORKFLOWS=all $(VENV)/bin/pytest -n $(JOBS) --dist loadfile \
		tests/comfyui/test_templates.py tests/comfyui/test_subgraphs.py tests/comfyui/test_short_menu.py \
		tests/comfyui/test_languages.py tests/comfyui/test_calibration_menu.py \
		tests/comfyui/test_workflows.py

test-webui: $(READY)  ## every sampler on a real webui: WEBUI_PATH=<its folder> make test-webui
	@test -n "$(WEBUI_PATH)" || { echo "Name an installed Forge, Forge Neo or AUTOMATIC1111 of 1.9 or later:" \
		"WEBUI_PATH=<its folder> make test-webui"; exit 1; }
	WEBUI_PATH="$(WEBUI_PATH)" $(VENV)/bin/pytest tests/webui

compatibility: $(READY)  ## measure the table of docs/compatibility.md: other ComfyUIs, Pythons and torches (downloads many GB, about an hour)
	@$(PY) -m dpm_solver_nodes.tools.compatibility

validate: $(READY)  ## run the Comfy Registry's check before publishing (fetches comfy-cli)
	@$(UV) tool run --from comfy-cli comfy --skip-prompt --no-enable-telemetry node validate

bench-quality: $(READY)  ## errors of all solvers, ours and others', on the exact models to judge on (hours)
	@$(PY) -m dpm_solver_nodes.benchmarks.judge_catalogue

bench-quick: $(READY)  ## the same on a stand-in for a large model and on digits (5 min)
	@$(PY) -m dpm_solver_nodes.benchmarks.judge_catalogue --problems 3 11

clean:  ## remove .venv and what tools left (downloads stay in the cache folder)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
