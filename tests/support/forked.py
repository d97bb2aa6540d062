"""Runs `python` in a fork of a process that has done the slow imports (fork_server.py), with the same result.

Without a server, which `pytest --plain` does not start, every program is a new process.
"""

import os
import resource
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tests.support import fork_client
from tests.support.fork_client import SERVER


@contextmanager
def fork_server() -> Iterator[None]:
    """Start the server for this process and those that it starts; end it afterwards."""
    scratch = tempfile.TemporaryDirectory(prefix="fork_server_", ignore_cleanup_errors=True)
    with scratch as folder, ExitStack() as stack:
        numbers = []
        for name in ("without_torch", "with_torch"):
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(f"{folder}/{name}")
            listening.listen(64)  # a client that comes before the imports are done waits
            numbers.append(listening.fileno())
        command = [sys.executable, Path(__file__).with_name("fork_server.py"), *map(str, numbers)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=numbers, start_new_session=True
        ) as server:
            stack.close()
            client = f'"{sys.executable}" -IS "{fork_client.__file__}"'
            for name, arguments in fork_client.PROGRAMS.items():
                program = Path(folder, name)
                program.write_text(f'#!/bin/sh\nexec {client} {arguments} "$@"\n')
                program.chmod(0o755)
            os.environ[SERVER] = folder
            try:
                yield
            finally:
                del os.environ[SERVER]
                server.terminate()


@contextmanager
def other_settings(settings: Mapping[str, str]) -> Iterator[None]:
    """Run programs with `settings` added to the environment, in forks of a new process that has started with them.

    So what Python reads when it starts has an effect, such as PYTHONHASHSEED.
    """
    before = {**os.environ}
    os.environ.update(settings)
    try:
        with fork_server() if SERVER in before else nullcontext():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def python() -> str:
    """A `python` for subprocess, which hands signals on to the fork."""
    return f"{os.environ[SERVER]}/python" if SERVER in os.environ else sys.executable


def on_path(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with PROGRAMS first on PATH."""
    return {**env, "PATH": f"{os.environ[SERVER]}{os.pathsep}{env['PATH']}"} if SERVER in os.environ else {**env}


def run(
    arguments: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    stdin: str = "",
    largest_file: int = resource.RLIM_INFINITY,
    timeout: float = 120,
) -> subprocess.CompletedProcess:
    """As subprocess.run of `python *arguments` in `folder`, its output as text.

    What Python and PyTorch read from `env` when they start (PYTHONHASHSEED, OMP_NUM_THREADS) has no effect; see
    `other_settings`.
    """
    if SERVER not in os.environ:
        return run_new(arguments, folder, env, stdin, largest_file, timeout)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, name) for name in ("stdin", "stdout", "stderr")]
        paths[0].write_text(stdin)
        streams = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
        try:
            status = fork_client.ask(arguments, folder, env, streams, largest_file, timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        finally:
            for stream in streams:
                os.close(stream)
        done = subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in paths[1:]))
        show(done, folder)
        return done


def run_new(
    arguments: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    stdin: str = "",
    largest_file: int = resource.RLIM_INFINITY,
    timeout: float = 120,
) -> subprocess.CompletedProcess:
    """As `run`, in a new process."""
    limit = None
    if largest_file != resource.RLIM_INFINITY:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        env = {**env, "PYTHONDONTWRITEBYTECODE": "1"}  # Python 3.11 does not notice that a module was cut off
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, preexec_fn=limit
    )
    done.args = arguments
    show(done, folder)
    return done


def show(done: subprocess.CompletedProcess, folder: Path) -> None:
    """Print what ran, where and how it ended: pytest shows it if the test fails."""
    command = shlex.join(["python", *map(str, done.args)])
    print(f"$ cd {shlex.quote(str(folder))} && {command}\n{done.stdout}{done.stderr}[exit status {done.returncode}]\n")
