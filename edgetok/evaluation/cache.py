"""Recall and perplexity of bounded caches: every policy at every size, beside the full cache.

A context is read in the order and chunks of a conversation and never exceeds the cache's bytes.
Then each question is asked from the same state and answered greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgetok.cache.limits import CacheLimits
from edgetok.cache.protocol import KVCache
from edgetok.errors import OptionError
from edgetok.evaluation.cache_contexts import TASKS, Context, Question, contexts
from edgetok.evaluation.perplexity import perplexity_of, running_losses
from edgetok.evaluation.recall import score
from edgetok.runtime.backend import Backend
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer

FULL = "full"
_ANSWER_TOKENS = 24


@dataclass(slots=True)
class Score:
    """The result of one policy at one size.

    Attributes:
        policy: its name; "full" evicts nothing.
        share: bytes as a share of those of a cache that holds the whole context.
        slots: slots of each head, in those bytes; 0 where not even the fewest fit.
        nbytes: bytes of the cache; with "full", of one that just holds the context.
        right: answers that were right, by task.
        asked: questions, by task.
        places: (place in the context, right) of every question.
        perplexity: perplexity of running text; None where none was given.
    """

    policy: str
    share: float
    slots: int
    nbytes: int = 0
    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    places: list[tuple[float, bool]] = field(default_factory=list)
    perplexity: float | None = None

    @property
    def recall(self) -> float | None:
        """Mean over tasks of the share of right answers; None where nothing was asked."""
        if not self.asked:
            return None
        return float(np.mean([self.right[task] / self.asked[task] for task in self.asked]))


class CacheEvaluation:
    """Measures caches of one model."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        eos_tokens: frozenset[int],
    ) -> None:
        """Prepare; nothing is computed yet."""
        self._backend, self._tokenizer = backend, tokenizer
        self._template, self._eos = template, eos_tokens

    def prepared(
        self, tasks: Sequence[str] = TASKS, tokens: int = 1024, count: int = 10
    ) -> list[Context]:
        """Contexts of about `tokens` tokens, without what the template adds.

        Raises:
            OptionError: with the template, a question and its answer, one is longer than the model
                was trained for, so that no full cache can be compared with.
        """
        made = list(contexts(tasks, tokens, count, lambda text: len(self._encode(text))))
        lengths = (len(self._render(case, ask)) for case in made for ask in case.questions)
        longest, most = max(lengths) + _ANSWER_TOKENS, self._backend.context_tokens
        if longest > most:
            raise OptionError(
                f"contexts of {tokens:,} tokens take {longest:,} with template and answer, "
                f"expected at most {most:,}; give fewer --tokens"
            )
        return made

    def measure(
        self,
        cases: Iterable[Context],
        policy: str,
        share: float,
        tokens: int,
        running: npt.NDArray[np.int32] | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Score:
        """Measure one policy at one size.

        Policies are given equal bytes: what they keep of queries is paid for with slots.

        Args:
            cases: from `prepared`.
            policy: a name, or "full".
            share: share of the full cache's bytes.
            tokens: that the full cache holds.
            running: text whose perplexity is measured in the same cache.
            progress: called after each context.
        """
        full_bytes = self._backend.new_cache(tokens).nbytes
        if policy == FULL:
            cache = self._backend.new_cache(self._backend.context_tokens)
            result = Score(policy, share, tokens, full_bytes)
        else:
            limits = CacheLimits(policy=policy, budget_bytes=int(share * full_bytes))
            try:
                cache = self._backend.new_bounded_cache(tokens, limits)
            except OptionError:
                return Score(policy, share, 0)
            result = Score(policy, share, cache.slots, cache.nbytes)
        for case in cases:
            for question, answer in self.answers(cache, case):
                right = score(answer, question.case(case.task))
                result.right[case.task] = result.right.get(case.task, 0) + right
                result.asked[case.task] = result.asked.get(case.task, 0) + 1
                result.places.append((question.place, right))
            if progress is not None:
                progress()
        if running is not None:
            cache.clear()
            result.perplexity = self.perplexity(cache, running)
        return result

    def answers(self, cache: KVCache, case: Context) -> Iterator[tuple[Question, str]]:
        """Read a context once, then answer each question from the same state."""
        asked = [self._render(case, question) for question in case.questions]
        shared = _common([*asked, self._render(case, None)])
        cache.clear()
        self._backend.forward(cache, np.array(asked[0][:shared], np.int32))
        state = cache.fork()
        for question, tokens in zip(case.questions, asked, strict=True):
            cache.adopt(state)
            yield question, self._answer(cache, tokens[shared:])

    def _answer(self, cache: KVCache, tokens: list[int]) -> str:
        logits = self._backend.forward(cache, np.array(tokens, np.int32))
        answer: list[int] = []
        while len(answer) < _ANSWER_TOKENS:
            token = int(logits.argmax())
            if token in self._eos:
                break
            answer.append(token)
            logits = self._backend.forward(cache, np.array([token], np.int32))
        return self._tokenizer.decode(answer)

    def perplexity(self, cache: KVCache, tokens: npt.NDArray[np.int32]) -> float:
        """exp of the mean of `running_losses`."""
        losses = running_losses(self._backend, cache, tokens)
        return perplexity_of((float(part.sum()) for part in losses), len(tokens) - 1)

    def _render(self, case: Context, question: Question | None) -> list[int]:
        return self._encode(self._template.render(case.prompt(question)))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False)


def _common(lists: Sequence[list[int]]) -> int:
    """Return the number of first tokens that all lists have in common."""
    same = 0
    for column in zip(*lists, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return same
