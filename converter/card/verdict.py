"""Verdict on a loss: one of four words for the measured figures.

Each figure is graded by itself, and the worst grade is the verdict, because each figure shows a
kind of damage that the others hide. Perplexity averages over the tokens of the text and can stay
equal while the rest of the distribution changes. KL compares the whole distribution. The most
likely token decides a greedy answer.

The limits lie between llama.cpp's formats as its own score board has them for Llama 3 8B (KL, same
most likely token): Q8_0 0.0014, 97.7 % and Q6_K 0.0055, 96.0 % are indistinguishable; Q5_K_M 0.011
and Q4_K_M 0.031, 91.9 % good; Q3_K_M 0.10 noticeable; Q2_K 0.33 to 0.45, 71.1 % broken.

Answers of a real small model agree with the words: docs/quantisation.md, "Do the words fit?".

Source: llama.cpp, tools/perplexity/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["indistinguishable", "good", "noticeable", "broken"]

GRADES: tuple[Grade, ...] = ("indistinguishable", "good", "noticeable", "broken")
MEANINGS: dict[Grade, str] = {
    "indistinguishable": "answers cannot be told from those of the original",
    "good": "answers are as good, but often worded differently; use it",
    "noticeable": "answers are visibly worse; use --fit, --method auto or more bits",
    "broken": "do not use this model; it needs more bits",
}
KL_LIMITS = (0.01, 0.05, 0.3)
PERPLEXITY_LIMITS = (1.01, 1.05, 1.3)
TOP1_LIMITS = (0.955, 0.90, 0.75)


@dataclass(frozen=True, slots=True)
class Grading:
    """One measured figure and what it means.

    Attributes:
        figure: name of the figure.
        value: as measured.
        limits: beyond the first it is no longer indistinguishable, beyond the second not good,
            beyond the third broken.
        grade: grade of this figure alone.
    """

    figure: str
    value: float
    limits: tuple[float, float, float]
    grade: Grade


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a converted model.

    Attributes:
        grade: the worst of all figures.
        gradings: each figure.
    """

    grade: Grade
    gradings: tuple[Grading, ...]

    @property
    def words(self) -> str:
        """Return the verdict, what it means and which figure it comes from."""
        worst = [g.figure for g in self.gradings if g.grade == self.grade]
        because = "" if self.grade == GRADES[0] else f" (by {', '.join(worst)})"
        return f"{self.grade}: {MEANINGS[self.grade]}{because}"


def judge(kl: float, perplexity_ratio: float, top1_agreement: float) -> Verdict:
    """Grade a converted model.

    Args:
        kl: mean divergence of the original from it, nats.
        perplexity_ratio: its perplexity over the original's.
        top1_agreement: share of positions where both have the same most likely token, 0..1.

    Returns:
        The verdict; a figure that is not a number is broken.
    """
    gradings = tuple(
        Grading(figure, value, limits, _grade(value, limits))
        for figure, value, limits in (
            ("KL", kl, KL_LIMITS),
            ("perplexity ratio", perplexity_ratio, PERPLEXITY_LIMITS),
            ("same most likely token", top1_agreement, TOP1_LIMITS),
        )
    )
    worst = max(gradings, key=lambda grading: GRADES.index(grading.grade))
    return Verdict(worst.grade, gradings)


def _grade(value: float, limits: tuple[float, float, float]) -> Grade:
    rising = limits[0] < limits[-1]
    for grade, limit in zip(GRADES, limits, strict=False):
        if value <= limit if rising else value >= limit:
            return grade
    return GRADES[-1]
