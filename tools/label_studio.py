"""Write the photos that a person should label as tasks for Label Studio, with predictions as pre-annotations.

These are the photos with the most doubtful labels, and those of which the classifiers are least certain, by
metrics/audit.csv; or the least certain ones of new photos, by the CSV that tools/predict.py writes. Writes
label_studio/tasks.json, and label_studio/interface.xml for the project's labelling interface. tools/labels.py reads
what Label Studio exports.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import json

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.process import run_stage
from pipeline.core.tool_paths import AUDIT_TABLE, LABEL_INTERFACE, LABEL_TASKS

LOCAL_FILES = "/data/local-files/?d="


def read_inputs() -> argparse.Namespace:
    """The arguments. Raises UserError if they are wrong, or if the table does not exist."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "table", nargs="?", type=Path, default=AUDIT_TABLE, metavar="TABLE", help=f"a CSV (default: {AUDIT_TABLE})"
    )
    parser.add_argument(
        "--photos",
        default=LOCAL_FILES,
        metavar="PREFIX",
        help="what comes before each photo's name in its URL, such as s3://bucket/photos/ (default: "
        f"{LOCAL_FILES}, Label Studio's local files)",
    )
    parser.add_argument(
        "--count", type=int, default=100, metavar="N", help="photos for each of the two reasons (default: 100)"
    )
    arguments = parser.parse_args()
    if arguments.count < 1:
        raise UserError(f"--count {arguments.count}: expected 1 or more")
    if not arguments.table.exists():
        hint = "run `python tools/audit.py` to create it" if arguments.table == AUDIT_TABLE else "check the path"
        raise UserError(f"{arguments.table} does not exist; {hint}")
    return arguments


def main() -> None:
    arguments = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.photos.label_tasks import choose_photos, interface, tasks

    photos, classes = choose_photos(arguments.table, arguments.count)
    if photos.empty:
        raise UserError(f"{arguments.table} has no photos")
    content = tasks(photos, arguments.photos, model_version=arguments.table.stem)
    with atomic_write() as write_to:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_to(LABEL_TASKS).write_text(f"{text}\n", encoding="utf-8")
        write_to(LABEL_INTERFACE).write_text(interface(classes), encoding="utf-8")
    counts = ", ".join(f"{count} {reason}" for reason, count in photos["reason"].value_counts(sort=False).items())
    print(f"{LABEL_TASKS}: {len(photos)} photos ({counts}), such as {content[0]['data']['image']}")


if __name__ == "__main__":
    run_stage(main)
