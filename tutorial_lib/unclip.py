"""DALL-E 2, or unCLIP: from a caption to CLIP's embedding of a picture, from that to a picture.

p(x | caption) = p(x | embedding, caption) p(embedding | caption) (Ramesh et al. 2022, section 2):
the prior draws the embedding, by diffusion too, the decoder the picture.

z = final(ddim(NetworkDenoiser(Prior(...), CosineVP(), "x0"), noise, times, said(clip, tokens)))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.clip import CLIP
from tutorial_lib.denoiser import Condition
from tutorial_lib.networks.embeddings import sinusoidal
from tutorial_lib.networks.mlp import PointMLP, initialise
from tutorial_lib.samplers import slerp
from tutorial_lib.text import FILLING, Captioned, TextConfig, TextEncoder

PICTURE_TOKENS = 4  # that a picture's embedding becomes (section 2.1)
CLOCK_SCALE = 250.0  # to the hundreds of units that sines of the clock expect


def scaled(embedding: Tensor) -> Tensor:
    """Return unit vectors (B, D) times sqrt(D), whose coordinates have a mean square of 1.

    What is diffused (Ramesh et al. 2022, section 2.2): a schedule's noise is of that size.
    """
    return embedding * embedding.shape[1] ** 0.5


@torch.no_grad()
def said(clip: CLIP, tokens: Tensor) -> Condition:
    """Return what a prior is told of captions (B, L): their tokens, and CLIP's embeddings of them.

    The latter, scaled, are the condition's `hint` (B, D). Of the empty caption it is the `null`
    of guidance, which drops both together (Ramesh et al. 2022, section 2.2).
    """
    return Condition(text=tokens, hint=scaled(clip.text(tokens)))


@dataclass(frozen=True)
class PriorConfig:
    """Fix the shape of a prior: its transformer, and the width D of CLIP's embeddings."""

    text: TextConfig
    embedding: int = 64


class Prior(nn.Module):
    """Map a noisy embedding of a picture, and a caption, to the clean embedding.

    Ramesh et al. 2022, section 2.2: a causal transformer reads the caption's tokens, CLIP's
    embedding of it, the time, the noisy embedding and last a query, whose output, projected, is
    the answer.
    """

    def __init__(self, config: PriorConfig, *, generator: Generator) -> None:
        super().__init__()
        self.config = config
        width = config.text.width
        self.words = TextEncoder(config.text, generator=generator)
        with torch.device("meta"):
            self.text = nn.Linear(config.embedding, width)
            self.clock = nn.Linear(width, width)
            self.noised = nn.Linear(config.embedding, width)
            self.out = nn.Linear(width, config.embedding)
        for layer in (self.text, self.clock, self.noised, self.out):
            initialise(layer, generator)
        self.query = nn.Parameter(torch.zeros(width, device=generator.device))

    def features(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Return the transformer's outputs, (B, L + 4, width), as `forward` is asked."""
        sines = sinusoidal(clock * CLOCK_SCALE, self.config.text.width).to(xt.dtype)
        query = self.query.expand(len(xt), -1)
        last = [self.text(cond.hint.to(xt.dtype)), self.clock(sines), self.noised(xt), query]
        caption = self.words.words(cond.text) + self.words.places[: cond.text.shape[1]]
        x = torch.cat([caption, torch.stack(last, 1)], 1)  # (B, L + 4, width)
        there = F.pad(cond.text != FILLING, (0, len(last)), value=True)[:, None]
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.words.blocks:
            x = block(x, there & causal)
        return self.words.norm(x)

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, D), clock (B,), cond.text (B, L) and cond.hint (B, D) to (B, D)."""
        return self.out(self.features(xt, clock, cond)[:, -1])


@dataclass(frozen=True)
class PriorMLPConfig:
    """Fix the shape of a prior without a transformer."""

    width: int = 256
    depth: int = 4
    embedding: int = 64


class PriorMLP(nn.Module):
    """Map as `Prior` does, by layers that read no caption, but CLIP's embedding of it.

    For contrast with the transformer (Ramesh et al. 2022, section 2.2).
    """

    def __init__(self, config: PriorMLPConfig, *, generator: Generator) -> None:
        super().__init__()
        wide, d = 2 * config.embedding, config.embedding
        self.net = PointMLP(wide, config.width, config.depth, outputs=d, generator=generator)

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, D), clock (B,) and cond.hint (B, D) to (B, D)."""
        return self.net(torch.cat([xt, cond.hint.to(xt.dtype)], 1), clock)


def best_of(candidates: Tensor, text: Tensor) -> Tensor:
    """Return of K candidates (B, K, D) that with the largest product with the text's, (B, D).

    Ramesh et al. 2022, section 2.2, where K is 2.
    """
    best = (candidates @ text[:, :, None])[..., 0].argmax(1)  # (B,)
    return candidates[torch.arange(len(best), device=best.device), best]


class WithPicture(nn.Module):
    """Show a network that reads captions the embedding of a picture: the decoder.

    Ramesh et al. 2022, section 2.1: its projection joins the time's embedding (`Encoder.embed`),
    and another becomes four tokens before the caption's. A picture that is absent, None or a row
    of zeros, is what guidance compares with: its tokens are not seen and all it adds is the first
    projection's bias, which is 0 before training. Without one the network is then what it was.
    """

    def __init__(self, captioned: Captioned, *, generator: Generator) -> None:
        super().__init__()
        self.captioned = captioned
        shape = captioned.net.config
        self.embedding = shape.embedding_width
        with torch.device("meta"):
            self.picture = nn.Linear(self.embedding, PICTURE_TOKENS * shape.text_width)
        initialise(self.picture, generator)

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map as the network does, told tokens (B, L) and cond.image_embedding (B, D), scaled."""
        net, z = self.captioned.net, cond.image_embedding
        z = xt.new_zeros(len(xt), self.embedding) if z is None else z.to(xt.dtype)
        told = replace(self.captioned.told(cond), image_embedding=z)
        there = (z != 0).any(1, keepdim=True).expand(-1, PICTURE_TOKENS)
        tokens = self.picture(z).unflatten(1, (PICTURE_TOKENS, -1))
        text, mask = torch.cat([tokens, told.text], 1), torch.cat([there, told.mask], 1)
        shown = replace(told, text=text, mask=mask)
        emb = net.encoder.embed(clock, told)  # of a text it reads the end: the caption's alone
        return net.decode(net.encoder(xt, emb, shown), emb, shown)


def text_diff(image: Tensor, before: Tensor, after: Tensor, share: Tensor | float) -> Tensor:
    """Turn pictures' embeddings (B, D) a share of the way to what makes `before` into `after`.

    Both are captions' embeddings (B, D) and all are unit vectors, as is the result: a slerp to
    their difference, normalised (Ramesh et al. 2022, section 3.3). Shares of .25 to .5 are usual.
    """
    return slerp(image, F.normalize(after - before, dim=1), share)
