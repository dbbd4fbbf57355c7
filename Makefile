# Each target does its own set-up in a virtual environment of the project; see `make help`.

PYTHON ?= python3
VENV ?= .venv
ACCEL ?= cpu
PARITY ?=
TORCH ?= torch
BENCH ?= decode
TRAIN ?= smoke --out runs/smoke
JAX_VERSION ?=
FLAX_VERSION ?=
EXTRA_PINS ?=
PYTEST_ARGS ?=
# Processes of `make test`; each takes up to 4 GB.
WORKERS ?= 2

ifneq ($(words $(ACCEL)) $(filter $(ACCEL),cpu cuda12 cuda13 tpu),1 $(ACCEL))
  $(error ACCEL is '$(ACCEL)', expected cpu, cuda12, cuda13 or tpu)
endif
ifneq ($(filter-out 0 1,$(PARITY)),)
  $(error PARITY is '$(PARITY)', expected 1 (install torch, run the parity tests) or nothing)
endif
export PARITY

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --quiet --disable-pip-version-check
# Each requirement is quoted: `>` and `<` are the shell's otherwise.
PINS := $(if $(JAX_VERSION),'jax==$(JAX_VERSION)' 'jaxlib==$(JAX_VERSION)') \
        $(if $(FLAX_VERSION),'flax==$(FLAX_VERSION)') $(foreach pin,$(EXTRA_PINS),'$(pin)')
BASE := $(if $(filter cpu,$(ACCEL)),.,.[$(ACCEL)])

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs notebooks help demo train test test-nightly test-tpu-plan tpu-plan-tests lint format wheel-check notebooks-check bench install clean FORCE

help:
	@echo "make demo          the small model inside completes and infills; the first run installs, minutes"
	@echo "make train         python -m train; TRAIN='smoke --out runs/smoke' by default"
	@echo "make test          the test suite, on the CPU"
	@echo "make test-nightly  the long tests: the exact 164M shape, long statistics"
	@echo "make test-tpu-plan compile for TPUs that are not there, report the memory; long too"
	@echo "make lint          ruff: rules and formatting; pyrefly: types; changes nothing"
	@echo "make format        ruff: apply both"
	@echo "make wheel-check   the wheel alone, in an environment of its own, runs the demo; needs an index"
	@echo "make notebooks-check  the notebooks' first cell beside preinstalled versions; needs an index"
	@echo "make docs          write docs/api from the docstrings"
	@echo "make notebooks     write colab/*.ipynb and the badges from their sources"
	@echo "make bench         one benchmark; BENCH=$(BENCH)"
	@echo "make install       the package alone, into $(VENV)"
	@echo "make clean         remove environments, caches and build outputs"
	@echo
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or newer)  VENV=$(VENV)  ACCEL=$(ACCEL) (cpu cuda12 cuda13 tpu)"
	@echo "  PARITY=1 installs torch and transformers: the parity tests run too, bench measures both;"
	@echo "  TORCH is handed to pip as it is: make test PARITY=1 TORCH=torch==2.13.0"
	@echo "  JAX_VERSION, FLAX_VERSION, EXTRA_PINS (pip requirements) pin versions;"
	@echo "  PYTEST_ARGS goes to pytest; WORKERS=$(WORKERS) processes run the tests, up to 4 GB each"

PARITY_STAMP := $(if $(filter 1,$(PARITY)),$(VENV)/parity.stamp)

demo: $(VENV)/base.stamp $(PARITY_STAMP)
	@$(RUN) -m jaxcoder demo

train: $(VENV)/train.stamp
	@$(RUN) -m train $(TRAIN)

# The standard library suffices: nothing is installed.
docs: | $(RUN)
	@$(RUN) docs/build_api.py

notebooks: $(VENV)/test.stamp
	@$(RUN) -m colab.build

bench: $(VENV)/base.stamp $(PARITY_STAMP)
	@$(RUN) -m benchmarks.$(BENCH)

install: $(VENV)/base.stamp
	@echo "jaxcoder is installed in $(VENV)"

test: $(VENV)/test.stamp $(PARITY_STAMP)
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# One after the other: they fill memory and measure it.
test-nightly: $(VENV)/test.stamp $(PARITY_STAMP)
	@$(RUN) -m pytest -m nightly $(PYTEST_ARGS)

# In an environment of its own: where libtpu is, each start of JAX looks for a TPU and says so.
test-tpu-plan:
	@$(MAKE) --no-print-directory VENV=$(VENV)-tpu-plan tpu-plan-tests

