"""DESIGN's rules for `tutorial_lib`, read from its syntax trees. Takes about 2 seconds.

Every rule is a function from a source text to the breaches found in it, and is itself tested on
planted ones.
"""

import ast
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "tutorial_lib"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(LIBRARY.rglob("*.py"))}

# A module sees the floors below and what stands before it on its own floor.
FLOORS = (
    ("gaussian", "schedule", "learned_schedule", "mixtures"),
    ("denoiser",),
    ("likelihood", "losses", "samplers", "analytic", "solvers", "dpm_solver", "guidance"),
    ("latent", "inpainting", "cascade", "unclip", "dreambooth"),
    (
        "download",
        "cifar10",
        "data",
        "shape_world",
        "subjects",
        "captions",
        "oracle",
        "pretrained",
        "wordings",
        "language_model",
        "metrics",
        "interrupts",
        "recorded",
        "borrowed",
        "ranks",
        "checkpoints",
        "train",
        "recipes",
    ),
    ("plotting", "exercises", "checks", "widgets"),
)
SYSTEMS, NOTEBOOKS_ONLY = 3, 5  # from floor 3 up networks are in sight; floor 5 may draw
NETWORKS = {"networks", "autoencoder", "first_stage", "text", "clip", "lora", "controlnet"}
NETWORKS_SEE = NETWORKS | {"gaussian"}  # one another and Gaussians, but no schedule
# The adaptive solver is scipy's: the course explains Runge and Kutta, and keeps no copy of them.
BESIDE_TORCH = {"solvers": {"numpy", "scipy"}}
DRAWING = {"matplotlib", "cycler", "IPython", "ipywidgets"}
IMPORT_NAMES = {"pillow": "PIL"}  # where a package's import name differs from its own

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 350, 40, 15
EXERCISE_LINES = 560  # a notebook's exercises are a catalogue: probes, truths and wrong answers


def unit(path: Path) -> str:
    """The module that floors speak of: the file or folder directly under the package."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """Every module that a source names in an import, dotted, relative ones marked by a dot."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            whole = {f"{base}.{name.name}" for name in node.names}
            found |= whole if base == "tutorial_lib" else {base}
    return found


def visible(module: str) -> set[str]:
    """The modules of the package that `module` may import."""
    if module in NETWORKS:
        return NETWORKS_SEE
    floor = next(i for i, names in enumerate(FLOORS) if module in names)
    below = {name for names in FLOORS[:floor] for name in names}
    own = FLOORS[floor][: FLOORS[floor].index(module) + 1]  # a package sees its own parts
    return below | set(own) | (NETWORKS if floor >= SYSTEMS else set())


def floor_breaches(module: str, source: str) -> Iterator[str]:
    if module not in NETWORKS and not any(module in names for names in FLOORS):
        yield f"{module} has no floor: give it one in FLOORS"
        return
    for name in sorted(imports(source)):
        if name.startswith("."):
            yield f"{module} imports {name}: write tutorial_lib and the module's name"
        elif name.startswith("tutorial_lib") and name.split(".")[1] not in visible(module):
            yield f"{module} imports {name}, which is not below it"


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in listed}
    return {IMPORT_NAMES.get(name, name) for name in names}


def stranger_breaches(module: str, source: str) -> Iterator[str]:
    """Packages that a module may not use: undeclared, or drawing, or more than torch too low."""
    allowed = declared()
    if module in NETWORKS or any(module in names for names in FLOORS[:SYSTEMS]):
        allowed = {"torch"} | BESIDE_TORCH.get(module, set())
    elif module in FLOORS[NOTEBOOKS_ONLY]:
        allowed |= declared("lab") | DRAWING
    known = allowed | set(sys.stdlib_module_names) | {"tutorial_lib", ""}
    for name in sorted({name.split(".")[0] for name in imports(source)} - known):
        yield f"{module} imports {name}; it may use {', '.join(sorted(allowed))}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0]
    said = ast.get_docstring(node, clean=False) is not None
    return node.end_lineno - node.lineno + 1 - said * (first.end_lineno - first.lineno + 1)


def size_breaches(name: str, source: str) -> Iterator[str]:
    limit = EXERCISE_LINES if name.startswith("exercises/") else FILE_LINES
    if (lines := len(source.splitlines())) > limit:
        yield f"{name} has {lines} lines, at most {limit}"
    for node in functions(ast.parse(source)):
        if length(node) > FUNCTION_LINES:
            yield f"{name}: {node.name} has {length(node)} lines, at most {FUNCTION_LINES}"


