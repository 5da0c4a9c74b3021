"""One budget: what it lends, in which order, and that loading and unloading models keep it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from edgetok.errors import ArtefactError
from edgetok.serve import models as module
from edgetok.serve.budget import MemoryBudget
from edgetok.serve.failure import Refusal
from edgetok.serve.models import ModelPool, Served
from tests.serve.conftest import Rule
from tests.serve.test_disconnects import reset

MB = 1 << 20


class Loader:
    """Stands in for `Model`: loads nothing, one step at a time where a test wants it."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.go.set()
        self.fails: Exception | None = None
        self.buffers = 0

    def load(self, path: Any, **_: Any) -> Any:
        self.begun.set()
        assert self.go.wait(60)
        if self.fails is not None:
            raise self.fails
        engine = SimpleNamespace(
            prefixes=None, draft_model=None, scheduler=SimpleNamespace(chunk_s=None)
        )
        artefact = SimpleNamespace(identity="ab" * 32)
        backend = SimpleNamespace(buffer_bytes=self.buffers)
        model = SimpleNamespace(engine=engine, artefact=artefact, notes=(), backend=backend)
        model.closed = False
        model.close = lambda: setattr(model, "closed", True)
        self.made.append(model)
        return model


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    made = Loader()
    monkeypatch.setattr(module, "Model", made)
    return made


def pool_of(total: int, **weights: int) -> ModelPool:
    """A pool of models of given sizes. Each has an eighth of the budget besides, for prefixes."""
    budget = MemoryBudget(total, most_running=8, most_waiting=8)
    pool = ModelPool([], budget)
    for name, nbytes in weights.items():
        pool.models[name] = Served(
            name=name, path=None, created=0, identity="ab" * 32, weight_bytes=nbytes
        )  # type: ignore[arg-type]
    return pool


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(happened: Callable[[], bool], *tasks: asyncio.Task[Any]) -> None:
    """Wait; a task that fails meanwhile ends the test."""
    while not happened():
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def answering(budget: MemoryBudget, nbytes: int) -> Any:
    """An answer that has borrowed its memory."""
    with budget.place() as place:
        await place.borrow(nbytes)
        yield


def test_a_broken_model_is_loaded_again_though_somebody_always_asks(loader: Loader) -> None:
    """New requests wait for those that have the old weights, and never get these."""

    async def run() -> None:
        pool = pool_of(800 * MB, a=100 * MB)
        got: list[Any] = []

        async def use(until: asyncio.Event) -> None:
            async with pool.using("a") as (_, model):
                got.append(model)
                await until.wait()

        ends = [asyncio.Event() for _ in range(4)]
        old = [asyncio.create_task(use(end)) for end in ends[:2]]
        await until(lambda: len(got) == 2, *old)
        pool.models["a"].broken = True
        new = [asyncio.create_task(use(end)) for end in ends[2:]]
        await turns()
        assert len(got) == 2
        ends[0].set()
        await turns()
        assert len(got) == 2
        assert not loader.made[0].closed
        ends[1].set()
        await until(lambda: len(got) == 4, *new)
        assert got == [loader.made[0]] * 2 + [loader.made[1]] * 2
        assert loader.made[0].closed
        for end in ends:
            end.set()
        await asyncio.gather(*old, *new)
        assert pool.budget.model_bytes == 200 * MB

    asyncio.run(run())


def test_a_load_that_fails_gives_its_memory_back(loader: Loader) -> None:
    async def run() -> None:
        pool = pool_of(800 * MB, a=100 * MB)
        loader.fails = ArtefactError("half of a file")
        with pytest.raises(ArtefactError):
            async with pool.using("a"):
                pass
        assert pool.budget.model_bytes == 0
        loader.fails = None
        async with pool.using("a"):
            assert pool.budget.model_bytes == 200 * MB

    asyncio.run(run())


def test_memory_of_a_model_is_taken_before_it_is_loaded(loader: Loader) -> None:
    """An answer that comes while it is loaded waits or is refused; the budget holds."""

    async def run() -> None:
        pool = pool_of(800 * MB, a=500 * MB)
        loader.go.clear()

        async def load() -> None:
            async with pool.using("a"):
                pass

        loading = asyncio.create_task(load())
        await until(loader.begun.is_set, loading)
        assert pool.budget.free_bytes == 200 * MB
        with pytest.raises(Refusal) as raised:
            async with answering(pool.budget, 300 * MB):
                pass
        assert raised.value.code == "memory_exceeded"
        async with answering(pool.budget, 200 * MB):
            loader.go.set()
            await loading
            assert pool.budget.free_bytes == 0

    asyncio.run(run())


def test_buffers_that_do_not_fit_are_in_nobodys_way(loader: Loader) -> None:
    """They are known once a model is loaded: an idle one makes way, or this one is refused."""

    async def run() -> None:
        pool = pool_of(800 * MB, a=200 * MB, b=200 * MB, large=600 * MB)
        loader.buffers = 150 * MB
        for name in ("a", "b"):
            async with pool.using(name):
                assert pool.budget.model_bytes == 450 * MB
        with pytest.raises(Refusal, match="large needs 891,289,600 bytes") as raised:
            async with pool.using("large"):
                pass
        assert raised.value.code == "memory_exceeded"
        assert pool.budget.model_bytes == 0
        assert [one.closed for one in loader.made] == [True] * 3

    asyncio.run(run())


