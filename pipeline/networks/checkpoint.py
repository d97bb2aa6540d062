"""Checkpoints, from which an interrupted training run resumes after its last finished epoch."""

import hashlib
import io
import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.core.code import describe
from pipeline.core.files import atomic_write, partial_of
from pipeline.networks.devices import hardware_name

import torch
import torchvision

DIGEST_BYTES = 32  # SHA-256, at the start of the file


class Checkpoint:
    """The state of a training run after its last finished epoch, in a file that only an identical run loads.

    A run is identical if `settings` (any JSON value), the size and modification time of `files`, the code of `script`
    (without comments and formatting), library versions, device and number of threads are all the same. Resuming from
    any other state would give different bytes.
    """

    def __init__(self, path: Path, settings: dict, files: list[Path], script: Path, device: torch.device) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        identity = {
            "settings": settings,
            "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            "code": describe(script),
            "versions": [torch.__version__, torchvision.__version__, *_version_of_timm()],
            "device": hardware_name(device),
            "threads": torch.get_num_threads(),
        }
        self._training = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def load(self) -> dict | None:
        """Return the last saved state with its tensors on the CPU, or None if this run has no checkpoint.

        Deletes the partial file of a run that was killed while saving one.
        """
        partial_of(self._path).unlink(missing_ok=True)
        try:
            file = self._path.read_bytes()
        except FileNotFoundError:
            return None
        digest, content = file[:DIGEST_BYTES], memoryview(file)[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:  # torch.load would not notice damaged tensors
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if checkpoint["training"] == self._training:
                return checkpoint["state"]
        print(
            f"{self._path}: damaged, or from different params, data, code or hardware; training starts from scratch",
            flush=True,
        )
        return None

    def save(self, state: dict) -> None:
        """Save `state`: lists and dicts of tensors, numbers and strings. It is written in the background.

        If the disk is full, warn and continue.
        """
        buffer = io.BytesIO()
        torch.save({"training": self._training, "state": state}, buffer)
        self.wait()
        self._writing = self._writer.submit(self._write, buffer.getbuffer())

    def wait(self) -> None:
        """Wait until the last state is saved."""
        if self._writing:
            self._writing.result()

    def _write(self, content: memoryview) -> None:
        digest = hashlib.sha256(content).digest()
        try:
            with atomic_write() as write_to, write_to(self._path).open("wb") as file:
                file.write(digest)
                file.write(content)
        except OSError as error:
            print(
                f"warning: {self._path}: {error.strerror}; an interrupted training run will start from scratch",
                file=sys.stderr,
            )


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint if there is one, and what a run that was killed while saving one has left."""
    path.unlink(missing_ok=True)
    partial_of(path).unlink(missing_ok=True)


def _version_of_timm() -> list[str]:
    """The version of timm, if the network is one of timm's: only then has it been imported."""
    return [sys.modules["timm"].__version__] if "timm" in sys.modules else []
