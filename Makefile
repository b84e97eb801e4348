# `make app` and `make test` set up all that they need; the rest is for those who work on mergelab.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: app test bench format assets vendor clean

app: $(VENV)/app
	$(BIN)/python app.py

test: $(VENV)/test chromium
	$(BIN)/python -m pytest

bench: $(VENV)/test  ## matrices and whole merges, as tables; MERGEKIT=PYTHON: an interpreter that has mergekit
	$(BIN)/python benchmarks/jobs.py $(if $(MERGEKIT),--mergekit $(MERGEKIT))

format: $(VENV)/test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

assets: $(VENV)/test  ## train the bundled experts again (minutes), then make the first pictures
	$(BIN)/pip install -q -r assets/train/requirements.txt
	$(BIN)/python assets/train/train_numbers.py
	$(BIN)/python assets/train/train_digits.py
	$(BIN)/python assets/make_analyses.py
	$(BIN)/python assets/make_story.py
	$(BIN)/python assets/make_scores.py
	$(BIN)/python assets/make_lessons.py

vendor:  ## fetch the light bundle of plotly.js: make vendor VERSION=4.1.1
	cd assets/vendor && npm pack --silent plotly.js-cartesian-dist-min@$(VERSION) \
	  && tar -xzf *.tgz --strip-components=1 package/plotly-cartesian.min.js package/LICENSE && rm *.tgz

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/app: $(VENV)/bin/python requirements.txt pyproject.toml
	$(BIN)/pip install -q -e . -c requirements.txt
	touch $@

$(VENV)/test: $(VENV)/bin/python requirements.txt pyproject.toml
	$(BIN)/pip install -q -e '.[test]' -c requirements.txt
	touch $@ $(VENV)/app

# The browser tests drive a Chromium: the one that is here, else Debian's.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || (apt-get update -qq && apt-get install -y -qq chromium) \
	  || (echo "The browser tests need Chromium: install it, then run 'make test' again." >&2; exit 1)
	@command -v curl >/dev/null || (apt-get update -qq && apt-get install -y -qq curl) \
	  || (echo "The README's calls need curl: install it, then run 'make test' again." >&2; exit 1)
