"""IDDPM's importance over t: what it remembers, what it draws, and what that is worth."""

from collections import deque

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from truths import generator, relative, standard_errors, variants

from tutorial_lib.losses import StepImportance

T = 12
EVEN = torch.full((T,), 1 / T, dtype=torch.float64)


def losses_of(steps, seed):
    """Losses whose size falls steeply with t, as the bound's do, and varies at each step."""
    noise = torch.randn(steps.shape, generator=generator(seed), dtype=torch.float64)
    return 5.0 / steps * noise.exp()


def filled(kind=StepImportance, times=10):
    """What has seen every step so many times."""
    steps = torch.arange(1, T + 1).repeat(times)
    made = kind(T)
    made.update(steps, losses_of(steps, 1))
    return made


# What it remembers


def remembered(batches):
    """The last 10 losses of each step, by a queue for each."""
    queues = [deque(maxlen=10) for _ in range(T)]
    for steps, values in batches:
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            queues[step - 1].append(value)
    return [list(queue) for queue in queues]


def keeps_the_last_ten(kind):
    history, batches = kind(T), []
    for k, size in enumerate([1, 7, 40, 300, 5, 64]):  # some steps come 25 times in a batch
        steps = torch.randint(1, T + 1, (size,), generator=generator(k))
        batches.append((steps, losses_of(steps, k)))
        history.update(*batches[-1])
        known = [row[~row.isnan()].tolist() for row in history.history]
        if known != remembered(batches):
            return False
    return True


def test_the_last_ten_of_each_step_in_their_order():
    assert keeps_the_last_ten(StepImportance)


class Unsorted(StepImportance):
    def update(self, steps, losses):
        backwards = torch.arange(len(steps) - 1, -1, -1)
        super().update(steps[backwards], losses[backwards])


class OneEach(StepImportance):
    """Writes once for a step that comes twice in a batch."""

    def update(self, steps, losses):
        last = {int(step): i for i, step in enumerate(steps)}
        rows = torch.tensor(sorted(last.values()))
        super().update(steps[rows], losses[rows])


class OffByOne(StepImportance):
    def update(self, steps, losses):
        super().update(steps % T + 1, losses)


@variants(a=Unsorted, b=OneEach, c=OffByOne)
def test_wrong_memories_are_seen(wrong):
    assert not keeps_the_last_ten(wrong)


# What it draws


def test_draws_are_even_until_every_step_has_ten():
    partial = filled(times=9)
    every_other = torch.arange(2, T + 1)
    partial.update(every_other, losses_of(every_other, 2))
    assert torch.equal(partial.probabilities, EVEN)
    steps, weights = partial.sample(20_000, generator=generator(3))
    assert bool((weights == 1).all()) and (steps.min(), steps.max()) == (1, T)
    partial.update(torch.tensor([1]), torch.tensor([0.5]))
    assert (partial.probabilities - EVEN).abs().max() > 0.05


def test_probabilities_are_root_mean_squares():
    found = filled()
    sizes = (found.history**2).mean(1).sqrt()
    exact = 0.999 * sizes / sizes.sum() + 0.001 / T
    assert relative(found.probabilities, exact) < 1e-12
    assert float(found.probabilities.sum()) == pytest.approx(1, abs=1e-12)


def test_a_step_without_loss_is_still_drawn():
    found, steps = filled(), torch.full((10,), 4)
    found.update(steps, torch.zeros(10))
    assert float(found.probabilities[3]) == pytest.approx(0.001 / T)
    found.update(torch.arange(1, T + 1).repeat(10), torch.zeros(10 * T))  # nothing left to tell
    assert torch.equal(found.probabilities, EVEN)


def weight_of_each(history):
    """The weight that `sample` gives each step, (T,)."""
    steps, weights = history.sample(50_000, generator=generator(4))
    table = torch.full((T,), torch.nan, dtype=torch.float64)
    table[steps - 1] = weights
    return table


