"""The pages of docs/ say what is true: their examples run, their tables match the program."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from edgetok.cli.main import cli, run
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.sampling.random_shares import random_bits, random_share


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, default_artefact: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the page assumes it."""
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / "tiny").symlink_to(default_artefact, target_is_directory=True)
    (tmp_path / "story.txt").write_text("Once upon a time there was a dog. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "least"), [("examples", 10), ("structured-output", 4)])
def test_python_examples(repository: Path, place: Path, page: str, least: int) -> None:
    result = blocks(repository / f"docs/{page}.md", "python")
    assert len(result) >= least
    names: dict[str, Any] = {}
    for code in result:
        exec(compile(code, f"docs/{page}.md", "exec"), names)


def test_command_examples(
    repository: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    commands = [
        line[2:]
        for block in blocks(repository / "docs/examples.md", "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 7
    for command in commands:
        words = shlex.split(command)
        data = b""
        if words[0] == "echo":
            data, words = words[1].encode(), words[words.index("|") + 1 :]
        assert words[0] == "edgetok"
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = run(words[1:])
        out, err = capsys.readouterr()
        others = [line for line in err.splitlines() if not line.startswith("compiling kernels")]
        assert (code, others) == (0, []), command
        assert out


def help_examples(name: str) -> list[str]:
    """The commands under "Examples:" in `edgetok NAME --help`; "" is edgetok itself."""
    group = click.Context(cli, info_name="edgetok")
    if not name:
        text = cli.get_help(group)
    else:
        command = cli.get_command(group, name)
        assert command is not None
        text = command.get_help(click.Context(command, info_name=name, parent=group))
    _, _, after = text.partition("Examples:\n")
    return [line.strip() for line in after.splitlines() if line.strip()]


def words_of(example: str) -> tuple[list[str], bytes]:
    """The words behind "edgetok", and what is piped into it."""
    words, data = shlex.split(example), b""
    if words[0] == "echo":
        data, words = words[1].encode(), words[words.index("|") + 1 :]
    assert words[0] == "edgetok", example
    return words[1:], data


COMMANDS = ["", *cli.list_commands(click.Context(cli))]


@pytest.mark.parametrize("name", COMMANDS, ids=[name or "edgetok" for name in COMMANDS])
def test_help_ends_with_examples(name: str) -> None:
    """Two or three, of this very command, with options and arguments that it takes."""
    result = help_examples(name)
    assert 2 <= len(result) <= 3
    for example in result:
        words, _ = words_of(example)
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None
        assert words[0] == name or not name
        command.make_context(words[0], list(words[1:]))


CAT = """{"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}},
"required": ["name"], "additionalProperties": false}"""


@pytest.fixture
def bundled(
    repository: Path, tmp_path: Path, default_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory like the repository's after `make chat`."""
    for folder, source in (("models/default", repository), ("artefacts/default-4bit", None)):
        (tmp_path / folder).parent.mkdir()
        target = default_artefact if source is None else source / folder
        (tmp_path / folder).symlink_to(target, target_is_directory=True)
    (tmp_path / "story.txt").write_text("Once upon a time there was a dog. " * 20)
    (tmp_path / "cat.json").write_text(CAT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS[1:])
def test_help_examples_run(
    name: str, bundled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those on the bundled model; a chat without a prompt gets one on stdin."""
    for example in help_examples(name):
        words, data = words_of(example)
        if name == "serve":  # runs until it is stopped, as in tests/serve; so its options are read
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            assert command.make_context(name, words[1:]).params
            continue
        if "default" not in example and name not in ("chat", "generate", "bench"):
            continue
        if "native" in words:  # kernels of other sets are compiled by tests/kernels_cpu
            words += ["--isa", host_isas()[0]]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data or b"Hello!")))
        code = run(words)
        out, err = capsys.readouterr()
        assert code == 0, (example, err)
        assert out, example


def test_command_page_is_up_to_date(repository: Path) -> None:
    made = subprocess.run(
        [sys.executable, repository / "docs/generate_cli.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def test_every_command_is_described(repository: Path) -> None:
    text = (repository / "docs/cli.md").read_text()
    context = click.Context(cli)
    for name in cli.list_commands(context):
        assert f"`{name} " in text
    for variable in re.findall(r"EDGETOK_\w+", (repository / "edgetok/environment.py").read_text()):
        assert f"`{variable}`" in text


def test_chat_commands_are_described(repository: Path) -> None:
    from edgetok.cli.repl import HELP

    text = (repository / "docs/cli.md").read_text()
    for usage, _ in HELP:
        assert f"`{usage.split()[0]}" in text


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository: Path, page: str) -> None:
    path = repository / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/glossary.md", "docs/architecture.md"])
def test_paths_exist(repository: Path, page: str) -> None:
    """Files of code that a page names, from the top, a package's folder or edgetok/."""
    tops = ("", "edgetok", "converter", "kernels_cpu", "kernels_gpu", "models")
    text = (repository / page).read_text()
    for path in re.findall(r"`([\w/]+/\w+(?:\.py|/))`", text):
        assert any((repository / top / path).exists() for top in tops), path


@pytest.mark.parametrize("page", ["README.md", "docs/examples.md", "docs/cli.md"])
def test_options_exist(repository: Path, page: str) -> None:
    """Every --option that a page names is one of some command."""
    context = click.Context(cli)
    known = {"--help", "--version", "--window"}  # of every command, of an example policy
    known |= {"--config-settings", "--no-compile"}  # of pip
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        known |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", (repository / page).read_text()):
        assert option in known, option


def test_random_numbers(repository: Path) -> None:
    """The vectors of docs/random.md are what the sampler draws."""
    text = (repository / "docs/random.md").read_text()
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| `(0x[0-9a-f]{16})` \| ([0-9.]+) \|$", text, re.MULTILINE
    )
    assert len(rows) >= 10
    for seed, index, bits, share in rows:
        assert random_bits(int(seed), int(index)) == int(bits, 16)
        assert random_share(int(seed), int(index)) == float(share)
