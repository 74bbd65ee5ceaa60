"""Copy what the book needs in a browser from node_modules into build/site, fonts embedded."""

import base64
import os
import re
import sys
import tempfile
from pathlib import Path

KATEX = Path("node_modules/katex/dist")
SERIF = Path("node_modules/@fontsource-variable/source-serif-4/files")
FONT_SOURCES = re.compile(r"src:url\((?P<woff2>fonts/[\w-]+\.woff2)\)[^}]*")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: two builds may run at once."""
    if path.exists() and path.read_bytes() == content:
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def embedded(font: Path) -> str:
    data = base64.b64encode(font.read_bytes()).decode("ascii")
    return f'src:url("data:font/woff2;base64,{data}") format("woff2")'


def serif_faces(files: Path) -> str:
    return "".join(
        "@font-face{font-family:'Source Serif 4';font-weight:200 900;font-display:swap;"
        f"font-style:{style};{embedded(files / f'source-serif-4-latin-wght-{style}.woff2')}}}"
        for style in ("normal", "italic")
    )


def bundle(root: Path) -> None:
    katex, site = root / KATEX, root / "build" / "site"
    if not katex.exists():
        sys.exit("The formulas need KaTeX, which is not installed: run `make node_modules`.")
    site.mkdir(parents=True, exist_ok=True)
    rules = FONT_SOURCES.sub(
        lambda match: embedded(katex / match["woff2"]),
        (katex / "katex.min.css").read_text(encoding="utf-8"),
    )
    write(site / "katex.css", (rules + serif_faces(root / SERIF)).encode("utf-8"))
    write(site / "katex.js", (katex / "katex.min.js").read_bytes())
