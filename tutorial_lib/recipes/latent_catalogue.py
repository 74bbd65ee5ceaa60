"""The recipes of notebook 14 by name, whole and tiny."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tutorial_lib.first_stage import FirstStageConfig
from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.pretrained import BASE_NETWORK, STAGES, latent_network
from tutorial_lib.recipes import first_stages, latents
from tutorial_lib.recipes.first_stages import FirstStageRun
from tutorial_lib.recipes.latents import LatentRun
from tutorial_lib.recipes.record import Recipe

CODES = 512
WIDE = replace(STAGES[4], channels=8)


def _narrow(shape: FirstStageConfig) -> FirstStageConfig:
    return replace(shape, widths=(8,) * len(shape.widths))


def _stage(about: str, shape: FirstStageConfig, weight: float, **how: float) -> Recipe:
    """Return a recipe that trains a first stage."""
    return Recipe(
        f"The first stage of latent diffusion, f = {shape.factor}, {about}",
        "Rombach et al. 2022, section 3.1 and appendix G",
        "2 minutes on an H200",
        "the paper: f of 4 and 8 keep what is seen",
        first_stages.run_first_stage,
        first_stages.headline,
        FirstStageRun(
            **{"steps": 10_000, "batch_size": 256, "learning_rate": 1e-3, **how},
            stage=shape,
            weight=weight,
        ),
        None,
        FirstStageRun(
            **{"steps": 10, "batch_size": 8, "learning_rate": 1e-3, "images": 60, "tested": 30},
            **how,
            stage=_narrow(shape),
            weight=weight,
            device="cpu",
        ),
    )


def _latent(about: str, network: UNetConfig, **how: Any) -> Recipe:
    """Return a recipe that trains a text-to-image network, on latents if there is a stage."""
    tiny = replace(network, channels=8, depth=1, attention=(), head_width=None)
    little = how | ({"shape": _narrow(how["shape"])} if "shape" in how else {})
    return Recipe(
        f"The text-to-image network {about}",
        "Rombach et al. 2022, sections 3.2 and 4.1",
        "5 minutes on an H200",
        "the paper: f of 4 to 8 train fastest, and no worse than pixels",
        latents.run_latent,
        latents.headline,
        LatentRun(
            **{"network": network, "steps": 10_000, "batch_size": 512, "graph": True, **how},
            learning_rate=2e-3,
        ),
        None,
        LatentRun(
            **{"network": tiny, "steps": 5, "batch_size": 8, "images": 60, "captions": 4},
            **{"batch_timed": 4, "scales": (0.0,), **little},
            learning_rate=2e-3,
            device="cpu",
        ),
    )


def _inside(
    about: str, factor: int, stage: str, *, codes: int = 0, side: int = 32, **how: Any
) -> Recipe:
    """Return a recipe that trains on the latents that the recipe of a first stage leaves."""
    shape, how["side"] = replace(STAGES[factor], codes=codes), side
    network = latent_network(factor, side)
    return _latent(f"on latents, f = {factor}{about}", network, stage=stage, shape=shape, **how)


LATENTS = {
    **{
        f"shapes_kl_{f}": _stage("whose latents are nearly free", shape, 1e-6)
        for f, shape in STAGES.items()
    },
    **{
        f"shapes_kl_{f}_dear": _stage("whose latents cost what they tell", shape, 1e-2)
        for f, shape in STAGES.items()
    },
    **{
        f"shapes_kl_{f}_dearer": _stage("whose latents cost a hundred times that", shape, 1.0)
        for f, shape in STAGES.items()
    },
    "shapes_kl_4_wide": _stage("with twice the channels", WIDE, 1e-6),
    "shapes_vq_4": _stage("whose latents are codes", replace(STAGES[4], codes=CODES), 1.0),
    "shapes_kl_4_perceptual": _stage(
        "which must look right to CLIP, too", STAGES[4], 1e-6, perceptual=300.0
    ),
    "shapes_pixels": _latent("on pixels, one by one", replace(BASE_NETWORK, patch=1)),
    "shapes_pixels_scaled": _latent(
        "on pixels of size 1", replace(BASE_NETWORK, patch=1), stage="pixels"
    ),
    "shapes_patches": _latent("on pixels, four at a time", BASE_NETWORK),
    **{f"shapes_latent_{f}": _inside("", f, f"shapes_kl_{f}") for f in STAGES},
    "shapes_latent_4_unscaled": _inside(
        ", whose size is what it happens to be", 4, "shapes_kl_4", scaled=False
    ),
    "shapes_latent_4_shuffled": _inside(
        ", whose places were shuffled", 4, "shapes_kl_4", shuffled=True
    ),
    "shapes_latent_4_wide": _latent(
        "on latents, f = 4, of twice the channels",
        replace(latent_network(4), in_channels=WIDE.channels, out_channels=WIDE.channels),
        stage="shapes_kl_4_wide",
        shape=WIDE,
    ),
    "shapes_latent_4_dear": _inside(", that cost what they tell", 4, "shapes_kl_4_dear"),
    "shapes_latent_4_vq": _inside(", before codes are chosen", 4, "shapes_vq_4", codes=CODES),
    "shapes_large_pixels": _latent(
        "on large pixels, four at a time", replace(BASE_NETWORK, side=64), side=64
    ),
    "shapes_large_patches": _latent(
        "on large pixels, sixteen at a time", replace(BASE_NETWORK, side=64, patch=4), side=64
    ),
    **{
        f"shapes_large_latent_{f}": _inside(" of large pictures", f, f"shapes_kl_{f}", side=64)
        for f in (4, 8)
    },
}
