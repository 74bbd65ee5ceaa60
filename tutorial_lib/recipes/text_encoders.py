"""Train the text-to-image network on the features of several encoders of text: notebook 13."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import lora, pretrained
from tutorial_lib.captions import (
    LENGTH,
    PAD,
    UNSAID,
    Claims,
    all_claims,
    caption_tokens,
    holds,
    read_tokens,
)
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.language_model import ROOM, WordPiece, minilm
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNet
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import empty_caption
from tutorial_lib.recipes.record import (
    RESULTS,
    Metrics,
    load_weights,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures
from tutorial_lib.recipes.text_only import TextOnlyRun
from tutorial_lib.recipes.text_to_image import (
    SAMPLER_STEPS,
    CaptionJudge,
    TextToImageRun,
    Told,
    objective,
)
from tutorial_lib.shape_world import HELD_OUT, draw_scenes
from tutorial_lib.text import Captioned, Projected, TextEncoder
from tutorial_lib.train import train
from tutorial_lib.wordings import OTHER_WORDS, WORDS, other_words, reworded, sentences, tokens

TEXT_ONLY = RESULTS / "shapes_text_only" / "weights.safetensors"
ENCODERS = ("trained", "text only", "CLIP", "MiniLM")


@dataclass(frozen=True, kw_only=True)
class EncoderRun(TextToImageRun):
    """Fix which encoder reads captions for the base's network, and how the two are tested.

    One that is `trained` with the network, or a frozen one: "text only" that of recipe
    `shapes_text_only`, "CLIP" that of the package's CLIP, "MiniLM" the first `layers` of the
    language model, to whose features noise of this standard deviation is added in training
    (theirs is about 0.4). With a `rank` the network is the package's, of which adapters learn;
    else it begins anew. Each kind of `wordings.OTHER_WORDS` is tested on `captions`.
    """

    encoder: str = "trained"
    layers: int = 6
    noise: float = 0.0
    rank: int = 0
    scales: tuple[float, ...] = (0.0, 2.0)


def run_text_encoders(name: str, config: EncoderRun, out: Path) -> Metrics:
    """Train the network, count what it draws right in the captions' words and in others."""
    pixels, said = captioned_pictures(config.images, seed=config.seed, device=config.device)
    net, judge = fresh_network(config), EncoderJudge(config)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    cost = objective(config, noise_beside(config), judge.null.text[:, :LENGTH])
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    data = (pixels, judge.spelled(said)[:, :LENGTH])
    result = train(net, data, cost, schedule, **about, watch=config.journal(out))
    kept = lora.trained(net, result.ema)
    save_weights(kept, out / "weights.safetensors", origin(name, config.device))
    model = judge.model(result.ema)
    found = {"data": WORLD, "table": judge.table(model)}
    found |= {"wordings": [judge.wordings(model, w) for w in config.scales]}
    judge.picture(model, out / "samples.jpg")
    frozen = sum(x.numel() for x in net.parameters() if not x.requires_grad)
    learn = sum(x.numel() for x in kept.values())
    found |= {"parameters": {"learn": learn, "frozen": frozen}}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def noise_beside(config: EncoderRun) -> Told:
    """Return what draws the noise that is added to features of text, as the condition's hint."""
    width = pretrained.MINILM_WIDTH

    def beside(x0: Tensor, generator: Generator) -> dict[str, Tensor]:
        if not config.noise:
            return {}
        shape = (len(x0), LENGTH, width)
        noise = torch.randn(shape, generator=generator, device=x0.device)
        return {"hint": config.noise * noise}

    return beside


def fresh_network(config: EncoderRun) -> Captioned:
    """Return the run's network, with its encoder of text, as it is before training."""
    drawn = Generator().manual_seed(config.seed)
    if config.rank:
        net = pretrained.from_base(config.network, rank=config.rank).net
    else:
        net = UNet(config.network, generator=drawn)
    encoder, width = text_encoder(config, drawn)
    if config.encoder != "trained":
        encoder.requires_grad_(False)
        net = Projected(net, width, config.network.text_width, generator=drawn)
    net = accelerate(Captioned(net, encoder))
    return net.to(config.device, memory_format=torch.channels_last)


def text_encoder(config: EncoderRun, generator: Generator) -> tuple[nn.Module, int]:
    """Return what reads captions, and how wide its features are; ValueError for another name."""
    if config.encoder == "trained":
        shape = replace(config.text, vocabulary=len(WORDS))
        return TextEncoder(shape, generator=generator), shape.width
    if config.encoder == "text only":
        shape = TextOnlyRun(steps=0, batch_size=0, learning_rate=0).text
        encoder = TextEncoder(shape, generator=generator)
        encoder.load_state_dict(load_weights(TEXT_ONLY)[0])
        return encoder, shape.width
    if config.encoder == "CLIP":
        encoder = pretrained.clip().words
        known = encoder.words.weight
        new = known.new_empty(len(WORDS) - len(known), known.shape[1])
        nn.init.normal_(new, std=float(known.std()), generator=generator)
        encoder.words.weight = nn.Parameter(torch.cat([known, new]))
        return encoder, known.shape[1]
    if config.encoder == "MiniLM":
        model, _ = minilm()
        model.blocks = model.blocks[: config.layers]
        return model, model.words.embedding_dim
    raise ValueError(f"there is no encoder {config.encoder!r}: choose from {', '.join(ENCODERS)}")


