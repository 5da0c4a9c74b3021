"""The wrapper for JavaScript, in node and in a browser."""

from __future__ import annotations

import importlib.util
import json
import queue
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgetok.formats.artefact import open_artefact
from edgetok.native.languages import write_wrapper
from edgetok.native.library import MACHINES, build_library
from edgetok.runtime.base import with_spec
from edgetok.runtime.cpu.head_eviction import modules_of
from edgetok.runtime.cpu.requirements import needed_modules
from tests.native.wrappers.programs import (
    COUNT,
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
def test_node(node, app, expected_by_plain_arithmetic, python_by_plain_arithmetic, state, tmp_path):
    """In wasm sums are rounded otherwise, so long texts may differ at their end."""
    out = tmp_path / "out"
    found = told(run([node, PROGRAMS / "lifetime.mjs", app, PROMPT, state, out]))
    assert found.pop("closed chat") == found.pop("closed by model") == "the chat is closed"
    assert found.pop("closed model") == "the model is closed"
    python = python_by_plain_arithmetic
    known = {**expected_by_plain_arithmetic, "nothing": "the prompt is empty"}
    assert found.pop("then")[:30] == known.pop("then")[:30]
    check_programs(found, known)
    check_saved(python, out, found["saved"], exact=False)
    example = app / "node/example.mjs"
    check_example(lambda *told: [node, example, *told], app, known, python)


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
def test_browser(node, app, expected_by_plain_arithmetic, tmp_path):
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
    assert " ".join(map(str, json.loads(told))) == expected_by_plain_arithmetic["greedy"]


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
