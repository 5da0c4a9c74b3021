"""KL and perplexity of uniform bits and of bits per tensor at equal bytes of weights.

python benchmarks/quality/bits_per_tensor.py models/default --calibration TEXT --method gptq
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from edgetok.converter.convert import ConvertOptions, Report, Target, convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--method", default="gptq", choices=["rtn", "gptq", "awq", "auto"])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=32)
    given = parser.parse_args()
    print("| weights | bits per weight | | KL | perplexity ratio | same token | widths |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for bits in given.bits:
            options = ConvertOptions(
                bits=bits,
                method=given.method,
                group_size=given.group_size,
                calibration=given.calibration,
            )
            uniform = convert(given.model, Path(folder) / "uniform", options)
            show(f"{bits} bits everywhere", uniform)
            target = Target(nbytes=uniform.weight_bytes, padded=False)
            show("per tensor", convert(given.model, Path(folder) / "fit", options, None, target))


def show(what: str, report: Report) -> None:
    result = report.agreement
    assert result is not None
    widths: dict[str, int] = {}
    for layer in report.layers:
        widths[layer.stored] = widths.get(layer.stored, 0) + 1
    listed = ", ".join(f"{count} of {name}" for name, count in sorted(widths.items()))
    print(
        f"| {report.weight_bytes:,} | {report.bits_per_weight:.2f} | {what} | {result.kl:.4f} | "
        f"{result.perplexity / result.reference_perplexity:.3f} | "
        f"{100 * result.top1_agreement:.1f} % | {listed} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
