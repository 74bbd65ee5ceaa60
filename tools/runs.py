"""Show the recorded runs in the README: `python tools/runs.py` renews their table."""

import json
import re
from pathlib import Path

from tutorial_lib.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- runs -->\n\n)(.*?)(\n\n<!-- end of runs -->)", re.DOTALL)


def table(results: Path = ROOT / "results") -> str:
    """Return a row for each recipe that has a record."""
    lines = ["| recipe | what | found | images seen | on |", "|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        record = results / name / "metrics.json"
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            minutes = f"{found['device']}, {found['seconds'] / 60:.1f} min"
            seen = f"{found['images_seen'] / 1e6:.1f} M"
            cells = (f"`{name}`", recipe.about, recipe.headline(found), seen, minutes)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_readme(text: str) -> str:
    """Return the README with its table of runs renewed."""
    return TABLE.sub(lambda match: match[1] + table() + match[3], text)


if __name__ == "__main__":
    README.write_text(in_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
