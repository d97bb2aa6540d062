"""Show all results on one HTML page that opens offline, and write its plots as PNG and tables for DVC's plots.

Reads metrics/, models/combination.json, data/prepared/, params.yaml and dvc.yaml, and runs no network; writes
metrics/report.html, metrics/plots/ (PNG), metrics/confusion/, metrics/roc/ and metrics/reliability/ (one table per
network, and one for the ensemble, unless it only repeats a single network).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.all_params import Params
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write, require_files
from pipeline.core.paths import (
    BEST_MEMBER,
    COMBINATION,
    CONTACT_SHEET,
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_PREDICTIONS,
    ENSEMBLE_SCORES,
    HEAT_MAPS,
    NETWORK_CLASS_SCORES,
    NETWORK_PREDICTIONS,
    NETWORK_SCORES,
    PREPARE_SUMMARY,
    REJECTION_TABLE,
    REPORT,
    SPLIT_TABLE,
    confusion_file,
    packed_split,
    plot_file,
    reliability_file,
    roc_file,
)
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params

INPUTS = (
    packed_split("test"),
    SPLIT_TABLE,
    CONTACT_SHEET,
    PREPARE_SUMMARY,
    COMBINATION,
    BEST_MEMBER,
    NETWORK_PREDICTIONS,
    ENSEMBLE_PREDICTIONS,
    NETWORK_SCORES,
    ENSEMBLE_SCORES,
    NETWORK_CLASS_SCORES,
    ENSEMBLE_CLASS_SCORES,
    HEAT_MAPS,
    REJECTION_TABLE,
)


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if another stage's result is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_files(*INPUTS)
    return params


def main() -> None:
    params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.pages import plots
    from pipeline.pages.report import render_page
    from pipeline.pages.report_plots import make_plots
    from pipeline.pages.results import read_results
    from pipeline.scores.scoring import confusion_table

    results = read_results()
    plot_groups = make_plots(results)
    page = render_page(params, results, plot_groups)
    with atomic_write() as write_to:
        write_to(REPORT).write_text(page, encoding="utf-8")
        for kind, group in plot_groups.items():
            scale = plots.confusion_scale(len(results.classes)) if kind == "confusion" else 1
            plots.write_png(write_to(plot_file(kind)), list(group.values()), scale)
        for name, probabilities in results.probabilities.items():
            answers = confusion_table(probabilities, results.labels, results.classes)
            answers.to_csv(write_to(confusion_file(name)), index=False)
            results.roc[name].to_csv(write_to(roc_file(name)), index=False)
            results.reliability[name].to_csv(write_to(reliability_file(name)), index=False)
    for file_of in (confusion_file, roc_file, reliability_file):
        for path in file_of("").parent.glob("*.csv"):
            if path not in map(file_of, results.scores):
                path.unlink()  # left over from a removed network or ensemble
    print(f"{REPORT}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run_stage(main)
