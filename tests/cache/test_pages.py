"""Pages against plain arrays: shared until written to, counted, given back, within the limit."""

from __future__ import annotations

import gc
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from edgetok.cache.pages import PageList, PagePool
from edgetok.errors import ContextError

BYTES = 64
LIMIT = 20 * BYTES


def copy(page, to):
    to[:] = page


class Sharing(RuleBasedStateMachine):
    """Lists of pages, grown, written, cut, shared and dropped; `truth` is what they hold."""

    lists = Bundle("lists")

    def __init__(self):
        super().__init__()
        self.pool = PagePool(LIMIT)
        self.truth = {}
        self.number = 0

    @rule(target=lists)
    def begin(self):
        made = PageList(self.pool, lambda _: BYTES, copy)
        self.truth[made] = []
        return made

    @rule(pages=lists, count=st.integers(0, 8))
    def grow(self, pages, count):
        before = len(pages.pages), self.pool.used_bytes
        try:
            pages.grow(count)
        except ContextError:
            assert (len(pages.pages), self.pool.used_bytes) == before
            assert before[1] + (count - before[0]) * BYTES > LIMIT
            return
        self.truth[pages] += [0] * (count - before[0])

    @rule(pages=lists, i=st.integers(0, 7))
    def write(self, pages, i):
        if i >= len(pages.pages):
            return
        try:
            if not pages.is_own(i):
                pages.own(i)
        except ContextError:
            assert self.pool.used_bytes + BYTES > LIMIT
            return
        assert pages.is_own(i)
        self.number = self.number % 250 + 1
        pages.pages[i].memory[:] = self.number
        self.truth[pages][i] = self.number

    @rule(pages=lists, count=st.integers(0, 8))
    def cut(self, pages, count):
        pages.cut(count)
        del self.truth[pages][count:]

    @rule(pages=lists, other=lists)
    def share(self, pages, other):
        used = self.pool.used_bytes
        pages.share(other)
        self.truth[pages] = list(self.truth[other])
        assert self.pool.used_bytes <= used

    @rule(target=lists, pages=consumes(lists))
    def drop(self, pages):
        pages.cut(0)
        del self.truth[pages]
        return multiple()

    @invariant()
    def same(self):
        assert self.pool.used_bytes <= LIMIT
        distinct = {}
        for pages, truth in self.truth.items():
            assert [int(page.memory[0]) for page in pages.pages] == truth
            for page in pages.pages:
                assert page.address % 64 == 0
                distinct[id(page)] = page
        counts = dict.fromkeys(distinct, 0)
        for pages in self.truth:
            for page in pages.pages:
                counts[id(page)] += 1
        assert all(page.references == counts[key] for key, page in distinct.items())
        assert self.pool.pages == len(distinct)
        assert self.pool.used_bytes == BYTES * len(distinct)

    def teardown(self):
        for pages in self.truth:
            pages.cut(0)
        assert self.pool.used_bytes == self.pool.pages == 0


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharing = Sharing.TestCase


def test_a_list_that_is_no_longer_used_gives_its_pages_back():
    pool = PagePool()
    first, second = (PageList(pool, lambda _: BYTES, copy) for _ in range(2))
    first.grow(3)
    second.share(first)
    del first
    gc.collect()
    assert pool.used_bytes == 3 * BYTES
    del second
    gc.collect()
    assert pool.used_bytes == 0


def test_what_does_not_fit_says_how_much_is_held():
    pool = PagePool(5 * BYTES)
    PageList(pool, lambda _: BYTES, copy)
    held = PageList(pool, lambda _: BYTES, copy)
    held.grow(4)
    with pytest.raises(ContextError, match="hold 320 of 320 bytes, 64 more were asked for"):
        held.grow(6)
    assert len(held.pages) == 4


def test_many_threads_share_and_write():
    """Counts are right however threads meet."""
    pool = PagePool()
    origin = PageList(pool, lambda _: BYTES, copy)
    origin.grow(4)

    def work(number):
        for _ in range(200):
            mine = PageList(pool, lambda _: BYTES, copy)
            mine.share(origin)
            mine.own(number % 4)
            mine.pages[number % 4].memory[:] = number
            assert (mine.pages[number % 4].memory == number).all()
            mine.cut(0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [page.references for page in origin.pages] == [1] * 4
    assert pool.used_bytes == 4 * BYTES
    assert all((page.memory == 0).all() for page in origin.pages)
