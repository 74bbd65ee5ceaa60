"""Fill the virtual environment with the pinned set, and open the course in JupyterLab.

Behind `make lab` and `make test`, before any package is there: standard library only. Whatever
goes wrong ends in one sentence that says what it was and what to do.
"""

import argparse
import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "constraints.txt"
BORROWED = "borrowed"  # the folder of an environment that links to somebody else's PyTorch
LESSON = "notebooks/01_unified_perspective.ipynb"
OFFLINE = (
    "NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection refused"
    "|timed out|name resolution|Network is unreachable|Failed to establish a new connection"
)
SHOWN = r"\s*(Downloading (?!.*\.metadata)|Installing collected packages)"
NO_SPACE = r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded"


def install(venv: Path, extras: str, keep_torch: bool) -> None:
    """Make the environment if there is none, and install the package with its extras."""
    if keep_torch:
        borrow_torch(venv)
    python = venv / "bin" / "python"
    if not (python.exists() and (venv / "bin" / "pip").exists()):
        make_environment(venv)
    print(
        f"Installing the course's packages in {venv}, once: this takes a few minutes.", flush=True
    )
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    run([*pip, "-c", str(constraints(venv)), "-e", f".[{extras}]"], venv)


def make_environment(venv: Path) -> None:
    """Make a virtual environment of the Python that runs this file."""
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"{sys.executable} cannot make virtual environments: install its venv package (on "
            "Debian and Ubuntu: python3-venv), and run the command again."
        )
    run([sys.executable, "-m", "venv", str(venv)], venv)


def run(command: list[str], venv: Path) -> None:
    """Run pip or venv, showing what it downloads; if it fails, end with the reason."""
    words = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            words.append(line)
            if re.match(SHOWN, line):
                print(line.strip()[:99], flush=True)
    if process.returncode:
        sys.exit(diagnosis("".join(words), venv))


def borrow_torch(venv: Path) -> None:
    """Link the PyTorch of the Python that runs this file into a new environment."""
    lent = torch_and_its_own()
    if not lent:
        sys.exit(
            f"KEEP_TORCH=1 keeps the PyTorch of {sys.executable}, which has none: activate the "
            "environment that has it, or leave KEEP_TORCH out."
        )
    folder = venv.absolute() / BORROWED
    if venv.exists() and not folder.exists():
        sys.exit(
            f"{venv} already holds a PyTorch of its own: remove that folder, then run "
            "`make lab KEEP_TORCH=1` again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for package in lent:
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path(package.locate_file(name)).absolute())
    path_file = site_packages(venv) / "borrowed.pth"
    path_file.parent.mkdir(parents=True, exist_ok=True)
    path_file.write_text(f"{folder}\n")


def torch_and_its_own() -> list[importlib.metadata.Distribution]:
    """List the PyTorch found here and what it needs and no pin names: CUDA's packages, Triton."""
    pinned = {canonical(name) for name in re.findall(r"(?m)^(.+)==", PINS.read_text())} - {"torch"}
    found, waiting = {}, ["torch"]
    while waiting:
        name = canonical(waiting.pop())
        package = next(iter(importlib.metadata.distributions(name=name)), None)
        if package is not None and name not in pinned | found.keys():
            found[name] = package
            waiting += [re.match(r"[\w.-]+", line)[0] for line in package.requires or ()]
    return list(found.values())


def canonical(name: str) -> str:
    """Spell a package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def site_packages(venv: Path) -> Path:
    """Name the folder of an environment's packages."""
    home = str(venv.absolute())
    return Path(sysconfig.get_path("purelib", "venv", {"base": home, "platbase": home}))


def constraints(venv: Path) -> Path:
    """Name the pins; with a borrowed PyTorch a copy of them that pins the version found."""
    folder = venv.absolute() / BORROWED
    if not folder.exists():
        return PINS
    if not (folder / "torch").exists():
        sys.exit(
            f"The PyTorch that {venv} borrowed is gone: remove the folder {venv} and run "
            "`make lab` again."
        )
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(folder)])
    copy = folder / PINS.name
    copy.write_text(re.sub(r"(?m)^torch==.*$", f"torch=={torch.version}", PINS.read_text()))
    return copy


def diagnosis(words: str, venv: Path) -> str:
    """Say in one sentence why pip or venv failed; where that is not plain, after its own words."""
    if re.search(NO_SPACE, words) or crowded(venv):
        return full_disk(venv)
    if re.search(OFFLINE, words):
        return (
            "No package could be downloaded: this machine is offline, or a proxy or firewall "
            "stops pip; connect it (set HTTPS_PROXY behind a proxy) and run the command again, "
            "which goes on from what is already there."
        )
    return f"{words.strip()}\npip could not install the pinned set: its own words stand above."


def free_space(venv: Path) -> dict[str, int]:
    """Count the free bytes of the two places that an installation fills."""
    folder = next(path for path in (venv, *venv.absolute().parents) if path.exists())
    places = {str(venv): folder, "temporary files": tempfile.gettempdir()}
    return {name: shutil.disk_usage(place).free for name, place in places.items()}


def crowded(venv: Path) -> bool:
    """Tell whether there is too little space left even to save a notebook."""
    return min(free_space(venv).values()) < 20e6


def full_disk(venv: Path) -> str:
    """Say that the disk is full."""
    free = ", ".join(f"{size / 1e9:.2f} GB free for {n}" for n, size in free_space(venv).items())
    return (
        f"The disk is full ({free}): the course takes 1.4 GB, and several more with a CUDA "
        "PyTorch; make room, or name another disk (VENV=, TMPDIR=), and run the command again."
    )


def open_lab(venv: Path, port: int, flags: list[str]) -> None:
    """Become JupyterLab, opened on the first notebook."""
    refuse_busy(port)
    if crowded(venv):
        sys.exit(full_disk(venv))
    command = [str(venv / "bin" / "jupyter-lab"), f"--LabApp.default_url=/lab/tree/{LESSON}"]
    command += ["--ServerApp.root_dir=.", f"--port={port}", "--ServerApp.port_retries=0"]
    # Neither the news nor the update pop-up: both ask the network, and cover the lesson.
    command += ["--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if os.geteuid() == 0:  # in a container there is often no other user; only localhost is served
        command.append("--allow-root")
    os.chdir(ROOT)
    os.execv(command[0], command + flags)


def refuse_busy(port: int, target: str = "lab") -> None:
    """End with a sentence if another program listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            sys.exit(
                f"Port {port} is in use, perhaps by a JupyterLab that is still open: use that "
                f"one, or choose another port, for example `make {target} PORT={port + 1}`."
            )


def main() -> None:
    """Run `install` or `open`, as the Makefile asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["install", "open"])
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--extras", default="lab")
    parser.add_argument("--keep-torch", action="store_true")
    parser.add_argument("--port", type=int, default=8888)
    args, flags = parser.parse_known_args()
    try:
        if args.action == "install":
            install(args.venv, args.extras, args.keep_torch)
        else:
            open_lab(args.venv, args.port, flags)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on from here.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(full_disk(args.venv))


if __name__ == "__main__":
    main()
