"""Classifier guidance: with the exact classifier it is the conditional model. Takes 5 s."""

from dataclasses import replace

import pytest
import torch
from labelled import TIMES, TOYS, bar, every_toy, exact, members, points
from torch.nn import functional as F
from truths import (
    SCHEDULES,
    every_schedule,
    gap,
    gaussian,
    generator,
    normal,
    relative,
    torch_score,
    variants,
)

from tutorial_lib.data import overlap3
from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.guidance import (
    ClassifierGuided,
    NetworkClassifier,
    SimilarityGuided,
    Unlabelled,
    label_log_prob,
    slope,
)
from tutorial_lib.likelihood import flow_log_likelihood
from tutorial_lib.metrics import sliced_wasserstein, sobol_normal
from tutorial_lib.networks.mlp import PointMLP
from tutorial_lib.samplers import final
from tutorial_lib.schedule import LinearVP, as_time, log_snr_times
from tutorial_lib.solvers import heun

# the score identity: scale 1, by the exact classifier, is the conditional model


def conditional_gap(guide, toy="overlap3", name="linear", scale=1.0, times=TIMES):
    """Distance from score_u + scale (score_c - score_u), over its largest, at its largest."""
    (denoiser, classifier), worst = exact(toy, name), 0.0
    for t in times:
        xt, cond, _ = points(toy, name, t)
        ours = guide(Unlabelled(denoiser), classifier, scale)(xt, t, cond).score
        score_c, score_u = denoiser(xt, t, cond).score, denoiser(xt, t).score
        truth = score_u + scale * (score_c - score_u)
        worst = max(worst, float((ours - truth).abs().max() / truth.abs().max()))
    return worst


@every_schedule
@every_toy
@pytest.mark.parametrize("scale", [1.0, 0.0, 3.5])
def test_the_exact_classifier_gives_the_exact_conditional_score(toy, name, scale):
    assert conditional_gap(ClassifierGuided, toy, name, scale) < 1e-12


def test_the_conditional_score_is_that_of_other_hands():
    for t in TIMES:
        xt, cond, level = points("std8", "linear", t)
        denoiser, classifier = exact("std8")
        ours = ClassifierGuided(Unlabelled(denoiser), classifier)(xt, t, cond).score
        for y in range(4):
            law, rows = members(*TOYS["std8"], y), cond.label == y
            theirs = torch_score(law, xt[rows], float(level.alpha), float(level.sigma))
            assert gap(ours[rows], theirs) < 1e-9


def by_hand(eps):
    """A wrong guidance: eps(prediction, gradient of log p(y | x_t), scale, xt, t, cond)."""

    def build(denoiser, classifier, scale):
        def guided(xt, t, cond=None):
            p, push = denoiser(xt, t, cond), slope(label_log_prob(classifier), xt, t, cond)
            told = eps(p, push, scale, classifier, t, cond)
            return Prediction.from_eps(xt, p.level, told)

        guided.schedule = denoiser.schedule
        return guided

    return build


@by_hand
def right(p, push, scale, classifier, t, cond):
    return p.eps - p.level.sigma * scale * push


@by_hand
def no_sigma(p, push, scale, classifier, t, cond):
    return p.eps - scale * push


@by_hand
def sigma_squared(p, push, scale, classifier, t, cond):
    return p.eps - p.level.sigma**2 * scale * push


@by_hand
def downhill(p, push, scale, classifier, t, cond):
    return p.eps + p.level.sigma * scale * push


@by_hand
def half(p, push, scale, classifier, t, cond):
    return p.eps - p.level.sigma * scale / 2 * push


@by_hand
def clean_classifier(p, push, scale, classifier, t, cond):
    def clean(xt, t):
        return classifier(xt, 0.0)

    return p.eps - p.level.sigma * scale * slope(label_log_prob(clean), p.xt, t, cond)


@by_hand
def at_the_clean_prediction(p, push, scale, classifier, t, cond):
    return p.eps - p.level.sigma * scale * slope(label_log_prob(classifier), p.x0, 0.0, cond)


