"""Fetch Microsoft's public copy of the photos to data/raw/train.zip.

Usage, from the project's root: python stages/download.py [URL SHA256]
The two arguments are for another archive. Until all has come, it lies in data/raw/train.zip.partial: after a broken
connection or Ctrl-C the next run goes on from there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import hashlib
import time

from catsdogs.errors import UserError
from catsdogs.process import run_stage

import requests
import urllib3
from tqdm import tqdm

URL = "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
ARCHIVE = Path("data/raw/train.zip")
PARTIAL = Path("data/raw/train.zip.partial")
WAYS = (
    "three ways to get photos: run `make photos` again (it goes on where a connection broke), put train.zip from "
    "https://www.kaggle.com/c/dogs-vs-cats/data into data/raw/, or see drawn ones with `make demo`"
)
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30
TRIES = 4  # in a row that bring nothing new
PAUSE_S = 1  # before another try, for each failure so far


def main() -> None:
    if len(sys.argv) not in (1, 3):
        raise UserError("expected no arguments, or two: python stages/download.py URL SHA256")
    url, sha256 = sys.argv[1:] or (URL, SHA256)
    if ARCHIVE.exists():
        print(f"{ARCHIVE} is there and is left as it is, Kaggle's or another; delete it first to download Microsoft's")
        return
    ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch(url)
    except OSError as error:  # a full disk names no file
        error.filename = error.filename or str(PARTIAL)
        raise
    check(url, sha256.lower())
    PARTIAL.replace(ARCHIVE)
    print(f"{ARCHIVE}: downloaded; its SHA-256 is the expected one")


def fetch(url: str) -> None:
    """Bring PARTIAL to the end of `url`, in as many tries as bring something new. Raises UserError if that fails."""
    most, failures = fetched(), 0
    while True:
        try:
            return fetch_rest(url)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failures = 0 if fetched() > most else failures + 1
            most = max(most, fetched())
            refused = isinstance(error, requests.HTTPError) and error.response.status_code < 500  # 404, but not 503
            if refused or failures == TRIES:
                raise UserError(f"{url}: could not be downloaded ({reason(error)}); {WAYS}") from None
        time.sleep(PAUSE_S * failures)


def fetch_rest(url: str) -> None:
    """Append to PARTIAL what it lacks, or write it anew where the server sends nothing but the whole.

    Raises requests' or urllib3's exceptions when the server refuses, stalls, or ends too early.
    """
    start = fetched()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response:
        if start and response.status_code == 416:  # nothing lies after `start`: all is here
            return
        if not response.ok:
            raise requests.HTTPError(f"{response.status_code} {response.reason}", response=response)
        if response.status_code != 206:
            start = 0
        total = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with (
            PARTIAL.open("ab" if start else "wb") as file,
            tqdm(desc="downloading", initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.raw.read1(2**20):  # hands over what has come, also just before a break
                file.write(chunk)
                bar.update(len(chunk))


def fetched() -> int:
    return PARTIAL.stat().st_size if PARTIAL.exists() else 0


def reason(error: BaseException) -> str:
    """What the innermost exception says, such as `Connection refused`: those around it say where in the libraries."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def check(url: str, sha256: str) -> None:
    """Raise UserError, and delete PARTIAL, unless that has the SHA-256 expected."""
    with PARTIAL.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        PARTIAL.unlink()
        raise UserError(f"{url}: expected SHA-256 {sha256}, got {found}; nothing was kept; {WAYS}")


if __name__ == "__main__":
    run_stage(main)
