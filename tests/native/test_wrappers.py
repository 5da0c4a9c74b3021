"""Wrappers of libedgetok: each gives what edgetok in Python gives, and fails as its language does.

`wrappers/lifetime.*` call everything; the examples are those that an export carries.
"""

from __future__ import annotations

import importlib.util
import json
import plistlib
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import edgetok
from edgetok.cache.limits import CacheLimits
from edgetok.cache.state import MASS, CacheState
from edgetok.formats.artefact import open_artefact
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.native.export import export_native
from edgetok.native.languages import LANGUAGES, write_wrapper
from edgetok.native.library import (
    HEADER,
    MACHINES,
    WINDOWS_LIBRARIES,
    Compiler,
    build_library,
    this_machine,
)
from edgetok.native.xcframework import MODULE_MAP
from edgetok.runtime.base import with_spec
from edgetok.runtime.cpu.head_eviction import modules_of
from edgetok.runtime.cpu.requirements import needed_modules
from edgetok.sampling.options import SamplingOptions
from tests.native.test_tokens import GREEDY, python_answer

pytestmark = [
    pytest.mark.skipif(this_machine() is None, reason="libedgetok is built for other machines"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]

PROGRAMS = Path(__file__).parent / "wrappers"
PROMPT = "Once upon a time there was a"
DRAWN = SamplingOptions(temperature=0.8, top_k=40, top_p=0.95, min_p=0.0, seed=2**64 - 1)
COUNT = 20


@pytest.fixture(scope="module")
def bundled(repository: Path) -> Path:
    return repository / "models/default-4bit"


@pytest.fixture(scope="module")
def app(bundled: Path, kernel_cache: Path, tmp_path_factory) -> Path:
    """The bundled model with the wrappers that this machine's library is enough for."""
    out = tmp_path_factory.mktemp("wrappers") / "app"
    here = this_machine().name
    wrappers = [name for name, language in LANGUAGES.items() if here in language.targets]
    export_native(
        bundled, out, [here], cache_dir=kernel_cache, isas=host_isas()[:1], wrappers=wrappers
    )
    assert {"python", "rust"} <= set(wrappers)
    return out


@pytest.fixture(scope="module")
def python(bundled: Path, kernel_cache: Path):
    """The same model in Python."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
        with edgetok.load(bundled, context=256, threads=1, kv_policy="window") as model:
            yield model


def new_cache(backend):
    """A cache like that of a chat with a context and nothing else."""
    return backend.new_bounded_cache(256, CacheLimits())


@pytest.fixture(scope="module")
def state(python, tmp_path_factory) -> Path:
    """A cache that Python filled with the prompt."""
    cache = new_cache(python.backend)
    python.backend.forward(cache, np.array(python.tokenizer.encode(PROMPT), np.int32))
    path = tmp_path_factory.mktemp("state") / "state"
    path.write_bytes(cache.save().block.tobytes())
    return path


@pytest.fixture(scope="module")
def expected(python, bundled, state) -> dict[str, str]:
    """What each program prints, by edgetok in Python."""
    backend, eos = python.backend, python.engine.eos_tokens
    ids = np.array(python.tokenizer.encode(PROMPT), np.int32)

    def answer(prompt, options=GREEDY, cache=None):
        cache = cache or new_cache(backend)
        return python_answer(backend, cache, prompt, options, COUNT, eos)

    def joined(tokens):
        return " ".join(str(int(token)) for token in tokens)

    greedy = answer(ids)
    assert len(greedy) == COUNT
    whole = np.array([*ids, *greedy[:-1]], np.int32)
    cache = new_cache(backend)
    backend.forward(cache, ids)
    for token in greedy[:-1]:
        logits = backend.forward(cache, np.array([token], np.int32))
    restored = new_cache(backend)
    restored.load(CacheState(np.frombuffer(state.read_bytes(), np.uint8).copy()))
    stopped = python.generate(PROMPT, max_tokens=40, temperature=0.0, stop=["never", " girl"])
    chat = python.new_chat(system="You are a pirate.")
    options = {"max_tokens": COUNT, "temperature": 0.0}
    texts = ("Hi! Who are you?", "Tell me a story about a cat.")
    said = [chat.send(text, **options).run() for text in texts]
    sha256 = json.loads((bundled / "manifest.json").read_text())["files"]["model.onnx.data"]
    spec = backend.spec
    return {
        "info": f"{spec.vocab_size} {len(spec.layers)} 8 1 {spec.family}",
        "sha256": sha256 if isinstance(sha256, str) else sha256["sha256"],
        "flags": "1 1",
        "ids": joined(ids),
        "pieces": PROMPT,
        "no piece": "True",
        "no logits": "True",
        "greedy": joined(greedy),
        "logits": f"{spec.vocab_size} {np.argmax(logits)}",
        "stats": f"{len(whole)} {len(ids)} 0 {COUNT}",
        "truncate": "3",
        "nothing": "nothing to continue: call edgetok_prefill or edgetok_say first",
        "again": joined(greedy),
        "cached": "3",
        "drawn": joined(answer(ids, DRAWN)),
        "stopped": stopped.text,
        "saved": joined(whole),
        "tokens": joined(whole),
        "restored": joined(answer(np.array([5], np.int32), cache=restored)),
        "restored cached": str(len(ids)),
        "no state": "this is not a saved cache",
        "said": said[0].text,
        "finish": said[0].finish,
        "then": said[1].text,
        "cancelled": "3",
        "policy": "cache policy h2o",
        "token": f"token {spec.vocab_size}, expected 0 to {spec.vocab_size - 1}",
        "nul": "a text holds a NUL character; remove it",
        "option": "a sampling option is out of range",
    }


@pytest.fixture
def drawn_by_plain_arithmetic(bundled, kernel_cache, monkeypatch) -> str:
    """What is drawn with kernels like those of wasm, whose sums are rounded otherwise."""
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    with edgetok.load(bundled, context=256, threads=1, kv_policy="window", isa="portable") as model:
        ids = np.array(model.tokenizer.encode(PROMPT), np.int32)
        cache = new_cache(model.backend)
        drawn = python_answer(model.backend, cache, ids, DRAWN, COUNT, model.engine.eos_tokens)
    return " ".join(str(int(token)) for token in drawn)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The lines of a program by name."""
    assert done.returncode == 0, done.stderr
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: value.encode().decode("unicode_escape") for name, _, value in lines}


