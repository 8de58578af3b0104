.PHONY: setup quality style test

setup:  ## an editable install with everything a developer needs
	pip install -e ".[dev]" -c constraints.txt

quality:  ## what is wrong, changed by nobody
	ruff check . && ruff format --check . && mypy

style:  ## what can be mended by a machine
	ruff check --fix . && ruff format .

test:
	pytest
