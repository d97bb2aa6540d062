"""Serve a local page for classifying photos with the trained ensemble.

The page is at http://127.0.0.1:8000, or another port if one is given. Only this computer can open it, and photos are
not stored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.all_params import Params
from pipeline.core.local_port import HOST, TRUSTED, announce, listen, read_port
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble


def read_inputs() -> int:
    """The port. Raises UserError if it or the params are wrong, or if a model is missing."""
    port = read_port(__doc__, default=8000)
    require_ensemble(read_params(Params))
    return port


def main() -> None:
    port = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import load_ensemble

    with extra_packages("serve"):
        from pipeline.inference.web import make_app

        from werkzeug.serving import make_server

    listening = listen(port, "tools/serve.py")
    app = make_app(load_ensemble(), TRUSTED)
    server = make_server(HOST, port, app, threaded=True, fd=listening.fileno())
    announce(listening)
    server.serve_forever()


if __name__ == "__main__":
    run_stage(main)
