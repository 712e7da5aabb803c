# Each target does its own set-up in .venv and says what it did.
PY := .venv/bin/python
PATHS := src tests tools benchmarks examples

.PHONY: help demo test check format lint types layers fast bench abi fuzz coverage clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo:  ## take a captured server's NVMe drive through VFIO and give it back
	@tools/setup.sh run
	@$(PY) -m vfiokit demo

test:  ## every test, the slow ones included
	@tools/setup.sh dev
	@tools/qemu_root.sh >/dev/null || echo "tests that need a newer QEMU will be skipped" >&2
	$(PY) -m pytest -q -n auto --dist worksteal

check: format lint types layers fast  ## the fast loop: format, lint, types, layers, fast tests

format:  ## is every file formatted?
	@tools/setup.sh dev
	$(PY) -m ruff format --check $(PATHS)

lint:
	@tools/setup.sh dev
	$(PY) -m ruff check $(PATHS)

types:
	@tools/setup.sh dev
	$(PY) -m mypy

layers:
	@tools/setup.sh dev
	.venv/bin/lint-imports

fast:
	@tools/setup.sh dev
	$(PY) -m pytest -q -n auto -m "not slow"

bench:  ## ratios against a peer or a floor measured in the same run
	@tools/setup.sh dev
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(PY) $$file || exit 1; done

abi:  ## refresh the recorded numbers of the installed kernel headers
	@tools/setup.sh dev
	$(PY) tools/abi_probe.py

fuzz:  ## every fuzz target for a minute
	@tools/setup.sh fuzz
	@for file in tests/fuzz/fuzz_*.py; do echo "== $$file"; \
		$(PY) $$file -max_total_time=60 || exit 1; done

coverage:  ## which lines the tests reach
	@tools/setup.sh dev
	$(PY) -m coverage run -m pytest -q
	$(PY) -m coverage report --skip-covered

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
