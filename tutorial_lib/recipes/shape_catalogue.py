"""The recipes of the shape world by name, whole and tiny."""

from __future__ import annotations

from dataclasses import replace

from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.pretrained import BASE_NETWORK, CLIP_CONFIG
from tutorial_lib.recipes import inpainting, shape_clip, shapes, text_guidance, text_to_image
from tutorial_lib.recipes.cascade import CASCADE
from tutorial_lib.recipes.control_catalogue import CONTROL
from tutorial_lib.recipes.imagen import IMAGEN
from tutorial_lib.recipes.inpainting import InpaintingRun
from tutorial_lib.recipes.latent_catalogue import LATENTS
from tutorial_lib.recipes.record import Recipe
from tutorial_lib.recipes.shape_clip import CLIPRun
from tutorial_lib.recipes.shapes import OracleRun
from tutorial_lib.recipes.subject_catalogue import SUBJECT_LESSONS
from tutorial_lib.recipes.text_guidance import TextGuidanceRun
from tutorial_lib.recipes.text_to_image import TextToImageRun
from tutorial_lib.recipes.unclip import UNCLIP

TINY_CLIP = replace(
    CLIP_CONFIG,
    image=UNetConfig(
        channels=8, multipliers=(1, 2), depth=1, attention=(), dropout=0.0, clock_scale=250.0
    ),
)
TINY_BASE = replace(BASE_NETWORK, channels=8, depth=1, attention=(8,), head_width=None)


def _clip(about: str, steps: int, **how: bool) -> Recipe:
    """Return a recipe that trains CLIP on the shape world, of one kind."""
    return Recipe(
        f"CLIP of the shape world, which {about}",
        "Radford et al. 2021; GLIDE, Nichol et al. 2021, section 2.4",
        "3 minutes on an H200",
        "the paper, of the world's pictures: 76 % of ImageNet, zero-shot",
        shape_clip.run_clip,
        shape_clip.headline,
        CLIPRun(**how, steps=steps, batch_size=2048, learning_rate=2e-3, graph=True),
        None,
        CLIPRun(
            **{**how, "network": TINY_CLIP, "images": 500, "tested": 60, "steps": 20},
            **{"batch_size": 16, "learning_rate": 2e-3, "device": "cpu"},
        ),
    )


def _base(about: str, expected: str, *, steps: int = 14_000, **how: float) -> Recipe:
    """Return a recipe that trains the text-to-image network, with some settings changed."""
    late = {"steps_before": 10, "scales": (0.0,)} if "steps_before" in how else {}
    return Recipe(
        about,
        "GLIDE, Nichol et al. 2021, section 4; Ho & Salimans 2022",
        "7 minutes on an H200",
        expected,
        text_to_image.run_text_to_image,
        text_to_image.headline,
        TextToImageRun(
            **{"network": BASE_NETWORK, "steps": steps, "batch_size": 512, **how},
            **{"learning_rate": 2e-3, "graph": True},
        ),
        None,
        TextToImageRun(
            **{"network": TINY_BASE, "images": 500, "batch_size": 16, "learning_rate": 2e-3},
            **{"captions": 8, "device": "cpu", **how, "steps": 20, **late},
        ),
    )


SHAPES = {
    "shapes_oracle": Recipe(
        "A detector of coloured shapes, which judges what is drawn of captions",
        "Redmon et al. 2016, for its form",
        "1 minute on an H200",
        "99 % of every attribute",
        shapes.run_oracle,
        shapes.oracle_headline,
        OracleRun(steps=8000, batch_size=512, learning_rate=2e-3),
        None,
        OracleRun(
            images=500, tested=100, steps=10, batch_size=16, learning_rate=2e-3, device="cpu"
        ),
    ),
    "shapes_clip": _clip("sees clean pictures", 6000),
    "shapes_clip_noisy": _clip("sees noisy ones too, and is told how noisy", 10_000, noisy=True),
    "shapes_clip_careful": _clip("is told false captions too", 6000, careful=True),
    "shapes_text_to_image": _base(
        "The course's text-to-image network of the shape world, with its encoder of captions",
        "80 % of captions at w = 0, 93 % at 2; of two objects 96 %, of one 99 %",
    ),
    "shapes_emptied_late": _base(
        "The same network, which meets the empty caption only in the last tenth of its training",
        "the paper trains so, with 20 % of captions emptied at the end",
        steps=1400,
        steps_before=12_600,
        unlabelled=0.2,
    ),
    "shapes_inpainting": Recipe(
        "The base, tuned to fill in what is missing: what changed of its weights",
        "GLIDE, Nichol et al. 2021, section 4.3; Hu et al. 2022",
        "6 minutes on an H200",
        "the paper shows pictures: edits that match the caption and what is around them",
        inpainting.run_inpainting,
        inpainting.headline,
        InpaintingRun(steps=10_000, batch_size=512, learning_rate=2e-3, graph=True),
        None,
        InpaintingRun(
            **{"images": 300, "steps": 10, "batch_size": 8, "learning_rate": 2e-3, "tested": 3},
            **{"scales": (0.0,), "replacements": ((4, 2),), "device": "cpu"},
        ),
    ),
    "shapes_text_guidance": Recipe(
        "Classifier-free guidance and CLIP's, of the same text-to-image network",
        "GLIDE, Nichol et al. 2021, sections 2.3, 2.4 and 5",
        "6 minutes on an H200",
        "the paper: people prefer classifier-free guidance, FID against CLIP score agrees",
        text_guidance.run_text_guidance,
        text_guidance.headline,
        TextGuidanceRun(),
        None,
        TextGuidanceRun(captions=4, alike=2, scales=(1.0,), sample_steps=3, device="cpu"),
    ),
    **UNCLIP,
    **CASCADE,
    **IMAGEN,
    **LATENTS,
    **CONTROL,
    **SUBJECT_LESSONS,
}
