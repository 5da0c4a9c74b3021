"""Table of families: does each convert, agree with transformers, chat and reuse a prefix.

    python -m benchmarks.quality.families --out docs/notes/families.md [FAMILY ...]

Each family is a tiny random checkpoint of the installed transformers, of `tests/tiny.py`: one that
this release does not know is said so. A row is measured, never written by hand; those of families
that are not named stay as the file has them:

    convert       whether 16 and 8 bits are written, and `edgetok verify` finds no fault in them
    16 bits       largest difference to transformers' logits, 24 tokens of which the last 17 one by
                  one, over the largest logit; float32 and a cache of 32 bits
    8 bits        the same of an artefact of 8 bits to the NumPy truth on its weights
    onnxruntime   the graph of 16 bits in onnxruntime to transformers
    chat          a template is applied and 8 tokens are answered
    cut back      two tokens are taken back, and give the bits that they gave before
    speed         processor time of onnxruntime for a token of the 8 bits over the CPU backend's, a
                  thread each, in turns: of tiny models, where what surrounds the products counts
    lines         of the family's file
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from click.testing import CliRunner

import edgetok.models.families
from edgetok.cli.commands.verify import command as verify
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import EdgetokError
from edgetok.formats.artefact import open_artefact
from edgetok.model import Model
from edgetok.models.tensors import tensor_shapes
from edgetok.runtime.backend import Backend
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import forward
from tests.tiny import (
    ALL_FAMILIES,
    FAMILIES,
    VOCAB_SIZE,
    load_reference,
    model_type,
    tiny_checkpoint,
)

VERSION = transformers.__version__
TOKENS, BEGINNING, CUT = 24, 7, 22
COLUMNS = (
    *("family", "convert", "16 bits", "8 bits", "onnxruntime", "chat", "cut back"),
    *("speed", "lines"),
)
HEADER = f"| {' | '.join(COLUMNS)} |"
ROUNDS, STEPS = 5, 30  # of speed
FAMILIES_FOLDER = Path(edgetok.models.families.__path__[0])
Logits = npt.NDArray[np.float32]


def logits_of(backend: Backend, tokens: npt.NDArray[np.int32]) -> Logits:
    """Logits of a prompt and of the tokens behind it, one by one: [T, V]."""
    cache = backend.new_cache(64)
    rows = [backend.forward(cache, tokens[:BEGINNING], all_logits=True)]
    for i in range(BEGINNING, len(tokens)):
        rows.append(backend.forward(cache, tokens[i : i + 1])[None].copy())
    return np.concatenate(rows)


def difference(found: Logits, expected: Logits) -> str:
    """The largest difference over the largest logit."""
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.0e}"


def reused(backend: Backend, tokens: npt.NDArray[np.int32]) -> str:
    """Whether tokens that were taken back give the same bits again."""
    cache = backend.new_cache(64)
    backend.forward(cache, tokens[:CUT])
    first = [backend.forward(cache, tokens[i : i + 1]).copy() for i in range(CUT, TOKENS)]
    if not cache.truncate(CUT):
        return f"from token {cache.reachable(CUT)}"
    again = [backend.forward(cache, tokens[i : i + 1]).copy() for i in range(CUT, TOKENS)]
    return "same bits" if np.array_equal(first, again) else "other bits"


def speed(place: Path) -> str:
    """Processor time of onnxruntime over ours, for a token."""
    engines = OnnxRuntimeBackend(place, threads=1), CpuBackend(place, threads=1)
    caches = [engine.new_cache(ROUNDS * STEPS + 8) for engine in engines]
    token = np.array([5], np.int32)
    for engine, cache in zip(engines, caches, strict=True):
        engine.forward(cache, np.arange(4, 8, dtype=np.int32))
    ratios = []
    for _ in range(ROUNDS):
        spent = []
        for engine, cache in zip(engines, caches, strict=True):
            begun = time.process_time()
            for _ in range(STEPS):
                engine.forward(cache, token)
            spent.append(time.process_time() - begun)
        ratios.append(spent[0] / spent[1])
    for engine in engines:
        engine.close()
    return f"{statistics.median(ratios):.1f}"


def row_of(family: str, folder: Path) -> list[str]:
    """The family's cells behind its name."""
    source = tiny_checkpoint(family, folder / "source")
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, TOKENS).astype(np.int32)
    with torch.no_grad():
        reference = load_reference(source)(torch.from_numpy(tokens[None].astype(np.int64)))
    expected = reference.logits[0].numpy()
    for bits in (16, 8):
        options = ConvertOptions(bits=bits, method="rtn", reference_tokens=0)
        convert(str(source), folder / str(bits), options)
        result = CliRunner().invoke(verify, [str(folder / str(bits)), "--threads", "1"])
        if result.exit_code:
            raise EdgetokError(f"verify, {bits} bits: {result.output.splitlines()[-1]}")

    def measured(bits: int, kind: Callable[[Path], Backend]) -> Logits:
        backend = kind(folder / str(bits))
        try:
            return logits_of(backend, tokens)
        finally:
            backend.close()

    def exact(place: Path) -> Backend:
        return CpuBackend(place, compute="float32", kv_bits=32)

    cells = ["yes", difference(measured(16, exact), expected)]
    with open_artefact(folder / "8") as opened:
        spec = opened.spec
        stored = WrittenWeights(folder / "8", spec, opened.formats, opened.layout)
        weights = {name: stored.tensor(name) for name in tensor_shapes(spec)}
    cells.append(difference(measured(8, exact), forward(spec, weights, tokens)))
    cells.append(difference(measured(16, OnnxRuntimeBackend), expected))
    with Model.load(folder / "8") as model:
        answer = model.chat([{"role": "user", "content": "the cat"}], max_tokens=8)
        cells.append("yes" if answer.tokens else "no answer")
    backend = exact(folder / "16")
    cells.append(reused(backend, tokens))
    backend.close()
    cells.append(speed(folder / "8"))
    cells.append(str(len((FAMILIES_FOLDER / f"{model_type(family)}.py").read_text().splitlines())))
    return cells


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Measure what works for each family.")
    parser.add_argument("families", nargs="*", default=ALL_FAMILIES, help="all if none is named")
    parser.add_argument("--out", type=Path, help="a Markdown file; printed if absent")
    options = parser.parse_args()
    rows, kept = read_rows(options.out), remarks(options.out)
    for family in options.families:
        if family in FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    cells = row_of(family, Path(folder))
                except EdgetokError as error:
                    cells = [f"no: {error}"]
        else:
            cells = [f"not in transformers {VERSION}"]
        cells += [""] * (len(COLUMNS) - 1 - len(cells))
        rows[family] = f"| {family} | {' | '.join(cells)} |"
        print(rows[family], flush=True)
        if options.out is not None:
            options.out.write_text(page(rows, kept))


def read_rows(path: Path | None) -> dict[str, str]:
    """Rows of a page that is there, by family; of another kind of table none."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    if HEADER not in lines:
        return {}
    rows = lines[lines.index(HEADER) + 2 :]
    return {row.split("|")[1].strip(): row for row in rows if row.startswith("| ")}


def remarks(path: Path | None) -> list[str]:
    """Paragraphs of a page that is there between the first one and its table."""
    text = path.read_text() if path is not None and path.exists() else ""
    before, header, _ = text.partition(HEADER)
    return before.strip().split("\n\n")[2:] if header else []


def page(rows: dict[str, str], remarks: list[str]) -> str:
    """The page with its table, in the order of `tests/tiny.py`."""
    said = (
        "Measured by `python -m benchmarks.quality.families`, which says what a column is, on tiny "
        f"random models of transformers {VERSION}."
    )
    table = [rows[family] for family in ALL_FAMILIES if family in rows]
    lines = "\n".join([HEADER, f"|---|{'---|' * (len(COLUMNS) - 1)}", *table])
    return "\n\n".join(["# Families", said, *remarks, lines]) + "\n"


if __name__ == "__main__":
    main()
