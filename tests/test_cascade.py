"""Cascades: exact enlargement and noise, exact joint laws, and tiny runs. Takes 20 seconds."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image
from truths import generator, normal, standard_errors

from tutorial_lib import lora, pretrained
from tutorial_lib.cascade import SuperResolver, augmented, enlarged, reduced
from tutorial_lib.denoiser import Condition, NetworkDenoiser, Prediction, log_snr_clock
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.networks.unet import UNet
from tutorial_lib.recipes import cascade
from tutorial_lib.samplers import final
from tutorial_lib.schedule import CosineVP, LinearVP, log_snr_times
from tutorial_lib.shape_world import draw_scenes, render

SCHEDULE = CosineVP()


def ramps(side):
    """Colours that rise with x, with y, and by halves with both, on [-1, 1]."""
    axis = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 / side) - 1
    x, y = axis.expand(side, side), axis[:, None].expand(side, side)
    return torch.stack([x, y, (x - y) / 2])[None]


@pytest.mark.parametrize(("low", "high"), [(4, 8), (4, 16), (16, 32)])
def test_a_ramp_is_reduced_to_a_ramp_and_enlarged_to_one_inside(low, high):
    assert (reduced(ramps(high), low) - ramps(low)).abs().max() < 1e-14
    rim = high // low // 2  # outside the outermost centres nothing changes
    inside = (..., slice(rim, high - rim), slice(rim, high - rim))
    error = enlarged(ramps(low), high) - ramps(high)
    assert error[inside].abs().max() < 1e-14
    assert error.abs().max() == pytest.approx((high / low - 1) / high, abs=1e-12)


def test_one_colour_stays():
    x = torch.full((2, 3, 8, 8), 0.3, dtype=torch.float64)
    assert (enlarged(x, 32) - 0.3).abs().max() < 1e-15
    assert (reduced(x, 2) - 0.3).abs().max() < 1e-15


def test_each_small_pixel_is_the_mean_of_its_square():
    x = normal(5, 3, 12, 12)
    assert (
        reduced(x, 4) - x.unflatten(3, (4, 3)).unflatten(2, (4, 3)).mean((3, 5))
    ).abs().max() < 1e-14
    with pytest.raises(ValueError, match="5 does not divide 12"):
        reduced(x, 5)


@pytest.mark.parametrize("schedule", [SCHEDULE, LinearVP()], ids=["cosine", "linear"])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("rows", ["one level", "a level each"])
def test_small_pictures_are_noised_as_the_schedule_says(schedule, level, rows):
    low = normal(3, 2, 2)
    s = level if rows == "one level" else torch.full((40_000,), level, dtype=torch.float64)
    cond = augmented(low.expand(40_000, -1, -1, -1), schedule, s, generator=generator(7))
    alpha, sigma = schedule.alpha(level), schedule.sigma(level)
    if level == 0:
        assert torch.equal(cond.low_res, low.expand(40_000, -1, -1, -1))
    else:
        noise = ((cond.low_res - alpha * low) / sigma).flatten(1)
        assert standard_errors(noise, 0.0) < 6
        eye = torch.eye(12, dtype=torch.float64)
        assert standard_errors(noise[:, :, None] * noise[:, None], eye) < 6
    assert torch.equal(cond.aug_level, log_snr_clock(schedule, level).expand(40_000))


def test_each_row_has_the_level_that_is_its_own():
    s = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    low = torch.full((3, 1, 100, 100), 5.0, dtype=torch.float64)
    cond = augmented(low, SCHEDULE, s, generator=generator(8), clock=lambda _, t: 1000 * t)
    assert torch.equal(cond.aug_level, 1000 * s)
    alpha, sigma = SCHEDULE.alpha(s), SCHEDULE.sigma(s)
    assert (cond.low_res.mean((1, 2, 3)) - 5 * alpha).abs().max() < 6 / 100
    assert (cond.low_res.std((1, 2, 3)) - sigma).abs().max() < 6 / 100 / 2**0.5


# A Gaussian picture, 4 x 4, whose small one is 2 x 2: all laws are Gaussian

POOL = reduced(torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4), 2).flatten(1).T
MEAN = normal(16, seed=1) / 2
_FACTOR = normal(16, 16, seed=2) / 4
COVARIANCE = _FACTOR @ _FACTOR.T + 0.05 * torch.eye(16, dtype=torch.float64)


class Toy:
    """Be E[x_0 | x_t], or E[x_0 | x_t, low_s], of the Gaussian with this mean and covariance.

    It reads alpha and sigma of low_s from the clock that it is told, and from nothing else.
    """

    def __init__(self, mean, covariance):
        self.schedule, self.mean, self.covariance = SCHEDULE, mean, covariance

    def __call__(self, xt, t, cond=None):
        level, n = SCHEDULE.at(t, like=xt), len(self.mean)
        seen = level.alpha.reshape(-1, 1, 1) * torch.eye(n, dtype=torch.float64)  # (1 or B, n, n)
        noise, sees = (level.sigma.reshape(-1, 1) ** 2).expand(-1, n), xt.flatten(1)
        if cond is not None:
            told = cond.aug_level
            told = told[:1] if bool((told == told[0]).all()) else told
            power = torch.sigmoid(10 * told)[:, None]  # alpha^2: the clock is lambda / 5
            rows = max(len(seen), len(power))
            low = (power.sqrt()[..., None] * POOL).expand(rows, -1, -1)
            seen = torch.cat([seen.expand(rows, -1, -1), low], 1)
            noise = torch.cat([noise.expand(rows, -1), (1 - power).expand(rows, len(POOL))], 1)
            sees = torch.cat([sees, cond.low_res.flatten(1)], 1)
        together = seen @ self.covariance @ seen.mT + torch.diag_embed(noise)
        gain = torch.linalg.solve(together, seen @ self.covariance).mT
        x0 = self.mean + (gain @ (sees - seen @ self.mean)[..., None])[..., 0]
        return Prediction.from_x0(xt, level, x0.reshape(xt.shape))


BASE, UPSCALER = Toy(POOL @ MEAN, POOL @ COVARIANCE @ POOL.T), Toy(MEAN, COVARIANCE)


def pictures(n, g):
    noise = torch.randn(n, 16, generator=g, dtype=torch.float64)
    return (MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T).reshape(n, 1, 4, 4)


def bias(told=lambda cond: cond):
    """How far the errors of E[x_0 | x_t, low_s] are from being unrelated to what it sees.

    All s at once, as in training: errors of the best guess have mean 0 whatever was seen, so that
    no function of x_t, low_s and s could mend them.
    """
    g = generator(11)
    x = pictures(20_000, g)
    t, s = torch.rand(2, len(x), generator=g, dtype=torch.float64)
    cond = augmented(reduced(x, 2), SCHEDULE, s, generator=g)
    t = 0.05 + 0.9 * t
    xt = SCHEDULE.add_noise(x, torch.randn(x.shape, generator=g, dtype=torch.float64), t)
    errors = (x - UPSCALER(xt, t, told(cond)).x0).flatten(1)
    one = torch.ones(len(x), 1, dtype=torch.float64)
    sees = torch.cat([one, s[:, None], xt.flatten(1), cond.low_res.flatten(1)], 1)
    sees = torch.cat([sees, s[:, None] * sees], 1)
    return standard_errors(errors[:, :, None] * sees[:, None], 0.0)


def test_training_on_noised_small_pictures_is_training_on_every_level_s_law():
    assert bias() < 6
    assert bias(lambda cond: replace(cond, aug_level=torch.full_like(cond.aug_level, 1.0))) > 20
    assert bias(lambda cond: replace(cond, aug_level=-cond.aug_level)) > 20


def drawn(level, spoil=lambda cond: cond, n=20_000):
    """Draw small pictures, and large ones given them noised: (n, 16), (n, 4)."""
    g, times = generator(12), log_snr_times(SCHEDULE, 40, 1e-4)
    noise = [torch.randn(n, 1, k, k, generator=g, dtype=torch.float64) for k in (2, 4)]
    small = final(dpm_solver_pp_2m(BASE, noise[0], times))
    told = augmented(small, SCHEDULE, level, generator=g)
    large = final(dpm_solver_pp_2m(UPSCALER, noise[1], times, spoil(told)))
    return large.flatten(1), told.low_res.flatten(1)


def unlikeness(level, **how):
    """Distance in standard errors of the mean and covariance of (x, low_s) from their law."""
    alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
    seen = torch.cat([torch.eye(16, dtype=torch.float64), alpha * POOL])
    noise = torch.cat([torch.zeros(16), sigma**2 * torch.ones(4)]).double()
    gaps = torch.cat(drawn(level, **how), 1) - seen @ MEAN
    law = seen @ COVARIANCE @ seen.T + torch.diag(noise)
    return max(standard_errors(gaps, 0.0), standard_errors(gaps[:, :, None] * gaps[:, None], law))


@pytest.mark.parametrize("level", [0.0, 0.2, 0.6])
def test_a_cascade_of_exact_stages_has_the_joint_law(level):
    assert unlikeness(level) < 6


def test_a_cascade_that_tells_another_level_has_not():
    other = log_snr_clock(SCHEDULE, 0.1)
    assert unlikeness(0.6, spoil=lambda cond: replace(cond, aug_level=other[None])) > 20
    assert unlikeness(0.2, spoil=lambda cond: replace(cond, low_res=2 * cond.low_res)) > 20


class Echo(torch.nn.Module):
    """Answer with what was said."""

    def forward(self, xt, clock, cond):
        said = clock + 10 * cond.aug_level
        return torch.cat([xt, said[:, None, None, None].expand(-1, 1, *xt.shape[2:])], 1)


class LowFirst(SuperResolver):
    def forward(self, xt, clock, cond):
        return self.net(torch.cat([enlarged(cond.low_res, 8), xt], 1), clock, cond)


class Silent(SuperResolver):
    def forward(self, xt, clock, cond):
        return super().forward(xt, clock, replace(cond, aug_level=0 * cond.aug_level))


def passes(kind):
    xt, low, clock, told = normal(2, 3, 8, 8), normal(2, 3, 4, 4, seed=1), normal(2), normal(2) + 1
    heard = kind(Echo())(xt, clock, Condition(low_res=low, aug_level=told))
    said = (clock + 10 * told)[:, None, None, None].expand(-1, 1, 8, 8)
    return torch.equal(heard, torch.cat([xt, enlarged(low, 8), said], 1))


def test_a_super_resolver_tells_its_network_everything():
    assert passes(SuperResolver)
    assert not passes(LowFirst) and not passes(Silent)


def test_a_u_net_hears_the_small_picture_and_its_noise():
    net = SuperResolver(UNet(cascade.SUPER_NETWORK, generator=generator(0)))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator(1)))
    model = NetworkDenoiser(net, SCHEDULE, "v")
    x, low = normal(1, 3, 32, 32).float(), normal(1, 3, 16, 16).float()
    cond = augmented(low, SCHEDULE, 0.2, generator=generator(2))
    asked = model(x, 0.5, cond).v
    for other in ({"low_res": cond.low_res.flip(2)}, {"aug_level": cond.aug_level - 0.1}):
        assert (model(x, 0.5, replace(cond, **other)).v - asked).abs().max() > 1e-3


TINY = cascade.CASCADE["shapes_super_resolution"].tiny


def ran(name, out, **changed):
    out.mkdir(exist_ok=True)
    recipe = cascade.CASCADE[name]
    found = recipe.run(name, replace(recipe.tiny, **changed), out)
    assert json.loads((out / "metrics.json").read_text()) == found
    return found, recipe.headline(found)


def test_the_recipes_leave_a_cascade_and_its_record(tmp_path):
    """A small base, then a super-resolver that is also tried on what the base draws."""
    found, said = ran("shapes_small", tmp_path / "small")
    assert [row["w"] for row in found["table"]] == [0.0] and "drawn right" in said
    assert Image.open(tmp_path / "small" / "samples.jpg").size == (16 * 32, 32)
    kept = safetensors.torch.load_file(tmp_path / "small" / "weights.safetensors")
    net = pretrained.from_base(cascade.SMALL_NETWORK)
    assert kept.keys() == lora.trained(net).keys() and "net.last.2.weight" in kept
    assert found["parameters"] == sum(x.numel() for x in kept.values()) < 400_000

    found, said = ran("shapes_super_resolution", tmp_path / "large", levels=(0.0, 0.2))
    assert {row["level"] for row in found["table"]} == {None, 0.0, 0.2}
    assert len(found["table"]) == 3 * 8 and "bilinear" in said
    assert [(row["level"], row["w"]) for row in found["cascade"]] == [(None, 0), (0, 0), (0.2, 0)]
    assert Image.open(tmp_path / "large" / "samples.jpg").size == (16 * 32, 7 * 32)
    assert (tmp_path / "large" / "weights.safetensors").stat().st_size < 700_000


def test_the_plain_recipe_trains_on_clean_small_pictures(tmp_path):
    found, _ = ran("shapes_super_resolution_plain", tmp_path)
    assert {row["level"] for row in found["table"]} == {None, 0.0}
    plain = cascade.CASCADE["shapes_super_resolution_plain"].tiny
    assert heard(plain) == 0
    assert heard(TINY) == pytest.approx(0.3 / 3, abs=6 * 0.3 * (4 / 45) ** 0.5 / 50)  # of u^2


def heard(config):
    """The mean of the levels that the network is told in training, as times."""
    told = []

    class Listening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, xt, clock, cond):
            told.append(cond)
            return self.one * xt

    pixels = torch.randint(256, (2500, 3, 32, 32), generator=generator(3), dtype=torch.uint8)
    assert cascade.objective(config)(Listening(), pixels, generator(4)).shape == (2500,)
    assert told[0].low_res.shape == (2500, 3, 16, 16)
    return float(SCHEDULE.time_of(5 * told[0].aug_level.double()).mean().round(decimals=2))


def test_faults_are_as_strong_as_they_are_called():
    g = generator(5)
    small = reduced(render(draw_scenes(64, generator=g)), 16)
    faults = {fault: x - small for fault, x in cascade.spoilt(small, g).items()}
    assert not faults["none"].any()
    for size in (0.05, 0.1, 0.2, 0.4):
        assert float(faults[f"noise {size:g}"].std()) == pytest.approx(size, rel=0.03)
    sizes = {fault: float(x.std()) for fault, x in faults.items()}
    assert 0.002 < sizes["JPEG 75"] < sizes["JPEG 25"] < 0.1 and sizes["blur"] > 0.02
    flat = torch.full((1, 3, 16, 16), 0.25)
    assert (cascade.spoilt(flat, g)["blur"] - flat).abs().max() < 1e-6


def test_a_small_picture_holds_what_is_to_be_read():
    """The oracle reads most of them as they are: that is the floor for super-resolution."""
    trial = cascade.Trial(replace(TINY, tested=300))
    trial.small = {fault: trial.small[fault] for fault in ("none", "noise 0.2")}
    clean, noisy = trial.rows(cascade.bilinear)
    assert 0.72 < clean["right"] < 0.95 and clean["psnr"] == pytest.approx(32.8, abs=0.7)
    assert noisy["right"] < 0.25
    assert trial.rows(lambda small: trial.truth)[0]["right"] > 0.98
