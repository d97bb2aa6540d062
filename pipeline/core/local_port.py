"""A port, which by default only this computer can open, for the tools that serve a page."""

import argparse
import errno
import os
import socket
from urllib.parse import urlsplit

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError

HOST = "127.0.0.1"
TRUSTED = (HOST, "localhost")  # hosts in requests; any other may be a page elsewhere whose name leads here


def read_port(docstring: str | None, default: int) -> int:
    """The port, the only argument of a script with this docstring. Raises UserError if it is wrong."""
    parser = ArgumentParser(docstring)
    add_port(parser, default)
    return parser.parse_args().port


def add_port(parser: ArgumentParser, default: int) -> None:
    parser.add_argument(
        "port",
        nargs="?",
        type=_port_number,
        default=default,
        metavar="PORT",
        help="default: %(default)s; 0: any free port",
    )


def _port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; expected a number from 0 to 65535")
    return int(text)


def listen(port: int, script: str, host: str = HOST) -> socket.socket:
    """A socket that listens on the port. Raises UserError, which names `script`, if it cannot be used.

    `host` is an address or name of this computer; UserError if it is not.
    """
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from None
    except UnicodeError:  # an empty part, or one of more than 63 letters
        raise UserError(f"--host {host} is not a host's name; expected an address or name of this computer") from None
    except OSError as error:
        reason = os.strerror(error.errno)  # pyrefly: ignore[bad-argument-type]
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: {reason}; expected an address of this computer") from None
        raise UserError(f"port {port}: {reason}; try another: python {script} 8002") from None


def announce(listening: socket.socket, host: str = HOST) -> None:
    """Print the page's address."""
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listening.getsockname()[1]} (press Ctrl-C to stop)", flush=True)


def host_name(header: str) -> str:
    """`localhost` from a Host header such as `localhost:8000`; empty if it is malformed."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
