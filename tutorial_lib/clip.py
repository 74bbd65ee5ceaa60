"""CLIP: two encoders, one of pictures and one of captions, that agree on which belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.unet import Encoder, UNetConfig, group_norm, initialise_unet, last_seen
from tutorial_lib.text import FILLING, TextConfig, TextEncoder

MOST_SCALE = 100.0  # of the logits: the paper's limit (section 2.5)


@dataclass(frozen=True)
class CLIPConfig:
    """Fix the shapes of both encoders and the width of what they map to.

    `scale` is that of the logits before training, 1 / temperature (Radford et al. 2021, 2.5).
    """

    image: UNetConfig
    text: TextConfig
    width: int = 64
    scale: float = 1 / 0.07


class CLIP(nn.Module):
    """Map pictures and captions to unit vectors, whose cosines say how well they fit.

    Radford et al. 2021, section 2.3 and figure 3. The picture's encoder is the first half of a
    U-Net, which can be told how noisy a picture is: GLIDE's noised CLIP (Nichol et al. 2021, 2.4).
    """

    def __init__(self, config: CLIPConfig, *, generator: Generator) -> None:
        super().__init__()
        self.config = config
        wide = config.image.levels[-1][0]
        with torch.device("meta"):
            self.encoder = Encoder(config.image)
            self.norm = group_norm(wide)
            self.project = nn.Linear(wide, config.width)
        initialise_unet(self, generator)
        self.words = TextEncoder(config.text, generator=generator)
        self.project_words = nn.Linear(config.text.width, config.width)
        nn.init.xavier_uniform_(self.project_words.weight, generator=generator)
        nn.init.zeros_(self.project_words.bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))

    @property
    def scale(self) -> Tensor:
        """Return what cosines are multiplied by, () : 1 / temperature, at most MOST_SCALE."""
        return self.log_scale.clamp(max=math.log(MOST_SCALE)).exp()

    def features(self, x: Tensor, clock: Tensor | None = None) -> Tensor:
        """Map pictures (B, C, H, W) to features before pooling, (B, width, h, w)."""
        clock = x.new_zeros(len(x)) if clock is None else clock
        return F.silu(self.norm(self.encoder(x, self.encoder.embed(clock))[-1]))

    def image(self, x: Tensor, clock: Tensor | None = None) -> Tensor:
        """Map pictures (B, C, H, W), and a clock (B,) of their noise, to unit vectors (B, D)."""
        return F.normalize(self.project(self.features(x, clock).mean((2, 3))), dim=1)

    def text(self, tokens: Tensor) -> Tensor:
        """Map captions' tokens (B, L) to unit vectors (B, D), by what the last token has seen."""
        end = last_seen(self.words(tokens), tokens != FILLING)
        return F.normalize(self.project_words(end), dim=1)

    def forward(self, x: Tensor, tokens: Tensor, clock: Tensor | None = None) -> Tensor:
        """Map pictures and captions to logits (B, K): row i is picture i before all captions."""
        image, text = self.image(x, clock), self.text(tokens)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits are too few for a logit of 100
            wide = self.log_scale.dtype
            return pair_logits(image.to(wide), text.to(wide), self.scale)


def box_features(features: Tensor, boxes: Tensor) -> Tensor:
    """Return the mean of features (B, C, h, w) over boxes (B, N, 4) of each picture, (B, N, C).

    The features' cells tile the square from -1 to 1, x to the right and y down; a box, of left,
    top, right and bottom, has the cells whose centres lie in it, and the nearest if none does.
    Regions of interest (Girshick 2015, section 2.1), with means for maxima.
    """
    h, w = features.shape[2:]
    left, top, right, bottom = boxes.unbind(2)
    across, down = _cells_within(left, right, w), _cells_within(top, bottom, h)
    inside = (down[..., :, None] & across[..., None, :]).to(features.dtype)  # (B, N, h, w)
    total = torch.einsum("bchw,bnhw->bnc", features, inside)
    return total / inside.sum((2, 3))[..., None]


def _cells_within(low: Tensor, high: Tensor, n: int) -> Tensor:
    """Return which of n cells from -1 to 1 have their centres between bounds (B, N), (B, N, n)."""
    centres = (torch.arange(n, device=low.device, dtype=low.dtype) + 0.5) * (2 / n) - 1
    inside = (centres > low[..., None]) & (centres < high[..., None])
    nearest = (centres - (low + high)[..., None] / 2).abs().argmin(-1, keepdim=True)
    found = inside.any(-1, keepdim=True)
    return inside | (~found & (torch.arange(n, device=low.device) == nearest))


def pair_logits(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Return scaled cosines of unit vectors (B, D) and (K, D), (B, K) (Radford et al. 2021)."""
    return scale * image @ text.T


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return how surprising each pair is, seen from both sides, (B,) nats, of logits (B, K).

    The mean of two cross-entropies: picture i's among the captions, and caption i's among the
    pictures (Radford et al. 2021, figure 3; InfoNCE, van den Oord et al. 2018, eq. 4). Captions
    beyond the first B belong to no picture: hard negatives (NegCLIP, Yuksekgonul et al. 2023).
    """
    pairs = logits[:, : len(logits)]
    return -(logits.log_softmax(1).diagonal() + pairs.log_softmax(0).diagonal()) / 2


def information_bound(logits: Tensor) -> Tensor:
    """Return InfoNCE's lower bound on the mutual information, () nats: log B less the loss.

    Van den Oord et al. 2018, section 2.3. It never exceeds log B.
    """
    return math.log(len(logits)) - contrastive_loss(logits).mean()
