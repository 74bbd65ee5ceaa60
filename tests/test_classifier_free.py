"""Classifier-free guidance: (1 + w) eps_c - w eps_u, in one call of the model. Takes 4 s."""

from dataclasses import replace

import pytest
import torch
from truths import SCHEDULES, every_schedule, gap, generator, normal, torch_score, variants

from tutorial_lib.data import overlap3, overlap3_classes
from tutorial_lib.denoiser import NULL_LABEL, Condition, MixtureDenoiser, NetworkDenoiser
from tutorial_lib.guidance import (
    ClassifierFree,
    ClassifierGuided,
    MixtureClassifier,
    StaticThreshold,
    Unlabelled,
)
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.networks.mlp import PointMLP
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.samplers import ddim, final
from tutorial_lib.schedule import VE, LinearVP, uniform_times
from tutorial_lib.solvers import probability_flow

TIMES = [1e-3, 0.1, 0.5, 0.9, 1.0]
LABELS = Condition(label=torch.arange(12) % 3)


class Counting:
    """Hand questions on, and remember of each how many rows it had and which labels."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.asked = denoiser, denoiser.schedule, []

    def __call__(self, xt, t, cond=None):
        self.asked.append((len(xt), None if cond is None else cond.label))
        return self.denoiser(xt, t, cond)

    @property
    def rows(self):
        return [n for n, _ in self.asked]


def exact(name="linear"):
    return MixtureDenoiser(overlap3(), SCHEDULES[name], overlap3_classes())


# the prediction, against the scores of other hands


def branches(name, xt, t):
    """eps of each row's class and of the whole mixture, by autograd through torch's densities."""
    level = SCHEDULES[name].at(t, like=xt)
    alpha, sigma = float(level.alpha), float(level.sigma)
    rows = [
        torch_score(overlap3().component(i % 3), xt[i : i + 1], alpha, sigma) for i in range(12)
    ]
    return -sigma * torch.cat(rows), -sigma * torch_score(overlap3(), xt, alpha, sigma)


def right(c, u, w):
    return (1 + w) * c - w * u


def one_less(c, u, w):
    return w * c + (1 - w) * u


def backwards(c, u, w):
    return (1 - w) * c + w * u


def half(c, u, w):
    return (1 + w / 2) * c - w / 2 * u


def null_label_not_passed(c, u, w):
    return c


def branches_swapped(c, u, w):
    return (1 + w) * u - w * c


def eps_gap(formula, name="linear", w=1.7):
    xt, worst = normal(12, 2), 0.0
    for t in TIMES:
        told = ClassifierFree(exact(name), w)(xt, t, LABELS)
        truth = formula(*branches(name, xt, t), w)
        worst = max(worst, float((told.eps - truth).abs().max() / truth.abs().max()))
        again = told.level.alpha * told.x0 + told.level.sigma * told.eps
        assert (again - xt).abs().max() < 1e-11
    return worst


@every_schedule
@pytest.mark.parametrize("w", [-1.0, -0.5, 0.0, 0.5, 4.0])
def test_it_is_equation_6(name, w):
    assert eps_gap(right, name, w) < 1e-9


@variants(a=one_less, b=backwards, c=half, d=null_label_not_passed, e=branches_swapped)
def test_wrong_combinations_are_seen(wrong):
    assert eps_gap(wrong) > 0.05


def test_the_ends_are_the_models_own_predictions():
    model, xt = exact(), normal(12, 2)
    for t in TIMES:
        conditional, whole = model(xt, t, LABELS), model(xt, t)
        found = [ClassifierFree(model, w)(xt, t, LABELS) for w in (0, -1)]
        for told, truth in zip(found, (conditional, whole), strict=True):
            assert gap(told.eps, truth.eps) < 1e-15 and gap(told.x0, truth.x0) < 1e-15
        assert torch.equal(found[0].eps, conditional.eps)


@every_schedule
def test_of_exact_models_it_is_classifier_guidance(name):
    """Bayes: of the conditional model by w, or of the unconditional one by 1 + w."""
    model, xt = exact(name), normal(12, 2)
    classifier = MixtureClassifier(overlap3(), SCHEDULES[name], overlap3_classes())
    for t in TIMES:
        free = ClassifierFree(model, 1.7)(xt, t, LABELS).score
        assert gap(ClassifierGuided(model, classifier, 1.7)(xt, t, LABELS).score, free) < 1e-11
        unlabelled = ClassifierGuided(Unlabelled(model), classifier, 2.7)
        assert gap(unlabelled(xt, t, LABELS).score, free) < 1e-11
        nested = ClassifierFree(ClassifierGuided(Unlabelled(model), classifier), 1.7)
        assert gap(nested(xt, t, LABELS).score, free) < 1e-11
        off_by_one = ClassifierGuided(model, classifier, 2.7)
        assert gap(off_by_one(xt, t, LABELS).score, free) > 1e-6


# one call, of 2 B rows or of B


def test_both_branches_are_asked_in_one_call():
    model = Counting(exact())
    told = ClassifierFree(model, 2.0)(normal(12, 2), 0.4, LABELS)
    ((rows, label),) = model.asked
    assert rows == 24 and label.tolist() == [*LABELS.label.tolist(), *[NULL_LABEL] * 12]
    assert len(told.eps) == len(told.x0) == 12


@pytest.mark.parametrize(
    "w, t, cond",
    [
        (0.0, 0.4, LABELS),
        (2.0, 0.1, LABELS),
        (2.0, 0.7, LABELS),
        (2.0, torch.full((12,), 0.7), LABELS),
        (2.0, 0.4, Condition()),
        (2.0, 0.4, None),
    ],
)
def test_where_nothing_is_guided_the_model_is_asked_once(w, t, cond):
    model, xt = Counting(exact()), normal(12, 2)
    told = ClassifierFree(model, w, interval=(0.2, 0.6))(xt, t, cond)
    assert model.rows == [12]
    assert torch.equal(told.eps, model.denoiser(xt, t, cond).eps)


def test_guidance_in_an_interval_of_times():
    model, xt = Counting(exact()), normal(12, 2)
    guided = ClassifierFree(model, 2.0, interval=(0.2, 0.6))
    final(ddim(guided, xt, uniform_times(10), LABELS))
    assert model.rows == [24 if 2 <= n <= 6 else 12 for n in range(10, 0, -1)]
    t = torch.linspace(0.05, 0.95, 12).double()  # each row at its own time
    mixed, inside = guided(xt, t, LABELS), (t >= 0.2) & (t <= 0.6)
    everywhere, nowhere = ClassifierFree(exact(), 2.0)(xt, t, LABELS), exact()(xt, t, LABELS)
    assert gap(mixed.eps[inside], everywhere.eps[inside]) < 1e-14
    assert gap(mixed.eps[~inside], nowhere.eps[~inside]) < 1e-14
    assert gap(mixed.x0[~inside], nowhere.x0[~inside]) < 1e-14
    assert gap(everywhere.eps, nowhere.eps) > 0.1


def test_an_interval_that_falls_is_refused():
    with pytest.raises(ValueError, match="from low to high"):
        ClassifierFree(exact(), 1.0, interval=(0.6, 0.2))


def test_one_label_for_all_and_rows_without_any():
    model, xt = exact(), normal(12, 2)
    guided = ClassifierFree(model, 2.0)
    one = guided(xt, 0.4, Condition(label=torch.tensor(1)))
    assert gap(one.eps, guided(xt, 0.4, Condition(label=torch.full((12,), 1))).eps) < 1e-15
    same = guided(xt, torch.tensor([0.4], dtype=torch.float64), Condition(label=torch.tensor(1)))
    assert gap(one.eps, same.eps) < 1e-15
    mixed = Condition(label=torch.where(torch.arange(12) < 6, 1, NULL_LABEL))
    assert gap(guided(xt, 0.4, mixed).eps[6:], model(xt, 0.4).eps[6:]) < 1e-13
    assert gap(guided(xt, 0.4, mixed).eps[:6], one.eps[:6]) < 1e-13


def test_all_else_of_the_condition_is_kept_in_both_halves():
    seen = []

    def model(xt, t, cond=None):
        seen.append(cond)
        return exact()(xt, t, Condition(label=cond.label))

    model.schedule = LinearVP()
    hint = normal(12, 3)
    ClassifierFree(model, 1.0)(normal(12, 2), 0.4, replace(LABELS, hint=hint))
    assert torch.equal(seen[0].hint, torch.cat([hint, hint])) and seen[0].text is None


def test_the_variance_is_the_conditional_halfs():
    def model(xt, t, cond=None):
        said = torch.where(cond.label == NULL_LABEL, 0.25, 0.75)[:, None].expand_as(xt)
        return replace(exact()(xt, t, cond), variance_fraction=said, noise_variance=2 * said)

    model.schedule = LinearVP()
    told = ClassifierFree(model, 3.0)(normal(12, 2), 0.4, LABELS)
    assert told.variance_fraction.unique().tolist() == [0.75]
    assert told.noise_variance.unique().tolist() == [1.5]


# networks that know a null label


def small_unet():
    shape = {"channels": 32, "multipliers": (1, 2), "depth": 1, "attention": (4,), "side": 8}
    config = UNetConfig(**shape, dropout=0.0, n_classes=10, out_channels=6)
    net = UNet(config, generator=generator()).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return net


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 4)])
@pytest.mark.parametrize("kind", ["points", "images"])
def test_a_networks_two_branches(kind, t):
    net = small_unet() if kind == "images" else PointMLP(n_classes=10, generator=generator())
    xt = normal(4, 3, 8, 8) if kind == "images" else normal(4, 2)
    model = NetworkDenoiser(net.double().requires_grad_(False), LinearVP(), predicts="v")
    label = torch.tensor([3, 0, 9, NULL_LABEL])
    c, u = model(xt, t, Condition(label=label)), model(xt, t, Condition())
    told = ClassifierFree(model, 1.5)(xt, t, Condition(label=label))
    assert gap(told.eps, 2.5 * c.eps - 1.5 * u.eps) < 1e-10
    assert gap(told.x0, 2.5 * c.x0 - 1.5 * u.x0) < 1e-10
    assert gap(c.eps[:3], u.eps[:3]) > 1e-3
    if kind == "images":
        assert gap(told.variance_fraction, c.variance_fraction) < 1e-10


# where it leads: not to the tilted law


class TwoGaussians:
    """N(0, 1/4) with a label, N(0, 1) without: one number a row."""

    def __init__(self, schedule):
        laws = [GaussianMixture([1.0], [[0.0]], [[[v]]]) for v in (0.25, 1.0)]
        self.conditional, self.whole = (MixtureDenoiser(law, schedule) for law in laws)
        self.schedule = schedule

    def __call__(self, xt, t, cond=None):
        c, u = self.conditional(xt, t), self.whole(xt, t)
        if cond is None or cond.label is None:
            return u
        absent = (cond.label == NULL_LABEL)[:, None]
        return replace(
            c, x0=torch.where(absent, u.x0, c.x0), eps=torch.where(absent, u.eps, c.eps)
        )


def variance_at_the_end(guided):
    """Of a flow from N(0, sigma_max^2), which is linear here: the square of one point's path."""
    start = torch.full((1, 1), guided.schedule.prior_std, dtype=torch.float64)
    times, cond = torch.tensor([1.0, 0.0]).double(), Condition(label=torch.zeros(1).long())
    how = {"rtol": 1e-9, "atol": 1e-11}
    return float(final(probability_flow(guided, start, times, cond, **how))) ** 2


