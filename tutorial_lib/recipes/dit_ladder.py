"""Train diffusion transformers of many sizes and conditionings for as many steps: notebook 16."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tutorial_lib.cifar10 import cifar10
from tutorial_lib.networks.dit import CONDITIONINGS, DiTConfig, multiply_adds
from tutorial_lib.recipes.diffusion import HELD_OUT, held_out_loss, objective
from tutorial_lib.recipes.diffusion_run import DiffusionRun, fresh_network
from tutorial_lib.recipes.record import Metrics, OnCifar10, TrainingRun, write_metrics
from tutorial_lib.train import train

SHAPE = DiTConfig(in_channels=3, out_channels=6, n_classes=10, clock_scale=250.0)


@dataclass(frozen=True, kw_only=True)
class LadderRun(TrainingRun, OnCifar10):
    """Fix the transformers that are trained alike, and compared by their loss on unseen images.

    Of each of the `sizes`, width, depth and heads, one for every patch, by one seed; of the size
    `compared`, with `compared_patch`, one for every conditioning and seed.
    """

    sizes: tuple[tuple[int, int, int], ...] = ((64, 4, 2), (128, 6, 4), (256, 8, 4))
    patches: tuple[int, ...] = (8, 4, 2)
    compared: tuple[int, int, int] = (128, 6, 4)
    compared_patch: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    ema_decay: float = 0.999
    graph: bool = False

    def model(self, network: DiTConfig, seed: int) -> DiffusionRun:
        """Return the run of one transformer: v, the cosine chain, the hybrid loss."""
        shared = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate")}
        shared |= {name: getattr(self, name) for name in ("images", "device", "source", "graph")}
        return DiffusionRun(network=network, predicts="v", seed=seed, **shared)


def run_ladder(name: str, config: LadderRun, out: Path) -> Metrics:
    """Train all, one after another, and leave the table of their losses."""
    began, images = (
        time.perf_counter(),
        cifar10("train", source=config.source, limit=config.images),
    )
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    data = (images.pixels.to(config.device), images.labels.to(config.device))
    batch = tuple(x[:HELD_OUT].to(config.device) for x in (unseen.pixels, unseen.labels))
    ladder = [
        climbed(config, data, batch, _shaped(size, patch), 0)
        for size in config.sizes
        for patch in config.patches
    ]
    asked = _shaped(config.compared, config.compared_patch)
    ways = [
        climbed(config, data, batch, replace(asked, conditioning=way), seed)
        for way in CONDITIONINGS
        for seed in config.seeds
    ]
    found = {"data": images.form, "ladder": ladder, "conditionings": ways}
    found |= {"seconds": round(time.perf_counter() - began, 1)}
    return write_metrics(out, name, config, found)


def _shaped(size: tuple[int, int, int], patch: int) -> DiTConfig:
    width, depth, heads = size
    return replace(SHAPE, width=width, depth=depth, heads=heads, patch=patch)


def climbed(
    config: LadderRun,
    data: tuple[Tensor, Tensor],
    batch: tuple[Tensor, Tensor],
    network: DiTConfig,
    seed: int,
) -> Metrics:
    """Train one transformer and return its shape, its cost, and its loss on unseen images."""
    run = config.model(network, seed)
    net, schedule = fresh_network(run), run.schedule(ema_decay=config.ema_decay, graph=run.graph)
    result = train(net, data, objective(run), schedule)
    found = {"width": network.width, "depth": network.depth, "patch": network.patch}
    found |= {"conditioning": network.conditioning, "seed": seed}
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    found |= {"multiply_adds": multiply_adds(network), "seconds": round(result.seconds, 1)}
    return found | {"loss": held_out_loss(result.ema, run, batch)}


def headline(found: Metrics) -> str:
    """Say in a few words which conditioning is best, and by how much the ladder goes down."""
    means: dict[str, list[float]] = {}
    for row in found["conditionings"]:
        means.setdefault(row["conditioning"], []).append(row["loss"])
    best = min(means, key=lambda way: sum(means[way]) / len(means[way]))
    rungs = sorted(found["ladder"], key=lambda row: row["multiply_adds"])
    first, last = rungs[0], rungs[-1]
    return (
        f"{best} is best; from {first['multiply_adds'] / 1e6:.0f} to "
        f"{last['multiply_adds'] / 1e6:.0f} million products a loss of {first['loss']:.4f} "
        f"becomes {last['loss']:.4f}"
    )
