"""Every sampler and solver of the library takes every guided denoiser. Takes 4 s.

With exact models two different wrappings are one denoiser, so that whatever a sampler does, it
must end at the same points.
"""

import importlib
import inspect
import pkgutil

import pytest
import torch
from test_sampler_cost import Crossings
from truths import generator, normal

import tutorial_lib
from tutorial_lib.data import overlap3, overlap3_classes
from tutorial_lib.denoiser import NULL_LABEL, Condition, MixtureDenoiser, NetworkDenoiser
from tutorial_lib.guidance import (
    ClassifierFree,
    ClassifierGuided,
    DynamicThreshold,
    MixtureClassifier,
    SimilarityGuided,
    StaticThreshold,
    Unlabelled,
    label_log_prob,
)
from tutorial_lib.samplers import ddim, final
from tutorial_lib.schedule import LinearVP, log_snr_times, uniform_times

SCHEDULE = LinearVP()
MODEL = MixtureDenoiser(overlap3(), SCHEDULE, overlap3_classes())
CLASSIFIER = MixtureClassifier(overlap3(), SCHEDULE, overlap3_classes())
LABELS = Condition(label=torch.tensor([0, 1, 2, NULL_LABEL] * 5))
FREE = Unlabelled(MODEL)
NEEDED = {"denoiser", "x", "times", "generator"}  # what a sampler may require


def samplers():
    """All generator functions of (denoiser, x, times, cond) that need a generator at most."""
    found = {}
    for info in pkgutil.iter_modules(tutorial_lib.__path__):
        if info.name in ("exercises", "plotting", "widgets", "checks", "recipes"):
            continue
        module = importlib.import_module(f"tutorial_lib.{info.name}")
        for name, function in vars(module).items():
            public = inspect.isgeneratorfunction(function) and not name.startswith("_")
            if not public or function.__module__ != module.__name__:
                continue
            given = inspect.signature(function).parameters
            needed = {n for n, p in given.items() if p.default is p.empty}
            if list(given)[:4] == ["denoiser", "x", "times", "cond"] and needed <= NEEDED:
                found[name] = function
    return found


SAMPLERS = samplers()
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def test_the_samplers_are_found():
    known = {"ancestral", "ddim", "encode", "langevin", "predictor_corrector", "probability_flow"}
    assert known <= SAMPLERS.keys() and len(SAMPLERS) >= 10


def walk(sampler, denoiser, dtype=torch.float64):
    x, times = normal(20, 2).to(dtype), log_snr_times(SCHEDULE, 6)
    draws = "generator" in inspect.signature(sampler).parameters
    drawn = {"generator": generator(5)} if draws else {}
    return final(sampler(denoiser, x, times, LABELS, **drawn))


PAIRS = {
    "classifier guidance at 1": (ClassifierGuided(FREE, CLASSIFIER), MODEL),
    "classifier-free guidance": (
        ClassifierFree(MODEL, 1.5),
        ClassifierGuided(MODEL, CLASSIFIER, 1.5),
    ),
    "a similarity": (
        SimilarityGuided(FREE, label_log_prob(CLASSIFIER), 2.0),
        ClassifierFree(MODEL, 1.0),
    ),
    "thresholds around": (
        StaticThreshold(DynamicThreshold(ClassifierFree(MODEL, 1.5))),
        DynamicThreshold(ClassifierGuided(FREE, CLASSIFIER, 2.5)),
    ),
    "thresholds inside": (
        ClassifierGuided(DynamicThreshold(StaticThreshold(FREE)), CLASSIFIER),
        SimilarityGuided(StaticThreshold(FREE), label_log_prob(CLASSIFIER)),
    ),
}


@every_sampler
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_sampler_takes_every_wrapper(sampler, pair):
    ours, same = (walk(sampler, denoiser) for denoiser in pair)
    assert (ours - same).abs().max() < 1e-10
    assert not ours.requires_grad


@every_sampler
def test_samples_of_other_guidance_differ(sampler):
    """In the rows with a label; steps that a whole batch decides move the others too."""
    ours, other = (walk(sampler, ClassifierFree(MODEL, w)) for w in (1.5, 1.0))
    assert ((ours - other).abs().amax(1)[LABELS.label != NULL_LABEL] > 1e-4).all()


@every_sampler
def test_single_precision_is_kept(sampler):
    guided = ClassifierFree(ClassifierGuided(FREE, CLASSIFIER), 1.0)
    single = walk(sampler, guided, torch.float32)
    assert single.dtype == torch.float32 and bool(single.isfinite().all())


# what guidance asks of a device: nothing is carried to it from the host, which would wait


class Echo(torch.nn.Module):
    """The cheapest network: its input, times the clock."""

    def forward(self, xt, clock, cond=None):
        return xt * clock.reshape(-1, *(1,) * (xt.ndim - 1))


def logits(xt, t):
    return xt.flatten(1)[:, :3]


def carried(wrap) -> int:
    """Tensors carried to or from a device of which torch knows shapes alone, in a whole walk."""
    x, label = torch.empty(4, 3, 4, 4, device="meta"), torch.empty(4, device="meta").long()
    denoiser = wrap(NetworkDenoiser(Echo(), SCHEDULE, predicts="v"))
    with Crossings() as seen:
        final(ddim(denoiser, x, uniform_times(5), Condition(label=label)))
    return seen.crossings


class Fetching(ClassifierFree):
    """Make the labels on the host at every step."""

    def __call__(self, xt, t, cond=None):
        return super().__call__(xt, t, Condition(label=torch.arange(4).to(xt.device)))


def test_guidance_carries_nothing_to_the_device():
    assert carried(lambda model: ClassifierFree(model, 2.0, interval=(0.3, 0.7))) == 0
    assert carried(lambda model: StaticThreshold(ClassifierGuided(model, logits))) == 0
    assert carried(lambda model: DynamicThreshold(ClassifierFree(model, 2.0))) == 0
    assert carried(lambda model: Fetching(model, 2.0)) > 0
