# Works with nothing but Python >= 3.11: an active virtual environment is used, otherwise .venv is made.
# Paths stand in quotation marks, and are no targets: they may hold blanks.
PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.b4m-installed
PIP_INSTALL := "$(BIN)/python" -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help install run studio test types tests checks corpus pretrain viz docs

help: ## say what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## install this project and what it needs
	@test -x "$(BIN)/python" || $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=<one>')"
	@test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	@if ! test -f "$(INSTALLED)" || test -n "$$(find pyproject.toml constraints.txt -newer "$(INSTALLED)")"; then \
		$(PIP_INSTALL) -e ".[dev]" && touch "$(INSTALLED)"; \
	fi

run: install ## break and make the default pair of content and style
	"$(BIN)/kedro" run --pipelines=break_make
	@echo "Contact sheet: $(CURDIR)/data/08_reporting/contact_sheet.png"
	@echo "Runs and models: $(BIN)/kedro mlflow ui"

studio: install ## compose, train and look at results in the browser
	$(PIP_INSTALL) -q -e ".[studio]"
	$(BIN)/kedro studio

test: install ## check format, layers and types, and test
	"$(BIN)/ruff" check
	"$(BIN)/ruff" format --check --quiet
	"$(BIN)/lint-imports" --no-logo
	@$(MAKE) --no-print-directory -j 2 types tests  # at once: types are looked at by one process

types:
	"$(BIN)/mypy"

tests:
	"$(BIN)/pytest" -n $$("$(BIN)/python" -c "import os; print(min(4, os.cpu_count() + 1))") --dist loadfile --no-loadscope-reorder

checks: install ## the slow tests: notebooks, a library on Ray, a spoilt make, the making of the base, Kedro-Viz (needs Chromium)
	$(PIP_INSTALL) -q -e ".[dev,notebooks]"
	"$(BIN)/pytest" -m slow

corpus: install ## fetch the drawings that the embedded base model is trained on (needs npm)
	cd data/01_raw/corpus && npm install --no-audit --no-fund

pretrain: install ## train the embedded base model anew (after make corpus)
	"$(BIN)/kedro" run --pipelines=pretrain

viz: install ## show pipelines and pictures in the browser
	"$(BIN)/kedro" viz run --include-hooks

docs: install ## build the documentation into site/
	$(PIP_INSTALL) -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict
