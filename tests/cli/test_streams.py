"""Standard streams that are closed, full, not read, or of another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgetok.cli import streams
from tests.fake import write_tokenizer

CODE = "import sys; from edgetok.cli.__main__ import main; sys.argv[0] = 'edgetok'; main()"
SAY = (
    "import click, sys; from edgetok.cli import main as m, streams;"
    "m.cli.add_command(click.Command('say', callback=lambda: ({what}, None)[1]));"
    "m._COMMANDS['say'] = ''; m._Lazy.get_command = lambda s, c, n: s.commands.get(n);"
    "sys.exit(m.run(['say']))"
)


def edgetok(*args: str, redirect: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a shell, so that streams can be closed."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "${{@:2}}" {redirect}', sys.executable, CODE, *args],
        capture_output=True, env={**os.environ, **env}, timeout=120, check=False,
    )  # fmt: skip


def say(what: str, redirect: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, SAY.format(what=what)],
        capture_output=True, env={**os.environ, **env}, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["click", "edgetok.cli.main", "edgetok.cli.commands.inspect"])
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    code = f"""
import os, signal, sys
from edgetok.cli.__main__ import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["edgetok", "inspect", "/nowhere"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


@pytest.mark.parametrize("redirect", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["inspect", "/nowhere"], ["generate", "/nowhere"]]
)
def test_closed_streams(args: list[str], redirect: str) -> None:
    done = edgetok(*args, redirect=redirect)
    assert done.returncode == (0 if args[0].startswith("--") else 2)
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 1


def test_a_full_disk_and_a_reader_that_left() -> None:
    done = edgetok("--help", redirect=">/dev/full")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"No space left" in done.stderr
    done = edgetok("--help", redirect="| true")
    assert done.stderr == b""
    done = say("[print('x' * 1000) for _ in range(1000)]", "| head -c 10")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1"])
def test_characters_that_the_encoding_lacks(encoding: str) -> None:
    text = "é😀\\udc80"
    done = say(f"click.echo('{text}')", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    # click takes ASCII for a terminal that was set up wrongly, and writes UTF-8
    assert done.stdout.decode("utf-8" if encoding == "ascii" else encoding).startswith("é")
    done = say("streams.print_json({'text': 'é😀'})", PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout.decode(encoding)) == {"text": "é😀"}


@pytest.mark.parametrize("command", [["convert"], ["chat"], ["inspect"], ["verify"]])
def test_a_named_pipe_is_no_input(command: list[str], tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    done = edgetok(*command, str(pipe), redirect="</dev/null")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_named_pipe_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    done = edgetok("convert", str(tmp_path), "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, "  {name}\n      1.5 MB   4.5\n  a\n      5.0 MB  16.0\n"),
        (120, "  {name}  1.5 MB   4.5\n  {a}  5.0 MB  16.0\n"),
        (None, "  {name}  1.5 MB   4.5\n  {a}  5.0 MB  16.0\n"),
    ],
)
def test_columns_fit_the_terminal(
    columns: int | None,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Names go above their values where a line would be wrapped; a pipe gets a line for each."""
    size = os.terminal_size((columns or 80, 24))
    monkeypatch.setattr("shutil.get_terminal_size", lambda: size)
    monkeypatch.setattr("sys.stdout.isatty", lambda: columns is not None)
    name = "owner/" + "name" * 16
    rows = [(name, "1.5 MB", "4.5"), ("a", "5.0 MB", "16.0")]
    streams.print_columns("Models", ("", "size", "bits"), rows)
    title, header, rest = click.unstyle(capsys.readouterr().out).split("\n", 2)
    assert (title, header.split()) == ("Models", ["size", "bits"])
    assert rest == shown.format(name=name, a="a".ljust(len(name)))
    assert columns is None or max(map(len, [header, *rest.split("\n")])) < columns


@pytest.mark.parametrize("what", ["click.echo('x' * 10**6)", "print('x' * 10**6)"])
def test_output_that_nobody_reads_is_no_error(what: str) -> None:
    done = say(what, "| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, b"")
