VENV   ?= .venv
PRESET ?= mini
ARGS   ?=
PINS   ?= constraints.txt
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
  $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

BIN   := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
PIP    = $(BIN)/python -m pip install --disable-pip-version-check -c $(PINS)
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env study rehearse test low site notebooks readme export clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PRESET=smoke|mini|emoji-small|emoji|paper   ARGS='more options'   VENV=.venv"

env: $(READY)  ## the environment, in .venv: 3.5 GB to download, 7 GB on disk

# A folder of metadata without RECORD is what an interrupted pip leaves; pip would take it for installed.
$(READY): settings.ini setup.py $(PINS)
	@test -n "$(PYTHON)" || { echo "ccd needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making $(VENV): 3.5 GB to download, 7 GB on disk. If it stops, make goes on where it was."
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@find $(VENV)/lib -name '*.dist-info' ! -exec test -e {}/RECORD \; -prune -exec rm -r {} +
	$(PIP) torch torchvision
	$(PIP) -e '.[cpu,emoji,logs,lora,language,fonts,ray,dev]'
	@$(BIN)/python -m pip check
	@touch $@

study: env  ## train CLIP and DINO under control, compare them, write runs/PRESET/report.html
	$(BIN)/ccd study --preset $(PRESET) $(ARGS)

rehearse: env  ## the paper's whole study, on small stand-ins of all its inputs, into runs/rehearsal
	$(BIN)/python tools/rehearse.py runs/rehearsal --check
	$(BIN)/python tools/rehearse.py runs/rehearsal --variants $(ARGS)

test: env  ## everything CI runs
	$(BIN)/python tools/check.py $(ARGS)

low:  ## the tests with the lowest versions that settings.ini admits, in .venv-low
	"$(PYTHON)" tools/low.py
	$(MAKE) test VENV=.venv-low PINS=constraints-low.txt ARGS=pytest

site: env  ## the site, into _docs/
	$(BIN)/python tools/site.py $(ARGS)

notebooks: env  ## run every notebook and store its outputs (ARGS='--skip slow')
	$(BIN)/python tools/run_nbs.py $(ARGS)

readme: env  ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

export: env  ## ccd/ from the notebooks
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

clean:  ## what make made, except the environment and runs/
	rm -rf _docs _proc _stage nbs/nbdev.yml .pytest_cache *.egg-info
	find ccd nbs tests tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
