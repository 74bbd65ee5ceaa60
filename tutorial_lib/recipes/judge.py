"""Judge image samples in the features of the recorded classifier (FD-classifier, never FID)."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from tutorial_lib.cifar10 import to_floats
from tutorial_lib.metrics import frechet_distance_of_samples, precision_recall
from tutorial_lib.networks.classifier import ImageClassifier
from tutorial_lib.recipes.classifier import NETWORK
from tutorial_lib.recipes.record import RESULTS, Metrics

WEIGHTS = RESULTS / "cifar10_classifier" / "weights.safetensors"


def load_classifier(path: Path = WEIGHTS, device: str = "cpu") -> ImageClassifier:
    """Return the recorded classifier; raise FileNotFoundError if its weights are not there."""
    if not path.exists():
        raise FileNotFoundError(
            f"no classifier at {path}: run the recipe cifar10_classifier first"
        )
    net = ImageClassifier(NETWORK, 10, generator=torch.Generator())
    net.load_state_dict(safetensors.torch.load_file(path))
    return net.to(device).eval()


@torch.no_grad()
def features(net: ImageClassifier, pixels: Tensor) -> Tensor:
    """Return pooled features of 8-bit pixels (N, 3, H, W), (N, width), in batches."""
    return torch.cat([net.features(to_floats(rows)) for rows in pixels.split(500)])


@torch.no_grad()
def scores(net: ImageClassifier, made: Tensor, real: Tensor, labels: Tensor | None) -> Metrics:
    """Compare pixels `made` with `real`; with the classes that were asked for, count the right.

    Statistics come from all of `real`, precision and recall from the first 10,000 of each.
    """
    ours, theirs = features(net, made), features(net, real)
    precision, recall = precision_recall(theirs[:10_000], ours[:10_000])
    found = {
        "fd_classifier": round(frechet_distance_of_samples(ours, theirs), 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "samples": len(made),
        "reference_images": len(real),
    }
    if labels is not None:
        found["accuracy"] = round((net.head(ours).argmax(1) == labels).double().mean().item(), 4)
    return found
