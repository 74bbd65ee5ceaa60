"""Recorded runs: `python -m tutorial_lib.recipes NAME [--small] [--steps 100 ...]`, or `--list`.

A run leaves `metrics.json`, pictures and `log.jsonl` in its folder: `results/NAME` for the run
that is recorded there, `runs/NAME` for any other, or `--out`. `--small` is the same code in a
minute on a CPU, `--tiny` in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from typing import Any

import torch

from tutorial_lib import ranks
from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.cifar10 import DataError
from tutorial_lib.recipes import record
from tutorial_lib.recipes.catalogue import COURSE as COURSE
from tutorial_lib.recipes.catalogue import RECIPES
from tutorial_lib.recipes.record import Metrics, Recipe
from tutorial_lib.train import TrainingDiverged

FAULTS = (
    *(ValueError, OSError, torch.OutOfMemoryError),
    *(DataError, CheckpointError, TrainingDiverged),
)


def run(name: str, *, small: bool = False, tiny: bool = False, **overrides: Any) -> Metrics:
    """Run a recipe, with some of its settings changed, and return what it wrote as metrics.

    Raises ValueError for an unknown recipe or a setting that cannot be, DataError,
    CheckpointError and TrainingDiverged.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: choose from {', '.join(RECIPES)}")
    if small and tiny:
        raise ValueError("a run is small or tiny: choose one")
    recipe = RECIPES[name]
    base = recipe.small if small else recipe.tiny if tiny else recipe.full
    if base is None:
        raise ValueError(f"{name} has no small form: run it whole on a GPU, or --tiny")
    unknown = set(overrides) - {field.name for field in fields(base)}
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}")
    config = replace(base, **overrides)
    ranks.take_device(config.device)
    record.require_device(config.device)
    torch.backends.cudnn.benchmark = True  # shapes never change: try each convolution's kernels
    out = recipe.folder(name, config)
    out.mkdir(parents=True, exist_ok=True)
    return recipe.run(name, config, out)


def _listing() -> str:
    return "\n".join(_described(name, recipe) for name, recipe in RECIPES.items())


def _described(name: str, recipe: Recipe) -> str:
    lines = [name, recipe.about, f"{recipe.paper}; {recipe.cost}", f"expected: {recipe.expected}"]
    recorded = record.RESULTS / name / "metrics.json"
    if recorded.exists():
        found = json.loads(recorded.read_text())
        lines.append(f"recorded: {recipe.headline(found)} on {found['data']}; {found['device']}")
    return "\n  ".join(lines)


def _parser(name: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tutorial_lib.recipes", description=__doc__)
    parser.add_argument("name", nargs="?", choices=RECIPES)
    parser.add_argument("--list", action="store_true", help="say what there is, and what it costs")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--small", action="store_true", help="the same in a minute, on a CPU")
    forms.add_argument("--tiny", action="store_true", help="the same in seconds, on a CPU")
    for field in fields(RECIPES[name].full) if name in RECIPES else ():
        option, kind = "--" + field.name.replace("_", "-"), str(field.type)
        if kind == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction)
        elif kind in ("int", "float", "str | None", "str"):
            parser.add_argument(option, type={"int": int, "float": float}.get(kind, str))
    return parser


def _sentence(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: choose a smaller --batch-size"
    if isinstance(error, OSError):
        reason = error.strerror or error
        return f"cannot write the run's files ({reason}): make room, or name a folder with --out"
    return str(error)


def main(arguments: list[str]) -> int:
    """Read the command line, run, print the metrics; return the exit status."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    given = vars(_parser(named).parse_args(arguments))
    given = {k: v for k, v in given.items() if v is not None}
    name, listing = given.pop("name", None), given.pop("list")
    if listing or name is None:
        print(_listing())
        return 0
    try:
        found = run(name, **given)
        if ranks.leads():
            print(json.dumps(found, indent=2))
    except KeyboardInterrupt as stop:
        print(stop.args[0] if stop.args else "stopped, not saved", file=sys.stderr)
        return 130
    except FAULTS as error:
        print(_sentence(error), file=sys.stderr)
        return 1
    return 0
