"""Going on with a training that was stopped, from its last finished epoch."""

import hashlib
import io
import json
import sys
from pathlib import Path

from catsdogs.files import written_whole

import torch
import torchvision

STAGES = Path(__file__).resolve().parents[1]
DIGEST_BYTES = 32  # of SHA-256, at the head of the file


class Checkpoint:
    """A training's state after its last finished epoch, in a file that only the same training reads.

    The same: equal `settings` (anything that JSON can hold), `files` of equal size and time of change, the same code,
    library versions, device and number of threads. To go on with any other's state would end in other bytes.
    """

    def __init__(self, path: Path, settings: dict, files: list[Path], device: torch.device) -> None:
        self._path = path
        identity = {
            "settings": settings,
            "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            "code": {str(file): hashlib.sha256((STAGES / file).read_bytes()).hexdigest() for file in _code_files()},
            "versions": [torch.__version__, torchvision.__version__],
            "device": _name(device),
            "threads": torch.get_num_threads(),
        }
        self._training = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def load(self) -> dict | None:
        """The state that was saved last, its tensors on the CPU; None where there is none of this training."""
        try:
            file = self._path.read_bytes()
        except FileNotFoundError:
            return None
        digest, content = file[:DIGEST_BYTES], memoryview(file)[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:  # torch.load would take damaged numbers as they are
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if checkpoint["training"] == self._training:
                return checkpoint["state"]
        print(f"{self._path}: from other params, data, code or hardware, or damaged; training starts anew", flush=True)
        return None

    def save(self, state: dict) -> None:
        """Keep `state`: lists and dicts of tensors, numbers and text. Where the disk has no room, warn and go on."""
        buffer = io.BytesIO()
        torch.save({"training": self._training, "state": state}, buffer)
        content = buffer.getbuffer()
        try:
            with written_whole() as write_to, write_to(self._path).open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
        except OSError as error:
            print(f"warning: {self._path}: {error.strerror}; a stopped training will start anew", file=sys.stderr)

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _code_files() -> list[Path]:
    """The stage's script, and what it has imported of the package beside it, as paths below stages/."""
    ours = [module for name, module in sys.modules.items() if name == "__main__" or name.startswith("catsdogs")]
    files = {Path(file).resolve() for module in ours if (file := getattr(module, "__file__", None))}
    return sorted(file.relative_to(STAGES) for file in files if STAGES in file.parents)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
