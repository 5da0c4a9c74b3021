"""A step on a backend: tokens chosen where it can, logits elsewhere, refusals one by one."""

from __future__ import annotations

from collections.abc import Sequence as Many

from edgetok.engine.sequence import Sequence
from edgetok.errors import ContextError, OptionError, ShapeError
from edgetok.runtime.backend import Backend, Logits, Part
from edgetok.sampling.device import Draw

Found = Logits | int | None | Exception  # of one share of a step
_REFUSED = (ContextError, OptionError, ShapeError)  # of a step: nothing was changed


def compute(backend: Backend, shares: Many[tuple[Sequence, int]]) -> list[Found]:
    """Compute the shares of a step: (sequence, rows).

    Tokens of sequences whose draws the backend can make itself are chosen there, others' logits
    come back.

    Returns:
        For each share logits [rows wanted, vocab_size], the chosen token, None where nothing was
        wanted, or the error that refuses this share alone.
    """
    parts = [sequence.part(rows) for sequence, rows in shares]
    draws: list[Draw | None] = [None] * len(parts)
    if backend.capabilities.samples:
        draws = [
            sequence.draw() if part.logits and sequence.on_device else None
            for part, (sequence, _) in zip(parts, shares, strict=True)
        ]
    results: list[Found] = [None] * len(parts)
    for device in (True, False):
        places = [i for i, draw in enumerate(draws) if (draw is not None) == device]
        if places:
            found = _asked(backend, [(parts[i], draws[i]) for i in places])
            for i, result in zip(places, found, strict=True):
                results[i] = result
    return results


def _asked(backend: Backend, asked: Many[tuple[Part, Draw | None]]) -> list[Found]:
    """Let the backend compute parts: all with a draw, or all without.

    Where it refuses them as a whole, nothing was changed: then each is asked for alone, so that
    only the guilty one fails.
    """
    parts = [part for part, _ in asked]
    draws = [draw for _, draw in asked if draw is not None]
    try:
        if draws:
            return list[Found](backend.step_sampled(parts, draws))
        return [
            logits if part.logits else None
            for logits, part in zip(backend.step(parts), parts, strict=True)
        ]
    except _REFUSED as error:
        if len(asked) == 1:
            return [error]
    return [_asked(backend, [one])[0] for one in asked]
