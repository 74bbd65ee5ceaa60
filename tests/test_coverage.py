"""Every statement of the source notes has a cell that teaches it. Under a second.

`notebooks/coverage.md` has a row `| NN.k | line | NN_name | cell-id, cell-id |` for each.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
ROW = re.compile(r"^\| *(?P<row>\d\d\.\d+ *\|.*)\| *$", re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """Split the table: number, line, notebook, cells."""
    return [[field.strip(" `") for field in match.split("|")] for match in ROW.findall(text)]


def breaches(text: str, cells: dict[str, set[str]]) -> Iterator[str]:
    """List what is wrong with the table; `cells` maps a notebook's name to its cell ids."""
    seen: dict[str, int] = {}
    for fields in rows(text):
        if len(fields) != 4 or not all(fields):
            yield f"{fields[0]}: needs a number, a line, a notebook and cells"
            continue
        number, _, link, listed = fields
        section, k = number.split(".")
        name = re.search(r"\d\d_\w+", link)
        if int(k) != seen.get(section, 0) + 1:
            yield f"{number}: follows {section}.{seen.get(section, 0)}"
        seen[section] = int(k)
        if name is None or name[0] not in cells or name[0][:2] != section:
            yield f"{number}: is not taught by a notebook called {link}"
            continue
        for cell in (cell.strip(" `") for cell in listed.split(",")):
            if cell not in cells[name[0]]:
                yield f"{number}: {name[0]} has no cell {cell}"
    yield from (f"{name}: no statement" for name in cells if name[:2] not in seen)


def test_every_statement_has_its_cells():
    paths = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    cells = {path.stem: {c.id for c in nbformat.read(path, as_version=4).cells} for path in paths}
    text = (FOLDER / "coverage.md").read_text(encoding="utf-8")
    assert list(breaches(text, cells)) == []


CELLS = {"01_one": {"idea", "check-elbo"}, "02_two": {"idea"}}
TABLE = """
| number | statement | notebook | cells |
|---|---|---|---|
| 01.1 | The bound holds. | 01_one | `idea`, `check-elbo` |
| 01.2 | It is tight. | [01](01_one.ipynb) | idea |
| 02.1 | Noise is added. | 02_two | idea |
"""


def test_a_right_table_has_no_breach():
    assert len(rows(TABLE)) == 3
    assert list(breaches(TABLE, CELLS)) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("01.2", "01.3", "01.3: follows 01.1"),
        ("01.2", "01.1", "01.1: follows 01.1"),
        ("check-elbo", "check-elbow", "01_one has no cell check-elbow"),
        ("02_two", "01_one", "02.1: is not taught"),
        ("02_two", "02_too", "02.1: is not taught"),
        ("Noise is added.", "", "needs a number, a line"),
        ("| 02.1 | Noise is added. | 02_two | idea |", "", "02_two: no statement"),
    ],
)
def test_a_wrong_table_is_found(old, new, message):
    assert any(message in breach for breach in breaches(TABLE.replace(old, new), CELLS))
