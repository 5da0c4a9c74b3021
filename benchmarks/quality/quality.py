"""Measure the quality of each method and the contribution of each step of the recipe.

    python benchmarks/quality/quality.py models/default --text stories.txt --bits 8 4 3 2 --recall 4
    python benchmarks/quality/quality.py models/default --text stories.txt --bits 3 --ablate
    python benchmarks/quality/quality.py models/default --text stories.txt --bits --mixed 2.9 2.5

Converts, then runs the artefact in edgetok (int8 activations, as users do) over the first tokens of
the text's documents beside the original in transformers. Prints a line of a Markdown table as soon
as it is known: mean KL of the original from the artefact in nats and the ratio of perplexities, KL
relative to rounding to nearest at the same bits where that was asked for, and the share of right
answers about what a conversation told earlier (`--recall` cases a task and distance). `--mixed`
gives tensors bits of their own, so many a weight in all. What a model writes to calibrate on, it
writes once, so seconds are those of the first row and less after it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from edgetok.cli.commands.recall import measure_recall
from edgetok.converter import self_generated_text as written
from edgetok.converter.calibrate.reference import TransformersReference
from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.options import Step
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import TemplateError
from edgetok.evaluation.perplexity import Evaluation, documents, evaluate, windows
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.model import Model
from edgetok.models.registry import read_family

_RECALL_DISTANCES = (128, 512)


class Original:
    """The original in transformers, which is asked for the same windows again and again."""

    def __init__(self, checkpoint: str) -> None:
        self._reference = TransformersReference(checkpoint, threads=1)
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}

    def logits(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[T, V] of tokens [T]."""
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = self._reference.logits(ids)
        return self._known[key]


def write_once() -> None:
    """Let conversions of one checkpoint share the text that it writes: it is always the same."""
    known: dict[Any, Any] = {}
    real: Callable[..., Any] = written.write

    def write(
        weights: CanonicalWeights,
        greatest: Any,
        openings: Any,
        shape: Any,
        *others: Any,
        **named: Any,
    ) -> Any:
        key = weights.checkpoint.fingerprint, shape
        if key not in known:
            known[key] = real(weights, greatest, openings, shape, *others, **named)
        return known[key]

    written.write = write


def measure(
    artefact: Path, original: Original, text: str, tokens: int, cases: int
) -> tuple[Evaluation, str]:
    """Compare an artefact with the original on the first `tokens` of a text, and by recall."""
    with Model.load(artefact, threads=1) as model:
        window = min(512, model.context_tokens)
        cut = windows(documents(text, model.tokenizer), window, window // 2, tokens)
        result = evaluate(model.backend, cut, original)
        if not cases:
            return result, ""
        try:
            recalled = measure_recall(model, cases, _RECALL_DISTANCES)
        except TemplateError:
            return result, "no chat"
        shares = [share for distances in recalled.values() for share in distances.values()]
        return result, f"{100 * sum(shares) / len(shares):.0f} %"


def variants(
    args: argparse.Namespace, checkpoint: str
) -> Iterator[tuple[str, str, dict[str, Any], Target | None]]:
    """Bits, label, options and target of each row."""
    for bits in args.bits:
        for method in ["auto"] if args.ablate else args.methods:
            yield str(bits), method, {"bits": bits, "method": method}, None
        for step in get_args(Step) if args.ablate else ():
            options = {"bits": bits, "method": "auto", "without": (step,)}
            yield str(bits), f"without {step}", options, None
    for bits in args.mixed:
        opened = open_checkpoint(Path(checkpoint))
        family = read_family(opened.config, opened.generation_config)
        parameters = CanonicalWeights(opened, family).parameters
        target = Target(nbytes=int(bits * parameters / 8), padded=False)
        for method in args.methods:
            yield f"{bits:g} mixed", method, {"method": method}, target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3, 2])
    parser.add_argument("--mixed", type=float, nargs="*", default=[], help="bits a weight")
    parser.add_argument("--methods", nargs="+", default=["rtn", "awq", "gptq", "auto"])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--refine", type=int, help="batches that auto's codes learn over")
    parser.add_argument("--ablate", action="store_true", help="auto without each of its steps")
    parser.add_argument("--max-tokens", type=int, default=8000)
    parser.add_argument("--recall", type=int, default=0, help="cases a task and distance")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    write_once()
    print("| model | bits | method | bytes | KL | of rtn | perplexity ratio | recall | seconds |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for checkpoint in args.checkpoints:
        original = Original(checkpoint)
        nearest: dict[str, float] = {}
        for bits, label, chosen, target in variants(args, checkpoint):
            if chosen["method"] == "auto" and "tune" not in chosen.get("without", ()):
                chosen["refine"] = args.refine
            options = ConvertOptions(group_size=args.group_size, reference_tokens=0, **chosen)
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                begin = time.monotonic()
                report = convert(checkpoint, out, options, target=target)
                seconds = time.monotonic() - begin
                result, recall = measure(out, original, text, args.max_tokens, args.recall)
            if result.kl is None or result.reference_perplexity is None:
                raise SystemExit("the original was not measured")
            if label == "rtn":
                nearest[bits] = result.kl
            share = f"{result.kl / nearest[bits]:.2f}" if bits in nearest else ""
            print(
                f"| {Path(checkpoint).name} | {bits} | {label} | {report.weight_bytes:,} | "
                f"{result.kl:.4f} | {share} | "
                f"{result.perplexity / result.reference_perplexity:.3f} | "
                f"{recall} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
