"""The cost of a KV cache of few bits on real models, in nats.

    python -m benchmarks.quality.cache_bits --text FILE [NAME ...] [--windows N] [--artefacts DIR]

Fetches each model of `real_models.py` (all without NAME), converts it at 8 bits to the nearest, and
compares caches with one of 32 bits: same weights, exact products, so that nothing but the cache
differs. Windows of 512 tokens begin as a text begins, and are spread over the second half of the
file: the formats and constants were chosen on its first half or on the converter's own text. A slot
is one head's key and value of 64 dims with their scales, in bytes. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.models import real_models
from edgetok.converter.calibrate.windows import spread, token_windows
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import EdgetokError
from edgetok.evaluation.cache_bits import cache_costs
from edgetok.formats.artefact import open_artefact
from edgetok.runtime.cpu.page_layout import PageLayout

WIDTHS = (16, 8, 5, 4)
_WINDOW_TOKENS = 512


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8, 500 kB or more")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens")
    parser.add_argument("--artefacts", type=Path, help="where converted models are kept")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory() as folder:
            kept = args.artefacts or Path(folder)
            found = {
                name: measure(name, kept, text[len(text) // 2 :], args.windows)
                for name in args.names or real_models.MODELS
            }
    except (EdgetokError, OSError, RuntimeError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tokens = args.windows * _WINDOW_TOKENS
    print(f"KL from a cache of 32 bits, {tokens:,} tokens of {args.text.name}; same first choice\n")
    print(
        "| kv_bits | bytes a slot | " + " | ".join(found) + " |\n|---|---:|" + "---:|" * len(found)
    )
    for i, bits in enumerate(WIDTHS):
        cells = [
            f"{costs[i].kl:.5f}; {100 * costs[i].top1_agreement:.1f} %" for costs in found.values()
        ]
        slot = PageLayout(1, 256, 64, bits).slot_bytes
        print(f"| {bits} | {slot} | " + " | ".join(cells) + " |")
    return 0


def measure(name: str, kept: Path, text: str, windows: int):
    """Costs of WIDTHS on one model."""
    artefact = kept / f"{name}-8bit"
    if not artefact.exists():
        convert(str(real_models.fetch(name)), artefact, ConvertOptions(bits=8, method="rtn"))
    with open_artefact(artefact) as opened:
        spec = opened.spec
    rows = token_windows(text, artefact, _WINDOW_TOKENS, spec.vocab_size, spec.bos_token)
    rows = rows[spread(len(rows), windows)]
    return cache_costs(artefact, [row.astype(np.int32) for row in rows], WIDTHS)


if __name__ == "__main__":
    sys.exit(main())
