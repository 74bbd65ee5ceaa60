"""Verdicts hold exactly when they should, and a wrong answer gets the line that helps. 3 s."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from tutorial_lib import checks, exercises
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.marking import mark


@pytest.mark.parametrize(
    ("got", "want", "relative"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-4]), False),
        (1e-9, 2e-9, True),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 1.0]), True),
        (math.inf, 1.0, False),
        (math.inf, -math.inf, False),
        (1.0, math.inf, True),
        (1e-9, 0.0, True),
        (torch.zeros(2), torch.zeros(2, 1), False),
        (torch.zeros(1), 0.0, False),
        (0.1, torch.tensor(0.1, dtype=torch.float32), False),
    ],
)
def test_check_close_fails(got, want, relative):
    with pytest.raises(AssertionError, match="name: "):
        checks.check_close("name", got, want, 1e-9, relative=relative)


def test_a_number_that_is_a_little_off_has_no_axes_to_swap():
    """Between one and ten tolerances every change that changes nothing would explain it."""
    close = Exercise(
        "98.9", "so.", lambda a: a, lambda: [(torch.tensor(2.0).double(),)], (), tolerance=1e-8
    )
    assert "swapped" not in mark(close, lambda a: a * (1 + 5e-8))


@pytest.mark.parametrize(
    ("got", "want", "relative"),
    [
        (0.1, torch.tensor(0.1, dtype=torch.float64), False),
        (1e9 + 0.1, 1e9, True),
        (torch.tensor([0.0, math.inf]), [0.0, math.inf], True),
    ],
)
def test_check_close_passes(got, want, relative, capsys):
    checks.check_close("posterior mean", got, want, 1e-9, relative=relative)
    kind = "max relative error" if relative else "max error"
    assert capsys.readouterr().out == f"posterior mean: {kind} < 1e-09  PASS\n"


@pytest.mark.parametrize(("check", "sign"), [(checks.check_below, "<"), (checks.check_above, ">")])
def test_bars_are_strict_and_refuse_nan(check, sign, capsys):
    inside, outside = (0.004, 0.006) if sign == "<" else (0.006, 0.004)
    check("gap", torch.tensor(inside), 0.005)
    assert capsys.readouterr().out == f"gap: ≈ {inside:.5f}, bar {sign} 0.005  PASS\n"
    for value in (outside, 0.005, math.nan):
        with pytest.raises(AssertionError, match=r"gap: .* is not"):
            check("gap", value, 0.005)


def test_claim_prints_its_bar_and_is_recorded(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CLAIMS", str(tmp_path / "claims"))
    checks.claim("01.3", "The gap closes", 0.02691, below=0.08)
    checks.claim(
        "01.4", "The slope is one", torch.tensor(1.02), below=1.1, above=0.95, paper="1.0"
    )
    assert capsys.readouterr().out == (
        "Claim 01.3  The gap closes\n  measured ≈ 0.0269   bar < 0.08   PASS\n"
        "Claim 01.4  The slope is one\n  measured ≈ 1.02   bar 0.95 to 1.1   PASS\n  paper: 1.0\n"
    )
    rows = [json.loads(line) for line in (tmp_path / "claims").read_text().splitlines()]
    assert rows[0] == {
        "number": "01.3",
        "statement": "The gap closes",
        "value": 0.02691,
        "below": 0.08,
        "above": None,
        "paper": None,
    }
    assert [row["number"] for row in rows] == ["01.3", "01.4"]


@pytest.mark.parametrize(
    ("value", "bars"),
    [
        (0.08, {"below": 0.08}),
        (math.nan, {"below": 0.08}),
        (math.nan, {"above": 0.08}),
        (0.9, {"above": 0.95, "below": 1.1}),
        (1.2, {"above": 0.95, "below": 1.1}),
    ],
)
def test_claim_fails(value, bars):
    with pytest.raises(AssertionError, match=r"Claim 01\.3 fails"):
        checks.claim("01.3", "The gap closes", value, **bars)


def test_claim_needs_a_bar_and_a_number():
    with pytest.raises(ValueError, match="needs a bar"):
        checks.claim("01.3", "The gap closes", 0.1)
    with pytest.raises(ValueError, match="numbered"):
        checks.claim("1.3", "The gap closes", 0.1, below=1.0)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (240.4, "240"), (0.02691, "0.0269"), (-5.3, "-5.30"), (3.6e-14, "3.6e-14")],
)
def test_measured_figures_are_short(value, shown, capsys):
    checks.claim("01.3", "s", value, below=math.inf)
    assert f"≈ {shown}   bar" in capsys.readouterr().out


@dataclass
class Normal:
    mean: torch.Tensor
    variance: torch.Tensor


def probes():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return [(x, alpha) for alpha in (0.5, 0.8) for x in draw]


EXERCISE = Exercise(
    "98.1",
    "Noise shrinks the mean.",
    truth=lambda x, alpha: alpha**0.5 * x + 1,
    probes=probes,
    mistakes=(
        Mistake("root", "Take the root of alpha.", lambda x, alpha: alpha * x + 1),
        Mistake("axes", "Height and width are swapped.", lambda x, a: (a**0.5 * x + 1).T),
        Mistake("log", "A logarithm of a negative number?", lambda x, a: (a**0.5 * x - 9).log()),
        Mistake("axis", "One mean a row: it needs a second axis.", lambda x, a: x - x.mean(1)),
    ),
)
PAIR = replace(EXERCISE, truth=lambda x, alpha: (x, alpha * x), mistakes=())
SCALAR = replace(EXERCISE, truth=lambda x, alpha: alpha * x.sum(), mistakes=())
NORMAL = replace(EXERCISE, truth=lambda x, alpha: Normal(x, alpha), mistakes=())


def stub(x, alpha):
    """Return the mean."""
    ...


def in_place(x, alpha):
    x *= alpha**0.5
    return x.add_(1)


def unreturned(x, alpha):
    _ = alpha**0.5 * x + 1


calls = iter(range(1000))

MARKS = [
    (EXERCISE, stub, "98.1 to do"),
    (EXERCISE, ..., "98.1 to do"),
    (EXERCISE, EXERCISE.truth, "✓ 98.1  Noise shrinks the mean."),
    (EXERCISE, in_place, "✓ 98.1"),
    (replace(EXERCISE, keeps="Leave x."), in_place, "✗ 98.1  Leave x."),
    (replace(EXERCISE, keeps="Leave x."), EXERCISE.truth, "✓ 98.1"),
    (EXERCISE, lambda x, a: (a**0.5 * x + 1).float(), "✓ 98.1"),
    (EXERCISE, lambda x, a: (a**0.5 * x + 1).numpy().astype("float32"), "✓ 98.1"),
    (EXERCISE, lambda x, a: a**0.5 * x + 1 + 1e-5, "✗ 98.1"),
    (EXERCISE, lambda x, a: x * a + 1.0, "✗ 98.1  Take the root of alpha."),
    (EXERCISE, lambda x, a: (1.0 + a * x).float(), "✗ 98.1  Take the root of alpha."),
    (EXERCISE, lambda x, a: 1 + x.T * a**0.5, "✗ 98.1  Height and width are swapped."),
    (EXERCISE, lambda x, a: torch.log(x * a**0.5 - 9), "✗ 98.1  A logarithm"),
    (EXERCISE, lambda x, a: -x.mean(1) + x, "✗ 98.1  One mean a row: it needs a second axis."),
    (EXERCISE, lambda x, a: x - x[:1, :2], "The function raised RuntimeError: The size of tensor"),
    (EXERCISE, unreturned, "returned None: no `return`, or a gradient that nothing reached?"),
    (EXERCISE, lambda x: x, "✗ 98.1  The function raised TypeError: "),
    (EXERCISE, lambda x, a: "mean", "The function returned str, where one tensor of shape (3, 4)"),
    (EXERCISE, lambda x, a: x.sum(), "✗ 98.1  The answer has shape (), expected (3, 4)."),
    (EXERCISE, lambda x, a: x / 0, "✗ 98.1  The answer holds NaN or infinity."),
    (EXERCISE, lambda x, a: (x, x), "returned 2 values, where one tensor of shape (3, 4) is"),
    (EXERCISE, lambda x, a: -(a**0.5) * x - 1, "; the sign is flipped."),
    (EXERCISE, lambda x, a: 2 * a**0.5 * x + 2, "; everything is ≈ 2 times the answer."),
    (EXERCISE, lambda x, a: a**0.5 * x + 3, "; everything is the answer plus ≈ 2."),
    (EXERCISE, lambda x, a: (a**0.5 * x + 1) ** 2, "a variance for a standard deviation?"),
    (EXERCISE, lambda x, a: x + next(calls), "it changes from call to call"),
    (EXERCISE, lambda x, a: x, "at x=<3×4 tensor>, alpha=0.5 is ≈ "),
    (PAIR, lambda x, a: [x, a * x], "✓"),
    (PAIR, lambda x, a: (x, -a * x), "The second value at x="),
    (PAIR, lambda x, a: x, "where 2 values are expected."),
    (PAIR, lambda x, a: "pair", "returned str, where 2 values are expected."),
    (PAIR, lambda x, a: (x, None), "Value 2 of 2 is None: a gradient that nothing reached?"),
    (NORMAL, lambda x, a: x, "where 2 values (mean, variance) are expected."),
    (EXERCISE, lambda x, a: (x, x), "where one tensor of shape (3, 4) is expected."),
    (SCALAR, lambda x, a: (x, x), "returned 2 values, where one number is expected."),
    (NORMAL, lambda x, a: Normal(x, a * torch.ones_like(x)), "✓"),
    (NORMAL, lambda x, a: Normal(x, a**0.5), "The variance at x="),
    (NORMAL, lambda x, a: Normal(x, a**0.5), "the square root of the answer"),
]


@pytest.mark.parametrize(("exercise", "answer", "line"), MARKS)
def test_mark(exercise, answer, line):
    said = mark(exercise, answer)
    assert line in said
    assert "\n" not in said
    assert not said.endswith(("?.", ".."))


def test_an_unstubbed_constant_is_not_to_do():
    assert mark(EXERCISE, lambda x, alpha: 3.0).startswith("✗")


def test_exercises_are_found_by_number(tmp_path, monkeypatch, capsys):
    (tmp_path / "n98.py").write_text("from test_checks import EXERCISE\nEXERCISES = (EXERCISE,)\n")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    checks.exercise("98.1", stub)
    checks.exercise("98.1", lambda x, a: a * x + 1)
    assert capsys.readouterr().out == "98.1 to do\n✗ 98.1  Take the root of alpha.\n"
    with pytest.raises(ValueError, match=r"no exercise 98\.2; notebook 98 has 98\.1"):
        exercises.find("98.2")
    with pytest.raises(ValueError, match="notebook 97 has none"):
        exercises.find("97.1")
