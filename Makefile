PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --disable-pip-version-check --require-hashes --requirement
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: help install demo photos test test-fast lock verify serve watch submission audit export search timm bench tables gpu-check

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

install: .venv/installed  ## the environment, in .venv; then: source .venv/bin/activate

demo: .venv/installed  ## the whole pipeline on synthetic photos, in .demo/
	.venv/bin/python demo/run.py .demo

photos: .venv/installed  ## Microsoft's public copy of the photos, to data/raw/train.zip
	.venv/bin/python tools/download.py

test: .venv/installed-for-test  ## lint, format, types and all tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyrefly check
	.venv/bin/python -m pytest

test-fast: .venv/installed-for-test  ## the tests that take less than a minute together
	.venv/bin/python -m pytest -m "not slow"

verify: .venv/installed  ## rebuild every result in .verify/ and compare it with the current results, byte for byte
	.venv/bin/python tools/verify.py

serve: .venv/installed-for-serve  ## a page and an API for classifying photos, at http://127.0.0.1:8000
	.venv/bin/python tools/serve.py

watch: .venv/installed  ## a local page on which to watch training, at http://127.0.0.1:8001
	.venv/bin/python tools/watch.py

submission: .venv/installed  ## predictions for Kaggle's unlabelled photos, to submission.csv
	.venv/bin/python tools/submission.py

audit: .venv/installed-for-audit  ## photos ranked by how likely their label is wrong, to metrics/audit.html
	.venv/bin/python tools/audit.py

export: .venv/installed-for-export  ## the networks and the ensemble as ONNX, with a model card, to export/
	.venv/bin/python tools/export.py $(EXPORT)

search: .venv/installed-for-search  ## better params for training, by DVC experiments; see search.yaml
	.venv/bin/python tools/search.py $(SEARCH)

timm: .venv/installed-for-timm  ## timm, for networks such as timm/convnext_nano

bench: .venv/installed-for-bench  ## speed compared with the usual alternatives and the hardware limit, in .bench/
	.venv/bin/python bench/compare.py .bench $(BENCH)

tables: .venv/installed  ## the tables in README.md and docs/, from the recorded runs in results/
	.venv/bin/python tools/tables.py

gpu-check: .venv/installed  ## on a GPU: whether two runs give identical results, and the speed compared with the limit
	.venv/bin/python bench/gpu_check.py $(GPU_CHECK)

lock: .venv/installed-for-test  ## compile requirements*.txt from requirements*.in
	$(COMPILE) requirements.in --output-file requirements.txt
	for name in audit bench export parquet phones s3 search serve test timm; do \
		$(COMPILE) requirements/$$name.in --output-file requirements/$$name.txt || exit 1; \
	done

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; specify one: make install PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) requirements.txt
	touch $@

.venv/installed-for-%: .venv/installed requirements/%.txt
	$(PIP_INSTALL) requirements/$*.txt
	touch $@
