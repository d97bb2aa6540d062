"""Read what Label Studio exports, and write the labels into the table that prepare reads (prepare.labels).

The export is JSON, JSON-MIN, CSV or TSV. Its labels replace those in the table; other rows stay as they are. Skipped
tasks, and tasks without an annotation, change nothing. If a photo is not in prepare.source, a label is not a class, or
annotations contradict each other, there is a line for each, and nothing is written.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.params import Classes, Section
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.prepare import Prepare

NAMED = 10  # changed labels in the output


class Params(Section):
    """What this tool reads of params.yaml."""

    classes: Classes
    prepare: Prepare


def read_inputs() -> tuple[Path, Params]:
    """The export and the params. Raises UserError if they are wrong."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("export", type=Path, metavar="EXPORT", help="what Label Studio exported")
    return parser.parse_args().export, read_params(Params)


def main() -> None:
    export, params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.photos.label_exports import labels_of, merge, read_export
    from pipeline.photos.source import PhotoSource

    annotations = read_export(export)
    with PhotoSource(Path(params.prepare.source)) as source:
        photos = source.photos()
    labels = labels_of(annotations, photos, params.classes, export)
    without = sum(not annotation.labels for annotation in annotations)
    if not labels:
        raise UserError(f"{export}: none of {len(annotations)} tasks has a label; submit annotations, and export again")
    table = Path(params.prepare.labels)
    text, added, changes = merge(table, photos, labels)
    with atomic_write() as write_to:
        write_to(table).write_text(text, encoding="utf-8")
    same = len(labels) - added - len(changes)
    unlabelled = f"; {without} skipped or without a label" if without else ""
    print(f"{table}: {added} photos added, {len(changes)} changed, {same} as before{unlabelled}; run `dvc repro`")
    for change in changes[:NAMED]:
        print(f"  {change}")
    if len(changes) > NAMED:
        print(f"  and {len(changes) - NAMED} more; see `git diff {table}`")


if __name__ == "__main__":
    run_stage(main)
