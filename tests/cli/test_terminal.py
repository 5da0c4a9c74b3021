"""The chat in a real terminal: typed keys, and what the screen shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pty", reason="needs pseudo-terminals")
pytest.importorskip("pyte", reason="needs the test extra's terminal")

from tests.cli.terminal.emulator import Terminal

LONG = "abcdefghij " * 12
Open = Callable[..., Terminal]


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Iterator[Open]:
    made: list[Terminal] = []

    def start(*words: str, **options: Any) -> Terminal:
        made.append(Terminal(repository, tmp_path, *words, **options))
        return made[-1]

    yield start
    for terminal in made:
        terminal.kill()


@pytest.fixture
def terminal(start: Open) -> Terminal:
    result = start()
    result.prompt()
    return result


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("hello 🙂\n")
    assert "1:HELLO 🙂!" in terminal.until("tokens · ")
    terminal.prompt()

    # Ctrl-C stops the answer and nothing else
    terminal.type(LONG + "\n")
    terminal.until("2:ABCDE")
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.prompt()
    terminal.type("after\n")
    terminal.until("3:AFTER!")
    terminal.prompt()

    # many lines: a backslash, a block, and Alt-Enter
    terminal.type("one\\\n")
    terminal.until("…")
    terminal.type("two\n")
    terminal.until("4:ONE\nTWO!")
    terminal.prompt()
    terminal.type('"""first\n')
    terminal.until("…")
    terminal.type('second"""\n')
    terminal.until("5:FIRST\nSECOND!")
    terminal.prompt()
    terminal.type("up\x1b\rdown\n")
    terminal.until("6:UP\nDOWN!")
    terminal.prompt()
    terminal.type("/undo\n")
    terminal.until("removed: up down")

    # commands
    terminal.type("/undo\n")
    terminal.until("removed: first second")
    terminal.type("/system Be kind\n")
    terminal.until("\nBe kind\n")
    terminal.type("/re\n")
    terminal.until("Be kind:4:ONE\nTWO!")
    terminal.prompt()
    terminal.type(f"/save {tmp_path}/talk.json\n")
    terminal.until("saved to")
    terminal.type("/clear\n")
    terminal.until("a new conversation")
    terminal.type(f"/load {tmp_path}/talk.json\n")
    terminal.until("› after")
    terminal.prompt()
    terminal.type("/load nowhere.json\n")
    terminal.until("nowhere.json: cannot be read")
    terminal.type("/hlep\n")
    terminal.until("did you mean /help?")
    terminal.type("/s\n")
    terminal.until("/s could be /system or /set or /save")
    terminal.type("/help\n")
    terminal.until("/retry")
    terminal.prompt()

    # Ctrl-C at the prompt empties the line; Ctrl-D leaves
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.type("\x03")
    terminal.until("/exit ends")
    terminal.prompt()
    terminal.type("x\n")
    terminal.until("Be kind:5:X!")
    terminal.prompt()
    terminal.type("\x04")
    assert terminal.close() == 0
    history = tmp_path / "history"
    assert "half" not in history.read_text()
    assert "hello 🙂" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_settings_as_people_write_them(terminal: Terminal) -> None:
    for typed, shown in [
        ("/set temp 0.5", "temperature  0.5"),
        ("/set temperature=0.7", "temperature  0.7"),
        ("/set top-k: 5", "top_k  5"),
        ("/set seed", "seed  random"),
        ("/set max_t 2k", "max_tokens  2048"),
        ("/set max_t none", "max_tokens  what fits"),
        ("/set stop \\n", 'stop  "\\n"'),
        ("/set stop_l off", "stop_loops  off"),
        ("/set tempreature 1", "did you mean temperature?"),
        ("/set top 1", "top could be top_k or top_p"),
        ("/set temp hot", "temperature is 'hot', expected a number"),
        ("/set temp -1", "temperature is -1.0, expected a number from 0 to 100"),
    ]:
        terminal.type(typed + "\n")
        terminal.until(shown)
        terminal.prompt()
    terminal.type("/set\n")
    assert "0.7" in terminal.until("stop_loops")


