"""Exported libraries of other instruction sets and machines, run where something runs them."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess

import pytest

from edgetok.errors import EdgetokError
from edgetok.formats.artefact import open_artefact
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.native import elsewhere
from edgetok.native.elsewhere import Exports, Run, compare_elsewhere, divergence
from edgetok.native.library import MACHINES, build_library, this_machine
from edgetok.runtime.cpu.head_eviction import modules_of
from edgetok.runtime.cpu.requirements import needed_modules
from tests.native.conftest import write_export

ziglang = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang: the extra [native]"
)


@pytest.fixture
def exported(tiny, kernel_cache, tmp_path):
    """Makes an export of a tiny model, with the libraries of some targets."""
    with open_artefact(tiny("qwen3", 4).artefact) as artefact:

        def make(*names: str, isas=()) -> Exports:
            out = write_export(artefact.folder, tmp_path / "out", block_tokens=256)
            modules = [*needed_modules(artefact, 8, "int8"), *modules_of(8)]
            for name in names:
                place = out / "lib" / name
                place.mkdir(parents=True)
                build_library(MACHINES[name], modules, place, kernel_cache, isas=isas)
            return Exports(
                artefact=artefact, folder=out, modules=modules, isas=isas, kv_bits=8,
                cache_dir=kernel_cache,
            )  # fmt: skip

        yield make


def test_divergence():
    """Of three outcomes, by hand; logits that are shifted are the same distribution."""
    p, q = [math.log(part) for part in (1, 2, 5)], [math.log(part) for part in (4, 2, 2)]
    expected = math.log(1 / 4) / 8 + 5 / 8 * math.log(5 / 2)
    assert math.isclose(divergence(p, q), expected, rel_tol=1e-9)
    assert divergence(p, [value + 7 for value in p]) < 1e-12
    assert math.isnan(divergence(p, [math.nan] * 3))


@pytest.mark.skipif(this_machine() is None, reason="libedgetok is built for other machines")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
def test_what_is_not_run_says_why(exported, monkeypatch):
    here = this_machine()
    monkeypatch.setattr(elsewhere.shutil, "which", lambda name: None)
    reasons = {
        "arm64-macos": "nothing here runs it", "aarch64-android": "nothing here runs it",
        "aarch64-linux": "needs qemu-aarch64", "wasm32": "needs node",
    }  # fmt: skip
    reasons.pop(here.name, None)
    runs = compare_elsewhere(exported(), [MACHINES[name] for name in reasons])
    assert {run.kl for run in runs} == {None}
    assert {run.target: run.why for run in runs} == reasons
    assert compare_elsewhere(exported(), [here]) == ()
    other = next(name for name in ("avx512", "i8mm") if name not in host_isas())
    made = exported(isas=[other])
    assert compare_elsewhere(made, [here])[0].why == "this processor does not have it"


@pytest.mark.slow
@ziglang
@pytest.mark.parametrize(
    ("tool", "name", "isa", "most"),
    [
        ("qemu-aarch64", "aarch64-linux", "neon", 1e-6),
        ("node", "wasm32", "portable", 1e-3),
    ],
)
def test_what_is_run(exported, monkeypatch, tool, name, isa, most):
    """The logits of an emulated machine are Python's; if they were not, the export would fail."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    made = exported(name, isas=[isa])
    (run,) = compare_elsewhere(made, [MACHINES[name]])
    assert run == Run(target=name, isa=isa, by=tool, kl=run.kl)
    assert 0 <= run.kl < most
    monkeypatch.setattr(elsewhere, "divergence", lambda expected, found: 0.5)
    with pytest.raises(EdgetokError, match=r"differs from Python by 0\.5 nats"):
        compare_elsewhere(made, [MACHINES[name]])
    monkeypatch.undo()

    def late(*arguments, **options):
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(elsewhere.subprocess, "run", late)
    monkeypatch.setattr(elsewhere.Compiler, "run", lambda *arguments: None)
    assert compare_elsewhere(made, [MACHINES[name]])[0].why == f"{tool} took longer than 120 s"
