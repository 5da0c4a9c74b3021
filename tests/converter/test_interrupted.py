"""Conversions that calibrate, killed at any write; disks that fill up."""

import os
import random
import signal
import subprocess
import sys

import pytest

from edgetok.converter import options as options_module
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.quantise import train_model
from edgetok.converter.write.workspace import partial_folder
from edgetok.formats.manifest import verify_manifest
from tests.converter.test_convert import SMALL, digest

LAYERS = 3
PROLOGUE = """
import os, signal, sys
from pathlib import Path
from edgetok.converter import options as options_module
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.progress import Silent
from edgetok.converter.quantise import train_model
from edgetok.errors import OutputError

options_module.REFINED = train_model.STEPS = 12

class Diary(Silent):
    def begin(self, what, total, done=0):
        self.what = what
    def advance(self, units=1):
        pass
    def say(self, line):
        pass
"""
# Dies at its n-th fsync, before it; notes each block that is done.
KILLED = (
    PROLOGUE
    + """
source, out, method, at, diary = sys.argv[1:]
seen, fsync = 0, os.fsync

def counted(descriptor):
    global seen
    seen += 1
    if seen == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

class Noted(Diary):
    def advance(self, units=1):
        if self.what.startswith("Quantising"):
            with open(diary, "a") as file:
                file.write("x" * units)

os.fsync = counted
small = dict(calibration_windows=4, window_tokens=16, reference_tokens=32)
convert(source, out, ConvertOptions(bits=3, method=method, **small), Noted())
"""
)


def run(script, *arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300, check=False, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [("gptq", 2), ("auto", 1)])
def test_killed_while_calibrating(llama, tmp_path, monkeypatch, method, kills):
    """Killed at writes all over it: the same bytes in the end, at most a block redone each time."""
    whole, out, diary = tmp_path / "whole", tmp_path / "out", tmp_path / "diary"
    writes, fsync = 0, os.fsync

    def counted(descriptor):
        nonlocal writes
        writes += 1
        fsync(descriptor)

    for module, name in ((options_module, "REFINED"), (train_model, "STEPS")):
        monkeypatch.setattr(module, name, 12)  # as in the processes
    monkeypatch.setattr(os, "fsync", counted)
    convert(str(llama), whole, ConvertOptions(bits=3, method=method, **SMALL))
    monkeypatch.undo()
    convert(str(llama), out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
    before = digest(out)
    rng = random.Random(writes)
    for kill in range(kills):
        # Later ones have less to do: those that are done wrote none of it again.
        at = rng.randint(8, max(9, writes // (kill + 1) - 8))
        done = run(KILLED, llama, out, method, at, diary)
        assert done.returncode == -signal.SIGKILL, (at, writes, done.stderr)
        assert digest(out) == before
        verify_manifest(out)
        assert partial_folder(out).exists()
    done = run(KILLED, llama, out, method, 0, diary)
    assert done.returncode == 0, done.stderr
    assert digest(out) == digest(whole) != before
    verify_manifest(out)
    assert not partial_folder(out).exists()
    # The embedding, the blocks and the head; a block may be done and not noted where it was killed.
    assert len(diary.read_text()) <= LAYERS + 2 + kills


# Fills the disk at a step, sees what is left, makes room and goes on.
FILLED = (
    PROLOGUE
    + """
import hashlib
source, method = sys.argv[1:]
room = Path(os.environ["ROOM"])
out, filler = room / "out", room / "filler"

def digest():
    names = ("model.onnx", "model.onnx.data", "manifest.json", "report.json")
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names]

class Filling(Diary):
    left = 0
    def advance(self, units=1):
        self.left -= 1
        if self.left == 0:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

convert(source, out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
before = digest()
small = dict(calibration_windows=4, window_tokens=16, reference_tokens=32)
options = ConvertOptions(bits=4, method=method, **small)
failures = 0
for step in range(1, 40, 3):
    filling = Filling()
    filling.left = step
    try:
        convert(source, out, options, filling)
        break
    except OutputError as error:
        assert "No space left" in str(error) or "MB free" in str(error), error
        assert "\\n" not in str(error)
        failures += 1
        assert digest() == before
    finally:
        filler.unlink(missing_ok=True)
print(failures, hashlib.sha256((out / "model.onnx.data").read_bytes()).hexdigest())
"""
)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_disk_that_fills_up(llama, tmp_path, method):
    """A real file system without a byte left: the former artefact whole, and then it goes on."""
    mount = 'mount -t tmpfs -o size=90m tmpfs "$ROOM" && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c"]
    room = tmp_path / "room"
    room.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ROOM": str(room)}
    try:
        probe = subprocess.run([*inside, mount, "sh", "true"], env=environment, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if probe.returncode:
        pytest.skip("this user may not mount a file system")
    done = subprocess.run(
        [*inside, mount, "sh", sys.executable, "-c", FILLED, str(llama), method],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failures, result = done.stdout.split()
    assert int(failures) >= 2
    if method == "rtn":
        whole = tmp_path / "whole"
        convert(str(llama), whole, ConvertOptions(bits=4, method="rtn", reference_tokens=0))
        assert result == digest(whole)["model.onnx.data"]


LIMITED = """
import resource, sys
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import OutputError

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    convert(*sys.argv[1:], ConvertOptions(method="rtn", reference_tokens=0))
except OutputError as error:
    print(error)
"""


def test_files_that_may_not_grow(llama, tmp_path):
    """EFBIG in place of ENOSPC."""
    done = run(LIMITED, llama, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "model.onnx.data: not enough space for" in done.stdout
    assert "File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out").exists()
