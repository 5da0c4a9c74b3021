"""Eviction: scores say which tokens each head gives up; positions stay within the trained length.

Written once for all devices, against a table, its memory and a policy. Where a memory has kernels
for that (`GroupMemory.eviction`) they do the work; what is here with NumPy defines their results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edgetok.cache.bounds import FAR_SHARE, Bounds
from edgetok.cache.groups import Chosen, InOrder
from edgetok.cache.policies.around import with_around
from edgetok.cache.policies.shared import shared
from edgetok.cache.policies.view import Floats, HeadView
from edgetok.cache.query_log import QueryLog
from edgetok.cache.rotation import Rotations
from edgetok.cache.slot_memory import REST_TOKENS, GroupMemory
from edgetok.cache.table import Places
from edgetok.models.spec import DecoderSpec

Turn = Callable[[int, Floats, Places], Floats]


class Eviction:
    """Eviction and renumbering of a cache.

    Attributes:
        dropped: attention mass of what was evicted so far.
        pinned: tokens at the beginning that are never evicted.
    """

    def __init__(self, spec: DecoderSpec, bounds: Bounds, rotations: Rotations) -> None:
        """Begin with nothing evicted."""
        self._spec, self._bounds, self._rotations = spec, bounds, rotations
        self.dropped = 0.0
        self.pinned = 0

    def loss(self, masses: Iterable[Floats]) -> float:
        """Share of all attention to tokens that went to evicted ones, without what rests got.

        `masses` [heads, slots]: of those that are held.
        """
        total = self.dropped + sum(float(mass.sum(dtype=np.float64)) for mass in masses)
        return self.dropped / total if self.dropped else 0.0

    def evict(
        self, group: Chosen, memory: GroupMemory, log: QueryLog, length: int, position: int
    ) -> None:
        """Make each head give up so many tokens that a block fits.

        Args:
            group: the heads.
            memory: theirs; its mass was pulled.
            log: log of the latest queries.
            length: tokens seen.
            position: position of the next token.
        """
        log.absorb(length)
        table, mass = group.table, memory.mass
        lowest = list(self._lowest(group, memory, log, length, position))
        self._join(group, memory, lowest)
        for row, gone in enumerate(lowest):
            if len(gone):
                latest = int(table.tokens[row, gone].max())
                group.forgotten_to = max(group.forgotten_to, latest + 1)
                if mass is not None:
                    # One after the other, as the C library adds: a saved cache has the same bits.
                    self.dropped += float(np.cumsum(mass[row, gone], dtype=np.float64)[-1])
                    mass[row, gone] = 0.0
                table.evict(row, gone)

    def _lowest(
        self, group: Chosen, memory: GroupMemory, log: QueryLog, length: int, position: int
    ) -> Iterable[Places]:
        """Yield the slots that each head gives up, ascending; arguments as for `evict`."""
        policy, table, device = self._bounds.policy, group.table, memory.eviction
        room = table.limit - self._bounds.block_tokens
        # A narrow head has no room for a system message beside what it is to choose.
        front = self._front if group.wide or not self._bounds.tiers else self._bounds.sinks
        recent = length - min(self._bounds.recent, room - self._bounds.sinks)
        far, most_far = self._bounds.far(group.wide, length, position), table.limit // FAR_SHARE
        kernel, around = policy.kernel or policy.name, self._bounds.around
        share = self._bounds.apart and group.wide
        if device is not None and kernel in device.policies:
            turns = self._frequencies(group.heads)
            yield from device.lowest(
                kernel,
                turns,
                room=room,
                front=front,
                recent=recent,
                around=around,
                far=far,
                most_far=most_far,
                share=share,
            )
            return
        held, scores = [], []
        for row in range(table.rows):
            at = table.slots(row)
            held.append(at[np.argsort(table.tokens[row, at])])
            view = self.view(group, memory, log, row, held[row], length, position)
            scores.append(np.asarray(policy.score(view), np.float32))
        tokens = [table.tokens[row, at] for row, at in enumerate(held)]
        if share:
            scores = shared(scores, tokens)
        for at, seen, own in zip(held, tokens, scores, strict=True):
            score, kept = with_around(own, around), (seen < front) | (seen >= recent)
            score[kept] = np.inf
            beyond = np.flatnonzero((seen < far) & ~kept)
            few = max(0, len(beyond) - most_far)
            # Of equal scores the oldest go.
            score[beyond[np.argsort(score[beyond], kind="stable")[:few]]] = -np.inf
            gone = np.argsort(score, kind="stable")[: max(few, len(at) - room)]
            yield np.sort(at[gone])

    def _join(self, group: Chosen, memory: GroupMemory, lowest: Sequence[Places]) -> None:
        """Let what heads give up join what stands for their evicted tokens.

        Its key and value are the means of all of them or, past REST_TOKENS, a running mean: without
        that, what is long gone outweighed what is held.
        """
        if memory.rests is None:
            return
        if (device := memory.eviction) is not None:
            device.join(lowest)
            return
        for head, gone in zip(group.heads, lowest, strict=True):
            if not len(gone):
                continue
            rest = memory.rest(*head)
            count, *means = rest.read()
            total = count + len(gone)
            rows = memory.keys(*head).read(gone), memory.values(*head).read(gone)
            key, value = (
                np.asarray((mean * count + joined.sum(axis=0)) / total, np.float32)
                for mean, joined in zip(means, rows, strict=True)
            )
            rest.write(min(total, REST_TOKENS), key, value)

    @property
    def _front(self) -> int:
        """Tokens before this one are never evicted."""
        return max(self._bounds.sinks, self.pinned)

    def view(
        self,
        group: Chosen,
        memory: GroupMemory,
        log: QueryLog,
        row: int,
        at: Places,
        length: int,
        position: int,
    ) -> HeadView:
        """A head's slots `at` as policies see them."""
        layer, head = group.heads[row]
        spec, table = self._spec, group.table
        rope = spec.layers[layer].rope
        mass = np.zeros(len(at), np.float32) if memory.mass is None else memory.mass[row, at]
        return HeadView(
            read_keys=functools.partial(memory.keys(layer, head).read, at),
            read_values=functools.partial(memory.values(layer, head).read, at),
            positions=table.positions[row, at],
            tokens=table.tokens[row, at],
            mass=mass,
            stats=log.stats(layer, head, length, position),
            rotate=functools.partial(self._rotations.rotate, rope, scaled=True),
            mean_rotation=functools.partial(
                self._rotations.mean, rope, head_dim=spec.kv_sizes(layer)[1]
            ),
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
        )

    def renumber(self, group: Chosen, memory: GroupMemory, shift: int) -> None:
        """Lower positions by `shift`, as the next token's; keys are rotated along.

        Of a head's tokens, sinks and pinned ones get their rank 0, 1, ..., the others
        max(rank, position - shift). So distances stay as they were, and those that would lie before
        position 0 are moved together there, in order.
        """
        front, table = self._front, group.table
        memory.own(None)
        if (device := memory.eviction) is not None:
            device.renumber(self._frequencies(group.heads), shift=shift, front=front)
            return
        for row, (layer, head) in enumerate(group.heads):
            at = table.slots(row)
            at = at[np.argsort(table.positions[row, at])]
            rank, positions = np.arange(len(at)), table.positions[row, at]
            first = int(np.count_nonzero(table.tokens[row, at] < front))
            place = np.where(rank < first, rank, np.maximum(rank, positions - shift))
            delta = place - positions
            moved = np.flatnonzero(delta)
            if self._spec.layers[layer].rope >= 0 and len(moved):
                keys = memory.keys(layer, head)
                keys.write(at[moved], self.rotate(layer, keys.read(at[moved]), delta[moved]))
            table.positions[row, at] = place
            if memory.rests is not None and self._spec.layers[layer].rope >= 0:
                rest = memory.rest(layer, head)  # stays as far from the next token
                count, key, value = rest.read()
                rest.write(count, self.rotate(layer, key[None], np.array([-shift]))[0], value)

    def _frequencies(
        self, heads: Iterable[tuple[int, int]]
    ) -> list[npt.NDArray[np.float64] | None]:
        """Radians a position of each (layer, KV head)."""
        ropes = [self._spec.layers[layer].rope for layer, _ in heads]
        return [self._rotations.frequencies(rope) for rope in ropes]

    def lower(self, group: InOrder, memory: GroupMemory, by: int) -> None:
        """Lower the positions of a window's slots by `by`; keys are rotated along.

        What would be before position 0 is forgotten; no window reaches that far.
        """
        group.shift(by)
        at = group.table.slots(0)
        memory.own(at)
        heads = [
            (layer, head) for layer in group.layers for head in range(self._spec.kv_sizes(layer)[0])
        ]
        if (device := memory.eviction) is not None:
            device.rotate(self._frequencies(heads), at, -by)
        else:
            for layer, head in heads:
                if self._spec.layers[layer].rope >= 0:
                    keys = memory.keys(layer, head)
                    keys.write(at, self.rotate(layer, keys.read(at), np.full(len(at), -by)))
        memory.tell()

    def rotate(self, layer: int, keys: Floats, by: npt.NDArray[np.int64]) -> Floats:
        """Keys [n, D] of a layer, rotated `by` [n] positions further."""
        rope = self._spec.layers[layer].rope
        return self._rotations.rotate(rope, keys, by, scaled=False)
