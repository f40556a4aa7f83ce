# Each target sets up what it needs: Python 3.11 or newer, make and the package registry are enough.
#   make demo    train the quickstart grid and print its table     make lint    ruff and mypy
#   make test    the test suite                                    make bench   speed, as ratios
#   make clean   remove what make built

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
TEST_PROCESSES ?= logical
BENCH_ARGS ?=

.PHONY: demo test bench lint clean

demo: $(INSTALLED)
	@$(BIN)/codetr run ablations/quickstart.yaml
	@echo "Next: source $(BIN)/activate, then"
	@echo "  codetr report ablations/quickstart.yaml    one page, tables and figures, in reports/"
	@echo "  codetr ui                                  the trials in MLflow"
	@echo "  codetr --help                              everything else"

# Python keeps what it has compiled, whatever the environment says: the tests start it some two hundred times.
test: $(INSTALLED)
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# The suites are listed in benchmarks/__main__.py; BENCH_ARGS="ops --threads 2 --json" runs one of them, for machines.
bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# pip writes to a log, and its temporary files into $(VENV); every 10 s one line tells how much is there and what pip is
# doing. The stamp makes later calls skip all this.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3.11 or python3 found; name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11; name another: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): one to three minutes, once; 2 GB, or 6 with a torch for CUDA (PyPI's on Linux)"
	@$(PYTHON) -m venv $(VENV)
	@log=$(VENV)/install.log; : > $$log; start=$$(date +%s); mkdir -p $(VENV)/tmp; \
	( while sleep 10 > /dev/null && kill -0 $$$$ 2> /dev/null; do \
	    printf '  %3d s  %4d MB  %3d packages  %.90s\n' $$(( $$(date +%s) - start )) $$(du -sm $(VENV) 2> /dev/null | cut -f 1) \
	        $$(ls $(VENV)/lib/python3*/site-packages 2> /dev/null | grep -c 'dist-info$$') \
	        "$$(grep -Ev '^WARNING|ninstall|Found existing' $$log | tail -n 1 | sed 's/^ *//; s/^Installing collected.*/Installing/; s/^Successfully.*/Cleaning up/')"; \
	done ) & beat=$$!; \
	TMPDIR="$(CURDIR)/$(VENV)/tmp" $(BIN)/python -m pip install --progress-bar off -c constraints.txt torch -e '.[dev]' > $$log 2>&1; status=$$?; \
	kill $$beat; rm -rf $(VENV)/tmp; \
	if [ $$status -ne 0 ]; then tail -n 20 $$log; echo "Installing failed; the whole log: $$log"; exit 1; fi; \
	echo "Set up in $$(( $$(date +%s) - start )) s"
	@touch $@
