"""The public names, pinned, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgetok

PUBLIC = """ArtefactError BusyError Chat ChatAnswer ChatResult CheckpointError ContextError
EdgetokError Estimate Generation Grammar GrammarError MissingExtraError Model
OptionError OutputError Result SamplingOptions Score SessionError ShapeError Stats
TemplateError Token Tool ToolCall UnsupportedError UserError __version__ load"""


def test_public_names() -> None:
    assert edgetok.__all__ == PUBLIC.split()
    assert dir(edgetok) == sorted(PUBLIC.split())
    for name in edgetok.__all__:
        assert getattr(edgetok, name) is not None
    assert edgetok.load == edgetok.Model.load


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgetok.nothing


def test_import_is_light() -> None:
    heavy = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "numba", "jinja2", "rich")
    code = f"import sys, edgetok; print([n for n in {heavy!r} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_command_line_is_light() -> None:
    heavy = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "numba", "jinja2", "rich")
    code = (
        "import sys\nfrom edgetok.cli.main import run\nrun(['--help'])\n"
        f"print([n for n in {heavy!r} if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", ["chat", "convert", "bench", "verify", "eval"])
def test_help_is_light(command: str) -> None:
    heavy = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "numba", "jinja2", "rich")
    code = (
        f"import sys\nfrom edgetok.cli.main import run\nrun([{command!r}, '--help'])\n"
        f"print([n for n in {heavy!r} if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("[]")


def test_loading_needs_neither_torch_nor_numba() -> None:
    code = (
        "import sys, edgetok.model, edgetok.chat, edgetok.cli.commands.chat, edgetok.cli.repl\n"
        "print([n for n in ('torch', 'transformers', 'numba', 'rich') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
