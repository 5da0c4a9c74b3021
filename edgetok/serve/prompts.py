"""Inputs of the engine made from a request: tokens, grammars, readers, sizes of caches."""

from __future__ import annotations

from dataclasses import dataclass

from edgetok.answer import places_to_return
from edgetok.dialect.request import ChatRequest, Plan
from edgetok.engine.cached_tokens import NOWHERE, ReturnPoints, or_larger
from edgetok.errors import ContextError, OptionError
from edgetok.model import Model
from edgetok.sampling.options import SamplingOptions
from edgetok.serve.request import Prompt, Request

_SIZES = 256  # tokens that the sizes of caches are rounded up to


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request's answers before any of them has begun.

    Attributes:
        prompts: token ids, of which each has the same number of answers.
        places: of each prompt; see `Engine.sequence`.
        plans: what holds and reads each answer; None for one that is plain text.
        options: of sampling.
        nbytes: that all caches need at most.
    """

    prompts: list[list[int]]
    places: list[ReturnPoints]
    plans: list[Plan | None]
    options: SamplingOptions
    nbytes: int


def prepare(model: Model, request: Request) -> Prepared:
    """Prepare a request's answers. May take seconds: for a thread of its own.

    Raises:
        ContextError: a prompt does not fit.
        GrammarError: a schema or a tool's parameters cannot be held.
        OptionError: an option is out of range, a prompt is empty or has an unknown token.
        TemplateError: the template refuses the messages.
    """
    options = model.sampling.with_changes(dict(request.sampling))
    prompts = [prompt_tokens(model, prompt) for prompt in request.prompts]
    places = [NOWHERE] * len(prompts)
    plans: list[Plan | None] = [None] * (len(prompts) * request.answers)
    if request.messages:
        chat = ChatRequest(
            messages=request.messages,
            tools=request.tools,
            tool_choice=request.tool_choice,
            parallel_calls=request.parallel_calls,
            effort=request.effort,
            reasoning_tokens=request.reasoning_tokens,
            grammar=request.grammar,
            variables=request.variables,
        )
        text = model.speaker.prompt(chat) + request.begun
        prompts.append(model.speaker.encode(text))
        places.append(places_to_return(model.engine, model.speaker, chat, prompts[-1]))
        plans += [
            model.speaker.plan(text, chat, model.engine.vocabulary) for _ in range(request.answers)
        ]
    for tokens in prompts:
        if not tokens:
            raise OptionError("the prompt is empty, expected at least one token")
        if model.engine.limits is None and len(tokens) > model.context_tokens:
            context = model.context_tokens
            advice = "start the server with a larger --context"
            larger = or_larger(context, model.backend.context_tokens, advice)
            raise ContextError(
                f"the prompt has {len(tokens):,} tokens, the context holds {context:,}; shorten it"
                f"{larger}; a server with --kv-budget evicts what is old"
            )
    sizes = [_cache_bytes(model, len(prompt), options) for prompt in prompts]
    return Prepared(prompts, places, plans, options, sum(sizes) * request.answers)


def prompt_tokens(model: Model, prompt: Prompt) -> list[int]:
    """Return the tokens of a text; those that were given are checked.

    Raises:
        OptionError: a token is not in the vocabulary.
    """
    if not isinstance(prompt, str):
        for token in prompt:
            if not 0 <= token < model.tokenizer.vocab_size:
                raise OptionError(
                    f"token {token} in the prompt, expected 0 to {model.tokenizer.vocab_size - 1}"
                )
        return list(prompt)
    tokens = model.tokenize(prompt)
    if not tokens and model.tokenizer.bos_token is not None:
        return [model.tokenizer.bos_token]
    return tokens


def _cache_bytes(model: Model, tokens: int, options: SamplingOptions) -> int:
    """Most bytes of the cache that an answer gets."""
    engine = model.engine
    capacity = engine.capacity_tokens(tokens, options.max_tokens)
    if engine.limits is None:
        capacity = min(engine.context_tokens, -(-capacity // _SIZES) * _SIZES)
    return engine.cache_bytes(capacity)
