"""Prompts that begin alike and come at the same time: one is read, the others go on from there.

What was read is shared once it is in the prefix cache, so a prompt that comes while another with
the same beginning is being read waits for that one: reading both would compute the beginning twice.
It waits only where that takes less time than it may save, and only while somebody waits for the
other one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgetok.cache.prefix_cache import LEAST_TOKENS
from edgetok.engine.mailbox import Mailbox
from edgetok.engine.sequence import Sequence

_WORTH = 2  # times the tokens that are saved, that may have to be read before


def leader_of(sequence: Sequence, others: Iterable[tuple[Sequence, Mailbox]]) -> Sequence | None:
    """Return the sequence whose prompt this one should wait for; None where there is none.

    Args:
        sequence: of which nothing has been computed yet.
        others: those in the making, and their readers.
    """
    if not sequence.context.remembers:
        return None
    mine, best, saved = np.asarray(sequence.prompt[:-1]), None, LEAST_TOKENS - 1
    for other, mailbox in others:
        if not leads(other, mailbox) or other is sequence:
            continue
        theirs = np.asarray(other.prompt[: len(mine)])
        differ = np.flatnonzero(mine[: len(theirs)] != theirs)
        same = int(differ[0]) if len(differ) else len(theirs)
        more = same - sequence.cached
        if more > saved and other.rows <= _WORTH * more:
            best, saved = other, more
    return best


def leads(sequence: Sequence, mailbox: Mailbox) -> bool:
    """Return whether a prompt is being read that somebody waits for."""
    return sequence.reading and (mailbox.waiting or mailbox.eager) and not mailbox.over
