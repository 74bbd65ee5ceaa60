"""The language model: tokens and features by other hands, its authors' numbers. Takes 6 s."""

import ast
import hashlib
import json
import re
import sys
import unicodedata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from truths import copy_blocks, generator

from tutorial_lib import language_model
from tutorial_lib.denoiser import Condition
from tutorial_lib.language_model import (
    ROOM,
    LanguageModel,
    LanguageModelConfig,
    LanguageModelMissing,
    WordPiece,
    minilm,
    sentence,
    told,
    words,
)
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.pretrained import WeightsError
from tutorial_lib.wordings import WORDS, course_texts

# WordPiece on a vocabulary of 14

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "una", "##a", "##ble", "##ff", "##able"]
VOCABULARY += [",", "cafe", "a", "##b"]


def spoken(*texts):
    return [[VOCABULARY[k] for k in row] for row in WordPiece(VOCABULARY)(texts).tolist()]


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("una", ["una"]),  # not un ##a
        ("unable", ["una", "##ble"]),  # nor un ##able, which goes on from a shorter one
        ("unffable", ["un", "##ff", "##able"]),  # not ##a ##ble
        ("unaff", ["una", "##ff"]),
        ("ble", ["[UNK]"]),  # no word begins with it
        ("unx", ["[UNK]"]),  # the whole word, not un [UNK]
        ("xun", ["[UNK]"]),
        ("unab", ["una", "##b"]),
        ("a" + 99 * "b", ["a", *99 * ["##b"]]),
        ("a" + 100 * "b", ["[UNK]"]),  # too long a word
    ],
)
def test_the_longest_piece_comes_first(word, pieces):
    assert WordPiece(VOCABULARY).pieces(word) == pieces


def test_texts_are_framed_and_filled_up():
    got = spoken("Café, UNABLE", "a,a", "")
    assert got == [
        ["[CLS]", "cafe", ",", "una", "##ble", "[SEP]"],
        ["[CLS]", "a", ",", "a", "[SEP]", "[PAD]"],
        ["[CLS]", "[SEP]", *4 * ["[PAD]"]],
    ]
    tokens = WordPiece(VOCABULARY)(text for text in ("a", ""))
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[2, 12, 3], [2, 3, 0]]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        (" Crème\tBRÛLÉE\n\r ", "creme brulee"),
        ("don't (stop)...", "don ' t ( stop ) . . ."),
        ("$5+5=10^1~`|<a@b>", "$ 5 + 5 = 10 ^ 1 ~ ` | < a @ b >"),
        ("“Grüße”—¿qué?", "“ gruße ” — ¿ que ?"),
        ("漢字かな", "漢 字 かな"),
        ("a\u00adb\x00c\ufffdd\u200de", "abcde"),
        ("a\u00a0b\u2003c", "a b c"),
        ("№ 1€ 2°", "№ 1€ 2°"),
    ],
)
def test_words_are_split_as_bert_does(text, split):
    assert words(text) == split.split()


def test_a_text_that_is_too_long_is_refused():
    wordpiece = WordPiece(VOCABULARY)
    assert wordpiece([254 * "a "]).shape == (1, 256)
    with pytest.raises(ValueError, match="a text has 257 tokens, and this model reads 256"):
        wordpiece(["a", 255 * "a "])


def test_filling_must_be_what_the_model_does_not_see():
    with pytest.raises(ValueError, match=r"'\[UNK\]' where \[PAD\] should be"):
        WordPiece(VOCABULARY[1:])


# The network, with weights drawn, in float64

SMALL = LanguageModelConfig(vocabulary=14, width=12, depth=3, heads=3, inner=20, positions=9)
TOKENS = torch.tensor([[2, 4, 6, 3, 0, 0], [2, 6, 4, 3, 0, 0], [2, 12, 10, 12, 9, 3]])


