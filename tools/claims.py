"""Collect the claims that notebooks print, with their values on several seeds."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from tutorial_lib.checks import bar_text

SEEDS = ("0", "1", "2", "3")
PRINTED = re.compile(
    r"^Claim (?P<number>\d\d\.\d+)  (?P<statement>.+)\n"
    r"  measured ≈ \S+   (?P<bar>bar .+?)   PASS(?:\n  paper: (?P<paper>.+))?$",
    re.MULTILINE,
)
TABLE = re.compile(r"(<!-- claims -->\n\n)(.*?)(\n\n<!-- end of claims -->)", re.DOTALL)
Row = dict[str, Any]


@dataclass(frozen=True)
class Printed:
    """A claim as it stands in the stored output of a cell."""

    number: str
    statement: str
    bar: str
    paper: str | None
    cell: str


def printed(notebook: NotebookNode) -> Iterator[Printed]:
    for cell in notebook.cells:
        for match in PRINTED.finditer(stdout(cell)):
            yield Printed(**match.groupdict(), cell=cell.id)


def stdout(cell: NotebookNode) -> str:
    streams = (o for o in cell.get("outputs", []) if o.output_type == "stream")
    return "".join(stream.text for stream in streams if stream.name == "stdout")


def load(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def save(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(sorted(rows, key=order), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def in_readme(text: str, rows: list[Row]) -> str:
    """Return the README with its table of claims renewed."""
    return TABLE.sub(lambda match: match[1] + table(rows) + match[3], text)


def table(rows: list[Row]) -> str:
    lines = ["| | claim | bar | measured |", "|---|---|---|---|"]
    for row in sorted(rows, key=order):
        values = row["values"].values()
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        ours = low if low == high else f"{low} to {high}"
        statement = row["statement"].replace("|", "\\|")
        bar = bar_text(row["below"], row["above"]).removeprefix("bar ")
        lines.append(f"| {row['number']} | {statement} | {bar} | {ours} |")
    return "\n".join(lines)


def order(row: Row) -> list[int]:
    return [int(part) for part in row["number"].split(".")]


def merged(
    rows: list[Row], name: str, notebook: NotebookNode, values: dict[str, list[Row]]
) -> list[Row]:
    """Replace a notebook's rows by what its runs recorded; seeds that did not run keep theirs.

    `values` maps a seed to the rows that `checks.claim` wrote under it.
    """
    cells = {claim.number: claim.cell for claim in printed(notebook)}
    known = {row["number"]: row["values"] for row in rows}
    latest: dict[str, Row] = {}
    for seed, recorded in values.items():
        for record in recorded:
            number, value = record["number"], float(f"{record['value']:.6g}")
            row = latest.setdefault(number, {**record, "values": dict(known.get(number, {}))})
            row.pop("value", None)
            row |= {"notebook": name, "cell": cells.get(number)}
            row["values"] = dict(sorted((row["values"] | {seed: value}).items()))
    return [row for row in rows if row["notebook"] != name] + list(latest.values())


def breaches(rows: list[Row], notebooks: dict[str, NotebookNode]) -> list[str]:
    """List where the table of claims and the stored notebooks disagree, or a bar is not met."""
    stored = [(name, claim) for name, book in notebooks.items() for claim in printed(book)]
    numbers = [claim.number for _, claim in stored]
    table = {row["number"]: row for row in rows}
    found = [f"{n}: claimed more than once" for n in sorted(repeated(numbers))]
    found += [f"{n}: in the table, but no notebook prints it" for n in table if n not in numbers]
    if [row["number"] for row in rows] != [row["number"] for row in sorted(rows, key=order)]:
        found.append("the table is not sorted by number")
    found += [f"{n}: twice in the table" for n in repeated(row["number"] for row in rows)]
    for name, claim in stored:
        if claim.number not in table:
            found.append(f"{claim.number}: printed by {name}, but not in the table")
        else:
            found += _disagreements(name, claim, table[claim.number])
    return found + [breach for row in rows for breach in _unmet(row)]


def repeated(items: Iterable[str]) -> set[str]:
    listed = list(items)
    return {item for item in listed if listed.count(item) > 1}


def _disagreements(name: str, claim: Printed, row: Row) -> Iterator[str]:
    ours = {
        "notebook": name,
        "cell": claim.cell,
        "statement": claim.statement,
        "bar": claim.bar,
        "paper": claim.paper,
    }
    theirs = row | {"bar": bar_text(row["below"], row["above"])}
    for key, value in ours.items():
        if theirs[key] != value:
            yield f"{claim.number}: {key} {value!r} in the notebook, {theirs[key]!r} in the table"


def _unmet(row: Row) -> Iterator[str]:
    missing = [seed for seed in SEEDS if seed not in row["values"]]
    if missing:
        yield f"{row['number']}: not measured at seed {', '.join(missing)}"
    below, above = (row["below"], row["above"])
    for seed, value in row["values"].items():
        held = (below is None or value < below) and (above is None or value > above)
        if not math.isfinite(value) or not held:
            yield f"{row['number']}: {value:g} at seed {seed} misses its {bar_text(below, above)}"
