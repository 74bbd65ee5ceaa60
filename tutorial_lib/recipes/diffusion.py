"""Train a diffusion model of images; measure its bound, its samples and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import ranks
from tutorial_lib.cifar10 import Images, cifar10, to_floats, to_pixels
from tutorial_lib.denoiser import Condition, NetworkDenoiser, log_snr_clock
from tutorial_lib.likelihood import chain_bound, pixel_decoder
from tutorial_lib.losses import Loss, hybrid, simple
from tutorial_lib.networks.embeddings import NULL_LABEL
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.recipes import judge
from tutorial_lib.recipes.classifier import save_weights
from tutorial_lib.recipes.record import Metrics, RunConfig, sheet, write_metrics
from tutorial_lib.samplers import Variance, ancestral, beta, final, learned_range
from tutorial_lib.schedule import DiscreteVP, Schedule, Time, uniform_times
from tutorial_lib.train import Progress, TrainResult, Watcher, train

BATCH = 500  # of evaluations


@dataclass(frozen=True, kw_only=True)
class DiffusionRun(RunConfig):
    """Fix a diffusion model of images, how long it trains on what, and how it is measured.

    A network with twice the image's channels learns its variance by L_hybrid; another is trained
    on L_simple and its steps have the variance beta, as DDPM's for CIFAR-10. Labels are dropped
    with probability `unlabelled`.
    """

    network: UNetConfig
    learning_rate: float = 2e-4
    chain: Callable[[int], Schedule] = DiscreteVP.cosine
    clock: Callable[[Schedule, Time], Tensor] = log_snr_clock
    n_steps: int = 1000
    unlabelled: float = 0.1
    ema_decay: float = 0.9995
    sample_steps: int = 250
    samples: int = 10_000
    bound_images: int = 1000
    graph: bool = False

    @property
    def learns_variance(self) -> bool:
        """Say whether the network has a variance head."""
        return self.network.out_channels == 2 * self.network.in_channels

    @property
    def variance(self) -> Variance:
        """Return the variance of the model's steps."""
        return learned_range if self.learns_variance else beta


class HalfPrecision(nn.Module):
    """Run a network in bfloat16 on a GPU, and nothing around it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition | None = None) -> Tensor:
        """Map as the network does; the answer is float32."""
        with torch.autocast(xt.device.type, torch.bfloat16, enabled=xt.device.type == "cuda"):
            return self.net(xt, clock, cond).float()


def run_diffusion(name: str, config: DiffusionRun, out: Path) -> Metrics:
    """Train, measure bound and samples, and leave the record with weights and pictures."""
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    result = _fit(config, images, out)
    if not ranks.leads():
        return {}
    save_weights(result.ema, out)
    model = denoiser(result.ema, config)
    pixels, labels = draw(model, config)
    sheet(to_floats(pixels[:200]), 20).save(out / "samples.png")
    found = {
        "data": images.form,
        **bound(model, unseen, config),
        **_judged(config, pixels, labels, images, unseen),
        "evaluations_per_sample": config.sample_steps,
        "parameters": sum(p.numel() for p in result.ema.parameters()),
        "seconds": round(result.seconds, 1),
    }
    return write_metrics(out, name, config, found)


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    judged = f", FD-classifier {found['fd_classifier']:.2f}" if "fd_classifier" in found else ""
    return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f} bits/dim{judged}"


def denoiser(net: nn.Module, config: DiffusionRun) -> NetworkDenoiser:
    """Return the network as a denoiser of the run's chain."""
    chain = config.chain(config.n_steps)
    return NetworkDenoiser(HalfPrecision(net), chain, "eps", config.clock)


def _fit(config: DiffusionRun, images: Images, out: Path) -> TrainResult:
    drawn = torch.Generator().manual_seed(config.seed)
    net = accelerate(UNet(config.network, generator=drawn))
    net = net.to(config.device, memory_format=torch.channels_last)
    if config.graph:
        net.compile(dynamic=False)
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    data = (images.pixels, images.labels)
    kept, watch = config.checkpoint_in(out), _watcher(config, out)
    return train(net, data, objective(config), schedule, checkpoint=kept, watch=watch)