@by_hand
def of_the_probability(p, push, scale, classifier, t, cond):
    def probability(xt, t, cond):
        return label_log_prob(classifier)(xt, t, cond).exp()

    return p.eps - p.level.sigma * scale * slope(probability, p.xt, t, cond)


@by_hand
def other_label(p, push, scale, classifier, t, cond):
    other = Condition(label=(cond.label + 1) % 3)
    return p.eps - p.level.sigma * scale * slope(label_log_prob(classifier), p.xt, t, other)


def test_written_by_hand_it_is_the_same():
    assert conditional_gap(right) < 1e-12


@variants(
    a=no_sigma,
    b=sigma_squared,
    c=downhill,
    d=half,
    e=clean_classifier,
    f=at_the_clean_prediction,
    g=of_the_probability,
    h=other_label,
)
def test_wrong_guidance_is_seen(wrong):
    assert conditional_gap(wrong, times=[0.1, 0.5]) > 0.05


@every_schedule
def test_x0_and_eps_agree_near_both_ends(name):
    denoiser, classifier = exact(name=name)
    guided = ClassifierGuided(Unlabelled(denoiser), classifier, scale=2.0)
    for t in (1e-9, *TIMES):
        xt, cond, level = points("overlap3", name, t)
        told, model = guided(xt, t, cond), denoiser(xt, t, cond)
        assert gap(level.alpha * told.x0 + level.sigma * told.eps, xt) < 1e-12
        twice = 2 * model.x0 - denoiser(xt, t).x0  # the same point in the mixture's stable form
        assert gap(told.x0, twice) < 1e-8


def test_rows_without_a_label_are_not_guided():
    denoiser, classifier = exact()
    guided, xt = ClassifierGuided(Unlabelled(denoiser), classifier, scale=3.0), normal(6, 2)
    free = denoiser(xt, 0.4)
    mixed = guided(xt, 0.4, Condition(label=torch.tensor([-1, 0, -1, 1, 2, -1])))
    assert ((mixed.eps - free.eps).abs().amax(1) < 1e-14).tolist() == [
        *(True, False, True),
        *(False, False, True),
    ]
    for absent in (None, Condition()):
        assert torch.equal(guided(xt, 0.4, absent).eps, free.eps)


def test_logits_will_do_for_log_probabilities():
    denoiser, classifier = exact()

    def logits(xt, t):
        return classifier(xt, t) + 5 * xt.square().sum(1, keepdim=True)

    xt, cond, _ = points("overlap3", "linear", 0.3)
    told, shifted = (
        ClassifierGuided(denoiser, c, scale=2.0)(xt, 0.3, cond) for c in (classifier, logits)
    )
    assert gap(told.eps, shifted.eps) < 1e-12
    raw = slope(lambda x, t, c: logits(x, t).gather(1, c.label[:, None]), xt, 0.3, cond)
    assert gap(raw, slope(label_log_prob(logits), xt, 0.3, cond)) > 0.1


def test_it_hands_on_what_the_model_says_of_variance():
    def denoiser(xt, t, cond=None):
        found = exact()[0](xt, t, cond)
        return replace(found, variance_fraction=0.3 * torch.ones_like(xt))

    denoiser.schedule = LinearVP()
    xt, cond, _ = points("overlap3", "linear", 0.3)
    assert (ClassifierGuided(denoiser, exact()[1])(xt, 0.3, cond).variance_fraction == 0.3).all()


# gradients: where there are none, in single precision, and kept where they are asked for


def test_it_works_where_gradients_are_off_and_keeps_no_graph():
    denoiser, (xt, cond, _) = exact()[0], points("overlap3", "linear", 0.3)
    net = PointMLP(outputs=3, generator=generator()).double()
    guided = ClassifierGuided(denoiser, NetworkClassifier(net, LinearVP()), scale=2.0)
    on = guided(xt, 0.3, cond)
    with torch.no_grad():
        off = guided(xt, 0.3, cond)
    assert torch.equal(on.eps, off.eps) and gap(on.eps, denoiser(xt, 0.3, cond).eps) > 1e-3
    assert not on.eps.requires_grad and not xt.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_single_precision_stays_single_and_right():
    denoiser, classifier = exact()
    guided, (xt, cond, _) = ClassifierGuided(denoiser, classifier), points("std8", "linear", 0.3)
    cond = Condition(label=cond.label % 3)
    single, double = guided(xt.float(), 0.3, cond), guided(xt, 0.3, cond)
    assert single.eps.dtype == single.x0.dtype == torch.float32
    assert gap(single.eps.double(), double.eps) < 1e-5


