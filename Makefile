# Needs only Python >= 3.11 and make: targets create .venv, and update it when it is out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# -q: the launcher adds no traceback to the script's own one-line error.
LAUNCH := $(BIN)/accelerate launch -q --config_file accelerate_configs/cpu.yaml
ARGS   ?=

.PHONY: help train test chaos reproduce bench quality style clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# pip compiles every module to bytecode on one core: compileall, which takes all of them, does it here. A few modules
# of others' packages, for other versions of Python, cannot be compiled; -qq and || true pass over them.
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib

define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: Python 3.11 or newer is needed; try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
$(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: requirements.txt pyproject.toml
	$(environment)
	$(PIP) -r requirements.txt
	@$(COMPILE) || true
	@touch $@

# All in one pip install, so that what the requirements pin stays.
$(VENV)/.installed-dev: requirements.txt pyproject.toml
	$(environment)
	$(PIP) -r requirements.txt -e '.[dev]'
	@# W&B's own sweep search, the reference in tests of ours. It requires NumPy 1 but runs with 2, hence --no-deps.
	$(PIP) --no-deps 'sweeps>=0.3,<0.4'
	@$(COMPILE) || true
	@touch $(VENV)/.installed $@

train: $(VENV)/.installed ## fine-tune the packaged MiniLM-L6 on rotten_tomatoes with BitFit (ARGS="--method lora ..." for more)
	$(LAUNCH) scripts/train.py --method bitfit $(ARGS)

test: $(VENV)/.installed-dev ## the whole test suite, offline (ARGS="-k adapter" for a part)
	@# loadscope: the tests of a file share fixtures that are slow to set up. At most four processes, because of memory.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

chaos: $(VENV)/.installed ## kill a run 30 times, resume it, compare bit by bit (ARGS="--kills 5 --seed 1")
	$(BIN)/python tests/chaos.py $(ARGS)

# GLUE=DIR reads MRPC and SST-2 from there; MODEL=bert-base-uncased is the model of the original report.
reproduce: $(VENV)/.installed ## methods x tasks x seeds, then report/index.html (GLUE=DIR MODEL=bert-base-uncased ARGS="--seeds 1,2")
	$(BIN)/python scripts/reproduce.py $(if $(GLUE),--data_dir $(GLUE)) $(if $(MODEL),--model_name_or_path $(MODEL)) $(ARGS)

bench: $(VENV)/.installed ## speed, memory and start-up beside transformers.Trainer (ARGS="--data_dir glue --rounds 5")
	$(BIN)/python -m benchmarks.speed $(ARGS)

quality: $(VENV)/.installed-dev ## ruff and mypy, nothing changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.installed-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and the tools' caches (never outputs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
