"""Measure the time to quantise one decoder block, and estimate that of a whole model.

    python benchmarks/speed/quantise_block.py out/checkpoints/llama-3.2-1b --method auto --profile

Random tokens, the windows and window length of a usual conversion, block 0, results written to a
scratch file. Time and memory of a block do not depend on which one it is, so a model takes
`layers` times as long, and the embedding and head beside it what rounding to nearest takes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np

from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Silent
from edgetok.converter.quantise.one_block import Job, quantise_block
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.data_file import DataFile, TensorFormat, plan
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.layout import linear_shapes
from edgetok.machine import cores, peak_memory_mb
from edgetok.models.registry import read_family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--windows", type=int, default=ConvertOptions().calibration_windows)
    parser.add_argument("--refine", type=int, help="batches that codes learn over")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    weights, spec = CanonicalWeights(checkpoint, family), family.spec
    options = ConvertOptions(bits=args.bits, method=args.method, refine=args.refine)
    formats = {name: TensorFormat(args.bits, 32, zeros=True) for name in linear_shapes(spec)}
    layout = plan(spec, formats)
    shape = (args.windows, options.window_tokens)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, shape)
    original = Original(weights, short=True, threads=cores())
    hidden = original.embed(tokens)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, DataFile(Path(folder) / "data", layout) as data:
        job = Job(weights, formats, layout, options, data, cores())
        begin = time.monotonic()
        if args.profile:
            profile.enable()
        with original.block(0) as block:
            refined = quantise_block(block, hidden, job, Silent())[0]["refined"]
        profile.disable()
        seconds = time.monotonic() - begin
    print(
        f"{args.method}, {args.bits} bits, {args.windows} windows: {seconds:.1f} s a block, "
        f"{spec.num_layers * seconds / 60:.1f} minutes for {spec.num_layers} blocks, "
        f"peak {peak_memory_mb():,.0f} MB on {cores()} cores"
    )
    if refined:
        print("its output errs by {:.2%} on held-out tokens, {:.2%} before".format(*refined[::-1]))
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()
