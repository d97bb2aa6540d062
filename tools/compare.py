"""Compare the stored predictions of runs on the same photos, and say which differences are more than chance.

A run is a git revision, branch or tag, the name of a DVC experiment, or `workspace`. Their predictions are read from
DVC's cache or remote; nothing is checked out or run. The first run is the one that the others are compared with. Runs
that differ only in train.seed are pooled. docs/compare.md explains the output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core import WORKSPACE
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write
from pipeline.core.process import run_stage
from pipeline.core.tool_paths import COMPARE_MARKDOWN, COMPARE_PAGE, COMPARE_PLOTS


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help=f"two or more runs; one is compared with {WORKSPACE}; without any, HEAD is",
    )
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="judge on these photos; default: validation",
    )
    judged.add_argument(
        "--folds",
        action="store_true",
        help="judge on the photos of train and validation, by cross-validation (tools/folds.py)",
    )
    parser.add_argument(
        "--html", action="store_true", help=f"also write {COMPARE_PAGE}, with the photos that changed sides"
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help=f"also write {COMPARE_MARKDOWN}, for a comment on GitHub, and its plots, to {COMPARE_PLOTS}/",
    )
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        arguments.runs = [*(arguments.runs or ["HEAD"]), WORKSPACE]
    if repeated := [name for name in arguments.runs if arguments.runs.count(name) > 1]:
        parser.error(f"{repeated[0]} is given twice")
    return arguments


def main() -> None:
    arguments = read_arguments()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.runs.comparing import Recipe, compare, networks_of, pool, require_same_photos
    from pipeline.runs.comparison_page import render_page
    from pipeline.runs.comparison_text import explain, legend, report, say_missing, say_split
    from pipeline.runs.reading import read_run
    from pipeline.runs.reading_folds import FOLDED, read_folds

    split = FOLDED if arguments.folds else arguments.split
    runs = [read_folds(name) if arguments.folds else read_run(name, split) for name in arguments.runs]
    for run in runs[1:]:
        require_same_photos(runs[0], run, split)
    recipes = pool(runs)
    same_recipe = len(recipes) == 1
    units = [Recipe([run]) for run in runs] if same_recipe else recipes
    comparisons = {network: compare(network, units, same_recipe) for network in networks_of(units)}
    if not any(comparisons.values()):
        raise UserError(f"{list_some(arguments.runs)} have no network in common; nothing can be compared")

    notes = [*say_split(split, runs[0]), *say_missing(units, comparisons, split)]
    pooled = recipes[0] if same_recipe else None
    print("\n".join([*notes, "", *legend(units, pooled), *report(comparisons, pooled), "", *explain(units)]))
    if arguments.html:
        page = render_page(comparisons, units, notes, explain(units), split)
        with atomic_write() as write_to:
            write_to(COMPARE_PAGE).write_text(page, encoding="utf-8")
        print(f"\nThe photos that changed sides: {COMPARE_PAGE}")
    if arguments.markdown:
        from pipeline.pages.plots import write_png
        from pipeline.runs.comparison_markdown import plots_of, render_markdown

        text = render_markdown(comparisons, units, notes, explain(units), COMPARE_PLOTS.name)
        with atomic_write() as write_to:
            write_to(COMPARE_MARKDOWN).write_text(text, encoding="utf-8")
            for name, plot in plots_of(comparisons).items():
                write_png(write_to(COMPARE_PLOTS / name), [plot], scale=0.8)  # two fit side by side
        print(f"\nAs Markdown: {COMPARE_MARKDOWN}, with plots in {COMPARE_PLOTS}/")


if __name__ == "__main__":
    run_stage(main)
