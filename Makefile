PYTHON ?= python3
BOOTSTRAP = cd $(CURDIR) && PYTHONPATH=bin $(PYTHON) -B -m bootstrap
VENV = $(CURDIR)/.venv/bin

.DEFAULT_GOAL := help
.PHONY: help up down purge test unit soak bench lint

help:   ## List these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

up:     ## Bring the platform up on this machine (root); again: change what is not as declared
	@$(BOOTSTRAP) up

down:   ## Stop the platform and Salt's daemons, keep all data
	@$(BOOTSTRAP) down

purge:  ## Remove every trace of the platform from this machine (YES=1: do not ask)
	@$(BOOTSTRAP) purge $(if $(YES),--yes)

test:   ## Run all tests (root); an engine is started for them where none runs
	@$(BOOTSTRAP) test

unit:   ## Run the quick tests
	@$(BOOTSTRAP) test unit

soak:   ## Change and break a platform at random under load (MINUTES=10 SEED=1, STEPS=7)
	@$(BOOTSTRAP) soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS))

bench:  ## Measure against the peers; a table, and bench.json
	@$(BOOTSTRAP) environment tests
	@cd $(CURDIR) && PYTHONPATH=bin $(VENV)/python -m tests.benchmarks

lint:   ## Check style and format of Python, YAML and states
	@$(BOOTSTRAP) environment tests
	@cd $(CURDIR) && $(VENV)/ruff check && $(VENV)/ruff format --check && $(VENV)/yamllint -s .
