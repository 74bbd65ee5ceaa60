"""Hold every cell of the notation page against the library.

Each paper's symbols are computed here from that paper's own definitions, in plain float64 and
without the library. A small reader of LaTeX then evaluates the page's formulas as they stand.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tutorial_lib.denoiser import Prediction
from tutorial_lib.schedule import DiscreteVP, LinearVP

PAGE = Path(__file__).parents[1] / "notebooks" / "notation.md"
DRAWS = np.random.default_rng(0)
X0, EPS, EPS_NET, EPS_C, EPS_U = DRAWS.normal(size=(5, 4))
NOTHING = "–"


class Latex:
    """Evaluate a formula whose symbols have known values: + - / ^, roots, fractions, log."""

    def __init__(self, formula, values):
        self.values = {squeezed(name): value for name, value in values.items()}
        self.longest_first = sorted(self.values, key=len, reverse=True)
        self.left = squeezed(formula)

    def value(self):
        value = self.sum()
        if self.left:
            raise ValueError(f"cannot read {self.left!r}: no such symbol in this paper")
        return value

    def take(self, text):
        found = self.left.startswith(text)
        self.left = self.left[len(text) :] if found else self.left
        return found

    def sum(self):
        value = -self.product() if self.take("-") else self.product()
        while self.left[:1] in ("+", "-") and self.left:
            value = value + self.product() if self.take("+") else self.minus(value)
        return value

    def minus(self, value):
        self.take("-")
        return value - self.product()

    def product(self):
        value = self.power()
        while self.left and self.left[0] not in "+-)}":
            value = value / self.power() if self.take("/") else value * self.power()
        return value

    def power(self):
        base = self.atom()
        if not self.take("^"):
            return base
        return base ** (self.group() if self.left.startswith("{") else self.atom())

    def group(self, opening="{", closing="}"):
        if not self.take(opening):
            return self.digit()
        value = self.sum()
        if not self.take(closing):
            raise ValueError(f"{closing} expected at {self.left!r}")
        return value

    def digit(self):
        digit, self.left = self.left[:1], self.left[1:]
        return float(digit)

    def atom(self):
        for name in self.longest_first:
            if self.take(name):
                return self.values[name]
        if self.take(r"\sqrt"):
            return np.sqrt(self.group())
        if self.take(r"\tfrac") or self.take(r"\frac"):
            return self.group() / self.group()
        if self.take(r"\log"):
            return np.log(self.power())
        if self.left.startswith("("):
            return self.group("(", ")")
        if self.take("e"):
            return math.e
        return self.digit()


def squeezed(formula):
    return re.sub(r"\\,|\s+", "", formula)


def discrete(T=1000, n=437):
    """Give step n of DDPM's linear schedule in the letters of the papers that count steps."""
    betas = np.linspace(1e-4, 0.02, T)
    product = np.cumprod(1 - betas)
    beta, bar, bar_before = betas[n - 1], product[n - 1], product[n - 2]
    xt = math.sqrt(bar) * X0 + math.sqrt(1 - bar) * EPS
    clean = (xt - math.sqrt(1 - bar) * EPS_NET) / math.sqrt(bar)
    score = -EPS_NET / math.sqrt(1 - bar)
    # DDPM, eq. 7, which Luo (eq. 84-85) and Analytic-DPM share
    variance = (1 - bar_before) / (1 - bar) * beta
    mean = math.sqrt(bar_before) * beta / (1 - bar) * X0
    mean = mean + math.sqrt(1 - beta) * (1 - bar_before) / (1 - bar) * xt
    factors = {r"\alpha_t": 1 - beta, r"\bar\alpha_t": bar, "x_0": X0, "x_t": xt}
    steps = {"t": float(n), "T": float(T)}
    course = {
        **factors,
        "t": n / T,
        r"\varepsilon": EPS,
        "a_t": math.sqrt(bar),
        "s_t": math.sqrt(1 - bar),
        r"\lambda_t": 0.5 * math.log(bar / (1 - bar)),
        r"\beta_t": beta,
        r"\tilde\beta_t": variance,
        r"\tilde\mu_t(x_t, x_0)": mean,
        r"\varepsilon_\theta": EPS_NET,
        r"\hat x_0": clean,
    }
    luo = {
        **factors,
        **steps,
        r"\varepsilon_0": EPS,
        r"\mathrm{SNR}(t)": bar / (1 - bar),
        r"\omega_\eta(t)": -math.log(bar / (1 - bar)),  # eq. 111
        r"\sigma_q^2(t)": variance,
        r"\mu_q(x_t, x_0)": mean,
        r"\hat\varepsilon_\theta(x_t, t)": EPS_NET,
        r"\hat x_\theta(x_t, t)": clean,
        r"s_\theta(x_t, t)": score,
    }
    ddpm = {
        **{name: value for name, value in course.items() if name not in ("a_t", "s_t")},
        **steps,
        r"\varepsilon_\theta(x_t, t)": EPS_NET,
    }
    ratio = bar / bar_before
    ddim = {
        **steps,
        "x_0": X0,
        r"\varepsilon": EPS,
        "x_t": xt,
        r"\alpha_t": bar,  # section 2: q(x_t | x_0) = N(sqrt(alpha_t) x_0, (1 - alpha_t) I)
        r"\alpha_{t-1}": bar_before,
        r"\sigma(t)": math.sqrt((1 - bar) / bar),  # section 4.3
        # eq. 16 at eta = 1
        r"\sigma_t(1)": math.sqrt((1 - bar_before) / (1 - bar)) * math.sqrt(1 - ratio),
        r"\varepsilon_\theta^{(t)}(x_t)": EPS_NET,
        r"f_\theta^{(t)}(x_t)": clean,  # eq. 9
    }
    analytic = {
        "n": float(n),
        "N": float(T),
        "x_0": X0,
        r"\varepsilon": EPS,
        "x_n": xt,
        r"\alpha_n": 1 - beta,
        r"\beta_n": beta,
        r"\bar\alpha_n": bar,
        r"\bar\beta_n": 1 - bar,
        r"\tilde\beta_n": variance,
        r"\tilde\mu_n(x_n, x_0)": mean,
        "s_n(x_n)": score,
    }
    schedule = DiscreteVP.linear(T)
    papers = {"Luo": luo, "DDPM, IDDPM": ddpm, "DDIM": ddim, "Analytic-DPM": analytic}
    return library(schedule, (n - 1) / T, n / T), {"Course": course, **papers}


