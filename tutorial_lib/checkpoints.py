"""Keep tensors in safetensors files that are whole or absent, with a checksum."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from functools import reduce
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """Say that a checkpoint cannot be read, written or used for this run."""


def write(path: Path, tensors: Tensors, metadata: dict[str, str], when: str) -> None:
    """Write beside the file, wait for the disk, then rename.

    Raises CheckpointError, which says `when` it was, and leaves what lay there before.
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
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise CheckpointError(
            f"cannot write {path} {when} ({error.strerror}): make room or "
            "choose another file, then call train again; any earlier checkpoint is intact"
        ) from error


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
            "start again, or put a good copy in its place"
        ) from error
    return metadata, tensors


def described(x: Tensor) -> str:
    """Return a tensor's type and shape in a few characters."""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def bytes_of(x: Tensor) -> memoryview:
    """Return a tensor's memory, row after row."""
    return x.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _crc32(tensors: Tensors) -> int:
    return reduce(lambda crc, name: zlib.crc32(bytes_of(tensors[name]), crc), sorted(tensors), 0)
