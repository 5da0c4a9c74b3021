"""Measure everything on a GPU, in about ten minutes.

    python benchmarks/speed/gpu.py [--out FILE.json] [--shapes llama-3.2-1b llama-3.1-8b]
        [--bits 4 2] [--depth 512] [--prompt 4096] [--no-peers] [--models FOLDER ...]

`make bench-gpu` uses a Python that sees a GPU as it is: `uninstalled/sitecustomize.py` finds this
checkout. To try it without a GPU: TRITON_INTERPRET=1, --interpreted --shapes tiny --prompt 16
--depth 4.

For each shape and width a model of random weights is written, its products are tuned and the tile
sizes are kept, as they are for each artefact of `--models`; in one process, in turn, are measured

    copy      bytes read and written a second by a copy within the GPU: the bound of decoding
    product   operations a second of torch's bfloat16 product: the bound of prefill
    decode    batch 1 after `--depth` tokens; its share of copy is bytes a token * tokens/s / copy
    prefill   of `--prompt` tokens; its share of product is 2 * weights * tokens/s / product
    memory    the most that was allocated, beside weights and cache
    evicts    decode with a bounded cache, eviction included
    peers     the same sizes in transformers, bfloat16, and in torch's own 4-bit product

The first line names the GPU. Times are the median of repeats, by the GPU's own clock. A
measurement that fails prints its reason and the others continue; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gpu_peers
import numpy as np
import torch

from edgetok.cache.limits import CacheLimits
from edgetok.converter.write.data_file import DATA_FILE, plan
from edgetok.converter.write.onnx_graph import build
from edgetok.environment import read_settings
from edgetok.errors import EdgetokError
from edgetok.formats.layout import GRAPH_FILE, TensorFormat, linear_shapes
from edgetok.formats.manifest import write_manifest
from edgetok.kernels_gpu import tuning
from edgetok.kernels_gpu.device import Device, find
from edgetok.kernels_gpu.matmul_nbits import matmul_nbits
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec
from edgetok.runtime.base import forward_sampled
from edgetok.runtime.gpu.backend import BLOCK_TOKENS, GpuBackend
from edgetok.sampling.device import Draw

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_heads": 32, "num_kv_heads": 8,
        "head_dim": 64, "layers": 16, "tied": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_heads": 32, "num_kv_heads": 8,
        "head_dim": 128, "layers": 32, "tied": False,
    },
    "tiny": {  # to try this script under the interpreter
        "hidden_size": 32, "intermediate_size": 64, "num_heads": 1, "num_kv_heads": 1,
        "head_dim": 32, "layers": 1, "tied": True, "vocab_size": 64,
    },
}  # fmt: skip
GROUP = {2: 64, 3: 64, 4: 32, 8: 32}


def decoder(name: str) -> DecoderSpec:
    """Return a decoder of real sizes."""
    given = dict(SHAPES[name])
    rope = RopeSpec(rotary_dim=given["head_dim"], theta=500000.0)
    return DecoderSpec(
        family="llama",
        vocab_size=given.pop("vocab_size", 128256),
        layers=(LayerSpec(),) * given.pop("layers"),
        ropes=(rope,),
        context_tokens=8192,
        norm_eps=1e-5,
        attn_scale=given["head_dim"] ** -0.5,
        **given,
    )


def write_model(spec: DecoderSpec, bits: int, folder: Path) -> Path:
    """Return an artefact of random codes; scales keep activations near 1."""
    form = TensorFormat(bits, GROUP[bits], True)
    formats = dict.fromkeys(linear_shapes(spec), form)
    formats["lm_head"] = TensorFormat(max(4, bits), 32, True)
    if not spec.tied:
        formats["embed_tokens"] = TensorFormat(4, 32, True)
    layout = plan(spec, formats)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / DATA_FILE).open("wb") as file:
        file.truncate(layout.file_bytes)
    data = np.memmap(folder / DATA_FILE, np.uint8, "r+")
    for slot in layout.tensors.values():
        place = data[slot.offset : slot.offset + slot.nbytes]
        if slot.dtype == "uint8":
            noise = np.frombuffer(rng.bytes(min(slot.nbytes, 1 << 24)), np.uint8)
            for at in range(0, slot.nbytes, noise.size):
                part = place[at : at + noise.size]
                part[:] = noise[: part.size]
        else:
            inputs = slot.shape[-1] * GROUP[bits]
            value = 1.0 if slot.dtype == "float32" else 1.0 / (2**bits * inputs**0.5)
            place.view(slot.dtype)[:] = value
    data.flush()
    import onnx

    onnx.save(build(spec, layout, formats), folder / GRAPH_FILE)
    write_manifest(folder, exporter="edgetok")
    return folder


def seconds(device: Device, work: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one call, by the GPU's clock; on no GPU, by this machine's."""
    if device.interpreted:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def bounds(device: Device) -> tuple[float, float]:
    """Bytes a second of a copy (read and written), operations a second of a bfloat16 product."""
    where, small = device.torch_device, device.interpreted
    source = torch.empty(1 << (16 if small else 29), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(device, lambda: target.copy_(source))
    size = 64 if small else 8192
    a = torch.randn(size, size, device=where, dtype=torch.bfloat16)
    product = 2 * size**3 / seconds(device, lambda: a @ a)
    return copy, product


def tune(backend: GpuBackend, device: Device) -> Iterator[str]:
    """Measure every shape's tile sizes for one, few and many tokens."""
    plan_ = backend._open()
    every = [plan_._head, *(p[0] for p in (plan_._qkv, plan_._o, plan_._gate_up, plan_._down))]
    linears = [linear for product in every for _, linear in product.parts]
    for linear in linears[:1] if device.interpreted else linears:
        for tokens in (1, 8, BLOCK_TOKENS):
            few = device.interpreted or linear is linears[0]  # logits are wanted of few tokens
            if tokens > (1 if device.interpreted else 8) and few:
                continue
            kind = torch.float32 if tokens == 1 else torch.float16
            shape = (tokens, 8, linear.stride)
            x = torch.randn(shape, device=device.torch_device).to(kind)
            y = torch.empty((tokens, linear.N), device=device.torch_device)
            scale = None if tokens == 1 else torch.ones(tokens, device=device.torch_device)

            def time_of(config: Any) -> float:
                try:
                    return seconds(
                        device,
                        lambda: matmul_nbits(x, linear, y, x_scale=scale, config=config),  # noqa: B023
                        5,
                    )
                except Exception as error:  # what a GPU has not room for, in many words
                    if "out of resource" in str(error).lower():
                        return float("inf")
                    raise

            best, time_s = tuning.tune(linear, tokens, time_of)
            yield f"{linear.N} x {linear.K}, {tokens} tokens: {best}, {time_s * 1e6:.0f} us"


def measure(
    device: Device, name: str, folder: Path, args: argparse.Namespace, copy: float, product: float
) -> dict[str, Any]:
    """Return one model."""
    with closing(GpuBackend(folder, device=device)) as backend:
        spec = backend.spec
        for line in tune(backend, device):
            print("  tuned", line, flush=True)
        if not device.interpreted:
            torch.cuda.reset_peak_memory_stats()  # tuning has buffers of its own
        rng = np.random.default_rng(1)
        prompt = rng.integers(0, spec.vocab_size, args.prompt).astype(np.int32)
        draw = Draw(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, share=0.0)
        result = {"model": name, "bytes_per_token": backend.bytes_per_token}
        prefill_s, step_s, beside = timed(device, backend, prompt, draw, args.depth)
        result |= attempt("evicts", lambda: evicting(device, backend, prompt, draw))
        weights = sum(s.N * s.K for s in linear_shapes(spec).values())
        if not spec.tied:
            weights -= spec.vocab_size * spec.hidden_size
        head = spec.vocab_size * spec.hidden_size  # of the last token alone
        share, least = backend.bytes_per_token / step_s / copy, 0.8 if "8b" in name else 0.6
        prefill_share = 2 * (weights - head) * args.prompt / prefill_s / product
    return result | {
        "decode_tokens_per_s": 1 / step_s,
        "decode_share_of_copy": share,
        "decode_goal": f"{least}: {'met' if share >= least else 'missed'}",
        "prefill_tokens_per_s": args.prompt / prefill_s,
        "prefill_share_of_product": prefill_share,
        "prefill_goal": f"0.5: {'met' if prefill_share >= 0.5 else 'missed'}",
        "memory_beside_weights_and_cache_mb": beside / 1e6,
        "memory_goal": f"500: {'met' if beside <= 500e6 else 'missed'}",
    }


def timed(
    device: Device, backend: GpuBackend, prompt: np.ndarray, draw: Draw, depth: int
) -> tuple[float, float, int]:
    """Seconds of a prefill and of a step, and bytes beside weights and cache at the most."""
    cache = backend.new_cache(max(len(prompt), depth) + 256)

    def prefill() -> None:
        cache.clear()
        backend.forward(cache, prompt)

    prefill_s = seconds(device, prefill, 5)
    cache.clear()
    backend.forward(cache, np.resize(prompt, depth))
    step_s = seconds(device, lambda: forward_sampled(backend, cache, prompt[:1], draw), 100)
    peak = 0 if device.interpreted else torch.cuda.max_memory_allocated()
    return prefill_s, step_s, peak - backend.weight_bytes - cache.nbytes


def evicting(device: Device, backend: GpuBackend, prompt: np.ndarray, draw: Draw) -> dict[str, Any]:
    """Decode past the slots of a bounded cache, for two evictions."""
    small = device.interpreted
    cache = backend.new_bounded_cache(64 if small else 2048, CacheLimits())
    backend.forward(cache, np.resize(prompt, cache.slots))
    count = 2 if small else 2 * cache.block_tokens
    forward_sampled(backend, cache, prompt[:1], draw)  # captured
    begin = time.perf_counter()
    for _ in range(count):
        forward_sampled(backend, cache, prompt[:1], draw)
    took = time.perf_counter() - begin
    return {
        "evicting_slots": cache.slots,
        "evicting_cache_mb": cache.nbytes / 1e6,
        "evicting_decode_tokens_per_s": count / took,
    }


def attempt(what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the results of `work`, or the reason why it failed."""
    try:
        return work()
    except Exception as error:  # whatever it is, the other figures are wanted
        FAILED.append(what)
        text = " ".join(str(error).split())
        return {f"failed_{what}": f"{type(error).__name__}: {text:.300}"}


FAILED: list[str] = []


def peers(device: Device, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """transformers in bfloat16, and torch's 4-bit product over the same layers."""
    spec = decoder(name)
    result: dict[str, Any] = {"shape": name}
    result |= attempt(
        "transformers_bf16", lambda: gpu_peers.transformers_bf16(device, spec, args, seconds)
    )
    gc.collect()
    device.release()
    return result | attempt("torch_int4", lambda: gpu_peers.torch_int4(device, spec, seconds))


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu.json"))
    parser.add_argument("--shapes", nargs="*", default=["llama-3.2-1b", "llama-3.1-8b"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 2])
    parser.add_argument("--models", nargs="+", type=Path, default=[], help="artefacts, likewise")
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--scratch", type=Path, help="folder for models of random weights")
    parser.add_argument("--interpreted", action="store_true", help="try the script, slowly")
    args = parser.parse_args()
    try:
        device = Device(interpreted=True) if args.interpreted else find()
    except EdgetokError as error:
        print(error, file=sys.stderr)
        return 2
    print(device.name, f"torch {torch.__version__}", flush=True)
    tiles = tuning.table(read_settings().cache_dir, device.name)
    copy, product = bounds(device)
    results: list[dict[str, Any]] = [
        {"device": device.name, "copy_bytes_per_s": copy, "bf16_operations_per_s": product}
    ]
    _show(results[0])

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        _show(result)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1))
        gc.collect()
        device.release()

    def try_to_measure(name: str, folder: Callable[[], Path]) -> None:
        keep(attempt(name, lambda: measure(device, name, folder(), args, copy, product)))
        tuning.write(tiles)

    for name in args.shapes:
        for bits in args.bits:
            with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                try_to_measure(
                    f"{name}, {bits} bits",
                    lambda n=name, b=bits, s=scratch: write_model(decoder(n), b, Path(s) / "model"),
                )
        if not args.no_peers:
            keep(peers(device, name, args))
    for folder in args.models:
        try_to_measure(folder.name, lambda f=folder: f)
    print(f"tile sizes in {tiles}, figures in {args.out}")
    if FAILED:
        print(f"failed: {', '.join(FAILED)}", file=sys.stderr)
    return 1 if FAILED else 0


def _show(result: dict[str, Any]) -> None:
    for key, value in result.items():
        shown = f"{value:,.3g}" if isinstance(value, float) else value
        print(f"  {key:40} {shown}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