def continuous(t=0.437, s=0.31):
    """Give time t of Score SDE's linear VP in the letters of the continuous-time papers."""
    beta = 0.1 + 19.9 * t
    integral, before = (0.1 * u + 9.95 * u * u for u in (t, s))
    signal, noise = math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))
    signal_s, noise_s = math.exp(-before / 2), math.sqrt(1 - math.exp(-before))
    xt = signal * X0 + noise * EPS
    clean = (xt - noise * EPS_NET) / signal
    log_snr, log_snr_s = 2 * math.log(signal / noise), 2 * math.log(signal_s / noise_s)
    step = noise**2 - (signal / signal_s) ** 2 * noise_s**2
    levels = {r"\alpha_t": signal, r"\sigma_t": noise, r"\varepsilon": EPS}
    course = {
        "x_0": X0,
        r"\varepsilon": EPS,
        "x_t": xt,
        "a_t": signal,
        "s_t": noise,
        "a_s": signal_s,
        "s_s": noise_s,
        r"\lambda_t": log_snr / 2,
        "f(t)": -beta / 2,
        "g(t)": math.sqrt(beta),
        r"\varepsilon_\theta": EPS_NET,
        r"\hat x_0": clean,
    }
    vdm = {
        **levels,
        "x": X0,
        "z_t": xt,
        # eq. 3: sigma_t^2 = sigmoid(gamma)
        r"\gamma_\eta(t)": math.log(noise**2 / (1 - noise**2)),
        r"\alpha_{t \vert s}": signal / signal_s,  # appendix A
        r"\sigma_{t \vert s}": math.sqrt(step),
        r"\sigma_Q^2(s, t)": step * noise_s**2 / noise**2,
        r"\hat\varepsilon_\theta(z_t; t)": EPS_NET,
        r"\hat x_\theta(z_t; t)": clean,
    }
    sde = {
        "x(0)": X0,
        "z": EPS,
        "x(t)": xt,
        r"\int_0^t \beta(s)\,ds": integral,  # eq. 29
        r"\beta(t)": beta,
        r"s_\theta(x(t), t)": -EPS_NET / noise,
    }
    dpm_solver = {
        **levels,
        "x_0": X0,
        "x_t": xt,
        r"\lambda_t": math.log(signal / noise),
        "f(t)": -beta / 2,
        # eq. 4: g^2 = d sigma^2/dt - 2 (d log alpha/dt) sigma^2
        "g(t)": math.sqrt(beta * math.exp(-integral) + beta * noise**2),
        r"\varepsilon_\theta(x_t, t)": EPS_NET,
        r"x_\theta(x_t, t)": clean,
    }
    growth = math.exp(
        integral
    )  # table 1, VP column: sigma^2 = e^integral - 1, s = e^(-integral/2)
    edm = {
        "y": X0,
        "n": math.sqrt(growth - 1) * EPS,
        "s(t)": growth**-0.5,
        r"\dot s(t)": -beta / 2 * growth**-0.5,
        r"\sigma(t)": math.sqrt(growth - 1),
        r"\dot\sigma(t)": beta * growth / (2 * math.sqrt(growth - 1)),
        r"D(y + n; \sigma(t))": clean,
    }
    cfg = {
        "x": X0,
        r"\varepsilon": EPS,
        r"z_\lambda": xt,
        r"\lambda": log_snr,
        r"\alpha_\lambda": (1 + math.exp(-log_snr)) ** -0.5,  # section 2
        r"\sigma_\lambda": (1 + math.exp(log_snr)) ** -0.5,
        r"\alpha_{\lambda'}": (1 + math.exp(-log_snr_s)) ** -0.5,
        r"\sigma_{\lambda \vert \lambda'}": math.sqrt(-math.expm1(log_snr - log_snr_s)) * noise,
        r"\tilde\sigma_{\lambda' \vert \lambda}": math.sqrt(-math.expm1(log_snr - log_snr_s))
        * noise_s,
        r"\varepsilon_\theta(z_\lambda)": EPS_NET,
        r"x_\theta(z_\lambda)": clean,
    }
    papers = {"VDM": vdm, "Score SDE": sde, "DPM-Solver": dpm_solver, "EDM": edm, "CFG": cfg}
    return library(LinearVP(0.1, 20.0), s, t), {"Course": course, **papers}


