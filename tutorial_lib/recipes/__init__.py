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
from tutorial_lib.autoencoder import Stage
from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.cifar10 import DataError
from tutorial_lib.denoiser import step_clock
from tutorial_lib.networks.unet import DDPM, IDDPM, UNetConfig
from tutorial_lib.recipes import (
    analytic_widths,
    classifier,
    diffusion,
    few_steps,
    image_vae,
    record,
)
from tutorial_lib.recipes.analytic_widths import AnalyticRun
from tutorial_lib.recipes.classifier import ClassifierRun
from tutorial_lib.recipes.diffusion_run import DiffusionRun
from tutorial_lib.recipes.few_steps import FewStepsRun
from tutorial_lib.recipes.image_vae import ImageVAERun
from tutorial_lib.recipes.record import Metrics, Recipe
from tutorial_lib.schedule import DiscreteVP
from tutorial_lib.train import TrainingDiverged

FAULTS = (
    *(ValueError, OSError, torch.OutOfMemoryError),
    *(DataError, CheckpointError, TrainingDiverged),
)

FLAT = (Stage((128, 256), 32, 3),)
LADDER = (Stage((128,), 16, 3), Stage((256,), 32, 3), Stage((256,), 64, 3))
SMALL = {
    "steps": 1500,
    "batch_size": 8,
    "learning_rate": 8e-3,
    "images": 2000,
    "test_images": 500,
    "device": "cpu",
}
TINY = {"steps": 20, "batch_size": 16, "images": 64, "test_images": 32, "device": "cpu"}
TINY_TRUNK = UNetConfig(channels=8, multipliers=(1, 2), depth=1, attention=(), clock_scale=250.0)

# 7.3 M weights: 14.6 MB in bfloat16. Its null label is the unconditional model.
COURSE_NETWORK = UNetConfig(
    channels=64,
    multipliers=(1, 2, 2),
    attention=(16, 8),
    head_width=64,
    out_channels=6,
    adaptive_norm=True,
    n_classes=10,
    clock_scale=250.0,
)
TINY_NETWORK = replace(
    COURSE_NETWORK, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=None
)
TINY_CHAIN = {"n_steps": 10, "sample_steps": 5, "samples": 20, "bound_images": 8}
TINY_CHAIN |= {"flow_images": 4, "flow_steps": 3, "curve_samples": 10, "curve_images": 4}

COURSE = DiffusionRun(
    network=COURSE_NETWORK,
    predicts="v",  # an error in eps is 20,000 times as large in x_0 where the chain ends
    steps=28_000,
    batch_size=512,
    learning_rate=1e-3,
    bound_images=2000,
    graph=True,
)
TINY_COURSE = DiffusionRun(network=TINY_NETWORK, predicts="v", **TINY, **TINY_CHAIN)


def _short(about: str, out_channels: int = 6, loss: str = "hybrid") -> Recipe:
    """Return a recipe that trains the course network for a short while, by another objective."""
    tiny, whole = (replace(n, out_channels=out_channels) for n in (TINY_NETWORK, COURSE_NETWORK))
    measured = {"samples": 4000, "bound_images": 1000, "curve_samples": 2000, "curve_images": 250}
    return Recipe(
        f"The course network for a short while: {about}",
        "Nichol & Dhariwal 2021, section 3",
        "7 minutes and 7 GB on an H200, and 4 to measure it",
        "the paper, of other networks: L_vlb better in bits/dim, L_hybrid in FID",
        diffusion.run_diffusion,
        diffusion.headline,
        replace(COURSE, network=whole, loss=loss, steps=7000, **measured),
        None,
        replace(TINY_COURSE, network=tiny, loss=loss),
    )


