"""A loaded model: its parts, how it is loaded and closed, and its chats."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

from edgetok.cache.limits import CacheLimits
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.engine.engine import Engine
from edgetok.engine.sequence import Progress
from edgetok.environment import read_settings
from edgetok.errors import OptionError
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.library.resolve import model_folder
from edgetok.models.bundled import bundled_model
from edgetok.runtime.backend import Backend
from edgetok.runtime.base import check_writes
from edgetok.runtime.options import DEFAULT_WAIT_S, RunChanges, RunOptions
from edgetok.runtime.select import DEFAULT_CONTEXT_TOKENS, load_backend
from edgetok.sampling.options import SamplingChanges, SamplingOptions
from edgetok.text.generation_config import end_tokens, read_generation_config
from edgetok.text.inputs import checked_path, checked_prompts, checked_text
from edgetok.text.tokenizer import Tokenizer, read_config
from edgetok.texts import Texts

if TYPE_CHECKING:
    from edgetok.answer import ChatAnswer, ChatResult
    from edgetok.chat import Chat
    from edgetok.dialect.options import ChatChanges
    from edgetok.dialect.request import Speaker
    from edgetok.runtime.estimate import Estimate
    from edgetok.text.template import ChatTemplate, Message


class Model(Texts):
    """A model ready to run. May be used from many threads; their steps take turns.

    Attributes:
        path: the artefact's folder.
        artefact: the opened artefact.
        backend: computes the steps.
        tokenizer: text to tokens and back.
        engine: writes the answers, several at the same time.
        sampling: the defaults: what the checkpoint recommends.
        notes: lines that a user should see once, such as an unexpected backend.
    """

    def __init__(
        self,
        artefact: Artefact,
        backend: Backend,
        *,
        context_tokens: int | None = None,
        limits: CacheLimits | None = None,
        chats_evict: bool = True,
        speculate: bool = True,
        pace: float | None = None,
        max_wait: float = DEFAULT_WAIT_S,
        notes: Sequence[str] = (),
    ) -> None:
        """Put the parts together; `Model.load` is the usual way.

        Args:
            artefact: where tokenizer and template are.
            backend: loaded for this artefact; closed with the model.
            context_tokens: limit for prompt and answer together; None: 4096, or the trained
                length where that is less.
            limits: of all caches: they evict what they can spare. None: a text that does not fit
                is refused.
            chats_evict: whether conversations evict without limits, too.
            speculate: whether answers are drafted where that is faster.
            pace: most tokens per second of all answers together; None: no limit.
            max_wait: seconds that a token should take at most while a prompt is read.
            notes: lines for the user.

        Raises:
            ArtefactError: tokenizer or configuration are missing or damaged.
            OptionError: the context is longer than the model was trained for.
        """
        trained = backend.context_tokens
        if context_tokens is None:
            context_tokens = min(trained, DEFAULT_CONTEXT_TOKENS)
        elif type(context_tokens) is not int or not 1 <= context_tokens <= trained:
            raise OptionError(
                f"context is {context_tokens!r} tokens, expected 1 to {trained}, the length that "
                "the model was trained for"
            )
        self.path = artefact.folder
        self.artefact = artefact
        self.backend = backend
        self.notes = tuple(notes)
        self.tokenizer = Tokenizer.from_artefact(
            artefact, backend.vocab_size, read_settings().cache_dir
        )
        generation = read_generation_config(self.path)
        self.sampling = SamplingOptions.from_generation_config(generation)
        listed = () if backend.spec is None else backend.spec.eos_tokens
        self.engine = Engine(
            backend,
            self.tokenizer,
            end_tokens(listed, generation, self.tokenizer),
            context_tokens=context_tokens,
            limits=limits,
            chats_evict=chats_evict,
            speculate=speculate,
            pace=pace,
            max_wait=max_wait,
        )
        self._template: ChatTemplate | None = None
        self._closed = False
        self._speaker: Speaker | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[RunChanges],
    ) -> Model:
        """Load a model; one that is not an artefact yet is downloaded and converted, once.

        Args:
            path: an artefact that `edgetok convert` wrote, a short name such as "smollm2", a hub
                id, a Hugging Face folder or a GGUF file; None takes the bundled model.
            progress: called with (work done, work in all) where kernels have to be
                compiled first, once for a machine.
            options: fields of `RunOptions` that differ from their defaults, e.g.
                `kv_budget="64MB"`.

        Raises:
            ArtefactError: the folder is damaged.
            CheckpointError: there is no such model, or it cannot be read or downloaded.
            OptionError: an option is out of range.
            UnsupportedError: the wanted device cannot run this artefact.
        """
        from edgetok.drafting import load_draft_model

        path = bundled_model() if path is None else checked_path(path)
        run = RunOptions.of(options)
        limits = run.cache_limits
        if run.threads is None:
            run = dataclasses.replace(run, threads=read_settings().threads)
        artefact = open_artefact(model_folder(path))
        try:
            backend, note = load_backend(artefact, run, progress)
        except BaseException:
            artefact.close()
            raise
        try:
            model = cls(
                artefact,
                backend,
                context_tokens=run.context_tokens,
                limits=limits,
                chats_evict=run.kv_policy != "none",
                speculate=run.speculate,
                pace=run.pace,
                max_wait=run.max_wait,
                notes=() if note is None else (note,),
            )
            if run.draft is not None:
                model.engine.draft_model = load_draft_model(
                    checked_path(run.draft),
                    run,
                    backend,
                    model.tokenizer,
                    model.context_tokens,
                    progress,
                )
            if run.prefix_cache_bytes is not None:
                folder = read_settings().cache_dir / "prefixes"
                model.engine.prefixes = PrefixCache(
                    artefact.identity, run.prefix_cache_bytes, folder, backend.new_cache
                )
            return model
        except BaseException:
            backend.close()
            artefact.close()
            raise

    @overload
    def chat(
        self,
        messages: None = None,
        *,
        system: str | None = None,
        **options: Unpack[SamplingChanges],
    ) -> Chat: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        progress: Progress | None = None,
        **options: Unpack[ChatChanges],
    ) -> ChatResult: ...

    def chat(self, messages: Sequence[Message] | None = None, **options: Any) -> Chat | ChatResult:
        """Answer a conversation to the end, keeping nothing of it; or begin one.

        Without messages this is `new_chat`, with its arguments: the conversation returned is
        asked with `send`, and keeps its messages and its cache.

        Args:
            messages: each with "role" and "content", the last one usually the user's. Results of
                tools have the role "tool".
            options: `progress` as for `generate`, and those of `ChatChanges`. Without messages,
                those of `new_chat`.

        Returns:
            The answer; without messages, a new conversation.

        Raises:
            ContextError: the conversation does not fit.
            GrammarError: a schema, grammar or tool's parameters are invalid or unsupported.
            OptionError: an argument is of another kind, or an option is out of range.
            TemplateError: the model has no usable chat template, or it refuses the messages.
        """
        from edgetok.dialect.options import needs_messages

        if messages is None and not needs_messages(options):
            return self.new_chat(**options)
        return self.stream_chat(cast(Any, messages), **options).run()

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        progress: Progress | None = None,
        **options: Unpack[ChatChanges],
    ) -> ChatAnswer:
        """Answer a conversation piece by piece: `chat` as an iterator, like `stream`.

        Args:
            messages: as for `chat`.
            progress: as for `generate`.
            options: see `ChatChanges`.

        Returns:
            An iterator over the text of the answer; its `pieces()` iterates over reasoning and
            calls of tools, too.

        Raises:
            ContextError: the conversation does not fit.
            GrammarError: a schema, grammar or tool's parameters are invalid or unsupported.
            OptionError: an argument is of another kind, or an option is out of range.
            TemplateError: as for `chat`.
        """
        from edgetok.answer import begin_answer
        from edgetok.dialect.options import request_of

        request, sampling = request_of(messages, dict(options))
        chosen = self.sampling.with_changes(sampling)
        return begin_answer(self.engine, self.speaker, request, chosen, progress=progress)

    def new_chat(self, system: str | None = None, **sampling: Unpack[SamplingChanges]) -> Chat:
        """Begin a conversation that keeps its messages, and its cache from turn to turn.

        Args:
            system: the system message, for every turn.
            sampling: options that differ from `self.sampling`.

        Raises:
            OptionError: an argument is of another kind, or an option is out of range.
            TemplateError: the model has no usable chat template.
            UnsupportedError: the model computes vectors of texts alone.
        """
        from edgetok.chat import Chat

        check_writes(self.backend.spec)
        return Chat(
            self.engine,
            self.speaker,
            self.artefact.identity,
            system=system,
            sampling=self.sampling.with_changes(dict(sampling)),
        )

    def rerank(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[float]:
        """Score texts by how well they answer a query, if the model was so trained.

        Args:
            query: the question or search.
            documents: the texts. An empty one gets a score like any other.
            instruction: purpose of the query; None for a web search.

        Returns:
            A score from 0 to 1 for each text: the share of "yes" in the model's judgement.

        Raises:
            ContextError: query and a text do not fit.
            OptionError: an argument is of another kind, or there are no texts.
            UnsupportedError: the model's vocabulary is not that of Qwen3-Reranker's kind.
        """
        from edgetok.ranking import Ranker, rank

        texts = [checked_text("a document", text) for text in checked_prompts(documents)]
        asked = checked_text("the query", query)
        ranker = Ranker(self.backend, self.tokenizer, self.context_tokens)
        return rank(ranker, asked, texts, instruction and checked_text("instruction", instruction))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its folder, and of what it was converted from."""
        source = (self.artefact.report or {}).get("source")
        return (self.path.resolve().name, *([source] if isinstance(source, str) else []))

    @classmethod
    def estimate(cls, path: str | os.PathLike[str], **options: Unpack[RunChanges]) -> Estimate:
        """Return the bytes that a model will take, without loading it.

        Args:
            path: the artefact's folder.
            options: as for `load`, e.g. `context="8k"` or `kv_budget="64MB"`.

        Raises:
            ArtefactError: the folder is damaged or no artefact.
            OptionError: an option is out of range.
            UnsupportedError: onnxruntime would run it, whose memory is not known.
        """
        from edgetok.drafting import with_draft
        from edgetok.runtime.estimate import estimate

        run = RunOptions.of(options)
        with open_artefact(checked_path(path)) as artefact:
            return with_draft(estimate(artefact, run), run)

    @property
    def speaker(self) -> Speaker:
        """Formats of reasoning and calls of this model; found on first use.

        Raises:
            TemplateError: the model has no usable chat template.
        """
        from edgetok.dialect.request import Speaker

        if self._speaker is None:
            self._speaker = Speaker(self.template, self.tokenizer)
        return self._speaker

    @property
    def template(self) -> ChatTemplate:
        """The chat template, compiled on first use.

        Raises:
            TemplateError: there is none, or it is not usable.
        """
        from edgetok.text.template import ChatTemplate, no_template

        if self._template is None:
            self._template = ChatTemplate.from_folder(self.path, read_config(self.path))
        if self._template is None:
            raise no_template(self.path)
        return self._template

    def close(self) -> None:
        """End answers, stop threads and let go of the weights. A second call does nothing."""
        self._closed = True
        self.engine.close()
        self.backend.close()
        self.artefact.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.context_tokens} tokens"
        return f"<edgetok.Model {self.path.name!r} on {self.backend.name}, {state}>"
