PYTHON ?= python3

.PHONY: audit bench demo export photos serve submission test verify

# The whole pipeline over drawn pictures, in a folder of its own (.demo): it touches nothing else.
demo: .venv/installed
	.venv/bin/python demo/run.py .demo

# Microsoft's public copy of the photos, at data/raw/train.zip.
photos: .venv/installed
	.venv/bin/python stages/download.py

test: .venv/installed-for-test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/python -m pytest

# Every result rebuilt in a scratch folder and compared with what is here.
verify: .venv/installed
	.venv/bin/python stages/verify.py

# A page at http://127.0.0.1:8000 where photos are dropped and answered.
serve: .venv/installed-for-serve
	.venv/bin/python stages/serve.py

# Kaggle's unlabelled photos, data/raw/test1.zip or test.zip, to submission.csv.
submission: .venv/installed
	.venv/bin/python stages/submission.py

# All photos ranked by how doubtful their labels are: metrics/audit.html.
audit: .venv/installed-for-audit
	.venv/bin/python stages/audit.py

# The networks as ONNX, with a model card, in export/.
export: .venv/installed-for-export
	.venv/bin/python stages/export.py

# The pipeline beside a notebook's recipe and beside what this computer can do, in a folder of its own (.bench).
bench: .venv/installed
	.venv/bin/python bench/compare.py .bench $(BENCH)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --requirement requirements.txt
	touch $@

.venv/installed-for-test: requirements-audit.txt requirements-export.txt requirements-s3.txt requirements-serve.txt

.venv/installed-for-%: .venv/installed requirements-%.txt
	.venv/bin/python -m pip install --disable-pip-version-check --requirement requirements-$*.txt
	touch $@
