"""Serve an API and a page for classifying photos with the trained ensemble.

The page is at http://127.0.0.1:8000, or another port if one is given. The API: POST /predict with one photo as the
body, or with many as files in the form field `photos`; GET /health; GET /openapi.json. Photos are not stored.

Only this computer can reach it, unless --host is given. Then every request needs the token, as the header
`Authorization: Bearer TOKEN`; a browser asks for it as the password.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import os
import re

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.local_port import HOST, add_port, announce, listen
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble

TOKEN = "SERVE_TOKEN"  # the environment variable
VISIBLE = re.compile("[!-~]+")  # what a header may hold


def read_inputs() -> argparse.Namespace:
    """The arguments. Raises UserError if they or the params are wrong, or if a model is missing."""
    parser = ArgumentParser(__doc__)
    add_port(parser, default=8000)
    parser.add_argument(
        "--host", help=f"an address or name of this computer, or 0.0.0.0 for all (default: {HOST}); needs --token"
    )
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN) or None,
        help=f"what requests must have (default: the environment variable {TOKEN}, which other users cannot see)",
    )
    arguments = parser.parse_args()
    if arguments.host is not None and arguments.token is None:
        raise UserError(f"--host needs --token or {TOKEN}, because other computers can then send photos")
    if arguments.token is not None and not VISIBLE.fullmatch(arguments.token):
        raise UserError("--token: expected ASCII characters without spaces, such as `openssl rand -hex 16` prints")
    require_ensemble(read_params(Params))
    return arguments


def main() -> None:
    arguments = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import load_ensemble

    with extra_packages("serve"):
        from pipeline.inference.server import serve

    host = arguments.host or HOST
    listening = listen(arguments.port, "tools/serve.py", host)
    ensemble = load_ensemble()
    announce(listening, host)
    serve(ensemble, listening, host, arguments.token)


if __name__ == "__main__":
    run_stage(main)
