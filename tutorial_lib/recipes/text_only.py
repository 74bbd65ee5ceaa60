"""Train an encoder of text on text alone: it fills in words of captions and of a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tutorial_lib.captions import (
    END,
    LENGTH,
    PAD,
    START,
    all_claims,
    caption_tokens,
    draw_claims,
    read_tokens,
)
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.shape_world import HELD_OUT, SHAPES, draw_scenes
from tutorial_lib.text import TextConfig, TextEncoder
from tutorial_lib.train import train
from tutorial_lib.wordings import (
    OTHER_WORDS,
    WORDS,
    dictionary,
    other_words,
    reworded,
    sentences,
    tokens,
)

MASK = WORDS.index("<mask>")
RIDGE = 0.01  # of the mean square of features
FRAMES = ("a small {}", "a large red {}", "there is a blue {}", "a picture of a large {}")


@dataclass(frozen=True, kw_only=True)
class TextOnlyRun(TrainingRun):
    """Fix an encoder that reads both ways, and how long it fills in words of `images` texts.

    A share `masked` of all words is hidden (BERT, Devlin et al. 2018, section 3.1).
    """

    text: TextConfig = field(default=TextConfig(len(WORDS), LENGTH, width=96, causal=False))
    images: int = 200_000
    masked: float = 0.2
    ema_decay: float = 0.999


def texts(n: int, *, seed: int) -> list[str]:
    """Return `n` texts without pictures: captions in any words and forms; a fifth are facts."""
    generator = Generator().manual_seed(seed)
    scenes = draw_scenes(n, generator=generator, held_out=HELD_OUT)
    said = read_tokens(
        caption_tokens(draw_claims(scenes, generator=generator), generator=generator)
    )
    said = [text.replace(",", " ,") for text in said]
    single = draw_scenes(n // 5, generator=generator, objects=(1,), held_out=HELD_OUT)
    said[: n // 5] = sentences(all_claims(single), generator=generator)
    for kind in OTHER_WORDS:
        changed = (torch.rand(n, generator=generator) < 0.5).tolist()
        kept = (text for text, change in zip(said, changed, strict=True) if change)
        others = iter(reworded(kept, kind, generator=generator))
        said = [next(others) if c else t for t, c in zip(said, changed, strict=True)]
    known = dictionary()
    said[-(n // 5) :] = [known[k % len(known)] for k in range(n // 5)]
    return said


def objective(config: TextOnlyRun) -> object:
    """Return the loss of a batch of tokens, (B,): of its hidden words, mean cross-entropy."""

    def cost(net: TextEncoder, batch: Tensor, generator: Generator) -> Tensor:
        word = (batch != PAD) & (batch != START) & (batch != END)
        chance = torch.rand(batch.shape, generator=generator, device=batch.device)
        hidden = word & (chance < config.masked)
        logits = net(torch.where(hidden, MASK, batch)) @ net.words.weight.T
        each = F.cross_entropy(logits.flatten(0, 1), batch.flatten(), reduction="none")
        return (each.view_as(batch) * hidden).sum(1) / config.masked / word.sum(1)

    return cost


def run_text_only(name: str, config: TextOnlyRun, out: Path) -> Metrics:
    """Train the encoder, leave its weights, and ask what it makes of other words for shapes."""
    read = tokens(texts(config.images, seed=config.seed)).to(config.device)
    net = TextEncoder(config.text, generator=Generator().manual_seed(config.seed))
    net = net.to(config.device)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    schedule = config.schedule(ema_decay=config.ema_decay)
    watch = config.journal(out)
    result = train(net, read, objective(config), schedule, **about, watch=watch)
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    encoder = TextEncoder(config.text, generator=Generator())
    encoder.load_state_dict({k: x.cpu() for k, x in result.ema.state_dict().items()})
    share, guesses = shape_guesses(lambda said: last_words(encoder, said))
    found = {"data": "captions and a dictionary", "synonyms": share, "guesses": guesses}
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def last_words(encoder: TextEncoder, said: list[str]) -> Tensor:
    """Return the features of the last word of each text, (B, width)."""
    read = tokens(said)
    last = (read != PAD).sum(1) - 2  # before the end
    return encoder(read)[torch.arange(len(said)), last]


@torch.no_grad()
def shape_guesses(features: Callable[[list[str]], Tensor]) -> tuple[float, dict[str, str]]:
    """Return how many of the other words for shapes are taken for the right one, and all guesses.

    Ridge regression learns from `features` of texts, (B, D), that end in the shapes' own names
    which shape it is (Alain and Bengio 2016: a linear probe), and is asked about the others.
    """
    meant = other_words("shape")
    own = features([frame.format(shape) for frame in FRAMES for shape in SHAPES]).double()
    new = features([FRAMES[0].format(word) for word in meant]).double()
    mean = own.mean(0)
    target = F.one_hot(torch.arange(len(own)) % len(SHAPES)).double() - 1 / len(SHAPES)
    gram = (own - mean) @ (own - mean).T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    scores = (new - mean) @ (own - mean).T @ torch.linalg.solve(gram + ridge, target)
    guesses = {w: SHAPES[k] for w, k in zip(meant, scores.argmax(1).tolist(), strict=True)}
    right = sum(guesses[word] == shape for word, shape in meant.items())
    return round(right / len(meant), 4), guesses


def headline(found: Metrics) -> str:
    """Say in a few words which words mean the same to the encoder."""
    return f"{100 * found['synonyms']:.0f} % of 18 other words for shapes taken for the right one"
