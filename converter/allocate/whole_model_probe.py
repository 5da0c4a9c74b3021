"""The whole model rounded to nearest at several widths, beside the original: KL of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.calibrate.compare import head_agreement
from edgetok.converter.calibrate.original_model import Original, gather_rows
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantised import fits_float16_scales
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.models.operations import kept_at_16_bits, operations, stages

PROBE_BITS = (2, 3, 4, 8)
PROBE_GROUP = 32
PROBE_HEAD = (8, PROBE_GROUP)  # of the head and the embedding

_PROBE_TOKENS = 2048

Floats = npt.NDArray[np.float32]


def probe(
    weights: CanonicalWeights,
    windows: Tokens,
    options: ConvertOptions,
    progress: Progress,
    threads: int,
) -> list[float]:
    """KL of the whole model rounded to nearest at each of `PROBE_BITS`, the head at 8 bits.

    Returns:
        Nats, one for each width.
    """
    spec = weights.family.spec
    windows = windows[: max(1, _PROBE_TOKENS // windows.shape[1])]
    progress.begin("Probing the whole model", spec.num_layers + len(PROBE_BITS))
    original = Original(weights, threads=threads)

    def rounded(values: Floats, bits: int) -> Tensor:
        if not fits_float16_scales(float(np.abs(values).max()), bits):
            return torch.from_numpy(values)
        result = rtn.quantise(
            values, bits, PROBE_GROUP, symmetric=options.symmetric, threads=threads
        )
        return torch.from_numpy(result.dequantise())

    theirs, their_calls = original.embed(windows), original.calls
    first = original.embed(
        windows,
        rows=lambda tokens: rounded(
            gather_rows(weights.pieces("embed_tokens.weight"), tokens).numpy(), PROBE_HEAD[0]
        ),
    )
    ours = dict.fromkeys(PROBE_BITS, first)
    calls = {bits: original.calls.again() for bits in PROBE_BITS}
    kept = kept_at_16_bits(operations(spec))
    for index in range(spec.num_layers):
        with original.block(index) as block:
            theirs = block(theirs, their_calls)
            names = [op.weight for stage in stages(block.operations) for op in stage]
            for bits in PROBE_BITS:
                for name in names:
                    if name not in kept:  # read again for each width: a copy of all is too large
                        exact = weights.tensor(name + ".weight")
                        block.set(name.split(".", 2)[2] + ".weight", rounded(exact, bits))
                ours[bits] = block(ours[bits], calls[bits])
        progress.advance()
    norm = torch.from_numpy(weights.tensor("final_norm.weight"))
    targets = torch.from_numpy(windows[:, 1:].copy()).reshape(-1)
    states = original.final_norm(theirs, norm)[:, :-1].flatten(0, 1)
    result = []
    for hidden in ours.values():
        head = (rounded(piece, PROBE_HEAD[0]).numpy() for piece in weights.pieces("lm_head.weight"))
        moved = original.final_norm(hidden, norm)[:, :-1].flatten(0, 1)
        agreement = head_agreement(
            states, moved, weights.pieces("lm_head.weight"), head, targets, spec, threads
        )
        result.append(agreement.kl)
        progress.advance()
    return result