def small():
    model, draw = LanguageModel(SMALL), generator(0)
    drawn = {
        name: torch.randn(x.shape, generator=draw, dtype=torch.float64) / 2
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(drawn, assign=True)
    return model.eval()


def torchs(ours):
    """PyTorch's encoder with the same weights."""
    layer = torch.nn.TransformerEncoderLayer(
        **{"d_model": 12, "nhead": 3, "dim_feedforward": 20, "dropout": 0.0},
        **{"activation": "gelu", "batch_first": True, "norm_first": False},
        layer_norm_eps=1e-12,
    )
    theirs = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double().eval()
    copy_blocks(ours, theirs)
    return theirs


def test_it_is_pytorchs_transformer():
    ours = small()
    x = ours.words.weight[TOKENS] + ours.places.weight[torch.arange(6)] + ours.kinds.weight[0]
    x = F.layer_norm(x, (12,), ours.norm.weight, ours.norm.bias, eps=1e-12)
    with torch.no_grad():
        theirs = torchs(ours)(x, src_key_padding_mask=TOKENS == 0)
        gap = (ours(TOKENS) - theirs).abs()[TOKENS != 0].max()
    assert float(gap) < 1e-12


def test_filling_is_not_looked_at():
    ours, alone = small(), TOKENS[:2, :4]
    assert torch.allclose(ours(TOKENS)[:2, :4], ours(alone), atol=1e-12)
    assert torch.allclose(sentence(ours, TOKENS)[:2], sentence(ours, alone), atol=1e-12)


def test_a_sentence_is_the_mean_of_its_tokens():
    ours = small()
    means = [ours(row[row != 0][None])[0].mean(0) for row in TOKENS]
    assert torch.allclose(sentence(ours, TOKENS), F.normalize(torch.stack(means)), atol=1e-12)


# What is installed, whole


def folder():
    return Path(find_spec(language_model.PACKAGE).submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def real():
    if find_spec(language_model.PACKAGE) is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install '.[lm]'")
    return minilm()


def test_it_comes_frozen_and_whole(real):
    model, wordpiece = real
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # 22713216 in the file, of which 384^2 + 384 are the pooler's
    assert sum(p.numel() for p in model.parameters()) == 22713216 - 384 * 385
    assert len(wordpiece.numbers) == 30522
    assert language_model.PACKAGE not in sys.modules


def test_cosines_are_those_that_its_authors_show(real):
    model, wordpiece = real
    said = ["That is a happy person", "That is a happy dog", "That is a very happy person"]
    vectors = sentence(model, wordpiece([*said, "Today is a sunny day"]))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4))
    cosines = vectors[1:] @ vectors[0]
    assert (cosines - torch.tensor([0.6946, 0.9429, 0.2569])).abs().max() < 2e-3


def test_a_u_net_reads_its_features(real):
    model, wordpiece = real
    config = UNetConfig(
        **{"channels": 8, "multipliers": (1, 2), "depth": 1, "attention": (4,), "side": 8},
        **{"dropout": 0.0, "text_width": 384},
    )
    net = UNet(config, generator=generator(1)).eval().requires_grad_(False)
    for p in net.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=generator(2)))
    tokens = wordpiece(["a red circle", "a large blue square left of a red circle"])
    told = Condition(text=model(tokens), mask=tokens != 0)
    x, clock = torch.randn(1, 3, 8, 8, generator=generator(3)).expand(2, -1, -1, -1), torch.ones(2)
    both = net(x, clock, told)
    assert (both[0] - both[1]).abs().max() > 1e-3
    first = wordpiece(["a red circle"])
    alone = net(x[:1], clock[:1], Condition(text=model(first), mask=first != 0))
    assert torch.allclose(both[:1], alone, atol=1e-5)


# Its tokens by other hands


@pytest.fixture(scope="module")
def theirs(real):
    reason = "tokenizers is not installed: pip install '.[lm]'"
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def assert_same_tokens(wordpiece, theirs, texts):
    for text, row in zip(texts, wordpiece(texts).tolist(), strict=True):
        ids = theirs.encode(text).ids
        assert row == ids + [0] * (len(row) - len(ids)), text


PARTS = (
    *("A large red circle", "to the left of", "an unaffable", "QUEUEING", "3.14159", "x_t"),
    *("Schrödinger’s naïve café", "Straße", "İstanbul", "Ångström", "piñata", "e\u0301cole"),
    *("don't", "e-mail@example.org", "http://a.b/c?d=e&f=[g]", "C++", "#hash #tag", "50%"),
    *("漢字とかな", "한국어", "русский язык", "Ἑλλάς", "שלום", "العربية", "हिन्दी", "ไทย"),
    *("🙂", "½ ≤ √2", "a\u200bb", "tab\there", "line\nbreak", "no\u00a0break", "“quoted”…"),
    *("Donaudampfschifffahrtsgesellschaft", "pneumonoultramicroscopic", "z" * 101, "ab" * 50),
)


