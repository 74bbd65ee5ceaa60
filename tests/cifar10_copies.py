"""Tiny copies of CIFAR-10 in each of its forms, whole or damaged."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutorial_lib import cifar10 as module

PER_CLASS = {"train": 5, "test": 2}
CLASSES = module.CLASSES


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """A copy is whole with five training and two test images a class; the cache is empty."""
    monkeypatch.setattr(module, "_PER_CLASS", PER_CLASS)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("TUTORIAL_LIB_DATA", raising=False)


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Smooth, distinct images (n, 3, 32, 32) with labels 0..9, 0..9, …."""
    n = 10 * PER_CLASS[split]
    waves = np.random.default_rng(len(split)).uniform(0, 6, (n, 3, 2, 1))
    x, y = np.linspace(0, 1, 32), np.linspace(0, 1, 32)[:, None]
    bright = np.sin(waves[..., :1, :] * x + waves[..., 1:, :] * y)
    return ((bright + 1) * 127).astype(np.uint8), np.arange(n) % 10


class Python2Pickler(pickle._Pickler):
    """Write all strings as Python 2's byte strings, as in the official batches."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, text: bytes | str) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_string


def pickled(batch: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(batch)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def official_batches() -> dict[str, object]:
    batches = {}
    for split, names in module._BATCHES.items():
        pixels, labels = pictures(split)
        for name, rows in zip(names, np.split(np.arange(len(labels)), len(names)), strict=True):
            data, answers = pixels[rows].reshape(len(rows), -1), labels[rows].tolist()
            batches[name] = {b"batch_label": name.encode(), b"labels": answers, b"data": data}
    return batches


def official(path: Path, **replaced: object) -> Path:
    """Write an archive in the official layout, some batches replaced (None: left out)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, batch in (official_batches() | replaced).items():
            if batch is not None:
                content = batch if isinstance(batch, bytes) else pickled(batch)
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def folder(path: Path, ending: str = "png") -> Path:
    for split in PER_CLASS:
        pixels, labels = pictures(split)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            file = path / split / CLASSES[label] / f"{i // 10:04}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    return path


def archived(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        archive.add(source, arcname="./my copy")
    return path


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
