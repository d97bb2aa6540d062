"""A page where photos are dropped and the trained ensemble says cat or dog, for this computer alone.

Usage, from the project's root: python stages/serve.py [PORT]
The page is at http://127.0.0.1:8000 unless another port is named (0: any that is free). No photo is kept.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import os
import socket

from catsdogs.errors import UserError
from catsdogs.inference import Answer, Ensemble, Question, load_ensemble
from catsdogs.pages import render, thumbnail
from catsdogs.process import extra_packages, run_stage

with extra_packages("serve"):
    from flask import Flask, request
    from werkzeug.exceptions import RequestEntityTooLarge
    from werkzeug.serving import make_server

HOST, PORT = "127.0.0.1", 8000
LARGEST_UPLOAD = 2**28  # bytes
SHOWN_SIDE = 320  # pixels


def main() -> None:
    port = port_named(sys.argv[1:])
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(f"port {port}: {os.strerror(error.errno)}; name another: python stages/serve.py 8001") from None
    server = make_server(HOST, port, make_app(load_ensemble()), threaded=True, fd=listening.fileno())
    print(f"http://{HOST}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    server.serve_forever()


def port_named(arguments: list[str]) -> int:
    if not arguments:
        return PORT
    if len(arguments) > 1 or not arguments[0].isdecimal() or int(arguments[0]) > 65535:
        raise UserError("expected at most one argument, a port from 0 to 65535: python stages/serve.py 8001")
    return int(arguments[0])


def make_app(ensemble: Ensemble) -> Flask:
    """The page: GET shows the form, POST with files named `photos` the answers below it."""
    app = Flask(__name__)
    app.config |= {"MAX_CONTENT_LENGTH": LARGEST_UPLOAD, "MAX_FORM_PARTS": None, "TRUSTED_HOSTS": [HOST, "localhost"]}

    @app.get("/")
    def form() -> str:
        return render("serve.html.jinja", photos=None, problem="")

    @app.post("/")
    def answers() -> str:
        uploads = [upload for upload in request.files.getlist("photos") if upload.filename]
        questions = [Question(upload.filename, upload.read) for upload in uploads]
        photos = [photo_shown(answer) for answer in ensemble.answer(questions)]
        return render("serve.html.jinja", photos=photos, problem="" if uploads else "No photo was chosen.")

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> tuple[str, int]:
        problem = f"These photos are too large together; at most {LARGEST_UPLOAD >> 20} MB at once."
        return render("serve.html.jinja", photos=None, problem=problem), 413

    return app


def photo_shown(answer: Answer) -> dict:
    """What the page shows of a photo: its name, its picture (none if unreadable) and the probabilities of dog."""
    picture = "" if answer.pixels is None else thumbnail(answer.pixels, SHOWN_SIDE)
    return {"name": answer.photo, "picture": picture, "ensemble": answer.ensemble, "members": answer.members}


if __name__ == "__main__":
    run_stage(main)
