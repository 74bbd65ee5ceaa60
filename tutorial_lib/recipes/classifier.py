"""Train the classifiers of the image track: their features judge samples, their slopes guide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tutorial_lib import ranks
from tutorial_lib.cifar10 import Images, cifar10, to_floats
from tutorial_lib.denoiser import log_snr_clock
from tutorial_lib.networks.classifier import ImageClassifier
from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.recipes.record import (
    Metrics,
    OnCifar10,
    TrainingRun,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.schedule import DiscreteVP
from tutorial_lib.train import train

N_STEPS = 1000  # of the chain whose noise the noise-aware classifier learns: the course network's
PROBED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # times at which accuracy is measured
NETWORK = UNetConfig(
    channels=32,
    multipliers=(1, 2, 4),
    attention=(8,),
    head_width=32,
    dropout=0.2,
    clock_scale=250.0,
)


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(TrainingRun, OnCifar10):
    """Fix a classifier: its trunk, whether it sees noise, and how long it trains on what.

    A noise-aware one sees x_t, t uniform on the course network's cosine chain.
    """

    network: UNetConfig = field(default=NETWORK)
    noisy: bool = False
    steps: int = 40_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    cutout: int = 12  # side of the square that is hidden of each clean training image
    graph: bool = False


def run_classifier(name: str, config: ClassifierRun, out: Path) -> Metrics:
    """Train, measure accuracy at several noise levels, and leave the record with the weights."""
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    drawn = torch.Generator().manual_seed(config.seed)
    net = ImageClassifier(config.network, len(images.classes), generator=drawn)
    net = net.to(config.device, memory_format=torch.channels_last)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    schedule = config.schedule(graph=config.graph)
    data = (images.pixels, images.labels)
    kept, journal = config.checkpoint_in(out), config.journal(out)
    wanted = {"checkpoint": kept, "about": written_by(name), "watch": journal}
    result = train(net, data, _objective(config), schedule, **wanted)
    if not ranks.leads():
        return {}
    found = {
        "data": images.form,
        **measure(result.ema, unseen, config),
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(result.seconds, 1),
    }
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    return write_metrics(out, name, config, found)


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    return f"{100 * found['accuracy']['0.0']:.1f} % of clean test images"


def _objective(config: ClassifierRun) -> object:
    chain = DiscreteVP.cosine(N_STEPS)

    def objective(
        net: ImageClassifier, batch: tuple[Tensor, Tensor], generator: Generator
    ) -> Tensor:
        pixels, labels = batch
        x, clock = to_floats(shifted(pixels, generator)), None
        if not config.noisy:
            x = x * kept(x, config.cutout, generator)
        else:
            steps = torch.randint(N_STEPS + 1, labels.shape, generator=generator, device=x.device)
            eps = torch.randn(x.shape, generator=generator, device=x.device)
            t = steps.double() / N_STEPS
            x, clock = chain.add_noise(x, eps, t), log_snr_clock(chain, t).float()
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            logits = net(x, clock)
        return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=0.1)

    return objective


def shifted(pixels: Tensor, generator: Generator) -> Tensor:
    """Flip half of the images and move each by up to 4 pixels, mirrored at the edges.

    After the crops of residual networks on CIFAR-10 (He et al. 2016).
    """
    n, _, side, _ = pixels.shape
    shape = (2, n, 1)
    move = torch.randint(-4, 5, shape, generator=generator, device=pixels.device)
    flip = torch.rand(n, 1, generator=generator, device=pixels.device) < 0.5
    line = torch.arange(side, device=pixels.device)
    rows, columns = (_mirrored(line + m, side) for m in move)  # each (n, side)
    columns = torch.where(flip, side - 1 - columns, columns)
    index = rows[:, :, None] * side + columns[:, None, :]  # (n, side, side)
    flat = index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, flat).view_as(pixels)


def kept(x: Tensor, side: int, generator: Generator) -> Tensor:
    """Return a mask of each image (B, 1, H, W) that is 0 in a square (DeVries & Taylor 2017).

    The square's centre is uniform on the image, so that part of it may fall outside.
    """
    height, width = x.shape[2:]
    shape = (2, len(x), 1)
    centre = torch.rand(shape, generator=generator, device=x.device)
    inside = []
    for place, length in zip(centre, (height, width), strict=True):
        line = torch.arange(length, device=x.device) + 0.5
        inside.append((line - place * length).abs() < side / 2)
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return (~hole)[:, None].to(x.dtype)


def _mirrored(index: Tensor, side: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


@torch.no_grad()
def measure(net: ImageClassifier, unseen: Images, config: ClassifierRun) -> Metrics:
    """Return accuracy and cross-entropy (nats) on unseen images, at several t if it is noisy."""
    chain, generator = DiscreteVP.cosine(N_STEPS), torch.Generator(config.device).manual_seed(1)
    pixels, labels = (x.to(config.device) for x in (unseen.pixels, unseen.labels))
    accuracy, cost = {}, {}
    for t in PROBED if config.noisy else PROBED[:1]:
        hits, nats = [], []
        for x, y in zip(pixels.split(500), labels.split(500), strict=True):
            x = to_floats(x)
            eps = torch.randn(x.shape, generator=generator, device=x.device)
            clock = log_snr_clock(chain, t).float().to(x.device).expand(len(x))
            seen = chain.add_noise(x, eps, t) if t > 0 else x
            logits = net(seen, clock if config.noisy else None)
            hits.append((logits.argmax(1) == y).double())
            nats.append(F.cross_entropy(logits, y, reduction="none").double())
        accuracy[str(t)] = round(torch.cat(hits).mean().item(), 4)
        cost[str(t)] = round(torch.cat(nats).mean().item(), 4)
    return {"accuracy": accuracy, "cross_entropy": cost}
