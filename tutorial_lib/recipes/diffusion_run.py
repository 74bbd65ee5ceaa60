"""What a diffusion model of images is, and the denoiser that its network makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tutorial_lib.denoiser import Condition, NetworkDenoiser, log_snr_clock
from tutorial_lib.networks.dit import DiT, DiTConfig
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.recipes.record import OnCifar10, TrainingRun, load_weights
from tutorial_lib.samplers import Variance, beta, learned_range
from tutorial_lib.schedule import DiscreteVP, Schedule, Time


@dataclass(frozen=True, kw_only=True)
class DiffusionRun(TrainingRun, OnCifar10):
    """Fix a diffusion model of images, how long it trains on what, and how it is measured.

    A network with twice the image's channels learns its variance, by the `loss` "hybrid", "vlb" or
    "vlb_importance", which draws steps by importance (Nichol & Dhariwal 2021); another is trained
    on L_simple, whatever `loss` says, and its steps have the variance beta, as DDPM's for
    CIFAR-10. Labels are dropped with probability `unlabelled`. The flow's bound takes 4
    evaluations a step. `inception` is the path of the standard Inception network, for FID
    (`judge.load_inception`).
    """

    network: UNetConfig | DiTConfig
    learning_rate: float = 2e-4
    chain: Callable[[int], Schedule] = DiscreteVP.cosine
    clock: Callable[[Schedule, Time], Tensor] = log_snr_clock
    predicts: str = "eps"
    loss: str = "hybrid"
    n_steps: int = 1000
    unlabelled: float = 0.1
    ema_decay: float = 0.9995
    sample_steps: int = 250
    samples: int = 10_000
    bound_images: int = 1000
    flow_images: int = 500
    flow_steps: int = 32
    curve_samples: int = 4000
    curve_images: int = 500
    inception: str | None = None
    graph: bool = False

    @property
    def training(self) -> str:
        """Return, in one line, all that decides the weights."""
        budget = (self.steps, self.batch_size, self.learning_rate, self.ema_decay, self.unlabelled)
        drawn = (self.images, self.seed, self.shards)
        asked = (self.n_steps, self.chain.__qualname__, self.clock.__qualname__, self.predicts)
        other = () if self.loss == "hybrid" else (self.loss,)  # older weights do not name it
        return repr((self.network, *budget, *drawn, *asked, *other))

    @property
    def learns_variance(self) -> bool:
        """Say whether the network has a variance head."""
        return self.network.out_channels == 2 * self.network.in_channels

    @property
    def variance(self) -> Variance:
        """Return the variance of the model's steps."""
        return learned_range if self.learns_variance else beta


class HalfPrecision(nn.Module):
    """Run a network in bfloat16 on a GPU (trains 2.5 times as fast), and nothing around it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition | None = None) -> Tensor:
        """Map as the network does; the answer is float32."""
        with torch.autocast(xt.device.type, torch.bfloat16, enabled=xt.device.type == "cuda"):
            return self.net(xt, clock, cond).float()


def fresh_network(config: DiffusionRun) -> UNet | DiT:
    """Return the run's network on its device, as it is before training."""
    drawn = torch.Generator().manual_seed(config.seed)
    kind = DiT if isinstance(config.network, DiTConfig) else UNet
    net = accelerate(kind(config.network, generator=drawn))
    return net.to(config.device, memory_format=torch.channels_last)  # 1.3 times as fast


def denoiser(net: nn.Module, config: DiffusionRun, *, half: bool = True) -> NetworkDenoiser:
    """Return the network as a denoiser of the run's chain, in half precision if it may."""
    chain = config.chain(config.n_steps)
    return NetworkDenoiser(
        HalfPrecision(net) if half else net, chain, config.predicts, config.clock
    )


def recorded_denoiser(config: DiffusionRun, weights: Path) -> NetworkDenoiser:
    """Return the denoiser of a run whose weights are kept; raise FileNotFoundError without."""
    if not weights.exists():
        raise FileNotFoundError(2, "no weights there: run the recipe first", str(weights))
    net = fresh_network(config).eval().requires_grad_(False)
    net.load_state_dict(load_weights(weights)[0])
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    return denoiser(net, config)
