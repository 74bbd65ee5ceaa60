"""Fill the virtual environment with the pinned set, and open the course in JupyterLab.

Behind `make lab` and `make test`. Standard library only, in words that any Python 3 can read, so
that an old one hears why it is refused. Every failure ends in one sentence: what, and what to do.
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

if sys.version_info < (3, 11):  # noqa: UP036 the one place where an old Python is answered
    sys.exit(
        "The course needs Python 3.11 or newer, and {} is {}.{}: install a newer one and name it, "
        "for example `make lab PYTHON=python3.12`.".format(sys.executable, *sys.version_info[:2])
    )

ROOT = Path(__file__).resolve().parents[1]
FIRST_NOTEBOOK = "notebooks/01_unified_perspective.ipynb"
OFFLINE = (
    "NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection refused|timed out"
    "|name resolution|Network is unreachable|Failed to establish a new connection"
)
NO_SPACE = r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded"


def install(venv: Path, extras: str, keep_torch: bool) -> None:
    """Make the environment if there is none, and install the package with its extras."""
    python = venv / "bin" / "python"
    if not python.exists():
        make_environment(venv)
    if keep_torch:
        borrow_torch(venv)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    wanted = ["-c", str(constraints(venv)), "-e", f".[{extras}]"]
    done = subprocess.run([*pip, *wanted], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(diagnosis(done.stderr, venv))


def make_environment(venv: Path) -> None:
    """Make a virtual environment of the Python that runs this file."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True
    )
    if made.returncode == 0:
        return
    words = made.stdout + made.stderr
    if "ensurepip" in words and not re.search(NO_SPACE, words):
        sys.exit(
            f"{sys.executable} cannot make virtual environments: install its venv package (on "
            f"Debian and Ubuntu python3-venv), remove the folder {venv}, and try again."
        )
    sys.exit(diagnosis(words, venv))


def borrow_torch(venv: Path) -> None:
    """Put the PyTorch of the Python that runs this file on the environment's path."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        sys.exit(
            f"KEEP_TORCH=1 keeps the PyTorch of {sys.executable}, which has none: activate the "
            "environment that has it, or leave KEEP_TORCH out."
        )
    if (site_packages(venv) / "torch").exists():
        sys.exit(
            f"{venv} already holds a PyTorch of its own: remove that folder, then run "
            "`make lab KEEP_TORCH=1` again."
        )
    borrowed(venv).write_text(f"{Path(torch.origin).parents[1]}\n")


def borrowed(venv: Path) -> Path:
    """Name the path file through which an environment sees somebody else's PyTorch."""
    return site_packages(venv) / "borrowed_torch.pth"


def site_packages(venv: Path) -> Path:
    """Name the folder of an environment's packages."""
    home = str(venv.absolute())
    return Path(sysconfig.get_path("purelib", "venv", {"base": home, "platbase": home}))


def constraints(venv: Path) -> Path:
    """Name the pins; with a borrowed PyTorch a copy of them that pins the version found."""
    pins = ROOT / "constraints.txt"
    if not borrowed(venv).exists():
        return pins
    folder = borrowed(venv).read_text().strip()
    found = next(iter(importlib.metadata.distributions(name="torch", path=[folder])), None)
    if found is None:
        sys.exit(
            f"The PyTorch that {venv} borrowed is no longer in {folder}: remove the folder {venv} "
            "and run `make lab` again."
        )
    copy = venv.absolute() / "constraints.txt"
    copy.write_text(re.sub(r"(?m)^torch==.*$", f"torch=={found.version}", pins.read_text()))
    return copy


def diagnosis(words: str, venv: Path) -> str:
    """Say in one sentence why pip or venv failed; where that is not plain, after its own words."""
    if re.search(NO_SPACE, words):
        return full_disk(venv)
    if re.search(OFFLINE, words):
        return (
            "No package could be downloaded: this machine is offline, or a proxy or firewall "
            "stops pip; connect it (set HTTPS_PROXY behind a proxy) and run the command again, "
            "which goes on from what is already there."
        )
    return f"{words.strip()}\npip could not install the pinned set: its own words stand above."


def full_disk(venv: Path) -> str:
    """Name the free space of the two places that an installation fills."""
    places = {str(venv): venv if venv.exists() else ROOT, "temporary files": tempfile.gettempdir()}
    free = ", ".join(f"{shutil.disk_usage(p).free / 1e9:.1f} GB free for {n}" for n, p in places.items())
    return (
        f"The disk is full ({free}): the set takes 1.4 GB, or about 7 GB with a CUDA PyTorch; "
        "make room, or name another disk with VENV= and TMPDIR=, and run the command again."
    )


def open_lab(venv: Path, port: int, flags: list[str]) -> None:
    """Become JupyterLab, opened on the first notebook."""
    refuse_busy(port)
    command = [str(venv / "bin" / "jupyter-lab"), FIRST_NOTEBOOK, f"--port={port}"]
    command += ["--ServerApp.root_dir=.", "--ServerApp.port_retries=0"]
    # Neither the news nor the update pop-up: both ask the network, and cover the lesson.
    command += ["--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if os.geteuid() == 0:  # in a container there is often no other user; only localhost is served
        command.append("--allow-root")
    os.chdir(ROOT)
    os.execv(command[0], command + flags)


def refuse_busy(port: int) -> None:
    """End with a sentence if another program listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            sys.exit(
                f"Port {port} is in use, perhaps by a JupyterLab that is still open: use that "
                f"one, or choose another port, for example `make lab PORT={port + 1}`."
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
    if args.action == "install":
        install(args.venv, args.extras, args.keep_torch)
    else:
        open_lab(args.venv, args.port, flags)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on from here.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(full_disk(Path(".venv")))
