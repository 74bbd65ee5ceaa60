"""The exercises of the notebooks: right answers, probes, and the mistakes that people make.

`nNN.py` holds a tuple `EXERCISES` for notebook NN; `marking.py` marks a learner's function.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """Name a wrong answer that people really give, with the one line that puts them right."""

    name: str
    hint: str
    answer: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """Hold what is needed to mark one exercise by running it.

    `probes()` returns the argument tuples on which answers are compared; they are float64 and
    the same at every call. `tolerance` is relative to the largest entry of the right answer.
    Where an answer must leave its arguments as they are, `keeps` is what to say if it does not.
    """

    number: str
    learned: str
    truth: Callable[..., Any]
    probes: Callable[[], list[tuple[Any, ...]]]
    mistakes: tuple[Mistake, ...]
    tolerance: float = 1e-6
    keeps: str = ""


def find(number: str) -> Exercise:
    """Return the exercise called `number`, such as "01.3"; raise ValueError if there is none."""
    if not re.fullmatch(r"\d\d\.\d+", number):
        raise ValueError(f'An exercise is named like "01.3", not {number!r}.')
    known = {exercise.number: exercise for exercise in of_notebook(number[:2])}
    if number not in known:
        listed = ", ".join(known) or "none"
        raise ValueError(f"There is no exercise {number}; notebook {number[:2]} has {listed}.")
    return known[number]


def of_notebook(notebook: str) -> tuple[Exercise, ...]:
    """Return the exercises of a two-digit notebook number, in order; empty if it has none."""
    if notebook not in notebooks():
        return ()
    return importlib.import_module(f"{__name__}.n{notebook}").EXERCISES


def notebooks() -> list[str]:
    """List the two-digit numbers of the notebooks that have exercises."""
    found = (re.fullmatch(r"n(\d\d)", module.name) for module in pkgutil.iter_modules(__path__))
    return sorted(match[1] for match in found if match)
