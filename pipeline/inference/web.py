"""The page on which photos are classified, as a Flask app."""

import threading
from collections.abc import Sequence

from pipeline.core.split_table import MAX_NAMED
from pipeline.inference.ensemble import Ensemble, InputPhoto, Prediction
from pipeline.pages.rendering import heat_uri, most_probable, render, thumbnail

from flask import Flask, request
from werkzeug.exceptions import RequestEntityTooLarge

LARGEST_UPLOAD = 2**28  # bytes
SHOWN_SIDE = 320  # pixels


def make_app(ensemble: Ensemble, hosts: Sequence[str]) -> Flask:
    """The web app: GET / shows the form; POST / with files named `photos` also shows the answers.

    Requests for a host other than `hosts` are refused.
    """
    app = Flask(__name__)
    one_at_a_time = threading.Lock()
    app.config |= {"MAX_CONTENT_LENGTH": LARGEST_UPLOAD, "MAX_FORM_PARTS": None, "TRUSTED_HOSTS": [*hosts]}

    def page(photos: list[dict] | None = None, problem: str = "", explain: bool = False) -> str:
        title, named = page_title(ensemble.classes), one_of(ensemble.classes)
        return render(
            "serve.html.jinja",
            title=title,
            one_of=named,
            photos=photos,
            problem=problem,
            explain=explain,
            can_reject=ensemble.can_reject,
        )

    @app.get("/")
    def form() -> str:
        return page()

    @app.post("/")
    def answers() -> str | tuple[str, int]:
        uploads = request.files.getlist("photos")
        photos = [InputPhoto(upload.filename, upload.read) for upload in uploads if upload.filename]
        if not photos:
            return page(problem="Choose at least one photo."), 400
        explain = "explain" in request.form
        with one_at_a_time:  # heat maps hook into the networks
            return page(
                [photo_shown(shown, ensemble.shown_members) for shown in ensemble.predict(photos, explain=explain)],
                explain=explain,
            )

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> tuple[str, int]:
        problem = f"The photos are too large; upload at most {LARGEST_UPLOAD >> 20} MiB at once."
        return page(problem=problem), 413

    return app


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


def photo_shown(prediction: Prediction, members: list[str]) -> dict:
    """What the page shows for a photo: its name, its image and the most probable classes, or why it is unreadable.

    `members` are the networks whose predictions are shown next to the ensemble's.
    """
    image, heat_maps = "", {}
    if prediction.pixels is not None:
        image = thumbnail(prediction.pixels, SHOWN_SIDE)
        heat_maps = {name: heat_uri(prediction.pixels, heat) for name, heat in prediction.heat_maps.items()}
    count = 2 if len(prediction.ensemble) > 2 else 1  # with two classes, the second one says nothing new
    best = most_probable(prediction.ensemble, count)
    return {
        "name": prediction.photo,
        "unreadable": prediction.unreadable,
        "image": image,
        "heat_maps": heat_maps,
        "rejected": prediction.rejected,
        "ensemble": best,
        "members": {name: prediction.members[name] for name in members if name in prediction.members},
    }