def _watcher(config: DiffusionRun, out: Path) -> Watcher:
    """Return what writes the log, and a picture of samples ten times in a run."""
    journal = config.journal(out)
    few = replace(config, samples=40, sample_steps=min(50, config.sample_steps))

    def watch(told: Progress) -> None:
        journal(told)
        if told.step % max(1, config.steps // 10) == 0:
            pixels, _ = draw(denoiser(told.ema, few), few)
            sheet(to_floats(pixels), 20).save(out / "progress.png")

    return watch


def objective(config: DiffusionRun) -> Callable[[UNet, tuple[Tensor, Tensor], Generator], Tensor]:
    """Return the loss of a batch of pixels and labels, (B,), a mean over dimensions."""
    loss: Loss = hybrid(config.n_steps, learned_range) if config.learns_variance else simple
    chain = config.chain(config.n_steps)

    def cost(net: UNet, batch: tuple[Tensor, Tensor], generator: Generator) -> Tensor:
        pixels, labels = batch
        shape, device = labels.shape, pixels.device
        flip = torch.rand(shape, generator=generator, device=device) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        x0 = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        n = torch.randint(1, config.n_steps + 1, shape, generator=generator, device=device)
        dropped = torch.rand(shape, generator=generator, device=device) < config.unlabelled
        cond = Condition(label=torch.where(dropped, NULL_LABEL, labels))
        cond = cond if config.network.n_classes else None
        model = NetworkDenoiser(HalfPrecision(net), chain, "eps", config.clock)
        nats = loss(model, x0, n.double() / config.n_steps, cond, generator=generator)
        return nats / x0[0].numel()

    return cost


def draw(model: NetworkDenoiser, config: DiffusionRun) -> tuple[Tensor, Tensor]:
    """Return sampled pixels (N, 3, H, W) and the labels asked for (N,), all classes alike."""
    net, device = config.network, config.device
    generator = torch.Generator(device).manual_seed(config.seed + 1)
    labels = torch.arange(config.samples, device=device) % max(1, net.n_classes)
    times = uniform_times(config.sample_steps)
    made = []
    for rows in labels.split(BATCH):
        shape = (len(rows), net.in_channels, net.side, net.side)
        x = torch.randn(shape, generator=generator, device=device)
        cond = Condition(label=rows) if net.n_classes else None
        walk = ancestral(model, x, times, cond, generator=generator, variance=config.variance)
        made.append(to_pixels(final(walk)))
    return torch.cat(made), labels


@torch.no_grad()
def bound(model: NetworkDenoiser, unseen: Images, config: DiffusionRun) -> Metrics:
    """Return the bound on unseen images in bits/dim, without labels, all steps, and its parts."""
    generator = torch.Generator(config.device).manual_seed(config.seed + 2)
    pixels = unseen.pixels[: config.bound_images].to(config.device)
    times = uniform_times(config.n_steps)[:-1]
    settings = {"variance": config.variance, "decoder": pixel_decoder(config.variance)}
    parts = [
        chain_bound(model, to_floats(rows), times, generator=generator, **settings)
        for rows in pixels.split(BATCH)
    ]
    bits = pixels[0].numel() * math.log(2)
    total = torch.cat([part.total for part in parts]).double() / bits
    return {
        "bits_per_dim": round(total.mean().item(), 4),
        "standard_error": round(total.std().item() / len(total) ** 0.5, 4),
        "prior": round(_mean(part.prior for part in parts) / bits, 6),
        "steps": round(_mean(part.steps.sum(1) for part in parts) / bits, 4),
        "reconstruction": round(_mean(part.reconstruction for part in parts) / bits, 4),
        "bound_images": len(pixels),
    }


def _mean(rows: Iterator[Tensor]) -> float:
    return torch.cat(list(rows)).double().mean().item()


def _judged(
    config: DiffusionRun, pixels: Tensor, labels: Tensor, images: Images, unseen: Images
) -> Metrics:
    """Return the samples' scores and the floor that unseen images set; nothing without weights."""
    if not judge.WEIGHTS.exists():
        return {}
    net = judge.load_classifier(device=config.device)
    real = images.pixels.to(config.device)
    asked = labels if config.network.n_classes else None
    floor = judge.scores(net, unseen.pixels.to(config.device), real, None)
    return judge.scores(net, pixels, real, asked) | {"floor": floor}
