"""The densest exercises in recall: about a third of the tokens has to be looked up.

Everything is drawn from the training side of the split in `edgetok.evaluation.recall`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import recall_wordings
import value_data
from recall_data import assignments, drawer

from edgetok.evaluation import recall
from edgetok.evaluation import recall_patterns as words

DIGITS = (18, 28)  # token ids of 0-9: the bytes of a byte-level vocabulary come first, in order


def random_copy(rng: random.Random, tokens: int, vocab_size: int) -> tuple[list[int], list[float]]:
    """Random tokens in which segments come back; only what can be copied has weight.

    The densest exercise for the circuit that all recall is built on: find the earlier occurrence
    of the current token and say what followed it.
    """
    ids: list[int] = []
    weights: list[float] = []
    longest = rng.choice((4, 8, 16, 48))
    segments: list[list[int]] = []
    while len(ids) < tokens:
        if segments and rng.random() < 0.6:
            again = rng.choice(segments)
            ids += again
            weights += [0.0] + [1.0] * (len(again) - 1)
        else:
            low, high = DIGITS if rng.random() < 0.25 else (259, vocab_size)
            new = [rng.randrange(low, high) for _ in range(rng.randint(2, longest))]
            segments.append(new)
            ids += new
            weights += [0.0] * len(new)
    return ids[:tokens], weights[:tokens]


def terse(
    rng: random.Random, tokens: int, encode: Callable[[str], list[int]]
) -> tuple[list[int], list[float]]:
    """Facts and questions back to back, without dialogue around them; only values are weighted.

    About a third of the tokens has to be looked up, against a tenth in a dialogue.
    """
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float) -> None:
        new = encode(text)
        ids.extend(new)
        weights.extend([weight] * len(new))

    while len(ids) < tokens:
        left = tokens - len(ids)
        kind = rng.random()
        if kind < 0.3:
            most = max(3, min(12, left // 16))
            lines, worth = assignments(rng, rng.randint(2, most))
            add("\n".join(lines) + "\n", 0.0)
            for k in rng.sample(list(worth), len(worth)):
                add(rng.choice(words.ASK_VARIABLE).format(s=k) + f"\n{k} is", 0.0)
                add(f" {worth[k]}", 1.0)
                add(".\n", 0.0)
        elif kind < 0.55:
            most = max(2, min(16, left // 24))
            worth = recall.key_value_lines(rng, rng.randint(1, most), False, drawer(rng))
            lead = rng.choice(("- ", "", "The value of "))
            link = ":" if lead != "The value of " else " is"
            for k, v in worth.items():
                add(f"{lead}{k}{link} {v}\n", 0.0)
            for k in rng.sample(list(worth), len(worth)):
                add(f"{lead}{k}{link}", 0.0)
                add(f" {worth[k]}", 1.0)
                add("\n", 0.0)
        else:
            invented = rng.choice((0.3, 1.0))
            known: dict[str, recall.Fact] = {}
            kinds = rng.sample(list(words.PATTERNS), rng.choice((1, 3)))
            change = rng.choice((0.0, 0.5))
            reworded, value_first = rng.choice((0.0, 0.7)), rng.choice((0.0, 0.5, 1.0))
            for _ in range(rng.randint(1, max(2, min(12, left // 30)))):
                changed = bool(known) and rng.random() < change
                slot = rng.choice(list(known)) if changed else ""
                pattern = slot.split("|")[0] or rng.choice(kinds)
                p = words.PATTERNS[pattern]
                subject = slot.partition("|")[2] or value_data.subject(rng, pattern, p.subjects)
                told = [f.value for f in known.values()]
                other = ""
                if rng.random() < 0.5 or subject not in p.subjects:
                    other = value_data.draw(rng, p.value.format(s=subject), subject, told)
                fact = recall.make_fact(
                    rng,
                    pattern,
                    subject=subject,
                    value=other,
                    changed=changed,
                    invented=rng.random() < invented,
                )
                if rng.random() < reworded:
                    first = rng.random() < value_first
                    fact = recall_wordings.retold(rng, fact, changed, value_first=first)
                if (changed or fact.slot not in known) and fact.value not in told:
                    known[fact.slot] = fact
                    add(fact.tell + "\n", 0.0)
            for slot in rng.sample(list(known), len(known)):
                before, _, after = known[slot].answer.partition(" " + known[slot].value)
                add(f"{recall_wordings.question(rng, *slot.split('|'))}\n{before}", 0.0)
                add(f" {known[slot].value}", 1.0)
                add(f"{after}\n", 0.0)
        add("<|endoftext|>", 0.0)
    return ids[:tokens], weights[:tokens]
