"""A comparison as Markdown, as GitHub renders it in a comment, with plots as small PNG files."""

import re
from collections.abc import Iterable

from pipeline.pages.plots import INK, SERIES, Plot, shorten
from pipeline.runs.comparing import Comparison, Recipe
from pipeline.runs.comparison_text import describe_recipe
from pipeline.runs.differences import Difference

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

PLOTS = {
    "accuracy": "difference in accuracy",
    "log_loss": "difference in log loss",
}  # by file and by Comparison's field
BAR = r"\|"  # inside a table, also in code
MARKUP = re.compile(r"([\\`*_\[\]<>|~])")


def plots_of(comparisons: dict[str, list[Comparison]]) -> dict[str, Plot]:
    """A plot of each kind of difference, over all comparisons, by the name of its file."""
    rows = [comparison for compared in comparisons.values() for comparison in compared]
    several = any(len(compared) > 1 for compared in comparisons.values())
    labels = [f"{shorten(row.network)}{f': {row.after.label}' if several else ''}" for row in rows]
    return {
        f"{field}.png": plot(title, dict(zip(labels, [getattr(row, field) for row in rows], strict=True)))
        for field, title in PLOTS.items()
    }


def plot(title: str, differences: dict[str, Difference]) -> Plot:
    """Differences by label, each with its 95 % interval over photos."""

    def draw(panel: Axes) -> None:
        panel.axvline(0, color=INK, linewidth=1)
        for row, of in enumerate(differences.values()):
            interval = [[max(0, of.mean - of.low)], [max(0, of.high - of.mean)]]
            panel.errorbar(of.mean, row, xerr=interval, capsize=5, markersize=8, marker="o", color=SERIES[0])
        panel.set_yticks(range(len(differences)), list(differences))
        panel.set_ylim(len(differences) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_title(title)

    return draw


def render_markdown(
    comparisons: dict[str, list[Comparison]], units: list[Recipe], notes: list[str], explanation: list[str], folder: str
) -> str:
    """The scores, the paired differences and what they mean; the plots are in `folder`."""
    first, *others = units
    compared = [comparison for group in comparisons.values() for comparison in group]
    lines = [
        f"### {', '.join(code(unit.label) for unit in others)} compared with {code(first.label)}",
        "",
        escape(" ".join(notes)),
        "",
        *(f"- {code(unit.label)}: {code(describe_recipe(unit, first) or 'the workspace')}" for unit in units),
        "",
        *table(["", "run", "scores"], scores(comparisons)),
        "",
        *table(["", "run", "verdict", "accuracy", "photos", "log loss"], map(differences, compared)),
        "",
        " ".join(f"![{title}]({folder}/{field}.png)" for field, title in PLOTS.items()),
        "",
        "<details><summary>What the intervals and p-values mean</summary>",
        "",
        escape(" ".join(explanation)),
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def scores(comparisons: dict[str, list[Comparison]]) -> list[list[str]]:
    """A row for each network and run."""
    return [
        [network, code(unit.label), unit.describe(network)]
        for network, compared in comparisons.items()
        if compared
        for unit in (compared[0].before, *(comparison.after for comparison in compared))
    ]


def differences(comparison: Comparison) -> list[str]:
    """The row of a comparison."""
    facts = {} if comparison.is_identical() else comparison.facts()
    photos = "; ".join(facts[name] for name in ("photos", "seeds") if name in facts)
    verdict = f"**{comparison.sentence()}**"
    return [
        comparison.network,
        code(comparison.after.label),
        verdict,
        facts.get("accuracy", ""),
        photos,
        facts.get("log loss", ""),
    ]


def table(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |" for cells in lines]


def code(text: str) -> str:
    """`text` as it is, whatever characters it has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def escape(text: str) -> str:
    """`text` with no character that Markdown would read as markup."""
    return MARKUP.sub(r"\\\1", text)
