"""The recipes of notebook 13 by name, whole and tiny; its cascade's are in `cascade`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tutorial_lib.pretrained import BASE_NETWORK, RANK
from tutorial_lib.recipes import growing, text_encoders, text_only, thresholds
from tutorial_lib.recipes.growing import GrowingRun
from tutorial_lib.recipes.record import Recipe
from tutorial_lib.recipes.text_encoders import EncoderRun
from tutorial_lib.recipes.text_only import TextOnlyRun
from tutorial_lib.recipes.thresholds import ThresholdRun


def _reader(about: str, expected: str, **how: Any) -> Recipe:
    """Return a recipe that trains the text-to-image network on what one encoder says."""
    narrow = replace(BASE_NETWORK, channels=8, depth=1, attention=(8,), head_width=None)
    return Recipe(
        f"The text-to-image network, whose captions are read by {about}",
        "Imagen, Saharia et al. 2022, section 2.1 and appendix D.1",
        "5 minutes on an H200",
        expected,
        text_encoders.run_text_encoders,
        text_encoders.headline,
        EncoderRun(
            **{"network": BASE_NETWORK, "steps": 10_000, "batch_size": 512, "graph": True},
            **how,
            learning_rate=2e-3,
        ),
        None,
        EncoderRun(
            **{"network": BASE_NETWORK if "rank" in how else narrow, "steps": 4, "batch_size": 4},
            **{"images": 40, "captions": 4, "scales": (0.0,), "learning_rate": 2e-3, **how},
            device="cpu",
        ),
    )


def _growing(about: str, expected: str, **how: Any) -> Recipe:
    """Return a recipe that grows a frozen reader and the painter that it tells."""
    tiny = {
        "images": 20,
        "layers": (0, 1),
        "seeds": (0,),
        "steps": 4,
        "batch_size": 8,
        "sampler_steps": 2,
    }
    return Recipe(
        f"A frozen language model and painters, both growing; it tells them {about}",
        "Imagen, Saharia et al. 2022, section 4.4",
        "25 minutes on two CPU cores",
        expected,
        growing.run_growing,
        growing.headline,
        GrowingRun(**how, learning_rate=4e-3, device="cpu"),
        None,
        GrowingRun(**how | tiny, learning_rate=4e-3, device="cpu"),
    )


IMAGEN = {
    "growing_pooled": _growing(
        "the mean of its features",
        "the paper: a larger reader helps more than a larger painter",
        **{"steps": 4000, "batch_size": 512, "widths": (32, 64, 128)},
    ),
    "growing_longer": _growing(
        "the mean of its features, for ten times as long",
        "whether what no layer has made loud is found in time",
        **{"steps": 40_000, "batch_size": 512, "widths": (64, 128), "layers": (0, 1)},
        seeds=(0,),
    ),
    "growing_evened": _growing(
        "the mean of its features, every direction as loud as any other",
        "if it is loudness that layers add, they are not needed",
        **{"steps": 4000, "batch_size": 512, "widths": (64, 128), "layers": (-1, 0, 3)},
        evened=True,
    ),
    "growing_attended": _growing(
        "its features of every word",
        "the paper, as above",
        **{"steps": 2000, "batch_size": 256, "widths": (8, 16, 32), "attends": True},
    ),
    "shapes_text_only": Recipe(
        "An encoder that filled in words of captions and a dictionary, and has seen no picture",
        "BERT, Devlin et al. 2018, section 3.1",
        "2 minutes on an H200",
        "new words for shapes are taken for the right one: the dictionary says why",
        text_only.run_text_only,
        text_only.headline,
        TextOnlyRun(steps=10_000, batch_size=512, learning_rate=2e-3),
        None,
        TextOnlyRun(
            **{"images": 300, "steps": 20, "batch_size": 8, "learning_rate": 2e-3},
            device="cpu",
        ),
    ),
    "shapes_encoder_trained": _reader(
        "an encoder that is trained with it", "as the base, and new words mean nothing"
    ),
    "shapes_encoder_clip": _reader(
        "CLIP's frozen encoder", "what CLIP's loss did not ask for is missing", encoder="CLIP"
    ),
    "shapes_encoder_text_only": _reader(
        "a frozen encoder that read a dictionary",
        "new words for shapes mean something",
        encoder="text only",
    ),
    "shapes_encoder_minilm": _reader(
        "a frozen language model of 22 million weights",
        "new words for shapes mean something",
        encoder="MiniLM",
    ),
    "shapes_encoder_minilm_noisy": _reader(
        "that language model, whose features had noise on them in training",
        "new words mean more: what is read must survive the noise",
        encoder="MiniLM",
        noise=1.0,
    ),
    "shapes_minilm": _reader(
        "a frozen language model, as changes of the course's network",
        "as shapes_encoder_minilm, and better: the base can draw",
        encoder="MiniLM",
        rank=RANK,
    ),
    "shapes_minilm_noisy": _reader(
        "that language model, whose features had noise on them in training",
        "as shapes_encoder_minilm_noisy",
        encoder="MiniLM",
        noise=1.0,
        rank=RANK,
    ),
    "shapes_thresholds": Recipe(
        "Guidance up to w = 16 with no threshold, a static one and dynamic ones",
        "Imagen, Saharia et al. 2022, section 2.3",
        "3 minutes on an H200",
        "the paper shows pictures, and curves in which dynamic thresholds are best",
        thresholds.run_thresholds,
        thresholds.headline,
        ThresholdRun(images=0),
        None,
        ThresholdRun(images=0, captions=20, scales=(0.0, 8.0), sampler_steps=3, device="cpu"),
    ),
}
