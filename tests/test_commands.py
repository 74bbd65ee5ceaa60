"""What `make lab` and `.ci/run` do, and what they say when something is in the way. Takes 5 s."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import lab
import pytest

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=plain | environment, capture_output=True, text=True
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a failed command, make's own closing line aside."""
    assert done.returncode != 0
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("make: ***")][-1]


# What `make lab` says


def test_a_second_call_installs_nothing(tmp_path):
    for stamp in (".lab", ".classroom", ".all"):
        (tmp_path / stamp).touch()
    for target in ("lab", "slides", "classroom", "test"):
        assert (
            " install " not in make("-n", target, f"VENV={tmp_path}", "-o", "node_modules").stdout
        )
        for changed in ("constraints.txt", "pyproject.toml"):
            assert " install " in make("-n", "-W", changed, target, f"VENV={tmp_path}").stdout
    for target in ("lab", "classroom"):
        assert "--port 8899" in make("-n", target, "PORT=8899", f"VENV={tmp_path}").stdout


def python_that_says(version: tuple[int, ...], folder: Path) -> str:
    """A Python that takes itself for another version."""
    script = folder / "python3"
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    script.write_text(
        f'#!/bin/sh\ncase $1 in --version) echo "Python {".".join(map(str, version))}";;\n'
        f'*) exec {shlex.quote(sys.executable)} -c {shlex.quote(pretend)} "$2";; esac\n'
    )
    script.chmod(0o755)
    return str(script)


def test_an_old_python_is_named(tmp_path):
    old = python_that_says((3, 10, 4), tmp_path)
    said = sentence(make("lab", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"))
    assert "needs Python 3.11 or newer" in said and "Python 3.10.4" in said
    assert "make lab PYTHON=python3.12" in said and not (tmp_path / "venv").exists()
    floor = tomllib.loads(text("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    assert f"Python {floor} or newer" in said


def test_a_missing_python_is_named(tmp_path):
    said = sentence(make("lab", "PYTHON=python3.99", f"VENV={tmp_path / 'venv'}"))
    assert "needs Python 3.11 or newer, and python3.99 is" in said and "not found" in said


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_network_is_named(tmp_path, monkeypatch):
    nowhere = {"PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}", "PIP_RETRIES": "1"}
    nowhere |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    download = [sys.executable, "-m", "pip", "download", "--dest", str(tmp_path), "torch"]
    with pytest.raises(
        SystemExit, match=r"^No package could be downloaded.*offline.*run the command"
    ):
        lab.run(download, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="expected: needs Linux's /dev/full")
def test_a_full_disk_is_named(tmp_path):
    write = "import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')"
    with pytest.raises(
        SystemExit, match=r"^The disk is full .* GB free for temporary files.*again"
    ):
        lab.run([sys.executable, "-c", write], tmp_path)


def test_a_disk_that_venv_found_full_is_named(tmp_path, monkeypatch):
    """The venv module swallows the reason; the free space tells it."""
    failing = [sys.executable, "-c", "import sys; sys.exit('Error: ensurepip returned 1')"]
    with pytest.raises(SystemExit, match=r"ensurepip returned 1\n.*its own words stand above"):
        lab.run(failing, tmp_path)
    monkeypatch.setattr(lab, "free_space", lambda venv: {str(venv): 4096})
    with pytest.raises(SystemExit, match=r"^The disk is full \(0.00 GB free for .*\)"):
        lab.run(failing, tmp_path)
    with pytest.raises(SystemExit, match=r"^The disk is full"):
        lab.open_lab(tmp_path, closed_port(), [])


@pytest.mark.parametrize("target", ["lab", "classroom"])
def test_a_busy_port_is_named(tmp_path, target):
    (tmp_path / f".{target}").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        said = sentence(make(target, f"PORT={port}", f"VENV={tmp_path}", "-o", "node_modules"))
    assert f"Port {port} is in use" in said and f"make {target} PORT={port + 1}" in said


# A PyTorch of one's own


def distribution(folder: Path, name: str, version: str, *needs: str) -> None:
    """Write an installed package by hand."""
    info = folder / f"{name}-{version}.dist-info"
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    info.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    (info / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {need}" for need in needs]))
    (info / "RECORD").write_text(
        f"{name}/__init__.py,,\n{info.name}/METADATA,,\n../bin/{name},,\n"
    )


def test_a_torch_of_ones_own_is_kept(tmp_path, monkeypatch):
    owned = tmp_path / "owned"
    distribution(
        owned, "torch", "9.9.1+own", "gpu-maths>=1 ; python_version > '3'", "numpy", "gone"
    )
    distribution(owned, "gpu_maths", "1.0", "torch")
    distribution(owned, "numpy", "0.1")
    distribution(owned, "unrelated", "1.0")
    monkeypatch.syspath_prepend(str(owned))
    venv = tmp_path / "venv"
    lab.borrow_torch(venv)
    linked = {path.name for path in (venv / "borrowed").iterdir()}
    assert linked == {"torch", "torch-9.9.1+own.dist-info", "gpu_maths", "gpu_maths-1.0.dist-info"}
    (path_file,) = lab.site_packages(venv).glob("*.pth")
    assert path_file.read_text().strip() == str(venv / "borrowed")
    changed = set(lab.constraints(venv).read_text().splitlines())
    assert changed ^ set(text("constraints.txt").splitlines()) == {
        "torch==9.9.1+own",
        *re.findall(r"(?m)^torch==.*$", text("constraints.txt")),
    }
    (owned / "torch").rename(owned / "elsewhere")
    with pytest.raises(SystemExit, match="borrowed is gone: remove the folder"):
        lab.constraints(venv)


def test_a_torch_that_cannot_be_kept_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="already holds a PyTorch of its own: remove"):
        lab.borrow_torch(tmp_path)
    monkeypatch.setattr(lab, "torch_and_its_own", list)
    with pytest.raises(SystemExit, match="which has none: activate the environment"):
        lab.borrow_torch(tmp_path / "venv")


# CI


def test_ci_runs_make_test_with_no_skip_and_the_images(tmp_path):
    checkout, shims = tmp_path / "checkout", tmp_path / "shims"
    images = tmp_path / "shared" / "data" / "cifar10-jpeg.tar.xz"
    for folder in (checkout / ".ci", shims, images.parent):
        folder.mkdir(parents=True)
    (checkout / ".ci" / "run").write_text(text(".ci/run"))
    said = 'echo "${0##*/} $* $COURSE_NO_SKIPS ${TUTORIAL_LIB_DATA-no images}"'
    for name in ("make", "apt-get", "npm"):
        (shims / name).write_text(f"#!/bin/sh\n{said}\n")
        (shims / name).chmod(0o755)

    def run() -> list[str]:
        environment = {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
        command = ["bash", str(checkout / ".ci" / "run")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    (shims / "chromium").symlink_to(shims / "npm")
    assert run() == ["make test 1 no images"]
    images.touch()
    assert run() == [f"make test 1 {images.resolve()}"]
