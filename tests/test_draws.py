"""An answer whose tokens the backend chooses itself, and when it is not asked to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetok.model import Model
from edgetok.runtime.backend import Part
from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler, candidates
from tests.fake import FakeBackend, fake_model


class ChoosingBackend(FakeBackend):
    """A backend that draws as it is asked to, and records how."""

    capabilities = replace(FakeBackend.capabilities, samples=True)

    def __init__(self, rule: Any) -> None:
        super().__init__(rule)
        self.draws: list[Draw] = []

    def step_sampled(self, parts: Sequence[Part], draws: Sequence[Draw]) -> list[int]:
        self.draws += draws
        result = []
        rows = self.step([replace(part, logits=1) for part in parts])
        for (logits,), draw in zip(rows, draws, strict=True):
            options = SamplingOptions(temperature=draw.temperature, top_k=draw.top_k)
            ids, probabilities = candidates(logits, options)
            place = np.searchsorted(np.cumsum(probabilities), draw.share, side="right")
            result.append(int(ids[place]))
        return result


def model_over(backend: FakeBackend, folder: Path) -> Model:
    return fake_model(folder, engine=backend)


def test_a_seed_gives_the_tokens_that_it_gives_on_the_host(tmp_path: Path) -> None:
    backend = ChoosingBackend(lambda tokens: 40 + len(tokens) % 5)
    model = model_over(backend, tmp_path)
    options: dict[str, Any] = {"max_tokens": 20, "seed": 2**64 - 1, "temperature": 9, "top_k": 40}
    result = model.generate([1, 2, 3], **options)
    shares = {draw.share for draw in backend.draws}
    assert len(shares) == len(backend.draws) == len(result.tokens)
    plain = model_over(FakeBackend(backend.rule), tmp_path)
    assert result.tokens == plain.generate([1, 2, 3], **options).tokens
    assert len(set(result.tokens)) > 5


def test_the_host_chooses_what_a_device_cannot(tmp_path: Path) -> None:
    backend = ChoosingBackend(lambda tokens: 41)
    model = model_over(backend, tmp_path)
    assert model.generate([1], max_tokens=2, repetition_penalty=1.2).tokens == (41, 41)
    assert not backend.draws


def test_sequences_of_both_kinds_share_steps(tmp_path: Path) -> None:
    """Some tokens are chosen by the backend, others by the host: all as alone."""
    backend = ChoosingBackend(lambda tokens: 40 + sum(tokens) % 5)
    options: list[Any] = [
        {"temperature": 3.0, "top_k": 20, "seed": i, "max_tokens": 12}
        | ({"repetition_penalty": 1.3} if i % 2 else {})
        for i in range(4)
    ]
    with fake_model(tmp_path, engine=backend) as model:
        alone = [model.generate([60 + i], **options[i]).tokens for i in range(4)]
        streams = [model.stream([60 + i], **options[i]) for i in range(4)]
        for stream in streams:
            stream.start()
        assert [stream.run().tokens for stream in streams] == alone
        assert max(len(step) for step in backend.computed) == 2  # of each kind


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({"temperature": 0.0, "top_k": 0}, True),
        ({"top_k": 64}, True),
        ({"top_k": 65}, False),
        ({"top_k": 0}, False),
        ({"presence_penalty": 0.5}, False),
        ({"frequency_penalty": 0.5}, False),
    ],
    ids=str,
)
def test_who_chooses(changes: dict[str, Any], device: bool) -> None:
    assert Sampler(SamplingOptions(**changes), 10).on_device == device
