"""One run on one process and on two (gloo, by torchrun): the same weights. Takes 25 s."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tutorial_lib import train
from tutorial_lib.networks.mlp import PointMLP
from tutorial_lib.train import TrainConfig

SHARED = TrainConfig(
    steps=40, batch_size=32, learning_rate=1e-2, shards=2, log_every=10, checkpoint_every=20
)


def pool():
    return torch.randn(500, 2, generator=torch.Generator().manual_seed(3))


def objective(net, x, generator):
    noise = torch.randn(x.shape, generator=generator)
    return (net(x + noise, torch.zeros(len(x))) - x).square().sum(1)


def fit(config=SHARED, checkpoint=None):
    net = PointMLP(width=8, depth=2, generator=torch.Generator().manual_seed(5))
    return train.train(net, pool(), objective, config, checkpoint=checkpoint)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import torch, test_ranks
from dataclasses import replace
from tutorial_lib import ranks
config = replace(test_ranks.SHARED, **{changes!r})
try:
    result = test_ranks.fit(config, {checkpoint!r})
except ValueError as error:
    sys.exit(str(error))
if int(__import__("os").environ["RANK"]) == 0:
    weights = list(result.ema.parameters()) + list(result.module.parameters())
    torch.save([result.losses, *[w.detach() for w in weights]], {out!r})
"""


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import test_diffusion_recipe
from tutorial_lib import recipes
from tutorial_lib.recipes import diffusion, image_vae
diffusion.cifar10 = image_vae.cifar10 = test_diffusion_recipe.invented
sys.exit(recipes.main([{name!r}, "--tiny", "--shards", "2", "--out", {out!r}]))
"""
TESTS = str(Path(__file__).parent)


def processes(n, program):
    """Run a program as torchrun does, on this machine alone."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def on_two(tmp_path, checkpoint=None, **changes):
    out, program = tmp_path / "out.pt", tmp_path / "program.py"
    path = str(checkpoint) if checkpoint else None
    text = PROGRAM.format(tests=TESTS, changes=changes, checkpoint=path, out=str(out))
    program.write_text(text)
    done = processes(2, program)
    return done, torch.load(out) if out.exists() else None


def listed(result):
    weights = list(result.ema.parameters()) + list(result.module.parameters())
    return [result.losses, *[w.detach() for w in weights]]


def gap(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_two_processes_train_as_one_does_and_either_goes_on(tmp_path):
    alone = listed(fit())
    done, together = on_two(tmp_path)
    assert together is not None, done.stderr[-2000:]
    assert gap(alone, together) < 1e-5  # the loss curve too
    path = tmp_path / "run.safetensors"
    done, _ = on_two(tmp_path, path, steps=40)  # leaves a checkpoint of all 40 steps
    assert path.exists(), done.stderr[-2000:]
    assert gap(alone, listed(fit(SHARED, path))) < 1e-5  # read by one process


def test_a_run_begun_on_one_goes_on_on_two(tmp_path):
    path = tmp_path / "run.safetensors"

    def stop(told):
        if told.step == 20:
            raise RuntimeError("power cut")

    net = PointMLP(width=8, depth=2, generator=torch.Generator().manual_seed(5))
    early = replace(SHARED, log_every=20, checkpoint_every=10)
    with pytest.raises(RuntimeError, match="power cut"):
        train.train(net, pool(), objective, early, checkpoint=path, watch=stop)
    done, together = on_two(tmp_path, path)
    assert together is not None, done.stderr[-2000:]
    assert gap(listed(fit()), together) < 1e-5


def test_shards_are_batches_of_their_own():
    """Two shards are not one batch cut in half: each has its generator."""
    assert gap(listed(fit()), listed(fit(replace(SHARED, shards=1)))) > 1e-3
    with pytest.raises(ValueError, match="3 shards cannot share 32 rows evenly"):
        replace(SHARED, shards=3)


def test_too_few_shards_are_told(tmp_path):
    done, _ = on_two(tmp_path, shards=1)
    assert done.returncode != 0 and "2 processes cannot share 1 shards" in done.stderr


@pytest.mark.parametrize("name", ["cifar10_course", "cifar10_vae"])
def test_a_recipe_on_two_processes_is_written_once(tmp_path, name):
    found = []
    for n in (1, 2):
        program, out = tmp_path / f"{n}.py", tmp_path / str(n)
        program.write_text(RECIPE.format(tests=TESTS, name=name, out=str(out)))
        done = processes(n, program)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout))
        assert len((out / "log.jsonl").read_text().splitlines()) == 20
    assert found[1]["bits_per_dim"] == pytest.approx(found[0]["bits_per_dim"], rel=1e-3)