def test_a_request_that_is_given_up_does_not_end_the_loading_for_others(loader: Loader) -> None:
    async def run() -> None:
        pool = pool_of(800 * MB, a=100 * MB)
        loader.go.clear()

        async def load() -> Any:
            async with pool.using("a") as (_, model):
                return model

        first = asyncio.create_task(load())
        await until(loader.begun.is_set, first)
        second = asyncio.create_task(load())
        await turns()
        first.cancel()
        await turns()
        loader.go.set()
        assert await second is loader.made[0]
        assert len(loader.made) == 1
        assert pool.models["a"].users == pool.models["a"].holders == 0

    asyncio.run(run())


def test_a_model_leaves_the_memory_that_somebody_waits_for(loader: Loader) -> None:
    """Or else the one who waits would wait for ever, and everybody behind it."""

    async def run() -> None:
        pool = pool_of(800 * MB, a=100 * MB, b=100 * MB)
        budget = pool.budget
        async with pool.using("a"):
            waited = asyncio.Event()

            async def wait() -> None:
                async with answering(budget, 500 * MB):
                    waited.set()

            async with answering(budget, 300 * MB):
                waiting = asyncio.create_task(wait())
                await turns()
                assert budget.waiting == 1
                assert budget.free_bytes == 300 * MB
                assert budget.spare_bytes == 100 * MB
                with pytest.raises(Refusal) as raised:
                    async with pool.using("b"):
                        pass
                assert raised.value.code == "memory_exceeded"
            await waiting
            assert waited.is_set()
            async with pool.using("b"):
                assert budget.free_bytes == 400 * MB

    asyncio.run(run())


def test_idle_models_make_way_for_a_large_answer(loader: Loader) -> None:
    async def run() -> None:
        pool = pool_of(800 * MB, a=100 * MB, b=100 * MB)
        async with pool.using("b"):
            pass
        async with pool.using("a"):
            await pool.make_way(400 * MB)
            assert pool.models["b"].model is not None
            await pool.make_way(500 * MB)
            assert pool.models["b"].model is None
            assert pool.models["a"].model is not None
            async with answering(pool.budget, 500 * MB):
                assert pool.budget.free_bytes == 100 * MB

    asyncio.run(run())


def test_who_can_never_be_let_in_any_more_is_refused() -> None:
    """Not left at the head of the queue, where everybody behind would wait with it."""

    async def run() -> None:
        budget = MemoryBudget(100, most_running=8, most_waiting=8)
        found: list[str] = []

        async def ask(nbytes: int) -> None:
            try:
                async with answering(budget, nbytes):
                    found.append(f"{nbytes} let in")
            except Refusal as refusal:
                found.append(f"{nbytes} {refusal.code}")

        async with answering(budget, 60):
            tasks = [asyncio.create_task(ask(nbytes)) for nbytes in (70, 5)]
            await turns()
            assert budget.waiting == 2
            budget.add_model(35)
            await turns()
            assert found == ["70 memory_exceeded", "5 let in"]
        await asyncio.gather(*tasks)
        assert (budget.running, budget.waiting, budget.cache_bytes) == (0, 0, 0)
        budget.add_model(-35)
        async with contextlib.AsyncExitStack() as stack:  # no place was lost on the way
            for _ in range(8):
                await stack.enter_async_context(answering(budget, 1))
            places = [stack.enter_context(budget.place()) for _ in range(8)]
            assert len(places) == 8
            with pytest.raises(Refusal), budget.place():
                pass

    asyncio.run(run())


@pytest.fixture
def slow(rule: Callable[..., Rule], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server whose vectors take as long as a test wants."""
    begun, released = threading.Event(), threading.Event()

    def embed(*_: Any, **__: Any) -> Any:
        begun.set()
        assert released.wait(60)
        return np.ones((1, 8), np.float32)

    api = rule()
    monkeypatch.setattr(api.model, "embed", embed)
    yield api, begun, released
    released.set()


def test_memory_is_given_back_when_its_thread_has_ended(slow: Any) -> None:
    """Not when the client goes away: the thread computes on."""
    api, begun, released = slow
    data = json.dumps({"model": "fake", "input": "x" * 50}).encode()
    made = socket.create_connection(api.address, timeout=30)
    made.sendall(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(data) + data
    )
    assert begun.wait(60)
    lent = api.gauge("memory_caches_bytes")
    assert lent > 0
    reset(made)
    # The client is noted as gone, and what its thread uses is still lent.
    gone = 'requests_total{route="embeddings",status="499"} 1'
    while gone not in httpx.get(api.url + "/metrics", timeout=30).text:
        time.sleep(0.01)
    served = api.writer.models.models["fake"]
    assert api.gauge("running") == 1
    assert api.gauge("memory_caches_bytes") == lent
    assert served.users == 1
    released.set()
    api.wait_until("running", 0)
    assert api.gauge("memory_caches_bytes") == 0
    assert served.users == 0
