"""Wrappers of libedgetok: each gives what edgetok in Python gives, and fails as its language does.

`wrappers/lifetime.*` call everything; the examples are those that an export carries.
"""

from __future__ import annotations

import importlib.util
import plistlib
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from edgetok.native.export import export_native
from edgetok.native.languages import write_wrapper
from edgetok.native.library import (
    HEADER,
    MACHINES,
    WINDOWS_LIBRARIES,
    Compiler,
    build_library,
    this_machine,
)
from edgetok.native.xcframework import MODULE_MAP
from tests.native.wrappers.programs import (
    PROGRAMS,
    PROMPT,
    check_example,
    check_programs,
    check_saved,
    pytestmark,
    run,
    told,
)

__all__ = ["pytestmark"]


def test_python(app, expected, python, state, tmp_path):
    """In a process in which edgetok, NumPy and Numba cannot be imported, and no compiler found."""
    pytest.importorskip("cffi", reason="needs cffi")
    out, machine = tmp_path / "out", this_machine()
    shared = app / "lib" / machine.name / machine.shared
    (app / "lib/include").mkdir(exist_ok=True)
    shutil.copy(HEADER, app / "lib/include")
    command = [sys.executable, "-I", PROGRAMS / "lifetime.py", app, PROMPT, state, out, shared]
    found = told(run(command, env={}, cwd=tmp_path))
    assert found.pop("closed under") == "the chat is closed"
    assert found.pop("closed chat") == found.pop("closed by model") == "the chat is closed"
    assert found.pop("closed model") == "the model is closed"
    check_programs(found, expected)
    check_saved(python, out, found["saved"])
    example = app / "python/example.py"
    check_example(lambda *told: [sys.executable, example, *told], app, expected, python)


def test_python_frees_what_it_opens(app):
    """Memory of the process stays the same when models and chats come and go."""
    pytest.importorskip("cffi", reason="needs cffi")
    program = """
import sys
sys.path.insert(0, sys.argv[1] + "/python")
from libedgetok import Model
def once():
    with Model(sys.argv[1], threads=2) as model:
        for _ in range(3):
            chat = model.chat(256)
            chat.sample(max_tokens=3, stop=["x"])
            list(chat.say("Hello"))
            block = chat.save()
            chat.restore(block, [1] * chat.stats.tokens)
def kilobytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4
for _ in range(10):
    once()
before = kilobytes()
for _ in range(40):
    once()
print(kilobytes() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = run([sys.executable, "-W", "error", "-c", program, app])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4000  # one chat alone has more than 300 kB, and there were 120


@pytest.mark.slow
def test_windows_under_wine(bundled, kernel_cache, expected, python, wine, tmp_path):
    """The example with the static library, and with the DLL."""
    out = tmp_path / "app"
    export_native(bundled, out, ["x86_64-windows"], cache_dir=kernel_cache, isas=["avx2"])
    libraries = out / "lib/x86_64-windows"
    compiler = Compiler(MACHINES["x86_64-windows"])
    linked = {"static": ["libedgetok.a", *WINDOWS_LIBRARIES], "shared": ["edgetok.dll"]}
    for name, (library, *more) in linked.items():
        place = tmp_path / name
        place.mkdir()
        compiler.run(
            str(out / "example.c"), f"-I{out / 'include'}", str(libraries / library), *more,
            "-o", str(place / "example.exe"),
        )  # fmt: skip
        shutil.copy(libraries / "edgetok.dll", place)
        command = [wine, place / "example.exe"]
        run(command)  # makes the prefix
        check_example(partial(lambda *told: list(told), *command), out, expected, python)


def cargo() -> str:
    found = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo/bin"))
    if found is None:
        pytest.skip("needs cargo")
    return found


def test_rust(app, expected, python, state, tmp_path):
    tool, out = cargo(), tmp_path / "out"
    crate = shutil.copytree(app / "rust", tmp_path / "rust")
    shutil.copy(PROGRAMS / "lifetime.rs", crate / "examples/lifetime.rs")
    folder = app / "lib" / this_machine().name
    env = {
        "PATH": f"{Path(tool).parent}:/usr/bin:/bin", "HOME": str(Path.home()),
        "EDGETOK_LIB_DIR": str(folder), "RUSTFLAGS": "-D warnings",
    }  # fmt: skip
    built = run([tool, "build", "--offline", "--examples"], cwd=crate, env=env)
    assert built.returncode == 0, built.stderr
    programs = crate / "target/debug/examples"
    found = told(run([programs / "lifetime", app, PROMPT, state, out]))
    assert found.pop("elsewhere") == expected["greedy"]
    check_programs(found, expected)
    check_saved(python, out, found["saved"])
    check_example(lambda *told: [programs / "greedy", *told], app, expected, python)
    # A chat that was dropped is an error of the compiler.
    tested = run([tool, "test", "--offline", "--doc"], cwd=crate, env=env)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "compile fail" in tested.stdout
    assert "2 passed" in tested.stdout


@pytest.fixture(scope="module")
def jni(app: Path, tmp_path_factory) -> Path:
    """A folder with the library that Edgetok.kt loads; warnings are errors."""
    home = Path(shutil.which("javac") or "").resolve().parent.parent
    if not (home / "include/jni.h").exists():
        pytest.skip("needs a JDK: javac and jni.h")
    (system,) = (path.name for path in (home / "include").iterdir() if path.is_dir())
    out = tmp_path_factory.mktemp("jni") / "libedgetok_jni.so"
    source = app / "kotlin/src/main/cpp/edgetok_jni.c"
    include = [f"-I{place}" for place in (home / "include", home / "include" / system)]
    flags = ["-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-shared"]
    flags += ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{app / 'include'}"]
    static = app / "lib" / this_machine().name / "libedgetok.a"
    built = run(["cc", *flags, *include, source, static, "-lpthread", "-lm", "-o", out])
    assert built.returncode == 0, built.stderr
    return out.parent


@pytest.mark.slow
def test_kotlin(jni, app, expected, python, state, tmp_path):
    """On a JVM that checks each call of JNI."""
    if shutil.which("kotlinc") is None or shutil.which("java") is None:
        pytest.skip("needs kotlinc and java")
    sources = [app / "kotlin/src/main/kotlin/edgetok/Edgetok.kt", app / "kotlin/example/Example.kt"]
    jar, out = tmp_path / "app.jar", tmp_path / "out"
    sources.append(PROGRAMS / "Lifetime.kt")
    built = run(["kotlinc", "-Werror", *sources, "-include-runtime", "-d", jar])
    assert built.returncode == 0, built.stderr
    java = ["java", f"-Djava.library.path={jni}", "-cp", jar]
    done = run([*java, "-Xcheck:jni", "LifetimeKt", app, PROMPT, state, out])
    assert "WARNING" not in done.stdout + done.stderr
    found = told(done)
    for name in ("closed under", "closed chat", "closed by model"):
        assert found.pop(name) == "the chat is closed"
    assert found.pop("closed model") == "the model is closed"
    check_programs(found, expected)
    check_saved(python, out, found["saved"])
    check_example(lambda *told: [*java, "ExampleKt", *told], app, expected, python)


def test_xcframework(kernel_cache, tmp_path):
    """Both systems' libraries are whole, and say which system they are for."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang: the extra [native]")
    for name in ("arm64-ios", "arm64-macos"):
        place = tmp_path / "lib" / name
        place.mkdir(parents=True)
        build_library(
            MACHINES[name], ["program.interpreter"], place, kernel_cache, isas=["neon"]
        )  # fmt: skip
    write_wrapper("swift", tmp_path)
    framework = tmp_path / "swift/CEdgetok.xcframework"
    told = plistlib.loads((framework / "Info.plist").read_bytes())
    assert told["XCFrameworkFormatVersion"] == "1.0"
    assert [one["SupportedPlatform"] for one in told["AvailableLibraries"]] == ["ios", "macos"]
    for one, platform in zip(told["AvailableLibraries"], (2, 1), strict=True):
        place = framework / one["LibraryIdentifier"]
        library = (place / one["LibraryPath"]).read_bytes()
        assert library.startswith(b"!<arch>\n")
        for name in ("edgetok_open", "et_kernel_sets", "edgetok_wait"):
            assert f"_{name}\0".encode() in library
        # LC_BUILD_VERSION of each object, and its platform.
        versions = re.findall(rb"\x32\0\0\0[\x18\x20]\0\0\0(.)\0\0\0", library, re.S)
        assert len(versions) > 10
        assert set(versions) == {bytes([platform])}
        headers = place / one["HeadersPath"]
        assert (headers / "edgetok.h").read_bytes() == HEADER.read_bytes()
        assert "module CEdgetok" in (headers / "module.modulemap").read_text()


