"""Write the model card and its two plots from what `train.py` and `evaluate.py` left.

    python training/card.py --evaluation checkpoints/evaluation.json \
        --quantised checkpoints/evaluation-4.json --log checkpoints/default/log.jsonl \
        --folder models/default

The text that no measurement changes stands in `card.md`; `{{name}}` marks are filled in here.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib as mpl
from safetensors import safe_open

from edgetok.evaluation.recall import DISTANCES, TASKS

mpl.use("Agg")
import matplotlib.pyplot as plt

_WORDINGS = ("seen wording", "unseen wording")


def recall_table(table: dict) -> str:
    """Accuracy in per cent by task and distance, and by wording over all distances."""
    heads = [*(str(d) for d in DISTANCES), *_WORDINGS]
    lines = [
        "| task | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    for task in TASKS:
        cells = []
        for head in heads:
            right, asked = table[task].get(head, (0, 0))
            cells.append(f"{100 * right / asked:.0f}" if asked else "")
        lines.append(f"| {task.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def right(table: dict) -> str:
    """Return all tasks and distances together, e.g. `4,137 of 4,200`."""
    cells = [row[str(d)] for row in table.values() for d in DISTANCES]
    return f"{sum(a for a, _ in cells):,} of {sum(b for _, b in cells):,}"


def loss_table(validation: dict) -> str:
    """Loss and perplexity per source."""
    lines = ["| source (held out) | tokens | loss | perplexity |", "|---|---:|---:|---:|"]
    for name, row in validation.items():
        lines.append(
            f"| {name} | {row['tokens']:,} | {row['loss']:.3f} | {row['perplexity']:.2f} |"
        )
    return "\n".join(lines)


def transcripts(samples: list) -> str:
    """Return the samples as they came, as quotes."""
    out = []
    for messages in samples:
        lines = []
        for m in messages:
            text = m["content"].replace("\n", "\n> ")
            lines.append(f"> **{m['role']}:** {text}")
        out.append("\n>\n".join(lines))
    return "\n\n".join(out)


def plot_recall(table: dict, path: Path) -> None:
    """Accuracy over distance, a line per task."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for task, marker in zip(TASKS, "os^vDPX", strict=True):
        y = [100 * table[task][str(d)][0] / table[task][str(d)][1] for d in DISTANCES]
        axis.plot(DISTANCES, y, marker=marker, label=task.replace("_", " "), linewidth=1.2)
    axis.set_xscale("log", base=2)
    axis.set_xticks(DISTANCES, [str(d) for d in DISTANCES])
    axis.set_xlabel("tokens between telling and asking")
    axis.set_ylabel("right answers, %")
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def read_log(path: Path) -> list[dict]:
    """Return the log without the steps that a killed run repeated."""
    kept: dict[int, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        kept[entry["step"]] = entry
    return [kept[step] for step in sorted(kept)]


def plot_curve(log: list[dict], path: Path) -> None:
    """Training loss over tokens; every stage weighs and mixes differently."""
    figure, axis = plt.subplots(figsize=(7.8, 3.4))
    stages = list(dict.fromkeys(e["stage"] for e in log))
    for stage in stages:
        part = [e for e in log if e["stage"] == stage]
        axis.plot(
            [e["tokens"] / 1e6 for e in part], [e["loss"] for e in part], linewidth=1, label=stage
        )
    axis.set_yscale("log")
    axis.set_xlabel("million tokens")
    axis.set_ylabel("weighted training loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def parameters(folder: Path) -> int:
    """Return the number of weights; tied ones are stored once."""
    with safe_open(folder / "model.safetensors", "np") as file:
        return sum(math.prod(file.get_slice(k).get_shape()) for k in file.keys())  # noqa: SIM118


def main() -> None:
    """Write README.md, recall.png and curve.png into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--quantised", type=Path, required=True, help="with --artefact")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    result = json.loads(args.evaluation.read_text(encoding="utf-8"))
    log = read_log(args.log)
    table = result["recall"]["table"]
    values = {
        "parameters": f"{parameters(args.folder) / 1e6:.1f} M",
        "recall": recall_table(table),
        "exact": right(table),
        "quantised": right(json.loads(args.quantised.read_text("utf-8"))["recall"]["table"]),
        "losses": loss_table(result["validation"]),
        "samples": transcripts(result["samples"]),
        "cases": str(result["recall"]["cases"]),
        "seeds": " and ".join(map(str, result["recall"]["seeds"])),
        "tokens": f"{log[-1]['tokens'] / 1e6:.1f} M",
        "minutes": f"{log[-1]['seconds'] / 60:.0f}",
        "steps": f"{log[-1]['step']:,}",
    }
    text = (Path(__file__).resolve().parent / "card.md").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    (args.folder / "README.md").write_text(text, encoding="utf-8")
    plot_recall(table, args.folder / "recall.png")
    plot_curve(log, args.folder / "curve.png")


if __name__ == "__main__":
    main()
