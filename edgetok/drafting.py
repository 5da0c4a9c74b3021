"""Load a second, smaller model that drafts for a model (`edgetok.engine.draft_model`)."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable

from edgetok.engine.draft_model import DraftModel
from edgetok.environment import read_settings
from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.library.resolve import model_folder
from edgetok.runtime.backend import Backend
from edgetok.runtime.estimate import Estimate, estimate
from edgetok.runtime.options import RunOptions
from edgetok.runtime.select import load_backend
from edgetok.text.tokenizer import Tokenizer


def load_draft_model(
    path: str | os.PathLike[str],
    options: RunOptions,
    backend: Backend,
    tokenizer: Tokenizer,
    context_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> DraftModel:
    """Load a model that drafts for another one.

    Args:
        path: as for `Model.load`.
        options: of the other model.
        backend: of the other model.
        tokenizer: of the other model.
        context_tokens: the most tokens of prompt and answer together.
        progress: as for `Model.load`.

    Raises:
        ArtefactError: the folder is damaged.
        CheckpointError: there is no such model, or it cannot be read or downloaded.
        OptionError: the two models have different vocabularies.
        UnsupportedError: the other model's backend does not verify drafts.
    """
    if not backend.capabilities.same_bits:
        raise UnsupportedError(
            f"--draft needs the CPU backend, where drafts do not change answers; the model runs on "
            f"{backend.name}: give --device cpu, or leave --draft out"
        )
    artefact = open_artefact(model_folder(path))
    made: Backend | None = None
    try:
        made, _ = load_backend(artefact, draft_options(options), progress)
        small = Tokenizer.from_artefact(artefact, made.vocab_size, read_settings().cache_dir)
        _check_vocabularies(small, tokenizer, artefact.folder.name)
    except BaseException:
        _close(made, artefact)
        raise
    return DraftModel(
        made,
        context_tokens=min(context_tokens, made.context_tokens),
        vocab_size=backend.vocab_size,
        nbytes=artefact.weight_bytes + int(getattr(made, "buffer_bytes", 0)),
        close=functools.partial(_close, made, artefact),
    )


def draft_options(options: RunOptions) -> RunOptions:
    """Return the options that a draft model runs with: nothing of it is evicted."""
    return dataclasses.replace(options, draft=None, kv_budget=None, kv_policy="none")


def draft_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a draft model's weights, without loading it."""
    with open_artefact(model_folder(path)) as artefact:
        return artefact.weight_bytes


def with_draft(found: Estimate, options: RunOptions) -> Estimate:
    """Return an estimate of a model's memory with that of the draft model in the options.

    Raises:
        UnsupportedError: as `estimate`.
    """
    if options.draft is None:
        return found
    with open_artefact(model_folder(options.draft)) as artefact:
        small = estimate(artefact, draft_options(options))
    held = small.weights_bytes + small.cache_bytes + small.workspace_bytes
    return dataclasses.replace(found, draft_bytes=held)


def _check_vocabularies(small: Tokenizer, large: Tokenizer, name: str) -> None:
    """Refuse a draft model whose tokens are not those of the other one."""
    ours, theirs = large.vocabulary(), small.vocabulary()
    if ours == theirs:
        return
    text = min(dict(ours.items() ^ theirs.items()), key=lambda text: (ours.get(text, 0), text))
    raise OptionError(
        f"the draft model {name} has another vocabulary, {len(theirs):,} tokens beside "
        f"{len(ours):,}: {text!r:.40} is {_place(theirs, text)} there and {_place(ours, text)} "
        "here; use a smaller model of the same family"
    )


def _place(vocabulary: dict[str, int], text: str) -> str:
    return f"token {vocabulary[text]}" if text in vocabulary else "no token"


def _close(backend: Backend | None, artefact: Artefact) -> None:
    if backend is not None:
        backend.close()
    artefact.close()
