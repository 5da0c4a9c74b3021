"""Measure recall: ask a model for facts mentioned earlier in a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from edgetok.engine.cached_tokens import CachedTokens
from edgetok.errors import ContextError, OptionError
from edgetok.evaluation.recall import DISTANCES, TASKS, recall_cases, score
from edgetok.model import Model

_ANSWER_TOKENS = 32


def measure_recall(
    model: Model, cases: int, distances: Sequence[int] = (), tasks: Sequence[str] = TASKS
) -> dict[str, dict[str, float]]:
    """Return the share of right greedy answers by task and distance in tokens.

    Distances that do not fit into the context are left out.

    Raises:
        OptionError: no case fits into the context.
        TemplateError: the model has no chat template.
    """
    options = model.sampling.with_changes({"temperature": 0.0, "max_tokens": _ANSWER_TOKENS})
    wanted = tuple(distances) or DISTANCES
    if any(distance < 1 for distance in wanted) or cases < 1:
        raise OptionError(f"{cases} cases at distances {list(wanted)}: expected at least 1 each")
    right: dict[tuple[str, int], list[bool]] = {}
    context = CachedTokens(model.backend, model.context_tokens)

    def count(text: str) -> int:
        return len(model.tokenize(text, special=False))

    for case in recall_cases(tasks, wanted, cases, count_tokens=count):
        prompt = model.tokenize(model.template.render(case.messages), special=False)
        if len(prompt) + _ANSWER_TOKENS > model.context_tokens:
            continue
        answer = model.engine.answer(context, prompt, options).run()
        right.setdefault((case.task, case.distance), []).append(score(answer.text, case))
    if not right:
        raise ContextError(
            f"no case fits into a context of {model.context_tokens:,} tokens; give a smaller "
            "--distance or a larger --context"
        )
    shares: dict[str, dict[str, float]] = {}
    for (task, distance), answers in right.items():
        shares.setdefault(task, {})[str(distance)] = sum(answers) / len(answers)
    return shares
