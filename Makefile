# Commands of the project. Everything a fresh machine needs beside Debian, Rust
# and Python 3 is installed by `make setup` (into .venv).
#
#   make demo       the main job on real data, from nothing
#   make test       every test that needs no GPU
#   make gpu-test   the tests that need one (Python with torch, g++; no Rust)
#   make bench      benchmarks, with their baselines in the same run
#   make build      target/release/libhypatia.so and hypatia-opt
#   make install PREFIX=/usr/local
#   make lint       formatting, clippy, docs

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PREFIX ?= /usr/local
LIBRARY := target/release/libhypatia.so

# LibTorch: tch's variables in tch's order, then .venv (build/libtorch.rs).
ifdef LIBTORCH_USE_PYTORCH
PYTHON ?= $(if $(VIRTUAL_ENV),python,python3)
else ifdef LIBTORCH
PYTHON ?= python3
else
PYTHON := .venv/bin/python
SETUP := .venv/.installed
endif
# For tch, which does not look into .venv, and for programs that load LibTorch.
TORCH_DIR = $${LIBTORCH:-$$($(PYTHON) -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))")}
# cmake, ninja and clang-format come as wheels.
WITH_TOOLS = export PATH="$(CURDIR)/.venv/bin:$$PATH"

# For build_info; see git_revision in build/main.rs.
export HYPATIA_GIT_REVISION := $(shell git describe --always --abbrev=12 --dirty=+ 2>/dev/null || echo unknown)

.PHONY: help setup build test test-rust test-python test-cpp test-build test-memory demo bench gpu-test gpu-bundle \
	install lint format clean

# Plans that were timed before must not decide what is tested.
test-rust test-python test-cpp: export HYPATIA_PLAN_CACHE := 0

help:
	@sed -n 's/^#   //p' Makefile

setup: $(SETUP)

.venv/.installed: requirements-dev.txt
	@command -v g++ >/dev/null || { echo "hypatia: expected g++, got none; installing it"; \
		apt-get update -qq && apt-get install -y -qq g++; }
	python3 -m venv .venv || { apt-get update -qq && apt-get install -y -qq python3-venv \
		&& python3 -m venv .venv; }
	@echo "Installing torch and the test tools into .venv (5 GB, some minutes) ..."
	.venv/bin/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

build: $(SETUP)
	cargo build --release

test: test-rust test-python test-cpp test-build

test-rust: $(SETUP)
	cargo test --no-default-features --lib
	export LIBTORCH="$(TORCH_DIR)"; export LD_LIBRARY_PATH="$$LIBTORCH/lib:$${LD_LIBRARY_PATH:-}"; \
	cargo test --features tch

test-python: build
	$(WITH_TOOLS); $(PYTHON) -m pytest -q tests/python

test-cpp: build
	$(WITH_TOOLS); tests/consumer/run.sh "$(PYTHON)"

test-build:
	tests/build/run.sh

# The CPU kernels' tests under valgrind (Debian's package), five minutes. It has no
# AVX-512, so AVX2; left out is what asks which CPU this is.
test-memory:
	cargo test --release --no-default-features --lib --no-run
	valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
		$$(ls -t target/release/deps/hypatia-* | grep -v '\.' | head -1) cpu:: --test-threads=1 \
		--skip the_kernel_says_the_same --skip measures_where_it_chooses

demo: build
	$(WITH_TOOLS); $(PYTHON) examples/digits/demo.py

bench: build
	$(PYTHON) benches/bench.py

# The library and the Rust test programs, stripped, to copy to another machine.
gpu-bundle: build
	export LIBTORCH="$(TORCH_DIR)"; rm -rf target/gpu; mkdir -p target/gpu; \
	cargo test --features tch --test tch_ops --no-run --message-format=json \
		| sed -n 's/.*"executable":"\([^"]*tch_ops-[^"]*\)".*/\1/p' \
		| xargs -I{} cp {} target/gpu/tch_ops; \
	cp $(LIBRARY) target/gpu/; strip target/gpu/*; ls -l target/gpu

# Needs what `make build` made (here or on another machine), not Rust.
gpu-test:
	python3 tests/gpu/run.py

install: build
	$(WITH_TOOLS); cmake -S cmake -B target/cmake -DCMAKE_INSTALL_PREFIX="$(PREFIX)" \
		-DHYPATIA_LIBTORCH="$(TORCH_DIR)" && cmake --install target/cmake

lint: $(SETUP)
	cargo fmt --check
	$(WITH_TOOLS); clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh')
	export LIBTORCH="$(TORCH_DIR)"; cargo clippy --all-targets --features tch -- -D warnings
	export LIBTORCH="$(TORCH_DIR)"; RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features tch

format: $(SETUP)
	cargo fmt
	$(WITH_TOOLS); clang-format -i $$(git ls-files '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh')

clean:
	cargo clean
