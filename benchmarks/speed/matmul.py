"""Speed of the products beside a plain read loop and onnxruntime's MatMulNBits, in one run.

    python benchmarks/speed/matmul.py --bits 4 --group-size 32 --threads 1 2 --tokens 1 512

Shapes are those of Llama-3.2-1B. Contenders alternate, and medians are reported with their spread
(max - min of the middle half, relative). For one token enough copies of the weights are made that
they come from memory; GB/s counts weights, scales and zeros.

    python benchmarks/speed/matmul.py --rows --threads 1

prints what products of a few rows (tokens) cost, all from memory, as multiples of one row, and
beside each what the rate of 256 rows would make of it. Numbers of rows alternate; each time is the
least of all repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgetok.kernels_cpu.bandwidth.measure import Team
from edgetok.kernels_cpu.linear.launch import (
    allocate_scratch,
    matmul_instruction,
    quantise_instruction,
)
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight
from edgetok.kernels_cpu.program.loader import Kernels, load
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.simd.isa import choose

SHAPES = [(2048, 2048), (8192, 2048), (2048, 8192), (128256, 2048)]
MODULES = ("linear.quantise_activations", "bandwidth.kernels")
PAUSE_S = 0.03  # onnxruntime's threads spin for a while after their work, on cores that others need


def random_weight(rng: np.random.Generator, bits: int, g: int, N: int, K: int):
    """A layer of random bytes; what keeps them alive, and the launcher's view."""
    G = K // g
    stored = 2 if bits == 3 else bits
    qweight = rng.integers(0, 256, (N, G, g * stored // 8), dtype=np.uint8)
    high = rng.integers(0, 256, (N, G, g // 8), dtype=np.uint8) if bits == 3 else None
    scales = (rng.random((N, G), dtype=np.float32) * 0.01).astype(np.float16)
    weight = LinearWeight(
        name=f"[{N}, {K}]",
        bits=bits,
        N=N,
        K=K,
        group_size=g,
        weight=Span.of(qweight),
        high=None if high is None else Span.of(high),
        scales=Span.of(scales),
    )
    return (qweight, high, scales), weight


def edgetok_runs(
    kernels: Kernels, weights: list[LinearWeight], x: np.ndarray, threads: int
) -> tuple[Callable[[], float], list[object]]:
    """Return a function that computes every product once and returns the time."""
    tokens, K = x.shape
    first = weights[0]
    qx = Activations.allocate(
        kernels.isa, tokens_max=tokens, K=K, bits=first.bits, group_size=first.group_size
    )
    y = np.empty((tokens, first.N), np.float32)
    scratch = allocate_scratch(threads)
    program = [quantise_instruction(kernels, x=Floats.of(x), qx=qx)] + [
        matmul_instruction(kernels, weight=w, x=qx, y=Floats.of(y), scratch=scratch)
        for w in weights
    ]
    ctx = np.zeros(32, np.int64)
    ctx[0] = tokens
    quantise = kernels.function("quantise")
    matmul = kernels.function(f"matmul_q{first.bits}")
    quantise(program[0].ctypes.data, ctx.ctypes.data, 0, 1)
    addresses = [p.ctypes.data for p in program[1:]]
    team = Team(threads)

    def work(tid: int) -> None:
        for address in addresses:
            matmul(address, ctx.ctypes.data, tid, threads)

    return lambda: team.seconds(work) / len(weights), [qx, y, scratch, program, ctx, x]


def onnxruntime_runs(
    kept: list[tuple], weights: list[LinearWeight], x: np.ndarray, threads: int
) -> Callable[[], float]:
    """Return the same products in onnxruntime, one node each, on the same bytes."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    nodes, initializers, outputs = [], [], []
    for i, ((qweight, _, scales), w) in enumerate(zip(kept, weights, strict=True)):
        for name, array, kind in (
            (f"w{i}", qweight, TensorProto.UINT8),
            (f"s{i}", scales.astype(np.float32), TensorProto.FLOAT),
        ):
            initializers.append(
                helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
            )
        node = helper.make_node(
            "MatMulNBits",
            ["x", f"w{i}", f"s{i}"],
            [f"y{i}"],
            domain="com.microsoft",
            K=w.K,
            N=w.N,
            bits=w.bits,
            block_size=w.group_size,
            accuracy_level=4,
        )
        nodes.append(node)
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [len(x), w.N]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        outputs,
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def run() -> float:
        begin = time.perf_counter()
        session.run(None, {"x": x})
        return (time.perf_counter() - begin) / len(weights)

    run()
    return run


def read_runs(kernels: Kernels, buffer: np.ndarray, threads: int) -> Callable[[], float]:
    """Return a function that reads the buffer."""
    sink = np.zeros(threads * kernels.isa.vector_bytes, np.uint8)
    instruction = np.zeros(16, np.int64)
    runs = buffer.nbytes // (8 * kernels.isa.vector_bytes)
    instruction[2:5] = buffer.ctypes.data, runs, sink.ctypes.data
    read = kernels.function("read_all")
    team = Team(threads)
    keep = [buffer, sink, instruction]

    def run() -> float:
        return team.seconds(lambda tid: read(keep[2].ctypes.data, 0, tid, threads))

    return run


def summary(seconds: list[float]) -> tuple[float, float]:
    """Median, and the spread of the middle half relative to it."""
    ordered = sorted(seconds)
    middle = statistics.median(ordered)
    quarter = len(ordered) // 4
    return middle, (ordered[-1 - quarter] - ordered[quarter]) / middle


def measure(
    args: argparse.Namespace, kernels: Kernels, bits: int, threads: int, tokens: int
) -> None:
    """One table: a line a shape."""
    rng = np.random.default_rng(0)
    for N, K in args.shapes:
        if tokens > 1 and N > 100_000:
            continue
        each = N * K * bits // 8
        copies = max(1, -(-(args.megabytes << 20) // each)) if tokens == 1 else 1
        made = [random_weight(rng, bits, args.group_size, N, K) for _ in range(copies)]
        kept, weights = [m[0] for m in made], [m[1] for m in made]
        x = rng.standard_normal((tokens, K), dtype=np.float32)
        ours, _alive = edgetok_runs(kernels, weights, x, threads)
        contenders = {"edgetok": ours}
        if bits != 3 and args.peers:
            contenders["onnxruntime"] = onnxruntime_runs(kept, weights, x, threads)
        total = sum(w.read_bytes for w in weights)
        if tokens == 1:
            contenders["read loop"] = read_runs(
                kernels, np.ones(total // 512 * 512, np.uint8), threads
            )
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.repeats):
            for name, run in contenders.items():
                time.sleep(PAUSE_S)
                run()
                times[name].append(run())
        cells = []
        for name, seconds in times.items():
            middle, spread = summary(seconds)
            if tokens == 1:
                nbytes = total if name == "read loop" else weights[0].read_bytes
                cells.append(f"{name} {nbytes / middle / 1e9:6.1f} GB/s ±{100 * spread:2.0f}%")
            else:
                cells.append(
                    f"{name} {tokens * N * K / middle / 1e9:6.1f} GMAC/s ±{100 * spread:2.0f}%"
                )
        print(
            f"{bits} bits g{args.group_size} T={tokens} threads={threads} [{N}, {K}]: "
            + "  ".join(cells),
            flush=True,
        )


ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32)
MANY_ROWS = 256


def measure_rows(args: argparse.Namespace, kernels: Kernels, bits: int, threads: int) -> None:
    """One table: a line a shape, a column a number of rows."""
    rng = np.random.default_rng(0)
    for N, K in args.shapes:
        if N > 100_000:
            continue
        copies = max(1, -(-(args.megabytes << 20) // (N * K * bits // 8)))
        made = [random_weight(rng, bits, args.group_size, N, K) for _ in range(copies)]
        weights = [m[1] for m in made]
        runs = {}
        for rows in (*ROWS, MANY_ROWS):
            x = rng.standard_normal((rows, K), dtype=np.float32)
            used = weights[:1] if rows == MANY_ROWS else weights
            runs[rows] = edgetok_runs(kernels, used, x, threads)
        least = dict.fromkeys(runs, float("inf"))
        for _ in range(args.repeats):
            for rows, (run, _alive) in runs.items():
                least[rows] = min(least[rows], run())
        one, each = least[1], least[MANY_ROWS] / MANY_ROWS
        cells = [f"{rows}: {least[rows] / one:.2f} ({rows * each / one:.2f})" for rows in ROWS[1:]]
        print(
            f"{bits} bits g{args.group_size} threads={threads} [{N}, {K}]: one row "
            f"{one * 1e6:.0f} us, {weights[0].read_bytes / one / 1e9:.1f} GB/s; {MANY_ROWS} rows "
            f"{N * K / each / 1e9:.0f} GMAC/s; x one row (at that rate) " + "  ".join(cells),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=128, help="weights read by one pass")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--rows", action="store_true", help="what few rows cost beside one")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument(
        "--shapes", type=lambda s: tuple(map(int, s.split("x"))), nargs="+", default=SHAPES,
        help="NxK",
    )  # fmt: skip
    args = parser.parse_args()
    place = os.environ.get("EDGETOK_CACHE_DIR") or Path(tempfile.gettempdir()) / (
        f"edgetok-benchmarks-{os.getuid()}"
    )
    modules = (*MODULES, *(f"linear.q{bits}" for bits in args.bits))
    kernels = load(choose(args.isa), Path(place), modules=modules)
    for bits in args.bits:
        for threads in args.threads:
            if args.rows:
                measure_rows(args, kernels, bits, threads)
                continue
            for tokens in args.tokens:
                measure(args, kernels, bits, threads, tokens)


if __name__ == "__main__":
    main()
