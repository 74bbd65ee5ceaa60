"""CIFAR-10 (Krizhevsky 2009): from the official archive, or from a local copy in other forms.

A local copy is the official archive, a folder of images `train|test/CLASS/NAME.EXT`, or a tar
archive of such a folder. Whatever is wrong with it ends in a DataError that names the file.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tutorial_lib.download import DataError, download, md5_of, progress_bar

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
VARIABLE = "TUTORIAL_LIB_DATA"

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_MD5 = "c58f30108f718f92721af3b95e74349a"
_ARCHIVE = "cifar-10-python.tar.gz"
_BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_PER_CLASS = {"train": 5000, "test": 1000}
_FORMS = {
    _MD5: "CIFAR-10, official",
    "237cc97b834e81f60aee1e14554c3fe0": "CIFAR-10, JPEG copy (about 29 dB)",
}
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_BROKEN_ARCHIVE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Images:
    """Hold pixels (N, 3, 32, 32) uint8 and labels (N,) int64, indices into `classes`.

    `form` says in words where the pixels came from: show it with whatever is made of them.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    form: str

    def __len__(self) -> int:
        return len(self.labels)


def cifar10(
    split: str = "train",
    *,
    source: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Images:
    """Return the 50,000 "train" or 10,000 "test" images, or the first `limit` of them.

    They come in a fixed shuffle in which any first n are balanced over the classes to within
    one. `source` is a local copy or a folder that holds one; without it the environment variable
    TUTORIAL_LIB_DATA is asked, then the cache folder, to which the official archive (170 MB) is
    downloaded at last. Decoded images are kept in the cache folder. Raises DataError.
    """
    if split not in _BATCHES:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    path = _find(source)
    images = _load(path, split)
    if limit is None:
        return images
    if not 0 < limit <= len(images):
        raise ValueError(f"limit must be 1 to {len(images)}, got {limit}")
    return replace(
        images, pixels=images.pixels[:limit].clone(), labels=images.labels[:limit].clone()
    )


def to_floats(pixels: Tensor) -> Tensor:
    """Return 8-bit pixels as float32 in [-1, 1] (DDPM, Ho et al. 2020, section 3.3)."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Return values in [-1, 1] as the nearest 8-bit pixels; what lies outside is clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def cache_folder() -> Path:
    """Return the folder for downloads and decoded images, where this system keeps such things."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tutorial_lib"


def _find(source: str | os.PathLike[str] | None) -> Path:
    named = {"source": source, VARIABLE: os.environ.get(VARIABLE)}
    for name, place in named.items():
        if place:
            path = _copy_at(Path(place).expanduser())
            if path is None:
                raise DataError(
                    f"{name} is {place}, where there is no copy of CIFAR-10: it must be "
                    f"{_ARCHIVE}, a folder of images train|test/CLASS/NAME.EXT, a tar archive of "
                    "such a folder, or a folder with one of these in it"
                )
            return path
    return _copy_at(cache_folder()) or _downloaded(cache_folder() / _ARCHIVE)


def _copy_at(place: Path) -> Path | None:
    if place.is_file() or any((place / split).is_dir() for split in _BATCHES):
        return place
    endings = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
    archives = sorted(p for p in place.glob("cifar*10*") if p.name.endswith(endings))
    official = place / _ARCHIVE
    return official if official in archives else next(iter(archives), None)


def _downloaded(target: Path) -> Path:
    try:
        download(_URL, target, _MD5)
    except DataError as error:
        raise DataError(f"{error}; or set {VARIABLE} to a copy of CIFAR-10 you have") from error
    return target


def _load(source: Path, split: str) -> Images:
    """Return the decoded images from the cache folder; decode and keep them the first time."""
    try:
        key = _fingerprint(source, split)
    except OSError as error:
        raise DataError(f"cannot read {source} ({error.strerror})") from error
    kept = cache_folder() / f"cifar10-{split}-{key}.safetensors"
    images = _recall(kept)
    if images is None:
        images = _decode(source, split, _FORMS.get(key))
        _keep(images, kept)
    return images


def _fingerprint(source: Path, split: str) -> str:
    """Return an archive's MD5 sum, or that of names, sizes and times of a folder's images."""
    if source.is_file():
        return md5_of(source)
    listing = hashlib.md5(usedforsecurity=False)
    for path in sorted(source.glob(f"{split}/*/*")):
        stat = path.stat()
        line = f"{path.relative_to(source).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        listing.update(line.encode())
    return listing.hexdigest()


def _recall(path: Path) -> Images | None:
    """Return the images kept in `path`, None if there are none or the file is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            pixels, labels = file.get_tensor("pixels"), file.get_tensor("labels")
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return None
    if metadata.get("crc32") != str(zlib.crc32(pixels.numpy(), zlib.crc32(labels.numpy()))):
        return None
    return Images(pixels, labels, CLASSES, metadata["form"])


def _keep(images: Images, path: Path) -> None:
    """Write the decoded images beside `path`, then rename; warn if there is no room for them."""
    crc = zlib.crc32(images.pixels.numpy(), zlib.crc32(images.labels.numpy()))
    tensors = {"pixels": images.pixels, "labels": images.labels}
    content = safetensors.torch.save(tensors, {"form": images.form, "crc32": str(crc)})
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own, since two notebooks may decode at the same time
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        warnings.warn(
            f"the decoded images cannot be kept in {path.parent} ({error.strerror}), so they will "
            "be decoded again next time",
            stacklevel=4,
        )
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


class _Shot(NamedTuple):
    """Hold the images of one file of a copy: pixels (n, 3, 32, 32) and labels (n,)."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    kind: str


def _decode(source: Path, split: str, form: str | None) -> Images:
    with progress_bar(total=10 * _PER_CLASS[split], unit="image", desc="decoding") as bar:
        shots = []
        for shot in _shots(source, split):
            shots.append(shot)
            bar.update(len(shot.labels))
    shots.sort(key=lambda shot: shot.name)
    labels = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *(s.labels for s in shots)]))
    for name, count in zip(CLASSES, torch.bincount(labels, minlength=10).tolist(), strict=True):
        if count != _PER_CLASS[split]:
            raise DataError(
                f"{source} holds {count} images of class {name} in its {split} split, not "
                f"{_PER_CLASS[split]}: it is incomplete or mislabelled, get a whole copy"
            )
    pixels = torch.from_numpy(np.concatenate([shot.pixels for shot in shots])).contiguous()
    order = _balanced_order(labels)
    kinds = " and ".join(sorted({shot.kind for shot in shots}))
    return Images(pixels[order], labels[order], CLASSES, form or f"CIFAR-10, {kinds} copy")


