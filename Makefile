# A front for scripts/ and the presets of CMakePresets.json. `make help` lists what there is.
SHELL := /bin/bash
CACHE := $(or $(ASSAY_CACHE),$(HOME)/.cache/assay)
JOBS  := $(or $(JOBS),$(shell nproc))
# Configured again when scripts/setup has fetched another oneDNN; for the rest ninja knows by itself.
INPUTS := $(wildcard $(CACHE)/deps/onednn/.pins $(CACHE)/venv/.requirements.sha256)
.DEFAULT_GOAL := help
.PHONY: help serve build test sanitize check check-slow accuracy live-rules dashboard-images soak format fuzz hostile bench clean setup
.PRECIOUS: build/%/build.ninja

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: setup ## Serve the demo models: set up, build, fetch them, start the server (ARGS="--help": its flags)
	@$(MAKE) -s --no-print-directory build
	@scripts/serve $(ARGS)

build: build/release/build.ninja ## Build the two programs, optimized: build/release/{server/assay-server,cli/assay}
	@scripts/build release $(JOBS)

test: setup ## Build everything and run all tests; prints the totals
	@$(CACHE)/venv/bin/python scripts/get_helm.py
	@$(MAKE) -s --no-print-directory build/dev/build.ninja
	@scripts/build dev $(JOBS)
	@scripts/test dev

sanitize: setup ## Tests of base, quant and engine under ASan and UBSan (PRESET=tsan: under ThreadSanitizer)
	@$(MAKE) -s --no-print-directory build/$(or $(PRESET),asan)/build.ninja
	@scripts/build $(or $(PRESET),asan) $(JOBS)
	@scripts/test $(or $(PRESET),asan)

check: ## Static checks: format, clang-tidy on changed files, thread-safety analysis
	@scripts/setup --checks
	@$(MAKE) -s --no-print-directory build/tidy/build.ninja
	@scripts/check $(JOBS)

format: ## Format what is changed or new since main
	@scripts/setup --checks
	@scripts/check --format

fuzz: ## Run each fuzz target for SECONDS=60, or all for TOTAL=seconds (TARGETS="gguf rpc": these); prints the table of all runs
	@scripts/setup --checks
	@$(MAKE) -s --no-print-directory build/fuzz/build.ninja
	@scripts/build fuzz $(or $(JOBS),$(shell nproc)) fuzz_targets
	@scripts/fuzz $(if $(TOTAL),--total $(TOTAL),$(or $(SECONDS),60)) $(TARGETS)

hostile: build/dev/build.ninja ## Load FILES=10000 damaged files of every format, as the server does (SEED=1)
	@scripts/build dev $(or $(JOBS),$(shell nproc)) mutate_checkpoints
	@build/dev/tests/fuzz/hostile/mutate_checkpoints --files $(or $(FILES),10000) --seed $(or $(SEED),1) --keep build/dev/hostile

check-slow: SLOW_MODELS = $(or $(ASSAY_MODELS),$(CACHE)/models)
check-slow: setup build/dev/build.ninja ## Real models admitted, and compared with transformers: minutes (TEXT=file, WINDOWS=n of 512 tokens)
	@scripts/fetch_models > /dev/null
	@scripts/build dev $(JOBS) model_eval real_models_test
	@ASSAY_MODELS=$(SLOW_MODELS) build/dev/tests/slow/real_models_test
	@test -x $(CACHE)/venv-slow/bin/python || python3 -m venv $(CACHE)/venv-slow
	@$(CACHE)/venv-slow/bin/pip install --quiet -r tests/slow/requirements.txt
	@$(CACHE)/venv-slow/bin/python tests/slow/check_models.py build/dev/tests/slow/model_eval \
	  $(SLOW_MODELS) $(or $(TEXT),data/evaluation/wikitext2-extract.txt) --windows $(or $(WINDOWS),0)
	@scripts/build dev $(JOBS) spoilable_server
	@$(CACHE)/venv/bin/python loadtest/scenarios/drift.py --model $(wildcard $(SLOW_MODELS)/smollm2/1/*.gguf) --requests 60 \
	  --only memory --without-prometheus

accuracy: setup build/dev/build.ninja ## Every recipe on the off-grid twin, MiniLM and SmolLM2, llama.cpp beside it: an hour (RECIPES=a,b)
	@scripts/fetch_models > /dev/null
	@scripts/build dev $(JOBS) assay model_eval
	@test -x $(CACHE)/venv-slow/bin/python || python3 -m venv $(CACHE)/venv-slow
	@$(CACHE)/venv-slow/bin/pip install --quiet -r tests/slow/requirements.txt -r tests/slow/requirements-peer.txt
	@test -f $(CACHE)/twin/smollm2.gguf || { mkdir -p $(CACHE)/twin && $(CACHE)/venv-slow/bin/python tests/slow/make_twin.py \
	  $(wildcard $(CACHE)/models/smollm2/1/*.gguf) $(CACHE)/twin/smollm2.gguf; }
	@$(CACHE)/venv-slow/bin/python tests/slow/accuracy_table.py --build build/dev --recipes "$(RECIPES)" --peer twin --eight-bit smollm2 \
	  --model twin=$(CACHE)/twin/smollm2.gguf --model minilm=$(CACHE)/models/minilm/1 \
	  --model smollm2=$(wildcard $(CACHE)/models/smollm2/1/*.gguf)

live-rules: setup build/dev/build.ninja ## Rules and dashboards against a real Prometheus under load and faults: six minutes (ARGS="--help")
	@scripts/build dev $(JOBS) assay-server assay
	@ASSAY_BUILD_DIR=$(CURDIR)/build/dev $(CACHE)/venv/bin/python tests/slow/prometheus_live.py $(or $(ARGS),--drift-stand-in)

dashboard-images: setup build/dev/build.ninja ## Draw the dashboards from such a run into docs/images
	@scripts/build dev $(JOBS) assay-server assay
	@test -x $(CACHE)/venv-slow/bin/python || python3 -m venv $(CACHE)/venv-slow
	@$(CACHE)/venv-slow/bin/pip install --quiet -r tests/slow/requirements-plots.txt
	@ASSAY_BUILD_DIR=$(CURDIR)/build/dev $(CACHE)/venv/bin/python tests/slow/prometheus_live.py --drift-stand-in --record build/dev/panels.json
	@$(CACHE)/venv-slow/bin/python deploy/grafana/draw_panels.py build/dev/panels.json docs/images

soak: setup build/dev/build.ninja ## 64 streaming clients for a minute, cancellations, deadlines, then SIGTERM under load
	@scripts/build dev $(JOBS)
	@ASSAY_BUILD_DIR=$(CURDIR)/build/dev $(CACHE)/venv/bin/python loadtest/soak.py

bench: setup ## Build the benchmarks: build/bench/tests/bench (kernels), build/bench/loadtest (engine, server)
	@$(MAKE) -s --no-print-directory build/bench/build.ninja
	@scripts/build bench $(JOBS)

clean: ## Remove build/ (what is under ~/.cache/assay stays)
	rm -rf build

setup: ## Install what is missing: Debian packages, Python tools, oneDNN
	@scripts/setup

build/%/build.ninja: CMakePresets.json $(INPUTS)
	@echo "configuring $* ..."
	@cmake --preset $* > build-$*.log 2>&1 || { cat build-$*.log; rm -f build-$*.log; exit 1; }
	@grep -E 'oneDNN' build-$*.log || true; rm -f build-$*.log
	@touch $@
