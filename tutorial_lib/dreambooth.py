"""DreamBooth: teach a text-to-image network a new word, for one thing that it is shown few times.

net = with_spare_words(net, 2, generator=...)         # words that no caption has
batch = beside(shown, of_class, 8, generator=...)     # pictures and tokens of both kinds
loss = preserved(errors, 8, weight=1.0)               # a mean of each kind
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.text import Captioned

Told = tuple[Tensor, Tensor]


def rare_tokens(
    vocabulary: Sequence[str], counts: Tensor, *, most: int = 0, longest: int = 3
) -> list[int]:
    """Return tokens that are seen at most `most` times, the rarest first, as numbers.

    Ruiz et al. 2023, section 3.2: a look-up of rare tokens in the vocabulary, of at most three
    letters when written out. `counts` (V,) says how often each token of the vocabulary (V words)
    is seen in training. Raises ValueError if they do not fit each other.
    """
    if counts.shape != (len(vocabulary),):
        raise ValueError(f"{len(vocabulary)} words have counts of shape {tuple(counts.shape)}")
    short = [k for k, word in enumerate(vocabulary) if word.isalpha() and len(word) <= longest]
    return sorted((k for k in short if counts[k] <= most), key=lambda k: int(counts[k]))


def with_spare_words(net: Captioned, n: int, *, generator: Generator) -> Captioned:
    """Return a copy of a network that reads n words more, which it has never seen.

    Their embeddings are drawn as all were before training, N(0, 1): so lie those of tokens that
    training hardly ever met. They are the last n of the longer vocabulary.
    """
    net = copy.deepcopy(net)
    known = net.encoder.words.weight
    words = nn.Embedding(len(known) + n, known.shape[1], device=known.device, dtype=known.dtype)
    drawn = torch.randn(n, known.shape[1], generator=generator).to(known)
    with torch.no_grad():
        words.weight.copy_(torch.cat([known, drawn]))
    net.encoder.words = words.requires_grad_(known.requires_grad)
    return net


@torch.no_grad()
def meaning(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    said: Tensor,
    unsaid: Tensor,
    *,
    generator: Generator,
) -> Tensor:
    """Return how far a word moves what a network believes, (B,), squared and summed over pixels.

    `x0` (B, ...) are pictures, seen through noise at times t (B,); `said` and `unsaid` (B, L) are
    captions with the word and without it. A word with a strong prior moves much (Ruiz et al. 2023,
    section 3.2).
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    xt = denoiser.schedule.add_noise(x0, eps, t)
    told, silent = (denoiser(xt, t, Condition(text=rows)).x0 for rows in (said, unsaid))
    return (told - silent).square().flatten(1).sum(1)


def beside(shown: Told, of_class: Told, n: int, *, generator: Generator) -> Told:
    """Return a batch of n of the subject's pictures and n of its class, with their tokens.

    Each is pictures (N, ...) and tokens (N, L), drawn from with replacement. The class's are the
    network's own, drawn by it before it was tuned (Ruiz et al. 2023, section 3.3).
    """
    parts = []
    for pictures, tokens in (shown, of_class):
        rows = torch.randint(len(pictures), (n,), generator=generator, device=pictures.device)
        parts.append((pictures[rows], tokens[rows]))
    x, tokens = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(tokens)


def preserved(errors: Tensor, n: int, *, weight: float = 1.0) -> Tensor:
    """Return the mean error of the first n rows and `weight` times that of the others.

    Ruiz et al. 2023, eq. 2: the subject's reconstruction, and prior preservation with weight
    lambda. `errors` is (B,), B > n.
    """
    return errors[:n].mean() + weight * errors[n:].mean()
