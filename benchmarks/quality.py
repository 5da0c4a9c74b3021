"""What each method and each step of the recipe costs in quality, on one checkpoint.

    python benchmarks/quality.py models/default --text stories.txt --bits 4 3 2
    python benchmarks/quality.py models/default --text stories.txt --bits 3 --ablate

Converts, then runs the artefact in edgetok (int8 activations, as users do) over the first tokens of
the text's documents beside the original in transformers. Prints a line of a Markdown table as soon
as it is known: mean KL of the original from the artefact in nats and the ratio of perplexities, and
KL relative to rounding to nearest at the same bits where that was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.options import Step
from edgetok.converter.reference import TransformersReference
from edgetok.evaluation.perplexity import Evaluation, documents, evaluate, windows
from edgetok.model import Model


def measure(artefact: Path, reference: TransformersReference, text: str, tokens: int) -> Evaluation:
    """The artefact beside the original on the first `tokens` of a text."""
    with Model.load(artefact, threads=1) as model:
        window = min(512, model.context_tokens)
        cut = windows(documents(text, model.tokenizer), window, window // 2, tokens)
        return evaluate(model.backend, cut, reference)


def variants(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Label and options of each row of a width."""
    if not args.ablate:
        return [(method, {"method": method}) for method in args.methods]
    rows = [("auto", {"method": "auto"})]
    for step in get_args(Step):
        rows.append((f"without {step}", {"method": "auto", "without": (step,)}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--methods", nargs="+", default=["rtn", "awq", "gptq", "auto"])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--ablate", action="store_true", help="auto without each of its steps")
    parser.add_argument("--max-tokens", type=int, default=8000)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    reference = TransformersReference(args.checkpoint, threads=1)
    print("| bits | method | bytes | KL | of rtn | perplexity ratio | seconds |")
    print("|---:|---|---:|---:|---:|---:|---:|", flush=True)
    for bits in args.bits:
        nearest = None
        for label, chosen in variants(args):
            options = ConvertOptions(
                bits=bits, group_size=args.group_size, reference_tokens=0, **chosen
            )
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                begin = time.monotonic()
                report = convert(args.checkpoint, out, options)
                seconds = time.monotonic() - begin
                found = measure(out, reference, text, args.max_tokens)
            if found.kl is None or found.reference_perplexity is None:
                raise SystemExit("the original was not measured")
            nearest = found.kl if label == "rtn" else nearest
            share = f"{found.kl / nearest:.2f}" if nearest else ""
            print(
                f"| {bits} | {label} | {report.weight_bytes:,} | {found.kl:.4f} | {share} | "
                f"{found.perplexity / found.reference_perplexity:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
