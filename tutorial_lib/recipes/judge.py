"""Judge image samples in the features of the recorded classifier (FD-classifier, never FID)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tutorial_lib.cifar10 import to_floats
from tutorial_lib.denoiser import log_snr_clock
from tutorial_lib.guidance import NetworkClassifier
from tutorial_lib.metrics import frechet_distance_of_samples, precision_recall
from tutorial_lib.networks.classifier import ImageClassifier
from tutorial_lib.recipes.classifier import N_STEPS, NETWORK
from tutorial_lib.recipes.record import RESULTS, Metrics, load_weights
from tutorial_lib.schedule import DiscreteVP

WEIGHTS = RESULTS / "cifar10_classifier" / "weights.safetensors.xz"
NOISY_WEIGHTS = RESULTS / "cifar10_noisy_classifier" / "weights.safetensors.xz"
# What the noise-aware classifier was told of clean pictures; the other was told 0 of all
CLEAN = float(log_snr_clock(DiscreteVP.cosine(N_STEPS), 0.0))
Features = Callable[[Tensor], Tensor]  # 8-bit pixels (B, 3, H, W) to (B, width)


class Judge:
    """Compare samples with real pixels (N, 3, H, W) in a classifier's pooled features.

    A classifier of x_t is asked at the `clock` of clean pictures.
    """

    def __init__(self, net: ImageClassifier, real: Tensor, clock: float = 0.0) -> None:
        self.net, self.clock = net, clock
        self.real = in_batches(self._features, real)

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        x = to_floats(pixels)
        return self.net.features(x, x.new_full((len(x),), self.clock))

    @torch.no_grad()
    def scores(self, made: Tensor, labels: Tensor | None) -> Metrics:
        """Score pixels `made`; with the classes that were asked for, count the right ones.

        Statistics come from all real images, precision and recall from the first 10,000 of each.
        """
        ours = in_batches(self._features, made)
        precision, recall = precision_recall(self.real[:10_000], ours[:10_000])
        found = {
            "fd_classifier": round(frechet_distance_of_samples(ours, self.real), 4),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
            "samples": len(made),
            "reference_images": len(self.real),
        }
        if labels is not None:
            right = self.net.head(ours).argmax(1) == labels
            found["accuracy"] = round(right.double().mean().item(), 4)
        return found


def load_classifier(path: Path = WEIGHTS, device: str = "cpu") -> ImageClassifier:
    """Return the recorded classifier; raise FileNotFoundError if its weights are not there."""
    if not path.exists():
        raise FileNotFoundError(
            f"no classifier at {path}: run the recipe {path.parent.name} first"
        )
    net = ImageClassifier(NETWORK, 10, generator=torch.Generator())
    net.load_state_dict(load_weights(path)[0])
    return net.to(device).eval()


def load_noisy_classifier(path: Path = NOISY_WEIGHTS, device: str = "cpu") -> NetworkClassifier:
    """Return the recorded classifier of x_t, on the course network's chain, to guide by.

    Raises FileNotFoundError if its weights are not there.
    """
    net = load_classifier(path, device).requires_grad_(False)
    return NetworkClassifier(net, DiscreteVP.cosine(N_STEPS))


def load_inception(path: str, device: str = "cpu") -> Features:
    """Return the features of FID (Heusel et al. 2017): the standard Inception network's pool.

    `path` is `inception-2015-12-05.pt`, that network in TorchScript as NVIDIA released it with
    StyleGAN2-ADA: it takes 8-bit pixels of any size and resizes them itself; width 2048. It is
    not part of this course. Raises ValueError for another file.
    """
    try:
        net = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no TorchScript network: --inception wants one") from error
    return lambda pixels: net(pixels, return_features=True)


@torch.no_grad()
def fid(features: Features, made: Tensor, real: Tensor) -> float:
    """Return the Frechet distance of pixels in Inception's features: with 50,000 of each, FID."""
    return frechet_distance_of_samples(in_batches(features, made), in_batches(features, real))


def in_batches(features: Features, pixels: Tensor) -> Tensor:
    """Return the features of pixels (N, 3, H, W), (N, width), 500 at a time."""
    return torch.cat([features(rows) for rows in pixels.split(500)])
