"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import click

from edgetok.cli.streams import unescape
from edgetok.cli.terminal.compiling import Compiling
from edgetok.errors import MissingExtraError
from edgetok.quantities import parse_tokens

if TYPE_CHECKING:
    from edgetok.engine.result import Result
    from edgetok.library.folder import Entry
    from edgetok.model import Model

F = TypeVar("F", bound=Callable[..., Any])


def bundled() -> Path:
    """Return the folder of the bundled model, which commands use where MODEL is left out."""
    from edgetok.models.bundled import bundled_model

    return bundled_model()


class PathType(click.Path):
    """A path. An empty text is refused: it would mean the current folder."""

    expected = "a path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path."""
        if value == "":
            self.fail(f"it is empty, expected {self.expected}", param, ctx)
        # A Path drops the "./" that tells a folder from a name of the hub.
        if isinstance(value, str) and value.startswith("./") and not os.path.exists(value):
            value = os.path.abspath(value)
        return super().convert(value, param, ctx)


class NameType(PathType):
    """A path or a name of a model, as it was typed; an empty text is refused."""

    expected = "a name or a path"

    def __init__(self) -> None:
        super().__init__(path_type=str)


PATH = PathType(path_type=Path)
NAME = NameType()
MODEL = click.argument("model", metavar="MODEL", type=PATH)
SCHEMA = click.option(
    "--schema",
    "schema_file",
    metavar="FILE",
    type=PATH,
    help="File with a JSON schema that the answer must match.",
)
MODEL_OR_BUNDLED = click.argument("model", metavar="[MODEL]", type=PATH, default=bundled)
PROMPT = click.option(
    "-p",
    "--prompt",
    "option_prompt",
    metavar="TEXT",
    help="Same as PROMPT; needs no MODEL before it.",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


class Tokens(click.ParamType):  # type: ignore[type-arg]
    """A number of tokens, such as 4096 or 4k."""

    name = "tokens"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number.

        Raises:
            OptionError: it is not one.
        """
        if isinstance(value, int) or value == "0":  # whether none will do is the option's matter
            return int(value)
        return parse_tokens(value)


TOKENS = Tokens()
_SPELLINGS: dict[str, dict[str, Any]] = {
    "verbose": {"short": "-v"},
    "isa": {"hidden": True},
    "kernels": {"metavar": "FOLDER"},
    "pace": {"metavar": "TOKENS_PER_S"},
    "max_wait": {"metavar": "SECONDS"},
    "context": {"type": TOKENS, "metavar": "TOKENS"},
    "max_tokens": {"type": TOKENS, "metavar": "TOKENS"},
}


# They mean nothing to commands that read texts and write none: nothing is evicted, kept or guessed.
ONLY_WRITING = ("kv_budget", "kv_policy", "prefix_cache", "speculate", "pace", "max_wait", "draft")


def run_options(function: F) -> F:
    """Add a flag for each field of `RunOptions`."""
    return run_options_but()(function)


def run_options_but(*without: str) -> Callable[[F], F]:
    """Return a decorator that adds a flag for each field of `RunOptions` but some."""
    from edgetok.runtime.options import RunOptions

    names = [field.name for field in dataclasses.fields(RunOptions)]
    return options_of(RunOptions, *(name for name in names if name not in without))


def sampling_options(function: F) -> F:
    """Add a flag for each field of `SamplingOptions`; a flag not given is None, or () for texts.

    The defaults are those that the checkpoint recommends, so the help does not show any.
    """
    from edgetok.sampling.options import SamplingOptions

    return options_of(SamplingOptions, defaults=False)(function)


def options_of(kind: type, *names: str, defaults: bool = True, **changes: Any) -> Callable[[F], F]:
    """Return a decorator that adds flags made from a dataclass's fields.

    Args:
        kind: a dataclass whose annotations are `Annotated[type, help text]`; others are passed
            over.
        names: the fields; all of them if none is named.
        defaults: give and show the fields' defaults; else every flag's default is None.
        changes: further arguments of `click.option`, or None to take one away.
    """
    hints = get_type_hints(kind, include_extras=True)
    made = []
    for field in dataclasses.fields(kind):
        if get_origin(hints[field.name]) is not Annotated or (names and field.name not in names):
            continue
        default = field.default if defaults else None
        made.append(_option(field.name, hints[field.name], default, changes))

    def decorate(function: F) -> F:
        for option in reversed(made):
            function = option(function)
        return function

    return decorate


def _option(name: str, hint: Any, default: Any, changes: dict[str, Any]) -> Callable[[F], F]:
    spelling = dict(_SPELLINGS.get(name, {}))
    flags = [flag for flag in (spelling.pop("short", None),) if flag]
    given: dict[str, Any] = {"help": hint.__metadata__[0], **_kind(hint.__origin__), **spelling}
    flag = "--" + name.replace("_", "-")
    # What is on by default can be turned off; without a default, not given is neither.
    both = given.get("is_flag") and (default is True or default is None)
    flags.append(f"{flag}/--no-{flag[2:]}" if both else flag)
    if both and default is None:
        given["default"] = None
    if default is not None and "multiple" not in given:
        given["default"] = default
        given["show_default"] = default is True or not given.get("is_flag")
    given |= changes
    return click.option(*flags, **given)


def _kind(hint: Any) -> dict[str, Any]:
    """Return the arguments of `click.option` for values of a type."""
    inner = [item for item in get_args(hint) if item is not type(None)]
    if get_origin(hint) is Literal:
        return {"type": Choice(inner)}
    if get_origin(hint) is tuple:
        result = _kind(inner[0])
        return {"multiple": True} | result
    if get_origin(hint) in (Union, UnionType):
        if set(inner) == {int, str}:
            return {"type": str, "metavar": "SIZE"}
        return _kind(inner[0])
    if hint is bool:
        return {"is_flag": True}
    if hint is Path:
        return {"type": PATH}
    return {"type": hint}


class Choice(click.Choice):  # type: ignore[type-arg]
    """A choice among values that may be numbers; the command gets the value, not its text."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__([str(value) for value in values])
        self._values = {str(value): value for value in values}

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value that a text names."""
        return self._values[super().convert(str(value), param, ctx)]


def examples(*commands: str) -> str:
    """Return the end of a command's help: commands that work as they stand."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


@contextlib.contextmanager
def needs_extra(doing: str, extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into advice to install an extra.

    Raises:
        MissingExtraError: a third-party package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "edgetok":
            raise
        raise MissingExtraError(
            f"{doing} needs {error.name}: pip install 'edgetok[{extra}]'"
        ) from error


def model_folder(
    model: Path, *, quiet: bool = False, check: Callable[[Path], None] | None = None
) -> Path:
    """Return the artefact's folder of what a user calls a model, made if it has to be.

    Args:
        model: an artefact, a model folder, a GGUF file, a short name or a hub id.
        quiet: whether nothing is printed on stderr.
        check: refuses a checkpoint or GGUF file before it is converted.
    """
    if (model.expanduser() / "manifest.json").exists():
        return model.expanduser()
    from edgetok.cli.terminal.bars import Bars
    from edgetok.library import resolve

    with Bars(quiet=quiet) as bars:
        return resolve.model_folder(model, bars, bars.say, check)


def load_model(path: Path, options: Mapping[str, Any]) -> Model:
    """Load a model with the flags of `run_options`; its notes go to stderr."""
    from edgetok.model import Model
    from edgetok.runtime.options import RunOptions

    chosen = given_of(RunOptions, options)
    if "draft" in chosen:
        chosen["draft"] = model_folder(chosen["draft"])
    model = Model.load(model_folder(path), progress=Compiling(), **chosen)
    for note in model.notes:
        click.echo(note, err=True)
    return model


def entry_values(entry: Entry) -> dict[str, Any]:
    """Return an entry of the model folder as JSON values with stable keys."""
    return {
        "name": entry.name,
        "source": entry.source,
        "settings": entry.settings,
        "bytes": entry.nbytes,
        "bits_per_weight": entry.bits or None,
        "verdict": entry.verdict or None,
        "ready": entry.ready,
        "last_used": entry.used or None,
        "path": str(entry.artefact),
    }


def sampling_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of `sampling_options` that were given."""
    from edgetok.sampling.options import SamplingOptions

    changes = given_of(SamplingOptions, options)
    if "stop" in changes:
        changes["stop"] = tuple(unescape(stop) for stop in changes["stop"])
    return changes


def read_schema(path: Path | None) -> dict[str, Any] | None:
    """Return the content of the file that --schema names.

    Raises:
        GrammarError: it cannot be read, or is not a JSON object.
    """
    from edgetok.errors import GrammarError
    from edgetok.formats import strict_json

    return None if path is None else strict_json.read_object(path, error=GrammarError)


def warn_if_cut(result: Result) -> None:
    """Say on stderr that an answer does not match its schema because it was cut."""
    if not result.complete:
        click.echo(
            f"the answer was cut after {len(result.tokens)} tokens ({result.finish}) and does not "
            "match the schema; raise --max-tokens",
            err=True,
        )


def given_of(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that are fields of a dataclass and were given."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: options[name] for name in names if options.get(name) not in (None, ())}
