"""Answers as events of a request: the only part of the server that knows the engine.

async with await writer.begin(request) as answer:
    async for event in answer.events():
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgetok.answer import ChatAnswer
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.cache.protocol import KVCache
from edgetok.dialect.reader import AnswerReader
from edgetok.dialect.tool import ReasoningPiece, TextPiece
from edgetok.engine.generation import Generation
from edgetok.engine.result import Token
from edgetok.errors import ArtefactError, ContextError
from edgetok.model import Model
from edgetok.serve.body import Gone
from edgetok.serve.budget import MemoryBudget, Place
from edgetok.serve.failure import Refusal, log
from edgetok.serve.metrics import Metrics
from edgetok.serve.models import ModelPool, Served
from edgetok.serve.prompts import Prepared, prepare
from edgetok.serve.request import MOST_ANSWERS, Ended, Event, Rated, Request, Said, Usage, Whole

_COMPILED_AT_ONCE = 2  # schemas and tools of requests
_STRETCHES = 64  # of a conversation, whose share in the cache is told


class Writer:
    """Begins answers. Used by one event loop.

    Attributes:
        models: by name.
        budget: memory budget.
        metrics: counters.
    """

    def __init__(self, models: ModelPool, budget: MemoryBudget, metrics: Metrics) -> None:
        """Put the parts together."""
        self.models, self.budget, self.metrics = models, budget, metrics
        self._closing: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[Any]] = set()
        # Apart from other work: some schemas take seconds, and answers without one do not wait.
        self._compiling = ThreadPoolExecutor(_COMPILED_AT_ONCE, "edgetok-schemas")

    def asked(self) -> None:
        """Note that the task that calls this answers a client."""
        task = asyncio.current_task()
        if task is not None:
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def last_words(self, seconds: float) -> None:
        """Wait until each client that is refused because the server stops was told."""
        if self._asking:
            await asyncio.wait(set(self._asking), timeout=seconds)
        self._compiling.shutdown(wait=False, cancel_futures=True)

    async def begin(self, request: Request) -> Answer:
        """Check a request; nothing is computed before its events are asked for.

        Raises:
            Refusal: it cannot be answered, or the queue is full.
            UserError: an option is out of range, the prompt does not fit, the template refuses it.
        """
        most = max(1, len(request.prompts)) * request.answers
        if request.answers < 1 or most > MOST_ANSWERS:
            raise Refusal(
                400,
                f"{most:,} answers were asked for at once, expected 1 to {MOST_ANSWERS}",
                param="n",
                code="invalid_value",
            )
        self.models.find(request.model)
        async with contextlib.AsyncExitStack() as stack:
            place = stack.enter_context(self.budget.place())
            using = await stack.enter_async_context(contextlib.AsyncExitStack())
            served, model = await using.enter_async_context(self.models.using(request.model))
            prepared = await self._prepared(model, request, using)
            held = stack.pop_all()
        return Answer(self, held, place, served, model, request, prepared)

    async def _prepared(
        self, model: Model, request: Request, using: contextlib.AsyncExitStack
    ) -> Prepared:
        """Prepare in a thread. If the client goes away, its place is free at once.

        The thread cannot be stopped; `using`, which keeps the model loaded, is closed after it.
        """
        gone = threading.Event()

        def work() -> Prepared:
            if gone.is_set():
                raise Gone
            return prepare(model, request)

        held_to = request.grammar is not None or request.tools
        working = asyncio.get_running_loop().run_in_executor(
            self._compiling if held_to else None, work
        )
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            gone.set()
            self.close_later(_closed_after(working, using.pop_all()))
            raise

    def close_later(self, giving_back: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Give back what an answer holds, whatever becomes of the task that asks for it."""
        task = asyncio.get_running_loop().create_task(giving_back)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


