"""What can be run: the recipes by name, each whole, tiny and, where it shows something, small."""

from __future__ import annotations

from dataclasses import replace

from tutorial_lib.autoencoder import Stage
from tutorial_lib.denoiser import step_clock
from tutorial_lib.networks.unet import DDPM, IDDPM, UNetConfig
from tutorial_lib.recipes import (
    analytic_widths,
    classifier,
    diffusion,
    dit_ladder,
    few_steps,
    image_vae,
    walks,
)
from tutorial_lib.recipes.analytic_widths import AnalyticRun
from tutorial_lib.recipes.classifier import ClassifierRun
from tutorial_lib.recipes.diffusion_run import DiffusionRun
from tutorial_lib.recipes.dit_ladder import SHAPE, LadderRun
from tutorial_lib.recipes.few_steps import FewStepsRun
from tutorial_lib.recipes.image_vae import ImageVAERun
from tutorial_lib.recipes.record import Recipe
from tutorial_lib.recipes.shape_catalogue import SHAPES
from tutorial_lib.recipes.walks import WalksRun
from tutorial_lib.schedule import DiscreteVP

FLAT = (Stage((128, 256), 32, 3),)
LADDER = (Stage((128,), 16, 3), Stage((256,), 32, 3), Stage((256,), 64, 3))
SMALL = {
    "steps": 1500,
    "batch_size": 8,
    "learning_rate": 8e-3,
    "images": 2000,
    "test_images": 500,
    "device": "cpu",
}
TINY = {"steps": 20, "batch_size": 16, "images": 64, "test_images": 32, "device": "cpu"}
TINY_TRUNK = UNetConfig(channels=8, multipliers=(1, 2), depth=1, attention=(), clock_scale=250.0)

# 7.3 M weights: 14.6 MB in bfloat16, 9.8 MB packed. Its null label is the unconditional model.
COURSE_NETWORK = UNetConfig(
    channels=64,
    multipliers=(1, 2, 2),
    attention=(16, 8),
    head_width=64,
    out_channels=6,
    adaptive_norm=True,
    n_classes=10,
    clock_scale=250.0,
)
TINY_NETWORK = replace(
    COURSE_NETWORK, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=None
)
# As many multiply-adds as the course network, within 3 % (`multiply_adds`).
COURSE_DIT = replace(SHAPE, width=256, depth=7, heads=4)
TINY_DIT = replace(SHAPE, width=64, depth=1, heads=2, patch=4)
TINY_CHAIN = {"n_steps": 10, "sample_steps": 5, "samples": 20, "bound_images": 8}
TINY_CHAIN |= {"flow_images": 4, "flow_steps": 3, "curve_samples": 10, "curve_images": 4}

TINY_WALKS = {"images": 64, "device": "cpu", "samples": 20, "steps": 3, "pictured": 4}

COURSE = DiffusionRun(
    network=COURSE_NETWORK,
    predicts="v",  # an error in eps is 20,000 times as large in x_0 where the chain ends
    steps=28_000,
    batch_size=512,
    learning_rate=1e-3,
    bound_images=2000,
    graph=True,
)
TINY_COURSE = DiffusionRun(network=TINY_NETWORK, predicts="v", **TINY, **TINY_CHAIN)


def _short(about: str, out_channels: int = 6, loss: str = "hybrid") -> Recipe:
    """Return a recipe that trains the course network for a short while, by another objective."""
    tiny, whole = (replace(n, out_channels=out_channels) for n in (TINY_NETWORK, COURSE_NETWORK))
    measured = {"samples": 4000, "bound_images": 1000, "curve_samples": 2000, "curve_images": 250}
    return Recipe(
        f"The course network for a short while: {about}",
        "Nichol & Dhariwal 2021, section 3",
        "7 minutes and 7 GB on an H200, and 4 to measure it",
        "the paper, of other networks: L_vlb better in bits/dim, L_hybrid in FID",
        diffusion.run_diffusion,
        diffusion.headline,
        replace(COURSE, network=whole, loss=loss, steps=7000, **measured),
        None,
        replace(TINY_COURSE, network=tiny, loss=loss),
    )


def _solvers(
    grids: tuple[str, ...],
    numbers: tuple[float, ...],
    minutes: int,
    start: float = 0.9946,
    pictured: int = 3,
) -> Recipe:
    """Return a recipe that walks the course network by every solver on some grids of times.

    The authors' code, too, starts from t = .9946 on a cosine schedule.
    """
    named = {"model": COURSE, "ways": walks.solver_ways, "numbers": numbers, "samples": 5000}
    where = f"{' and '.join(grids)} times from {start:g}"
    return Recipe(
        f"The course network by every solver in few evaluations, {where}, free and guided",
        "Lu et al. 2022, DPM-Solver and DPM-Solver++",
        f"{minutes} minutes on an H200",
        "the paper, of another network: FID 4.70 in 10 evaluations, 2.87 in 20",
        walks.run_walks,
        walks.solvers_headline,
        WalksRun(**named, grids=grids, start=start, pictured=pictured),
        None,
        WalksRun(
            **{"model": TINY_COURSE, "ways": walks.solver_ways, "grids": grids},
            **{"numbers": (3, 4), "fine": 20, "start": start},
            **TINY_WALKS,
        ),
    )


