"""Options are declared once: flags, keywords and the chat's /set follow the declarations."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import click
import pytest

import edgetok
from edgetok.cache.policies.policy import POLICIES
from edgetok.cli.commands import bench, chat, convert, embed, eval, generate, rerank, verify
from edgetok.cli.main import run
from edgetok.cli.options import (
    ONLY_WRITING,
    given_of,
    sampling_changes,
)
from edgetok.cli.settings import parse_setting
from edgetok.converter.options import ConvertOptions
from edgetok.errors import OptionError
from edgetok.runtime.options import RunChanges, RunOptions
from edgetok.sampling.options import SamplingChanges, SamplingOptions


def names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("options", "keywords"), [(RunOptions, RunChanges), (SamplingOptions, SamplingChanges)]
)
def test_keywords_are_the_fields(options: Any, keywords: Any) -> None:
    """A type checker needs them written out; names, types and order are those of the fields."""
    assert list(get_type_hints(keywords).items()) == list(get_type_hints(options).items())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (chat.command, RunOptions),
        (chat.command, SamplingOptions),
        (generate.command, RunOptions),
        (generate.command, SamplingOptions),
        (eval.command, RunOptions),
    ],
)
def test_every_field_is_a_flag_with_its_help(command: click.Command, options: Any) -> None:
    flags = {p.name: p for p in command.params if isinstance(p, click.Option)}
    hints = get_type_hints(options, include_extras=True)
    for name in names(options):
        if (command, name) == (eval.command, "draft"):  # it measures one model
            assert name not in flags
            continue
        assert flags[name].help == hints[name].__metadata__[0]


@pytest.mark.parametrize("command", [embed.command, rerank.command])
def test_commands_that_only_read_have_no_flags_of_writing(command: click.Command) -> None:
    flags = {p.name for p in command.params}
    assert not flags & set(ONLY_WRITING)
    assert flags >= set(names(RunOptions)) - set(ONLY_WRITING)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "", "hi"],
        ["generate", "x", "hi", "--kernels", ""],
        ["generate", "x", "hi", "--draft", ""],
        ["generate", "x", "hi", "--schema", ""],
        ["chat", ""],
        ["chat", "--session", ""],
        ["compile", "", "--out", "x"],
        ["compile", "--out", ""],
        ["convert", "", "--out", "x"],
        ["convert", "x", "--out", ""],
        ["convert", "x", "--calibration", ""],
        ["eval", "x", "--text", ""],
        ["eval", "x", "--text", "y", "--reference", ""],
        ["export", "x", "--out", ""],
        ["rerank", "x", "--query", "y", ""],
        ["serve", ""],
        ["serve", "name="],
        ["verify", ""],
        ["inspect", ""],
        ["bench", ""],
        ["pull", ""],
        ["rm", ""],
    ],
)
def test_an_empty_path_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It would mean the current folder."""
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "is empty, expected" in said or "expected NAME=MODEL" in said
    assert len(said.splitlines()) == 1


def test_keywords_that_are_empty_paths_are_refused() -> None:
    for name in ("kernels", "draft"):
        with pytest.raises(OptionError, match=f"{name} is empty, expected a path"):
            RunOptions.of({name: ""})
    with pytest.raises(OptionError, match="the path is empty"):
        edgetok.load("")


def test_an_unknown_policy_gets_all_that_there_are() -> None:
    with pytest.raises(OptionError, match=r"window, .*, recall, retain, none$"):
        _ = RunOptions(kv_policy="lru").cache_limits
    assert RunOptions(kv_policy="none").cache_limits is None


@pytest.mark.parametrize("command", [bench.command, verify.command, convert.command])
def test_flags_that_some_commands_share(command: click.Command) -> None:
    known = {*names(RunOptions), *names(ConvertOptions)}
    assert len({p.name for p in command.params} & known) >= 1


def test_defaults_are_the_fields() -> None:
    context = chat.command.make_context("chat", ["m"])
    assert RunOptions(**given_of(RunOptions, context.params)) == RunOptions()
    assert sampling_changes(context.params) == {}
    context = convert.command.make_context("convert", ["m"])
    assert ConvertOptions(**given_of(ConvertOptions, context.params)) == ConvertOptions()


def test_values_have_the_fields_types() -> None:
    words = ["m", "--kv-bits", "4", "--kv-budget", "64MB", "-v", "--top-k", "0", "--stop", "a"]
    given = chat.command.make_context("chat", words).params
    run = RunOptions(**given_of(RunOptions, given))
    assert (run.kv_bits, run.kv_budget_bytes, run.verbose) == (4, 64_000_000, True)
    assert sampling_changes(given) == {"top_k": 0, "stop": ("a",)}
    given = convert.command.make_context(
        "convert", ["m", "--bits", "3", "--without", "tune"]
    ).params
    made = ConvertOptions(**given_of(ConvertOptions, given))
    assert (made.bits, made.without) == (3, ("tune",))


def test_help_names_every_policy() -> None:
    text = get_type_hints(RunOptions, include_extras=True)["kv_policy"].__metadata__[0]
    assert all(name in text for name in POLICIES)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "1", 1.0),
        ("top_k", "5", 5),
        ("seed", "none", None),
        ("seed", "7", 7),
        ("max_tokens", "-", None),
        ("stop", "-", ()),
        ("stop", r"\n", ("\n",)),
    ],
)
def test_typed_settings(name: str, text: str, value: object) -> None:
    parsed = parse_setting(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "none", "expected a number"),
        ("top_k", "1.5", "expected a number"),
        ("heat", "1", "unknown option 'heat'"),
    ],
)
def test_typed_settings_that_are_wrong(name: str, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_setting(name, text)
