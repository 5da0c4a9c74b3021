"""Decode and prefill of edgetok and onnxruntime on the same artefact, alternating in one run.

    python benchmarks/speed/decode_vs_onnxruntime.py out/llama-1b-4 --threads 1 2 --prefill 512

For each number of threads and each repeat: the read bandwidth, then decode and prefill of both, in
turns. onnxruntime gets fixed buffers through I/O binding, so that it copies nothing between steps.
Medians are printed with their spread (max - min of the middle half, relative), and the share of the
read bandwidth that decode's weight bytes reach. Both start from the same random tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgetok.environment import read_settings
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.layout import LOGITS_START, cache_head_dim
from edgetok.kernels_cpu.bandwidth.measure import read_bandwidth
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.simd import isa
from edgetok.runtime.cpu.backend import CpuBackend

PAUSE_S = 0.05  # onnxruntime's threads spin for a while after their work, on cores that others need


class Ours:
    """edgetok with a cache of a fixed capacity."""

    def __init__(self, artefact: Artefact, threads: int, capacity: int, args: Any) -> None:
        self.backend = CpuBackend(artefact, threads=threads, isa=args.isa, kv_bits=args.kv_bits)
        self.cache = self.backend.new_cache(capacity)

    def reset(self, length: int) -> None:
        """Keep `length` tokens."""
        self.cache.truncate(length)

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Logits of the last token."""
        return self.backend.forward(self.cache, ids)


class Theirs:
    """onnxruntime with every buffer bound once."""

    def __init__(self, artefact: Artefact, threads: int, capacity: int, args: Any) -> None:
        spec = artefact.spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self.session = ort.InferenceSession(
            str(artefact.graph_path), options, providers=["CPUExecutionProvider"]
        )
        self.length = 0
        self.block = args.block
        self.binding = self.session.io_binding()
        shape = (1, spec.num_kv_heads, capacity, cache_head_dim(spec.head_dim))
        self.values = []
        for i in range(spec.num_layers):
            for kind in ("key", "value"):
                value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self.values.append(value)
                self.binding.bind_ortvalue_input(f"past_key_values.{i}.{kind}", value)
                self.binding.bind_ortvalue_output(f"present.{i}.{kind}", value)
        # Logits of the last token alone: an input that `bind_cpu_input` does not know.
        self.last = ort.OrtValue.ortvalue_from_numpy(np.array([-1], np.int64))
        self.binding.bind_ortvalue_input(LOGITS_START, self.last)
        self.binding.bind_output("logits", "cpu")

    def reset(self, length: int) -> None:
        """Keep `length` tokens."""
        self.length = length

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Logits of the last token."""
        for start in range(0, len(ids), self.block):
            part = ids[start : start + self.block].astype(np.int64)[None]
            self.length += part.shape[1]
            self.binding.bind_cpu_input("input_ids", part)
            self.binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
            self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()[-1].numpy()[0, -1]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--depth", type=int, default=32, help="tokens before decoding starts")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=12, help="tokens a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block", type=int, default=512, help="onnxruntime's prefill block")
    parser.add_argument("--kv-bits", type=int, default=8)
    parser.add_argument("--isa")
    args = parser.parse_args()
    artefact = open_artefact(args.artefact)
    rng = np.random.default_rng(0)
    vocab = artefact.spec.vocab_size
    capacity = max(args.depth + args.decode, args.prefill) + 1
    start = rng.integers(0, vocab, args.depth).astype(np.int32)
    steps = rng.integers(0, vocab, (args.decode, 1)).astype(np.int32)
    kernels = loader.load(isa.choose(args.isa), read_settings().cache_dir)
    header = f"{'threads':7} {'what':8} {'edgetok':>16} {'onnxruntime':>16} {'ratio':>6}"
    print(header + "   read GB/s   share of it", flush=True)
    for threads in args.threads:
        ours, theirs = (
            kind(open_artefact(args.artefact), threads, capacity, args) for kind in (Ours, Theirs)
        )
        rates: dict[tuple[str, str], list[float]] = {}
        reads = []

        def measure(what: str, who: str, count: int, work: Callable[[], None]) -> None:
            time.sleep(PAUSE_S)
            since = time.perf_counter()
            work()
            rate = count / (time.perf_counter() - since)
            rates.setdefault((what, who), []).append(rate)  # noqa: B023

        sides = (("edgetok", ours), ("onnxruntime", theirs))
        for side in (ours, theirs):
            side.run(start)
        np_ours, np_theirs = ours.run(steps[0]), theirs.run(steps[0])
        difference = np.linalg.norm(np_ours - np_theirs) / np.linalg.norm(np_theirs)
        print(f"{threads:7} logits differ by {difference:.4f} of their norm", flush=True)
        for repeat in range(args.repeats):
            reads.append(read_bandwidth(kernels, threads, 256))
            for who, side in sides[:: 1 if repeat % 2 else -1]:
                side.reset(args.depth)

                def decode(side: Any = side) -> None:
                    for step in steps:
                        side.run(step)

                measure("decode", who, args.decode, decode)
            if not args.prefill:
                continue
            prompt = rng.integers(0, vocab, args.prefill).astype(np.int32)
            for who, side in sides[:: 1 if repeat % 2 else -1]:
                side.reset(0)
                measure("prefill", who, args.prefill, lambda s=side: s.run(prompt))  # noqa: B023
                side.reset(min(args.depth, args.prefill))
        read = statistics.median(reads)
        for what in ("decode", "prefill") if args.prefill else ("decode",):
            mine, other = (rates[what, who] for who in ("edgetok", "onnxruntime"))
            ratio = statistics.median(mine) / statistics.median(other)
            line = f"{threads:7} {what:8} {_spread(mine):>16} {_spread(other):>16} {ratio:6.2f}"
            if what == "decode":
                moved = ours.backend.bytes_per_token * statistics.median(mine) / 1e9
                line += f"   {read:9.1f}   {moved / read:10.0%}"
            print(line, flush=True)
        ours.backend.close()
        del ours, theirs


def _spread(rates: list[float]) -> str:
    ordered = sorted(rates)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    median = statistics.median(ordered)
    return f"{median:.1f} +-{(middle[-1] - middle[0]) / median / 2:.0%}"


if __name__ == "__main__":
    main()
