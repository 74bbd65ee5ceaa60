"""The bug zoo: every exercise rejects every wrong answer with a message of its own. 3 seconds.

`zoo/nNN.py` holds wrong answers written without a look at the exercise's own mistakes, as
`WRONG = {number: [(function, part of the hint it must meet), ...]}`, two or more for each.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import house_rules
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from tutorial_lib import exercises
from tutorial_lib.exercises import Exercise, Mistake, marking

ROOT = Path(__file__).parents[1]
ZOO = Path(__file__).parent / "zoo"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
EVERY = [e for number in exercises.notebooks() for e in exercises.of_notebook(number)]

# Two answers must differ by far more than what is forgiven to single precision.
APART = 10 * marking.FLOAT32_TOLERANCE

Wrong = list[tuple[Callable, str]]


def stub(*arguments): ...


def prove(exercise: Exercise) -> None:
    """Assert that an exercise is marked as the course promises."""
    mark, probes = marking.mark, exercise.probes()
    assert mark(exercise, stub) == f"{exercise.number} to do"
    assert mark(exercise, exercise.truth) == f"✓ {exercise.number}  {exercise.learned}"
    hints = [mistake.hint for mistake in exercise.mistakes]
    assert len(set(hints)) == len(hints) >= 3, "three mistakes with hints of their own"
    for mistake in exercise.mistakes:
        said = mark(exercise, mistake.answer)
        assert said == f"✗ {exercise.number}  {mistake.hint}", f"{mistake.name}: {said}"
    assert exercise.tolerance <= marking.FLOAT32_TOLERANCE
    finishing = [answer for answer in answers(exercise) if finishes(answer, probes)]
    for one, other in itertools.combinations((exercise.truth, *finishing), 2):
        a, b = (marking.behaviour(answer, probes) for answer in (one, other))
        assert min(marking.distance(a, b), marking.distance(b, a)) > APART, "told apart"
    again = marking.behaviour(exercise.truth, exercise.probes())
    assert marking.distance(marking.behaviour(exercise.truth, probes), again) == 0, "fixed probes"


def answers(exercise: Exercise) -> list[Callable]:
    return [mistake.answer for mistake in exercise.mistakes]


def finishes(answer: Callable, probes: list) -> bool:
    """Say whether an answer returns: a mistake may also be to fail."""
    try:
        marking.behaviour(answer, probes)
    except Exception:
        return False
    return True


def prove_rejected(exercise: Exercise, wrong: Wrong) -> None:
    """Assert that answers written elsewhere are recognised for the mistakes they are."""
    assert len(wrong) >= 2, "two wrong answers written independently"
    for answer, fragment in wrong:
        said = marking.mark(exercise, answer)
        assert said.startswith("✗") and fragment in said, said


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """Undo what a notebook's setup cell sets for its whole process."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def prove_cells(notebook: nbformat.NotebookNode, number: str) -> None:
    """Assert that a notebook's stubs are to do, its solutions right, and none is missing."""
    cells = {tag: tagged(notebook, tag) for tag in ("setup", "exercise", "solution")}
    known = [exercise.number for exercise in exercises.of_notebook(number)]
    namespace: dict = {}
    for cell in cells["setup"]:
        exec(cell.source, namespace)
    for kind, start in (("exercise", "{} to do"), ("solution", "✓ {}")):
        assert [house_rules.checked(cell)[0] for cell in cells[kind]] == known, kind
        for cell, name in zip(cells[kind], known, strict=True):
            exec(cell.source, namespace)
            answer = namespace[house_rules.checked(cell)[1]]
            said = marking.mark(exercises.find(name), answer)
            assert said.startswith(start.format(name)), f"{cell.id}: {said}"


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in house_rules.tags(cell)]


def independent(number: str) -> dict[str, Wrong]:
    path = ZOO / f"n{number}.py"
    spec = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


@pytest.mark.parametrize("exercise", EVERY, ids=lambda e: e.number)
def test_every_mistake_meets_its_own_hint(exercise):
    prove(exercise)


@pytest.mark.parametrize("exercise", EVERY, ids=lambda e: e.number)
def test_independent_wrong_answers_are_recognised(exercise):
    prove_rejected(exercise, independent(exercise.number[:2]).get(exercise.number, []))


def each(value, dress: Callable):
    """The same value with every tensor in it dressed."""
    if isinstance(value, torch.Tensor):
        return dress(value)
    if isinstance(value, (tuple, list)):
        return type(value)(each(part, dress) for part in value)
    return value


def single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


