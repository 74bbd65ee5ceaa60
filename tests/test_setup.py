"""Pins, README, licences: what a stranger meets before the first command. Takes 2 seconds."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import notebooks

ROOT = Path(__file__).parents[1]
EXTRAS = ("lab", "test", "classroom", "site", "oracles", "lm")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# The pins


def pins() -> dict[str, str]:
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package is pinned twice"
    return {lab.canonical(name): version for name, version in found.items()}


def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))["project"]


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"]
    assert set(extras) == set(EXTRAS)
    lines = project()["dependencies"] + [line for extra in EXTRAS for line in extras[extra]]
    return [Requirement(line) for line in lines]


def closure() -> set[str]:
    """Every installed package that the project needs, with what these need in turn."""
    waiting, found = [(r.name, r.extras) for r in requirements()], set()
    while waiting:
        name, extras = waiting.pop()
        if (lab.canonical(name), frozenset(extras)) in found:
            continue
        found.add((lab.canonical(name), frozenset(extras)))
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            of_torch = name == "torch" and lab.canonical(need.name) not in pins()  # CUDA's, Triton
            chosen = [{"extra": extra} for extra in ("", *extras)]
            if not of_torch and (not need.marker or any(map(need.marker.evaluate, chosen))):
                waiting.append((need.name, need.extras))
    return {name for name, _ in found}


def test_pins_are_exact_and_of_no_local_build():
    assert all(re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", version) for version in pins().values())


def test_every_requirement_has_a_pin_that_satisfies_it():
    for need in requirements():
        assert need.specifier.contains(pins()[lab.canonical(need.name)]), need


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="expected: constraints.txt is the set of Linux and Python 3.11",
)
def test_pins_are_the_whole_set_and_nothing_else():
    assert closure() == set(pins())


def test_conda_takes_its_versions_from_the_pins():
    python, pip, packages = yaml.safe_load(text("environment.yml"))["dependencies"]
    version = python.removeprefix("python=")
    assert SpecifierSet(project()["requires-python"]).contains(version) and pip == "pip"
    assert packages == {"pip": ["-c constraints.txt", "-e .[lab]"]}


def test_npm_pins_are_exact():
    package = json.loads(text("package.json"))
    versions = [
        *package.get("dependencies", {}).values(),
        *package["devDependencies"].values(),
    ]
    assert versions and all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)


# The README


def table_breaches(readme: str, courses: dict[str, dict]) -> Iterator[str]:
    """Rows of the README's table that differ from the notebooks' own metadata, by file stem."""
    rows = re.findall(r"(?m)^\| (\d\d) \| (.+?) \| (.+?) \| (ready|planned) \|$", readme)
    if [row[0] for row in rows] != [f"{n:02}" for n in range(1, 19)]:
        yield "the table does not list the notebooks 01 to 18 in order"
    expected = {
        stem[:2]: (f"[{course['title']}](notebooks/{stem}.ipynb)", "; ".join(course["papers"]))
        for stem, course in courses.items()
    }
    for number, title, papers, status in rows:
        if number in expected and (title, papers, status) != (*expected[number], "ready"):
            yield f"should be: | {number} | {' | '.join(expected[number])} | ready |"
        elif number not in expected and status == "ready":
            yield f"calls notebook {number} ready, which does not exist"


def test_the_table_agrees_with_the_notebooks():
    paths = (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    courses = {path.stem: json.loads(path.read_text())["metadata"]["course"] for path in paths}
    assert not list(table_breaches(text("README.md"), courses))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| [One]", "| [Won]"),
        ("01_one.ipynb", "01_won.ipynb"),
        ("A 2020", "A 2021"),
        ("ready", "planned"),
        ("| 03 | Three | B | planned |\n", ""),
        ("| 04 | Three | B | planned |", "| 04 | Three | B | ready |"),
    ],
)
def test_a_wrong_table_is_found(old, new):
    courses = {"01_one": {"title": "One", "papers": ["A 2020", "B"]}}
    good = "| 01 | [One](notebooks/01_one.ipynb) | A 2020; B | ready |\n"
    good += "".join(f"| {n:02} | Three | B | planned |\n" for n in range(2, 19))
    assert not list(table_breaches(good, courses)) and old in good
    assert list(table_breaches(good.replace(old, new), courses))


def test_every_command_of_the_readme_exists():
    targets = set(re.findall(r"(?m)^(\w+):", text("Makefile")))
    named = set(re.findall(r"(?m)(?:^|`)make (\w+)", text("README.md")))
    assert {"lab", "test", "run", "book", "lint"} <= named <= targets
    knobs = set(re.findall(r"make lab (\w+)=", text("README.md")))
    assert knobs and all(f"$({knob})" in text("Makefile") for knob in knobs - {"KEEP_TORCH"})
    assert '-m pip install -c constraints.txt -e ".[lab]"' in text("README.md")
    assert lab.LESSON in text("README.md")


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#:]+)\)", text("README.md")):
        assert (ROOT / target).exists(), target


def test_the_picture_of_the_readme_is_notebook_01_s():
    stem, cell = notebooks.COVER
    lesson = notebooks.read(ROOT / "notebooks" / f"{stem}.ipynb")
    path, *_ = re.findall(r"!\[[^\]]+\]\((.+?)\)", text("README.md"))
    assert (ROOT / path).read_bytes() == notebooks.picture(lesson, cell)


# What is in the repository


def test_the_licences_are_there():
    assert "MIT License" in text("LICENSE")
    legal = text("LICENSE-text")
    assert (
        "creativecommons.org/licenses/by/4.0" in legal and "Section 8 -- Interpretation" in legal
    )
    assert project()["license"] == "MIT"
    assert yaml.safe_load(text("CITATION.cff"))["license"] == ["MIT", "CC-BY-4.0"]


MACHINE = re.compile(
    r"/(?:work|farm|tmp|root|opt|home|Users)/(?!me\b)[\w.-]+|[A-Z]:\\Users"
    r"|(?:pypi|pythonhosted|npmjs|npmmirror|debian|pytorch|anaconda|condaforge)\.(?:org|com|io)"
    r"(?=/(?:simple|packages|whl|debian|conda)\b)|(?:files|registry|deb|download|index)\.(?!html\b)\w+\.\w+"
)


def test_no_file_names_a_machine_or_a_registry():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("expected: this is no git checkout, so there is no list of its files")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".jpg", ".png", ".safetensors", ".xz"}:
            found = MACHINE.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0]}"


@pytest.mark.parametrize(
    "planted",
    [
        "/".join(["", "home", "ada", "notes"]),
        "/".join(["", "tmp", "x"]),
        "C:" + r"\Users\ada",
        ".".join(["https://files", "pythonhosted", "org/packages/x"]),
        ".".join(["https://pypi", "org/simple"]),
        ".".join(["https://registry", "npmjs", "org/katex"]),
        ".".join(["https://download", "pytorch", "org/whl/cpu"]),
    ],
)
def test_a_planted_machine_or_registry_is_found(planted):
    assert MACHINE.search(f"see {planted} for more")
