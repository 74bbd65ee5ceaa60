"""Keep tensors in safetensors files that are whole or absent, with a checksum."""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tutorial_lib import borrowed, ranks

Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """Say that a checkpoint cannot be read, written or used for this run."""


def write(
    path: Path, tensors: Tensors, metadata: dict[str, str], when: str, keep: int = 1
) -> None:
    """Write beside the file, wait for the disk, then rename.

    With `keep` > 1 older files stay as path.1 (the last but one), path.2, ... Raises
    CheckpointError, which says `when` it was, and leaves what lay there before.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    content = safetensors.torch.save(tensors, metadata | {"crc32": str(_crc32(tensors))})
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _keep_older(path, keep)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise CheckpointError(
            f"cannot write {path} {when} ({error.strerror}): make room or "
            "choose another file, then call train again; any earlier checkpoint is intact"
        ) from error


def _keep_older(path: Path, keep: int) -> None:
    """Give what lies at `path` the name path.1 too, and older files one name further on."""
    for age in range(keep - 1, 1, -1):
        if _older(path, age - 1).exists():
            _older(path, age - 1).replace(_older(path, age))
    if keep > 1 and path.exists():
        _older(path, 1).unlink(missing_ok=True)
        os.link(path, _older(path, 1))  # a kill at any moment finds a file at `path`


def _older(path: Path, age: int) -> Path:
    return path.with_name(f"{path.name}.{age}") if age else path


def read(path: Path) -> tuple[dict[str, str], Tensors]:
    """Return a file's metadata and tensors; raise CheckpointError if it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("crc32") != str(_crc32(tensors)):
            raise safetensors.SafetensorError("its checksum is wrong")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of train ({error}): delete it to "
            f"start again, or put a good copy in its place{_spare(path)}"
        ) from error
    return metadata, tensors


def _spare(path: Path) -> str:
    return f", such as {_older(path, 1)}" if _older(path, 1).exists() else ""


def described(x: Tensor) -> str:
    """Return a tensor's type and shape in a few characters."""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def bytes_of(x: Tensor) -> memoryview:
    """Return a tensor's memory, row after row."""
    return x.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _crc32(tensors: Tensors) -> int:
    return reduce(lambda crc, name: zlib.crc32(bytes_of(tensors[name]), crc), sorted(tensors), 0)


class Run(Protocol):
    """Hold what a step changes, and say what it is a run of."""

    step: int
    started: float
    device: torch.device
    own: range
    generators: list[torch.Generator]

    def tensors(self) -> Tensors:
        """Return the live tensors that a file must restore, by name."""
        ...

    def restore(self, saved: Tensors, step: int, seconds: float) -> None:
        """Become the run that wrote `saved`, after its `step` steps."""
        ...

    def identity(self) -> dict[str, str]:
        """Return what a file must agree on before this run may go on from it."""
        ...


@dataclass(frozen=True)
class RunFile:
    """Keep a run of `train` in one file, replaced as a whole or not at all.

    `about` says what the run is and who wrote it; it is stored, and never compared.
    """

    path: Path
    keep: int = 1
    about: dict[str, str] = field(default_factory=dict)

    def save(self, run: Run) -> None:
        """Write the run's state; raise CheckpointError."""
        metadata = self.about | {
            "identity": json.dumps(run.identity()),
            "step": str(run.step),
            "seconds": repr(time.perf_counter() - run.started),
        }
        states = {"dropout": borrowed.state(run.device)} if ranks.rank() == 0 else {}
        own = zip(run.own, run.generators, strict=True)
        states |= {f"generator {k}": generator.get_state() for k, generator in own}
        tensors = ranks.gathered(run.tensors()) | ranks.merged(states)
        if ranks.rank() == 0:
            write(self.path, tensors, metadata, f"after step {run.step}", self.keep)
        ranks.wait()

    def load(self, run: Run) -> None:
        """Put the run where the file left it; raise CheckpointError if it belongs to another."""
        metadata, tensors = read(self.path)
        ours, theirs = run.identity(), json.loads(metadata["identity"])
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise CheckpointError(
                    f"{self.path} belongs to another run: {key} is {theirs.get(key)} there and "
                    f"{ours.get(key)} here; give this run another file, or delete that one"
                )
        run.restore(tensors, int(metadata["step"]), float(metadata["seconds"]))