def test_a_pasted_block_is_shown_as_a_summary(terminal: Terminal, tmp_path: Path) -> None:
    block = "\n".join(f"line {i}" for i in range(30))
    terminal.type("see ")
    terminal.paste(block)
    terminal.until("see [pasted #1: 30 lines]")
    assert "line 20" not in terminal.text
    terminal.type(" ok\n")
    terminal.until("1:SEE LINE 0\nLINE 1\n")
    terminal.until("LINE 29 OK!")
    terminal.prompt()
    # a small one is shown as it is; Backspace erases a summary whole; """ means nothing in it
    terminal.paste('"""a\nb')
    terminal.paste(block)
    terminal.until("b[pasted #2: 30 lines]")
    terminal.type("\x7f\n")
    terminal.until('2:"""A\nB!')
    terminal.prompt()
    assert "pasted" not in (tmp_path / "history").read_text()


def test_keys_typed_during_an_answer_wait_for_the_prompt(terminal: Terminal) -> None:
    terminal.type(LONG + "\n")
    terminal.until("1:ABCDE")
    terminal.type("next ques")
    terminal.paste("x\n" * 9)
    answer = terminal.until("tokens · ")
    assert "next" not in answer
    assert answer.split("tokens/s")[0].split("\n")[:-1][-1].endswith("ABCDEFGHIJ !")
    terminal.until("› next ques[pasted #1: 9 lines]")
    terminal.type("\n")
    terminal.until("2:NEXT QUESX\nX")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10)])
def test_markdown_while_it_streams(start: Open, columns: int, lines: int) -> None:
    terminal = start(columns=columns, lines=lines)
    terminal.prompt()
    terminal.type('"""A\n')
    for line in ["", "- **bold** item", "- `code`", "", "| x | y |", "|---|---|", "| 1 | 2 |"]:
        terminal.type(line + "\n")
    terminal.type('"""\n')
    terminal.until("1:A")
    found = terminal.until("tokens/s")
    assert " • BOLD ITEM\n • CODE\n\n X  Y\n ────\n 1  2\n" in found


@pytest.mark.parametrize(("words", "variables"), [(("--plain",), {}), ((), {"NO_COLOR": "1"})])
def test_plain_answers(
    start: Open, tmp_path: Path, words: tuple[str, ...], variables: dict[str, str]
) -> None:
    terminal = start(str(tmp_path / "m"), *words, **variables)
    terminal.prompt()
    terminal.type("**a** `b`\n")
    terminal.until("1:**A** `B`!")
    terminal.prompt()
    if variables:
        assert b"\x1b[3" not in terminal.raw.split(b"Ctrl-D ends")[0]


def test_words_stay_whole_in_a_narrow_terminal(start: Open, tmp_path: Path) -> None:
    words = " ".join(f"w{'o' * (i % 9)}rd{i}" for i in range(40))
    terminal = start(columns=40, lines=10)
    terminal.prompt()
    terminal.type(f'"""{words}"""\n')
    terminal.until("rd39")
    terminal.until("tokens")
    terminal.prompt()
    terminal.type(f"/save {tmp_path}/talk\n")
    terminal.until("saved")
    begin = len(terminal.lines) - 1
    terminal.type(f"/load {tmp_path}/talk\n")
    terminal.prompt()
    terminal.type("/help\n")
    terminal.until("several lines")
    shown = " ".join(terminal.lines[begin - 10 :]).split()
    assert all(word in shown for word in words.split())
    assert all(word in shown for word in words.upper().split()[1:-1])
    assert max(map(len, terminal.lines)) <= 40


def test_resize_during_an_answer(terminal: Terminal) -> None:
    terminal.type("word " * 60 + "\n")
    terminal.until("1:WORD")
    terminal.resize(120, 30)
    terminal.until("tokens · ")
    terminal.prompt()
    terminal.type("again\n")
    terminal.until("2:AGAIN!")