RECIPES = {
    "cifar10_vae": Recipe(
        "VAE with one level of 8x8x32 latents on CIFAR-10, discretised-logistic pixels",
        "Kingma & Welling 2014",
        "2 minutes and 2 GB on an H200",
        "4.17 bits/dim",
        image_vae.run_image_vae,
        image_vae.headline,
        ImageVAERun(stages=FLAT),
        ImageVAERun(stages=(Stage((16, 32), 32, 1),), **SMALL),
        ImageVAERun(stages=(Stage((8, 16), 8, 1),), **TINY),
    ),
    "cifar10_hvae": Recipe(
        "Markovian hierarchical VAE with three levels, 16x16x16, 8x8x32 and 4x4x64",
        "Luo 2022, section 'Hierarchical VAE'",
        "3 minutes and 2.3 GB on an H200",
        "3.94 bits/dim",
        image_vae.run_image_vae,
        image_vae.headline,
        ImageVAERun(stages=LADDER),
        ImageVAERun(
            stages=(Stage((16,), 8, 1), Stage((32,), 16, 1), Stage((32,), 32, 1)), **SMALL
        ),
        ImageVAERun(stages=(Stage((8,), 4, 1), Stage((8,), 8, 1), Stage((8,), 8, 1)), **TINY),
    ),
    "cifar10_classifier": Recipe(
        "Classifier of clean CIFAR-10 images, whose features judge samples (FD-classifier)",
        "Dhariwal & Nichol 2021, section 4, for its form",
        "4 minutes and 1.1 GB on an H200",
        "90 % of clean test images",
        classifier.run_classifier,
        classifier.headline,
        ClassifierRun(graph=True),
        None,
        ClassifierRun(network=TINY_TRUNK, **TINY),
    ),
    "cifar10_noisy_classifier": Recipe(
        "The same, trained on x_t at every t of the cosine chain, for classifier guidance",
        "Dhariwal & Nichol 2021, section 4",
        "4 minutes and 1.1 GB on an H200",
        "85 % of clean test images, 67 % at t = 0.5",
        classifier.run_classifier,
        classifier.headline,
        ClassifierRun(noisy=True, graph=True),
        None,
        ClassifierRun(network=TINY_TRUNK, noisy=True, **TINY),
    ),
    "cifar10_ddpm": Recipe(
        "DDPM as published: 35.7 M weights, linear schedule, L_simple",
        "Ho, Jain & Abbeel 2020",
        "14 minutes and 14 GB on an H200, and 6 to measure it",
        "the paper: FID 3.17, at most 3.75 bits/dim after 800,000 steps of 128 images",
        diffusion.run_diffusion,
        diffusion.headline,
        DiffusionRun(
            network=DDPM,
            chain=DiscreteVP.linear,
            clock=step_clock,
            steps=10_500,
            batch_size=512,
            learning_rate=4e-4,
            sample_steps=1000,
            samples=4000,
            curve_images=250,
            curve_samples=2000,
            graph=True,
        ),
        None,
        DiffusionRun(
            network=replace(TINY_NETWORK, out_channels=3, n_classes=0),
            chain=DiscreteVP.linear,
            **TINY,
            **TINY_CHAIN,
        ),
    ),
    "cifar10_iddpm": Recipe(
        "IDDPM as published: 52.5 M weights, cosine schedule, learned variance, L_hybrid",
        "Nichol & Dhariwal 2021",
        "about 5 hours on an H200 (an estimate)",
        "the paper: FID 3.19, 3.17 bits/dim after 500,000 steps of 128 images",
        diffusion.run_diffusion,
        diffusion.headline,
        DiffusionRun(
            network=IDDPM,
            clock=step_clock,
            n_steps=4000,
            steps=500_000,
            batch_size=128,
            learning_rate=1e-4,
            ema_decay=0.9999,
            sample_steps=4000,
            graph=True,
        ),
        None,
        DiffusionRun(network=replace(TINY_NETWORK, n_classes=0), **TINY, **TINY_CHAIN),
    ),
    "cifar10_course": Recipe(
        "The course network: class-conditional with a null label, learned variance, cosine chain",
        "Nichol & Dhariwal 2021; Ho & Salimans 2022",
        "16 minutes and 7 GB on an H200, and 5 to measure it",
        "2.50 bits/dim",
        diffusion.run_diffusion,
        diffusion.headline,
        COURSE,
        None,
        TINY_COURSE,
    ),
    "cifar10_short_hybrid": _short("L_hybrid"),
    "cifar10_short_vlb": _short("L_vlb alone", loss="vlb"),
    "cifar10_short_vlb_importance": _short(
        "L_vlb alone, with steps drawn by importance", loss="vlb_importance"
    ),
    "cifar10_short_simple": _short("L_simple, no variance head", out_channels=3),
    "cifar10_few_steps": Recipe(
        "The course network, without labels, in 10 to 1000 steps of every width; codes and back",
        "Song, Meng & Ermon 2021, tables 1 and 2",
        "9 minutes on an H200",
        "the paper, of DDPM's network: FID 13.36 in 10 steps, 4.04 in 1000, at eta = 0",
        few_steps.run_few_steps,
        few_steps.headline,
        FewStepsRun(model=COURSE),
        None,
        FewStepsRun(
            model=TINY_COURSE,
            **{"images": 64, "test_images": 32, "device": "cpu", "samples": 20, "decoded": 8},
            **{"counts": (2, 4), "round_trips": (4, 8), "pictured": 4},
        ),
    ),
    "cifar10_analytic": Recipe(
        "The course network's steps with the variances that it knows itself, and with others",
        "Bao et al. 2022a, tables 1 and 2; 2022b",
        "7 minutes on an H200",
        "the paper, of another network: 5.47 bits/dim in 10 steps, 6.99 with beta",
        analytic_widths.run_analytic,
        analytic_widths.headline,
        AnalyticRun(model=COURSE, steps=3000, batch_size=500, learning_rate=1e-3),
        None,
        AnalyticRun(
            model=TINY_COURSE,
            learning_rate=1e-3,
            **TINY,
            **{"counts": (2, 4), "drawn": (2,), "samples": 8, "bound_images": 4},
            **{"curve_images": 8, "channels": 8, "pictured": 4},
        ),
    ),
}


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
