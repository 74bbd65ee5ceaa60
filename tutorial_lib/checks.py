"""Checks that print a verdict, and raise if it is not the hoped one.

What is printed survives another machine and another seed: a bar, never a raw figure. Measured
numbers carry the mark ≈, and whatever compares notebooks passes over them.
"""

import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutorial_lib.exercises import find
from tutorial_lib.exercises.marking import mark


def check_close(name: str, got: Any, want: Any, tol: float, *, relative: bool = False) -> None:
    """Print that `got` equals `want` to within `tol` everywhere; raise AssertionError if not."""
    g, w = _float64(got), _float64(want)
    if g.shape != w.shape:
        raise AssertionError(f"{name}: shape {tuple(g.shape)}, expected {tuple(w.shape)}.")
    error = torch.where(g == w, 0.0, (g - w).abs() / (w.abs() if relative else 1.0))
    worst = float(error.max())
    kind = "max relative error" if relative else "max error"
    if not worst < tol:
        raise AssertionError(f"{name}: {kind} {worst:.3g}, not below {tol:g}.")
    print(f"{name}: {kind} < {tol:g}  PASS")


def check_below(name: str, value: Any, bar: float) -> None:
    """Print that a number lies below a bar; raise AssertionError if it does not."""
    if not float(value) < bar:
        raise AssertionError(f"{name}: {float(value):.6g} is not below {bar:g}.")
    print(f"{name}: ≈ {_digits(float(value))}, bar < {bar:g}  PASS")


def check_above(name: str, value: Any, bar: float) -> None:
    """Print that a number lies above a bar; raise AssertionError if it does not."""
    if not float(value) > bar:
        raise AssertionError(f"{name}: {float(value):.6g} is not above {bar:g}.")
    print(f"{name}: ≈ {_digits(float(value))}, bar > {bar:g}  PASS")


def claim(
    number: str,
    statement: str,
    value: Any,
    *,
    below: float | None = None,
    above: float | None = None,
    paper: str | None = None,
) -> None:
    """Print a numbered claim, what was measured and its bar; raise AssertionError if it fails.

    The measured value is appended, as a line of JSON, to the file that the environment variable
    COURSE_CLAIMS names, if any.
    """
    if not re.fullmatch(r"\d\d\.\d+", number):
        raise ValueError(f'A claim is numbered like "01.3", not {number!r}.')
    measured, bar = float(value), bar_text(below, above)
    _record(number, statement, measured, below, above, paper)
    holds = (below is None or measured < below) and (above is None or measured > above)
    if math.isnan(measured) or not holds:
        raise AssertionError(f"Claim {number} fails: measured {measured:.6g}, {bar}. {statement}")
    print(f"Claim {number}  {statement}\n  measured ≈ {_digits(measured)}   {bar}   PASS")
    if paper:
        print(f"  paper: {paper}")


def bar_text(below: float | None, above: float | None) -> str:
    """Say in a few characters between what a claimed value must lie; raise ValueError without."""
    if below is None and above is None:
        raise ValueError("A claim needs a bar: give `below`, `above` or both.")
    if above is None:
        return f"bar < {below:g}"
    return f"bar > {above:g}" if below is None else f"bar {above:g} to {below:g}"


def exercise(number: str, answer: Callable[..., Any]) -> None:
    """Print what the learner's function deserves: to do, a tick, or one line that helps."""
    print(mark(find(number), answer))


def _float64(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


def _digits(value: float) -> str:
    """Show three significant digits, with an exponent only where it is easier to read."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"
    return f"{value:.1e}"


def _record(
    number: str,
    statement: str,
    value: float,
    below: float | None,
    above: float | None,
    paper: str | None,
) -> None:
    path = os.environ.get("COURSE_CLAIMS")
    if not path:
        return
    row = {"number": number, "statement": statement, "value": value}
    row |= {"below": below, "above": above, "paper": paper}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