def is_unbiased(kind):
    """For any losses at all, sum_t p_t w_t L_t = mean_t L_t."""
    history = filled(kind)
    products = history.probabilities * weight_of_each(history)
    return relative(products, EVEN) < 1e-12


class Unweighted(StepImportance):
    def sample(self, n, *, generator):
        steps, weights = super().sample(n, generator=generator)
        return steps, torch.ones_like(weights)


class NotOfT(StepImportance):
    def sample(self, n, *, generator):
        steps, weights = super().sample(n, generator=generator)
        return steps, T * weights


class NextStepsWeight(StepImportance):
    def sample(self, n, *, generator):
        steps, weights = super().sample(n, generator=generator)
        return steps % T + 1, weights


def test_weights_undo_the_bias_of_the_draw():
    assert is_unbiased(StepImportance)


@variants(a=Unweighted, b=NotOfT, c=NextStepsWeight)
def test_wrong_weights_are_seen(wrong):
    assert not is_unbiased(wrong)


def test_steps_are_drawn_as_often_as_promised():
    history = filled()
    steps, _ = history.sample(50_000, generator=generator(5))
    hits = nn.functional.one_hot(steps - 1, T).double()
    assert standard_errors(hits, history.probabilities) < 6


def second_moment(kind):
    """E (w L)^2 over draws of t and over the losses it remembers, and the least there can be.

    Of all p it is least, (mean_t sqrt(E L_t^2))^2, at eq. 18's (Cauchy and Schwarz).
    """
    history = filled(kind)
    squares = (history.history**2).mean(1)
    found = (history.probabilities * weight_of_each(history) ** 2 * squares).sum()
    return float(found), float(squares.sqrt().mean() ** 2)


def test_the_second_moment_is_the_least_there_can_be():
    found, least = second_moment(StepImportance)
    assert least * (1 - 1e-12) <= found <= least / 0.999 * (1 + 1e-12)
    history = filled()
    assert float((history.history**2).mean()) > 1.3 * found  # what even draws have


class ByMeanLoss(StepImportance):
    """p ~ E L_t."""

    @property
    def probabilities(self):
        return self.history.mean(1) / self.history.mean(1).sum()


class ByMeanSquare(StepImportance):
    """p ~ E L_t^2: the root forgotten. Its second moment is that of even draws, whatever L."""

    @property
    def probabilities(self):
        return (self.history**2).mean(1) / (self.history**2).mean(1).sum()


class ByLastLoss(StepImportance):
    @property
    def probabilities(self):
        return self.history[:, -1] / self.history[:, -1].sum()


@variants(a=ByMeanLoss, b=ByMeanSquare, c=ByLastLoss, d=Unweighted)
def test_wrong_importances_cost_more(wrong):
    found, least = second_moment(wrong)
    assert found > 1.01 * least


def test_the_history_goes_where_a_trained_module_goes_but_not_into_its_weights():
    both = nn.ModuleDict({"net": nn.Linear(2, 2), "steps": filled()})
    assert dict(both.named_buffers()).keys() == {"steps.history"}
    assert both.state_dict().keys() == {"net.weight", "net.bias"}
    assert both.to("meta")["steps"].history.device.type == "meta"


def test_losses_keep_their_graph_out_of_the_history():
    loss = torch.ones(T, requires_grad=True)
    history = StepImportance(T)
    history.update(torch.arange(1, T + 1), 2 * loss.float())
    assert not history.history.requires_grad and history.history.dtype == torch.float64


class Reads(TorchDispatchMode):
    """Count what makes the host wait for a GPU: values read, shapes that values decide."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique")
        self.found += any(word in str(func) for word in waiting)
        return func(*args, **(kwargs or {}))


def reads(kind):
    history, steps = filled(kind), torch.arange(1, T + 1)
    with Reads() as count:
        history.sample(8, generator=generator())
        history.update(steps, losses_of(steps, 1))
    return count.found


def test_the_host_never_waits_for_a_value():
    assert reads(StepImportance) == 0
    assert reads(OneEach) > 0
