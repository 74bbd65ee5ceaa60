"""Ship what recipes have trained: `python tools/ship.py shapes_clip ...` takes results/NAME's.

With --pack the weights stay in results/NAME, as weights.safetensors.xz.
"""

import hashlib
import lzma
import shutil
import sys
from pathlib import Path

from tutorial_lib.pretrained import FOLDER

RESULTS = Path(__file__).resolve().parents[1] / "results"
BFLOAT16 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]  # 2 bytes a number


def ship(names: list[str], results: Path = RESULTS, folder: Path = FOLDER) -> None:
    """Move recorded weights into the package, and write the checksums of all that is there."""
    for name in names:
        shutil.move(results / name / "weights.safetensors", folder / f"{name}.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def pack(names: list[str], results: Path = RESULTS) -> None:
    """Pack recorded weights where they lie, to two thirds of their size."""
    for name in names:
        plain = results / name / "weights.safetensors"
        packed = lzma.compress(plain.read_bytes(), filters=BFLOAT16)
        plain.with_name(f"{plain.name}.xz").write_bytes(packed)
        plain.unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pack"]:
        pack(sys.argv[2:])
    else:
        ship(sys.argv[1:])
