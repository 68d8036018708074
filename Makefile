# make reports   the quick series: trained, executed, exported; prints where the index is
# make test      format, lint, types, tests, and every notebook
# make lab       a working copy of the notebooks (lab/, yours to change) in JupyterLab
# make clean     removes what these made, but no training results
#
# PYTHON=python3.12 make ...   makes the environment with that Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS = $(sort $(wildcard notebooks/*/*.ipynb))

.PHONY: reports test lab clean
.DELETE_ON_ERROR:

reports: $(VENV)/.dlops
	$(BIN)/dlops run --preset quick --jobs 2

# The notebooks share one store: what two of them need, one trains while the other waits for it.
test: $(VENV)/.dlops-dev
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope
	@store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && \
	OMP_NUM_THREADS=1 DLOPS_PRESET=test DLOPS_STORE=$$store/results DLOPS_DATA=$$store/data \
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(NOTEBOOKS)

lab: $(VENV)/.dlops
	@mkdir -p lab && cp -Rn notebooks/. lab/ || true
	$(BIN)/python -m jupyterlab lab

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache reports/quick

# An environment that works is kept; it is installed into again only when the versions changed.
$(VENV)/.dlops: pyproject.toml constraints.txt
	@$(call environment)
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dlops-dev: pyproject.toml constraints.txt
	@$(call environment)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.dlops $@

define environment
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "dlops needs Python 3.11 or newer, and '$(PYTHON)' is not one: install it, or name another, as in 'PYTHON=python3.12 make'." >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv), then run make again." >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		echo "Note: dlops is tested on Python 3.11 and 3.12; should pip find no wheels for this newer one, use 'PYTHON=python3.12 make'."; \
	echo "Making $(VENV), which takes some minutes and, on Linux, about 5 GB (torch brings CUDA)."; \
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
fi
endef