def _balanced_order(labels: Tensor) -> Tensor:
    """Return a fixed order of equally many images a class: rounds of one of each, shuffled."""
    generator = torch.Generator().manual_seed(10)

    def shuffled(rows: Tensor) -> Tensor:
        keys = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
        return rows.gather(1, keys.argsort(1))

    by_class = shuffled(labels.argsort(stable=True).reshape(10, -1))  # (10, N / 10)
    return shuffled(by_class.T).reshape(-1)


def _shots(source: Path, split: str) -> Iterator[_Shot]:
    """Yield what each file of the split holds, in the order of the copy."""
    try:
        for path, read in _entries(source):
            *parents, name = path.split("/")
            if name in _BATCHES[split] and parents[-1:] == ["cifar-10-batches-py"]:
                yield _batch(path, read(), source)
            elif parents[-2:-1] == [split] and not name.startswith("."):
                yield _image(path, parents[-1], read(), source)
    except _BROKEN_ARCHIVE as error:
        raise DataError(
            f"{source} cannot be read to its end ({_brief(error)}): it is damaged, get a good copy"
        ) from error


def _brief(error: Exception) -> str:
    """Return the first line of what an error says, which may be nothing, or many."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_IMAGE_FORMATS)}"
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def _entries(source: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name and the content of each file in a folder or an archive."""
    if source.is_dir():
        for path in source.glob("*/*/*"):
            yield path.relative_to(source).as_posix(), path.read_bytes
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read
        while archive.fileobj.read(1 << 20):  # the checksum stands at the very end
            pass


def _image(path: str, name: str, content: bytes, source: Path) -> _Shot:
    if name not in CLASSES:
        raise DataError(
            f"{source}: {path} is mislabelled, the classes of CIFAR-10 are {', '.join(CLASSES)}: "
            "rename its folder"
        )
    try:
        with Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            if image.size != (32, 32):
                raise ValueError(f"it has {image.width} x {image.height} pixels, not 32 x 32")
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None]
            kind = image.format
    except Exception as error:  # decoders raise errors of many types on damaged files
        reason = f"{source}: {path} is no image of CIFAR-10 ({_brief(error)})"
        raise DataError(f"{reason}: replace it or get a good copy") from error
    return _Shot(path, pixels, np.array([CLASSES.index(name)], dtype=np.int64), kind)


def _batch(path: str, content: bytes, source: Path) -> _Shot:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.array(batch[b"labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"its data are {pixels.dtype} {pixels.shape}")
        if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise ValueError("its labels are not integers from 0 to 9")
    except Exception as error:  # a damaged pickle raises errors of any type
        reason = f"{source}: {path} is no batch of CIFAR-10 ({_brief(error)})"
        raise DataError(f"{reason}: get a good copy") from error
    return _Shot(path, pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64), "unverified")


def _byte_type(code: bytes | str, align: int = 0, copy: int = 1) -> np.dtype:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
    return np.dtype(np.uint8, copy=True)  # a pickle may go on to change it


class _BatchUnpickler(pickle.Unpickler):
    """Read the official batches, pickles of byte arrays, and refuse whatever else one can ask."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ADMITTED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _byte_type,
    }

    def find_class(self, module: str, name: str) -> object:
        """Return an admitted global; raise UnpicklingError for any other."""
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None
