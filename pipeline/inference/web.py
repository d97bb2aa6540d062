"""The page on which photos are classified. Its script sends them to the API."""

from pipeline.core.split_table import MAX_NAMED
from pipeline.inference.ensemble import Ensemble
from pipeline.pages.rendering import TEMPLATES, render

SCRIPT = TEMPLATES / "serve.js"


def page(ensemble: Ensemble, is_local: bool) -> str:
    """The page as HTML. `is_local`: whether only this computer can reach it."""
    return render(
        "serve.html.jinja",
        title=page_title(ensemble.classes),
        one_of=one_of(ensemble.classes),
        can_reject=ensemble.can_reject,
        shows_members=bool(ensemble.shown_members),
        is_local=is_local,
    )


def page_title(classes: list[str]) -> str:
    """The page's title: `Cat or dog?`, or `Which of 102 classes?` if there are too many to name."""
    if len(classes) > MAX_NAMED:
        return f"Which of {len(classes)} classes?"
    named = one_of(classes)
    return f"{named[0].upper()}{named[1:]}?"


def one_of(classes: list[str]) -> str:
    """For people: `cat or dog`, or `one of 102 classes` if there are too many to name."""
    if len(classes) > MAX_NAMED:
        return f"one of {len(classes)} classes"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"