def pieces_of_words(split: WordPiece) -> Tensor:
    """Return the language model's tokens of each of our words, (words, most pieces)."""
    framing = {"<pad>": ["[PAD]"], "<start>": ["[CLS]"], "<end>": ["[SEP]"], "<mask>": ["[MASK]"]}
    rows = [[split.numbers[p] for p in framing.get(w) or split.pieces(w)] for w in WORDS]
    most = max(map(len, rows))
    return torch.tensor([row + [PAD] * (most - len(row)) for row in rows])


class EncoderJudge(CaptionJudge):
    """Ask a network for captions in their own words and in others, as its encoder spells them."""

    def __init__(self, config: EncoderRun) -> None:
        super().__init__(config)
        self._pieces = None
        if config.encoder == "MiniLM":
            self._pieces = pieces_of_words(minilm()[1]).to(config.device)
        self.null = Condition(text=self.spelled(empty_caption(config.device).text))

    def spelled(self, said: Tensor) -> Tensor:
        """Turn tokens of `wordings.WORDS` (B, LENGTH) into the encoder's, (B, LENGTH or ROOM)."""
        if self._pieces is None:
            return said
        slots = self._pieces[said].flatten(1)
        order = (slots == PAD).to(torch.int8).argsort(dim=1, stable=True)[:, :ROOM]
        return slots.gather(1, order)

    def network(self) -> nn.Module:
        """Return the run's network as it is before training."""
        return fresh_network(self.config)

    def draw(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures (N, 3, 32, 32) in [-1, 1] of captions in our own tokens."""
        return super().draw(model, self.spelled(tokens), w, steps)

    def wordings(self, model: Denoiser, w: float) -> Metrics:
        """Return the shares of captions in other words and forms that are drawn right.

        For shapes and colours each word's too: how often what it tells, if nothing else, is right.
        """
        found = {"w": w, "words": {}}
        for kind in (*OTHER_WORDS, "form"):
            claims, said = self._reworded(kind, self.config.captions)
            asked = tokens(said).to(self.config.device)
            reading = read(self.oracle, self.draw(model, asked, w, SAMPLER_STEPS))
            with torch.device(self.config.device):
                found[kind] = round(float(holds(claims, reading).double().mean()), 4)
                if kind in ("shape", "colour"):
                    right = holds(only(claims, kind), reading).tolist()
                    found["words"] |= by_word(said, right, other_words(kind))
        return found

    def _reworded(self, kind: str, n: int) -> tuple[Claims, list[str]]:
        """Draw `n` captions whose words of a kind are exchanged, on two objects for relations."""
        generator = Generator(self.config.device).manual_seed(self.config.seed + 3)
        words = Generator().manual_seed(self.config.seed + 3)
        with torch.device(self.config.device):
            objects = (2,) if kind == "relation" else (1,)
            scenes = draw_scenes(4 * n, generator=generator, objects=objects, held_out=HELD_OUT)
            claims = all_claims(scenes)
            related = (claims.relation != UNSAID) | (kind != "relation")
            claims = Claims(**{k: x[related][:n] for k, x in vars(claims).items()})
            if kind == "form":
                return claims, sentences(claims, generator=words)
            said = read_tokens(caption_tokens(claims, generator=generator))
        return claims, reworded(said, kind, generator=words)

    def picture(self, model: Denoiser, path: Path) -> None:
        """Leave a sheet: of every kind of other words a row, at w = 2."""
        rows, n = [], min(16, self.config.captions)
        for kind in (*OTHER_WORDS, "form"):
            said = tokens(self._reworded(kind, n)[1]).to(self.config.device)
            rows.append(self.draw(model, said, 2.0, SAMPLER_STEPS))
        save_sheet(torch.cat(rows), n, path)


def only(claims: Claims, kind: str) -> Claims:
    """Return claims that say of objects nothing but their shapes, or their colours."""
    others = {k for k in ("size", "colour", "shape") if k != kind}
    return replace(claims, **{k: torch.full_like(getattr(claims, k), UNSAID) for k in others})


def by_word(said: list[str], right: list[bool], words: dict[str, str]) -> dict[str, float]:
    """Return for each of some words the share of right pictures among its texts'."""
    found = {}
    for word in words:
        rows = [r for text, r in zip(said, right, strict=True) if word in text.split()]
        found[word] = round(sum(rows) / max(1, len(rows)), 4)
    return found


def headline(found: Metrics) -> str:
    """Say in a few words how well captions are drawn, and those with new names for shapes."""
    row, words = max(found["table"], key=lambda row: row["mix"]), found["wordings"][-1]
    rest = f"with other words for shapes {100 * words['shape']:.0f} %"
    return f"{100 * row['mix']:.0f} % of captions drawn right at w = {row['w']:g}, {rest}"
