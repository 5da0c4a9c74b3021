"""Conversions that are interrupted, killed or out of space, and what they leave and use."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.write.workspace import partial_folder
from edgetok.errors import OutputError
from edgetok.formats.manifest import verify_manifest
from tests.converter.test_convert import SMALL, Spy, digest
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_interrupted_and_resumed_gives_the_same_bytes(llama, tmp_path, method):
    options = ConvertOptions(bits=3, method=method, **SMALL)
    whole = tmp_path / "whole"
    assert not convert(str(llama), whole, options).resumed
    out = tmp_path / "out"
    for stop_at in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            convert(str(llama), out, options, Spy(stop_at))
        assert not out.exists()
    spy = Spy()
    assert convert(str(llama), out, options, spy).resumed
    assert next(stage for stage in spy.stages if stage[0].startswith("Quantising"))[2] == 3
    assert digest(out) == digest(whole)


def test_killed_in_the_middle(llama, tmp_path):
    """SIGKILL when the journal holds some blocks; a former artefact stays valid meanwhile."""
    source = tiny_checkpoint("llama", tmp_path / "deep", num_hidden_layers=24)
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(str(source), whole, options)
    convert(str(llama), out, options)
    before = digest(out)
    script = (
        "import sys\nfrom edgetok.converter.convert import ConvertOptions, convert\n"
        "convert(sys.argv[1], sys.argv[2], ConvertOptions(bits=4, method='rtn',"
        " reference_tokens=0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(source), str(out)])
    journal = partial_folder(out) / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"layers.") > 3:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert digest(out) == before
    verify_manifest(out)
    assert journal.exists()
    assert convert(str(source), out, options).resumed
    assert digest(out) == digest(whole)
    verify_manifest(out)


def test_disk_full_at_every_write(llama, tmp_path, monkeypatch):
    """ENOSPC at the n-th write, for every n: never a half artefact, and always resumable."""
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    out = tmp_path / "out"
    convert(str(llama), out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
    before = digest(out)
    whole = tmp_path / "whole"
    convert(str(llama), whole, options)
    real_write, real_pwrite = os.write, os.pwrite
    left = 0

    def guard(real):
        def write(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return write

    monkeypatch.setattr(os, "write", guard(real_write))
    monkeypatch.setattr(os, "pwrite", guard(real_pwrite))
    failures = 0
    finished = False
    while not finished:
        left = 7 * (failures + 1)
        try:
            convert(str(llama), out, options)
            finished = True
        except OutputError as error:
            says = str(error)
            failures += "No space left" in says
            assert digest(out) == before, says
    monkeypatch.undo()
    assert failures > 3
    assert digest(out) == digest(whole)


def test_other_options_start_afresh(llama, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, ConvertOptions(bits=4, method="rtn"), Spy(2))
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    assert not convert(str(llama), out, options).resumed
    convert(str(llama), tmp_path / "whole", options)
    assert digest(out) == digest(tmp_path / "whole")


def test_source_is_never_touched(llama, tmp_path):
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in llama.iterdir()}
    for bad in (llama, llama / "inside", llama.parent):
        with pytest.raises(OutputError, match=r"convert|not an edgetok model"):
            convert(str(llama), bad, ConvertOptions(method="rtn"))
    convert(str(llama), tmp_path / "out", ConvertOptions(method="rtn", reference_tokens=0))
    assert before == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in llama.iterdir()}


def test_shards_give_the_same_bytes(llama, tmp_path):
    sharded = tiny_checkpoint("llama", tmp_path / "sharded", shards=3)
    options = ConvertOptions(method="rtn", reference_tokens=0)
    convert(str(llama), tmp_path / "a", options)
    convert(str(sharded), tmp_path / "b", options)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def peak_mb(source, out):
    script = (
        "import sys\nfrom edgetok.converter.convert import ConvertOptions, convert\n"
        "options = ConvertOptions(bits=4, method='rtn', reference_tokens=0)\n"
        "print(convert(sys.argv[1], sys.argv[2], options).peak_memory_mb)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def test_memory_does_not_grow_with_layers(tmp_path):
    peaks = {}
    for layers in (2, 14):
        source = tiny_checkpoint(
            "llama", tmp_path / f"m{layers}", num_hidden_layers=layers, bits16=False,
            dtype=torch.bfloat16, hidden_size=384, intermediate_size=1024, head_dim=32,
        )  # fmt: skip
        peaks[layers] = peak_mb(source, tmp_path / f"out{layers}")
    # Twelve more layers are 65 MB in float32.
    assert peaks[14] - peaks[2] < 15
