# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint type clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train three networks on generated creatures and compare them
	$(BIN)/geodl -m experiment=creatures/flat_mlp,creatures/pointnet,creatures/diffusionnet

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/pyright

clean:
	rm -rf .venv build dist outputs/* *.egg-info .pytest_cache .ruff_cache
