"""Copies of CIFAR-10 that are damaged, incomplete or malicious: each named in one sentence."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from cifar10_copies import archived, cut, flipped, folder, official, official_batches, pickled
from cifar10_copies import tiny as tiny
from PIL import Image

from tutorial_lib.data import DataError, cifar10


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def spoiled(name: str, **changes: object) -> dict[bytes, object]:
    return official_batches()[name] | {key.encode(): value for key, value in changes.items()}


BAD_BATCHES = {
    "code": (pickled(Evil()), r"posix\.mkdir|nt\.mkdir"),
    "label": (spoiled("data_batch_2", labels=[10, *range(9)]), "integers from 0 to 9"),
    "few labels": (spoiled("data_batch_2", labels=[1, 2]), r"its data are uint8 \(10, 3072\)"),
    "floats": (spoiled("data_batch_2", data=np.zeros((10, 3072))), "array of type"),
    "shape": (spoiled("data_batch_2", data=np.zeros((10, 9), np.uint8)), r"\(10, 9\)"),
    "list": (pickled([1, 2]), ""),
    "truncated": (pickled(official_batches()["data_batch_2"])[:-500], ""),
}


@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_bad_batches_are_named(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    batch, reason = BAD_BATCHES[fault]
    source = official(tmp_path / "bad.tar.gz", data_batch_2=batch)
    with pytest.raises(DataError, match=rf"{source}: .*data_batch_2 is no batch.*{reason}"):
        cifar10(source=source)
    assert not (tmp_path / "evil").exists()


def test_a_missing_batch_is_an_incomplete_copy(tmp_path):
    source = official(tmp_path / "bad.tar.gz", data_batch_3=None)
    with pytest.raises(
        DataError, match=rf"{source} holds 4 images of class airplane in its train"
    ):
        cifar10(source=source)


@pytest.mark.parametrize("spoil", [cut, flipped, lambda _: b"", lambda _: b"no archive" * 99])
@pytest.mark.parametrize("form", ["official", "images"])
def test_damaged_archives_are_named(tmp_path, spoil, form):
    source = tmp_path / "copy.tar.xz"
    if form == "official":
        official(source)
    else:
        archived(source, folder(tmp_path / "images"))
    source.write_bytes(spoil(source.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(source))) as error:
        cifar10(source=source)
    assert "\n" not in str(error.value)


def no_image(file: Path) -> None:
    file.write_bytes(b"no image")


def half_an_image(file: Path) -> None:
    file.write_bytes(cut(file.read_bytes()))


def larger(file: Path) -> None:
    Image.new("RGB", (33, 32)).save(file)


def missing(file: Path) -> None:
    file.unlink()


def misspelt(file: Path) -> None:
    file.parent.rename(file.parent.with_name("hourse"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_image, r"horse/0001.png is no image of CIFAR-10 \(it is none of JPEG, PNG"),
        (half_an_image, "horse/0001.png is no image of CIFAR-10"),
        (larger, r"horse/0001.png is no image .* 33 x 32 pixels, not 32 x 32"),
        (missing, "holds 4 images of class horse in its train split, not 5"),
        (misspelt, r"train/hourse/\d+.png is mislabelled"),
    ],
)
def test_bad_images_are_named(tmp_path, spoil, reason):
    source = folder(tmp_path / "images")
    spoil(source / "train" / "horse" / "0001.png")
    with pytest.raises(DataError, match=rf"{source}.*{reason}"):
        cifar10(source=source)
    assert len(cifar10("test", source=source)) == 20
