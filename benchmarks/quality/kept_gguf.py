"""A GGUF file in llama.cpp and the same file kept as it is in edgetok: bytes and KL.

    python benchmarks/quality/kept_gguf.py FILE.gguf... --text wikitext2.valid.raw \
        --peer-python PEER_PYTHON --types Q4_K_M Q3_K_M Q2_K

Each file is measured, and with --types also what llama.cpp's quantiser makes of the first one.
`edgetok convert` keeps the codes. Both engines run the same token ids with the integer arithmetic
that each uses by itself; the exact model is transformers with the file's dequantised weights, in
float32. Bytes are those of all tensors in the file, and of `model.onnx.data`. KL is in nats, of the
second from the first, mean over all tokens.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.calibrate.reference import TransformersReference
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.evaluation.perplexity import documents, log_softmax, windows
from edgetok.model import Model

_WINDOW = 512
Logits = npt.NDArray[np.float32]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--types", nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=4000)
    args = parser.parse_args()
    print(
        "| file | bytes | kept, bytes | more | KL llama.cpp, edgetok | exact, llama.cpp "
        "| exact, edgetok |\n|---|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for file in args.files:
        _row(file, None, args)
    for kind in args.types:
        _row(args.files[0], kind, args)


def _row(source: Path, kind: str | None, args: argparse.Namespace) -> None:
    import gguf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = source if kind is None else folder / f"{kind}.gguf"
        cut = _windows(source, folder, args)
        command = [args.peer_python, str(Path(__file__).parents[1] / "peers" / "peer_logits.py")]
        command += [str(source), str(folder), *(["--type", kind] if kind else [])]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        theirs = np.load(folder / "logits.npy", mmap_mode="r")
        # Two names may share one tensor's bytes.
        size = sum({t.data_offset: int(t.n_bytes) for t in gguf.GGUFReader(file).tensors}.values())
        convert(str(file), folder / "kept", ConvertOptions(reference_tokens=0))
        kept = (folder / "kept" / "model.onnx.data").stat().st_size
        reference = TransformersReference(str(file))
        total, first = np.zeros(3), 0
        with Model.load(folder / "kept") as model:
            for ids in cut:
                cache = model.backend.new_cache(len(ids))
                ours = model.backend.forward(cache, ids, all_logits=True)
                peer = np.asarray(theirs[first : first + len(ids)])
                exact = reference.logits(ids)
                pairs = ((peer, ours), (exact, peer), (exact, ours))
                total += [_kl(p, q) for p, q in pairs]
                first += len(ids)
    label = source.stem if kind is None else f"{source.stem} as {kind}"
    numbers = " | ".join(f"{value:.4f}" for value in total / first)
    print(
        f"| {label} | {size:,} | {kept:,} | {kept / size - 1:+.2%} | {numbers} |",
        flush=True,
    )


def _windows(source: Path, folder: Path, args: argparse.Namespace) -> list[Any]:
    """Token ids of each window; also where the peer's script finds them."""
    convert(str(source), folder / "first", ConvertOptions(reference_tokens=0))
    with Model.load(folder / "first") as model:
        text = documents(args.text.read_text(encoding="utf-8"), model.tokenizer)
        cut = [w.ids for w in windows(text, _WINDOW, _WINDOW - 1, args.tokens) if len(w.ids) > 1]
    np.save(folder / "lengths.npy", np.array([len(ids) for ids in cut]))
    np.save(folder / "ids.npy", np.concatenate(cut).astype(np.int32))
    return cut


def _kl(p: Logits, q: Logits) -> float:
    """Sum over tokens of the KL divergence of q from p."""
    left, right = log_softmax(p), log_softmax(np.asarray(q, np.float32))
    return float((np.exp(left) * (left - right)).sum())


if __name__ == "__main__":
    main()
