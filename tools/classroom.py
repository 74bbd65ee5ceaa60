"""Serve the notebooks for a projector through Voila: `python tools/classroom.py --port 8888`.

Voila runs a notebook for whoever opens it and shows what it put out, with live widgets and without
code; tools/site/voila has the look. Further options go to Voila.
"""

import argparse
import os
from pathlib import Path

import lab
import mdbook_ipynb
import site_assets

ROOT = Path(__file__).resolve().parents[1]
LOOK = ROOT / "tools" / "site" / "voila"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks")
    args, flags = parser.parse_known_args()
    lab.refuse_busy(args.port, "classroom")
    site_assets.bundle(ROOT)
    # Voila looks for templates on Jupyter's path, which it reads as it is imported.
    os.environ["JUPYTER_PATH"] = os.pathsep.join(
        filter(None, [str(LOOK.parent), os.environ.get("JUPYTER_PATH")])
    )
    from traitlets.config import Config
    from voila.app import Voila

    built = ROOT / "build" / "site"
    config = Config()
    config.VoilaConfiguration.template = "classroom"
    config.VoilaConfiguration.resources = {
        "classroom": {
            "style": text(built / "katex.css", LOOK / "classroom.css"),
            "script": text(built / "katex.js", LOOK / "classroom.js"),
        }
    }
    config.VoilaExporter.filters = {"with_math": mdbook_ipynb.with_math}
    command = [str(args.folder), f"--port={args.port}", "--Voila.port_retries=0"]
    Voila.launch_instance([*command, *flags], config=config)


def text(*files: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


if __name__ == "__main__":
    main()
