"""`edgetok eval --cache`: measure recall of bounded caches; print a table or JSON, draw a plot."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgetok.cache.limits import DEFAULT_POLICY
from edgetok.cache.policies.policy import POLICIES, policy
from edgetok.cli import streams
from edgetok.errors import MissingExtraError, OptionError, UnsupportedError
from edgetok.evaluation.cache import FULL, CacheEvaluation, Score
from edgetok.evaluation.cache_contexts import TASKS
from edgetok.model import Model

SHARES = (1.0, 0.6, 0.5, 0.25, 0.125)
_NONE = "-"
_TASK_NAMES = tuple(task.replace("_", " ") for task in TASKS)
_PLACES = 6


def measure_caches(model: Model, content: str | None, given: dict[str, Any], as_json: bool) -> None:
    """Measure every policy at every size and print it.

    Raises:
        MissingExtraError: a plot was asked for without matplotlib.
        OptionError: an option is out of range.
        UnsupportedError: the backend has no bounded caches.
    """
    if not model.backend.capabilities.evicts:
        raise UnsupportedError("--cache needs --device cpu")
    shares, tokens, cases = given["share"] or SHARES, given["tokens"], given["cases"]
    for share in shares:
        if not 0 < share <= 1:
            raise OptionError(f"--share is {share:g}, expected a number above 0 and at most 1")
    if not 256 <= tokens <= model.backend.context_tokens - 64 or cases < 1:
        raise OptionError(
            f"{cases} contexts of {tokens} tokens, expected at least 1 of 256 to "
            f"{model.backend.context_tokens - 64}"
        )
    policies = [policy(name).name for name in given["policy"] or POLICIES]
    if given["plot"] is not None:
        _pyplot()
    running = None
    if content is not None:
        ids = model.tokenize(content, special=False)[: given["max_tokens"]]
        running = np.array(ids, np.int32)
    evaluation = CacheEvaluation(model.backend, model.tokenizer, model.template, model.eos_tokens)
    contexts = evaluation.prepared(TASKS, tokens, cases)
    runs = [(FULL, 1.0), *((name, share) for share in shares for name in policies)]
    result = []
    with _progress(len(runs)) as step:
        for name, share in runs:
            result.append(evaluation.measure(contexts, name, share, tokens, running))
            step()
    if given["plot"] is not None:
        draw(result, given["plot"])
    if as_json:
        streams.print_json({"tokens": tokens, "caches": [_values(score) for score in result]})
        return
    asked = sum(result[0].asked.values())
    streams.print_columns(
        f"Right answers of {asked}, in per cent, asked after a context of {tokens:,} tokens",
        ("cache", "share", "slots", "kB", *_TASK_NAMES, "mean", "perplexity"),
        [
            (
                score.policy,
                f"{score.share:.1%}",
                *_row(score),
                "" if score.perplexity is None else f"{score.perplexity:.3f}",
            )
            for score in result
        ],
    )


def _row(score: Score) -> tuple[str, ...]:
    if score.recall is None:  # the queries that the policy keeps leave no room for slots
        return (_NONE,) * (len(TASKS) + 3)
    return (
        f"{score.slots:,}",
        f"{score.nbytes / 1e3:,.0f}",
        *(f"{100 * score.right[task] / score.asked[task]:.0f}" for task in TASKS),
        f"{100 * score.recall:.1f}",
    )


def by_place(score: Score) -> list[float | None]:
    """Return the share of right answers by the place of the answer in the context, first first."""
    parts: list[list[bool]] = [[] for _ in range(_PLACES)]
    for place, right in score.places:
        parts[min(_PLACES - 1, int(place * _PLACES))].append(right)
    return [sum(part) / len(part) if part else None for part in parts]


def _values(score: Score) -> dict[str, Any]:
    return {
        "policy": score.policy,
        "share": score.share,
        "slots": score.slots,
        "bytes": score.nbytes,
        "recall": score.recall,
        "tasks": {task: score.right[task] / score.asked[task] for task in score.asked},
        "by_place": by_place(score),
        "perplexity": score.perplexity,
    }


def draw(result: Sequence[Score], path: Path) -> None:
    """Draw recall over size for every policy, and over the place of the answer at a quarter.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: the file's ending does not name a picture format.
    """
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    full = next(score for score in result if score.policy == FULL)
    left.axhline(100 * (full.recall or 0), color="black", linestyle="--", label=FULL)
    quarter = min({score.share for score in result}, key=lambda share: abs(share - 0.25))
    for name in dict.fromkeys(score.policy for score in result if score.policy != FULL):
        mine = sorted((s for s in result if s.policy == name), key=lambda s: s.nbytes)
        mine = [s for s in mine if s.slots]
        width = 2.5 if name == DEFAULT_POLICY else 1.2
        sizes, rights = [s.nbytes / 1e3 for s in mine], [100 * (s.recall or 0) for s in mine]
        (line,) = left.plot(sizes, rights, "o-", lw=width, label=name)
        for score in mine:
            if score.share == quarter:
                values = [np.nan if x is None else 100 * x for x in by_place(score)]
                right.plot(
                    range(1, len(values) + 1), values, "o-", lw=width, color=line.get_color()
                )
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set(xlabel="kB of cache", ylabel="right answers, %", ylim=(0, 102))
    right.set(
        xlabel="place of the answer, sixths of the context",
        ylim=(0, 102),
        title=f"{100 * quarter:g} % of the full cache's bytes",
    )
    left.legend(fontsize=8)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise OptionError(f"{path}: cannot be drawn: {error}") from error
    finally:
        pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "--plot needs matplotlib: pip install matplotlib, or remove --plot"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yield a function that counts one run as done; show a bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=total, label="measuring", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
