"""The recipes of the shape world by name, whole and tiny."""

from __future__ import annotations

from dataclasses import replace

from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.pretrained import BASE_NETWORK, CLIP_CONFIG
from tutorial_lib.recipes import shape_clip, shapes, text_to_image
from tutorial_lib.recipes.record import Recipe
from tutorial_lib.recipes.shape_clip import CLIPRun
from tutorial_lib.recipes.shapes import OracleRun
from tutorial_lib.recipes.text_to_image import TextToImageRun

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
    "shapes_text_to_image": Recipe(
        "The course's text-to-image network of the shape world, with its encoder of captions",
        "GLIDE, Nichol et al. 2021, section 3; Ho & Salimans 2022",
        "7 minutes on an H200",
        "80 % of captions at w = 0, 93 % at 2; of two objects 96 %, of one 99 %",
        text_to_image.run_text_to_image,
        text_to_image.headline,
        TextToImageRun(
            network=BASE_NETWORK, steps=14_000, batch_size=512, learning_rate=2e-3, graph=True
        ),
        None,
        TextToImageRun(
            **{"network": TINY_BASE, "images": 500, "steps": 20, "batch_size": 16},
            **{"learning_rate": 2e-3, "captions": 8, "device": "cpu"},
        ),
    ),
}