RECIPES = {
    "cifar10_vae": Recipe(
        "VAE with one level of 8x8x32 latents on CIFAR-10, discretised-logistic pixels",
        "Kingma & Welling 2014",
        "2 minutes and 2 GB on an H200",
        "4.17 bits/dim",
        image_vae.run_image_vae,
        image_vae.headline,
        ImageVAERun(stages=FLAT),
        ImageVAERun(stages=(Stage((16, 32), 32, 1),), **SMALL),
        ImageVAERun(stages=(Stage((8, 16), 8, 1),), **TINY),
    ),
    "cifar10_hvae": Recipe(
        "Markovian hierarchical VAE with three levels, 16x16x16, 8x8x32 and 4x4x64",
        "Luo 2022, section 'Hierarchical VAE'",
        "3 minutes and 2.3 GB on an H200",
        "3.94 bits/dim",
        image_vae.run_image_vae,
        image_vae.headline,
        ImageVAERun(stages=LADDER),
        ImageVAERun(
            stages=(Stage((16,), 8, 1), Stage((32,), 16, 1), Stage((32,), 32, 1)), **SMALL
        ),
        ImageVAERun(stages=(Stage((8,), 4, 1), Stage((8,), 8, 1), Stage((8,), 8, 1)), **TINY),
    ),
    "cifar10_classifier": Recipe(
        "Classifier of clean CIFAR-10 images, whose features judge samples (FD-classifier)",
        "Dhariwal & Nichol 2021, section 4, for its form",
        "4 minutes and 1.1 GB on an H200",
        "90 % of clean test images",
        classifier.run_classifier,
        classifier.headline,
        ClassifierRun(graph=True),
        None,
        ClassifierRun(network=TINY_TRUNK, **TINY),
    ),
    "cifar10_noisy_classifier": Recipe(
        "The same, trained on x_t at every t of the cosine chain, for classifier guidance",
        "Dhariwal & Nichol 2021, section 4",
        "4 minutes and 1.1 GB on an H200",
        "85 % of clean test images, 67 % at t = 0.5",
        classifier.run_classifier,
        classifier.headline,
        ClassifierRun(noisy=True, graph=True),
        None,
        ClassifierRun(network=TINY_TRUNK, noisy=True, **TINY),
    ),
    "cifar10_ddpm": Recipe(
        "DDPM as published: 35.7 M weights, linear schedule, L_simple",
        "Ho, Jain & Abbeel 2020",
        "14 minutes and 14 GB on an H200, and 6 to measure it",
        "the paper: FID 3.17, at most 3.75 bits/dim after 800,000 steps of 128 images",
        diffusion.run_diffusion,
        diffusion.headline,
        DiffusionRun(
            network=DDPM,
            chain=DiscreteVP.linear,
            clock=step_clock,
            steps=10_500,
            batch_size=512,
            learning_rate=4e-4,
            sample_steps=1000,
            samples=4000,
            curve_images=250,
            curve_samples=2000,
            graph=True,
        ),
        None,
        DiffusionRun(
            network=replace(TINY_NETWORK, out_channels=3, n_classes=0),
            chain=DiscreteVP.linear,
            **TINY,
            **TINY_CHAIN,
        ),
    ),
    "cifar10_iddpm": Recipe(
        "IDDPM as published: 52.5 M weights, cosine schedule, learned variance, L_hybrid",
        "Nichol & Dhariwal 2021",
        "about 5 hours on an H200 (an estimate)",
        "the paper: FID 3.19, 3.17 bits/dim after 500,000 steps of 128 images",
        diffusion.run_diffusion,
        diffusion.headline,
        DiffusionRun(
            network=IDDPM,
            clock=step_clock,
            n_steps=4000,
            steps=500_000,
            batch_size=128,
            learning_rate=1e-4,
            ema_decay=0.9999,
            sample_steps=4000,
            graph=True,
        ),
        None,
        DiffusionRun(network=replace(TINY_NETWORK, n_classes=0), **TINY, **TINY_CHAIN),
    ),
    "cifar10_course": Recipe(
        "The course network: class-conditional with a null label, learned variance, cosine chain",
        "Nichol & Dhariwal 2021; Ho & Salimans 2022",
        "16 minutes and 7 GB on an H200, and 5 to measure it",
        "2.50 bits/dim",
        diffusion.run_diffusion,
        diffusion.headline,
        COURSE,
        None,
        TINY_COURSE,
    ),
    "cifar10_short_hybrid": _short("L_hybrid"),
    "cifar10_short_vlb": _short("L_vlb alone", loss="vlb"),
    "cifar10_short_vlb_importance": _short(
        "L_vlb alone, with steps drawn by importance", loss="vlb_importance"
    ),
    "cifar10_short_simple": _short("L_simple, no variance head", out_channels=3),
    "cifar10_short_dit": replace(
        _short("L_hybrid"),
        about="A diffusion transformer, trained as long and at the same cost as the short runs",
        paper="Peebles & Xie 2023",
        expected="no paper compares the two at this size",
        full=replace(_short("L_hybrid").full, network=COURSE_DIT),
        tiny=replace(_short("L_hybrid").tiny, network=TINY_DIT),
    ),
    "cifar10_dit_ladder": Recipe(
        "Diffusion transformers of nine sizes, and of four conditionings by three seeds",
        "Peebles & Xie 2023, sections 5 and 5.1",
        "12 minutes on an H200",
        "the paper, of latents of ImageNet: adaLN-Zero is best, more Gflops are better",
        dit_ladder.run_ladder,
        dit_ladder.headline,
        LadderRun(steps=4000, batch_size=512, learning_rate=1e-3, graph=True),
        None,
        LadderRun(
            **{"sizes": ((16, 1, 1), (32, 1, 2)), "patches": (8,), "compared": (16, 1, 1)},
            **{"seeds": (0,), "compared_patch": 8, "learning_rate": 1e-3, **TINY, "steps": 3},
        ),
    ),
    "cifar10_few_steps": Recipe(
        "The course network, without labels, in 10 to 1000 steps of every width; codes and back",
        "Song, Meng & Ermon 2021, tables 1 and 2",
        "9 minutes on an H200",
        "the paper, of DDPM's network: FID 13.36 in 10 steps, 4.04 in 1000, at eta = 0",
        few_steps.run_few_steps,
        few_steps.headline,
        FewStepsRun(model=COURSE),
        None,
        FewStepsRun(
            model=TINY_COURSE,
            **{"images": 64, "test_images": 32, "device": "cpu", "samples": 20, "decoded": 8},
            **{"counts": (2, 4), "round_trips": (4, 8), "pictured": 4},
        ),
    ),
    "cifar10_analytic": Recipe(
        "The course network's steps with the variances that it knows itself, and with others",
        "Analytic-DPM, Bao et al. 2022, tables 1 and 2",
        "7 minutes on an H200",
        "the paper, of another network: 5.47 bits/dim in 10 steps, 6.99 with beta",
        analytic_widths.run_analytic,
        analytic_widths.headline,
        AnalyticRun(model=COURSE, steps=3000, batch_size=500, learning_rate=1e-3),
        None,
        AnalyticRun(
            model=TINY_COURSE,
            learning_rate=1e-3,
            **TINY,
            **{"counts": (2, 4), "drawn": (2,), "samples": 8, "bound_images": 4},
            **{"curve_images": 8, "channels": 8, "pictured": 4},
        ),
    ),
    "cifar10_solvers": _solvers(("log-SNR",), (5, 6, 10, 15, 20, 50), minutes=7, pictured=6),
    "cifar10_solvers_grids": _solvers(("uniform", "quadratic"), (5, 10, 20), minutes=7),
    "cifar10_solvers_from_1": _solvers(("log-SNR", "uniform"), (10,), minutes=4, start=1.0),
    "cifar10_classifier_guidance": Recipe(
        "The course network guided by the noise-aware classifier, at scales from 0 to 8",
        "Dhariwal & Nichol 2021, section 4",
        "6 minutes on an H200",
        "the paper, on ImageNet: precision rises and recall falls with the scale",
        walks.run_walks,
        walks.headline,
        WalksRun(
            **{"model": COURSE, "ways": walks.classifier_ways, "samples": 5000},
            numbers=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
        ),
        None,
        WalksRun(model=TINY_COURSE, ways=walks.classifier_ways, numbers=(0, 1), **TINY_WALKS),
    ),
    "cifar10_clean_guidance": Recipe(
        "The course network guided by a classifier that has never seen noise",
        "Dhariwal & Nichol 2021, section 4, left out: training on noised images",
        "2 minutes on an H200",
        "none in the paper; the classifier must have seen noise",
        walks.run_walks,
        walks.headline,
        WalksRun(
            **{"model": COURSE, "ways": walks.clean_ways, "samples": 5000},
            numbers=(0.5, 1.0, 2.0, 4.0, 8.0),
        ),
        None,
        WalksRun(model=TINY_COURSE, ways=walks.clean_ways, numbers=(0, 1), **TINY_WALKS),
    ),
    "cifar10_classifier_free": Recipe(
        "The course network with classifier-free guidance, w from 0 to 6, always or at times",
        "Ho & Salimans 2022; Kynkaanniemi et al. 2024",
        "7 minutes on an H200",
        "the paper, on ImageNet: FID least at w = .1 to .3, IS highest at 4",
        walks.run_walks,
        walks.headline,
        WalksRun(
            **{"model": COURSE, "ways": walks.free_ways, "samples": 5000},
            numbers=(0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0),
        ),
        None,
        WalksRun(model=TINY_COURSE, ways=walks.free_ways, numbers=(0, 1), **TINY_WALKS),
    ),
    **SHAPES,
}
