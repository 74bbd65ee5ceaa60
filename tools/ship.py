"""Ship what recipes have trained: `python tools/ship.py shapes_clip ...` takes results/NAME's."""

import hashlib
import shutil
import sys
from pathlib import Path

from tutorial_lib.pretrained import FOLDER

RESULTS = Path(__file__).resolve().parents[1] / "results"


def ship(names: list[str], results: Path = RESULTS, folder: Path = FOLDER) -> None:
    """Move recorded weights into the package, and write the checksums of all that is there."""
    for name in names:
        shutil.move(results / name / "weights.safetensors", folder / f"{name}.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    ship(sys.argv[1:])
