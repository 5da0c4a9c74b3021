"""The bundled artefact: whole, and what commands use where no model was named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgetok.cli.main import run
from edgetok.formats.artefact import open_artefact, verify_manifest
from edgetok.models.bundled import bundled_model


def test_it_is_whole() -> None:
    verify_manifest(bundled_model())
    with open_artefact(bundled_model()) as artefact:
        assert artefact.spec is not None
        assert {form.bits for form in artefact.formats.values()} == {4, 8}
        assert artefact.report is not None
        assert artefact.report["verdict"] == "indistinguishable"


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_commands_use_it_where_no_model_is_named(
    command: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--temperature", "0", "--max-tokens", "12", "--json"]
    answers = []
    for model in ([], [str(repository / "models/default-4bit")]):
        assert run([command, *model, "--prompt", "Once upon a time", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
    assert answers[0] == answers[1]
    assert len(answers[0]) > 1


def test_the_prompt_may_come_on_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello!")))
    assert run(["chat", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_prompt_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(bundled_model()), "Once", "--prompt", "Twice"]) == 2
    assert "given twice" in capsys.readouterr().err
