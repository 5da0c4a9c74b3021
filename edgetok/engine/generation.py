"""An answer as its reader sees it: a handle on a sequence in the engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from edgetok.engine.cached_tokens import CachedTokens
from edgetok.engine.mailbox import NO_LIMIT, End, Letter, Mailbox, Piece
from edgetok.engine.result import FinishReason, Result, Stats, Token
from edgetok.engine.sequence import Sequence
from edgetok.engine.stepper import Stepper
from edgetok.engine.token_stream import TokenStream

if TYPE_CHECKING:
    import asyncio


class Generation(Iterator[str], AsyncIterator[str]):
    """An answer as it is written: an iterator over pieces of text, plain or asynchronous.

    `result` holds what was read so far, and the whole once the iterator has ended. `cancel` and
    `close` may be called from any thread, signal handler or finaliser, at any time. An answer that
    is pulled alone is computed as far as it was read and no further; beside others, and with
    `async for`, a few tokens ahead.
    """

    def __init__(
        self,
        stepper: Stepper,
        sequence: Sequence,
        on_finish: Callable[[Result], None] | None = None,
    ) -> None:
        """Prepare; nothing is computed before the first piece is asked for.

        Args:
            stepper: makes steps.
            sequence: that has not begun.
            on_finish: called once with the result, however the answer ends.
        """
        self._stepper, self._sequence = stepper, sequence
        self._mailbox = Mailbox()
        self._on_finish = [] if on_finish is None else [on_finish]  # popped by whoever is first
        self._pieces: list[Piece] = []
        self._finish: FinishReason = "cancelled"
        self._begin_s = 0.0
        self._submitted = False
        self._ended = False

    # Reading

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        try:
            letter = self._next_letter()
            if isinstance(letter, Piece):
                return self._taken(letter)
        except BaseException:
            self._stepper.recover()
            self.close()
            raise
        self._over(letter)
        raise StopIteration

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        try:
            letter = await self._awaited_letter()
            if isinstance(letter, Piece):
                return self._taken(letter)
        except BaseException:
            self.close()
            raise
        self._over(letter)
        raise StopAsyncIteration

    def tokens(self) -> TokenStream:
        """Return an iterator over tokens, plain or asynchronous, in place of pieces of text.

        It reads the same answer: a token comes once its text is known. The texts together are
        `result.text`, except for what was held back when the caller cancels.
        """
        return TokenStream(self)

    def run(self) -> Result:
        """Generate to the end and return the result."""
        self._mailbox.ahead_tokens = NO_LIMIT
        try:
            for _ in self:
                pass
        except BaseException:
            self.close()
            raise
        return self.result

    def start(self) -> None:
        """Compute to the end without being asked for pieces, which wait for whoever reads them.

        Raises:
            BusyError: too many answers wait already.
            EdgetokError: the model was closed.
        """
        self._mailbox.ahead_tokens = NO_LIMIT
        self._mailbox.eager = True
        if not self._ended and self._submit():
            self._stepper.call()

    # Ending

    def cancel(self) -> None:
        """Ask the answer to end with what there is; the iterator ends after the step in progress.

        Safe from any thread, signal handler or finaliser.
        """
        self._mailbox.cancelled = True
        if self._submitted and not self._ended:
            self._stepper.let_go(self._sequence, self._mailbox)

    def close(self) -> None:
        """End the answer now, with what was read of it. A second call does nothing.

        Safe from any thread, signal handler or finaliser; it does not wait for a step in progress.
        A reader in another thread ends with that step.
        """
        self._ended = True
        self._mailbox.closed = True
        if self._submitted:
            self._stepper.let_go(self._sequence, self._mailbox)
        self._finished()

    def settle(self) -> None:
        """Close, and wait for the step in progress: then nothing touches the cache any more."""
        self.close()
        if self._submitted:
            self._stepper.wait(self._mailbox)

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            with contextlib.suppress(Exception):  # at the interpreter's exit anything may be gone
                self.close()

    def __repr__(self) -> str:
        state = self._finish if self._ended else "not ended"
        return f"<edgetok.Generation of {self._mailbox.read_tokens} tokens, {state}>"

    @property
    def ended(self) -> bool:
        """Return whether the answer is finished."""
        return self._ended

    @property
    def over(self) -> bool:
        """Return whether all of it is computed, read or not."""
        return self._ended or self._sequence.finish is not None

    @property
    def failed(self) -> bool:
        """Return whether it ended with an error, which the next read raises."""
        return self._mailbox.failed

    @property
    def context(self) -> CachedTokens:
        """Return the cache and its tokens; to be touched only once `settle` has returned."""
        return self._sequence.context

    @property
    def stop(self) -> str | None:
        """Return the stop text that ended it, if one did."""
        return self._sequence.stop

    @property
    def times(self) -> list[float]:
        """Seconds of the engine's clock at which each token so far was known, read or not."""
        return list(self._sequence.times)

    @property
    def read_tokens(self) -> int:
        """Return how many tokens were read so far."""
        return self._mailbox.read_tokens

    @property
    def result(self) -> Result:
        """The answer so far."""
        sequence, read = self._sequence, self._mailbox.read_tokens
        times = sequence.times[:read]
        room = sequence.context_tokens
        return Result(
            text="".join(piece.text for piece in self._pieces),
            tokens=tuple(sequence.tokens[:read]),
            finish=self._finish,
            complete=sequence.complete(read),
            stats=Stats(
                prompt_tokens=len(sequence.prompt),
                cached_tokens=sequence.cached,
                generated_tokens=read,
                prefill_s=sequence.prefill_s,
                first_token_s=times[0] - self._begin_s if times else 0.0,
                decode_s=times[-1] - times[0] if times else 0.0,
                drafted_tokens=sequence.drafted,
                accepted_tokens=sequence.accepted,
            ),
            logprobs=tuple(self.tokens_since(0)) if sequence.wants_logprobs else None,
            tokens_left=None if room is None else max(0, room - len(sequence.prompt) - read),
        )

    def tokens_since(self, first: int) -> list[Token]:
        """Return the tokens that were read, without the first ones."""
        sequence, read = self._sequence, self._mailbox.read_tokens
        texts = [""] * (read - first)
        for piece in reversed(self._pieces):
            if piece.tokens <= first:
                break
            texts[piece.tokens - 1 - first] = piece.text + texts[piece.tokens - 1 - first]
        made = []
        for place, text in enumerate(texts, start=first):
            token = sequence.tokens[place]
            if sequence.wants_logprobs:
                rated = sequence.logprobs[place]
                made.append(
                    Token(id=token, text=text, logprob=rated.logprob, top_logprobs=rated.top)
                )
            else:
                made.append(Token(id=token, text=text))
        return made

    # Inside

    def _submit(self) -> bool:
        """Give the sequence to the engine, the first time; whether the engine has it."""
        if not self._submitted and not self._mailbox.cancelled:
            self._begin_s = self._stepper.now()
            self._sequence.deadline_s = self._begin_s + self._sequence.max_seconds
            self._stepper.submit(self._sequence, self._mailbox)
            self._submitted = True
        return self._submitted

    def _next_letter(self) -> Letter:
        mailbox = self._mailbox
        mailbox.waiting = True  # before it begins: prompts follow only one that is waited for
        if self._ended or not self._submit():
            return End()
        while True:
            letter = mailbox.poll()
            if letter is None:
                mailbox.waiting = True
                rest_s = self._stepper.pull(self._sequence)
                if rest_s is None:
                    letter = mailbox.get()
                elif not rest_s or (letter := mailbox.wait(rest_s)) is None:
                    continue
            mailbox.waiting = False
            return letter

    async def _awaited_letter(self) -> Letter:
        import asyncio  # 20 ms that a command line does without

        mailbox, loop = self._mailbox, asyncio.get_running_loop()
        mailbox.eager = True  # before it begins: prompts follow only one that is waited for
        if self._ended or not self._submit():
            return End()
        while True:
            arrived = loop.create_future()

            def wake(arrived: asyncio.Future[None] = arrived) -> None:
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left
                    loop.call_soon_threadsafe(_settle, arrived)

            mailbox.notify = wake
            letter = mailbox.poll()
            if letter is None:
                mailbox.waiting = True
                self._stepper.call()
                await arrived
                continue
            mailbox.notify = None
            mailbox.waiting = False
            return letter

    def _taken(self, piece: Piece) -> str:
        self._pieces.append(piece)
        self._mailbox.read_tokens = piece.tokens
        return piece.text

    def _over(self, end: End) -> None:
        """The last letter was read."""
        if not self._ended:
            self._ended = True
            if end.error is None and self._sequence.finish is not None:
                self._finish = self._sequence.finish
            self._mailbox.read_tokens = len(self._sequence.tokens)
            self._finished()
        if end.error is not None:
            raise end.error

    def _finished(self) -> None:
        try:
            on_finish = self._on_finish.pop()
        except IndexError:
            return
        on_finish(self.result)


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