def run(command: list[object], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )


def check_programs(found: dict[str, str], expected: dict[str, str]) -> None:
    """All that every program prints."""
    found["policy"] = found["policy"][: len(expected["policy"])]
    assert re.search("model.plan: cannot be (opened|read)", found.pop("no folder"))
    assert found == expected


def without_mass(block: bytes) -> dict[tuple[int, int], bytes]:
    """All else of a saved cache: a chat that went back keeps the mass that later tokens gave."""
    state = CacheState(np.frombuffer(block, np.uint8).copy())
    kept = sorted(key for key in state.sections if key[0] != MASS)
    return {key: state.section(key[0], np.uint8, key[1]).tobytes() for key in kept}


def check_saved(python, out: Path, ids: str, *, exact: bool = True) -> None:
    """Python goes on from the cache that a program saved, as from its own."""
    backend, tokens = python.backend, np.array(ids.split(), np.int32)
    prompt = np.array(python.tokenizer.encode(PROMPT), np.int32)
    saved, own = new_cache(backend), new_cache(backend)
    saved.load(CacheState(np.frombuffer(out.read_bytes(), np.uint8).copy()))
    assert saved.length_tokens == len(tokens)
    backend.forward(own, prompt)
    for token in tokens[len(prompt) :]:
        backend.forward(own, np.array([token], np.int32))
    if exact:
        assert without_mass(out.read_bytes()) == without_mass(own.save().block.tobytes())
    more = np.array([5, 6, 7], np.int32)
    eos = python.engine.eos_tokens
    assert python_answer(backend, saved, more, GREEDY, COUNT, eos) == python_answer(
        backend, own, more, GREEDY, COUNT, eos
    )


def check_example(command: Callable[..., list[object]], app: Path, expected, python) -> None:
    """An example prints text, or tokens, or one line that says what is wrong."""
    text = python.generate(PROMPT, max_tokens=COUNT, temperature=0.0).text
    done = run(command(app, PROMPT, COUNT))
    assert (done.returncode, done.stdout.rstrip()) == (0, text.rstrip()), done.stderr
    assert run(command(app, PROMPT, COUNT, "--ids")).stdout.rstrip() == expected["greedy"]
    wrong = run(command(app.parent, PROMPT, COUNT))
    assert wrong.returncode == 1
    assert re.fullmatch(r"[^\n]*(cannot be (opened|loaded|read))[^\n]*\n", wrong.stderr)


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


def wine() -> str:
    """Debian's package has no link to the program."""
    places = (shutil.which("wine64"), shutil.which("wine"), "/usr/lib/wine/wine64")
    found = next((place for place in places if place and Path(place).exists()), None)
    if found is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs wine64, and ziglang: the extra [native]")
    return found


