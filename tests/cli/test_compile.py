"""`edgetok compile`: what it compiles, for what, and what it refuses before it compiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgetok.cli.main import run
from edgetok.kernels_cpu.program import shipping
from edgetok.kernels_cpu.program.loader import MODULES
from edgetok.kernels_cpu.simd.isa import choose
from edgetok.kernels_cpu.simd.target import Target


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], set[str]]]:
    """Targets and modules that were to be compiled; nothing is."""
    found: list[tuple[list[str], set[str]]] = []

    def compile_for(
        targets: Sequence[Target], modules: Sequence[str], cache: Path, progress: Any
    ) -> dict[Target, dict[str, bytes]]:
        found.append(([target.name for target in targets], set(modules)))
        return {target: {module: b"code" for module in modules} for target in targets}

    monkeypatch.setattr(shipping, "compile_for", compile_for)
    return found


def test_targets_and_modules(
    asked: list[tuple[list[str], set[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    targets, modules = asked.pop()
    assert targets == [Target.here(choose()).name]
    assert modules == set(told["modules"])
    assert {"attention.int8", "eviction.int8", "linear.q4", "bandwidth.kernels"} <= modules
    assert modules.isdisjoint({"attention.int4", "linear.q2", "experts.route", "linear.exact"})
    assert told["targets"][targets[0]] == {"objects": len(modules), "bytes": 4 * len(modules)}

    bits = ("--kv-bits", "4", "--kv-bits", "16")
    names = ("--target", "aarch64-linux-neon,x86_64-windows", "--target", "wasm32-wasm-portable")
    assert run(["compile", "--out", str(tmp_path / "b"), *bits, *names]) == 0
    targets, modules = asked.pop()
    assert targets == [
        *("aarch64-linux-neon", "x86_64-windows-avx512", "x86_64-windows-avxvnni"),
        *("x86_64-windows-avx2", "x86_64-windows-portable", "wasm32-wasm-portable"),
    ]
    assert {"attention.int4", "attention.float16", "eviction.int4", "eviction.float16"} <= modules
    assert "attention.int8" not in modules
    manifest = json.loads((tmp_path / "b/kernels.json").read_text())
    assert list(manifest["targets"]) == targets

    assert manifest["complete"] is False

    assert run(["compile", "--all", "--out", str(tmp_path / "c")]) == 0
    assert asked.pop()[1] == set(MODULES)
    assert json.loads((tmp_path / "c/kernels.json").read_text())["complete"] is True


def test_linked(
    asked: list[tuple[list[str], set[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One library for each target in place of objects."""
    from edgetok.native.kernel_library import KernelLinker

    monkeypatch.setattr(KernelLinker, "link", lambda self, objects: b"linked" * len(objects))
    names = ["x86_64-linux-avx2", "aarch64-macos-neon"]
    target = ("--target", ",".join(names))
    assert run(["compile", "--all", "--link", *target, "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = {"objects": len(MODULES), "bytes": 6 * len(MODULES)}
    assert told["targets"] == dict.fromkeys(names, size)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "kernels-aarch64-macos-neon.dylib",
        "kernels-x86_64-linux-avx2.so",
        "kernels.json",
    ]
    manifest = json.loads((tmp_path / "a/kernels.json").read_text())
    assert manifest["complete"] is True
    assert all("library" in entry for entry in manifest["targets"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "x86_64-beos-avx2"], "unknown target 'x86_64-beos-avx2'"),
        (
            ["--target", "x86_64-linux-avx1024"],
            "aarch64-windows with i8mm, neon, portable; wasm32-wasm",
        ),
        (["--target", "bogus"], "x86_64-linux, x86_64-macos, x86_64-windows with avx512, avxvnni"),
        (["--target", "x86_64-linux-avx2,"], "unknown target ''"),
        (["--link", "--target", "x86_64-windows-avx2"], "avx2 cannot be linked, only those of"),
        (["--link", "--target", "wasm32-wasm"], "do without --link"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--all"], "MODEL conflicts with --all"),
        (["--kv-bits", "7"], "'7' is not one of"),
    ],
)
def test_refused(
    asked: list[Any], arguments: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert run(["compile", "--out", str(tmp_path / "out"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not asked
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something(asked: list[Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["compile", "--out", str(tmp_path)]) == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err
    assert not asked
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
