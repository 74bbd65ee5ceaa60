"""Encoding by DDIM run from data to noise, and interpolation of what it finds. Takes 6 s."""

import math
from itertools import pairwise

import pytest
import torch
from exact_levels import levels
from torch.nn.functional import cosine_similarity, normalize
from truths import SCHEDULES, every_schedule, gaussian, generator, normal, pair, relative, variants

from tutorial_lib.data import std8
from tutorial_lib.denoiser import Condition, MixtureDenoiser
from tutorial_lib.metrics import sobol_normal
from tutorial_lib.samplers import ddim, encode, final, slerp
from tutorial_lib.schedule import LinearVP, log_snr_times, quadratic_times, uniform_times

MEAN = torch.tensor([0.7, -0.2], dtype=torch.float64)  # of truths.gaussian, whose std is 0.5


def grid(n, end=1e-3):
    """A sampler's times, dense near the data, that stop short of them."""
    return end + (1 - end) * quadratic_times(n)


# Encoding


def eps_at_the_end(denoiser, x, times):
    """Ask at the noisier end of a step, whose level the point does not have yet."""
    for t, later in pairwise(times.flip(0)):
        prediction, level = denoiser(x, later), denoiser.schedule.at(t, like=x)
        x0 = (x - level.sigma * prediction.eps) / level.alpha
        x = denoiser.schedule.add_noise(x0, prediction.eps, later)
        yield x


def clean_point_at_the_end(denoiser, x, times):
    for t, later in pairwise(times.flip(0)):
        prediction = denoiser(x, later)
        x = denoiser.schedule.add_noise(prediction.x0, denoiser(x, t).eps, later)
        yield x


def noise_kept(denoiser, x, times):
    """Let alpha fall, and forget that sigma rises."""
    for t, later in pairwise(times.flip(0)):
        prediction, level = denoiser(x, t), denoiser.schedule.at(t, like=x)
        x = denoiser.schedule.alpha(later) * prediction.x0 + level.sigma * prediction.eps
        yield x


def downhill(denoiser, x, times):
    """The sampler itself, taken for its inverse."""
    return ddim(denoiser, x, times)


wrong_codes = variants(a=eps_at_the_end, b=clean_point_at_the_end, c=noise_kept, d=downhill)


def affine_error(code, name, times):
    """Distance of a code of Gaussian data from the affine map that it must be, to 50 digits.

    A step from (alpha, sigma) to (alpha', sigma') multiplies x - alpha mean by
    (alpha alpha' c^2 + sigma sigma') / (alpha^2 c^2 + sigma^2), c being the data's std.
    """
    known = levels(name, times.flip(0))
    scale = 1
    for (a, s), (a_next, s_next) in pairwise(known):
        scale *= (a * a_next / 4 + s * s_next) / (a**2 / 4 + s**2)
    x = gaussian().sample(50, generator=generator(3))
    exact = float(known[-1][0]) * MEAN + float(scale) * (x - float(known[0][0]) * MEAN)
    found = final(code(MixtureDenoiser(gaussian(), SCHEDULES[name]), x, times))
    return float((found - exact).abs().max() / SCHEDULES[name].prior_std)


@every_schedule
@pytest.mark.parametrize("n", [1, 7, 40])
def test_codes_of_gaussian_data_are_an_affine_map(name, n):
    assert affine_error(encode, name, grid(n)) < 1e-11


@wrong_codes
def test_wrong_codes_are_not_that_map(wrong):
    assert affine_error(wrong, "linear", grid(40)) > 1e-2


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
def test_many_steps_turn_data_into_noise(name):
    """In the limit the map only stretches, to the std that x_1 has (DDIM's eq. 14)."""
    schedule, x = SCHEDULES[name], gaussian().sample(50, generator=generator(3))
    (a, s), (a1, s1) = ((schedule.alpha(t), schedule.sigma(t)) for t in (1e-3, 1.0))
    stretch = ((a1**2 / 4 + s1**2) / (a**2 / 4 + s**2)).sqrt()
    exact = a1 * MEAN + stretch * (x - a * MEAN)
    denoiser = MixtureDenoiser(gaussian(), schedule)
    errors = [
        float((final(encode(denoiser, x, log_snr_times(schedule, n))) - exact).abs().max())
        for n in (200, 400)
    ]
    assert errors[1] < 0.05 * schedule.prior_std
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # the first order of Euler's steps


def error_after_a_round_trip(code, name, n, points=300):
    """Mean squared distance of points of the petals from what their codes decode to."""
    denoiser, times = MixtureDenoiser(std8(), SCHEDULES[name]), grid(n)
    x = std8().sample(points, generator=generator(0))
    back = final(ddim(denoiser, final(code(denoiser, x, times)), times))
    return float(((back - x) ** 2).sum(1).mean())


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
def test_decoding_undoes_encoding_as_steps_grow(name):
    errors = [error_after_a_round_trip(encode, name, n) for n in (10, 20, 50, 100, 200, 500)]
    assert all(more > less for more, less in pairwise(errors))
    assert errors[0] > 200 * errors[-1]  # 800 to 2000 were measured


@variants(b=clean_point_at_the_end, c=noise_kept, d=downhill)
def test_wrong_codes_do_not_come_back(wrong):
    """`eps_at_the_end` does come back, as h falls: only the map above tells it from DDIM."""
    exact, found = (error_after_a_round_trip(f, "linear", 100) for f in (encode, wrong))
    assert found > 5 * exact


@pytest.mark.parametrize(
    "times", [uniform_times(5), quadratic_times(5), grid(5).flip(0)], ids=["0", "0^2", "rising"]
)
def test_a_grid_without_noise_at_its_end_or_upside_down_is_refused(times):
    with pytest.raises(ValueError, match="must fall, as a sampler's, and end where sigma > 0"):
        final(encode(MixtureDenoiser(pair(), LinearVP()), normal(3, 2), times))


