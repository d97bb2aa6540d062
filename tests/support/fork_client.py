"""The client of the fork server (fork_server.py): has it run a Python program.

Run as a script, it stands in for `python` itself, and is what DVC finds as `python` for the stages. It imports little,
because it runs hundreds of times.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = "FORK_SERVER"  # the environment variable that names its folder: the sockets, and programs that use them
NEED_TORCH = (
    "train",
    "evaluate",
    "reject",
    "verify",
    "audit",
    "export",
    "predict",
    "serve",
    "submission",
    "networks",
    "gpu_check",
    "record",
    "compare",
    "notebook",
    "workers",
    "prediction",
    "torch.distributed",
)
PROGRAMS = {"python": "", "dvc": "-m dvc", "torchrun": "-m torch.distributed.run"}


def ask(
    arguments: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    streams: Sequence[int],
    largest_file: int = resource.RLIM_INFINITY,
    timeout: float | None = None,
    hand_on: Sequence[signal.Signals] = (),
) -> int:
    """Have the server run `python *arguments` with `streams` as stdin, stdout and stderr; returns its exit status.

    Signals that `hand_on` names go to it.
    """
    server = os.environ[SERVER]
    request = {
        "arguments": list(map(str, arguments)),
        "folder": str(folder),
        "environment": dict(env),
        "executable": f"{server}/python",
        "largest_file": largest_file,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        needs_torch = any(Path(argument).stem in NEED_TORCH for argument in request["arguments"][:2])
        connection.connect(f"{server}/{'with_torch' if needs_torch else 'without_torch'}")
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], streams)
        replies = connection.makefile()
        process = int(replies.readline())
        for number in hand_on:
            signal.signal(number, lambda number, _: os.kill(process, number))
        return int(replies.readline())


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    if arguments[0].startswith("-") and " ".join(arguments[:2]) not in PROGRAMS.values():
        os.execv(sys.executable, [sys.executable, *arguments])
    status = ask(arguments, Path.cwd(), os.environ, (0, 1, 2), hand_on=(signal.SIGINT, signal.SIGTERM))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
