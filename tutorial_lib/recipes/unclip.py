"""The recipes of DALL-E 2's two halves by name, whole and tiny: notebook 12."""

from __future__ import annotations

from dataclasses import replace

from tutorial_lib.pretrained import PRIOR_CONFIG
from tutorial_lib.recipes.record import Recipe
from tutorial_lib.recipes.unclip_chain import ChainRun, chain_headline, run_chain
from tutorial_lib.recipes.unclip_decoder import DecoderRun, decoder_headline, run_decoder
from tutorial_lib.recipes.unclip_prior import PriorRun, prior_headline, run_prior
from tutorial_lib.unclip import PriorConfig, PriorMLPConfig

Network = PriorConfig | PriorMLPConfig

_SMALL = PriorConfig(replace(PRIOR_CONFIG.text, width=16, depth=1))
_TINY = {"images": 300, "steps": 20, "batch_size": 16, "learning_rate": 2e-3, "device": "cpu"}


def _prior(about: str, network: Network, small: Network, predicts: str = "x0") -> Recipe:
    return Recipe(
        f"DALL-E 2's prior for the shape world: {about}",
        "Ramesh et al. 2022, section 2.2",
        "a few minutes on an H200",
        "the paper: predicting the embedding itself is better than predicting the noise",
        run_prior,
        prior_headline,
        PriorRun(
            **{"network": network, "predicts": predicts, "steps": 8000, "batch_size": 2048},
            **{"learning_rate": 2e-3, "graph": True},
        ),
        None,
        PriorRun(network=small, predicts=predicts, tested=30, bank=200, sampler_steps=4, **_TINY),
    )


def _decoder(about: str, *, clip: str | None = None) -> Recipe:
    return Recipe(
        f"DALL-E 2's decoder for the shape world: {about}",
        "Ramesh et al. 2022, section 2.1",
        "a few minutes on an H200",
        "the paper: variations keep what CLIP's embedding holds, and vary the rest",
        run_decoder,
        decoder_headline,
        DecoderRun(steps=8000, batch_size=512, learning_rate=1e-3, graph=True, clip=clip),
        None,
        DecoderRun(
            **{**_TINY, "steps": 10, "batch_size": 8},
            **{"tested": 6, "varied": 2, "scales": (0.0, 1.0), "sampler_steps": 3},
        ),
    )


UNCLIP = {
    "shapes_prior": _prior("a causal transformer", PRIOR_CONFIG, _SMALL),
    "shapes_prior_eps": _prior(
        "the same transformer, which predicts the noise", PRIOR_CONFIG, _SMALL, "eps"
    ),
    "shapes_prior_mlp": _prior(
        "layers that read CLIP's embedding alone", PriorMLPConfig(), PriorMLPConfig(32, 2)
    ),
    "shapes_decoder": _decoder("the base, tuned to read CLIP's embeddings"),
    "shapes_decoder_careful": _decoder(
        "the same, of a CLIP that was told false captions too: `shapes_clip_careful`",
        clip="results/shapes_clip_careful/weights.safetensors",
    ),
    "shapes_unclip": Recipe(
        "DALL-E 2's chain for the shape world: caption, embedding, picture; and stand-ins for it",
        "Ramesh et al. 2022, sections 2, 5.1 and 7",
        "a few minutes on an H200",
        "the paper: a prior is worth having, and guidance costs less diversity than GLIDE's",
        run_chain,
        chain_headline,
        ChainRun(),
        None,
        ChainRun(
            **{"captions": 4, "alike": 2, "scales": (1.0,), "guided": (1.0,), "device": "cpu"},
            **{"sampler_steps": 3},
        ),
    ),
}
