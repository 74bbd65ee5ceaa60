"""Walk a recorded network in few steps: DDIM's tables 1 and 2, and its pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib.cifar10 import cifar10, to_floats, to_pixels
from tutorial_lib.denoiser import Denoiser
from tutorial_lib.guidance import StaticThreshold
from tutorial_lib.recipes.diffusion_run import DiffusionRun, recorded_denoiser
from tutorial_lib.recipes.evaluate import BATCH, judge_of, unlabelled
from tutorial_lib.recipes.record import Metrics, OnCifar10, origin_of, save_sheet, write_metrics
from tutorial_lib.samplers import ancestral, beta, ddim, encode, final, learned_range, slerp
from tutorial_lib.schedule import quadratic_times, uniform_times

GRIDS = {"uniform": uniform_times, "quadratic": quadratic_times}
# DDPM's larger width, of variance beta (DDIM, section 5.1), and the network's own
ANCESTRAL = {"sigma-hat": beta, "learned": learned_range}
WIDTHS: tuple[float | str, ...] = (0.0, 0.5, 1.0, *ANCESTRAL)


@dataclass(frozen=True, kw_only=True)
class FewStepsRun(OnCifar10):
    """Fix whose weights are walked, in how many steps, and how many samples are judged.

    `counts` and `samples` are of table 1, `round_trips` and `decoded` of table 2 (DDIM, Song et
    al. 2021). `weights` is the file of the network that `model` describes.
    """

    model: DiffusionRun
    weights: str = "results/cifar10_course/weights.safetensors.xz"
    counts: tuple[int, ...] = (10, 20, 50, 100, 1000)
    samples: int = 2000
    round_trips: tuple[int, ...] = (10, 20, 50, 100, 200, 500, 1000)
    decoded: int = 500
    pictured: int = 10


def run_few_steps(name: str, config: FewStepsRun, out: Path) -> Metrics:
    """Judge samples for each number of steps and width, code test images and back, draw both.

    All without labels. Raises FileNotFoundError without the weights.
    """
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    network = replace(config.model, device=config.device)
    model, started = recorded_denoiser(network, Path(config.weights)), time.perf_counter()
    by = judge_of(config.device, images.pixels.to(config.device))
    rows, alike = [], []
    for grid, count, width in _table(config):
        pixels = draw(model, config, GRIDS[grid](count), width)
        scores = by.scores(pixels, None) if by is not None else {}
        kept = {k: scores[k] for k in ("fd_classifier", "precision", "recall") if k in scores}
        rows.append({"grid": grid, "steps": count, "width": width, **kept})
        alike += [pixels[: config.pictured]] if (grid, width) == ("uniform", 0) else []
    real = to_floats(unseen.pixels[: config.decoded].to(config.device))
    back = {count: round_trip(model, config, real, count) for count in config.round_trips}
    n = config.pictured
    save_sheet(to_floats(torch.cat(alike)), n, out / "same_noise.jpg")
    save_sheet(torch.cat([real[:n], *(x[:n] for x in back.values())]), n, out / "round_trip.jpg")
    save_sheet(between(model, config), n, out / "between.jpg")
    errors = [
        {"steps": count, "squared_error": float(((x - real) / 2).square().mean())}
        for count, x in back.items()
    ]
    seconds = round(time.perf_counter() - started, 1)
    found = {"data": images.form, "samples": config.samples, "table": rows, "round_trip": errors}
    found |= {"seconds": seconds, "trained": origin_of(Path(config.weights))}
    return write_metrics(out, name, config, found)


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    rows = [row for row in found["table"] if row["width"] == 0 and row["grid"] == "uniform"]
    few = rows[0]
    judged = f"FD-classifier {few['fd_classifier']:.2f}" if "fd_classifier" in few else "samples"
    return f"{judged} in {few['steps']} steps"


def _table(config: FewStepsRun) -> list[tuple[str, int, float | str]]:
    even = [("uniform", n, width) for n in config.counts for width in WIDTHS]
    return even + [("quadratic", n, 0.0) for n in config.counts]


def draw(model: Denoiser, config: FewStepsRun, times: Tensor, width: float | str) -> Tensor:
    """Return sampled pixels (N, 3, H, W) of a walk along `times`; x_T is the same for all."""
    generator, fresh = (Generator(config.device).manual_seed(config.seed + k) for k in (1, 2))
    made = []
    for size in [len(part) for part in torch.arange(config.samples).split(BATCH)]:
        x = _noise(config, size, generator)
        cond = unlabelled(x, config.model)
        if width in ANCESTRAL:
            how = {"generator": fresh, "variance": ANCESTRAL[width]}
            walk = ancestral(StaticThreshold(model), x, times, cond, **how)
        else:
            walk = ddim(StaticThreshold(model), x, times, cond, eta=float(width), generator=fresh)
        made.append(to_pixels(final(walk)))
    return torch.cat(made)


def round_trip(model: Denoiser, config: FewStepsRun, real: Tensor, count: int) -> Tensor:
    """Return what images (N, 3, H, W) become on the way to noise and back in `count` steps each.

    The way begins at the least noise that the network was trained on, t = 1 / T.
    """
    last = 1 / config.model.n_steps
    times = torch.linspace(1, last, count + 1, dtype=torch.float64)
    shrunk = float(model.schedule.alpha(last))
    back = []
    for x in real.split(BATCH):
        cond = unlabelled(x, config.model)
        code = final(encode(model, shrunk * x, times, cond))
        back.append(final(ddim(model, code, times, cond)) / shrunk)
    return torch.cat(back)


def between(model: Denoiser, config: FewStepsRun) -> Tensor:
    """Return rows of samples, each on the great circle from one noise to another (section 5.3)."""
    n, generator = config.pictured, Generator(config.device).manual_seed(config.seed + 3)
    ends = (_noise(config, n, generator).repeat_interleave(n, 0) for _ in range(2))
    shares = torch.linspace(0, 1, n, device=config.device).repeat(n)
    x, times = slerp(*ends, shares), uniform_times(min(100, max(config.counts)))
    return final(ddim(StaticThreshold(model), x, times, unlabelled(x, config.model)))


def _noise(config: FewStepsRun, n: int, generator: Generator) -> Tensor:
    net = config.model.network
    shape = (n, net.in_channels, net.side, net.side)
    return torch.randn(shape, generator=generator, device=config.device)
