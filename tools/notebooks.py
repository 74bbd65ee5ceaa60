"""Care for the notebooks: `python tools/notebooks.py clean|run|check|claims|cover [names]`.

A name is a path, a stem or the number of a notebook; none means all.
"""

import argparse
import base64
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import claims
import house_rules
import nbformat
from kernel_environment import kernel_environment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
CLAIMS = ROOT / "results" / "claims.json"
README = ROOT / "README.md"
COVER = ("01_unified_perspective", "from-scratch-figure")  # whose picture opens the README
CELL_TIMEOUT = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class PictureError(LookupError):
    """Say that a cell has not stored the one picture that was wanted."""


@dataclass(frozen=True)
class Run:
    """A notebook as one execution left it, what it claimed, and what that took."""

    notebook: NotebookNode
    claims: list[claims.Row]
    seconds: float
    peak_mib: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("names", nargs="*", help="paths, stems or numbers of notebooks")
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command](find(given.names))
    except (CellExecutionError, FileNotFoundError, PictureError) as error:
        print(error, file=sys.stderr)
        return 1


def find(names: list[str]) -> list[Path]:
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return every
    return [path for name in names for path in _named(name, every)]


def _named(name: str, every: list[Path]) -> list[Path]:
    if name.endswith(".ipynb"):
        return [Path(name).resolve(strict=True)]
    found = [path for path in every if name in (path.stem, path.stem[:2])]
    if not found:
        raise FileNotFoundError(f"There is no notebook called {name}.")
    return found


def clean(paths: list[Path]) -> int:
    for path in paths:
        write(path, cleaned(read(path)))
    return 0


def run(paths: list[Path]) -> int:
    for path in paths:
        done = execute(path)
        write(path, done.notebook)
        _store_cover(path, done.notebook)
        _record(path, done.notebook, {"0": done.claims})
        print(f"{path.name}: {done.seconds:.0f} s, {done.peak_mib:.0f} MiB at most")
    return 0


def check(paths: list[Path]) -> int:
    rows = claims.load(CLAIMS)
    found = [breach for path in paths for breach in house_rules.breaches(path, read(path), rows)]
    print("\n".join(found) or "Every house rule holds.")
    return 1 if found else 0


def measure_claims(paths: list[Path]) -> int:
    for path in paths:
        runs = {seed: execute(path, seed) for seed in claims.SEEDS}
        _record(path, runs["0"].notebook, {seed: done.claims for seed, done in runs.items()})
        print(f"{path.name}: {len(runs['0'].claims)} claims hold on {len(runs)} seeds")
    return 0


def cover(paths: list[Path]) -> int:
    for path in paths:
        _store_cover(path, read(path))
    return 0


COMMANDS = {
    "clean": clean,
    "run": run,
    "check": check,
    "claims": measure_claims,
    "cover": cover,
}


def picture(notebook: NotebookNode, name: str) -> bytes:
    """Return the PNG that a cell has stored; raise PictureError unless it is one."""
    cells = [cell for cell in notebook.cells if cell.id == name and cell.cell_type == "code"]
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    drawn = [part["image/png"] for part in data if "image/png" in part]
    if len(drawn) != 1:
        raise PictureError(f"There are {len(drawn)} pictures stored by a cell {name}, not one.")
    return base64.b64decode(drawn[0])


def _store_cover(path: Path, notebook: NotebookNode) -> None:
    stem, name = COVER
    if path.stem == stem:
        path.with_name("cover.png").write_bytes(picture(notebook, name))


def _record(path: Path, notebook: NotebookNode, values: dict[str, list[claims.Row]]) -> None:
    rows = claims.merged(claims.load(CLAIMS), path.stem, notebook, values)
    claims.save(CLAIMS, rows)
    readme = README.read_text(encoding="utf-8")
    README.write_text(claims.in_readme(readme, rows), encoding="utf-8")


def read(path: Path) -> NotebookNode:
    """Read a notebook as it stands: `nbformat.read` would rename cells whose id is taken."""
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def write(path: Path, notebook: NotebookNode) -> None:
    path.write_text(nbformat.v4.writes(notebook) + "\n", encoding="utf-8")


def execute(path: Path, seed: str = "0") -> Run:
    """Run a notebook in a fresh kernel, in its own folder; the file itself is left alone."""
    notebook, peaks = read(path), [0.0]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: peaks.append(_peak_mib(client.km.provisioner.pid)),
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "claims"
        extra = {"COURSE_CLAIMS": str(record)} | ({} if seed == "0" else {"COURSE_SEED": seed})
        client.execute(env=kernel_environment(**extra), stderr=subprocess.DEVNULL)
        lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    seconds = time.monotonic() - started
    return Run(cleaned(notebook), [json.loads(line) for line in lines], seconds, max(peaks))


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook without what differs between two runs or two machines."""
    book = copy.deepcopy(notebook)
    book.metadata = nbformat.from_dict(
        {
            "course": book.metadata.get("course", {}),
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "name": "python"},
        }
    )
    for cell in book.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in house_rules.KEYS}
        if "solution" in kept.get("tags", []):
            kept["jupyter"] = house_rules.COLLAPSED
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.outputs = _merged_streams([_output(cell, output) for output in cell.outputs])
    return book


def _output(cell: NotebookNode, output: NotebookNode) -> NotebookNode:
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]  # a traceback holds paths
    if output.output_type == "execute_result":
        output.execution_count = cell.execution_count
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
        if "image/png" in output.data:
            output.data.pop("text/plain", None)
        output.metadata = nbformat.from_dict(
            {k: v for k, v in output.metadata.items() if k == "image/png"}
        )
    return output


def _merged_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    merged: list[NotebookNode] = []
    for output in outputs:
        same = [o for o in merged if output.get("name") and o.get("name") == output.name]
        if same:
            same[0].text += output.text
        else:
            merged.append(output)
    return merged


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
