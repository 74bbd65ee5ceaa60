"""Every formula of `tutorial_lib` names its source, and every source is in CITATION.cff.

A public function or method that computes (it multiplies, takes a power, calls exp or log …, itself
or through a private helper) cites (`DDIM (Song et al. 2021), eq. 12`), or belongs to a class that
does, or is listed below as plumbing; a network, which computes through its layers, cites always.
What does not compute has nothing to cite. Takes half a second.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "tutorial_lib"
# For notebooks, and runs whose formulas stand in the modules that they call.
WITHOUT_FORMULAS = {"plotting", "checks", "widgets", "exercises", "recipes"}

# What computes without a formula of any paper: pixels, toys, exp(log_alpha), the course's own
# measures. A name that cites or is gone may not stay here.
PLUMBING = {
    "captions": {"caption_likelihood", "caption_tokens", "write_tokens"},
    "cifar10": {"cache_folder", "cifar10", "to_pixels"},
    "controlnet": {"feature_sides"},
    "data": {"std8", "overlap3", "moons", "spirals", "checkerboard"},
    "metrics": {"mode_coverage", "within_mode_variance_ratio"},
    "networks/convolutional": {"downward", "upward"},
    "oracle": {"read", "shares_right"},
    "pretrained": {"checksums", "weights"},
    "shape_world": {"distances", "draw_scenes", "frames", "layout", "masks", "outlines", "render"},
    "subjects": {"render_subject", "shows"},
    "schedule": {"Schedule.alpha", "Schedule.at", "Schedule.sigma", "time_like", "uniform_times"},
    "train": {"train"},
    "wordings": {"tokens"},
}

PRODUCTS = ast.Mult | ast.Div | ast.Pow | ast.MatMult
FORMULAS = re.compile(
    "exp|expm1|log|log1p|log2|r?sqrt|square|sin|cos|tan|tanh|(log)?sigmoid|softplus|(log_)?softmax"
    "|logsumexp|logaddexp|erf|erfinv|einsum|matmul|bmm|norm|det|logdet|inverse|cholesky|eigv?als?h?"
    "|eigh|svd|solve|cdist|cumprod|prod|var|std|lerp|kl|entropy|log_prob"
)

# Ho et al. 2020 · Ho & Salimans (2022) · Luo, 2022
CITATION = re.compile(
    r"\b(?P<first>[A-Z][\w'-]+)(?P<others> et al\.| (?:&|and) [A-Z][\w'-]+)?,? "
    r"\(?(?P<year>(?:19|20)\d\d)\b"
)
AUTHORS = {"": (1, 1), " et al.": (3, 99)}  # how many authors a citation's form stands for
TWO = (2, 2)


def bibliography() -> set[tuple[str, int, int]]:
    """First author, number of authors and year of every reference in CITATION.cff."""
    listed = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    return {(r["authors"][0]["family-names"], len(r["authors"]), r["year"]) for r in listed}


def citations(text: str) -> Iterator[re.Match[str]]:
    return CITATION.finditer(" ".join(text.split()))


def known(citation: re.Match[str], references: set[tuple[str, int, int]]) -> bool:
    fewest, most = AUTHORS.get(citation["others"] or "", TWO)
    return any(
        first == citation["first"] and fewest <= authors <= most and year == int(citation["year"])
        for first, authors, year in references
    )


@dataclass(frozen=True)
class Definition:
    """A function, method or class as its module defines it."""

    name: str
    node: ast.FunctionDef | ast.ClassDef
    owner: ast.ClassDef | None = None

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))

    @property
    def cites(self) -> bool:
        told = [ast.get_docstring(node) or "" for node in (self.node, self.owner) if node]
        return any(any(citations(text)) for text in told)


def definitions(source: str) -> list[Definition]:
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(Definition(node.name, node))
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found += [Definition(f"{node.name}.{m.name}", m, node) for m in methods]
    return found


def computes(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a function multiplies, calls one of FORMULAS, or calls a helper that computes."""
    for part in ast.walk(node):
        called = getattr(part, "attr", getattr(part, "id", None))
        if isinstance(part, ast.BinOp) and isinstance(part.op, PRODUCTS):
            return True
        if isinstance(called, str) and (called in helpers or FORMULAS.fullmatch(called)):
            return True
    return False


