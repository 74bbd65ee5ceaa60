"""A small notebook that keeps every house rule, for tests that then break one."""

import json
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NAME = "99_sample"

EXERCISES = """
import torch
from tutorial_lib.exercises import Exercise, Mistake

def probes():
    return [(torch.tensor([0.25, 0.5], dtype=torch.float64),)]

def exercise(k):
    return Exercise(
        f"99.{k}", f"To add {k} is to count.", lambda x: x + k, probes,
        (
            Mistake("minus", "You subtract.", lambda x: x - k),
            Mistake("times", "You multiply.", lambda x: x * (k + 1)),
            Mistake("power", "You raise to a power.", lambda x: x ** (k + 1)),
        ),
    )

EXERCISES = tuple(exercise(k) for k in range(1, 5))
"""

SETUP = """
import matplotlib.pyplot as plt
import tutorial_lib.exercises
from tutorial_lib import checks, plotting
from tutorial_lib.widgets import explore
tutorial_lib.exercises.__path__.append("exercises")
plotting.use_style()
"""

DRAW = """
def show(slope):
    figure, ax = plotting.figure(width=3)
    ax.plot([0, 1], [0, slope])
    return figure
"""

FIGURE = """
# alt: a straight line that climbs from zero to one
# caption: The function of the day, drawn once.
show(1.0)
plt.show()
"""

CHECK = """
print("mean 0.5012, 3 modes")
checks.check_close("double", double(2.0), 4.0, 1e-12)
checks.claim("99.1", "Doubling makes larger", double(1.0), above=1.5, paper="Table 1")
"""

WIDGET = 'explore(show, alt="a line whose slope you choose", slope=(0.0, 1.0, 0.1, 0.5))'


def sample_notebook() -> nbformat.NotebookNode:
    cells = [
        _text("title", "# A sample\n"),
        _text("setup-heading", "## Setup"),
        _code("setup", SETUP, "setup"),
        *(_text(name.lower().replace(" ", "-"), f"## {name}") for name in ("Idea", "Derivation")),
        _text("from-scratch", "## From scratch"),
        _code("scratch-double", "def double(x):\n    return 2 * x", "scratch"),
        _code("check-double", CHECK, "check"),
        _text("data", "## On 2-D data"),
        _code("define-line", DRAW),
        _code("figure-line", FIGURE, "figure"),
        _text("explore", "## Explore"),
        _code("widget-line", WIDGET, "widget", "nbval-ignore-output"),
        _text("at-scale", "## At scale"),
        _text("exercises", "## Exercises"),
        *(cell for k in range(1, 5) for cell in _exercise(k)),
        *(_text(f"filler-{k}", "A remark.") for k in range(20)),
        _text("what-can-go-wrong", "## What can go wrong"),
        _text("summary", "## Summary"),
        _text("references", "## References"),
    ]
    for name in ("title", "figure-line"):
        (shown,) = (cell for cell in cells if cell.id == name)
        shown.metadata["slideshow"] = {"slide_type": "slide"}
    course = {"number": 99, "title": "A sample", "papers": ["A paper"]}
    course |= {"modules": ["checks"], "minutes": 1}
    return new_notebook(cells=cells, metadata={"course": course})


def write_sample(folder: Path) -> Path:
    """Write the notebook, with its exercises beside it, and return its path."""
    (folder / "exercises").mkdir(parents=True)
    (folder / "exercises" / "n99.py").write_text(EXERCISES)
    path = folder / f"{NAME}.ipynb"
    nbformat.write(sample_notebook(), path)
    return path


def copy_of(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.from_dict(json.loads(json.dumps(notebook)))


def _exercise(k: int) -> list[nbformat.NotebookNode]:
    stub = f'def add_{k}(x):\n    ...\n\nchecks.exercise("99.{k}", add_{k})'
    solution = (
        f'def solved_{k}(x):\n    return x + {k} * 1.0\n\nchecks.exercise("99.{k}", solved_{k})'
    )
    return [
        _text(f"statement-{k}", f"**99.{k}** Add {k}."),
        _code(f"exercise-{k}", stub, "exercise"),
        _code(f"solution-{k}", solution, "solution", "hide-input"),
    ]


def _text(name: str, source: str) -> nbformat.NotebookNode:
    return new_markdown_cell(source, id=name)


def _code(name: str, source: str, *tags: str) -> nbformat.NotebookNode:
    return new_code_cell(source.strip(), id=name, metadata={"tags": list(tags)} if tags else {})
