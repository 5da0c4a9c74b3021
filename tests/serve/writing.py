"""A rule for fake models: they write a given text."""

from __future__ import annotations

from collections.abc import Callable


def written(text: str) -> Callable[[list[int]], int]:
    """A rule that writes a text after the last marker of the template, then ends."""
    from tokenizers import pre_tokenizers

    places = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = [places[c] for c in spell.pre_tokenize_str(text)[0][0]]
    marker = [256, *(places[c] for c in "assistantĊ")]

    def rule(tokens: list[int]) -> int:
        for start in range(len(tokens) - len(marker), -1, -1):
            if tokens[start : start + len(marker)] == marker:
                done = len(tokens) - start - len(marker)
                return ids[done] if done < len(ids) else 257
        return 257

    return rule
