"""The queues of `tools/record.sh`, with a program in Python's place that says what it was told."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/sh
echo "gpu $CUDA_VISIBLE_DEVICES $*"
[ "$3" != breaks ] || [ -e "$5.tried" ] || { touch "$5.tried"; exit 1; }
"""


def said(path, lines):
    """What a log says, once it has so many lines: the queues go on in the background."""
    for _ in range(200):
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            break
        time.sleep(0.05)
    return path.read_text().splitlines()


def test_each_queue_has_a_gpu_and_a_run_that_fails_is_tried_once_more(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    out = tmp_path / "out"
    queues = ["one --small; two", "breaks"]
    command = ["bash", ROOT / "tools" / "record.sh", out, *queues]
    subprocess.run(command, env=os.environ | {"PYTHON": str(stand_in)}, check=True)
    run = "-m tutorial_lib.recipes"
    assert said(out / "one.log", 1) == [f"gpu 0 {run} one --small --out {out}/one"]
    assert said(out / "two.log", 1) == [f"gpu 0 {run} two --out {out}/two"]
    assert said(out / "breaks.log", 2) == 2 * [f"gpu 1 {run} breaks --out {out}/breaks"]
