"""KL to the original of edgetok's bits per tensor and of llama.cpp's K-quants, by stored bytes.

    python benchmarks/quality_vs_llama_cpp.py models/default --text stories.txt \
        --peer-python PEER_PYTHON --types Q2_K Q3_K_M Q4_K_M

llama.cpp quantises with an importance matrix; then edgetok makes an artefact of at most as many
bytes (`--fit --method auto`). Both see the same calibration windows, those of a conversion without
`--calibration`; the importance matrix is the mean square of each linear layer's inputs in the
original. Both then run the same token ids, with the integer arithmetic and the 8-bit activations
that each uses by itself, beside the original in transformers. Bytes are those of all tensors. The
peers' environment needs gguf, llama-cpp-python and numpy; models of the llama family only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

_WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--types", nargs="*", default=["Q2_K", "Q3_K_M", "Q4_K_M"])
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        _peer(args.checkpoint, args.peer, args.types)
        return
    if not args.text or not args.peer_python:
        parser.error("--text and --peer-python are needed")
    with tempfile.TemporaryDirectory() as folder:
        _compare(args, Path(folder))


def _compare(args: argparse.Namespace, work: Path) -> None:
    from quality import write_once

    from edgetok.converter import convert as conversion
    from edgetok.converter.calibrate.reference import TransformersReference
    from edgetok.converter.convert import ConvertOptions, Target, convert
    from edgetok.evaluation.perplexity import documents, windows
    from edgetok.model import Model

    reference = TransformersReference(str(args.checkpoint), threads=1)
    write_once()
    seen: list[Any] = []
    real = conversion.texts_of

    def texts_of(*given: Any, **named: Any) -> Any:
        seen.append(real(*given, **named))
        return seen[-1]

    conversion.texts_of = texts_of
    # For the text, with the least to do besides.
    without = ("fold", "search", "gptq", "descent", "tune")
    options = ConvertOptions(method="auto", without=without, reference_tokens=0)
    convert(str(args.checkpoint), work / "out", options)
    with Model.load(work / "out") as model:
        text = documents(args.text.read_text(encoding="utf-8"), model.tokenizer)
        cut = list(windows(text, _WINDOW, _WINDOW // 2, args.tokens))
    theirs = [reference.logits(window.ids) for window in cut]
    _prepare_peer(args.checkpoint, work / "peer", reference, seen[0].learned, cut)
    command = [args.peer_python, __file__, str(args.checkpoint), "--peer", str(work / "peer")]
    subprocess.run([*command, "--types", *args.types], check=True, stderr=subprocess.DEVNULL)
    print("| stored as | bytes | KL | perplexity ratio |")
    print("|---|---:|---:|---:|", flush=True)
    for kind in args.types:
        result = np.load(work / "peer" / f"{kind}.npy", mmap_mode="r")
        lengths = np.cumsum([len(window.ids) for window in cut])[:-1]
        size = json.loads((work / "peer" / f"{kind}.json").read_text())["bytes"]
        _row(f"llama.cpp {kind} with imatrix", size, cut, theirs, np.split(result, lengths))
        options = ConvertOptions(method="auto", reference_tokens=0)
        target = Target(nbytes=size, padded=False)
        report = convert(str(args.checkpoint), work / "out", options, target=target)
        with Model.load(work / "out", threads=1) as model:
            ours = [
                model.backend.forward(
                    model.backend.new_cache(len(window.ids)), window.ids, all_logits=True
                )
                for window in cut
            ]
        _row("edgetok, bits per tensor", report.weight_bytes, cut, theirs, ours)
        widths = Counter(layer.stored for layer in report.layers)
        print(
            "  " + ", ".join(f"{n} of {what}" for what, n in sorted(widths.items())),
            *report.notes,
            flush=True,
            file=sys.stderr,
        )


def _row(label: str, size: int, cut: list[Any], theirs: list[Any], ours: list[Any]) -> None:
    from edgetok.evaluation.perplexity import log_softmax

    kl, loss, wanted, count = 0.0, 0.0, 0.0, 0
    for window, left, right in zip(cut, theirs, ours, strict=True):
        rows = slice(max(0, window.first), len(window.ids) - 1)
        p, q = log_softmax(left[rows]), log_softmax(np.asarray(right[rows], np.float32))
        places, targets = np.arange(len(p)), window.ids[rows.start + 1 :]
        kl += float((np.exp(p) * (p - q)).sum())
        loss -= float(q[places, targets].sum())
        wanted -= float(p[places, targets].sum())
        count += len(p)
    ratio = math.exp((loss - wanted) / count)
    print(f"| {label} | {size:,} | {kl / count:.4f} | {ratio:.3f} |", flush=True)


def _prepare_peer(
    checkpoint: Path, folder: Path, reference: Any, calibration: np.ndarray, cut: list[Any]
) -> None:
    """Write the files for the peers: float16 weights, importance of each input, token ids."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    model = reference._model
    squares: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def see(_: Any, given: Any, name: str = name) -> None:
                x = given[0].detach().flatten(0, -2)
                squares[name] = squares.get(name, 0) + x.square().sum(0)

            handles.append(module.register_forward_pre_hook(see))
    with torch.inference_mode():
        for window in calibration:
            model(torch.from_numpy(window[None]), use_cache=False)
    for handle in handles:
        handle.remove()
    np.savez(
        folder / "imatrix.npz",
        **{f"{name}.weight": (total / calibration.size).numpy() for name, total in squares.items()},
    )
    state = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id"):
        config[key] = config[key] if isinstance(config.get(key), int) else 0
    (folder / "config.json").write_text(json.dumps(config))
    np.save(folder / "lengths.npy", np.array([len(window.ids) for window in cut]))
    np.save(folder / "ids.npy", np.concatenate([window.ids for window in cut]).astype(np.int32))


def _peer(checkpoint: Path, folder: Path, kinds: list[str]) -> None:
    """Write GGUF files and their logits, in the peers' environment."""
    import ctypes

    sys.path.insert(0, str(Path(__file__).parent))
    import gguf
    import llama_cpp
    import peer_gguf
    import peer_logits

    source = folder / "F16.gguf"
    peer_gguf.write_f16(folder, source)
    kept = []
    with np.load(folder / "imatrix.npz") as importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for i, name in enumerate(importance):
            values = np.ascontiguousarray(importance[name], np.float32)
            text = peer_gguf.gguf_name(name).encode()
            kept += [values, text]
            entries[i].name = text
            entries[i].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[i].size = values.size
    ids, lengths = np.load(folder / "ids.npy"), np.load(folder / "lengths.npy")
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = peer_gguf.TYPES[kind]
        params.nthread = 1
        params.imatrix = entries
        if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params):
            raise SystemExit(f"llama.cpp could not quantise to {kind}")
        size = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
        (folder / f"{kind}.json").write_text(json.dumps({"bytes": size}))
        np.save(folder / f"{kind}.npy", peer_logits.logits(path, ids, lengths))


if __name__ == "__main__":
    main()
