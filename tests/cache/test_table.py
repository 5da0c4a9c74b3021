"""Tables of slots against dictionaries, and their numbers against what nobody vouches for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgetok.cache.bounds import Bounds, Tier
from edgetok.cache.groups import Chosen, InOrder
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.table import EMPTY, SLOT_TILE, SlotTable
from edgetok.errors import SessionError
from edgetok.kernels_cpu.attention import launch

ROWS, LIMIT = 3, 128


def test_numbers_are_those_of_the_kernels():
    assert (EMPTY, SLOT_TILE) == (launch.EMPTY, launch.SLOT_TILE)


class Tables(RuleBasedStateMachine):
    """A table with rows of its own; `rows` holds {slot: (token, position)} of each."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable(ROWS, LIMIT)
        self.rows = [{} for _ in range(ROWS)]
        self.length = self.shift = 0

    @rule(count=st.integers(1, 9), data=st.data())
    def append(self, count, data):
        self.table.grow(LIMIT)
        slots = []
        for row in self.rows:
            free = [slot for slot in range(LIMIT) if slot not in row]
            if len(free) < count:
                return
            first = data.draw(st.integers(0, len(free) - count))
            slots.append(free[first : first + count])
        self.table.put(np.array(slots), self.length, self.length - self.shift)
        for row, at in zip(self.rows, slots, strict=True):
            for i, slot in enumerate(at):
                row[slot] = (self.length + i, self.length - self.shift + i)
        self.length += count

    @rule(row=st.integers(0, ROWS - 1), data=st.data())
    def evict(self, row, data):
        gone = data.draw(st.sets(st.sampled_from(sorted(self.rows[row]) or [0]), max_size=6))
        gone &= set(self.rows[row])
        self.table.evict(row, np.array(sorted(gone), np.int64))
        for slot in gone:
            del self.rows[row][slot]

    @precondition(lambda self: self.length)
    @rule(data=st.data())
    def truncate(self, data):
        self.length = data.draw(st.integers(self.shift, self.length))
        self.table.truncate(self.length)
        self.rows = [
            {slot: held for slot, held in row.items() if held[0] < self.length} for row in self.rows
        ]

    @precondition(lambda self: self.length > self.shift)
    @rule(data=st.data())
    def lower(self, data):
        by = data.draw(st.integers(1, self.length - self.shift))
        self.shift += by
        self.table.shift(by)
        self.rows = [
            {slot: (t, p - by) for slot, (t, p) in row.items() if p >= by} for row in self.rows
        ]

    @rule()
    def copy(self):
        self.table = self.table.copy(LIMIT)

    @rule()
    def save(self):
        numbers = self.table.state()
        self.table = self.table.parsed(numbers, self.length, self.length - self.shift)
        np.testing.assert_array_equal(self.table.state(), numbers)

    @invariant()
    def same(self):
        for i, row in enumerate(self.rows):
            at = self.table.slots(i)
            assert at.tolist() == sorted(row)
            assert self.table.held[i] == len(row)
            assert self.table.used[i] == max(row, default=-1) + 1
            held = zip(self.table.tokens[i, at], self.table.positions[i, at], strict=True)
            assert list(held) == [row[slot] for slot in sorted(row)]
            free = self.table.free(i).tolist()
            assert free == [slot for slot in range(self.table.size) if slot not in row]


Tables.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTables = Tables.TestCase


def filled():
    table = SlotTable(2, 64)
    table.grow(64)
    table.put(np.array([[3, 5, 4], [0, 1, 2]]), 0, 0)
    return table


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, -1), (0, 65), (0, 2), (1, 4),  # counts
        (2, 64), (2, -1), (3, 3),  # slots: 3 4 5 of row 0, ascending
        (8, 9), (8, -1), (9, 0),  # tokens: 0 2 1
        (14, 9), (14, -5), (15, 1),  # positions likewise
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(at, value):
    table = filled()
    numbers = table.state()
    table.parsed(numbers, 3, 3)
    numbers[at] = value
    with pytest.raises(SessionError, match="damaged"):
        table.parsed(numbers, 3, 3)


@pytest.mark.parametrize("cut", range(20))
def test_numbers_that_are_cut_are_refused(cut):
    table = filled()
    with pytest.raises(SessionError, match="damaged"):
        table.parsed(table.state()[:cut], 3, 3)


def test_in_order_names_each_token_its_slot():
    group = InOrder(20, (0,), 64)
    group.table.grow(64)
    length = 0
    for count in (40, 20, 8, 1, 30):
        slots = group.next_slots(length, count)
        assert slots.tolist() == [[t % 64 for t in range(length, length + count)]]
        group.table.put(slots, length, length)
        length += count
    assert group.oldest == length - 64
    # The token at n sees n - 19 .. n; 35 is the oldest that is left.
    assert group.reachable(54) == 54
    assert group.reachable(53) == 0
    assert group.reachable(0) == 0
    group.shift(40)  # positions 0..58 are left, of tokens 40..98
    assert group.oldest == 40
    assert group.reachable(58) == 0


def test_chosen_fills_the_lowest_free_slots_first():
    tier = Tier(64, ((0, 0), (0, 1)))
    group = Chosen(tier, Bounds.of_slots(POLICIES["window"], 64, 8))
    group.table.grow(64)
    group.list_free()
    group.table.put(group.next_slots(0, 10), 0, 0)
    assert group.most_slots(10, 3) == 13
    group.table.evict(0, np.array([2, 7]))
    group.table.evict(1, np.array([0, 9]))
    group.list_free()
    assert group.has_room(3)
    assert group.next_slots(10, 3).tolist() == [[2, 7, 10], [0, 9, 10]]
    assert group.most_slots(10, 3) == 11
