"""The table of claims agrees with the stored notebooks, on every seed. Under a second."""

import copy
from pathlib import Path

import claims
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
}


def test_the_table_agrees_with_the_notebooks():
    rows = claims.load(ROOT / "results" / "claims.json")
    assert rows or not NOTEBOOKS
    assert claims.breaches(rows, NOTEBOOKS) == []


def test_the_readme_shows_the_table():
    rows = claims.load(ROOT / "results" / "claims.json")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert claims.table(rows) in readme
    stale = copy.deepcopy(rows)
    stale[0]["values"]["0"] = 0.5
    renewed = claims.in_readme(readme, stale)
    assert "to 0.5 |" in renewed
    assert claims.in_readme(renewed, rows) == readme


OUTPUT = """
Claim 98.1  The gap closes
  measured ≈ 0.0269   bar < 0.08   PASS
residual: < 1e-12  PASS
Claim 98.10  The slope is one
  measured ≈ 1.02   bar 0.95 to 1.1   PASS
  paper: 1.0
"""


def notebook(text=OUTPUT):
    cell = nbformat.v4.new_code_cell("", id="check-gap")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    return {"98_sample": nbformat.v4.new_notebook(cells=[cell])}


def row(number, statement, below, above, paper, value):
    bars = {"below": below, "above": above, "paper": paper}
    place = {"notebook": "98_sample", "cell": "check-gap"}
    values = {"values": dict.fromkeys(claims.SEEDS, value)}
    return {"number": number, "statement": statement} | bars | place | values


ROWS = [
    row("98.1", "The gap closes", 0.08, None, None, 0.0269),
    row("98.10", "The slope is one", 1.1, 0.95, "1.0", 1.02),
]

WRONG_ROWS = {
    "statement 'The gap closes' in the notebook": lambda rows: rows[0].update(
        statement="The gap opens"
    ),
    "bar 'bar < 0.08' in": lambda rows: rows[0].update(below=0.09),
    "paper '1.0' in": lambda rows: rows[1].update(paper="1.1"),
    "cell 'check-gap' in": lambda rows: rows[0].update(cell="check-slope"),
    "not in the table": lambda rows: rows.pop(0),
    "not sorted": lambda rows: rows.reverse(),
    "twice in the table": lambda rows: rows.insert(0, rows[0]),
    "not measured at seed 3": lambda rows: rows[0]["values"].pop("3"),
    "0.081 at seed 2 misses its bar < 0.08": lambda rows: rows[0]["values"].update({"2": 0.081}),
    "0.9 at seed 1 misses": lambda rows: rows[1]["values"].update({"1": 0.9}),
    "nan at seed 0 misses": lambda rows: rows[1]["values"].update({"0": float("nan")}),
    "no notebook prints it": lambda rows: rows.append(row("98.11", "More", 1.0, None, None, 0.5)),
}


def test_agreement_is_found():
    assert claims.breaches(ROWS, notebook()) == []


@pytest.mark.parametrize("message", WRONG_ROWS)
def test_a_wrong_table_is_found(message):
    rows = copy.deepcopy(ROWS)
    WRONG_ROWS[message](rows)
    found = claims.breaches(rows, notebook())
    assert any(message in breach for breach in found), found


def test_a_claim_made_twice_is_found():
    assert "98.1: claimed more than once" in claims.breaches(ROWS, notebook(OUTPUT * 2))


def test_a_run_updates_its_own_seed_and_drops_what_is_gone():
    record = {"number": "98.1", "statement": "The gap closes", "value": 0.03}
    record |= {"below": 0.08, "above": None, "paper": None}
    other = row("97.1", "Elsewhere", 1.0, None, None, 0.5) | {"notebook": "97_other"}
    rows = claims.merged([other, *ROWS], "98_sample", notebook()["98_sample"], {"0": [record]})
    assert [r["number"] for r in rows] == ["97.1", "98.1"]
    assert rows[0] == other
    assert rows[1]["values"] == {"0": 0.03, "1": 0.0269, "2": 0.0269, "3": 0.0269}


def test_the_table_is_saved_in_order(tmp_path):
    claims.save(tmp_path / "claims.json", ROWS[::-1])
    assert claims.load(tmp_path / "claims.json") == ROWS