BANNED_FILES = {"utils", "util", "helpers", "helper", "common", "misc"}
BANNED_NAMES = {"foo", "baz", "qux", "eval", "exec"}
BANNED_CALLS = re.compile(
    r"torch\.(load|save|seed|manual_seed|default_generator|random\.\w+|cuda\.manual_seed\w*)"
    r"|(numpy\.random|random|pickle|dill|joblib)\.\w+"
)
BORROWER = "borrowed.py"  # what dropout draws from is global: this module lends and restores it
ADMITTED = {"pickle.UnpicklingError"}  # and pickle.Unpickler as the base of one with find_class
DRAWS = re.compile(
    r"(torch\.|.*\.)?(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson)"
    r"|.*\.(normal|uniform|bernoulli|exponential|random|cauchy|log_normal|geometric)_"
    r"|torch\.nn\.init\.(uniform_|normal_|trunc_normal_|xavier_\w+|kaiming_\w+|orthogonal_)"
    r"|.*\.(r?sample|sample_with_labels)"
)
# These know no generator at all, or take a seed in its place.
NEVER = re.compile(r"torch\.(rand|randn|randint)_like|.*\.seed")
SEEDED = re.compile(r".*(SobolEngine|qmc\.\w+)")


def spelled(node: ast.AST, aliases: dict[str, str]) -> str:
    """The dotted name of an expression with its imports' aliases undone; the rest as `?`."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{spelled(node.value, aliases)}.{node.attr}"
    return "?"


def aliases_in(tree: ast.AST) -> dict[str, str]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {n.asname: n.name for n in node.names if n.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return found


def banned_breaches(name: str, source: str) -> Iterator[str]:
    """Names that say nothing, global randomness, and files that run code when they are read."""
    if Path(name).stem in BANNED_FILES:
        yield f"{name}: a function without a home means a missing noun"
    tree = ast.parse(source)
    aliases = aliases_in(tree)
    safe = {id(base) for node in ast.walk(tree) for base in unpickler_bases(node, aliases)}
    for node in ast.walk(tree):
        said = getattr(node, "id", getattr(node, "arg", getattr(node, "name", None)))
        if isinstance(said, str) and said in BANNED_NAMES:
            yield f"{name}:{node.lineno} is called {said}"
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in safe:
            word = spelled(node, aliases)
            if BANNED_CALLS.fullmatch(word) and word not in ADMITTED:
                yield f"{name}:{node.lineno} uses {word}"
        if isinstance(node, ast.Call):
            yield from (f"{name}:{node.lineno} {why}" for why in draw_breaches(node, aliases))


def unpickler_bases(node: ast.AST, aliases: dict[str, str]) -> list[ast.AST]:
    """The bases of an unpickler that says what it admits."""
    if not isinstance(node, ast.ClassDef) or "find_class" not in {f.name for f in functions(node)}:
        return []
    return [base for base in node.bases if spelled(base, aliases) == "pickle.Unpickler"]


def draw_breaches(call: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    word = spelled(call.func, aliases)
    given = {keyword.arg for keyword in call.keywords}
    if NEVER.fullmatch(word):
        yield f"calls {word}, which draws from the global generator"
    elif DRAWS.fullmatch(word) and "generator" not in given:
        yield f"calls {word} without generator="
    elif SEEDED.fullmatch(word) and not given & {"seed", "rng", "generator"}:
        yield f"calls {word} without a seed"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_module_keeps_the_rules(path):
    name, source = str(path.relative_to(LIBRARY)), SOURCES[path]
    found = [*size_breaches(name, source)]
    if name != BORROWER:
        found += banned_breaches(name, source)
    if path != LIBRARY / "__init__.py":
        found += [*floor_breaches(unit(path), source), *stranger_breaches(unit(path), source)]
    assert not found, "\n".join(found)


def test_tools_are_as_short():
    paths = [*(ROOT / "tools").glob("*.py"), ROOT / "conftest.py"]
    found = [b for p in paths for b in size_breaches(p.name, p.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_the_package_itself_imports_nothing():
    assert not imports(SOURCES[LIBRARY / "__init__.py"])


def test_half_of_the_functions_are_short():
    lengths = [length(f) for source in SOURCES.values() for f in functions(ast.parse(source))]
    assert statistics.median(lengths) < MEDIAN_LINES


def test_the_style_is_ruff_s():
    ruff = Path(sys.executable).with_name("ruff")
    if not (ruff.exists() or (ruff := shutil.which("ruff"))):
        pytest.skip("ruff is not installed: pip install '.[test]'")
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"run `make lint`\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("schedule", "from tutorial_lib.denoiser import Denoiser"),
        ("schedule", "from tutorial_lib import mixtures"),
        ("gaussian", "from tutorial_lib.schedule import Schedule"),
        ("losses", "import tutorial_lib.samplers"),
        ("samplers", "from tutorial_lib.networks.mlp import MLP"),
        ("networks", "from tutorial_lib.schedule import Schedule"),
        ("autoencoder", "def f():\n    from tutorial_lib.denoiser import Denoiser"),
        ("train", "from tutorial_lib.checks import claim"),
        ("data", "from .metrics import energy_distance"),
        ("leftovers", ""),
    ],
)
def test_a_planted_import_is_found(module, line):
    assert list(floor_breaches(module, line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("denoiser", "from tutorial_lib.mixtures import GaussianMixture"),
        ("autoencoder", "from tutorial_lib.networks.mlp import MLP"),
        ("recipes", "from tutorial_lib import autoencoder, train"),
        ("widgets", "from tutorial_lib.plotting import figure"),
    ],
)
def test_a_rightful_import_is_admitted(module, line):
    assert not list(floor_breaches(module, line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("metrics", "import matplotlib.pyplot as plt"),
        ("train", "from IPython.display import display"),
        ("networks", "import numpy as np"),
        ("schedule", "from scipy import integrate"),
        ("samplers", "from scipy.integrate import solve_ivp"),
        ("likelihood", "import numpy as np"),
        ("solvers", "import torchdiffeq"),
        ("solvers", "import safetensors"),
        ("plotting", "import seaborn"),
        ("data", "import pandas"),
    ],
)
def test_a_planted_package_is_found(module, line):
    assert list(stranger_breaches(module, line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("solvers", "from scipy.integrate import solve_ivp"),
        ("metrics", "import numpy as np"),
        ("widgets", "import matplotlib.pyplot as plt"),
    ],
)
def test_a_rightful_package_is_admitted(module, line):
    assert not list(stranger_breaches(module, line))


@pytest.mark.parametrize(
    ("head", "line", "most"),
    [
        ("", "x = 0\n", 350),
        ("def f():\n", "    x = 0\n", 39),
        ('class A:\n    def f(self):\n        """Do."""\n', "        x = 0\n", 39),
    ],
)
def test_a_planted_length_is_found(head, line, most):
    assert not list(size_breaches("planted", head + line * most))
    assert len(list(size_breaches("planted", head + line * (most + 1)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.manual_seed(0)",
        "import torch as t\nt.randn(3)",
        "from torch import randn as draw\ndraw(3)",
        "import torch\ntorch.randn_like(x, generator=g)",
        "x.normal_(0, 1)",
        "from torch.nn import init\ninit.kaiming_uniform_(w)",
        "import torch\ntorch.random.fork_rng()",
        "import numpy as np\nnp.random.default_rng(0)",
        "from numpy.random import default_rng\ndefault_rng(0)",
        "import random\nrandom.random()",
        "mixture.sample(100)",
        "generator.seed()",
        "import torch\ntorch.quasirandom.SobolEngine(2, scramble=True)",
        "import torch\ntorch.load('a.pt')",
        "from torch import save\nsave(x, 'a.pt')",
        "import pickle\npickle.loads(b'')",
        "import pickle\npickle.Unpickler(file).load()",
        "import pickle\nclass All(pickle.Unpickler):\n    pass",
        "eval('1')",
        "def foo():\n    pass",
    ],
)
def test_a_planted_ban_is_found(source):
    assert list(banned_breaches("planted.py", source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.randn(3, generator=g)",
        "x.uniform_(-1, 1, generator=g)",
        "mixture.sample(100, generator=g)",
        "import torch\ntorch.Generator().manual_seed(0)",
        "import pickle\nclass Some(pickle.Unpickler):\n    def find_class(self, m, n): ...",
    ],
)
def test_the_allowed_form_is_admitted(source):
    assert not list(banned_breaches("planted.py", source))


def test_a_drawer_of_odds_and_ends_is_found():
    assert list(banned_breaches("networks/utils.py", ""))
