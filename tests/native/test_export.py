"""`edgetok export --format native`, and a C program that runs what it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import edgetok
from edgetok.cli.main import cli
from edgetok.errors import EdgetokError, OptionError, OutputError
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.native import check
from edgetok.native.export import export_native
from edgetok.native.library import this_machine

pytestmark = [
    pytest.mark.skipif(this_machine() is None, reason="libedgetok is built for other machines"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["export", *map(str, arguments)])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.output


@pytest.fixture(scope="module")
def exported(repository: Path, kernel_cache: Path, tmp_path_factory) -> tuple[Path, dict]:
    """The bundled model, by the command."""
    out = tmp_path_factory.mktemp("export") / "app"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
        code, said = run(
            repository / "models/default-4bit", "--format", "native", "--out", out, "--json",
            "--target", this_machine().name, "--isa", host_isas()[0], "--with", "python",
        )  # fmt: skip
    assert code == 0, said
    return out, json.loads(said)


def test_folder(exported, repository):
    out, told = exported
    library = out / "lib" / this_machine().name
    names = {"CMakeLists.txt", "example.c", "export.json", "model.onnx.data", "model.plan"}
    assert {path.name for path in out.iterdir()} == names | {"include", "lib", "python"}
    assert {path.name for path in (out / "python").iterdir()} == {"example.py", "libedgetok.py"}
    assert told["wrappers"] == ["python"]
    assert told["compared"] == {"prompts": 4, "texts": 4000}
    assert told["refused"] == {}
    assert told["targets"][this_machine().name]["libedgetok.a"] < 2e6
    assert json.loads((out / "export.json").read_text()).items() <= told.items()
    weights = (repository / "models/default-4bit/model.onnx.data").read_bytes()
    assert (out / "model.onnx.data").read_bytes() == weights
    assert (library / "libedgetok.a").stat().st_size > 100_000


def test_example(exported, repository, kernel_cache, monkeypatch):
    """As the README says: one line to build it, and the tokens are Python's."""
    out, _ = exported
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    static = f"lib/{this_machine().name}/libedgetok.a"
    build = ["cc", "example.c", "-Iinclude", static, "-lpthread", "-lm"]
    subprocess.run(build, cwd=out, check=True)
    prompt = "Once upon a time"
    with edgetok.load(repository / "models/default-4bit", context=512) as model:
        answer = model.generate(prompt, max_tokens=30, temperature=0.0)
    for arguments, expected in (((), answer.text), (("--ids",), " ".join(map(str, answer.tokens)))):
        done = subprocess.run(
            [out / "a.out", out, prompt, "30", *arguments],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.rstrip() == expected.rstrip()
    wrong = subprocess.run(
        [out / "a.out", out / "lib", prompt, "3"], capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert "model.plan: cannot be opened" in wrong.stderr


def test_a_program_without_python(exported):
    """Nothing but the C library is linked."""
    out, _ = exported
    shared = out / "lib" / this_machine().name / this_machine().shared
    found = subprocess.run(["ldd", shared], capture_output=True, text=True, check=True).stdout
    assert "python" not in found
    assert "stdc++" not in found


def test_what_is_refused(repository, tmp_path, kernel_cache):
    model = repository / "models/default-4bit"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    options = {"cache_dir": kernel_cache}
    with pytest.raises(OutputError, match="is not empty"):
        export_native(model, tmp_path / "full", ["x86_64-linux"], **options)
    with pytest.raises(OptionError, match="expected one of x86_64-linux, aarch64-linux"):
        export_native(model, tmp_path / "out", ["vax"], **options)
    for isa, said in (("neon", "no kernels for neon"), ("mmx", "instruction set 'mmx'")):
        with pytest.raises(OptionError, match=said):
            export_native(model, tmp_path / "out", ["x86_64-linux"], isas=[isa], **options)
    assert not (tmp_path / "out").exists()
    code, said = run(model, "--out", tmp_path / "out", "--target", "wasm32")
    assert code == 2
    assert "belong to --format native" in said


def test_a_library_that_differs_is_not_exported(repository, tmp_path, kernel_cache, monkeypatch):
    monkeypatch.setattr(check, "texts", lambda count, special: iter(["Hello"]))
    monkeypatch.setattr(check.Tokenizer, "encode", lambda self, text, special: [1])
    with pytest.raises(EdgetokError, match="the exported tokenizer differs on 'Hello'"):
        export_native(
            repository / "models/default-4bit", tmp_path / "out", [this_machine().name],
            cache_dir=kernel_cache, isas=host_isas()[:1],
        )  # fmt: skip
    assert os.listdir(tmp_path) == []
