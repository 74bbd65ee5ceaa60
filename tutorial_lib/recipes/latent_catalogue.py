"""The recipes of notebook 14 by name, whole and tiny."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tutorial_lib.first_stage import FirstStageConfig
from tutorial_lib.pretrained import BASE_NETWORK
from tutorial_lib.recipes import first_stages, latents
from tutorial_lib.recipes.first_stages import FirstStageRun
from tutorial_lib.recipes.latents import LatentRun
from tutorial_lib.recipes.record import Recipe

STAGES = {  # by their factor: widths of the halvings, channels of the latents
    2: FirstStageConfig((64,), 3),
    4: FirstStageConfig((32, 64), 4),
    8: FirstStageConfig((32, 48, 64), 8),
}


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


def _latent(about: str, side: int, *, patch: int = 1, **how: Any) -> Recipe:
    """Return a recipe that trains a text-to-image network on latents of a side."""
    shape = how.get("shape")
    channels = shape.channels if shape else 3
    network = replace(
        BASE_NETWORK,
        side=side,
        patch=patch,
        attention=(16, 8) if side // patch > 8 else (side // patch, side // patch // 2),
        in_channels=channels,
        out_channels=channels,
    )
    tiny = replace(network, channels=8, depth=1, attention=(), head_width=None)
    little = how | ({"shape": _narrow(shape)} if shape else {})
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


def _of(factor: int, name: str, **how: Any) -> dict[str, Any]:
    return {"stage": name, "shape": replace(STAGES[factor], **how)}


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
    "shapes_vq_4": _stage("whose latents are codes", replace(STAGES[4], codes=512), 1.0),
    "shapes_kl_4_perceptual": _stage(
        "which must look right to CLIP, too", STAGES[4], 1e-6, perceptual=300.0
    ),
    "shapes_pixels": _latent("on pixels, one by one", 32),
    "shapes_patches": _latent("on pixels, four at a time", 32, patch=2),
    **{
        f"shapes_latent_{f}": _latent(f"on latents, f = {f}", 32 // f, **_of(f, f"shapes_kl_{f}"))
        for f in STAGES
    },
    "shapes_latent_4_unscaled": _latent(
        "on latents, f = 4, whose size is what it happens to be",
        8,
        scaled=False,
        **_of(4, "shapes_kl_4"),
    ),
    "shapes_latent_4_shuffled": _latent(
        "on latents, f = 4, whose places were shuffled", 8, shuffled=True, **_of(4, "shapes_kl_4")
    ),
    "shapes_latent_4_vq": _latent(
        "on latents before codes are chosen, f = 4", 8, **_of(4, "shapes_vq_4", codes=512)
    ),
}