def test_two_hundred_sentences_have_the_tokens_of_the_authors_tokenizer(real, theirs):
    draw, texts = generator(4), []
    for length in range(200):
        chosen = torch.randint(len(PARTS), (length % 9,), generator=draw)
        glue = ("", " ", ", ", "  ")[int(torch.randint(4, (), generator=draw))]
        texts.append(glue.join(PARTS[k] for k in chosen))
    assert_same_tokens(real[1], theirs, texts)


# These have changed their kind since the Unicode that their tokenizer was made with.
CHANGED = {"\u166d", "\u1734", "\u1885", "\u1886"}


def test_every_letter_of_unicode_3_is_kept_split_or_dropped_as_by_theirs(real, theirs):
    old = unicodedata.ucd_3_2_0
    known = [c for c in map(chr, range(0x30000)) if old.category(c) not in ("Cn", "Co", "Cs")]
    known = [f"a{c}b" for c in known if c not in CHANGED]
    assert len(known) > 90_000
    texts = [" ".join(known[k : k + 40]) for k in range(0, len(known), 40)]
    assert_same_tokens(real[1], theirs, texts)


def test_features_are_those_of_the_transformers_package(real):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install '.[lm]'"
    )
    model, wordpiece = real
    tokens = wordpiece(["That is a happy person", "Schrödinger’s cat, unobserved, said: no!", ""])
    theirs = transformers.BertModel.from_pretrained(folder(), local_files_only=True).eval()
    with torch.no_grad():
        right = theirs(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    assert (model(tokens) - right).abs()[tokens != 0].max() < 1e-5


# What is missing, or not what it should be


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(language_model, "find_spec", lambda name: None)
    with pytest.raises(LanguageModelMissing, match=r"MiniLM.*pip install 'tutorial_lib\[lm\]'"):
        minilm()


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors"])
def test_a_file_that_was_changed_is_refused(name, tmp_path, monkeypatch):
    spec = ModuleSpec(language_model.PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(language_model, "find_spec", lambda name: spec)
    (tmp_path / "model").mkdir()
    for other in language_model.SHA256:
        (tmp_path / "model" / other).write_bytes(b"[PAD] it")
    digest = hashlib.sha256(b"[PAD] it").hexdigest()
    monkeypatch.setattr(language_model, "SHA256", dict.fromkeys(language_model.SHA256, digest))
    (tmp_path / "model" / name).write_bytes(b"[PAD] is")
    with pytest.raises(WeightsError, match=f"{name} is not the published file"):
        minilm()


# What a network is told of texts


def test_the_courses_texts_come_with_the_package(monkeypatch):
    monkeypatch.setattr(language_model, "find_spec", lambda name: None)
    cond = told(course_texts())
    assert cond.text.shape == (len(course_texts()), ROOM, 384)
    assert cond.mask[0].tolist() == [True, True] + [False] * (ROOM - 2)  # [CLS] [SEP]
    assert (cond.text[~cond.mask] == 0).all()
    with pytest.raises(LanguageModelMissing, match="pip install"):
        told(["a large red disc", "a wheel"])


def test_the_texts_of_the_notebook_are_among_them():
    notebook = Path(__file__).parents[1] / "notebooks" / "13_imagen.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    spoken = {
        node.value
        for source in code
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and re.match(r"(an?|the|i) \w+ \w", str(node.value))
        and set(node.value.replace(",", " ,").split()) <= set(WORDS)
    }
    assert {"a large red disc", "the ring is large and red"} <= spoken <= set(course_texts())


def test_they_are_what_the_language_model_makes_of_them(real):
    model, wordpiece = real
    tokens = wordpiece(course_texts())
    cond, right = told(course_texts()), model(tokens)
    seen = tokens != 0
    assert torch.equal(cond.mask[:, : tokens.shape[1]], seen)
    assert (cond.text[:, : tokens.shape[1]] - right).abs()[seen].max() < 2e-3  # half precision


def test_other_texts_are_read_by_the_model(real):
    cond = told(["a wheel", "a large red disc"])
    assert cond.mask.sum(1).tolist() == [4, 6]
    stored = told(["a large red disc"])
    assert (cond.text[1] - stored.text[0]).abs().max() < 2e-3
    with pytest.raises(ValueError, match="room for 32"):
        told(["disc " * 40])
