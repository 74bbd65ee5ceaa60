"""One run on one process and on two (gloo, by torchrun): the same weights. Takes a minute."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

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


def fit(config=SHARED, checkpoint=None, watch=None):
    net = PointMLP(width=8, depth=2, generator=torch.Generator().manual_seed(5))
    kept = {"checkpoint": checkpoint, "keep": 2, "watch": watch}
    return train.train(net, pool(), objective, config, **kept)


class Watch:
    """Run the averaged network whenever told, on the one process that is."""

    def __init__(self):
        self.seen = []

    def __call__(self, told):
        with torch.no_grad():
            self.seen.append(told.ema(torch.eye(2), torch.zeros(2)))


def held(run):
    """How many numbers of weights, averages, gradients and Adam's state lie in this process."""
    kept = [x for name, x in run.tensors().items() if not name.endswith(("losses", ".step"))]
    kept += [*run.module.parameters(), *run.ema.parameters(), *(w.grad for w in run.weights)]
    distinct = {id(x): x for x in kept}.values()
    return sum((x.to_local() if isinstance(x, DTensor) else x).numel() for x in distinct)


@contextmanager
def counting():
    """Collect what each run holds at its end, before it is put together."""
    counts, result = [], train._Run.result

    def counted(run):
        counts.append(held(run))
        return result(run)

    with mock.patch.object(train._Run, "result", counted):
        yield counts


PROGRAM = """
import os, sys
sys.path.insert(0, {tests!r})
import torch, test_ranks
from dataclasses import replace
from tutorial_lib import ranks
config, watch = replace(test_ranks.SHARED, **{changes!r}), test_ranks.Watch()
try:
    with test_ranks.counting() as counts:
        result = test_ranks.fit(config, {checkpoint!r}, watch)
except ValueError as error:
    sys.exit(str(error))
torch.save([counts, watch.seen], {out!r} + os.environ["RANK"])
if os.environ["RANK"] == "0":
    torch.save(test_ranks.listed(result), {out!r})
ranks.leave(0)
"""


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import test_diffusion_recipe
from tutorial_lib import ranks, recipes
from tutorial_lib.recipes import diffusion, image_vae
diffusion.cifar10 = image_vae.cifar10 = test_diffusion_recipe.invented
ranks.leave(recipes.main([{name!r}, "--tiny", "--shards", "2", "--out", {out!r}, *{options!r}]))
"""
COMPILED = """
import os, sys, torch
from torch import nn
from torch._dynamo.utils import counters
from tutorial_lib import ranks

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1500, 1500) for _ in range(4))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

with ranks.joined(torch.device("cpu")):
    net = Net()
    net.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    ranks.parallel(net)(torch.zeros(2, 1500)).sum().backward()
    print("parts", counters["aot_autograd"]["total"], flush=True)
ranks.leave(0)
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


def halfway(path):
    """The checkpoint that a run keeps beside its last one: that of step 20 of 40."""
    return path.with_name(f"{path.name}.1")


def test_weights_in_pieces_train_as_whole_ones_and_go_on_whole(tmp_path):
    watch, path = Watch(), tmp_path / "run.safetensors"
    with counting() as whole:
        alone = listed(fit(SHARED, watch=watch))
    done, together = on_two(tmp_path, path, sharded=True)
    assert together is not None, done.stderr[-2000:]
    assert gap(alone, together) < 1e-5
    (lead, seen), (other, nothing) = (torch.load(tmp_path / f"out.pt{rank}") for rank in (0, 1))
    assert gap(watch.seen, seen) < 1e-5 and not nothing  # rank 0 runs the average on its own
    assert lead == other == [whole[0] / 2]
    assert gap(alone, listed(fit(SHARED, halfway(path)))) < 1e-5


def test_a_run_begun_whole_goes_on_in_pieces(tmp_path):
    path = tmp_path / "run.safetensors"
    alone = listed(fit(SHARED, path))
    done, together = on_two(tmp_path, halfway(path), sharded=True)
    assert together is not None, done.stderr[-2000:]
    assert gap(alone, together) < 1e-5


def test_one_process_holds_all_even_sharded():
    with counting() as counts:
        alone, sharded = listed(fit()), listed(fit(replace(SHARED, sharded=True)))
    assert gap(alone, sharded) == 0 and counts[0] == counts[1]


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
    for how, (n, options) in enumerate([(1, []), (2, []), (2, ["--sharded"])]):
        program, out = tmp_path / f"{how}.py", tmp_path / str(how)
        program.write_text(RECIPE.format(tests=TESTS, name=name, options=options, out=str(out)))
        done = processes(n, program)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout)["bits_per_dim"])
        assert len((out / "log.jsonl").read_text().splitlines()) == 20
    assert found[1:] == pytest.approx([found[0], found[0]], rel=1e-3)


def test_a_compiled_network_is_not_cut_into_buckets(tmp_path):
    """DDP would have it compiled in parts, one for each of its buckets of 25 MB."""
    program = tmp_path / "program.py"
    program.write_text(COMPILED)
    done = processes(2, program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(re.findall(r"parts (\d+)", done.stdout)) == {"1"}, done.stdout
