"""Ship what recipes have trained: `python tools/ship.py shapes_clip ...` packs results/NAME's.

With --pack the packed weights stay in results/NAME, as weights.safetensors.xz. With --round they
keep 4 of bfloat16's 7 bits of mantissa, and pack to three quarters.
"""

import hashlib
import lzma
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutorial_lib.pretrained import FOLDER

RESULTS = Path(__file__).resolve().parents[1] / "results"
BFLOAT16 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]  # 2 bytes a number


def ship(
    names: list[str], results: Path = RESULTS, folder: Path = FOLDER, *, rounded: bool = False
) -> None:
    """Move recorded weights into the package, and write the checksums of all that is there."""
    for name in names:
        if rounded:
            round_off(results / name / "weights.safetensors")
        pack(results / name / "weights.safetensors", folder / f"{name}.safetensors.xz")
    files = sorted(folder.glob("*.safetensors.xz"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def round_off(plain: Path) -> None:
    """Round a file of bfloat16 weights to 4 bits of mantissa: 3 parts in 100 at most."""
    with safe_open(plain, "pt") as file:
        about = file.metadata()
    save_file({name: shorter(x) for name, x in load_file(plain).items()}, plain, about)


def shorter(x: Tensor) -> Tensor:
    """Return bfloat16 numbers whose last 3 bits are 0, the nearest."""
    return ((x.view(torch.int16).int() + 4) >> 3 << 3).short().view(torch.bfloat16)


def pack(plain: Path, packed: Path) -> None:
    """Put a file of weights, packed to two thirds of its size, in place of it."""
    packed.write_bytes(lzma.compress(plain.read_bytes(), filters=BFLOAT16))
    plain.unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pack"]:
        for name in sys.argv[2:]:
            plain = RESULTS / name / "weights.safetensors"
            pack(plain, plain.with_name(f"{plain.name}.xz"))
    elif sys.argv[1:2] == ["--round"]:
        ship(sys.argv[2:], rounded=True)
    else:
        ship(sys.argv[1:])
