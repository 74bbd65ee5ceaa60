"""Mixtures with classes: exact denoisers and classifiers, and points to ask them about."""

import pytest
import torch
from truths import SCHEDULES, generator, needle, normal

from tutorial_lib.data import overlap3, overlap3_classes, std8, std8_classes
from tutorial_lib.denoiser import NULL_LABEL, Condition, MixtureDenoiser
from tutorial_lib.guidance import MixtureClassifier
from tutorial_lib.metrics import sliced_wasserstein
from tutorial_lib.mixtures import GaussianMixture

TOYS = {
    "overlap3": (overlap3(), overlap3_classes()),
    "std8": (std8(), std8_classes()),
    "needle": (needle(), torch.tensor([1, 0, 1])),
}
every_toy = pytest.mark.parametrize("toy", TOYS)
TIMES = [1e-3, 0.1, 0.5, 0.9, 1.0]


def members(mixture, classes, y):
    """The law of class y, built anew; of NULL_LABEL, the whole mixture."""
    inside = torch.ones_like(classes, dtype=bool) if y == NULL_LABEL else classes == y
    parts = (mixture.weights, mixture.means, mixture.covariances)
    return GaussianMixture(*(part[inside] for part in parts))


def exact(toy="overlap3", name="linear"):
    """The class-conditional denoiser and the classifier of a toy."""
    mixture, classes = TOYS[toy]
    schedule = SCHEDULES[name]
    denoiser = MixtureDenoiser(mixture, schedule, classes)
    return denoiser, MixtureClassifier(mixture, schedule, classes)


def points(toy, name, t, n=60):
    """True points x_t with the class of each, and the noise level."""
    mixture, classes = TOYS[toy]
    x0, k = mixture.sample_with_labels(n, generator=generator(3))
    level = SCHEDULES[name].at(t, like=x0)
    xt = level.alpha * x0 + level.sigma * normal(n, mixture.dim, seed=4)
    return xt, Condition(label=classes[k].roll(1)), level  # asked for another class than its own


def bar(y, n, seeds=8):
    """What true samples of class y score, six standard deviations of it allowed."""
    law = overlap3().component(y)
    scores = [sliced_wasserstein(law.sample(n, generator=generator(i)), law) for i in range(seeds)]
    scores = torch.tensor(scores)
    return float(scores.mean() + 6 * scores.std())
