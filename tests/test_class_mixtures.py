"""The exact denoiser and classifier of a mixture with classes, by other hands. Takes 2 s."""

import math

import pytest
import torch
from labelled import TIMES, TOYS, every_toy, exact, members, points
from truths import SCHEDULES, every_schedule, gap, generator, normal, scipy_parts

from tutorial_lib.data import overlap3
from tutorial_lib.denoiser import NULL_LABEL, Condition, MixtureDenoiser
from tutorial_lib.guidance import NetworkClassifier, Unlabelled, noised_cross_entropy
from tutorial_lib.networks import embeddings
from tutorial_lib.networks.mlp import PointMLP
from tutorial_lib.schedule import LinearVP, as_time

# the denoiser


@every_schedule
@every_toy
def test_the_conditional_denoiser_is_that_of_each_rows_own_law(toy, name):
    (mixture, classes), schedule = TOYS[toy], SCHEDULES[name]
    xt, t = normal(9, mixture.dim), torch.linspace(0.02, 1, 9).double()
    label = torch.arange(9) % (classes.max() + 2) - 1
    told = exact(toy, name)[0](xt, t, Condition(label=label))
    wrong = exact(toy, name)[0](xt, t, Condition(label=label.roll(1)))
    for i, y in enumerate(label.tolist()):
        alone = MixtureDenoiser(members(mixture, classes, y), schedule)(xt[i : i + 1], t[i])
        assert gap(told.x0[i : i + 1], alone.x0) < 1e-10
        assert gap(told.eps[i : i + 1], alone.eps) < 1e-10
    assert (wrong.eps - told.eps).abs().max() > 1e-2


def test_no_label_is_the_whole_mixture():
    denoiser, xt = exact()[0], normal(5, 2)
    whole = MixtureDenoiser(overlap3(), LinearVP())(xt, 0.3)
    for absent in (None, Condition(), Condition(label=torch.tensor(NULL_LABEL))):
        assert gap(denoiser(xt, 0.3, absent).x0, whole.x0) < 1e-15
    labelled = Condition(label=torch.tensor(2))
    assert gap(Unlabelled(denoiser)(xt, 0.3, labelled).x0, whole.x0) < 1e-15
    assert gap(denoiser(xt, 0.3, labelled).x0, whole.x0) > 1e-2


def test_denoisers_and_networks_have_one_null_label():
    assert NULL_LABEL == embeddings.NULL_LABEL


@pytest.mark.parametrize("classes", [[0, 1], [0, 2, 2], [1, 1, 2]])
def test_classes_that_do_not_fit_are_refused(classes):
    with pytest.raises(ValueError, match="3 components need 3 classes, every one from 0 up"):
        MixtureDenoiser(overlap3(), LinearVP(), torch.tensor(classes))


def test_a_label_without_classes_is_refused():
    with pytest.raises(ValueError, match="has no classes"):
        MixtureDenoiser(overlap3(), LinearVP())(normal(3, 2), 0.5, Condition(torch.arange(3)))


# the classifier


def bayes(toy, xt, level):
    """log p(class | x_t) from scipy's densities, (B, C)."""
    mixture, classes = TOYS[toy]
    logs = scipy_parts(mixture, xt, float(level.alpha), float(level.sigma))
    joint = [logs[:, classes == y].logsumexp(1) for y in range(int(classes.max()) + 1)]
    return torch.stack(joint, dim=1) - logs.logsumexp(1, keepdim=True)


@every_schedule
@every_toy
def test_the_exact_classifier_is_bayes(toy, name):
    for t in TIMES:
        xt, _, level = points(toy, name, t)
        truth, found = bayes(toy, xt, level), exact(toy, name)[1](xt, t)
        assert (found - truth).abs().max() < 1e-9 * truth.abs().max()
    clean = exact(toy, name)[1](xt, 0.0)
    assert (clean - truth).abs().max() > 1  # the variant: a clean-data classifier at x_1


def test_rows_at_their_own_times_are_classified_alone():
    classifier, t = exact("std8")[1], torch.tensor(TIMES).double()
    xt = normal(5, 2)
    alone = torch.cat([classifier(xt[i : i + 1], t[i].item()) for i in range(5)])
    assert gap(classifier(xt, t), alone) < 1e-13


# a trained classifier


def test_a_network_classifies_in_its_own_dtype_by_its_clock():
    net, xt = PointMLP(outputs=3, generator=generator()).double(), normal(4, 2)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    classifier = NetworkClassifier(net, LinearVP(), clock=lambda _, t: as_time(t))
    assert torch.equal(classifier(xt, t), net(xt, t.double()))
    assert torch.equal(classifier(xt, 0.3), net(xt, torch.tensor(0.3, dtype=torch.float64)))
    assert classifier(xt.float(), t).dtype == torch.float32


def test_the_cross_entropy_is_of_noised_points():
    classifier, x0 = exact()[1], overlap3().sample(5, generator=generator())
    label, t = torch.tensor([0, 1, 2, 0, 1]), torch.linspace(0.1, 0.9, 5).double()
    noise = torch.randn(5, 2, generator=generator(7), dtype=torch.float64)
    found = noised_cross_entropy(classifier, LinearVP(), x0, label, t, generator=generator(7))
    for i in range(5):
        alpha, sigma = LinearVP().alpha(t[i]), LinearVP().sigma(t[i])
        odds = classifier((alpha * x0[i] + sigma * noise[i])[None], t[i].item()).exp()[0]
        assert abs(float(found[i]) + math.log(odds[label[i]] / odds.sum())) < 1e-12