def computing(source: str) -> set[str]:
    """The names of the definitions that compute, private helpers followed to the end."""
    functions = [d for d in definitions(source) if isinstance(d.node, ast.FunctionDef)]
    helpers, before = set[str](), None
    while helpers != before:
        before = set(helpers)
        names = {d.node.name for d in functions if computes(d.node, before)}
        helpers |= {name for name in names if re.match("_[a-z]", name)}
    networks = {d.name for d in definitions(source) if is_network(d.node)}
    return networks | {d.name for d in functions if computes(d.node, helpers)}


def is_network(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "nn.Module" in map(ast.unparse, node.bases)


def source_breaches(
    source: str, plumbing: set[str], references: set[tuple[str, int, int]]
) -> Iterator[str]:
    found = {d.name: d for d in definitions(source) if d.public}
    silent = {name for name in computing(source) & found.keys() if not found[name].cites}
    for name in sorted(silent):
        if not plumbing & {name, name.split(".")[0]}:
            yield f"{name} computes and cites no source"
    needed = silent | {name.split(".")[0] for name in silent}
    for name in sorted(plumbing - needed):
        yield f"{name} need not be in PLUMBING: it cites, does not compute, or is gone"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for citation in citations(ast.get_docstring(node) or ""):
                if not known(citation, references):
                    yield f"CITATION.cff has no reference for {citation[0]}"


def modules() -> dict[str, Path]:
    found = {p.relative_to(LIBRARY).with_suffix("").as_posix(): p for p in LIBRARY.rglob("*.py")}
    return {m: p for m, p in found.items() if m.split("/")[0] not in WITHOUT_FORMULAS}


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_formula_names_its_source(module):
    source = modules()[module].read_text(encoding="utf-8")
    found = list(source_breaches(source, PLUMBING.get(module, set()), bibliography()))
    assert not found, "\n".join(found)


def test_plumbing_is_the_smaller_part():
    sources = [path.read_text(encoding="utf-8") for path in modules().values()]
    compute = [d for s in sources for d in definitions(s) if d.public and d.name in computing(s)]
    assert sum(map(len, PLUMBING.values())) < len(compute) / 5


REFERENCES = {("Ho", 3, 2020), ("Ho", 2, 2022), ("Luo", 1, 2022)}


@pytest.mark.parametrize(
    "said",
    [
        "DDPM (Ho et al. 2020), eq. 7.",
        "Guidance, Ho & Salimans 2022, section 3.",
        "As in Ho and\n    Salimans (2022).",
        "Luo, 2022.",
    ],
)
def test_a_citation_is_recognised(said):
    assert not list(source_breaches(f'def f(x):\n    """{said}"""\n    x * x', set(), REFERENCES))


@pytest.mark.parametrize(
    "source",
    [
        'def f(x):\n    """Do it, eq. 12."""\n    x**2',
        'def f(x):\n    """Do as the paper (2020)."""\n    x.exp()',
        'class A:\n    """Hold."""\n    def f(self, x):\n        """Do."""\n        torch.log(x)',
        'def f(x):\n    """Do."""\n    _g(x)\ndef _g(x): _h(x)\ndef _h(x): x @ x',
        'class A(nn.Module):\n    """Map."""',
    ],
)
def test_a_formula_without_a_source_is_found(source):
    assert [breach for breach in source_breaches(source, set(), REFERENCES)]


@pytest.mark.parametrize(
    "source",
    [
        'def f(x):\n    """Do."""\n    return x + 1',
        'class A(nn.Module):\n    """Map (Luo 2022)."""\n    def f(self, x):\n        x * x',
    ],
)
def test_what_needs_no_source_is_admitted(source):
    assert not list(source_breaches(source, set(), REFERENCES))


@pytest.mark.parametrize("said", ["Ho et al. 2021", "Ho 2020", "Luo & Ho 2022", "Lu 2022"])
def test_a_source_outside_the_bibliography_is_found(said):
    source = f'def f():\n    """Do ({said})."""'
    assert list(source_breaches(source, set(), REFERENCES)) == [
        f"CITATION.cff has no reference for {said}"
    ]


@pytest.mark.parametrize(
    "source", ["", "def f(x):\n    x + 1", 'def f(x):\n    """Do (Luo 2022)."""\n    x * x']
)
def test_idle_plumbing_is_found(source):
    assert "f need not be in PLUMBING" in next(source_breaches(source, {"f"}, REFERENCES))
