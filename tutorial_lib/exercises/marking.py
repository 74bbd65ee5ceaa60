"""Mark a learner's function by its behaviour on an exercise's probes."""

import copy
import dataclasses
import dis
import inspect
import math
from collections.abc import Callable, Iterable
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise

FLOAT32_TOLERANCE = 1e-4

# A right answer in disguise: what was done to it, and how to do the same.
_DISGUISES: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("the sign is flipped", torch.neg),
    ("that is the square of the answer: a variance for a standard deviation?", torch.square),
    ("that is the square root of the answer: a standard deviation for a variance?", torch.sqrt),
    ("that is one over the answer", torch.reciprocal),
    ("that is the logarithm of the answer", torch.log),
    ("the last two axes are swapped", lambda v: v.mT if v.ndim > 1 else v),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Hold one tensor of an answer, in float64, with the precision that it came in.

    `field` names the dataclass field it was; a field, such as a variance, may be given in any
    shape that broadcasts.
    """

    value: Tensor
    single: bool
    field: str


Leaves = tuple[Leaf, ...]


def mark(exercise: Exercise, answer: Any) -> str:
    """Return the line to show a learner: to do, a tick, or a cross with what to change."""
    if is_stub(answer):
        return f"{exercise.number} to do"
    problem = _problem(exercise, answer)
    if problem is None:
        return f"✓ {exercise.number}  {exercise.learned}"
    return f"✗ {exercise.number}  {problem}"


def is_stub(answer: Any) -> bool:
    """Say whether an answer is the `...` that the notebook came with."""
    if answer is ... or answer is None:
        return True
    return isinstance(answer, FunctionType) and _operations(answer) == _operations(_untouched)


def behaviour(answer: Callable[..., Any], probes: Iterable[tuple[Any, ...]]) -> list[Leaves]:
    """Run an answer on copies of the probes, which it may then overwrite."""
    return [leaves(answer(*copy.deepcopy(probe))) for probe in probes]


def leaves(value: Any, field: str = "") -> Leaves:
    """Flatten tuples and dataclasses; raise TypeError for what is neither number nor tensor."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((getattr(value, f.name), f.name) for f in dataclasses.fields(value))
        return tuple(leaf for part, name in parts for leaf in leaves(part, name))
    if isinstance(value, (tuple, list)):
        return tuple(leaf for item in value for leaf in leaves(item, field))
    single = str(getattr(value, "dtype", "")).endswith(("float32", "float16"))
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    return (Leaf(torch.as_tensor(value, dtype=torch.float64), single, field),)


def distance(got: list[Leaves], want: list[Leaves]) -> float:
    """Return the largest error over all probes, relative to the largest entry of each tensor."""
    worst = 0.0
    for got_i, want_i in zip(got, want, strict=True):
        if len(got_i) != len(want_i):
            return math.inf
        worst = max([worst, *map(_leaf_error, got_i, want_i)])
    return worst


def _problem(exercise: Exercise, answer: Any) -> str | None:
    probes = exercise.probes()
    want = behaviour(exercise.truth, probes)
    given = [copy.deepcopy(probe) for probe in probes]
    try:
        raw = [answer(*probe) for probe in given]
    except Exception as error:
        return _recognised(exercise, _raised(error)) or _raised(error)
    if any(value is None for value in raw):
        return "The function returned None: no `return`, or a gradient that nothing reached?"
    if exercise.keeps and _overwritten(given, probes):
        return exercise.keeps
    try:
        got = [leaves(value) for value in raw]
    except (TypeError, ValueError, RuntimeError):
        absent = _absent(raw[0])
        if absent:
            return f"Value {absent} of {len(raw[0])} is None: a gradient that nothing reached?"
        return f"The function returned {type(raw[0]).__name__}, where {_expected(want[0])}."
    if distance(got, want) <= _tolerance(exercise, got):
        return None
    return (
        _recognised(exercise, got)
        or _misfit(got, want)
        or _difference(exercise, answer, got, want)
    )


def _overwritten(given: Iterable[tuple[Any, ...]], probes: Iterable[tuple[Any, ...]]) -> bool:
    """Say whether a tensor among the arguments is no longer what it was."""
    pairs = zip(chain(*given), chain(*probes), strict=True)
    return any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in pairs)


def _absent(value: Any) -> int:
    """Return which entry of a tuple is None, counted from 1; 0 if none is."""
    entries = value if isinstance(value, tuple) else ()
    return next((k for k, entry in enumerate(entries, 1) if entry is None), 0)


def _recognised(exercise: Exercise, seen: list[Leaves] | str) -> str | None:
    """Return the hint of the mistake that gives the same values, or fails in the same words.

    The words may stand in another order: `x * std` and `std * x` name their shapes so.
    """
    for mistake in exercise.mistakes:
        try:
            made: list[Leaves] | str = behaviour(mistake.answer, exercise.probes())
        except Exception as error:
            made = _raised(error)
        if isinstance(made, str) or isinstance(seen, str):
            alike = _words(made) == _words(seen)
        else:
            alike = distance(seen, made) <= _tolerance(exercise, seen)
        if alike:
            return mistake.hint
    return None


def _raised(error: Exception) -> str:
    text = " ".join(str(error).split())
    said = text if len(text) <= 160 else text[:157] + "..."
    return f"The function raised {type(error).__name__}: {said}"


def _words(seen: list[Leaves] | str) -> list[str] | None:
    return sorted(seen.split()) if isinstance(seen, str) else None


def _tolerance(exercise: Exercise, got: list[Leaves]) -> float:
    single = any(leaf.single for answer in got for leaf in answer)
    return max(exercise.tolerance, FLOAT32_TOLERANCE) if single else exercise.tolerance


