"""Serve a local page on which to watch training: loss, accuracy and learning rate, by step and epoch.

The page is at http://127.0.0.1:8001, or another port if one is given, and refreshes itself. It shows every network that
is being trained here: in the workspace, and in experiments that run outside of it (dvc exp run --temp or --queue). Only
this computer can open it. It reads what training writes anyway, so training does not wait for it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from http.server import ThreadingHTTPServer

from pipeline.core.all_params import Params
from pipeline.core.local_port import HOST, announce, listen, read_port
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params


def read_inputs() -> int:
    """The port. Raises UserError if it or the params are wrong."""
    port = read_port(__doc__, default=8001)
    read_params(Params)
    return port


def main() -> None:
    port = read_inputs()

    from pipeline.watch import Handler  # not before: it imports pandas and Matplotlib, which takes a second

    listening = listen(port, "tools/watch.py")
    server = ThreadingHTTPServer((HOST, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    announce(listening)
    server.serve_forever()


if __name__ == "__main__":
    run_stage(main)