async def _closed_after(working: asyncio.Future[Prepared], held: contextlib.AsyncExitStack) -> None:
    # What it ends with is for nobody: gathered, or asyncio would report it as never retrieved.
    await asyncio.gather(working, return_exceptions=True)
    await held.aclose()


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class Answer:
    """The answers to one request. An asynchronous context manager that gives back their memory.

    Attributes:
        served: the model.
        usage: the cost so far; whole once the events have ended.
    """

    def __init__(
        self,
        writer: Writer,
        stack: contextlib.AsyncExitStack,
        place: Place,
        served: Served,
        model: Model,
        request: Request,
        prepared: Prepared,
    ) -> None:
        """Prepare; made by `Writer.begin`.

        Args:
            writer: whose budget it uses.
            stack: holds the model and the place.
            place: in the queue.
            served: the model's entry.
            model: loaded.
            request: the internal request.
            prepared: how.
        """
        self.served = served
        self.usage = Usage(prompt_tokens=sum(map(len, prepared.prompts)))
        self._writer, self._stack, self._place, self._model = writer, stack, place, model
        self._request, self._prepared = request, prepared
        self._generations: list[Generation] = []
        self._keeping: dict[Generation, asyncio.Future[None]] = {}
        self._begun_s = time.monotonic()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Write the answers.

        Raises:
            Refusal: the memory never suffices.
            EdgetokError: the engine fails.
        """
        await self._writer.models.make_way(self._prepared.nbytes)
        await self._place.borrow(self._prepared.nbytes, self._request.priority)
        try:
            async with contextlib.aclosing(self._written()) as events:
                async for event in events:
                    yield event
        except ArtefactError as error:
            self.served.broken = True
            raise Refusal(503, str(error), code="model_unavailable") from error

    async def whole(self) -> list[Whole]:
        """All answers, each from beginning to end."""
        found = [Whole() for _ in self._prepared.plans]
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                found[event.place].take(event)
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for generation in self._generations:
            generation.close()
        ends = [one.result.finish for one in self._generations if not one.failed]
        self._writer.metrics.abandoned += "cancelled" in ends
        await asyncio.shield(self._writer.close_later(self.give_back()))

    async def give_back(self) -> None:
        """Wait until nothing touches the caches, and give back memory and model."""
        try:
            for generation in self._generations:
                self._keep(generation)
            if self._keeping:
                await asyncio.wait(self._keeping.values())
        finally:
            self._generations.clear()
            await self._stack.aclose()

    def _keep(self, generation: Generation) -> asyncio.Future[None]:
        """Keep the cache of an answer that is over for the next turn of its conversation, once."""
        if generation not in self._keeping:
            task = asyncio.to_thread(_keep, self._model.engine.prefixes, generation)
            self._keeping[generation] = asyncio.ensure_future(task)
        return self._keeping[generation]

    async def _written(self) -> AsyncGenerator[Event, None]:
        """Events of all answers as they come."""
        if len(self._prepared.plans) == 1:
            async for event in self._one(0):
                yield event
            return
        arrived: asyncio.Queue[Event | _Failed] = asyncio.Queue()

        async def forward(place: int) -> None:
            try:
                async for event in self._one(place):
                    arrived.put_nowait(event)
            except Exception as error:
                arrived.put_nowait(_Failed(error))

        count = self._request.answers
        tasks = []
        left = len(self._prepared.plans)
        try:
            # Where a prompt has several answers the first one reads it for all.
            for place in range(0, left, count):
                tasks.append(asyncio.create_task(forward(place)))
            waiting = {
                place: list(range(place + 1, place + count)) for place in range(0, left, count)
            }
            while left:
                found = await arrived.get()
                if isinstance(found, _Failed):
                    raise found.error
                for place in waiting.pop(found.place, []):
                    tasks.append(asyncio.create_task(forward(place)))
                left -= isinstance(found, Ended)
                yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, place: int) -> AsyncGenerator[Event, None]:
        number = place // self._request.answers
        prompt, places = self._prepared.prompts[number], self._prepared.places[number]
        plan, options = self._prepared.plans[place], self._prepared.options
        if options.seed is not None and place % self._request.answers:
            options = options.with_changes({"seed": (options.seed + place) % (1 << 64)})
        engine = self._model.engine
        sequence = engine.sequence(
            engine.room(prompt, options),
            prompt,
            options,
            priority=self._request.priority,
            constraint=None if plan is None else plan.constraint,
            shown=() if plan is None else plan.shown,
            stops_until="" if plan is None else plan.calls,
            places=places,
        )
        reader = AnswerReader() if plan is None else plan.reader
        answer = ChatAnswer(engine.stepper, sequence, reader)
        self._generations.append(answer)
        if self._request.echo:
            yield Said(place, TextPiece(self._model.tokenizer.decode(prompt)))
        first = True
        read = 0
        async for piece in answer.pieces_async():
            if first:
                self._writer.metrics.first_token(time.monotonic() - self._begun_s)
                first = False
            rated: tuple[Rated, ...] = ()
            if isinstance(piece, ReasoningPiece):
                self.usage.reasoning_tokens += answer.read_tokens - read
            elif isinstance(piece, TextPiece) and options.logprobs is not None:
                rated = _rated(answer.tokens_since(read), piece.text, self._model.tokenizer.piece)
            read = answer.read_tokens
            yield Said(place, piece, rated)
        # Before the client learns that it is over: its next turn may come at once.
        await asyncio.shield(self._keep(answer))
        self._count(place, answer)
        yield Ended(place, answer.result.finish, answer.stop)

    def _count(self, place: int, generation: Generation) -> None:
        stats, usage, metrics = generation.result.stats, self.usage, self._writer.metrics
        usage.generated_tokens += stats.generated_tokens
        metrics.generated_tokens += stats.generated_tokens
        if place % self._request.answers == 0:
            usage.cached_tokens += stats.cached_tokens
        metrics.prompt_tokens += stats.prompt_tokens
        metrics.cached_tokens += stats.cached_tokens
        cache: KVCache = generation.context.cache
        usage.kept = _stretches(cache.kept())
        if cache.capabilities.evicts:
            evicted = math.ceil(cache.length_tokens - cache.retained)
            usage.evicted_tokens += evicted
            metrics.evicted_tokens += evicted
            usage.attention_loss = max(usage.attention_loss, cache.loss)


def _stretches(kept: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """The means of at most _STRETCHES stretches of about equal length."""
    parts = np.array_split(kept, min(_STRETCHES, len(kept)) or 1)
    return tuple(round(float(part.mean()), 3) for part in parts if len(part))


def _rated(
    tokens: Sequence[Token], text: str, data_of: Callable[[int], bytes]
) -> tuple[Rated, ...]:
    """Return the tokens, of those read since the piece before, that a piece of text is made of.

    Markers of reasoning and calls, and what ends an answer, are not in it.
    """
    begin = "".join(token.text for token in tokens).rfind(text)
    end, at, found = begin + len(text), 0, []
    for token in tokens:
        if begin <= at < end:
            found.append(token)
        at += len(token.text)
    return tuple(
        Rated(
            data_of(token.id),
            token.logprob,
            tuple((data_of(other), logprob) for other, logprob in token.top_logprobs),
        )
        for token in found
        if token.logprob is not None
    )


def _keep(prefixes: PrefixCache | None, generation: Generation) -> None:
    generation.settle()
    context = generation.context
    if prefixes is None or generation.failed or not context.cache.capabilities.saves:
        return
    try:
        prefixes.add(context.tokens, context.cache)
        if (line := prefixes.warning()) is not None:
            log.warning("%s", line)
    except ContextError as error:
        log.warning("a conversation's beginning was not kept: %s", error)
