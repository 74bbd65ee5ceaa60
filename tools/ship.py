"""Ship what recipes have trained: `python tools/ship.py shapes_clip ...` packs results/NAME's.

With --pack the packed weights stay in results/NAME, as weights.safetensors.xz.
"""

import hashlib
import lzma
import sys
from pathlib import Path

from tutorial_lib.pretrained import FOLDER

RESULTS = Path(__file__).resolve().parents[1] / "results"
BFLOAT16 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]  # 2 bytes a number


def ship(names: list[str], results: Path = RESULTS, folder: Path = FOLDER) -> None:
    """Move recorded weights into the package, and write the checksums of all that is there."""
    for name in names:
        pack(results / name / "weights.safetensors", folder / f"{name}.safetensors.xz")
    files = sorted(folder.glob("*.safetensors.xz"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def pack(plain: Path, packed: Path) -> None:
    """Put a file of weights, packed to two thirds of its size, in place of it."""
    packed.write_bytes(lzma.compress(plain.read_bytes(), filters=BFLOAT16))
    plain.unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pack"]:
        for name in sys.argv[2:]:
            plain = RESULTS / name / "weights.safetensors"
            pack(plain, plain.with_name(f"{plain.name}.xz"))
    else:
        ship(sys.argv[1:])
