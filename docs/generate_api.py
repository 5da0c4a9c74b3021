"""Write docs/api.md from signatures and docstrings; `make docs` runs it, `make lint` compares.

The page has every public name of `edgetok`: functions and methods with arguments, results and
errors, and attributes. Methods that a class takes over from another class of edgetok are its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

import edgetok
from edgetok import errors
from edgetok.sampling.options import SamplingOptions

TARGET = Path(__file__).resolve().parent / "api.md"
HEAD = """<!-- Written by docs/generate_api.py from docstrings. -->

# Python API

    import edgetok

Arguments of another kind than these are an `OptionError`, too. Errors that edgetok raises on
purpose are one tree:

```text
{tree}
```

`**sampling` stands for the fields of [`SamplingOptions`](#samplingoptions), `**options` of `load`
and `estimate` for those of `edgetok.runtime.options.RunOptions`, which are the flags of
`edgetok chat` ([cli.md](cli.md)).
"""
# In the order in which a reader meets them.
ORDER = (
    "load",
    "Model",
    "Generation",
    "Result",
    "Stats",
    "Token",
    "Score",
    "Estimate",
    "Chat",
    "ChatAnswer",
    "ChatResult",
    "Tool",
    "ToolCall",
    "Grammar",
    "SamplingOptions",
)
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields|Source):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \w+)*): (.*)$")
_LABELS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Errors", "Returns": "Result"}


def page() -> str:
    """Return the text of docs/api.md.

    Raises:
        SystemExit: a public name is not on the page.
    """
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    parts = [HEAD.format(tree=inspect.cleandoc(tree))]
    for name in ORDER:
        value = getattr(edgetok, name)
        parts.append(f"## {name}\n")
        parts.append(_class(name, value) if inspect.isclass(value) else _function(name, value))
    others = [name for name in edgetok.__all__ if name not in ORDER]
    missing = [n for n in others if not n.endswith("Error") and n != "__version__"]
    if missing:
        raise SystemExit(f"docs/generate_api.py: {', '.join(missing)} are not on the page")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _class(name: str, kind: type) -> str:
    parts = [_text(inspect.getdoc(kind) or "")]
    if kind is SamplingOptions:
        parts.append(_fields(kind))
    for member in _members(kind):
        value = inspect.getattr_static(kind, member)
        if isinstance(value, property):
            hint = inspect.signature(value.fget).return_annotation if value.fget else ""
            parts.append(f"### {name}.{member}\n\n`{hint}`\n")
            parts.append(_text(inspect.getdoc(value) or ""))
        else:
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            parts.append(_function(f"{name}.{member}", function, heading="### "))
    return "\n".join(parts)


def _members(kind: type) -> list[str]:
    """Return the public methods and properties, in the order of the source."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("edgetok."):
            for member, value in vars(base).items():
                plain = inspect.isfunction(value) or isinstance(
                    value, (property, classmethod, staticmethod)
                )
                if plain and not member.startswith("_"):
                    found[member] = None
    return list(found)


def _fields(kind: Any) -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    hints = inspect.get_annotations(kind)
    for field in dataclasses.fields(kind):
        text = _help(kind, field.name) if "Annotated" in str(hints[field.name]) else ""
        rows.append(f"| `{field.name}` | `{field.default!r}` | {text} |")
    return "\n".join(rows) + "\n"


def _help(kind: Any, name: str) -> str:
    hint = get_type_hints(kind, include_extras=True)[name]
    return re.sub(r"\s+\[default: .*\]$", "", hint.__metadata__[0])


def _function(name: str, function: Any, heading: str = "") -> str:
    title = f"{heading}{name}\n\n" if heading else ""
    return f"{title}```python\n{_signature(name, function)}\n```\n\n" + _text(
        inspect.getdoc(function) or ""
    )


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    words = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        word = stars + parameter.name
        if not stars and parameter.annotation is not parameter.empty:
            word += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            word += f" = {parameter.default!r}"
        words.append(word)
    short = name.split(".")[-1]
    result = signature.return_annotation
    line = f"{short}({', '.join(words)}) -> {result}"
    if len(line) > 96:
        line = f"{short}(\n" + "".join(f"    {word},\n" for word in words) + f") -> {result}"
    return line


def _text(doc: str) -> str:
    """Turn a docstring into markdown: sections become lists."""
    lines: list[str] = []
    section = ""
    for line in doc.split("\n"):
        match = _SECTION.match(line)
        if match:
            section = match[1]
            lines += [f"{_LABELS.get(section, section)}:", ""]
            if match[2].strip():
                lines.append(match[2].strip())
            continue
        if not section or not line.strip():
            lines.append(line)
            section = section if line.startswith(" ") or not line else ""
            continue
        body = line[4:] if line.startswith("    ") else line
        entry = _ENTRY.match(body)
        if entry and section != "Returns":
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(f"  {body.strip()}" if section != "Returns" else body.strip())
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/api.md.")
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit with 1 if it differs"
    )
    if not parser.parse_args().check:
        TARGET.write_text(page())
    elif not TARGET.exists() or TARGET.read_text() != page():
        sys.exit("docs/api.md is out of date: run `make docs`")


if __name__ == "__main__":
    main()
