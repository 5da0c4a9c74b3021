"""Which backend runs what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetok.errors import OptionError, UnsupportedError
from edgetok.machine import physical_cores
from edgetok.runtime.options import RunOptions
from edgetok.runtime.select import choose


def artefact(exporter: str, both_sides: bool = False) -> Any:
    return SimpleNamespace(
        spec=None if exporter == "optimum" else SimpleNamespace(both_sides=both_sides),
        folder=Path("/x/gpt2-4bit"),
        manifest=SimpleNamespace(exporter=exporter),
    )


def test_tokens_that_see_both_sides_need_the_cpu() -> None:
    assert choose(artefact("edgetok", both_sides=True), "auto") == ("cpu", None)
    with pytest.raises(UnsupportedError):
        choose(artefact("edgetok", both_sides=True), "onnxruntime")


def test_auto() -> None:
    assert choose(artefact("edgetok"), "auto") == ("cpu", None)
    device, note = choose(artefact("optimum"), "auto")
    assert device == "onnxruntime"
    assert note is not None
    assert "gpt2-4bit: a graph exported by optimum" in note
    assert "\n" not in note


def test_explicit() -> None:
    assert choose(artefact("edgetok"), "onnxruntime") == ("onnxruntime", None)
    assert choose(artefact("optimum"), "onnxruntime") == ("onnxruntime", None)
    with pytest.raises(UnsupportedError, match="has no edgetok spec; run it with"):
        choose(artefact("optimum"), "cpu")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "npu"}, OptionError, "device is 'npu', expected one of 'auto', 'cpu'"),
        ({"compute": "int4"}, OptionError, "compute is 'int4'"),
        ({"kv_bits": 6}, OptionError, "kv_bits is 6"),
        ({"threads": 0}, OptionError, "threads is 0"),
        ({"threads": True}, OptionError, "threads is True"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RunOptions(**options)


def test_physical_cores() -> None:
    assert physical_cores() >= 1
