"""CIFAR-10 in its three forms, on tiny copies; the real images where they are at hand."""

import errno
import os

import numpy as np
import pytest
import torch
from cifar10_copies import CLASSES, archived, cut, flipped, folder, official, pictures
from cifar10_copies import tiny as tiny
from PIL import Image

from tutorial_lib import cifar10 as module
from tutorial_lib.data import DataError, cifar10, to_floats, to_pixels

REAL = os.environ.get("TUTORIAL_LIB_DATA")


@pytest.mark.parametrize("split", ["train", "test"])
def test_three_forms_give_the_same_images(tmp_path, split):
    plain = folder(tmp_path / "images")
    copies = [
        cifar10(split, source=source)
        for source in (official(tmp_path / "a.tar.gz"), plain, archived(tmp_path / "b.txz", plain))
    ]
    pixels, labels = pictures(split)
    for images in copies:
        assert torch.equal(images.pixels, copies[0].pixels)
        assert torch.equal(images.labels, copies[0].labels)
        assert images.classes == CLASSES
    assert [images.form for images in copies] == [
        "CIFAR-10, unverified copy",
        "CIFAR-10, PNG copy",
        "CIFAR-10, PNG copy",
    ]
    known = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    got = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(copies[0].pixels, copies[0].labels, strict=True)
    }
    assert got == known


def test_a_jpeg_copy_says_so_and_is_near(tmp_path):
    images = cifar10("test", source=folder(tmp_path, "jpg"))
    assert images.form == "CIFAR-10, JPEG copy"
    exact = cifar10("test", source=folder(tmp_path / "exact"))
    gap = (images.pixels.float() - exact.pixels.float()).square().mean().sqrt()
    assert 0 < float(gap) < 10


def test_the_official_sum_is_what_makes_it_official(tmp_path, monkeypatch):
    source = official(tmp_path / "cifar-10-python.tar.gz")
    monkeypatch.setattr(module, "_FORMS", {module.md5_of(source): "CIFAR-10, official"})
    assert cifar10("test", source=source).form == "CIFAR-10, official"
    assert cifar10("test", source=source).form == "CIFAR-10, official"  # and so it is kept


