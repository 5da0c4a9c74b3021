"""Score a given text: how probable the model finds each of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetok.engine.cached_tokens import or_larger
from edgetok.engine.result import Token
from edgetok.errors import ContextError, OptionError
from edgetok.runtime.backend import Backend
from edgetok.sampling.logprobs import logprobs
from edgetok.sampling.steps import not_finite
from edgetok.text.tokenizer import Tokenizer

_LOGITS_BYTES = 16 << 20  # of a step's logits: a large vocabulary must not fill the memory


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Score:
    """The log-probabilities of a given text.

    Attributes:
        tokens: the text's tokens; the log-probability is None for a first token that nothing
            precedes.
        logprob: sum of the tokens' log-probabilities.
        scored: how many tokens have one.
    """

    tokens: tuple[Token, ...]
    logprob: float
    scored: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; infinite where it is beyond float64."""
        mean = -self.logprob / self.scored
        return math.exp(mean) if mean < 700 else math.inf

    def __repr__(self) -> str:
        return (
            f"Score(logprob={self.logprob:.4f}, perplexity={self.perplexity:.4g}, "
            f"scored={self.scored})"
        )


def score(
    backend: Backend,
    tokenizer: Tokenizer,
    before: Sequence[int],
    tokens: Sequence[int],
    *,
    top: int,
    context_tokens: int,
) -> Score:
    """Compute the log-probability of each token after those before it.

    Args:
        backend: computes; other threads' steps may come between.
        tokenizer: spells the tokens.
        before: tokens that are given, not scored.
        tokens: to be scored.
        top: most likely tokens to give at each position, 0 for none.
        context_tokens: the most tokens, both together.

    Raises:
        ArtefactError: the logits are not numbers.
        ContextError: the tokens do not fit.
        OptionError: there is nothing to score.
    """
    ids = np.asarray([*before, *tokens], np.int32)
    first = max(len(before), 1)  # nothing precedes the first token of all
    if len(ids) <= first:
        raise OptionError("the text has no token to score; give one after its first, or a prompt")
    if len(ids) > context_tokens:
        larger = or_larger(context_tokens, backend.context_tokens, "give a larger context")
        raise ContextError(
            f"the text has {len(ids):,} tokens, the context holds {context_tokens:,}; shorten it"
            f"{larger}"
        )
    cache = backend.new_cache(len(ids))
    most = max(1, _LOGITS_BYTES // (4 * backend.vocab_size))
    rated: list[tuple[float, tuple[tuple[int, float], ...]] | None] = [None] * len(ids)
    start = 0
    while start < len(ids) - 1:
        # Row i predicts token i + 1; rows before first - 1 are read without logits.
        reading = start < first - 1
        end = first - 1 if reading else min(start + most, len(ids) - 1)
        logits = backend.forward(cache, ids[start:end], all_logits=not reading)
        for row in () if reading else range(end - start):
            place = start + row + 1
            bad = np.flatnonzero(~np.isfinite(logits[row]))
            if bad.size:
                raise not_finite(float(logits[row, bad[0]]), int(bad[0]))
            rated[place] = logprobs(logits[row], int(ids[place]), top)
        start = end
    stream = tokenizer.stream(before)
    made = []
    for place in range(len(before), len(ids)):
        text = stream.push(int(ids[place]))
        if place == len(ids) - 1:
            text += stream.finish()
        found = rated[place]
        made.append(
            Token(id=int(ids[place]), text=text)
            if found is None
            else Token(id=int(ids[place]), text=text, logprob=found[0], top_logprobs=found[1])
        )
    known = [token.logprob for token in made if token.logprob is not None]
    return Score(tokens=tuple(made), logprob=math.fsum(known), scored=len(known))


def split_at_prompt(
    tokenizer: Tokenizer, prompt: str | list[int], text: str | list[int]
) -> tuple[list[int], list[int]]:
    """Return the tokens that are given and those that are scored.

    Two texts are tokenised as one, so that the tokens are those of the whole text; a token across
    their border is scored.

    Raises:
        OptionError: a text cannot be tokenised.
    """
    if not isinstance(prompt, str):
        return prompt, _plain(tokenizer, text)
    if not isinstance(text, str):
        return tokenizer.encode(prompt), text
    whole = _plain(tokenizer, prompt + text)
    every = tokenizer.encode(prompt + text)
    # What the tokenizer adds before a text counts as given, what it adds after it is left out.
    places = range(len(every) - len(whole) + 1)
    head = next((i for i in places if every[i : i + len(whole)] == whole), 0)
    given = _plain(tokenizer, prompt)
    most = min(len(given), len(whole))
    same = next((i for i in range(most) if given[i] != whole[i]), most)
    return every[:head] + whole[:same], whole[same:]


def _plain(tokenizer: Tokenizer, text: str | list[int]) -> list[int]:
    return tokenizer.encode(text, special=False) if isinstance(text, str) else text
