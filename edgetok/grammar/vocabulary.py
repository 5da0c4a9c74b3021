"""One model's tokens as llguidance sees them, made once for a model."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from edgetok.errors import GrammarError, MissingExtraError
from edgetok.grammar.constraint import GrammarConstraint
from edgetok.grammar.definition import Grammar
from edgetok.grammar.failures import guarded, readable
from edgetok.text.tokenizer import Tokenizer

MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
_START = "\x02"  # before a text, so that the tokenizer puts its space before this


class Vocabulary:
    """Turns grammars into constraints for one model. Safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, eos_tokens: Collection[int]) -> None:
        """Read the tokens; about a second for 150,000.

        Args:
            tokenizer: tokenizer of the model.
            eos_tokens: ids that end an answer.

        Raises:
            MissingExtraError: llguidance is not installed.
            GrammarError: the model has no end token, or its tokens have no text of their own.
        """
        guidance = _guidance()
        if not eos_tokens:
            raise GrammarError("this model has no end token, so an answer in a grammar cannot end")
        with guarded("the tokenizer cannot be used with a grammar"):
            self._tokens = guidance.LLTokenizer(
                _Spelling(tokenizer, min(eos_tokens)),
                n_vocab=tokenizer.vocab_size,
                eos_token=sorted(eos_tokens),
                slices=guidance.LLTokenizer.json_slices(),
            )
        self._size = tokenizer.vocab_size
        self._eos = frozenset(eos_tokens)

    def constraint(self, grammar: Grammar) -> GrammarConstraint:
        """Return a constraint that holds one answer.

        Raises:
            GrammarError: the grammar is invalid, unsupported or too complex.
        """
        return self.compiled(grammar.kind, [json.loads(grammar.source)])

    def compiled(self, kind: str, grammars: list[dict[str, Any]]) -> GrammarConstraint:
        """Return a constraint for llguidance's own description.

        Args:
            kind: for messages.
            grammars: the first one is the answer's; it may refer to the others by @name.

        Raises:
            GrammarError: as `constraint`.
        """
        guidance = _guidance()
        with guarded(f"the {kind} cannot be compiled"):
            limits = guidance.LLParserLimits(
                max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
            )
            source = json.dumps({"grammars": grammars})
            matcher = guidance.LLMatcher(self._tokens, source, log_level=0, limits=limits)
            problem = matcher.get_error()
        if problem:
            raise GrammarError(f"the {kind} cannot be used: {readable(problem)}")
        return GrammarConstraint(matcher, self._size, self._eos)


class _Spelling:
    """The tokenizer in the shape that `LLTokenizer` asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token: int) -> None:
        pieces = tokenizer.pieces()
        if pieces is None:
            raise GrammarError("this model's tokens have no text of their own; grammars need that")
        self.eos_token_id = eos_token
        self.special_token_ids = sorted(tokenizer.special_tokens)
        self.tokens = pieces
        self._plain = tokenizer.plain_encoder()
        special = tokenizer.special_tokens
        self._ids = {p: i for i, p in enumerate(pieces) if p and i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """Return tokens that spell a text exactly: the tokenizer's own where they do."""
        wanted = text.encode() if isinstance(text, str) else text
        plain = wanted.decode("utf-8", "replace")
        for before in ("", _START):
            ids = self._plain(before + plain)
            for start in range(min(len(ids), 3) + 1):
                if b"".join(self.tokens[i] for i in ids[start:]) == wanted:
                    return ids[start:]
        return self._greedy(wanted)

    def _greedy(self, wanted: bytes) -> list[int]:
        """Spell bytes by the longest token each."""
        ids, place = list[int](), 0
        while place < len(wanted):
            for size in range(min(self._longest, len(wanted) - place), 0, -1):
                token = self._ids.get(wanted[place : place + size])
                if token is not None:
                    ids.append(token)
                    place += size
                    break
            else:
                return ids  # a byte without a token: llguidance looks at what the tokens spell
        return ids


def _guidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "structured output needs llguidance: pip install 'edgetok[grammar]'"
        ) from error
    return llguidance
