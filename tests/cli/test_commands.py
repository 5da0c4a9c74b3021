"""The command line over a model that answers by a rule: output, JSON, errors, exit codes."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetok.cli import options as common
from edgetok.cli.commands import chat, convert
from edgetok.cli.main import run
from edgetok.cli.streams import (
    for_terminal,
)
from edgetok.cli.terminal import bars
from edgetok.model import Model
from tests.fake import fake_model, write_tokenizer

Run = Callable[..., tuple[int, str, str]]


class Stdin(io.TextIOWrapper):
    """stdin that is not a terminal."""


@pytest.fixture
def edgetok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in this process; the model is a fake."""

    def load(path: Path, **options: Any) -> Model:
        return fake_model(tmp_path / "fake", context=options.get("context"))

    monkeypatch.setattr(Model, "load", load)
    write_tokenizer(tmp_path / "fake")
    resolve = common.model_folder

    def model_folder(model: Path, *, quiet: bool = False, check: object = None) -> Path:
        known = str(model) == "m" or model == tmp_path / "fake"
        return tmp_path / "fake" if known else resolve(model, quiet=quiet)

    monkeypatch.setattr(common, "model_folder", model_folder)

    def call(*arguments: str, stdin: str | bytes | None = None) -> tuple[int, str, str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr("sys.stdin", Stdin(io.BytesIO(data)))
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def one_line(err: str) -> str:
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("form", ["argument", "option", "stdin"])
def test_chat_answers_once(edgetok: Run, form: str) -> None:
    if form == "stdin":
        code, out, err = edgetok("chat", "m", stdin="hello 🙂\n")
    else:
        code, out, err = edgetok("chat", "m", *(["-p"] if form == "option" else []), "hello 🙂")
    assert (code, out, err) == (0, "1:HELLO 🙂!\n", "")


def test_chat_json_and_system(edgetok: Run) -> None:
    code, out, _ = edgetok("chat", "m", "hi", "--system", "S", "--json", "--max-tokens", "4")
    result = json.loads(out)
    assert code == 0
    assert result["text"] == "S:1:"
    assert result["finish"] == "length"
    assert result.keys() == {
        "text",
        "tokens",
        "finish",
        "complete",
        "prompt_tokens",
        "generated_tokens",
        "prefill_tokens_per_s",
        "tokens_per_s",
        "first_token_s",
    }


def test_stop_takes_escapes(edgetok: Run) -> None:
    assert edgetok("chat", "m", "a\nb", "--stop", r"\n")[1] == "1:A\n"


def test_stdin_that_is_no_utf8(edgetok: Run) -> None:
    code, out, _ = edgetok("chat", "m", stdin=b"a\xffb")
    assert code == 0
    assert "A\ufffdB" in out


def test_generate(edgetok: Run) -> None:
    assert edgetok("generate", "m", "abc", "--max-tokens", "3")[:2] == (0, "xxx\n")
    assert edgetok("generate", "m", "--echo", "--max-tokens", "1", stdin="abc\n")[1] == "abcx\n"
    result = json.loads(edgetok("generate", "m", "abc", "--max-tokens", "2", "--json")[1])
    assert result["text"] == "xx"


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_schema(edgetok: Run, tmp_path: Path, command: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}')
    code, out, err = edgetok(command, "m", "hi", "--schema", str(path), "--max-tokens", "600")
    assert (code, json.loads(out), err) == (0, {"a": 1}, "")
    code, out, err = edgetok(command, "m", "hi", "--schema", str(path), "--max-tokens", "2")
    assert code == 0
    assert "cut after 2 tokens (length)" in err
    path.write_text('{"not": {}}')
    code, out, err = edgetok(command, "m", "hi", "--schema", str(path))
    assert (code, out) == (2, "")
    assert "unsupported keyword 'not'" in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "m", "hi", "--temperature", "-1"], "temperature is -1.0"),
        (["chat", "m", "hi", "--top-p", "2"], "top_p is 2.0"),
        (["chat", "m", "hi", "--seed", "x"], "'x' is not a valid integer"),
        (["chat", "m", "hi", "-p", "ho"], "given twice"),
        (["chat", "m", "hi", "--context", "0"], "context is 0"),
        (["chat", "m", "x" * 2000], "the prompt has 2,0"),
        (["chat", "m", " "], "prompt is empty"),
        (["chat", "m", "hi", "--load", "nowhere.json"], "nowhere.json: cannot be read"),
        (["chat", "m", "hi", "--device", "npu"], "'npu' is not one of"),
        (["chat", "m", "hi", "--schema", "nowhere.json"], "nowhere.json: cannot be read"),
        (["inspect"], "Missing argument 'MODEL'"),
        (["generate", "m", ""], "prompt is empty"),
        (["wrong"], "No such command 'wrong'"),
        (["chat", "m", "--wrong"], "No such option"),
        (["eval", "m"], "nothing to measure"),
        (["eval", "m", "--text", "nowhere.txt"], "nowhere.txt: cannot be read: No such file"),
        (["inspect", "nowhere"], "nowhere: no such model or folder"),
        (["verify", "nowhere"], "nowhere"),
        (["bench", "nowhere"], "nowhere"),
        (["convert", "no/such/folder", "--out", "o"], "no/such/folder: no such folder"),
        (["convert", "m", "--bits", "5"], "'5' is not one of"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(edgetok: Run, arguments: list[str], message: str) -> None:
    code, out, err = edgetok(*arguments)
    assert code == 2
    assert out == ""
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "f"), 2, "error: f: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (MemoryError(), 2, "error: not enough memory\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=str,
)
def test_what_the_system_refuses(
    edgetok: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def load(*arguments: Any, **options: Any) -> Model:
        raise error

    monkeypatch.setattr(Model, "load", load)
    assert edgetok("chat", "m", "hi") == (code, "", message)


def test_our_own_mistakes_are_not_hidden(edgetok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> Model:
        raise ZeroDivisionError

    monkeypatch.setattr(Model, "load", load)
    with pytest.raises(ZeroDivisionError):
        edgetok("chat", "m", "hi")


def test_help_and_version(edgetok: Run) -> None:
    code, out, _ = edgetok("--help")
    assert code == 0
    for name in ("convert", "chat", "generate", "inspect", "verify", "eval", "bench"):
        assert name in out
        code, help_text, _ = edgetok(name, "--help")
        assert code == 0
        assert "--json" in help_text
    assert edgetok("--version")[1].startswith("edgetok ")
    assert edgetok()[0] == 2


def test_choices_are_those_of_the_converter() -> None:
    from typing import get_args

    from edgetok.converter import options

    def choices(name: str) -> list[str]:
        (param,) = [p for p in convert.command.params if p.name == name]
        return list(param.type.choices)  # type: ignore[attr-defined]

    assert choices("bits") == [str(b) for b in options.BITS]
    assert choices("group_size") == [str(g) for g in options.GROUP_SIZES]
    assert choices("head_bits") == [str(b) for b in options.HEAD_BITS]
    assert choices("method") == list(get_args(options.Method))
    defaults = options.ConvertOptions()
    given = {p.name: p.default for p in convert.command.params}
    assert given["bits"] == defaults.bits
    assert given["method"] == defaults.method


def test_sampling_flags_are_all_there() -> None:
    import dataclasses

    from edgetok.sampling.options import SamplingOptions

    flags = {p.name for p in chat.command.params}
    assert {field.name for field in dataclasses.fields(SamplingOptions)} <= flags


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert for_terminal("a\x1b[2Jb\n\t\x07\x7f\x9b") == "a␛[2Jb\n\t␇␡␡"
    assert for_terminal("plain 🙂") == "plain 🙂"


def test_progress_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "_LINE_S", 30)
    with bars.Bars(quiet=False) as drawn:
        drawn.begin("Quantising", 4)
        drawn.advance()
        monkeypatch.setattr(bars, "_LINE_S", -1)
        drawn.advance(2)
    stage, line = capsys.readouterr().err.splitlines()
    assert stage == "Quantising"
    assert line.startswith("  3 of 4")


def test_the_longest_stage_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    def interrupted() -> None:
        with bars.Bars(quiet=False) as drawn:
            drawn.plan({"Comparing with the original": 1, "Tuning scales": 9})
            drawn.begin("Comparing with the original", 1023)
            drawn.advance(1023)
            drawn.begin("Tuning scales", 1023)
            for _ in range(3):
                time.sleep(0.02)
                drawn.advance(100)
            drawn._live.refresh()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line.rstrip() for line in re.split("[\r\n]", written)]
    assert max(map(len, lines)) < 80
    assert not any("…" in line for line in lines)
    assert any(re.search(r"300/1023 \d:\d\d:\d\d, \d:\d\d:\d\d left$", line) for line in lines)
    assert any(re.fullmatch(r"about \d:\d\d:\d\d left in all", line) for line in lines)
    assert lines[-2] == "interrupted; run the same command again to continue"
    assert "left" not in lines[-3]
