"""The course's own models of the shape world, small enough to come with the package.

Each was trained by the recipe of its name and is kept in bfloat16 (of latent diffusion some to 4
bits of mantissa), packed, in `weights/`, beside the checksums that it must have. They are read as
float32.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Generator, Tensor, nn

from tutorial_lib import lora
from tutorial_lib.captions import LENGTH, VOCABULARY, write_tokens
from tutorial_lib.cascade import SuperResolver
from tutorial_lib.clip import CLIP, CLIPConfig
from tutorial_lib.denoiser import Condition, NetworkDenoiser
from tutorial_lib.first_stage import FirstStage, FirstStageConfig
from tutorial_lib.inpainting import Beside
from tutorial_lib.latent import LatentSpace
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.oracle import Oracle
from tutorial_lib.schedule import CosineVP
from tutorial_lib.text import Captioned, Projected, TextConfig, TextEncoder
from tutorial_lib.unclip import Prior, PriorConfig, WithPicture

FOLDER = Path(__file__).parent / "weights"
CLIP_CONFIG = CLIPConfig(
    UNetConfig(
        channels=16, multipliers=(1, 2, 4), depth=1, attention=(), dropout=0.0, clock_scale=250.0
    ),
    TextConfig(len(VOCABULARY), LENGTH, width=64),
)
# at a quarter of the pixels: 4 times as fast on a CPU
BASE_NETWORK = UNetConfig(
    channels=32,
    multipliers=(1, 2),
    attention=(16, 8),
    head_width=32,
    dropout=0.0,
    patch=2,
    adaptive_norm=True,
    text_width=96,
    clock_scale=250.0,
)
BASE_TEXT = TextConfig(len(VOCABULARY), LENGTH, width=96)
SMALL_NETWORK = replace(BASE_NETWORK, side=16, patch=1)  # inside, both work on 16 x 16
DECODER_NETWORK = replace(BASE_NETWORK, embedding_width=CLIP_CONFIG.width)
PRIOR_CONFIG = PriorConfig(TextConfig(len(VOCABULARY), LENGTH, width=64, depth=3))
INPAINTING_NETWORK = replace(BASE_NETWORK, in_channels=7)  # x_t, what is known, and where
SUPER_NETWORK = UNetConfig(
    channels=16,  # with patches of 2 x 2, 20 cannot hold 24 numbers: 4 times the error in x_0
    multipliers=(1, 2, 2),
    depth=1,
    attention=(),
    dropout=0.0,
    in_channels=6,
    adaptive_norm=True,
    augmented=True,
    clock_scale=250.0,
)
STAGES = {  # first stages by their factor: widths of the halvings, channels of the latents
    2: FirstStageConfig((64,), 3),
    4: FirstStageConfig((32, 64), 4),
    8: FirstStageConfig((32, 48, 64), 8),
}
LATENT_SCALE = 2.0359  # of shapes_large_latent_4's record
SCHEDULE = CosineVP()
MINILM_WIDTH = 384
RANK = 8  # of the changes that make other models of the base
INPAINTING_RANK = 16
FIRST = "net.encoder.first.weight"


class WeightsError(OSError):
    """Say that a file of weights is missing or is not what the package came with."""


def oracle(device: str = "cpu") -> Oracle:
    """Return the reader of pictures, recipe `shapes_oracle`; raise WeightsError."""
    return _ready(Oracle(generator=Generator()), "shapes_oracle", device)


def clip(device: str = "cpu", *, noisy: bool = False) -> CLIP:
    """Return CLIP, or the one that has seen noise, recipes `shapes_clip` and `..._noisy`.

    The latter is told the log-SNR's clock, `denoiser.log_snr_clock` of a cosine schedule. Raises
    WeightsError.
    """
    name = "shapes_clip_noisy" if noisy else "shapes_clip"
    return _ready(CLIP(CLIP_CONFIG, generator=Generator()), name, device)


def text_to_image(device: str = "cpu") -> NetworkDenoiser:
    """Return the denoiser that reads captions' tokens, recipe `shapes_text_to_image`.

    Its schedule is the continuous cosine. Raises WeightsError.
    """
    net = captioned(BASE_NETWORK, BASE_TEXT, generator=Generator())
    return NetworkDenoiser(_ready(net, "shapes_text_to_image", device), SCHEDULE, "v")


def read_by_minilm(device: str = "cpu", *, noisy: bool = False) -> NetworkDenoiser:
    """Return the denoiser that is told `language_model.told` texts, recipe `shapes_minilm`.

    A `noisy` one was told them through noise in training: `..._noisy`. Imagen (Saharia et al.
    2022), section 2.1. Raises WeightsError.
    """
    net = from_base(BASE_NETWORK).net
    net = Projected(net, MINILM_WIDTH, BASE_TEXT.width, generator=Generator())
    name = "shapes_minilm_noisy" if noisy else "shapes_minilm"
    return _tuned(net, Captioned(net, nn.Identity()), name, device)


def inpainting(device: str = "cpu") -> NetworkDenoiser:
    """Return the denoiser that is also told `inpainting.known_part`, as the condition's hint.

    The base with the changes of recipe `shapes_inpainting`. Raises WeightsError.
    """
    net = Beside(from_base(INPAINTING_NETWORK, rank=INPAINTING_RANK))
    return _tuned(net, net.net, "shapes_inpainting", device)


def small(device: str = "cpu") -> NetworkDenoiser:
    """Return the denoiser of 16 x 16 pictures that reads captions' tokens, `shapes_small`.

    Raises WeightsError.
    """
    net = from_base(SMALL_NETWORK)
    return _tuned(net, net, "shapes_small", device)


def super_resolver(device: str = "cpu", *, plain: bool = False) -> NetworkDenoiser:
    """Return the denoiser that is also told a small picture, recipe `shapes_super_resolution`.

    It is told `cascade.augmented` ones, as in its training; a `plain` one has seen none that were
    noised: `..._plain`. Raises WeightsError.
    """
    net = SuperResolver(UNet(SUPER_NETWORK, generator=Generator()))
    name = "shapes_super_resolution_plain" if plain else "shapes_super_resolution"
    return NetworkDenoiser(_ready(net, name, device), SCHEDULE, "v")


def decoder(device: str = "cpu") -> NetworkDenoiser:
    """Return DALL-E 2's decoder, which is also told a CLIP embedding, recipe `shapes_decoder`.

    It is the condition's `image_embedding`, `unclip.scaled`. Raises WeightsError.
    """
    net = WithPicture(from_base(DECODER_NETWORK), generator=Generator())
    return _tuned(net, net, "shapes_decoder", device)


def prior(device: str = "cpu") -> NetworkDenoiser:
    """Return DALL-E 2's prior, a denoiser of scaled CLIP embeddings, recipe `shapes_prior`.

    It is told `unclip.said`. Raises WeightsError.
    """
    net = Prior(PRIOR_CONFIG, generator=Generator())
    return NetworkDenoiser(_ready(net, "shapes_prior", device), SCHEDULE, "x0")


def first_stage(factor: int, device: str = "cpu") -> FirstStage:
    """Return a first stage of latent diffusion that makes sides smaller by 2, 4 or 8.

    Recipes `shapes_kl_2`, `..._4` and `..._8`. Raises WeightsError.
    """
    stage = FirstStage(STAGES[factor], generator=Generator())
    return _ready(stage, f"shapes_kl_{factor}", device)


def latent_diffusion(device: str = "cpu") -> tuple[NetworkDenoiser, LatentSpace]:
    """Return a denoiser of latents of 64 x 64 pictures, told captions' tokens, and their space.

    Recipe `shapes_large_latent_4`: latents are (B, 4, 16, 16). Raises WeightsError.
    """
    net = captioned(latent_network(4, 64), BASE_TEXT, generator=Generator())
    inside = NetworkDenoiser(_ready(net, "shapes_large_latent_4", device), SCHEDULE, "v")
    return inside, LatentSpace(first_stage(4, device), LATENT_SCALE)


def latent_network(factor: int, side: int = 32) -> UNetConfig:
    """Return the base's shape for the latents that a first stage makes of pictures of a side."""
    side, channels = side // factor, STAGES[factor].channels
    return replace(
        BASE_NETWORK,
        side=side,
        patch=1,
        attention=(side, side // 2),
        in_channels=channels,
        out_channels=channels,
    )


def captioned(network: UNetConfig, text: TextConfig, *, generator: Generator) -> Captioned:
    """Return a U-Net with an encoder of captions of its own, as they are before training."""
    net = UNet(network, generator=generator)
    return Captioned(net, TextEncoder(text, generator=generator))


def from_base(network: UNetConfig, *, rank: int = RANK) -> Captioned:
    """Return the base with another U-Net's ends, to be tuned with few numbers (Hu et al. 2022).

    Its layers are frozen and have adapters; what the base lacks, and what differs in shape, learns
    as a whole. More channels that are read begin at zero, as in GLIDE (Nichol et al. 2021,
    section 4.3). Raises WeightsError.
    """
    generator = Generator().manual_seed(0)
    net, base = captioned(network, BASE_TEXT, generator=generator), weights("shapes_text_to_image")
    own = net.state_dict()
    read, first = own[FIRST].shape[1] - base[FIRST].shape[1], base[FIRST]
    if network.patch == BASE_NETWORK.patch and read > 0:
        own[FIRST] = torch.cat([first, first.new_zeros(len(first), read, *first.shape[2:])], 1)
    alike = {name for name, x in own.items() if name in base and base[name].shape == x.shape}
    net.load_state_dict(own | {name: base[name] for name in alike})
    layers = {name.removesuffix(".weight") for name in alike}
    lora.inject(net, rank, generator=generator, chosen=lambda name: name in layers)
    for name, x in net.named_parameters():
        if name in own and name not in alike:
            x.requires_grad_()
    return net


def empty_caption(device: str = "cpu") -> Condition:
    """Return the condition that says nothing, of one row: the `null` of guidance by captions."""
    return Condition(text=write_tokens([""]).to(device))


def weights(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """Return a model's weights by name, in float32, checked; raise WeightsError."""
    path = folder / f"{name}.safetensors.xz"
    if not path.exists():
        raise WeightsError(f"there are no weights at {path}: install the package again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksums(folder).get(path.name):
        raise WeightsError(f"the weights at {path} are damaged: install the package again")
    return {key: x.float() for key, x in safetensors.torch.load(lzma.decompress(data)).items()}


def checksums(folder: Path = FOLDER) -> dict[str, str]:
    """Return the SHA-256 that each file of weights must have, by its name."""
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def _tuned(net: nn.Module, holder: nn.Module, name: str, device: str) -> NetworkDenoiser:
    """Return a network that began as the base, with what a recipe changed of `holder`, merged."""
    lora.load(holder, weights(name))
    lora.merge(holder)
    return NetworkDenoiser(net.to(device).eval().requires_grad_(False), SCHEDULE, "v")


def _ready(net: nn.Module, name: str, device: str) -> nn.Module:
    net.load_state_dict(weights(name))
    return net.to(device).eval().requires_grad_(False)
