# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint type docs clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train three networks on generated creatures and compare them
	@echo "Trains three networks on generated animals and compares them: about four minutes on two cores."
	@$(BIN)/geodl mode=table table=demo seed=0
	@echo "Next: source .venv/bin/activate && geodl mode=report"

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/pyright

docs: setup  ## README, tour, design, results and API as a site, in build/site
	$(BIN)/python scripts/docs.py

clean:
	rm -rf .venv build dist outputs/* *.egg-info .pytest_cache .ruff_cache
