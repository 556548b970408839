# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint lock clean

setup: $(STAMP)

# uv, not pip: on some machines pip prefers a CPU build of torch for which no torchaudio wheel exists.
# deepspeed has no wheel and reads torch while it builds, so it comes second and without isolation.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	grep -v '^deepspeed==' requirements.lock > .venv/first.txt
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -r .venv/first.txt
	VIRTUAL_ENV=.venv PATH="$(CURDIR)/$(BIN):$$PATH" DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --no-build-isolation -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	# Else the first start compiles what it imports, in ten processes at once, and takes twice as long. Some
	# packages ship templates and files for other Pythons: those do not compile, and nobody imports them.
	-$(BIN)/python -m compileall -q -j 0 -x '/tests/' .venv/lib > .venv/compile.txt 2>&1
	touch $(STAMP)

demo: setup
	$(BIN)/worldmodel demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

lock:
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate -o requirements.lock

clean:
	rm -rf .venv runs