def test_where_noise_never_ends_the_grid_may_end_at_0():
    denoiser = MixtureDenoiser(pair(), SCHEDULES["VE"])
    assert len(list(encode(denoiser, normal(3, 2), uniform_times(5)))) == 5


def test_every_step_sees_the_condition_and_keeps_the_dtype():
    exact, cond = MixtureDenoiser(pair(), LinearVP()), Condition(label=torch.arange(3))

    def denoiser(xt, t, told=None):
        assert told is cond
        return exact(xt, t)

    denoiser.schedule = exact.schedule
    path = list(encode(denoiser, normal(3, 2).float(), grid(5), cond))
    assert len(path) == 5 and all(x.dtype == torch.float32 for x in path)


# Interpolation


def by_arccos(a, b, share):
    """The formula as DDIM's appendix D.5 prints it, one row at a time."""
    made = []
    for x, y in zip(a, b, strict=True):
        cos = float((x * y).sum()) / math.sqrt(float((x * x).sum() * (y * y).sum()))
        angle = math.acos(cos)
        near, far = math.sin((1 - share) * angle), math.sin(share * angle)
        made.append((near * x + far * y) / math.sin(angle))
    return torch.stack(made)


def by_rotation(a, b, share):
    """Turn `a` towards `b` in their plane, by the share of the angle, and scale nothing."""
    a, b = a.flatten(1), b.flatten(1)
    first = a / a.norm(dim=1, keepdim=True)
    second = b - (b * first).sum(1, keepdim=True) * first
    second = second / second.norm(dim=1, keepdim=True)
    angle = share * torch.atan2((b * second).sum(1), (b * first).sum(1))[:, None]
    return a.norm(dim=1, keepdim=True) * (angle.cos() * first + angle.sin() * second)


def sphere(*shape, seed):
    """Vectors of norm 3, one a row."""
    x = normal(*shape, seed=seed)
    return 3 * x / x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (len(shape) - 1))


SHAPES = [(40, 2), (40, 3), (40, 3, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_slerp_turns_along_the_great_circle(shape, share):
    a, b = sphere(*shape, seed=1), sphere(*shape, seed=2)
    found = slerp(a, b, share)
    assert (found.flatten(1) - by_rotation(a, b, share)).abs().max() < 1e-9
    assert (found.flatten(1).norm(dim=1) - 3).abs().max() < 1e-9
    loose_a, loose_b = normal(*shape, seed=1), normal(*shape, seed=2)  # norms may differ
    assert gap_of_rows(slerp(loose_a, loose_b, share), by_arccos(loose_a, loose_b, share)) < 1e-9


def gap_of_rows(found, exact):
    """Largest distance of two rows, over the norm of the exact one."""
    return float(((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max())


@variants(
    straight_line=torch.lerp,
    over_all_rows=lambda a, b, share: slerp(a[None], b[None], share)[0],
    uneven_speed=lambda a, b, share: 3 * normalize(torch.lerp(a, b, share), dim=1),
    swapped=lambda a, b, share: slerp(b, a, share),
)
def test_wrong_paths_are_seen(wrong):
    a, b = sphere(40, 3, seed=1), sphere(40, 3, seed=2)
    assert (wrong(a, b, 0.3) - by_rotation(a, b, 0.3)).abs().max() > 0.1


def test_the_ends_are_exact_and_every_row_may_have_its_share():
    a, b = normal(4, 3, 2, 2, seed=1), normal(4, 3, 2, 2, seed=2)
    assert relative(slerp(a, b, 0.0), a) < 1e-15 and relative(slerp(a, b, 1.0), b) < 1e-15
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0])
    each = torch.cat([slerp(a[i : i + 1], b[i : i + 1], s.item()) for i, s in enumerate(shares)])
    assert torch.equal(slerp(a, b, shares), each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parallel_rows_are_joined_by_a_line(dtype):
    a = normal(50, 3).to(dtype)
    for b in (a, 2 * a, a + 10 * torch.finfo(dtype).eps * normal(50, 3, seed=1).to(dtype)):
        found, exact = slerp(a, b, 0.3), torch.lerp(a, b, 0.3)
        assert found.dtype == dtype
        assert gap_of_rows(found, exact) < 20 * torch.finfo(dtype).eps
    cos = (a * a).sum(1) / a.norm(dim=1) ** 2  # the variant: what arccos makes of a rounded cosine
    assert not bool((cos.acos() == 0).all())


def test_opposite_rows_are_refused():
    with pytest.raises(ValueError, match="opposite vectors"):
        slerp(normal(3, 2), -normal(3, 2), 0.5)


def middle_norm2(path, dim, keep_below=150.0):
    """E |z|^2 half way between pairs of N(0, I) that are less than so many degrees apart."""
    a, b = sobol_normal(4096, 2 * dim).split(dim, dim=1)
    cos = cosine_similarity(a, b)
    kept = cos > math.cos(math.radians(keep_below))
    return float((path(a, b, 0.5)[kept] ** 2).sum(1).mean())


def test_slerp_stays_where_noise_lies():
    """FIGURES: in 2-D, where half of N(0, I)'s mean |z|^2 of 2 would be lost on a line."""
    assert 1.6 < middle_norm2(slerp, 2) < 2.8
    assert middle_norm2(torch.lerp, 2) < 1.3
    assert middle_norm2(slerp, 2, keep_below=180.0) > 10  # pairs nearly opposite
    assert middle_norm2(slerp, 64, keep_below=180.0) == pytest.approx(64, rel=0.03)
