"""Fetch a file once: resumed where it broke off, checked, then renamed into place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

_ATTEMPTS = 5
_CHUNK = 1 << 16


class DataError(ValueError):
    """Say which file of a data set cannot be had or used, why, and what to do."""


def progress_bar(**kwargs: object) -> tqdm:
    """Return a tqdm bar that shows only where a person watches.

    It hides under pytest and nbval (PYTEST_VERSION), CI, or TQDM_DISABLE in the environment.
    """
    unwatched = ("CI", "PYTEST_VERSION", "TQDM_DISABLE")
    return tqdm(**kwargs, disable=any(os.environ.get(name) for name in unwatched))


def md5_of(path: Path) -> str:
    """Return the MD5 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(url: str, target: Path, md5: str) -> None:
    """Fetch `url` to `target`, which appears only when it is whole and its MD5 sum is right.

    Until then the bytes lie beside it in NAME.partial, from which a later call goes on. Raises
    DataError; a file with the wrong sum is deleted.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not any(_fetch_rest(url, partial) for _ in range(_ATTEMPTS)):
            raise DataError(
                f"the download of {url} broke off {_ATTEMPTS} times: call again to go on from "
                f"the {partial.stat().st_size:,} bytes that are here"
            )
        if md5_of(partial) != md5:
            partial.unlink()
            raise DataError(
                f"what came from {url} has another MD5 sum than {md5} and was deleted: try again"
            )
        partial.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot write {partial} ({error.strerror}): make room or allow it, then call again; "
            "what has arrived is kept"
        ) from error


def _fetch_rest(url: str, partial: Path) -> bool:
    """Append what is missing; return whether the file is now whole."""
    have = partial.stat().st_size if partial.exists() else 0
    response = _open(url, have)
    if response is None:
        return True
    resumed = response.status == 206  # any other server sends the file from its start
    have = have if resumed else 0
    length = response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    bar = progress_bar(total=total, initial=have, unit="B", unit_scale=True, desc=partial.stem)
    with response, partial.open("ab" if resumed else "wb") as file, bar:
        for chunk in _chunks(response):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        return total is None or file.tell() >= total


def _open(url: str, start: int) -> HTTPResponse | None:
    """Ask for the bytes from `start` on; return None if there are none."""
    try:
        return urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=30)
    except HTTPError as error:
        if error.code == 416 and start:
            return None
        raise DataError(f"cannot download {url}: the server says {error.code}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"cannot download {url} ({reason}): check the connection") from error


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the body as far as it comes: a cut connection ends it early."""
    with suppress(OSError, HTTPException):
        while chunk := response.read(_CHUNK):
            yield chunk