def _misfit(got: list[Leaves], want: list[Leaves]) -> str | None:
    for got_i, want_i in zip(got, want, strict=True):
        if len(got_i) != len(want_i):
            return f"The function returned {_kind(got_i)}, where {_expected(want_i)}."
        for place, (g, w) in enumerate(zip(got_i, want_i, strict=True)):
            if _aligned(g, w) is None:
                return f"{_which(place, want_i)} has shape {_shape(g)}, expected {_shape(w)}."
            if not g.value.isfinite().all() and w.value.isfinite().all():
                return f"{_which(place, want_i)} holds NaN or infinity."
    return None


def _difference(
    exercise: Exercise, answer: Callable[..., Any], got: list[Leaves], want: list[Leaves]
) -> str:
    probes, tolerance = exercise.probes(), _tolerance(exercise, got)
    probe, place = next(
        (i, k)
        for i, pair in enumerate(zip(got, want, strict=True))
        for k, (g, w) in enumerate(zip(*pair, strict=True))
        if _leaf_error(g, w) > tolerance
    )
    column = [(g[place], w[place]) for g, w in zip(got, want, strict=True)]
    if distance(behaviour(answer, probes), got) > tolerance:
        reason = "; it changes from call to call: take the noise from the arguments"
    else:
        reason = _disguise(column, tolerance)
    at = _arguments(exercise.truth, probes[probe])
    which = _which(place, want[probe])
    said = f"{which} at {at} is {_first_difference(*column[probe], tolerance)}{reason}"
    return said if said.endswith("?") else f"{said}."


def _disguise(column: list[tuple[Leaf, Leaf]], tolerance: float) -> str:
    for name, change in _DISGUISES:
        if _explains(column, change, tolerance):
            return f"; {name}"
    got, want = (torch.cat([pair[i].flatten() for pair in map(_pair, column)]) for i in (0, 1))
    factor = float((got @ want) / (want @ want)) if want.any() else 0.0
    if factor and _explains(column, lambda v: factor * v, tolerance):
        return f"; everything is ≈ {factor:.4g} times the answer"
    offset = float((got - want).mean())
    if _explains(column, lambda v: v + offset, tolerance):
        return f"; everything is the answer plus ≈ {offset:.4g}"
    return ""


def _explains(
    column: list[tuple[Leaf, Leaf]], change: Callable[[Tensor], Tensor], tolerance: float
) -> bool:
    changed = [(g, w, dataclasses.replace(w, value=change(w.value))) for g, w in column]
    if all(_leaf_error(c, w) == 0 for _, w, c in changed):
        return False  # nothing was done to it
    return all(_leaf_error(g, c) <= 10 * tolerance for g, _, c in changed)


def _leaf_error(got: Leaf, want: Leaf) -> float:
    pair = _aligned(got, want)
    if pair is None:
        return math.inf
    g, w = pair
    same = (g == w) | (g.isnan() & w.isnan())
    if same.all():
        return 0.0
    finite = w[w.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() and finite.any() else 1.0
    worst = float(torch.where(same, 0.0, (g - w).abs()).max())
    return math.inf if math.isnan(worst) else worst / scale


def _aligned(got: Leaf, want: Leaf) -> tuple[Tensor, Tensor] | None:
    if got.value.shape == want.value.shape:
        return got.value, want.value
    if not want.field:
        return None
    try:
        g, w = torch.broadcast_tensors(got.value, want.value)
    except RuntimeError:
        return None
    return g, w


def _pair(leaves_: tuple[Leaf, Leaf]) -> tuple[Tensor, Tensor]:
    pair = _aligned(*leaves_)
    assert pair is not None, "shapes are compared before values"
    return pair


def _first_difference(got: Leaf, want: Leaf, tolerance: float) -> str:
    g, w = _pair((got, want))
    scale = float(w.abs().max()) or 1.0
    index = tuple(((g - w).abs() > tolerance * scale).nonzero()[0].tolist())
    place = f" at {list(index)}" if index else ""
    return f"≈ {float(g[index]):.5g}{place}, expected ≈ {float(w[index]):.5g}"


def _arguments(function: Callable[..., Any], probe: tuple[Any, ...]) -> str:
    names = inspect.signature(function).parameters
    return ", ".join(f"{name}={_short(value)}" for name, value in zip(names, probe, strict=False))


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"<{'×'.join(map(str, value.shape))} tensor>"
    if isinstance(value, Tensor):
        listed = ", ".join(f"{v:.4g}" for v in value.flatten().tolist())
        return listed if value.ndim == 0 else f"[{listed}]"
    if isinstance(value, (str, bool, int)):
        return repr(value)
    return f"{value:.4g}" if isinstance(value, float) else f"<{type(value).__name__}>"


def _kind(answer: Leaves) -> str:
    if len(answer) == 1:
        return f"one tensor of shape {_shape(answer[0])}" if answer[0].value.ndim else "one number"
    names = [leaf.field for leaf in answer]
    return f"{len(answer)} values" + (f" ({', '.join(names)})" if all(names) else "")


def _expected(answer: Leaves) -> str:
    return f"{_kind(answer)} {'is' if len(answer) == 1 else 'are'} expected"


def _which(place: int, answer: Leaves) -> str:
    if len(answer) == 1:
        return "The answer"
    ordinals = ("first", "second", "third", "fourth", "fifth", "sixth")
    return f"The {answer[place].field or ordinals[place] + ' value'}"


def _shape(leaf: Leaf) -> str:
    return str(tuple(leaf.value.shape))


def _untouched() -> None: ...


def _operations(function: FunctionType) -> list[tuple[str, Any]]:
    steps = dis.get_instructions(function)
    return [(step.opname, step.argval) for step in steps if step.opname != "NOP"]
