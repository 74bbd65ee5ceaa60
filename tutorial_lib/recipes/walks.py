"""Draw samples of a recorded network in many ways, and judge each: notebooks 07, 08 and 09."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from tutorial_lib.cifar10 import cifar10, to_floats, to_pixels
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.dpm_solver import (
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    fast_orders,
    sde_dpm_solver_pp_2m,
    singlestep,
)
from tutorial_lib.guidance import (
    ClassifierFree,
    ClassifierGuided,
    StaticThreshold,
    Unlabelled,
    guided_ancestral,
    label_log_prob,
)
from tutorial_lib.recipes import judge
from tutorial_lib.recipes.diffusion_run import DiffusionRun, recorded_denoiser
from tutorial_lib.recipes.evaluate import BATCH, judge_of, unlabelled
from tutorial_lib.recipes.record import Metrics, OnCifar10, origin_of, save_sheet, write_metrics
from tutorial_lib.samplers import ddim, final, learned_range
from tutorial_lib.schedule import Schedule, log_snr_times, uniform_times
from tutorial_lib.solvers import Sampler, heun

# Each with the evaluations that a step takes
SOLVERS: dict[str, tuple[Sampler, int]] = {
    "DDIM": (ddim, 1),
    "Heun": (heun, 2),
    "DPM-Solver-2": (dpm_solver_2, 2),
    "DPM-Solver-3": (dpm_solver_3, 3),
    "DPM-Solver++ 2S": (dpm_solver_pp_2s, 2),
    "DPM-Solver++ 2M": (dpm_solver_pp_2m, 1),
    "DPM-Solver++ 2M, last of order 1": (partial(dpm_solver_pp_2m, lower_order_final=True), 1),
    "2M of eps": (partial(dpm_solver_pp_2m, form="eps"), 1),
    "SDE-DPM-Solver++ 2M": (sde_dpm_solver_pp_2m, 1),
}


@dataclass(frozen=True)
class Way:
    """Name a way to draw samples, and say how: who is asked, by what walk, with labels or not.

    `rows` are drawn at a time: a network is compiled for each number of rows that it is asked.
    Those after a `fine` one are measured against it: where do steps without number lead?
    """

    row: Metrics
    model: Denoiser
    walk: Sampler
    times: Tensor
    labelled: bool = False
    rows: int = BATCH
    fine: bool = False


@dataclass(frozen=True, kw_only=True)
class WalksRun(OnCifar10):
    """Fix whose weights are walked, in which `ways`, and how many samples of each are judged.

    `ways` makes a list of them of the run and its denoiser; `numbers` are what it varies: network
    evaluations, or scales of guidance. `weights` is the file of the network that `model`
    describes; `steps`, `fine`, `start` and `grids` are those of the walks where not varied.
    """

    model: DiffusionRun
    ways: Callable[[WalksRun, Denoiser], Iterable[Way]]
    numbers: tuple[float, ...]
    weights: str = "results/cifar10_course/weights.safetensors.xz"
    steps: int = 50
    fine: int = 250
    start: float = 1.0
    grids: tuple[str, ...] = ("log-SNR",)
    samples: int = 2000
    pictured: int = 10


class AnyRun(Protocol):
    """Say what network is walked, and how many samples are drawn where."""

    model: DiffusionRun
    samples: int
    seed: int
    device: str


def run_walks(name: str, config: WalksRun, out: Path) -> Metrics:
    """Draw and judge samples of each way, from the same noise, and leave a row of each.

    Raises FileNotFoundError without the weights.
    """
    images = cifar10("train", source=config.source, limit=config.images)
    network, started = replace(config.model, device=config.device), time.perf_counter()
    model = recorded_denoiser(network, Path(config.weights))
    judges, rows, shown, fine = _judges(config.device, images.pixels), [], [], None
    for way in config.ways(config, model):
        pixels, labels, seconds = draw(way, config)
        fine = pixels if way.fine else fine
        found = _scores(judges, pixels, labels if way.labelled else None)
        if fine is not None:
            found["astray"] = round(astray(pixels, fine), 3)
        rows.append({**way.row, **found, "seconds_per_image": float(f"{seconds:.3g}")})
        shown.append(pixels[: config.pictured])
    save_sheet(to_floats(torch.cat(shown)), config.pictured, out / "samples.jpg")
    floor = _floor(judges, config)
    found = {"data": images.form, "samples": config.samples, "floor": floor, "table": rows}
    seconds = round(time.perf_counter() - started, 1)
    found |= {"seconds": seconds, "trained": origin_of(Path(config.weights))}
    return write_metrics(out, name, config, found)


def _judges(device: str, real: Tensor) -> dict[str, judge.Judge]:
    """Return who scores samples, by the end of their scores' names: of those that are there."""
    known = {"": (judge.WEIGHTS, 0.0), "_noise_aware": (judge.NOISY_WEIGHTS, judge.CLEAN)}
    found = {end: judge_of(device, real.to(device), *its) for end, its in known.items()}
    return {end: by for end, by in found.items() if by is not None}


