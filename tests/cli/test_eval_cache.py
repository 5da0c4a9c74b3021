"""`edgetok eval --cache` on the bundled model, in small."""

from __future__ import annotations

import json

import pytest

from edgetok.cli.main import run


def test_table_of_caches(default_artefact, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot, text = tmp_path / "plot.png", tmp_path / "text"
    text.write_text("Once upon a time there was a little dog. " * 60)
    arguments = ["eval", str(default_artefact), "--cache", "--cases", "1", "--tokens", "320"]
    arguments += ["--policy", "retain", "--policy", "window", "--share", "0.5", "--share", "1"]
    arguments += ["--policy", "expected-attention"]
    arguments += ["--text", str(text), "--plot", str(plot)]
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["caches"]
    names = [(score["policy"], score["slots"]) for score in result]
    # The queries that expected-attention keeps leave it no slots in half of so few bytes.
    assert names == [
        ("full", 320),
        ("retain", 64),
        ("window", 64),
        ("expected-attention", 0),
        ("retain", 192),
        ("window", 192),
        ("expected-attention", 0),
    ]
    full = result[0]["bytes"]
    assert all(score["bytes"] <= full * score["share"] for score in result)
    # A fifth of the context's latest tokens holds few of the answers.
    assert result[0]["recall"] > result[2]["recall"] + 0.2
    assert all(1 < score["perplexity"] < 100 for score in result if score["slots"])
    assert result[3]["recall"] is None
    assert result[1]["bytes"] < result[4]["bytes"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", "1.5"), "--share is 1.5"),
        (("--policy", "lru", "--share", "1"), "cache policy 'lru'"),
        (("--tokens", "99999"), "contexts of 99999 tokens"),
        (("--tokens", "1980", "--cases", "1"), "give fewer --tokens"),
    ],
)
def test_options_out_of_range(default_artefact, capsys, options, message):
    assert run(["eval", str(default_artefact), "--cache", "--tokens", "320", *options]) == 2
    assert message in capsys.readouterr().err