@pytest.mark.parametrize("exercise", EVERY, ids=lambda e: e.number)
def test_right_answers_may_be_of_single_precision_or_numpy_s(exercise):
    def narrow(*given):
        return exercise.truth(*each(given, single))

    def narrowed(*given):
        return each(exercise.truth(*given), single)

    def foreign(*given):
        return each(exercise.truth(*given), lambda tensor: tensor.detach().numpy())

    for answer in (narrow, narrowed, foreign):
        assert marking.mark(exercise, answer).startswith("✓"), answer.__name__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stubs_and_solutions_of_the_notebook(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with plt.rc_context():
        prove_cells(nbformat.read(path, as_version=4), path.name[:2])


def test_the_zoo_holds_no_exercise_that_is_gone():
    numbers = {exercise.number for exercise in EVERY}
    for number in exercises.notebooks():
        assert set(independent(number)) <= numbers


# The proofs themselves: a right exercise passes them, and each way to get it wrong does not.

GOOD = Exercise(
    "97.1",
    "The variance is one minus alpha.",
    truth=lambda alpha: 1 - alpha,
    probes=lambda: [(torch.tensor([0.3, 0.9], dtype=torch.float64),)],
    mistakes=(
        Mistake("root", "Root.", lambda alpha: (1 - alpha) ** 0.5),
        Mistake("sign", "Sign.", lambda alpha: alpha - 1),
        Mistake("alpha", "Alpha.", lambda alpha: alpha),
    ),
)
SAME = Mistake("same", "Same.", lambda alpha: alpha * (1 + 1e-5))
RIGHT = Mistake("right", "Right.", lambda alpha: 1 - alpha)
TWIN = Mistake("twin", "Alpha.", lambda alpha: alpha**2)

SPOILT = {
    "a tolerance that accepts wrong answers": replace(GOOD, tolerance=10.0),
    "two mistakes": replace(GOOD, mistakes=GOOD.mistakes[:2]),
    "two mistakes with one hint": replace(GOOD, mistakes=(*GOOD.mistakes, TWIN)),
    "two mistakes that look alike": replace(GOOD, mistakes=(*GOOD.mistakes, SAME)),
    "a mistake that is right": replace(GOOD, mistakes=(*GOOD.mistakes, RIGHT)),
    "a probe that hides a mistake": replace(GOOD, probes=lambda: [(torch.tensor(0.5),)]),
    "probes that change": replace(GOOD, probes=lambda: [(torch.rand(3, dtype=torch.float64),)]),
}


def test_a_right_exercise_passes_the_proof():
    prove(GOOD)
    prove_rejected(GOOD, [(lambda a: (1 - a).sqrt(), "Root."), (lambda a: -(1 - a), "Sign.")])


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_exercise_fails_the_proof(name):
    with pytest.raises(AssertionError):
        prove(SPOILT[name])


@pytest.mark.parametrize("verdict", ["✓ 97.1  fine", "97.1 to do", "✗ 97.1  No."])
def test_a_checker_with_one_verdict_fails_the_proof(monkeypatch, verdict):
    monkeypatch.setattr(marking, "mark", lambda exercise, answer: verdict)
    with pytest.raises(AssertionError):
        prove(GOOD)
    with pytest.raises(AssertionError):
        prove_rejected(GOOD, [(lambda a: a, "Alpha."), (lambda a: a - 1, "Sign.")])


def test_a_checker_that_accepts_what_is_wrong_fails_the_proof(monkeypatch):
    honest = marking.mark

    def lenient(exercise, answer):
        said = honest(exercise, answer)
        return said.replace("✗ 97.1  Alpha.", f"✓ 97.1  {exercise.learned}")

    monkeypatch.setattr(marking, "mark", lenient)
    with pytest.raises(AssertionError):
        prove(GOOD)
    with pytest.raises(AssertionError):
        prove_rejected(GOOD, [(lambda a: a - 1, "Sign."), (lambda a: a, "Alpha.")])


def cells(**sources: str) -> nbformat.NotebookNode:
    made = [
        nbformat.v4.new_code_cell(source, id=tag, metadata={"tags": [tag]})
        for tag, source in sources.items()
    ]
    return nbformat.v4.new_notebook(cells=made)


SETUP = "import torch\nfrom tutorial_lib import checks"
STUB = 'def noise(alpha): ...\nchecks.exercise("97.1", noise)'
SOLUTION = 'def solved(alpha):\n    return 1 - alpha\nchecks.exercise("97.1", solved)'


def test_cells_are_proved_by_running_them(tmp_path, monkeypatch):
    (tmp_path / "n97.py").write_text("from test_zoo import GOOD\nEXERCISES = (GOOD,)\n")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, os.fspath(tmp_path)])
    prove_cells(cells(setup=SETUP, exercise=STUB, solution=SOLUTION), "97")
    for changed in (
        {"exercise": STUB.replace("...", "return 1 - alpha")},
        {"solution": SOLUTION.replace("1 - alpha", "alpha")},
        {"solution": SOLUTION.replace("97.1", "97.2")},
        {"exercise": "pass"},
    ):
        spoilt = {"setup": SETUP, "exercise": STUB, "solution": SOLUTION} | changed
        with pytest.raises(AssertionError):
            prove_cells(cells(**spoilt), "97")
