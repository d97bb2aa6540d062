"""Serve a local page for classifying photos with the trained ensemble.

The page is at http://127.0.0.1:8000, or another port if one is given. Only this computer can open it, and photos are
not stored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import os
import socket

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble

HOST, PORT = "127.0.0.1", 8000


def read_port() -> int:
    """The port. Raises UserError if it or the params are wrong, or if a model is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "port", nargs="?", type=port_number, default=PORT, metavar="PORT", help="default: %(default)s; 0: any free port"
    )
    port = parser.parse_args().port
    require_ensemble(read_params(Params))
    return port


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; expected a number from 0 to 65535")
    return int(text)


def main() -> None:
    port = read_port()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import load_ensemble

    with extra_packages("serve"):
        from pipeline.inference.web import make_app

        from werkzeug.serving import make_server

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno)  # pyrefly: ignore[bad-argument-type]
        raise UserError(f"port {port}: {reason}; try another: python tools/serve.py 8001") from None
    server = make_server(HOST, port, make_app(load_ensemble(), HOST), threaded=True, fd=listening.fileno())
    print(f"http://{HOST}:{listening.getsockname()[1]} (press Ctrl-C to stop)", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run_stage(main)