def library(schedule, s, t):
    """Name what the page's code column may use."""
    x0, eps, eps_net = (torch.from_numpy(values)[None] for values in (X0, EPS, EPS_NET))
    xt = schedule.add_noise(x0, eps, t)
    prediction = Prediction.from_eps(xt, schedule.at(t, like=xt), eps_net)
    names = {"schedule": schedule, "s": s, "t": t, "x0": x0, "eps": eps, "xt": xt}
    return {**names, "prediction": prediction}


def table(heading):
    """Read the rows of the table under a heading as dicts from column to cell."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def assert_equal(formula, values, truth, where=""):
    """Hold every member of a chain a = b = c against the truth."""
    for member in formula.strip("$").split("="):
        value = Latex(member, values).value()
        np.testing.assert_allclose(value, truth, rtol=1e-9, err_msg=f"{where}: {formula}")


TABLES = {"Papers that count steps": discrete, "Papers with continuous time": continuous}


@pytest.mark.parametrize("heading", TABLES)
def test_every_cell_says_what_the_library_computes(heading):
    names, papers = TABLES[heading]()
    rows = table(heading)
    assert set(rows[0]) == {"Meaning", "Code", *papers}
    for row in rows:
        truth = np.squeeze(np.asarray(eval(row["Code"].strip("`"), names)))
        used = [paper for paper in papers if row[paper] != NOTHING]
        assert len(used) >= 2, f"nothing to compare in the row {row['Meaning']}"
        for paper in used:
            assert_equal(row[paper], papers[paper], truth, f"{row['Meaning']}, {paper}")


WRONG = {
    "DDIM's alpha is already the product": (discrete, "DDIM", "alpha(t)", r"\alpha_t"),
    "beta-bar is a variance": (discrete, "Analytic-DPM", "sigma(t)", r"\bar\beta_n"),
    "one factor is not the product": (discrete, "Luo", "alpha(t)", r"\sqrt{\alpha_t}"),
    "Luo's omega is minus log-SNR": (discrete, "Luo", "lambda_(t)", r"\tfrac12\omega_\eta(t)"),
    "VDM's gamma is minus log-SNR": (continuous, "VDM", "snr(t)", r"e^{\gamma_\eta(t)}"),
    "DPM-Solver's lambda is half": (continuous, "DPM-Solver", "snr(t)", r"e^{\lambda_t}"),
    "Ho and Salimans' lambda is whole": (continuous, "CFG", "lambda_(t)", r"\lambda"),
    "EDM's sigma is before scaling": (continuous, "EDM", "sigma(t)", r"\sigma(t)"),
    "the drift halves beta": (continuous, "Score SDE", "drift(t)", r"-\beta(t)"),
}


@pytest.mark.parametrize(("setting", "paper", "quantity", "formula"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_refused(setting, paper, quantity, formula):
    names, papers = setting()
    truth = eval(f"schedule.{quantity}", names).numpy()
    with pytest.raises(AssertionError):
        assert_equal(formula, papers[paper], truth)


def test_a_symbol_of_another_paper_is_refused():
    _, papers = discrete()
    with pytest.raises(ValueError):
        assert_equal(r"\sqrt{\bar\alpha_t}", papers["DDIM"], 1.0)


@pytest.mark.parametrize("row", table("Guidance scales"), ids=lambda row: row["Where"])
def test_guidance_scales_give_the_same_prediction(row):
    w, bar = 1.7, 0.3
    letter, in_ours = row["From our scale"].strip("$").split("=")
    # Bayes: grad log p(y | x) is the difference of the two scores
    classifier = -(EPS_C - EPS_U) / math.sqrt(1 - bar)
    values = {
        r"\varepsilon_c": EPS_C,
        r"\varepsilon_u": EPS_U,
        r"\bar\alpha_t": bar,
        r"\nabla_{x_t} \log p(y \mid x_t)": classifier,
        letter: Latex(in_ours, {"w": w}).value(),
    }
    assert_equal(row["Guided prediction"], values, (1 + w) * EPS_C - w * EPS_U)
    with pytest.raises(AssertionError):  # off by one, the commonest slip
        assert_equal(row["Guided prediction"], values, w * EPS_C + (1 - w) * EPS_U)
