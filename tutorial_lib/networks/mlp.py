"""The standard 2-D network of the course, and the initial weights of every network."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.embeddings import LabelEmbedding, log_snr_features

_HARMONICS = 6


def initialise(module: nn.Module, generator: Generator) -> None:
    """Draw PyTorch's default initial weights, from a generator rather than the global one.

    Weights and biases of linear and convolution layers are uniform on +-1/sqrt(fan_in)
    (He et al. 2015, with PyTorch's gain of 1/sqrt(3)), embeddings N(0, 1), norms the identity.
    A module built under `torch.device("meta")`, which draws nothing, is first given memory on the
    generator's device. Raises TypeError for a layer with parameters of any other kind.
    """
    if any(p.is_meta for p in module.parameters()):
        module.to_empty(device=generator.device)
    with torch.no_grad():
        for layer in module.modules():
            if next(layer.parameters(recurse=False), None) is not None:
                _initialise_layer(layer, generator)


def _initialise_layer(layer: nn.Module, generator: Generator) -> None:
    match layer:
        case nn.Linear() | nn.modules.conv._ConvNd():
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=generator)
        case nn.Embedding():
            layer.weight.normal_(generator=generator)
        case nn.GroupNorm() | nn.LayerNorm() | nn.RMSNorm():
            layer.reset_parameters()  # ones and zeros: nothing is drawn
        case _:
            raise TypeError(
                f"initialise has no law for {type(layer).__name__}, which has parameters of its "
                "own: build it of linear, convolution, embedding and norm layers"
            )


class PointMLP(nn.Module):
    """Map a noisy point and a clock, a tenth of the log-SNR, to a vector of the point's size.

    SiLU layers that read the point, the clock and its Fourier features (Tancik et al. 2020,
    section 4); a label, where there are classes, adds a vector to the first layer's sum. 13,634
    weights as it stands. With as many `outputs` as there are classes it is a classifier.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 64,
        depth: int = 4,
        n_classes: int = 0,
        outputs: int | None = None,
        *,
        generator: Generator,
    ) -> None:
        super().__init__()
        self.dim = dim
        widths = [dim + 1 + 2 * _HARMONICS] + depth * [width]
        with torch.device("meta"):
            self.hidden = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(widths))
            self.out = nn.Linear(width, outputs or dim)
            self.label = LabelEmbedding(n_classes, width) if n_classes else None
        initialise(self, generator)

    def forward(self, xt: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        """Map xt (B, dim), clock and `cond.label`, if any, () or (B,), to (B, outputs)."""
        if xt.ndim != 2 or xt.shape[1] != self.dim:
            raise ValueError(f"xt has shape {tuple(xt.shape)}: this net takes (B, {self.dim})")
        clock = clock.to(xt.dtype).expand(len(xt))
        h = self.hidden[0](torch.cat([xt, log_snr_features(clock, _HARMONICS)], dim=1))
        h = F.silu(h + self._label_vector(cond))  # (B, width)
        for layer in self.hidden[1:]:
            h = F.silu(layer(h))
        return self.out(h)  # (B, outputs)

    def _label_vector(self, cond: Any) -> Tensor | float:
        label = None if cond is None else cond.label
        if self.label is not None:
            return self.label(label)
        if label is not None:
            raise ValueError("this net knows no labels: build it with n_classes, or pass none")
        return 0.0
