"""Train a diffusion model of images, keep what it was on the way, and measure it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import ranks
from tutorial_lib.cifar10 import Images, cifar10, to_floats
from tutorial_lib.denoiser import Condition, NetworkDenoiser
from tutorial_lib.losses import Loss, StepImportance, hybrid, simple, vlb
from tutorial_lib.networks.embeddings import NULL_LABEL
from tutorial_lib.networks.unet import UNet
from tutorial_lib.recipes.diffusion_run import (
    DiffusionRun,
    HalfPrecision,
    denoiser,
    fresh_network,
)
from tutorial_lib.recipes.evaluate import draw, evaluate
from tutorial_lib.recipes.record import (
    Metrics,
    origin,
    origin_of,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.samplers import learned_range
from tutorial_lib.train import Progress, TrainResult, train

MILESTONES = (6, 12, 25, 50)  # hundredths of a run at which its averaged weights are kept
HELD_OUT = 1024  # unseen images on which the averages of a run are compared


def run_diffusion(name: str, config: DiffusionRun, out: Path) -> Metrics:
    """Train, measure bounds and samples, and leave the record with weights and pictures.

    What is measured is what is kept: the averaged weights, rounded to bfloat16. A run that keeps
    checkpoints and was stopped when its training was over needs only the weights to go on.
    """
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    weights = out / "weights.safetensors"
    if not _trained(config, out):
        result = _fit(name, config, images, out, Watch(config, unseen, out))
        if ranks.leads():
            about = origin(name, config.device) | {"training": config.training}
            save_weights(result.ema, weights, about)
    if not ranks.leads():
        return {}
    found = {"data": images.form, **evaluate(config, images, unseen, out), **_training(out)}
    return write_metrics(out, name, config, found)


def _trained(config: DiffusionRun, out: Path) -> bool:
    """Say whether this very training is over, and has left its weights but no checkpoint."""
    weights, state = out / "weights.safetensors", config.checkpoint_in(out)
    if state is None or state.exists() or not weights.exists():
        return False
    return origin_of(weights).get("training") == config.training


def _training(out: Path) -> Metrics:
    """Return what the log and the weights of a run tell about its training."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["held_out"])
    held_out = {"last": lines[-1]["held_out"], "best": best["held_out"], "best_step": best["step"]}
    trained = origin_of(out / "weights.safetensors")
    return {"held_out_loss": held_out, "seconds": lines[-1]["seconds"], "trained": trained}


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    judged = f", FD-classifier {found['fd_classifier']:.2f}" if "fd_classifier" in found else ""
    return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f} bits/dim{judged}"


def objective(
    config: DiffusionRun, *, evenly: bool = False
) -> Callable[[UNet, tuple[Tensor, Tensor], Generator], Tensor]:
    """Return the loss of a batch of pixels and labels, (B,), a mean over dimensions.

    Steps are drawn by the network's `importance`, if the loss says so, unless `evenly`.
    """
    losses = {"hybrid": hybrid, "vlb": vlb, "vlb_importance": vlb}
    if config.loss not in losses:
        raise ValueError(f"the loss is {', '.join(losses)}, not {config.loss!r}")
    unevenly = config.loss == "vlb_importance" and not evenly
    learned = losses[config.loss](config.n_steps, learned_range)
    loss: Loss = learned if config.learns_variance else simple
    chain = config.chain(config.n_steps)

    def cost(net: UNet, batch: tuple[Tensor, Tensor], generator: Generator) -> Tensor:
        pixels, labels = batch
        shape, device = labels.shape, pixels.device
        flip = torch.rand(shape, generator=generator, device=device) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        x0 = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        by = getattr(net, "module", net).importance if unevenly else None
        if by is None:
            n = torch.randint(1, config.n_steps + 1, shape, generator=generator, device=device)
        else:
            n, weight = by.sample(len(labels), generator=generator)
        dropped = torch.rand(shape, generator=generator, device=device) < config.unlabelled
        cond = Condition(label=torch.where(dropped, NULL_LABEL, labels))
        cond = cond if config.network.n_classes else None
        model = NetworkDenoiser(HalfPrecision(net), chain, config.predicts, config.clock)
        nats = loss(model, x0, n.double() / config.n_steps, cond, generator=generator)
        if by is not None:
            by.update(n, nats)
            nats = weight.to(nats.dtype) * nats
        return nats / x0[0].numel()

    return cost


def _fit(name: str, config: DiffusionRun, images: Images, out: Path, watch: Watch) -> TrainResult:
    net = fresh_network(config)
    if config.loss == "vlb_importance":
        net.importance = StepImportance(config.n_steps).to(config.device)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)  # 2.4 times as fast
    rarely = max(1000, config.steps // 10)  # a checkpoint of 36 M weights takes seconds
    schedule = config.schedule(
        ema_decay=config.ema_decay, graph=config.graph, checkpoint_every=rarely
    )
    # bytes on the device: a batch of 512 takes .1 ms, floats from the host .6
    data = (images.pixels, images.labels)
    kept = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    return train(net, data, objective(config), schedule, **kept, watch=watch)


class Watch:
    """Write the log, pictures, and the averaged weights: the best so far, and the milestones'.

    Best is what loses least on unseen images, always with the same noise.
    """

    def __init__(self, config: DiffusionRun, unseen: Images, out: Path) -> None:
        self.config, self.out, self.journal = config, out, config.journal(out)
        if ranks.leads() and not self.journal.kept:  # those of an earlier run are not this one's
            shutil.rmtree(out / "milestones", ignore_errors=True)
        self.batch = tuple(x[:HELD_OUT].to(config.device) for x in (unseen.pixels, unseen.labels))
        self.few = replace(config, samples=40, sample_steps=min(50, config.sample_steps))

    def __call__(self, told: Progress) -> None:
        """Be told how things stand, a hundred times in a run."""
        loss = held_out_loss(told.ema, self.config, self.batch)
        if loss < min(self._known(), default=float("inf")):
            save_weights(told.ema, self.out / "best.safetensors")
        self.journal(told, held_out=loss)
        tick, between = divmod(told.step, self.config.schedule().log_every)
        if between:  # a run that was stopped
            return
        if tick in MILESTONES:
            save_weights(told.ema, self.out / "milestones" / f"{told.step:07}.safetensors")
        if tick % 10 == 0:
            pixels, _ = draw(denoiser(told.ema, self.few), self.few)
            save_sheet(to_floats(pixels), 20, self.out / "progress.jpg")

    def _known(self) -> list[float]:
        return [json.loads(line)["held_out"] for line in self.journal.kept]


@torch.no_grad()
def held_out_loss(net: nn.Module, config: DiffusionRun, batch: tuple[Tensor, Tensor]) -> float:
    """Return a network's mean loss on pixels and labels, always with the same noise."""
    cost, generator = objective(config, evenly=True), Generator(config.device).manual_seed(0)
    return round(float(cost(net, batch, generator).mean()), 5)
