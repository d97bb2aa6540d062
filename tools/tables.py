"""Make the tables in README.md and docs/ from the records in results/, between the comments that name them.

Records are written by tools/record.py and bench/compare.py. With --check nothing is written; the exit status is 1 if a
table does not match results/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write
from pipeline.core.process import run_stage
from pipeline.tables import fill, find_pages


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    is_check = parser.parse_args().check
    texts = {page: fill(page) for page in find_pages()}
    changed = [page for page, text in texts.items() if page.read_text(encoding="utf-8") != text]
    if is_check and changed:
        raise UserError(f"{list_some(map(str, changed))}: a table does not match results/; run `make tables`")
    with atomic_write() as write_to:
        for page in changed:
            write_to(page).write_text(texts[page], encoding="utf-8")
    print(f"wrote {list_some(map(str, changed))}" if changed else "the tables match results/")


if __name__ == "__main__":
    run_stage(main)