@pytest.mark.slow
def test_swift(app, expected, python, state, tmp_path):
    """On this machine, with a module map as an XCFramework has it; warnings are errors."""
    if shutil.which("swiftc") is None:
        pytest.skip("needs swiftc")
    (tmp_path / "module.modulemap").write_text(MODULE_MAP)
    shutil.copy(HEADER, tmp_path)
    wrappers = Path(HEADER).parent.parent / "wrappers/swift/Sources"
    flags = ["-swift-version", "5", "-warnings-as-errors", "-I", "."]
    module = ["-module-name", "Edgetok", "-parse-as-library", "-c", "-emit-module"]
    source = wrappers / "Edgetok/Edgetok.swift"
    built = run(["swiftc", *flags, *module, source, "-o", "Edgetok.o"], cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    static = app / "lib" / this_machine().name / "libedgetok.a"
    programs = {"lifetime": PROGRAMS / "lifetime.swift", "greedy": wrappers / "greedy/main.swift"}
    for name, main in programs.items():
        (tmp_path / "main.swift").write_text(main.read_text())
        command = ["swiftc", *flags, "main.swift", "Edgetok.o", "-Xlinker", static]
        built = run([*command, "-lm", "-lpthread", "-o", name], cwd=tmp_path)
        assert built.returncode == 0, built.stderr
    out = tmp_path / "out"
    found = told(run([tmp_path / "lifetime", app, PROMPT, state, out]))
    for name in ("closed under", "closed chat", "closed by model"):
        assert found.pop(name) == "the chat is closed"
    assert found.pop("closed model") == "the model is closed"
    check_programs(found, expected)
    check_saved(python, out, found["saved"])
    check_example(lambda *told: [tmp_path / "greedy", *told], app, expected, python)
