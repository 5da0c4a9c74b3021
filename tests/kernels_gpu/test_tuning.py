"""Tile sizes that were measured are kept for a GPU, and can do no harm."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

from edgetok.errors import OutputError
from edgetok.kernels_gpu import tuning

LINEAR = SimpleNamespace(bits=4, group_words=4, N=512, K=2048, words=256, levels=None)


@pytest.fixture
def chosen(monkeypatch):
    """An empty table, and a way to another process: nothing in memory."""
    monkeypatch.setattr(tuning, "_chosen", {})
    return lambda: monkeypatch.setattr(tuning, "_chosen", {})


def test_the_fastest_is_kept_for_the_next_process(tmp_path, chosen):
    fast = tuning.ROW_CANDIDATES[5]
    best, time_ms = tuning.tune(LINEAR, 1, lambda config: 1.0 if config == fast else 2.0)
    assert (best, time_ms) == (fast, 1.0)
    tile = tuning.TILE_CANDIDATES[3]
    tuning.tune(LINEAR, 1024, lambda config: 1.0 if config == tile else float("inf"))
    path = tuning.table(tmp_path, "NVIDIA H100 80GB/../x")
    assert path.parent == tmp_path / "gpu"
    tuning.write(path)
    chosen()
    assert tuning.row_config(LINEAR, True) == tuning.ROW_CANDIDATES[0]
    assert tuning.read(path) == 2
    assert tuning.row_config(LINEAR, True) == fast
    assert tuning.tile_config(LINEAR, 500, True) == tile
    assert tuning.tile_config(LINEAR, 8, True) == tuning.SMALL_TILE_CANDIDATES[0]  # not measured


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"KEY": 99}', '{"KEY": -1}', '{"KEY": "1"}', '{"KEY": true}'],
)
def test_damaged_tables_are_passed_over(tmp_path, chosen, text):
    path = tmp_path / "table.json"
    path.write_text(text.replace("KEY", tuning.key(LINEAR, 1)))
    tuning.read(path)
    assert tuning.row_config(LINEAR, True) == tuning.ROW_CANDIDATES[0]
    path.write_text(json.dumps({str(i): 0 for i in range(200_000)}))
    assert tuning.read(path) == 0
    assert tuning.read(tmp_path / "none") == 0


def test_a_table_that_cannot_be_kept_is_one_line(tmp_path, chosen):
    (tmp_path / "gpu").write_text("a file")
    with pytest.raises(OutputError, match="cannot keep tile sizes"):
        tuning.write(tuning.table(tmp_path, "card"))
