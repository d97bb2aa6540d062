"""What to do if the photos or the table of their labels do not exist, in one line."""

from pathlib import Path


def describe_missing(photos: Path) -> str:
    """For a folder or archive of photos; it may only have to be pulled."""
    if tracked := next((above for above in (photos, *photos.parents) if Path(f"{above}.dvc").is_file()), None):
        return f"{photos}: is not here yet, but {tracked}.dvc is; run `dvc pull {tracked}`"
    return f"{photos}: no such file or folder; put the photos there, or set prepare.source"


def describe_missing_labels(table: Path) -> str:
    return f"{table} does not exist; create it, or set prepare.labels to another table"
