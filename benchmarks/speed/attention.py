"""Speed of attention over caches of several depths, beside a plain read loop, in one run.

    python benchmarks/speed/attention.py --depths 4096 16384 --kv-bits 8 4 --threads 1 2

Shapes are those of Llama-3.2-1B (16 layers, 32 query heads, 8 KV heads of 64). Decoding: one token
of each of --parts sequences through every layer's attention, in us per layer, and GB/s of the
caches' bytes. Prefill: a block of 256 tokens at the end of one cache, in ms per layer, and GMAC/s
(scores and values, what the causal mask leaves). Contenders alternate; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from edgetok.cache.pages import PagePool
from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.program import abi
from edgetok.kernels_cpu.program.loader import Kernels, load
from edgetok.kernels_cpu.program.memory import aligned_bytes
from edgetok.kernels_cpu.program.tables import float_bits
from edgetok.kernels_cpu.simd.isa import choose
from edgetok.runtime.cpu.team import Program, Team

MODULES = ("program.interpreter", "attention.kv_append", "attention.merge", "bandwidth.kernels")
ATTENTION = {4: "int4", 5: "int6_int4", 8: "int8", 16: "float16", 32: "float32"}
BLOCK = 256


class Run:
    """Attention of every layer over full caches, as a program."""

    def __init__(self, kernels: Kernels, args: argparse.Namespace, bits: int, depth: int) -> None:
        self.kernels, self.args, self.bits, self.depth = kernels, args, bits, depth
        H, KH, D, L, P = args.heads, args.kv_heads, args.head_dim, args.layers, args.parts
        slots = -(-depth // launch.SLOT_TILE) * launch.SLOT_TILE
        rows = launch.key_bytes(D, bits), launch.value_bytes(D, bits)
        scale = 4 if bits <= 8 else 0
        self.cache_bytes = P * L * KH * depth * (sum(rows) + 2 * scale)
        self.positions = np.full(slots, launch.EMPTY, np.int32)
        self.positions[:depth] = np.arange(depth)
        self.append = np.zeros(BLOCK, np.int32)
        self.mass = np.zeros((P, L, KH, slots), np.float32)
        self.records = np.zeros((P, L, KH, launch.RECORD_SLOTS), np.int64)
        pages = -(-slots // launch.PAGE_SLOTS)
        self.pages = np.zeros((P, L, KH, pages + 1, launch.PAGE_FIELDS), np.int64)
        each = launch.PAGE_SLOTS * np.array([0, *rows, scale, scale])
        pool, nbytes = PagePool(), L * KH * int(each.sum())
        self.memory = [pool.allocate(nbytes).memory for _ in range(P * pages)]
        heads = np.arange(L * KH).reshape(L, KH, 1) * int(each.sum())
        for i, page in enumerate(self.memory):
            self.pages[i // pages, :, :, i % pages] = page.ctypes.data + heads + np.cumsum(each)[:4]
        record = np.arange(P * L * KH).reshape(P, L, KH)
        self.records[..., launch.REC_PAGES] = (
            self.pages.ctypes.data + record * self.pages.strides[2]
        )
        self.records[..., launch.REC_POSITIONS] = self.positions.ctypes.data
        self.records[..., launch.REC_USED] = depth
        self.records[..., launch.REC_APPEND] = self.append.ctypes.data
        self.records[..., launch.REC_MASS] = self.mass.ctypes.data + record * self.mass.strides[2]
        rng = np.random.default_rng(0)
        self.q = rng.standard_normal((BLOCK, H, D), np.float32)
        self.k = rng.standard_normal((BLOCK, KH, D), np.float32)
        self.out = np.zeros_like(self.q)
        self.where = np.zeros(BLOCK, np.int32)
        threads, chunks = max(args.threads), launch.chunk_count(depth)
        partials = launch.partials_bytes(H, D, chunks)
        workspace = launch.mass_workspace_bytes(slots, H, KH, threads)
        self.scratch = aligned_bytes(threads * launch.scratch_bytes(D))
        self.held = [[aligned_bytes(n) for n in (partials, workspace)] for _ in range(P)]
        self.parts = np.zeros((P, abi.PART_SLOTS), np.int64)
        for i, (part, (partial, _)) in enumerate(zip(self.parts, self.held, strict=True)):
            part[abi.PART_RECORDS] = self.records[i].ctypes.data
            part[abi.PART_PARTIALS], part[abi.PART_CHUNKS] = partial.ctypes.data, chunks
            part[abi.PART_MASS_SLOTS] = launch.mass_slots(slots)
            part[abi.PART_MASS_KEEP] = float_bits(1.0)
        self.ctx = np.zeros(abi.CTX_SLOTS, np.int64)
        self.ctx[abi.CTX_PART_TABLE] = self.parts.ctypes.data
        self.fill()
        made = []
        for layer in range(L):
            made += launch.attention(
                kernels,
                kv_bits=bits,
                q=self.q.ctypes.data,
                out=self.out.ctypes.data,
                layer=layer,
                heads=H,
                kv_heads=KH,
                head_dim=D,
                window=0,
                scale=D**-0.5,
                softcap=0.0,
                positions=self.where.ctypes.data,
                scratch=self.scratch.ctypes.data,
            )
        self.program = Program(made)

    def fill(self) -> None:
        """Store random keys and values into every slot."""
        args = self.args
        made = [
            launch.kv_append(
                self.kernels,
                kv_bits=self.bits,
                k=self.k.ctypes.data,
                v=self.k.ctypes.data,
                layer=layer,
                kv_heads=args.kv_heads,
                head_dim=args.head_dim,
                wait=False,
            )
            for layer in range(args.layers)
        ]
        program = Program(made)
        run = self.kernels.function("run_program")
        for part in range(args.parts):
            for first in range(0, self.depth, BLOCK):
                count = min(BLOCK, self.depth - first)
                self.append[:count] = np.arange(first, first + count)
                self.begin(part, 1, count)
                run(program.address, self.ctx.ctypes.data, 0, 1)

    def begin(self, first: int, parts: int, tokens: int) -> None:
        """Make a run of so many tokens of each of some parts."""
        self.ctx[abi.CTX_TOKENS], self.ctx[abi.CTX_PARTS] = parts * tokens, parts
        self.ctx[abi.CTX_PART_TABLE] = self.parts[first].ctypes.data
        self.parts[:, abi.PART_ROWS] = tokens
        self.parts[first : first + parts, abi.PART_FIRST] = tokens * np.arange(parts)

    def seconds(self, team: Team, tokens: int, mass: bool) -> float:
        """One run of all layers: of all parts where each has one token, else of one part."""
        parts = self.args.parts if tokens == 1 else 1
        self.begin(0, parts, tokens)
        for part, (_, workspace) in zip(self.parts, self.held, strict=True):
            part[abi.PART_MASS] = workspace.ctypes.data if mass else 0
        where = np.arange(self.depth - tokens, self.depth)
        self.where[: parts * tokens] = np.tile(where, parts)
        begin = time.perf_counter()
        team.run(self.program, self.ctx.ctypes.data)
        return time.perf_counter() - begin


class Read:
    """A plain read of as many bytes as the team's threads share."""

    def __init__(self, kernels: Kernels, nbytes: int) -> None:
        runs = nbytes // (8 * kernels.isa.vector_bytes)
        self.buffer = np.ones(runs * 8 * kernels.isa.vector_bytes, np.uint8)
        self.sink = np.zeros(64 * kernels.isa.vector_bytes, np.uint8)
        address = kernels.address("read_all")
        arguments = (self.buffer.ctypes.data, runs, self.sink.ctypes.data)
        self.program = Program([(address, 1, *arguments, *[0] * 11)])
        self.ctx = np.zeros(32, np.int64)

    def seconds(self, team: Team) -> float:
        """Read the buffer once."""
        begin = time.perf_counter()
        team.run(self.program, self.ctx.ctypes.data)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[4096])
    parser.add_argument("--kv-bits", type=int, nargs="+", default=[8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--parts", type=int, default=1, help="sequences that decode at once")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--isa")
    parser.add_argument("--no-prefill", action="store_true")
    args = parser.parse_args()
    from edgetok.environment import read_settings

    modules = (*MODULES, *(f"attention.{ATTENTION[b]}" for b in args.kv_bits))
    kernels = load(choose(args.isa), read_settings().cache_dir, modules=modules)
    teams = {threads: Team(kernels, threads) for threads in args.threads}
    print(
        "bits depth threads | decode us/layer, of which mass | GB/s, read loop | "
        "prefill ms/layer, of which mass | GMAC/s"
    )
    for depth in args.depths:
        runs = {bits: Run(kernels, args, bits, depth) for bits in args.kv_bits}
        read = Read(kernels, max(64 << 20, runs[args.kv_bits[0]].cache_bytes))
        for threads, team in teams.items():
            times: dict[object, list[float]] = {}

            def note(key: object, seconds: float, times: dict[object, list[float]] = times) -> None:
                times.setdefault(key, []).append(seconds)

            for _ in range(args.repeats):
                note("read", read.seconds(team))
                for bits, run in runs.items():
                    for mass in (False, True):
                        note((bits, 1, mass), run.seconds(team, 1, mass))
            for _ in range(0 if args.no_prefill else max(2, args.repeats // 3)):
                for bits, run in runs.items():
                    for mass in (False, True):
                        note((bits, BLOCK, mass), run.seconds(team, BLOCK, mass))
            middle = {key: statistics.median(result) for key, result in times.items()}
            for bits, run in runs.items():
                decode, with_mass = middle[bits, 1, False], middle[bits, 1, True]
                line = (
                    f"{bits:4} {depth:5} {threads:7} | {decode / args.layers * 1e6:8.0f} "
                    f"{(with_mass / decode - 1) * 100:+6.1f} % | "
                    f"{run.cache_bytes / decode / 1e9:6.1f} "
                    f"{read.buffer.nbytes / middle['read'] / 1e9:6.1f}"
                )
                if not args.no_prefill:
                    fill, with_mass = middle[bits, BLOCK, False], middle[bits, BLOCK, True]
                    macs = 2 * args.heads * args.head_dim * BLOCK * (depth - BLOCK / 2)
                    line += (
                        f" | {fill / args.layers * 1e3:7.2f} {(with_mass / fill - 1) * 100:+6.1f} %"
                        f" | {macs * args.layers / fill / 1e9:7.0f}"
                    )
                print(line, flush=True)
    for team in teams.values():
        team.close()


if __name__ == "__main__":
    main()