def test_ctrl_c_while_the_prompt_is_read(start: Open, tmp_path: Path) -> None:
    terminal = start(EDGETOK_TEST_STEP_S="0.2")
    terminal.prompt()
    terminal.type("x" * 600 + "\n")  # 38 steps
    terminal.until("reading: ", keep=True)
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.prompt()
    assert "reading" not in terminal.text
    terminal.type("/exit\n")
    assert terminal.close() == 0


def test_tab_completes_a_command(terminal: Terminal) -> None:
    terminal.type("/sys\t")
    terminal.until("/system")
    terminal.type("Be brief\n")
    terminal.until("Be brief")  # below the line that was typed


def test_output_into_a_pipe(repository: Path, tmp_path: Path) -> None:
    """Typed in a terminal, written to a file: no editor, no styles, whole lines."""
    import subprocess
    import sys

    run = subprocess.run(
        [sys.executable, "-m", "tests.cli.chat_driver", "chat", str(tmp_path / "m")],
        input="**a** 🙂\n".encode(),
        capture_output=True,
        cwd=repository,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.decode() == "1:**A** 🙂!\n"


def test_exit_and_a_bad_message(terminal: Terminal) -> None:
    terminal.type("y" * 990 + "\n")
    terminal.until("the prompt has 1,0")
    terminal.prompt()
    terminal.type("/exit\n")
    assert terminal.close() == 0


@pytest.mark.real
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10)])
def test_a_real_model(
    start: Open, real_artefact: Callable[[str], Path], columns: int, lines: int
) -> None:
    """SmolLM2: markdown, a loop that is stopped, Ctrl-C while a long prompt is read."""
    terminal = start(
        *(str(real_artefact("smollm2")), "--temperature", "0", "--context", "2k"),
        columns=columns,
        lines=lines,
        program=("-m", "edgetok.cli", "chat"),
    )
    terminal.prompt()
    terminal.type("Write Python code that prints hello, with a heading.\n")
    answer = terminal.until("tokens/s", 200)
    assert "print(" in answer
    assert "```" not in answer
    assert "**" not in answer
    terminal.prompt()
    terminal.type("/clear\n")
    terminal.until("a new conversation")
    terminal.type("Write a dialogue between two friends about the weather.\n")
    said = terminal.until("tokens/s", 300)
    terminal.prompt()
    assert len(said) < 4000
    terminal.paste("The dog and the cat sat on the mat.\n" * 100)
    terminal.until("[pasted #1: 100 lines]")
    terminal.type("\n")
    terminal.until("reading: ", keep=True)
    terminal.type("\x03")
    terminal.until("stopped", 100)
    terminal.prompt()
    assert max(map(len, terminal.lines)) <= columns
    terminal.type("\x04")
    assert terminal.close() == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_a_chat_can_be_put_aside(start: Open, tmp_path: Path) -> None:
    shell = "import os; os.execlp('bash', 'bash', '--norc', '--noediting', '-i')"
    terminal = start(program=("-c", shell), PS1="$ ")
    terminal.type(f"{sys.executable} -m tests.cli.chat_driver chat {tmp_path}/m\n")
    terminal.until("ends the chat")
    terminal.prompt()
    terminal.type("half")
    terminal.until("› half", keep=True)
    terminal.type("\x1a")
    terminal.until("Stopped")
    terminal.type("fg\n")
    terminal.until("› half", keep=True)
    terminal.type(" of it\n")
    terminal.until("1:HALF OF IT!")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("while_it_answers", [False, True])
def test_a_session_outlives_its_terminal(
    start: Open, tmp_path: Path, by: signal.Signals, while_it_answers: bool
) -> None:
    session = tmp_path / "talk.json"
    terminal = start(str(tmp_path / "m"), "--session", str(session))
    terminal.prompt()
    terminal.type("hello\n")
    terminal.until("tokens · ")
    terminal.prompt()
    if while_it_answers:
        terminal.type(LONG + "\n")
        terminal.until("2:ABCDE")
    terminal.process.send_signal(by)
    assert terminal.close() == 128 + by
    assert json.dumps("1:HELLO!") in session.read_text()
