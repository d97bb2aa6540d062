"""Rank photos by how likely their label is wrong, using out-of-fold classifiers, and find poor photos.

Reads data/prepared/; writes metrics/audit.csv (one row per photo, the most doubtful label first) and metrics/audit.html
(a page with the first 100, and the dark, bright, blurred, tiny and odd-shaped photos). The trained models have learned
the labels of train, including wrong ones. The audit therefore uses the pretrained weights to turn photos into features,
and judges each photo by a logistic regression fitted on others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time

from pipeline.core import SPLITS
from pipeline.core.all_params import Params
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write
from pipeline.core.paths import SPLIT_TABLE, packed_split
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_results
from pipeline.core.tool_paths import AUDIT_PAGE, AUDIT_TABLE

SHOWN = 100  # doubtful labels on the page
SHOWN_OF_KIND = 24  # poor photos of each kind
DIGITS = 6  # decimal places
COLUMNS = ("rank", "photo", "label", "probability_of_label", "split", "predicted", "probability", "quality")


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if a prepared file is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_results(*map(packed_split, SPLITS), SPLIT_TABLE)
    return params


def main() -> None:
    params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.audit import features_of, judge, read_photos, show, thumbnails
    from pipeline.networks.compute import set_up
    from pipeline.networks.dataset import open_split
    from pipeline.pages.rendering import render
    from pipeline.quality import KINDS, MEASURES, add_quality, worst
    from pipeline.scores.predictions import label_numbers

    import numpy as np

    with extra_packages("audit"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

    device, dtype = set_up(params.device, params.precision, params.threads)
    start = time.perf_counter()
    splits = {split: open_split(packed_split(split), device) for split in SPLITS}
    description = splits["train"].description
    classes = description["classes"]
    photos = add_quality(read_photos(), splits.values(), description["image_size"])
    labels = label_numbers(photos["label"], classes)
    features = np.hstack([features_of(name, splits, params, dtype) for name in params.networks])
    probabilities = judge(features, labels, photos["group"])
    photos["probability_of_label"] = get_label_quality_scores(labels, probabilities).round(DIGITS)
    photos["predicted"] = np.array(classes)[probabilities.argmax(axis=1)]
    photos["probability"] = probabilities.max(axis=1)
    estimated_wrong = int(find_label_issues(labels, probabilities, n_jobs=1).sum())
    ranked = photos.sort_values("probability_of_label", kind="stable")
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    page = render(
        "audit.html.jinja",
        photos=list(show(ranked.head(SHOWN), probabilities, classes, splits)),
        total=len(ranked),
        poor={kind: list(thumbnails(worst(ranked, kind, SHOWN_OF_KIND), splits)) for kind in KINDS},
        poor_count=ranked["quality"].str.split(", ").explode().value_counts().to_dict(),
        estimated_wrong=estimated_wrong,
        networks=list(params.networks),
    )
    with atomic_write() as write_to:
        ranked[[*COLUMNS, *MEASURES]].round(DIGITS).to_csv(write_to(AUDIT_TABLE), index=False)
        write_to(AUDIT_PAGE).write_text(page, encoding="utf-8")
    seconds = time.perf_counter() - start
    poor = int((ranked["quality"] != "").sum())
    print(
        f"{len(ranked)} photos, {estimated_wrong} labels estimated to be wrong, {poor} poor photos; {seconds:.0f} s; "
        f"see {AUDIT_PAGE}"
    )


if __name__ == "__main__":
    run_stage(main)