class Detached:
    """Guidance that hides its own gradient from whoever takes the flow's divergence."""

    def __init__(self, denoiser, classifier):
        self.schedule = denoiser.schedule
        self.denoiser, self.log_prob = denoiser, label_log_prob(classifier)

    def __call__(self, xt, t, cond=None):
        push = slope(self.log_prob, xt.detach(), t, cond)
        return self.denoiser(xt, t, cond).pushed(push)


def likelihood_gap(guide):
    """Distance of a guided flow's log-likelihood from log p(x | y), nats."""
    denoiser, classifier = exact()
    x, cond = normal(6, 2), Condition(label=torch.arange(6) % 3)
    times = log_snr_times(LinearVP(), 40)

    def log_law(t, x):
        noised = overlap3().diffuse(LinearVP().at(t, like=x))
        return torch.stack([noised.component(i % 3).log_prob(x[i]) for i in range(6)])

    guided = guide(Unlabelled(denoiser), classifier)
    how = {"log_prior": lambda x: log_law(1.0, x)}
    found = flow_log_likelihood(guided, x, times, cond, **how)
    return float((found - log_law(times[-1], x)).abs().max())


def test_the_guided_flows_likelihood_is_log_p_of_x_given_y():
    assert likelihood_gap(ClassifierGuided) < 1e-3
    assert likelihood_gap(Detached) > 0.1


# any similarity


def closeness(xt, t, cond):
    """A Gaussian bump around the embedding, wider with noise."""
    return -0.5 * ((xt - cond.image_embedding) ** 2).sum(1) / (1 + as_time(t))


def cosine(xt, t, cond):
    return F.cosine_similarity(xt, cond.image_embedding, dim=1)


def slope_of_closeness(x, e, t):
    return (e - x) / (1 + t)


def slope_of_cosine(x, e, t):
    size, e = x.norm(dim=1, keepdim=True), e / e.norm(dim=1, keepdim=True)
    return (e - (e * x).sum(1, keepdim=True) * x / size**2) / size


@every_schedule
@pytest.mark.parametrize(
    "similarity, gradient",
    [(closeness, slope_of_closeness), (cosine, slope_of_cosine)],
    ids=["closeness", "cosine"],
)
def test_any_similaritys_gradient_is_added_to_the_score(name, similarity, gradient):
    model, xt = MixtureDenoiser(gaussian(), SCHEDULES[name]), normal(7, 2)
    cond = Condition(image_embedding=normal(7, 2, seed=2))
    for t in TIMES:
        told = SimilarityGuided(model, similarity, scale=2.5)(xt, t, cond)
        push = gradient(xt, cond.image_embedding, t)
        assert relative(told.score, model(xt, t).score + 2.5 * push) < 1e-9
        assert gap(told.score, model(xt, t).score - 2.5 * push) > 1e-3


# samples: p(x | y) at scale 1


def excess(guide, y=1, n=2048, scale=1.0):
    """Distance of a guided flow's samples from class y, over its bar."""
    denoiser, classifier = exact()
    guided, cond = guide(Unlabelled(denoiser), classifier, scale), Condition(torch.full((n,), y))
    x = final(heun(guided, sobol_normal(n, 2), log_snr_times(LinearVP(), 25), cond))
    return sliced_wasserstein(x, overlap3().component(y)) / bar(y, n)


@pytest.mark.parametrize("y", [0, 1, 2])
def test_the_guided_flow_samples_the_class(y):
    assert excess(ClassifierGuided, y) < 1


@variants(a=no_sigma, b=downhill, c=half, d=clean_classifier)
def test_samples_of_a_wrong_flow_are_seen(wrong):
    assert excess(wrong) > 2