def test_any_first_images_are_balanced_and_not_sorted(tmp_path):
    source = folder(tmp_path / "images")
    whole = cifar10("train", source=source)
    for n in (7, 10, 23, 50):
        part = cifar10("train", source=source, limit=n)
        assert torch.equal(part.pixels, whole.pixels[:n])
        assert torch.equal(part.labels, whole.labels[:n])
        counts = torch.bincount(part.labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    assert whole.labels[:10].tolist() != sorted(whole.labels[:10].tolist())
    for wrong in (0, 51, -1):
        with pytest.raises(ValueError, match=rf"limit must be 1 to 50, got {wrong}"):
            cifar10("train", source=source, limit=wrong)
    with pytest.raises(ValueError, match='split must be "train" or "test"'):
        cifar10("valid", source=source)


def test_places_are_asked_in_turn(tmp_path, monkeypatch):
    given, named, cache = (tmp_path / name for name in ("given", "named", "cache"))
    folder(given)
    folder(named, "bmp")
    cache.mkdir()
    official(cache / "cifar-10-python.tar.gz")
    assert cifar10("test").form == "CIFAR-10, unverified copy"
    monkeypatch.setenv("TUTORIAL_LIB_DATA", str(named))
    assert cifar10("test").form == "CIFAR-10, BMP copy"
    assert cifar10("test", source=given).form == "CIFAR-10, PNG copy"


def test_a_folder_may_hold_an_archive(tmp_path, monkeypatch):
    archived(tmp_path / "cifar10-png.tar.xz", folder(tmp_path / "images"))
    monkeypatch.setenv("TUTORIAL_LIB_DATA", str(tmp_path))
    assert cifar10("test").form == "CIFAR-10, PNG copy"


@pytest.mark.parametrize("name", ["source", "TUTORIAL_LIB_DATA"])
def test_a_place_without_a_copy_is_named(tmp_path, monkeypatch, name):
    for place in (tmp_path / "nowhere", tmp_path):
        monkeypatch.setenv("TUTORIAL_LIB_DATA", str(place))
        with pytest.raises(DataError, match=rf"{name} is {place}, where there is no copy"):
            cifar10(source=place if name == "source" else None)


def test_without_a_copy_the_official_archive_is_downloaded(tmp_path, monkeypatch):
    source = official(tmp_path / "official.tar.gz")
    monkeypatch.setattr(module, "_URL", source.as_uri())
    monkeypatch.setattr(module, "_MD5", module.md5_of(source))
    assert len(cifar10("test")) == 20
    source.unlink()
    assert len(cifar10("train")) == 50
    assert (tmp_path / "cache" / "cifar-10-python.tar.gz").exists()


def test_without_a_network_the_other_way_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(DataError, match="or set TUTORIAL_LIB_DATA to a copy of CIFAR-10 you have"):
        cifar10()


def test_files_that_systems_leave_behind_are_no_images(tmp_path):
    source = folder(tmp_path / "images")
    (source / "test" / "cat" / ".DS_Store").write_bytes(b"?")
    (source / "test" / "notes.txt").write_text("?")
    assert len(cifar10("test", source=source)) == 20


def test_decoded_images_are_kept_until_the_copy_changes(tmp_path, monkeypatch):
    source = folder(tmp_path / "images", "bmp")
    first = cifar10("test", source=source)
    decode = module._decode
    monkeypatch.setattr(module, "_decode", None)
    again = cifar10("test", source=source)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert first.form == again.form
    monkeypatch.setattr(module, "_decode", decode)
    black = source / "test" / "dog" / "0000.bmp"
    size = black.stat().st_size
    Image.new("RGB", (32, 32)).save(black)
    assert black.stat().st_size == size  # so that only the time tells
    changed = cifar10("test", source=source)
    assert int((changed.pixels != first.pixels).flatten(1).any(1).sum()) == 1


@pytest.mark.parametrize("spoil", [cut, flipped])
def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, spoil):
    source = folder(tmp_path / "images")
    first = cifar10("test", source=source)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(spoil(kept.read_bytes()))
    assert torch.equal(cifar10("test", source=source).pixels, first.pixels)
    monkeypatch.setattr(module, "_decode", None)
    assert torch.equal(cifar10("test", source=source).pixels, first.pixels)


def test_a_cache_that_cannot_be_written_only_warns(tmp_path):
    source = folder(tmp_path / "images")
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be kept in .*cache .* decoded again next time"):
        assert len(cifar10("test", source=source)) == 20


def test_a_full_disk_only_warns_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(cifar10("test", source=folder(tmp_path / "images"))) == 20
    assert list((tmp_path / "cache").iterdir()) == []


def test_bytes_survive_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_floats(every)
    assert floats.dtype == torch.float32
    assert (float(floats[0]), float(floats[-1])) == (-1, 1)
    assert torch.equal(to_pixels(floats), every)
    assert torch.equal(to_pixels(floats.double()), every)
    assert to_pixels(torch.tensor([-7.0, 1.001, 3.0])).tolist() == [0, 255, 255]
    truncated = ((floats + 1) * 127.5).to(torch.uint8)  # the wrong variant: no rounding
    assert not torch.equal(truncated, every)


def test_the_real_images(monkeypatch):
    if not REAL:
        pytest.skip("expected: no real CIFAR-10, TUTORIAL_LIB_DATA is not set")
    monkeypatch.undo()
    images = cifar10("test")
    assert images.pixels.shape == (10_000, 3, 32, 32)
    assert images.form.startswith("CIFAR-10, ")
    assert torch.bincount(images.labels).tolist() == [1000] * 10
    colours = images.pixels.float().mean((2, 3)) / 255
    # means of the official test images, which a JPEG keeps to three digits
    assert colours.mean(0).tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-3)
    blue = [float(colours[images.labels == CLASSES.index(c), 2].mean()) for c in CLASSES]
    assert CLASSES[int(np.argmax(blue))] == "airplane"
    assert len(torch.unique(images.pixels.flatten(1), dim=0)) > 9990
