import errno
import json
import os
import subprocess
import sys

import pytest

from edgetok.converter import durable
from edgetok.converter.write import workspace as ws
from edgetok.converter.write.workspace import check_output, open_workspace, partial_folder
from edgetok.errors import CheckpointError, OutputError


def publish_one(out, content="new", title=None):
    with open_workspace(out, title or {"a": 1}) as workspace:
        (workspace.artefact / "manifest.json").write_text(content)
        workspace.publish()


def test_publishes_and_replaces(tmp_path):
    out = tmp_path / "deep" / "out"
    publish_one(out, "one")
    assert (out / "manifest.json").read_text() == "one"
    publish_one(out, "two")
    assert (out / "manifest.json").read_text() == "two"
    assert os.listdir(out.parent) == ["out"]


def test_steps_are_remembered(tmp_path):
    out = tmp_path / "out"
    with open_workspace(out, {"a": 1}) as workspace:
        assert not workspace.resumed
        assert not workspace.done("x")
        workspace.finish("x", {"n": 1.5, "s": "é"})
        (workspace.artefact / "data").write_text("kept")
    with open_workspace(out, {"a": 1}) as workspace:
        assert workspace.resumed
        assert workspace.result("x") == {"n": 1.5, "s": "é"}
        assert (workspace.artefact / "data").read_text() == "kept"
    with open_workspace(out, {"a": 2}) as workspace:
        assert not workspace.resumed
        assert list(workspace.artefact.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_line_is_no_promise(tmp_path, cut):
    out = tmp_path / "out"
    with open_workspace(out, {"a": 1}) as workspace:
        workspace.finish("x", 1)
        workspace.finish("y", 2)
    journal = partial_folder(out) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    with open_workspace(out, {"a": 1}) as workspace:
        assert workspace.done("x")
        assert not workspace.done("y")
        workspace.finish("z", 3)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, "x", "z"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"[]\n", b'{"title": {"a": 1}}'])
def test_a_damaged_journal_starts_afresh(tmp_path, content):
    out = tmp_path / "out"
    with open_workspace(out, {"a": 1}) as workspace:
        workspace.finish("x", 1)
    (partial_folder(out) / "journal.jsonl").write_bytes(content)
    with open_workspace(out, {"a": 1}) as workspace:
        assert not workspace.done("x")


def test_second_converter_is_refused(tmp_path):
    out = tmp_path / "out"
    with (
        open_workspace(out, {"a": 1}) as workspace,
        pytest.raises(OutputError, match="another converter is writing"),
        open_workspace(out, {"a": 1}),
    ):
        pass
    assert workspace.folder.exists()
    with open_workspace(out, {"a": 1}):
        pass


def test_lock_ends_with_a_killed_process(tmp_path):
    out = tmp_path / "out"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from edgetok.converter.write.workspace import open_workspace\n"
        "with open_workspace(Path(sys.argv[1]), {}):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another converter"), open_workspace(out, {}):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with open_workspace(out, {}):
        pass


def test_output_that_would_destroy_something(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for bad in (source, source / "out", tmp_path):
        with pytest.raises(OutputError, match=r"model to convert"):
            check_output(bad, source)
    other = tmp_path / "photos"
    other.mkdir()
    check_output(other, source)  # empty
    (other / "cat.jpg").write_text("x")
    with pytest.raises(OutputError, match="not an edgetok model"):
        check_output(other, source)
    (other / "manifest.json").write_text("{}")
    check_output(other, source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file", source)


def test_death_between_the_two_renames_is_mended(tmp_path):
    out = tmp_path / "out"
    publish_one(out, "old")
    with open_workspace(out, {"a": 2}) as workspace:
        workspace.finish("x", 1)
    out.rename(partial_folder(out) / "old")
    with open_workspace(out, {"a": 2}) as workspace:
        assert (out / "manifest.json").read_text() == "old"
        assert workspace.done("x")


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_publishing_fails_cleanly(tmp_path, monkeypatch, call):
    """On some file systems two folders cannot change places at once."""
    monkeypatch.setattr(ws, "_exchange", lambda a, b: False)
    out = tmp_path / "out"
    publish_one(out, "old")
    real = getattr(os, call)
    with open_workspace(out, {"a": 2}) as workspace:
        (workspace.artefact / "manifest.json").write_text("new")
        calls = []

        def failing(*arguments):
            calls.append(arguments)
            # The second rename, after the old folder has been moved away.
            if len(calls) == 2:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        monkeypatch.setattr(os, call, failing)
        with pytest.raises(OutputError, match="Input/output error"):
            workspace.publish()
        monkeypatch.setattr(os, call, real)
        assert (out / "manifest.json").read_text() == "old"
        workspace.publish()
    assert (out / "manifest.json").read_text() == "new"


def test_full_disk_in_the_journal(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with open_workspace(out, {"a": 1}) as workspace:
        workspace.finish("x", 1)

        def full(descriptor, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="No space left"):
            workspace.finish("y", 2)
        monkeypatch.undo()
        assert not workspace.done("y")
    with open_workspace(out, {"a": 1}) as workspace:
        assert workspace.done("x")
        assert not workspace.done("y")


def test_space_is_asked_for_first(tmp_path):
    with pytest.raises(OutputError, match=r"MB free, .* more needed"):
        ws.require_space(tmp_path, 1 << 60, tmp_path)
    ws.require_space(tmp_path, 1, tmp_path)


def test_write_durably_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    durable.write_durably(path, b"one")

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        durable.write_durably(path, b"two")
    assert path.read_bytes() == b"one"


def test_folders_change_places_at_once(tmp_path, monkeypatch):
    """Neither name is ever missing, so no rename of one folder after the other is made."""
    out = tmp_path / "out"
    publish_one(out, "old")
    with open_workspace(out, {"a": 2}) as workspace:
        (workspace.artefact / "manifest.json").write_text("new")
        renames = []
        monkeypatch.setattr(os, "rename", lambda *arguments: renames.append(arguments))
        workspace.publish()
    assert renames == []
    assert (out / "manifest.json").read_text() == "new"
    assert not partial_folder(out).exists()


def fail_with_bad_input(out, steps):
    with open_workspace(out, {}) as workspace:
        for step in steps:
            workspace.finish(step, 1)
        raise CheckpointError("bad")


def test_bad_input_leaves_no_trace(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="bad"):
        fail_with_bad_input(out, [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="bad"):
        fail_with_bad_input(out, ["x"])
    assert partial_folder(out).exists()


def test_it_is_imported_without_posix_modules():
    program = (
        "import sys; sys.modules['fcntl'] = None;"
        "from edgetok.converter.write.workspace import partial_folder;"
        "from pathlib import Path; print(partial_folder(Path('out')).name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "out.partial", done.stderr