@pytest.mark.parametrize("w, variance", [(-1, 1.0), (0, 0.25), (1, 0.0625), (3, 0.00390625)])
def test_the_guided_flow_extrapolates_geometrically(w, variance):
    """s_c^(2 (1 + w)) s_u^(-2 w): dx / d sigma^2 = -score / 2, from infinite noise to none.

    The tilted law p(x) p(y | x)^(1 + w) has 1 / (4 (1 + w) - w) instead, the harmonic one.
    """
    found = variance_at_the_end(ClassifierFree(TwoGaussians(VE(1e-4, 1e4)), w))
    assert found == pytest.approx(variance, rel=1e-6)
    tilted = 1 / (4 * (1 + w) - w)
    assert (abs(found - tilted) < 1e-6) == (w <= 0)


class OneLess(ClassifierFree):
    """w eps_c + (1 - w) eps_u."""

    def __init__(self, denoiser, w):
        super().__init__(denoiser, w - 1)


class Halved(ClassifierFree):
    """(1 + w / 2) eps_c - w / 2 eps_u."""

    def __init__(self, denoiser, w):
        super().__init__(denoiser, w / 2)


@variants(a=OneLess, b=Halved)
def test_flows_of_another_convention_are_seen(wrong):
    found = variance_at_the_end(wrong(TwoGaussians(VE(1e-4, 1e4)), 1))
    assert found != pytest.approx(0.0625, rel=0.1)


def test_a_threshold_goes_around_or_inside():
    """Both orders hold, and differ: the range of the guided x_0, or of each branch's."""
    model, xt = exact(), 2 * normal(12, 2)
    around = StaticThreshold(ClassifierFree(model, 3.0))(xt, 0.3, LABELS)
    inside = ClassifierFree(StaticThreshold(model), 3.0)(xt, 0.3, LABELS)
    free = ClassifierFree(model, 3.0)(xt, 0.3, LABELS)
    assert torch.equal(around.x0, free.x0.clamp(-1, 1))
    c, u = (model(xt, 0.3, cond).x0.clamp(-1, 1) for cond in (LABELS, None))
    assert gap(inside.x0, 4 * c - 3 * u) < 1e-13 and inside.x0.abs().max() > 1.01
    for told in (around, inside):
        again = told.level.alpha * told.x0 + told.level.sigma * told.eps
        assert (again - xt).abs().max() < 1e-12