tpu-plan-tests: $(VENV)/tpu-plan.stamp
	@$(RUN) -m pytest -m '' tests/test_train_plan.py $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pyrefly check --python-interpreter-path $(RUN)

# Builds the wheel, installs it into a bare environment and runs the demo from there.
wheel-check: | $(RUN)
	@$(RUN) tests/wheel_check.py $(PINS)

# JAX_VERSION, FLAX_VERSION and EXTRA_PINS are what is preinstalled there.
notebooks-check: $(VENV)/test.stamp
	@PYTHONPATH=. $(RUN) tests/notebooks_check.py $(PINS)

format: $(VENV)/dev.stamp
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean:
	rm -rf .venv .venv-tpu-plan .venv-ci-* build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One line that names what is missing, or nothing. The interpreter prints its version and the
# shell compares it, so that Python 2 gets its answer too.
python_problem = $(strip $(shell \
  version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
  case "$$version" in \
    ("") echo "$(PYTHON) does not run; install Python 3.11 or newer \
      (apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3";; \
    (3.1[1-9]|3.[2-9][0-9]|[4-9].*) \
      $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
      echo "$(PYTHON) has no venv or ensurepip module; install it (apt install python3-venv)";; \
    (*) echo "$(PYTHON) is Python $$version, expected 3.11 or newer; install one \
      (apt install python3.11 python3.11-venv) and name it: make PYTHON=python3.11";; \
  esac))

# pip comes in a step of its own, and that step can be repeated: an interruption leaves no
# environment without pip behind.
$(RUN):
	@$(if $(python_problem),$(error $(python_problem)))
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --without-pip $(VENV)

# An environment is never remade unasked. An interpreter and an environment made with it agree on
# the installation and the version, whatever name each is called by.
IDENTITY := import sys; print(sys.version.split()[0], "in", sys.base_prefix)
python_mismatch = $(strip $(shell \
  asked=$$($(PYTHON) -c '$(IDENTITY)'); found=$$($(RUN) -c '$(IDENTITY)'); \
  [ "$$asked" = "$$found" ] || echo "$(VENV) was made with Python $$found, but \
    PYTHON=$(PYTHON) is Python $$asked; remove $(VENV) or name another environment: VENV=FOLDER"))
is_python_given := $(filter command environment,$(origin PYTHON))
refused_python = $(strip $(if $(and $(is_python_given),$(wildcard $(RUN))),\
  $(or $(python_problem),$(python_mismatch))))

# These hold the variables that decide what is installed: a change of one is an installation.
$(VENV)/settings: export SETTINGS := $(BASE) $(PINS)
$(VENV)/parity.settings: export SETTINGS := $(TORCH)
$(VENV)/settings $(VENV)/parity.settings: FORCE | $(RUN)
	@$(if $(refused_python),$(error $(refused_python)))
	@[ "$$(cat $@ 2>/dev/null)" = "$$SETTINGS" ] || printf '%s\n' "$$SETTINGS" > $@

$(VENV)/base.stamp: pyproject.toml $(VENV)/settings
	@echo "Installing jaxcoder and its libraries ($(ACCEL)) into $(VENV)"
	@$(RUN) -m ensurepip --default-pip >/dev/null
	@$(PIP) --editable '$(BASE)' $(PINS)
	@touch $@

$(VENV)/train.stamp $(VENV)/test.stamp $(VENV)/dev.stamp: $(VENV)/%.stamp: $(VENV)/base.stamp
	@echo "Installing what '$*' needs into $(VENV)"
	@$(PIP) --editable '.[$*]' $(PINS)
	@touch $@

$(VENV)/tpu-plan.stamp: $(VENV)/test.stamp
	@echo "Installing libtpu into $(VENV)"
	@$(PIP) --editable '.[tpu-plan]' $(PINS)
	@touch $@

# torch by itself first: a CPU build that TORCH names satisfies the extra, which names none. When
# TORCH has changed, pip has to replace a build of the same version too.
TORCH_ARGUMENTS := $(foreach argument,$(TORCH),'$(argument)')
$(VENV)/parity.stamp: $(VENV)/test.stamp $(VENV)/parity.settings
	@echo "Installing $(TORCH) and transformers into $(VENV)"
	@$(if $(filter %/parity.settings,$?),$(PIP) --force-reinstall --no-deps $(TORCH_ARGUMENTS))
	@$(PIP) $(TORCH_ARGUMENTS)
	@$(PIP) --editable '.[parity]' $(PINS)
	@touch $@
