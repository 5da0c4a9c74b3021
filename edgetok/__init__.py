"""Run language models of 2 to 8 bits per weight on small machines.

import edgetok

model = edgetok.load()  # the bundled model; else a folder, a GGUF file, a hub id or a short name
for piece in model.stream("Once upon a time"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgetok.errors import (
    ArtefactError,
    BusyError,
    CheckpointError,
    ContextError,
    EdgetokError,
    GrammarError,
    MissingExtraError,
    OptionError,
    OutputError,
    SessionError,
    ShapeError,
    TemplateError,
    UnsupportedError,
    UserError,
)

if TYPE_CHECKING:
    from edgetok.answer import ChatAnswer, ChatResult
    from edgetok.chat import Chat
    from edgetok.dialect.tool import Tool, ToolCall
    from edgetok.engine.generation import Generation
    from edgetok.engine.result import Result, Stats, Token
    from edgetok.engine.score import Score
    from edgetok.grammar.definition import Grammar
    from edgetok.model import Model
    from edgetok.runtime.estimate import Estimate
    from edgetok.sampling.options import SamplingOptions

    load = Model.load
    __version__: str

__all__ = [
    "ArtefactError",
    "BusyError",
    "Chat",
    "ChatAnswer",
    "ChatResult",
    "CheckpointError",
    "ContextError",
    "EdgetokError",
    "Estimate",
    "Generation",
    "Grammar",
    "GrammarError",
    "MissingExtraError",
    "Model",
    "OptionError",
    "OutputError",
    "Result",
    "SamplingOptions",
    "Score",
    "SessionError",
    "ShapeError",
    "Stats",
    "TemplateError",
    "Token",
    "Tool",
    "ToolCall",
    "UnsupportedError",
    "UserError",
    "__version__",
    "load",
]

# Imported on first use: `import edgetok` alone loads neither NumPy nor a runtime.
_LAZY = {
    "Chat": "edgetok.chat",
    "ChatAnswer": "edgetok.answer",
    "ChatResult": "edgetok.answer",
    "Estimate": "edgetok.runtime.estimate",
    "Generation": "edgetok.engine.generation",
    "Grammar": "edgetok.grammar.definition",
    "Model": "edgetok.model",
    "Result": "edgetok.engine.result",
    "SamplingOptions": "edgetok.sampling.options",
    "Score": "edgetok.engine.score",
    "Stats": "edgetok.engine.result",
    "Token": "edgetok.engine.result",
    "Tool": "edgetok.dialect.tool",
    "ToolCall": "edgetok.dialect.tool",
}


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgetok.model import Model

        return Model.load
    if name == "__version__":
        from importlib.metadata import version

        return version("edgetok")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'edgetok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
