"""A conversation: history, template, and a KV cache that is kept from turn to turn."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgetok.answer import ChatAnswer, ChatResult, answer_in
from edgetok.cache.memory_report import Memory
from edgetok.cache.state_file import SavedCache
from edgetok.dialect.request import ChatRequest, Speaker
from edgetok.engine.cached_tokens import CachedTokens
from edgetok.engine.engine import Engine
from edgetok.engine.sequence import Progress
from edgetok.errors import OptionError, SessionError, UserError
from edgetok.grammar.definition import Grammar
from edgetok.sampling.options import SamplingOptions
from edgetok.session import Session, read_session, write_session
from edgetok.text.inputs import checked_text
from edgetok.text.transcript import Transcript

if TYPE_CHECKING:
    from edgetok.sampling.options import SamplingChanges


class Chat:
    """One conversation with a model. Made by `Model.new_chat`; used by one thread at a time.

    Attributes:
        sampling: options of the next answers; may be replaced at any time.
    """

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker,
        identity: str,
        *,
        system: str | None = None,
        sampling: SamplingOptions,
    ) -> None:
        """Begin; `Model.new_chat` is the usual way.

        Args:
            engine: writes the answers.
            speaker: speaker of the same model: renders messages, and tells reasoning from answers.
            identity: identity of the artefact; saved conversations are bound to it.
            system: the system message.
            sampling: options of the answers.
        """
        self.sampling = sampling
        self._engine, self._speaker, self._identity = engine, speaker, identity
        self._transcript = Transcript(speaker.template, engine.tokenizer)
        self._system = checked_text("the system message", system or "") or None
        self._turns: list[dict[str, str]] = []
        self._context: CachedTokens | None = None
        self._active: ChatAnswer | None = None
        self._last: ChatResult | None = None

    @property
    def system(self) -> str | None:
        """Return the system message; it may be changed in the middle of a conversation."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        given = checked_text("the system message", text or "") or None
        self._settle()
        self._system = given

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as the template sees it: a copy."""
        head = [] if self._system is None else [{"role": "system", "content": self._system}]
        return head + [dict(turn) for turn in self._turns]

    @property
    def last(self) -> ChatResult | None:
        """The latest answer's tokens and timing."""
        return self._last

    @property
    def used_tokens(self) -> int:
        """Return the tokens of the context that the conversation has used."""
        return 0 if self._context is None else self._context.cache.length_tokens

    @property
    def context_tokens(self) -> int:
        """Return the most tokens that the context holds."""
        return self._engine.context_tokens

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache; 0 before the first answer."""
        return 0 if self._context is None else self._context.cache.nbytes

    @property
    def memory(self) -> Memory | None:
        """Return the report of a bounded cache; None if nothing is evicted, or before an answer.

        Not to be asked while an answer is being written.
        """
        if self._context is None or not self._context.cache.capabilities.evicts:
            return None
        return Memory.of(self._context.cache, self._context.tokens)

    def send(
        self,
        text: str,
        *,
        schema: object = None,
        grammar: object = None,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingChanges],
    ) -> ChatAnswer:
        """Send a message, and iterate over the answer piece by piece.

        A message that got no answer, because it was cancelled before the first word, is replaced.

        Args:
            text: the user's message.
            schema: a JSON schema or pydantic model that the answer must match, after its reasoning
                if the model reasons.
            grammar: another rule that it must match; see `Grammar.of`.
            progress: called with (tokens of the conversation that are read, all of them) as it is
                read; tokens that the cache holds count as read.
            sampling: options that differ from `self.sampling`, for this answer.

        Returns:
            An iterator over pieces of text; its `pieces()` iterates over reasoning, too. The text
            that it has given when it ends, is closed or cancelled becomes part of the
            conversation; reasoning does not.

        Raises:
            ContextError: the conversation no longer fits; it is as it was before.
            GrammarError: schema or grammar are invalid or unsupported; likewise.
            TemplateError: the template refuses the conversation; likewise.
        """
        checked_text("the message", text)
        self._settle()
        held = Grammar.asked(schema, grammar)
        before = list(self._turns)
        if self._turns and self._turns[-1]["role"] == "user":
            self._turns.pop()
        self._turns.append({"role": "user", "content": text})
        try:
            return self._answer(sampling, held, progress)
        except UserError:
            self._turns = before
            raise

    def retry(
        self, *, progress: Progress | None = None, **sampling: Unpack[SamplingChanges]
    ) -> ChatAnswer:
        """Answer the last message again.

        Args:
            progress: as for `send`.
            sampling: options that differ from `self.sampling`, for this answer.

        Raises:
            OptionError: nothing was said yet.
        """
        self._settle()
        if not self._turns:
            raise OptionError("there is no message to answer again")
        before = list(self._turns)
        if self._turns[-1]["role"] == "assistant":
            self._turns.pop()
        try:
            return self._answer(sampling, progress=progress)
        except UserError:
            self._turns = before
            raise

    def undo(self) -> str | None:
        """Take back the last message and its answer.

        Returns:
            The message; None where nothing was said yet.
        """
        self._settle()
        if not self._turns:
            return None
        if self._turns[-1]["role"] == "assistant":
            self._turns.pop()
        return self._turns.pop()["content"]

    def clear(self) -> None:
        """Forget the conversation, but not the system message."""
        self._settle()
        self._turns.clear()
        self._last = None
        if self._context is not None:
            self._context.reuse([-1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, which replaces another only when it is complete.

        Raises:
            OutputError: the file cannot be written.
        """
        self._settle()
        session = Session(
            model=self._identity,
            system=self._system,
            turns=tuple(dict(turn) for turn in self._turns),
            sampling=dataclasses.asdict(self.sampling),
        )
        saved = None
        if self._context is not None and self._context.cache.capabilities.evicts:
            saved = SavedCache(list(self._context.tokens), self._context.cache.save())
        write_session(Path(path), session, saved)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with a conversation that `save` wrote, from its cache where the file has one.

        Where this cache does not evict and the whole conversation fits, it is read again.

        Raises:
            SessionError: the file is missing, damaged or belongs to another model; the present
                conversation goes on as it was.
        """
        self._settle()
        limits = self._engine.chat_limits
        most = 1 << 36 if limits is None else self._made_context().cache.nbytes
        session, sampling, saved = read_session(Path(path), self._identity, most)
        if saved is not None and limits is None:
            # A cache that does not evict reads all of it again, if it fits.
            if len(saved.tokens) > self.context_tokens:
                raise SessionError(
                    f"{path}: was saved with a cache that evicts; load the model with its "
                    f"--kv-policy {saved.state.shape.get('policy')!s:.40}"
                )
            saved = None
        if saved is not None:
            context = self._made_context()
            if max(saved.tokens, default=0) >= self._engine.tokenizer.vocab_size:
                raise SessionError(f"{path}: has tokens that this model does not know")
            try:
                context.restore(saved.tokens, saved.state)
            except SessionError as error:
                raise SessionError(f"{path}: {error}") from error
        self._system = session.system
        self._turns = [dict(turn) for turn in session.turns]
        self.sampling = sampling
        self._last = None

    def __repr__(self) -> str:
        said, used = len(self.messages), self.used_tokens
        return f"<edgetok.Chat of {said} messages, {used} of {self.context_tokens} tokens>"

    def _answer(
        self,
        sampling: SamplingChanges,
        grammar: Grammar | None = None,
        progress: Progress | None = None,
    ) -> ChatAnswer:
        options = self.sampling.with_changes(dict(sampling))
        messages = self.messages
        tokens = self._transcript.tokens(messages)
        context = self._made_context()
        if context.cache.capabilities.evicts:
            context.cache.pin(self._system_tokens())
        self._active = answer_in(
            self._engine,
            self._speaker,
            context,
            (self._transcript.end, tokens),
            ChatRequest(messages=messages, grammar=grammar),
            options,
            self._finished,
            progress=progress,
        )
        return self._active

    def _made_context(self) -> CachedTokens:
        if self._context is None:
            self._context = self._engine.conversation()
        return self._context

    def _system_tokens(self) -> int:
        """Return the number of first tokens that all chats with this system message share."""
        if self._system is None:
            return 0
        head = {"role": "system", "content": self._system}
        texts = [
            self._speaker.template.render([head, {"role": "user", "content": said}])
            for said in ("a", "1")
        ]
        first, second = (self._engine.tokenizer.encode(text, special=False) for text in texts)
        return next(
            (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first)
        )

    def _finished(self, result: ChatResult) -> None:
        self._last = result
        # A message without any answer stays the last one, so that retry can answer it.
        if result.text or result.finish != "cancelled":
            self._turns.append({"role": "assistant", "content": result.text})

    def _settle(self) -> None:
        """End an answer that is still being written, and wait until nothing touches the cache."""
        if self._active is not None:
            self._active.settle()
            self._active = None
