"""Bits of a conversion do not depend on the number of threads."""

import numpy as np
import pytest
import torch

from edgetok.converter import self_generated_text, workers
from edgetok.converter.allocate import sensitivity_of_ends
from edgetok.converter.calibrate import calls, compare
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.quantise import gptq, trainable_matrix
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.round_to_nearest import quantise
from edgetok.converter.quantise.trainable_matrix import LearnedMatrix, learn
from tests.converter.test_convert import SMALL, digest


@pytest.fixture
def small_pieces(monkeypatch):
    """Work of a tiny model is cut into several pieces, too."""
    monkeypatch.setattr(workers, "MOST_ROWS", 16)
    monkeypatch.setattr(gptq, "_STRIPE_INPUTS", 32)
    monkeypatch.setattr(rtn, "_CHUNK_WEIGHTS", 1024)
    monkeypatch.setattr(calls, "_BATCH_TOKENS", 64)
    monkeypatch.setattr(compare, "_TOKENS", 16)
    monkeypatch.setattr(sensitivity_of_ends, "_TOKENS", 16)
    monkeypatch.setattr(self_generated_text, "_LEAST_ROWS", 2)
    monkeypatch.setattr(self_generated_text, "useful", lambda _, threads: threads)


@pytest.mark.parametrize(
    ("method", "bits", "refine"), [("auto", 3, 12), ("auto", 4, None), ("awq", 4, None)]
)
def test_a_conversion_gives_the_same_bytes(method, bits, refine, llama, tmp_path, small_pieces):
    options = ConvertOptions(bits=bits, method=method, refine=refine, measure_cache=False, **SMALL)
    reports = []
    for threads in (1, 3):
        out = tmp_path / str(threads)
        reports.append(convert(str(llama), out, options, threads=threads))
        assert digest(out) == digest(tmp_path / "1")
        assert reports[-1].layers == reports[0].layers
        assert reports[-1].agreement == reports[0].agreement
        assert reports[-1].cache_reason == "not asked for"


def test_training_takes_the_same_steps(monkeypatch):
    monkeypatch.setattr(trainable_matrix, "LANES", 3)
    rng = np.random.default_rng(0)
    stored = quantise(rng.standard_normal((8, 64)).astype(np.float32), 2, 32)
    x = torch.from_numpy(rng.standard_normal((24, 5, 64)).astype(np.float32))
    wanted = torch.from_numpy(rng.standard_normal((24, 5, 8)).astype(np.float32))
    found, lanes = [], set()
    for threads in (1, 3):
        matrix = LearnedMatrix(stored, codes=True)

        def loss(chosen, lane, matrix=matrix):
            lanes.add(lane)
            return (x[chosen] @ matrix.weight().T - wanted[chosen]).square().mean()

        learn([matrix], (), loss, torch.arange(24), steps=9, batch=8, advance=list, threads=threads)
        found.append(matrix.learned())
    assert lanes == {0, 1, 2}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert float(one.abs().max()) > 0


def test_torch_is_given_back_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with workers.torch_in_one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "most"), [(0, 4), (1, 4), (9, 4), (12, 4), (577, 256)])
def test_pieces(rows, most):
    pieces = workers.pieces_of(rows, most)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(rows))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_results_are_in_order_and_errors_are_told():
    def fail():
        raise ValueError("no")

    assert workers.side_by_side(3, [lambda i=i: i for i in range(20)]) == list(range(20))
    with pytest.raises(ValueError, match="no"):
        workers.side_by_side(2, [lambda: 1, fail, lambda: 2])
