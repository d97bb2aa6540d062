"""Download Microsoft's public copy of the photos to data/raw/train.zip.

An incomplete download is kept as data/raw/train.zip.partial. After a broken connection or Ctrl-C, the next run resumes
it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import hashlib
import time

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.process import run_stage
from pipeline.core.tool_paths import ARCHIVE

import requests
import urllib3
from tqdm import tqdm

URL = "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
PARTIAL = ARCHIVE.with_name(f"{ARCHIVE.name}.partial")
ALTERNATIVES = (
    "run `make photos` again (it resumes the download), put train.zip from "
    "https://www.kaggle.com/c/dogs-vs-cats/data into data/raw/, or try synthetic photos with `make demo`"
)
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30
TRIES = 4  # in a row without progress
PAUSE_S = 1  # before the next try, times the number of failures


def main() -> None:
    url, sha256 = read_arguments().archive
    if ARCHIVE.exists():
        print(f"{ARCHIVE} already exists; delete it first to download Microsoft's copy")
        return
    ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch(url)
    except OSError as error:  # a full disk: the error does not name the file
        error.filename = error.filename or str(PARTIAL)
        raise
    check(url, sha256.lower())
    PARTIAL.replace(ARCHIVE)
    print(f"{ARCHIVE}: downloaded, SHA-256 verified")


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--archive", nargs=2, metavar=("URL", "SHA256"), default=(URL, SHA256), help="a different archive and its hash"
    )
    return parser.parse_args()


def fetch(url: str) -> None:
    """Download the rest of `url` to PARTIAL, retrying as long as there is progress. Raises UserError if that fails."""
    most, failures = fetched(), 0
    while True:
        try:
            return fetch_rest(url)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failures = 0 if fetched() > most else failures + 1
            most = max(most, fetched())
            refused = isinstance(error, requests.HTTPError) and error.response.status_code < 500  # 404, but not 503
            if refused or failures == TRIES:
                raise UserError(f"{url}: could not be downloaded ({reason(error)}); {ALTERNATIVES}") from None
        time.sleep(PAUSE_S * failures)


def fetch_rest(url: str) -> None:
    """Append the missing bytes to PARTIAL, or start over if the server does not support ranges.

    Raises an exception of requests or urllib3 if the server refuses, stalls, or closes the connection too early.
    """
    start = fetched()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response:
        if start and response.status_code == 416:  # nothing after `start`: the download is complete
            return
        if not response.ok:
            raise requests.HTTPError(f"{response.status_code} {response.reason}", response=response)
        if response.status_code != 206:
            start = 0
        total = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        bar = tqdm(desc="downloading", initial=start, total=total, unit="B", unit_scale=True, disable=None)
        with PARTIAL.open("ab" if start else "wb") as file, bar:
            # read1 returns what has arrived so far, so that it is written even if the connection then breaks.
            while chunk := response.raw.read1(2**20):
                file.write(chunk)
                bar.update(len(chunk))


def fetched() -> int:
    """The size of PARTIAL in bytes."""
    return PARTIAL.stat().st_size if PARTIAL.exists() else 0


def reason(error: BaseException) -> str:
    """The text of the innermost exception, such as `Connection refused`; the outer ones only describe the libraries."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def check(url: str, sha256: str) -> None:
    """Raise UserError and delete PARTIAL unless it has the expected SHA-256."""
    with PARTIAL.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        PARTIAL.unlink()
        raise UserError(f"{url}: expected SHA-256 {sha256}, got {found}; the download was deleted; {ALTERNATIVES}")


if __name__ == "__main__":
    run_stage(main)
