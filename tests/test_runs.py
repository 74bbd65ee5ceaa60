"""What the README shows of recorded runs, made of invented records."""

import json

import runs

WHERE = {"device": "a GPU", "torch": "2.11"}


def recorded(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def training(name, batch, speed):
    return {"name": name, "batch": batch, "images_per_second": speed}


def test_rates_are_over_diffusers_at_the_same_batch(tmp_path):
    rows = [training("ours", 512, 9000), training("diffusers, as it ships", 512, 2000)]
    rows += [training("ours", 128, 7000), training("diffusers, as it ships", 128, 1400)]
    recorded(tmp_path, "training.json", WHERE | {"rows": rows})
    title, shown = runs.benchmark(tmp_path)
    assert title == "**Training the 35.7 M U-Net** (a GPU, PyTorch 2.11)."
    assert "| 512 | ours | 9,000 | 4.5x |" in shown and "| 128 | ours | 7,000 | 5.0x |" in shown
    assert shown.splitlines()[1] == "|---|---|---|---|"


def test_efficiency_is_a_gpus_share_of_one_alone(tmp_path):
    for gpus, speed in ((1, 8000), (2, 15200)):
        rows = [{"processes": gpus, "batch_each": 512, "images_per_second": speed}]
        recorded(tmp_path, f"scaling_{gpus}.json", WHERE | {"rows": rows})
    _, shown = runs.benchmark(tmp_path)
    assert "| 1 | 512 | 8,000 | 100.0% |" in shown and "| 2 | 512 | 15,200 | 95.0% |" in shown


def test_losses_stand_side_by_side(tmp_path):
    rows = [
        {"name": name, "seed": 0, "steps": 300, "loss": loss}
        for name, loss in (("bfloat16", 0.0512), ("float32", 0.0511))
    ]
    recorded(tmp_path, "precision.json", WHERE | {"rows": rows})
    (shown,) = runs.benchmark(tmp_path)
    assert "300 steps of 128" in shown and "bfloat16 0.05120; float32 0.05110" in shown


def test_a_training_is_shown_against_images_seen(tmp_path):
    point = {"images_seen": 1_000_000, "bits_per_dim": 4.5, "fd_classifier": 3.25, "recall": 0.5}
    found = {
        "device": "a GPU",
        "seconds": 600,
        "images_seen": 2_000_000,
        "bits_per_dim": 3.9,
        "standard_error": 0.01,
        "fd_classifier": 1.5,
        "samples": 4000,
        "evaluations_per_sample": 1000,
        "bound_images": 1000,
        "flow": {"bits_per_dim": 3.8, "standard_error": 0.02, "images": 500, "evaluations": 128},
        "floor": {"fd_classifier": 0.07},
        "config": {
            "seed": 0,
            "curve_samples": 4000,
            "curve_images": 500,
            "network": {"n_classes": 0},
        },
        "curve": [point, point | {"images_seen": 2_000_000, "bits_per_dim": 4.1}],
    }
    recorded(tmp_path, "cifar10_ddpm/metrics.json", found)
    shown = runs.shown(tmp_path)
    assert "| images seen | FD-classifier | recall | bits/dim |" in shown
    assert "| 1,000,000 | 3.25 | 0.50 | 4.500 |" in shown and "| 4.100 |" in shown
    assert "3.900 ± 0.010 bits/dim by the bound on 1,000" in shown
    assert "3.800 ± 0.020 by the probability flow on 500" in shown
    assert "results/cifar10_ddpm/samples.jpg" in shown
    assert runs.shown(tmp_path / "nothing").splitlines() == runs.runs(tmp_path / "no").splitlines()
