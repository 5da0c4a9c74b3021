"""The part of a model that continues and scores texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt

from edgetok.engine.engine import Engine
from edgetok.engine.generation import Generation
from edgetok.engine.result import Result
from edgetok.engine.score import Score, score, split_at_prompt
from edgetok.engine.sequence import Progress
from edgetok.errors import OptionError
from edgetok.runtime.backend import Backend
from edgetok.sampling.options import SamplingChanges, SamplingOptions
from edgetok.text.inputs import checked_prompt, checked_prompts
from edgetok.text.tokenizer import Tokenizer


class Texts:
    """Continues and scores texts; `Model` adds chats, and how it is loaded and closed.

    Attributes:
        backend: computes the steps.
        tokenizer: text to tokens and back.
        engine: writes the answers, several at the same time.
        sampling: the defaults: what the checkpoint recommends.
    """

    backend: Backend
    tokenizer: Tokenizer
    engine: Engine
    sampling: SamplingOptions

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together; where the cache evicts, what it holds."""
        return self.engine.context_tokens

    @property
    def eos_tokens(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return self.engine.eos_tokens

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        schema: object = None,
        grammar: object = None,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingChanges],
    ) -> Result:
        """Continue a text to the end.

        Args:
            prompt: text, or token ids.
            schema: a JSON schema or pydantic model that the answer must match.
            grammar: another rule that it must match; see `Grammar.of`.
            progress: called with (tokens of the prompt that are read, all of them) as it is read,
                in the thread that computes; an error that it raises ends the answer.
            sampling: options that differ from `self.sampling`.

        Raises:
            ContextError: the prompt does not fit.
            GrammarError: schema or grammar are invalid or unsupported.
            OptionError: an argument is of another kind, or an option is out of range.
        """
        return self.stream(
            prompt, schema=schema, grammar=grammar, progress=progress, **sampling
        ).run()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        schema: object = None,
        grammar: object = None,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingChanges],
    ) -> Generation:
        """Continue a text, piece by piece.

        Args:
            prompt: text, or token ids.
            schema: a JSON schema or pydantic model that the answer must match.
            grammar: another rule that it must match; see `Grammar.of`.
            progress: as for `generate`.
            sampling: options that differ from `self.sampling`.

        Returns:
            An iterator over pieces of text, for `for` and `async for`, whose `result` holds tokens
            and timing. `tokens()` iterates over tokens instead.

        Raises:
            ContextError: the prompt does not fit.
            GrammarError: schema or grammar are invalid or unsupported.
            OptionError: an argument is of another kind, or an option is out of range.
        """
        options = self.sampling.with_changes(dict(sampling))
        constraint = self.engine.constraint_of(schema, grammar)
        return self.engine.text(
            self._ids(prompt), options, constraint=constraint, progress=progress
        )

    def generate_batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        *,
        schema: object = None,
        grammar: object = None,
        **sampling: Unpack[SamplingChanges],
    ) -> list[Result]:
        """Continue several texts to the end, together: each as `generate` would alone.

        Much faster than one after the other where the backend computes sequences together.

        Args:
            prompts: texts, or token ids.
            schema: a JSON schema or pydantic model that each answer must match.
            grammar: another rule that each must match; see `Grammar.of`.
            sampling: options that differ from `self.sampling`, for all of them.

        Returns:
            Results in the order of the prompts.

        Raises:
            ContextError: a prompt does not fit; the others are cancelled.
            GrammarError: schema or grammar are invalid or unsupported.
            OptionError: an option is out of range.
        """
        options = self.sampling.with_changes(dict(sampling))
        ids = [self._ids(prompt) for prompt in checked_prompts(prompts)]
        constraint = self.engine.constraint_of(schema, grammar)
        return self.engine.batch(ids, options, constraint)

    def score(
        self,
        text: str | Sequence[int],
        *,
        prompt: str | Sequence[int] = "",
        logprobs: int = 0,
    ) -> Score:
        """Compute how probable the model finds a given text, token by token.

        Args:
            text: text, or token ids.
            prompt: text before it, which is not scored. If it is empty, the token with which the
                tokenizer begins texts, such as <s>, stands there; without one, the first token
                has no log-probability.
            logprobs: also give this many most likely tokens at each position.

        Raises:
            ContextError: the text does not fit.
            OptionError: an argument is of another kind, or there is nothing to score.
        """
        SamplingOptions(logprobs=logprobs)  # refuses what is out of range
        size = self.tokenizer.vocab_size
        before, tokens = split_at_prompt(
            self.tokenizer, checked_prompt(prompt, size), checked_prompt(text, size)
        )
        return score(
            self.backend,
            self.tokenizer,
            before,
            tokens,
            top=logprobs,
            context_tokens=self.context_tokens,
        )

    def embed(
        self,
        texts: str | Iterable[str | Sequence[int]],
        *,
        pooling: str | None = None,
        normalise: bool = True,
    ) -> npt.NDArray[np.float32]:
        """Compute a vector for each text, near for texts that mean alike, if so trained.

        Args:
            texts: one or several, also as token ids; a text gets what the tokenizer adds to it.
            pooling: "last" takes the last token's vector, "mean" the mean over all tokens; None:
                what the model was trained for, "last" where its checkpoint does not say.
            normalise: divide each vector by its length, so that products are cosines.

        Returns:
            [texts, size], what the output head would get, or where the model has matrices behind
            the pooling, the result of those.

        Raises:
            ContextError: a text has more tokens than the model was trained for.
            OptionError: an argument is of another kind, or a text is empty.
            UnsupportedError: this backend computes logits alone.
        """
        if pooling is None:
            pooling = "last" if self.backend.spec is None else self.backend.spec.pooling
        if pooling not in ("last", "mean"):
            raise OptionError(f"pooling is {pooling!r:.40}, expected 'last' or 'mean'")
        vectors = []
        for text in checked_prompts([texts] if isinstance(texts, str) else texts):
            tokens = self._ids(text)
            if not tokens:
                raise OptionError("there is nothing to embed: a text is empty")
            ids = np.asarray(tokens, np.int32)
            vectors.append(self.backend.embed(ids, mean=pooling == "mean"))
        found = np.stack(vectors)
        if normalise:
            lengths = np.linalg.norm(found, axis=1, keepdims=True)
            found = found / np.maximum(lengths, np.float32(1e-12))
        return np.asarray(found, np.float32)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with what the tokenizer adds around it unless `special` is False."""
        return self.tokenizer.encode(text, special=special)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        given = checked_prompt(prompt, self.tokenizer.vocab_size)
        tokens = self.tokenize(given) if isinstance(given, str) else given
        if not tokens and self.tokenizer.bos_token is not None:
            tokens = [self.tokenizer.bos_token]
        return tokens
