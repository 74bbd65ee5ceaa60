"""Show the recorded runs and the benchmark in the README: `python tools/runs.py` renews them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tutorial_lib.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SHOWN = re.compile(r"(<!-- runs -->\n\n)(.*?)(\n\n<!-- end of runs -->)", re.DOTALL)
CURVE = {
    "images_seen": ("images seen", "{:,}"),
    "fd_classifier": ("FD-classifier", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "accuracy": ("accuracy", "{:.2f}"),
    "bits_per_dim": ("bits/dim", "{:.3f}"),
}


def shown(results: Path = ROOT / "results") -> str:
    """Return all that the README shows of what is recorded."""
    parts = [runs(results)]
    for name in RECIPES:
        record = results / name / "metrics.json"
        found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        # of the short runs their row says enough
        if "flow" in found and not name.startswith("cifar10_short"):
            parts += [training(name, found)]
    parts += list(benchmark(results / "benchmark_unet"))
    return "\n\n".join(parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("| --- ", "|---")


def runs(results: Path) -> str:
    """Return a row for each recipe that has a record."""
    rows = []
    for name, recipe in RECIPES.items():
        record = results / name / "metrics.json"
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            minutes = f"{found['device']}, {found['seconds'] / 60:.1f} min"
            seen = f"{found['images_seen'] / 1e6:.1f} M" if found.get("images_seen") else ""
            rows.append([f"`{name}`", recipe.about, recipe.headline(found), seen, minutes])
    return table(["recipe", "what", "found", "images seen", "on"], rows)


def training(name: str, found: dict) -> str:
    """Return what a diffusion run was worth on its way, and its samples."""
    curve, config = found["curve"], found["config"]
    columns = [key for key in CURVE if key in curve[0]]
    head = [CURVE[key][0] for key in columns]
    rows = [[CURVE[key][1].format(point[key]) for key in columns] for point in curve]
    flow = found["flow"]
    text = (
        f"**`{name}` against images seen.** Averaged weights of one run (seed {config['seed']}), "
        f"{config['curve_samples']:,} samples by DDIM in 50 steps against all 50,000 training "
        f"images, bound on {config['curve_images']:,} test images. At the end, "
        f"{found['samples']:,} ancestral samples of {found['evaluations_per_sample']:,} steps: "
        f"FD-classifier {found['fd_classifier']:.2f}; {found['bits_per_dim']:.3f} ± "
        f"{found['standard_error']:.3f} bits/dim by the bound on {found['bound_images']:,} "
        f"test images, {flow['bits_per_dim']:.3f} ± {flow['standard_error']:.3f} by the "
        f"probability flow on {flow['images']:,}. Test images themselves score "
        f"{found['floor']['fd_classifier']:.2f}."
    )
    columns = ", one class a column" if config["network"]["n_classes"] else ""
    picture = f"![Samples of {name}{columns}](results/{name}/samples.jpg)"
    return "\n\n".join([text, table(head, rows), picture])


def benchmark(folder: Path) -> Iterator[str]:
    """Return the parts of the U-Net's benchmark that are recorded."""
    known = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    if "training" in known:
        yield from _compared("Training the 35.7 M U-Net", known["training"])
    if "searched" in known:
        yield from _compared("Training at 128 with searched kernels", known["searched"])
    if "sampling" in known:
        yield from _compared("Sampling it by DDIM in 50 steps", known["sampling"])
    if "scaling_1" in known:
        several = [known[key] for key in sorted(known) if key.startswith("scaling_")]
        yield from _scaled(several)
    if "precision" in known:
        losses = {}
        for row in known["precision"]["rows"]:
            losses.setdefault(row["name"], []).append(row["loss"])
        steps = known["precision"]["rows"][0]["steps"]
        parts = [f"{name} {', '.join(f'{x:.5f}' for x in xs)}" for name, xs in losses.items()]
        yield f"**Precision.** Loss after {steps:,} steps of 128, three seeds: {'; '.join(parts)}."


def _compared(what: str, record: dict) -> Iterator[str]:
    """Return a table of rates, each over that of diffusers as it ships at the same batch."""
    rows = record["rows"]
    base = {r["batch"]: r["images_per_second"] for r in rows if "as it ships" in r["name"]}
    lines = []
    for row in rows:
        speed, batch = row["images_per_second"], row["batch"]
        ratio = f"{speed / base[batch]:.1f}x" if batch in base else ""
        lines.append([str(batch), row["name"], f"{speed:,.0f}", ratio])
    yield f"**{what}** ({record['device']}, PyTorch {record['torch']})."
    yield table(["batch", "", "images/s", "over diffusers"], lines)


def _scaled(records: list[dict]) -> Iterator[str]:
    """Return a table of rates on one GPU and on more, at the same batch on each."""
    rows = [row for record in records for row in record["rows"]]
    one = {row["batch_each"]: row["images_per_second"] for row in rows if row["processes"] == 1}
    lines = []
    for row in rows:
        gpus, batch, speed = row["processes"], row["batch_each"], row["images_per_second"]
        share = f"{speed / gpus / one[batch]:.1%}"
        lines.append([str(gpus), str(batch), f"{speed:,}", share])
    yield f"**Several GPUs** ({records[0]['device']}), without step graphs."
    yield table(["GPUs", "batch on each", "images/s", "efficiency"], lines)


def in_readme(text: str) -> str:
    """Return the README with what is recorded renewed."""
    return SHOWN.sub(lambda match: match[1] + shown() + match[3], text)


if __name__ == "__main__":
    README.write_text(in_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