def _floor(judges: dict[str, judge.Judge], config: WalksRun) -> Metrics:
    """Return the scores of as many test pictures as there are samples."""
    unseen = cifar10("test", source=config.source, limit=config.samples)
    return _scores(judges, *(part.to(config.device) for part in (unseen.pixels, unseen.labels)))


def _scores(judges: dict[str, judge.Judge], pixels: Tensor, labels: Tensor | None) -> Metrics:
    """Return every judge's scores."""
    return {
        key + end: score
        for end, by in judges.items()
        for key, score in by.scores(pixels, labels).items()
        if key not in ("samples", "reference_images")
    }


def astray(pixels: Tensor, fine: Tensor) -> float:
    """Return how far pictures are from those of the same noise, RMS grey levels, the median's."""
    return (pixels.double() - fine.double()).square().mean((1, 2, 3)).sqrt().median().item()


def headline(found: Metrics) -> str:
    """Say in a few words which way came closest."""
    judged = [row for row in found["table"] if "fd_classifier" in row]
    if not judged:
        return f"{len(found['table'])} ways"
    best = min(judged, key=lambda row: row["fd_classifier"])
    named = [
        str(v) for k, v in best.items() if k in ("solver", "evaluations", "guidance", "scale")
    ]
    return f"FD-classifier {best['fd_classifier']:.2f} by {', '.join(named)}"


def solvers_headline(found: Metrics) -> str:
    """Say which solver came closest without guidance in about ten evaluations, and DDIM."""
    free = [row for row in found["table"] if row["w"] < 0 and "fd_classifier" in row]
    counts = {row["evaluations"] for row in free if row["solver"] == "DDIM"}
    if not counts:
        return headline(found)
    count = min(counts, key=lambda n: abs(n - 10))
    short = [row for row in free if row["evaluations"] == count]
    plain = [row for row in short if row["solver"] == "DDIM"]
    best, ddim = (min(rows, key=lambda row: row["fd_classifier"]) for rows in (short, plain))
    return (
        f"FD-classifier {best['fd_classifier']:.2f} in {count} by {best['solver']}, "
        f"{best['grid']} times; {ddim['fd_classifier']:.2f} by DDIM, {ddim['grid']}"
    )


def draw(way: Way, config: AnyRun) -> tuple[Tensor, Tensor, float]:
    """Return sampled pixels (N, 3, H, W), the labels in turn (N,), and the seconds of an image.

    The seconds are those of the median batch over its rows, which leaves compilation out.
    """
    generator, fresh = (Generator(config.device).manual_seed(config.seed + k) for k in (1, 2))
    net, made, took = config.model.network, [], []
    shape = (config.samples, net.in_channels, net.side, net.side)
    start = torch.randn(shape, generator=generator, device=config.device)
    labels = torch.arange(config.samples, device=config.device) % max(1, net.n_classes)
    for x, label in zip(start.split(way.rows), labels.split(way.rows), strict=True):
        cond = Condition(label=label) if way.labelled else unlabelled(x, config.model)
        began = time.perf_counter()
        pixels = to_pixels(final(way.walk(way.model, x, way.times, cond, generator=fresh)))
        made.append(pixels.cpu())  # waits for the device
        took.append((time.perf_counter() - began) / len(x))
    return torch.cat(made).to(config.device), labels, statistics.median(took)


def grid_times(grid: str, schedule: Schedule, n: int, start: float, end: float) -> Tensor:
    """Return n steps down to `end`, even in log-SNR or in a power of time, and so named."""
    if grid == "log-SNR":
        return log_snr_times(schedule, n, end, start)
    power = {"uniform": 1, "quadratic": 2}[grid]
    first, last = start ** (1 / power), end ** (1 / power)
    return torch.linspace(first, last, n + 1, dtype=torch.float64) ** power


