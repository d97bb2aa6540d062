"""Runs Python programs in forks of processes that have imported torch and DVC already.

Importing these takes longer than most of what is tested. They are imported once, and nothing of this project, so that
each fork is as fresh as a new process. forked.py starts this, and fork_client.py is its client. The arguments are the
numbers of two file descriptors, listening sockets: for programs that need no torch, whose forks are cheaper, and for
those that do. A client is told the number of its process and then its exit status; if the client ends, the process and
its group are killed. The server ends when its stdin does.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pydantic

IMPORTS = (
    *(
        "pandas",
        "pandas.io.formats.csvs",
        "pyarrow.pandas_compat",
        "scipy.stats",
        "scipy.fftpack",
        "sklearn.linear_model",
    ),
    *(
        "sklearn.metrics",
        "matplotlib.figure",
        "matplotlib.style",
        "matplotlib.backends.backend_svg",
        "jinja2",
        "requests",
    ),
    *("imagehash", "PIL.ImageDraw", "PIL.ImageFont", "PIL.JpegImagePlugin", "PIL.GifImagePlugin", "tqdm", "tabulate"),
    *("pydantic.fields", "pydantic.functional_validators", "pydantic.types", "pydantic.main", "safetensors.numpy"),
    *("ruamel.yaml", "dvc.cli.parser", "dvc.repo.reproduce", "dvc.repo.index", "dvc.repo.datasets", "dvc.repo.plots"),
    *("dvc.repo.experiments.queue.celery", "dvc.repo.experiments.queue.workspace", "dvc.repo.experiments.run"),
    *("dvc.api", "dvc.data_cloud", "dvc.repo.artifacts", "dvc.repo.graph", "dvc.repo.stage", "dvc.repo.trie"),
    *("dvc.utils.hydra", "dvc.utils.strictyaml", "dvc_data.hashfile.db.local", "dvc_data.hashfile.status"),
    *("networkx", "hydra.compose", "dulwich.porcelain", "dulwich.stash", "dulwich.worktree", "pygit2", "dvc_http"),
    *("pillow_heif", "pillow_jxl", "PIL.BmpImagePlugin", "PIL.PpmImagePlugin", "scipy.signal"),
)
TORCH_IMPORTS = (
    *("torch", "torch._dynamo", "torch.distributed", "torch.fx.experimental.optimization", "torchvision"),
    "safetensors.torch",
)


def main() -> None:
    without_torch, with_torch = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    import_all(IMPORTS)
    other = os.fork()
    if other == 0:
        without_torch.close()
        import_all(TORCH_IMPORTS)
        serve(with_torch, [])
    with_torch.close()
    serve(without_torch, [other])


def import_all(modules: Iterable[str]) -> None:
    gc.disable()  # looking for garbage in between takes a quarter of the time
    for module in modules:
        importlib.import_module(module)
    pydantic.create_model("Any")  # pydantic then looks for plugins in all packages
    gc.collect()
    gc.freeze()  # or each fork would copy the memory that it looks at
    gc.enable()


def serve(server: socket.socket, others: list[int]) -> None:
    """Serve clients until stdin ends; then end, as well as `others`, which are processes."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)

    programs: dict[socket.socket, int] = {}  # each client's connection, and the process that runs its program
    signal.signal(signal.SIGTERM, lambda *_: end(programs, others))
    while True:
        ready, _, _ = select.select([server, 0, woken, *programs], [], [])
        if 0 in ready:
            end(programs, others)
        if woken in ready:
            woken.recv(100)
            report_ends(programs)
        for connection in programs.keys() & {*ready}:  # a client says nothing after its request: it is gone
            kill(programs.pop(connection))
            connection.close()
        if server in ready:
            connection, _ = server.accept()
            request, streams = receive(connection)
            programs[connection] = os.fork()
            if programs[connection] == 0:
                for inherited in (server, woken, wakes, *programs):
                    inherited.close()
                become(request, streams)
            connection.sendall(b"%d\n" % programs[connection])
            for stream in streams:
                os.close(stream)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    message, streams, _, _ = socket.recv_fds(connection, 2**16, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(2**16)
    return json.loads(message), streams


def report_ends(programs: dict[socket.socket, int]) -> None:
    """Tell clients the exit status of programs that have ended."""
    with suppress(ChildProcessError):
        while (end := os.waitpid(-1, os.WNOHANG))[0]:
            for connection in [connection for connection, process in programs.items() if process == end[0]]:
                with suppress(ConnectionError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(end[1]))
                connection.close()
                del programs[connection]


def kill(process: int) -> None:
    """Kill a program and what it has started: clients, whose own programs then end, too."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it does not lead its group yet
        os.kill(process, signal.SIGKILL)


def end(programs: dict[socket.socket, int], others: list[int]) -> None:
    for process in programs.values():
        kill(process)
    for process in others:
        with suppress(ProcessLookupError, ChildProcessError):  # it has ended, too
            os.kill(process, signal.SIGTERM)
            os.waitpid(process, 0)
    os._exit(0)


def become(request: dict, streams: list[int]) -> None:
    """Turn this process into `python *arguments`; never returns."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
    if request["largest_file"] != resource.RLIM_INFINITY:
        sys.dont_write_bytecode = True  # Python 3.11 does not notice that it was cut off
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["executable"]
    atexit._clear()  # what the imports have registered
    status: object = 0
    try:
        run(request["arguments"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # waits for threads, as Python's own end does
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], str(Path.cwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
