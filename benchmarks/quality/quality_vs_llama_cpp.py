"""KL to the original of edgetok's bits per tensor and of llama.cpp's quantisers, by stored bytes.

    python benchmarks/quality/quality_vs_llama_cpp.py FILE.gguf --noise 1 \
        --peer-python PEER_PYTHON --work FOLDER --text wikitext2.valid.raw seed_tasks.jsonl \
        --types Q2_K Q3_K_M IQ3_S IQ4_NL Q4_K_S Q4_K_M --bits 4
    python benchmarks/quality/quality_vs_llama_cpp.py models/default --text stories.txt \
        --peer-python PEER_PYTHON

The original is a model folder of the llama family, or a GGUF file whose dequantised weights count
as the original; `--noise 1` adds uniform noise of one quantisation step to them first, so that they
no longer lie on the file's grid. llama.cpp quantises with an importance matrix; then edgetok makes
an artefact of at most as many bytes (`--fit --method auto`), and one for each of `--bits`. All see
the same calibration windows, those of a conversion without `--calibration`; the importance matrix
is the mean square of each linear layer's inputs in the original. All run the same token ids, with
the integer arithmetic and the 8-bit activations that each uses by itself, beside the original in
transformers. Bytes are those of all tensors.

A text is a plain one, cut into windows of 512 tokens, or a .jsonl of tasks with `instruction` and
`instances`, whose answers are predicted after the question in the model's chat template (see
`chat_answers.py`); the first --tokens predictions of each are compared (one number for all texts,
or one for each). With --work, what is in
that folder is not computed again; remove `edgetok-*` and `sensitivity.json` after a change of the
converter. The peers' environment needs gguf, llama-cpp-python and numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from chat_answers import chat_windows

from edgetok.converter import convert as conversion
from edgetok.converter.allocate import search
from edgetok.converter.allocate.sensitivity import Sensitivity
from edgetok.converter.calibrate.calibration_text import Texts
from edgetok.converter.calibrate.reference import TransformersReference
from edgetok.converter.card.report import LayerReport
from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.options import Step
from edgetok.converter.read.gguf_checkpoint import GgufCheckpoint
from edgetok.converter.read.source import open_source
from edgetok.evaluation.perplexity import Window, documents, log_softmax, windows
from edgetok.model import Model
from edgetok.text.tokenizer import Tokenizer

_WINDOW = 512
_ROWS = 64
Logits = Callable[[int, Window], npt.NDArray[np.float32]]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--types", nargs="*", default=["Q2_K", "Q3_K_M", "Q4_K_M"])
    parser.add_argument("--bits", nargs="*", type=int, default=[], help="uniform widths")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4088], help="of each text")
    parser.add_argument("--noise", type=float, default=0, help="in steps of the file's groups")
    parser.add_argument("--without", nargs="*", default=[], help="steps of auto to leave out")
    parser.add_argument("--work", type=Path, help="folder that keeps what is known")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        _Comparison(args, work).run()


class _Enough(Exception):
    """The calibration text is known, and nothing else was wanted."""


class _Comparison:
    """One original, and what is known about it."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self._args, self._work = args, work
        self._source = args.original
        if args.original.suffix == ".gguf":
            from gguf_original import write_original

            self._source = work / "original.gguf"
            write_original(args.original, self._source, args.noise, args.peer_python)
        elif args.noise:
            raise SystemExit("--noise is for GGUF files")
        conversion.texts_of = self._shared_texts(conversion.texts_of)
        search.measure = self._sensitivity(search.measure)
        if not (work / "texts.npz").exists():
            with contextlib.suppress(_Enough):
                convert(str(self._source), work / "out", ConvertOptions())
        counts = args.tokens * (len(args.text) if len(args.tokens) == 1 else 1)
        self._texts = {
            text.stem: self._windows(text, count)
            for text, count in zip(args.text, counts, strict=True)
        }
        self._cut = [window for cut in self._texts.values() for window in cut]
        self._reference: TransformersReference | None = None

    def run(self) -> None:
        """Measure and print cell by cell."""
        print("| stored as | bytes |" + "".join(f" {t}: KL | ratio |" for t in self._texts))
        print("|---|---:|" + "---:|---:|" * len(self._texts), flush=True)
        steps: tuple[Step, ...] = tuple(self._args.without)
        plain: dict[str, Any] = {"method": "auto", "reference_tokens": 0, "keep_codes": False}
        options = ConvertOptions(**plain, without=steps)
        for kind in self._args.types:
            cell = self._cell(f"llama.cpp-{kind}", lambda kind=kind: self._peer(kind))
            _print(f"llama.cpp {kind} with imatrix", cell)
            target = Target(nbytes=cell["bytes"], padded=False)
            name = "-".join([f"edgetok-{kind}", *(f"no_{step}" for step in steps)])
            ours = self._cell(name, lambda name=name, t=target: self._edgetok(name, options, t))
            _print("edgetok, bits per tensor", ours)
        for bits in self._args.bits:
            options = ConvertOptions(**plain, without=steps, bits=bits, uniform=True)
            name = "-".join([f"edgetok-{bits}_bits", *(f"no_{step}" for step in steps)])
            ours = self._cell(name, lambda name=name, o=options: self._edgetok(name, o, None))
            _print(f"edgetok, {bits} bits", ours)

    def _cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self._work / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        cell: dict[str, Any] = json.loads(path.read_text())
        return cell

    def _edgetok(self, name: str, options: ConvertOptions, target: Target | None) -> dict[str, Any]:
        out = self._work / name
        if not out.exists():
            convert(str(self._source), out, options, target=target)
        report = json.loads((out / "report.json").read_text())
        with Model.load(out, threads=1) as model:

            def logits(_: int, window: Window) -> npt.NDArray[np.float32]:
                cache = model.backend.new_cache(len(window.ids))
                return model.backend.forward(cache, window.ids, all_logits=True)

            losses = self._losses(logits)
        stored = [LayerReport(**layer).stored for layer in report["layers"]]
        return {
            "bytes": report["weight_bytes"],
            "losses": losses,
            "formats": dict(Counter(stored)),
            "head": stored[-1],
            "notes": report["notes"],
            "seconds": round(report["time_s"]),
        }

    def _peer(self, kind: str) -> dict[str, Any]:
        work, script = self._work, str(Path(__file__).parents[1] / "peers" / "peer_imatrix.py")
        lengths = [len(window.ids) for window in self._cut]
        np.save(work / "lengths.npy", np.array(lengths))
        np.save(work / "ids.npy", np.concatenate([w.ids for w in self._cut]).astype(np.int32))
        if not (work / "imatrix.npz").exists():
            _write_imatrix(self._original(), self._calibration(), work / "imatrix.npz")
        command = [self._args.peer_python, script, kind, str(self._peer_source()), str(work)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        result = np.load(work / f"{kind}.npy", mmap_mode="r")
        starts = np.cumsum([0, *lengths])
        losses = self._losses(lambda i, window: result[starts[i] : starts[i + 1]])
        (work / f"{kind}.npy").unlink()
        told = json.loads((work / f"{kind}.json").read_text())
        return {"bytes": told["bytes"], "losses": losses, "formats": told["types"]}

    def _losses(self, ours: Logits) -> dict[str, dict[str, float]]:
        """KL in nats of a model from the original, and the ratio of their perplexities, by text."""
        result, i = {}, 0
        for text, cut in self._texts.items():
            kl = loss = 0.0
            for window in cut:
                right, left = ours(i, window), self._theirs(i, window)
                i += 1
                for first in range(window.first, len(window.ids) - 1, _ROWS):
                    rows = slice(first, min(first + _ROWS, len(window.ids) - 1))
                    p, q = log_softmax(left[rows]), log_softmax(np.asarray(right[rows], np.float32))
                    places, targets = np.arange(len(p)), window.ids[rows.start + 1 : rows.stop + 1]
                    kl += float((np.exp(p) * (p - q)).sum())
                    loss += float((p - q)[places, targets].sum())
            count = sum(len(window.ids) - 1 - window.first for window in cut)
            result[text] = {"kl": kl / count, "ratio": math.exp(loss / count), "tokens": count}
        return result

    def _original(self) -> TransformersReference:
        self._reference = self._reference or TransformersReference(str(self._source), threads=1)
        return self._reference

    def _theirs(self, i: int, window: Window) -> npt.NDArray[np.float32]:
        path = self._work / f"original-{i}.npy"
        if not path.exists():
            np.save(path, self._original().logits(window.ids))
        logits: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
        return logits

    def _windows(self, text: Path, wanted: int) -> list[Window]:
        checkpoint, folder = open_source(self._source), self._source
        if isinstance(checkpoint, GgufCheckpoint):
            folder = checkpoint.write_assets(self._work / "tokenizer")
        tokenizer = Tokenizer.from_folder(folder, checkpoint.config["vocab_size"])
        if text.suffix == ".jsonl":
            return list(chat_windows(text, folder, tokenizer, _WINDOW, wanted))
        parts = documents(text.read_text(encoding="utf-8"), tokenizer)
        return list(windows(parts, _WINDOW, _WINDOW - 1, wanted))

    def _peer_source(self) -> Path:
        """Return the original as a GGUF file."""
        if self._source.suffix == ".gguf":
            return self._source
        path = self._work / "F16.gguf"
        if not path.exists():
            _write_halves(self._source, self._original(), self._work / "halves")
            script = str(Path(__file__).parents[1] / "peers" / "peer_gguf.py")
            command = [self._args.peer_python, script, str(self._work / "halves"), str(self._work)]
            subprocess.run([*command, "--types"], check=True, stderr=subprocess.DEVNULL)
        return path

    def _calibration(self) -> npt.NDArray[np.int64]:
        """Return the windows that a conversion calibrates on."""
        with np.load(self._work / "texts.npz") as kept:
            return Texts(kept["learned"], kept["held_out"]).calibration(ConvertOptions())

    def _shared_texts(self, real: Callable[..., Texts]) -> Callable[..., Texts]:
        """Make conversions share the calibration text, which is the same for all of them."""
        path = self._work / "texts.npz"

        def texts_of(*given: Any, **named: Any) -> Texts:
            if path.exists():
                with np.load(path) as kept:
                    notes = tuple(kept["notes"].tolist())
                    return Texts(kept["learned"], kept["held_out"], notes, kept.get("more"))
            result = real(*given, **named)
            parts = {"learned": result.learned, "held_out": result.held_out, "more": result.more}
            kept = {name: windows for name, windows in parts.items() if windows is not None}
            np.savez(path, notes=np.array(result.notes, dtype=str), **kept)
            raise _Enough

        return texts_of

    def _sensitivity(self, real: Callable[..., Sensitivity]) -> Callable[..., Sensitivity]:
        """Make conversions to several sizes share what they measure first."""
        path = self._work / "sensitivity.json"

        def measure(*given: Any, **named: Any) -> Sensitivity:
            if not path.exists():
                path.write_text(json.dumps(real(*given, **named).to_json()))
            return Sensitivity.from_json(json.loads(path.read_text()))

        return measure


def _print(label: str, cell: dict[str, Any]) -> None:
    losses = "".join(f" {t['kl']:.4f} | {t['ratio']:.3f} |" for t in cell["losses"].values())
    print(f"| {label} | {cell['bytes']:,} |{losses}", flush=True)
    formats = ", ".join(f"{n} of {what}" for what, n in sorted(cell["formats"].items()))
    print("  " + formats, *cell.get("notes", ()), flush=True, file=sys.stderr)


def _write_imatrix(
    reference: TransformersReference, calibration: npt.NDArray[np.int64], path: Path
) -> None:
    """Write the mean square of each linear layer's inputs, by the name of its weights."""
    import torch

    # Without the head, whose importance llama.cpp's own tool does not measure either.
    model = reference._model.model
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
    means = {f"model.{name}.weight": sums / calibration.size for name, sums in squares.items()}
    np.savez(path, **{name: mean.numpy() for name, mean in means.items()})


def _write_halves(checkpoint: Path, reference: TransformersReference, folder: Path) -> None:
    """Write the original with float16 weights, as `peer_gguf.py` reads it."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    model = reference._model
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


if __name__ == "__main__":
    main()
