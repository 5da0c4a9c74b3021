"""Compile every kernel for GPUs that need not be there; run by test_compile.py and by hand.

    python tests/kernels_gpu/compile_all.py cuda:80 cuda:90 hip:gfx942 [--resources]

The interpreter accepts much that the compiler does not. Launchers run with their checks, but what
they launch is compiled for the targets instead, specialised as it would be on a GPU.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgetok.kernels_gpu import (
    activation,
    attention,
    embed,
    matmul_nbits,
    norm,
    rope,
    sampling,
    stored,
)
from edgetok.kernels_gpu.jit import plane_stride
from edgetok.kernels_gpu.kv_append import KINDS, Slots, row_entries
from edgetok.kernels_gpu.linear import Stored, upload
from edgetok.kernels_gpu.tuning import ROW_CANDIDATES, SMALL_TILE_CANDIDATES, TILE_CANDIDATES

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
compiled: Counter[str] = Counter()


def compiler(targets, resources):
    def compile_instead(kernel, grid, *args, warps=4, **constants):
        names = kernel.arg_names
        signature, constexprs, attributes = {}, {}, {}
        for i, (name, arg) in enumerate(zip(names, args, strict=False)):
            aligned = False
            if arg is None or (type(arg) is int and arg == 1):
                signature[name], constexprs[name] = "constexpr", arg
            elif isinstance(arg, torch.Tensor):
                signature[name], aligned = TYPES[arg.dtype], True
            elif isinstance(arg, int):
                signature[name] = "i32" if abs(arg) < 1 << 31 else "i64"
                aligned = arg % 16 == 0
            else:
                signature[name] = "fp32"
            if aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        for name, value in constants.items():
            signature[name], constexprs[name] = "constexpr", value
        assert set(signature) == set(names), set(names) ^ set(signature)
        for target in targets:
            source = ASTSource(kernel, {n: signature[n] for n in names}, constexprs, attributes)
            made = triton.compile(
                source, target=target, options={"num_warps": warps, "enable_fp_fusion": True}
            )
            compiled[f"{kernel.fn.__name__} {target.backend}"] += 1
            if resources and target.backend == "cuda":
                print(kernel.fn.__name__, target.arch, _shown(constants), warps, _used(made))

    return compile_instead


def _shown(constants):
    return " ".join(f"{name}={value}" for name, value in constants.items())


def _used(made):
    """Registers and spilled bytes of a thread, from the binary."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    path = Path("/tmp") / "edgetok-kernel.cubin"
    path.write_bytes(made.asm["cubin"])
    text = subprocess.run(
        [tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True
    ).stdout
    path.unlink()
    return re.findall(r"REG:\d+|STACK:\d+", text)


TABLE = "table"  # 4 bits that choose levels


def layer(bits, N, K, g=32, zeros=True):
    if bits == 16:
        return Stored(name="x", bits=16, inputs=K, weight=np.zeros((N, K), np.float16))
    levels = np.zeros(16, np.float32) if bits == TABLE else None
    bits, zeros = (4 if bits == TABLE else bits), zeros and bits not in (5, 6, TABLE)
    stored, G = {3: 2, 5: 4, 6: 4}.get(bits, bits), -(-K // g)
    return Stored(
        name="x", bits=bits, inputs=K, group_size=g,
        weight=np.zeros((N, G, g * stored // 8), np.uint8),
        high=np.zeros((N, G, g * (bits - stored) // 8), np.uint8) if stored < bits else None,
        levels=levels,
        scales=np.zeros((N, G), np.float16),
        zeros=np.zeros((N, G if bits == 3 else -(-G * bits // 8)), np.uint8) if zeros else None,
    )  # fmt: skip


def every_kernel(few):
    """Call every launcher in the shapes and with the tile sizes of real models."""
    cpu = torch.device("cpu")
    N, K, D, H, KH = 512, 1024, 64, 16, 4
    S = plane_stride(K)
    x, many = torch.zeros((1, 8, S)), torch.zeros((128, 8, S), dtype=torch.float16)
    weight = torch.zeros((8, S))
    planes = matmul_nbits.Epilogue(planes=True, add=True)
    gate = matmul_nbits.Epilogue(gate="silu", planes=True)
    widths = ((4, 32), (TABLE, 32)) if few else (
        (2, 64), (3, 32), (4, 32), (4, 128), (5, 32), (6, 32), (TABLE, 32), (8, 32), (16, 0)
    )  # fmt: skip
    rows = ROW_CANDIDATES[:1] if few else ROW_CANDIDATES
    for bits, g in widths:
        linear = upload([layer(bits, N, K, g)], cpu)
        for config in rows:
            out = torch.zeros((1, 8, plane_stride(N // 2)))
            matmul_nbits.matmul_nbits(x, linear, out, gate, norm=weight, eps=1e-5, config=config)
        scale = torch.zeros(128)
        tiles = TILE_CANDIDATES[1:2] if few else (*TILE_CANDIDATES, *SMALL_TILE_CANDIDATES)
        for config in tiles:
            out = torch.zeros((128, 8, plane_stride(N)))
            matmul_nbits.matmul_nbits(many, linear, out, planes, x_scale=scale, config=config)
        tokens = torch.zeros(3, dtype=torch.int32)
        embed.embed(tokens, linear, torch.zeros((3, 8, S)))
    norm.to_half(many.float(), many, torch.zeros(128), size=K, weight=weight, eps=1e-5)
    norm.rms_norm(x.view(1, -1), weight.view(-1), x.view(1, -1), size=K, eps=1e-5, add=1.0)
    activation.gated(torch.zeros((2, K)), torch.zeros((2, K)), torch.zeros((2, 8, S)), "gelu_tanh")
    for bits in (4, 8) if few else (4, 8, 16):
        every_cache_kernel(bits, D, H, KH)
    sampling.sample(torch.zeros(128256), sampling.SamplingBuffers(128256, cpu))


def every_cache_kernel(bits, D, H, KH):
    """The kernels of slots of so many bits: 16 as in a full cache, else as in a bounded one."""
    own, rows, width = bits != 16, KH * 256, row_entries(D, bits)
    scales = rows if own else 0
    cache = Slots(
        bits=bits, head_dim=D,
        keys=torch.zeros((rows, width), dtype=KINDS[bits]),
        values=torch.zeros((rows, width), dtype=KINDS[bits]),
        key_scales=torch.zeros(scales), value_scales=torch.zeros(scales),
        positions=torch.zeros(rows if own else 256, dtype=torch.int32),
        starts=torch.zeros(KH, dtype=torch.int32),
        used=torch.zeros(KH if own else 1, dtype=torch.int32), span=256,
        mass=torch.zeros(rows), queries=torch.zeros((32, H, D)) if own else None,
    )  # fmt: skip
    for T in (1, 128):
        positions, q = torch.zeros(T, dtype=torch.int32), torch.zeros((T, H, D))
        half = torch.zeros((T, D // 2))
        rope.rope_append(
            torch.zeros((T, (H + 2 * KH) * D)), q, cache, token_positions=positions,
            token_slots=positions.expand(KH if own else 1, T).contiguous(), rope=(half, half),
            norms=(torch.zeros(D), torch.zeros(D)), query_row=positions[:1],
        )  # fmt: skip
        partials = torch.zeros(attention.partials_shape(H, D, 32)) if T == 1 else None
        attention.attention(
            q, cache, torch.zeros((T, 8, plane_stride(H * D))), token_positions=positions,
            window=0, scale=0.1, softcap=0.0 if own else 5.0, ordered=T > 1,
            partials=partials, lse=torch.zeros((T, H)),
        )  # fmt: skip
        attention.attention_mass(
            q, cache, torch.zeros((T, H)), token_positions=positions, window=0, scale=0.1,
        )  # fmt: skip
    outside = stored.StoredRows(cache.keys, cache.key_scales, D, keys=True)
    outside.write(np.arange(3), outside.read(np.arange(3)))


def main(arguments):
    targets = []
    for text in arguments:
        backend, _, arch = text.partition(":")
        if backend == "cuda":
            targets.append(GPUTarget("cuda", int(arch), 32))
        elif backend == "hip":
            targets.append(GPUTarget("hip", arch, 64))
    instead = compiler(targets, "--resources" in arguments)
    for module in (activation, attention, embed, matmul_nbits, norm, rope, sampling, stored):
        importlib.import_module(module.__name__).launch = instead
    every_kernel("--few" in arguments)
    for name, count in sorted(compiled.items()):
        print(f"compiled {name} {count}")


if __name__ == "__main__":
    main(sys.argv[1:])