@pytest.mark.slow
def test_windows_under_wine(bundled, kernel_cache, expected, python, tmp_path, monkeypatch):
    """The example with the static library, and with the DLL."""
    program, out = wine(), tmp_path / "app"
    export_native(bundled, out, ["x86_64-windows"], cache_dir=kernel_cache, isas=["avx2"])
    monkeypatch.setenv("WINEDEBUG", "-all")
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "prefix"))
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
        command = [program, place / "example.exe"]
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
def node(app: Path, bundled: Path, kernel_cache: Path) -> str:
    """node; the app has the package for it."""
    found = shutil.which("node")
    if found is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs node, and ziglang: the extra [native]")
    with open_artefact(bundled) as opened:
        artefact, _ = with_spec(opened)
        modules = [*needed_modules(artefact, 8, "int8"), *modules_of(8)]
    (app / "lib/wasm32").mkdir()
    build_library(MACHINES["wasm32"], modules, app / "lib/wasm32", kernel_cache)
    write_wrapper("node", app)
    return found


@pytest.mark.slow
def test_node(node, app, expected, drawn_by_plain_arithmetic, python, state, tmp_path):
    """In wasm sums are rounded otherwise, so long texts may differ at their end."""
    out = tmp_path / "out"
    found = told(run([node, PROGRAMS / "lifetime.mjs", app, PROMPT, state, out]))
    assert found.pop("closed chat") == found.pop("closed by model") == "the chat is closed"
    assert found.pop("closed model") == "the model is closed"
    known = {**expected, "nothing": "the prompt is empty", "drawn": drawn_by_plain_arithmetic}
    assert found.pop("then")[:30] == known.pop("then")[:30]
    check_programs(found, known)
    check_saved(python, out, found["saved"], exact=False)
    example = app / "node/example.mjs"
    check_example(lambda *told: [node, example, *told], app, expected, python)


IN_BROWSER = """<!doctype html><script type="module">
const send = (told) => fetch('/told', { method: 'POST', body: JSON.stringify(told) })
try {
  const { load } = await import('/node/edgetok.mjs')
  const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer())
  const edgetok = await load(await bytes('/node/edgetok.wasm'))
  const files = {}
  for (const name of ['model.plan', 'model.onnx.data']) files[name] = await bytes('/' + name)
  const model = edgetok.open(files), chat = model.chat({ context: 256 })
  chat.sample({ maxTokens: COUNT })
  await send(Array.from(chat.prefill(model.encode(PROMPT)), (one) => one.token))
} catch (error) {
  await send(String(error))
}
</script>"""


class Page(SimpleHTTPRequestHandler):
    """Serves a folder and a page, and keeps what the page sends."""

    text = b""
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def do_GET(self):
        if self.path != "/page":
            return super().do_GET()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        return self.wfile.write(self.text)

    def do_POST(self):
        self.told.put(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_browser(node, app, expected, tmp_path):
    """The same module that node loads, in a page of a headless browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium")
    Page.text = IN_BROWSER.replace("COUNT", str(COUNT)).replace("PROMPT", repr(PROMPT)).encode()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, directory=str(app))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/page"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        with subprocess.Popen(
            [program, *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                told = Page.told.get(timeout=300)
            finally:
                process.kill()
                server.shutdown()
    assert " ".join(map(str, json.loads(told))) == expected["greedy"]


@pytest.mark.slow
def test_node_package(node, app, tmp_path):
    """What `npm pack` takes is all that is imported, and has types."""
    described = json.loads((app / "node/package.json").read_text())
    for one in described["exports"].values():
        assert {one["types"][2:], one["default"][2:]} <= set(described["files"])
    place = tmp_path / "node_modules/edgetok"
    place.mkdir(parents=True)
    for name in [*described["files"], "package.json"]:
        shutil.copy(app / "node" / name, place)
    program = """
    import { open } from 'edgetok'
    import { load } from 'edgetok/browser'
    const model = await open(process.argv[2])
    console.log(typeof load, model.encode('a').length)
    """
    (tmp_path / "program.mjs").write_text(program)
    done = run([node, "program.mjs", app], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("function 1\n", "")
    # Every name of the types is there, and nothing else.
    (tmp_path / "names.mjs").write_text("""
    import { open } from 'edgetok'
    const model = await open(process.argv[2])
    const chat = model.chat()
    const names = (one) => Object.getOwnPropertyNames(Object.getPrototypeOf(one))
    const [info, stats] = [model.describe(), chat.stats()].map(Object.keys)
    console.log(JSON.stringify({ Model: names(model), Chat: names(chat),
      Info: info, Stats: stats }))
    """)
    done = run([node, "names.mjs", app], cwd=tmp_path)
    source = (app / "node/edgetok.d.mts").read_text()
    source = re.sub(r"/\*.*?\*/", "", source)
    for name, shown in json.loads(done.stdout).items():
        (body,) = re.findall(r"interface %s \{(.*?)\n\}" % name, source, re.S)  # noqa: UP031
        declared = re.findall(r"(?:^|;)\s*(\w+)[(:]", body, re.M)
        assert set(declared) | {"constructor"} == set(shown) | {"constructor"}


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