def solver_ways(config: WalksRun, model: Denoiser) -> Iterator[Way]:
    """Return every solver in as many evaluations as `numbers` say, without labels and guided.

    They end at t = 1 / T, the least noise that the network was trained on. A solver is left out
    where its steps do not fit. Guided are those of at most 20 evaluations, of both branches each,
    by w = 7: the paper's scale of 8.
    """
    free, guided = StaticThreshold(model), StaticThreshold(ClassifierFree(model, 7.0))
    few = [n for n in config.numbers if n <= 20]
    yield from _solvers(config, free, {"w": -1.0}, config.numbers)
    yield from _solvers(config, guided, {"w": 7.0}, few, labelled=True, rows=BATCH // 2)


def _solvers(
    config: WalksRun, model: Denoiser, row: Metrics, counts: Iterable[float], **how: Any
) -> Iterator[Way]:
    """Return the fine walk, even in log-SNR, then every solver."""
    ends = config.start, 1 / config.model.n_steps
    fine = {"solver": "DPM-Solver++ 2M", "grid": "log-SNR", **row, "evaluations": config.fine}
    times = grid_times("log-SNR", model.schedule, config.fine, *ends)
    yield Way(fine, model, dpm_solver_pp_2m, times, fine=True, **how)
    for grid, count in product(config.grids, map(int, counts)):
        solvers = {k: (f, count // each) for k, (f, each) in SOLVERS.items() if count % each == 0}
        orders = fast_orders(count)
        solvers["DPM-Solver-fast"] = partial(singlestep, orders=orders), len(orders)
        for name, (solver, steps) in solvers.items():
            named = {"solver": name, "grid": grid, **row, "evaluations": count}
            times = grid_times(grid, model.schedule, steps, *ends)
            yield Way(named, model, solver, times, **how)


def classifier_ways(config: WalksRun, model: Denoiser) -> Iterator[Way]:
    """Return classifier guidance of the unconditional and of the conditional network, by scale.

    DDIM of the guided eps, and DDPM's shifted mean (Dhariwal & Nichol 2021, algorithms 2 and 1),
    in the same `steps`.
    """
    classifier = judge.load_noisy_classifier(device=config.device)
    times, similarity = uniform_times(config.steps), label_log_prob(classifier)
    models = {"unconditional": Unlabelled(model), "conditional": model}
    for name, one in models.items():
        for scale in config.numbers:
            row = {"model": name, "guidance": "eps", "scale": scale}
            guided = StaticThreshold(ClassifierGuided(one, classifier, scale))
            yield Way(row, guided, ddim, times, labelled=True)
    for scale in config.numbers:
        row = {"model": "unconditional", "guidance": "mean", "scale": scale}
        how = {"similarity": similarity, "scale": scale, "variance": learned_range}
        walk = partial(guided_ancestral, **how)
        yield Way(row, StaticThreshold(models["unconditional"]), walk, times, labelled=True)


def clean_ways(config: WalksRun, model: Denoiser) -> Iterator[Way]:
    """Return what guidance makes of a classifier that has never seen noise, by scale."""
    net = judge.load_classifier(device=config.device).requires_grad_(False)
    for scale in config.numbers:
        guided = ClassifierGuided(Unlabelled(model), lambda xt, t: net(xt), scale)
        row = {"model": "unconditional", "guidance": "eps, clean classifier", "scale": scale}
        yield Way(row, StaticThreshold(guided), ddim, uniform_times(config.steps), labelled=True)


def free_ways(config: WalksRun, model: Denoiser) -> Iterator[Way]:
    """Return classifier-free guidance by scale, at all times and in intervals, and without."""
    times = uniform_times(config.steps)
    row = {"guidance": "unconditional", "scale": -1.0}
    yield Way(row, StaticThreshold(Unlabelled(model)), ddim, times, labelled=True)
    intervals = {"always": (0.0, 1.0), "t from .2 to .8": (0.2, 0.8), "t below .5": (0.0, 0.5)}
    for name, interval in intervals.items():
        for w in config.numbers:
            if w == 0 and name != "always":
                continue
            guided = StaticThreshold(ClassifierFree(model, w, interval))
            rows = BATCH // 2 if w else BATCH  # the network is asked twice as many
            row = {"guidance": name, "scale": w}
            yield Way(row, guided, ddim, times, labelled=True, rows=rows)
