"""The chat page in a real browser, against a real model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetok.models.bundled import bundled_model
from tests.fake import CHATML
from tests.serve.conftest import Process, Rule
from tests.serve.writing import written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_it_is_one_file_that_loads_nothing(server: Process, repository: Path) -> None:
    response = httpx.get(server.url + "/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text == (repository / "edgetok/serve/page.html").read_text()
    assert not re.search(r"https?:|//cdn|\bsrc=|@import|url\(", response.text)
    assert "innerHTML" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.fixture(scope="module")
def bounded() -> Iterator[Process]:
    made = Process(f"tiny={bundled_model()}", "--context", "96", "--kv-policy", "retain")
    yield made
    made.stop()


@pytest.fixture
def browse() -> Iterator[Callable[[str], Any]]:
    """A function that opens an address in a headless browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def go(url: str) -> Any:
            made = browser.new_page(viewport={"width": 900, "height": 700})
            made.problems = []
            made.on("console", lambda one: made.problems.append(one.text))
            made.on("pageerror", lambda one: made.problems.append(str(one)))
            made.asked = []
            made.on("request", lambda one: made.asked.append(one.url))
            made.goto(url)
            return made

        yield go
        browser.close()


def send(page: Any, text: str) -> str:
    """Say something and wait for the whole answer."""
    count = page.locator(".assistant").count()
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "count => document.querySelectorAll('.assistant').length > count"
        " && document.getElementById('send').textContent === 'Send'",
        arg=count,
    )
    found: str = page.locator(".assistant").last.inner_text()
    return found


def test_a_conversation(browse: Any, bounded: Process) -> None:
    page = browse(bounded.url)
    page.locator("#settings summary").click()
    page.locator("#temperature").fill("0")
    page.locator("#settings summary").click()
    first = send(page, "Hello!")
    expected = bounded.chat("Hello!", temperature=0).json()["choices"][0]["message"]["content"]
    assert first == expected
    assert "tokens of 96" in page.locator("#used").inner_text()
    assert page.locator("#strip i").count() > 5
    for said in ("Tell me a story of a dog.", "<b>And</b> then?", "Tell me a story of a cat."):
        send(page, said)
    assert page.locator(".user").nth(2).inner_text() == "<b>And</b> then?"
    assert "of them evicted; room for 96" in page.locator("#used").inner_text()
    assert page.locator(".note").count() >= 1  # an answer was cut, which is told
    assert float(page.locator("#loss").evaluate("one => one.value")) > 0
    opacities = page.locator("#strip i").evaluate_all("all => all.map(one => one.style.opacity)")
    assert min(map(float, opacities)) < 0.5 < max(map(float, opacities))
    if folder := os.environ.get("EDGETOK_PICTURES"):
        page.screenshot(path=f"{folder}/chat.png")
    page.locator("#again").click()
    page.wait_for_function("() => document.getElementById('send').textContent === 'Send'")
    assert page.locator(".user").count() == page.locator(".assistant").count() == 4
    page.locator("#clear").click()
    assert page.locator(".turn").count() == 0
    assert page.problems == []
    assert all(url.startswith((bounded.url, "data:")) for url in page.asked)


def test_stop_ends_the_answer(browse: Any, rule: Callable[..., Rule]) -> None:
    api = rule(rule=lambda tokens: 65, step_s=0.05)
    page = browse(api.url)
    page.locator("#text").fill("Tell me a long story.")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.assistant')?.textContent.length > 3")
    assert page.locator("#send").inner_text() == "Stop"
    page.locator("#send").click()
    page.wait_for_function("() => document.getElementById('send').textContent === 'Send'")
    api.wait_until("running", 0)
    text = page.locator(".assistant").inner_text()
    assert len(set(text)) == 1
    page.locator("#again").click()
    page.wait_for_function("() => document.getElementById('send').textContent === 'Stop'")
    page.close()
    api.wait_until("running", 0)
    assert page.problems == []


def test_reasoning_stands_beside_the_answer_and_is_not_sent(
    browse: Any, rule: Callable[..., Rule]
) -> None:
    thinks = written("<think>\nWell, well.\n</think>\n\nYes.")
    api = rule(rule=thinks, template=CHATML + "{# </think> #}")
    page = browse(api.url)
    assert send(page, "Really?") == "Yes."
    assert page.locator(".thought span").text_content().strip() == "Well, well."
    assert not page.locator(".thought span").is_visible()
    page.locator(".thought summary").click()
    assert page.locator(".thought span").is_visible()
    with page.expect_request("**/chat/completions") as asked:
        send(page, "And now?")
    assert [one["content"] for one in asked.value.post_data_json["messages"]] == [
        "Really?",
        "Yes.",
        "And now?",
    ]
    assert page.problems == []


def test_the_talk_shows_what_is_sent(browse: Any, rule: Callable[..., Rule]) -> None:
    """Messages that were refused, and answers in place of which others come, are not in it."""
    page = browse(rule(context=96).url)
    page.locator("#text").fill("x" * 500)
    page.keyboard.press("Enter")
    page.locator(".error").wait_for()
    assert send(page, "y" * 60).startswith("1:YY")
    assert page.locator(".turn").count() == 3  # with the note that the answer was cut
    assert page.locator(".note").count() == 1
    page.locator("#again").click()
    page.wait_for_function("() => document.getElementById('send').textContent === 'Send'")
    assert page.locator(".turn").count() == 3
    assert page.locator(".note").count() == 1


def test_who_reads_further_up_is_left_there(browse: Any, rule: Callable[..., Rule]) -> None:
    api = rule(rule=lambda tokens: 10, step_s=0.02)
    page = browse(api.url)
    page.locator("#text").fill("a line\n" * 40)
    tall = page.locator("#text").evaluate("one => one.clientHeight")
    assert 100 < tall <= 0.3 * 700
    page.keyboard.press("Enter")
    said = "document.querySelector('.assistant').textContent"
    bottom = "document.getElementById('talk').scrollTop > 300"
    page.wait_for_function(f"() => {bottom} && {said} !== '…'")
    page.locator("#talk").evaluate("one => one.scrollTop = 100")
    before = page.evaluate(f"{said}.length")
    page.wait_for_function(f"before => {said}.length > before + 20", arg=before)
    assert page.locator("#talk").evaluate("one => one.scrollTop") == 100
    page.locator("#send").click()
    page.wait_for_function("() => document.getElementById('send').textContent === 'Send'")


def test_a_key_is_asked_for(browse: Any) -> None:
    made = Process(str(bundled_model()), EDGETOK_API_KEY="a long enough key")
    try:
        page = browse(made.url)
        page.locator(".error").wait_for()
        assert "key" in page.locator(".error").inner_text()
        page.locator("#key").fill("a long enough key")
        page.locator("#key").blur()
        page.locator("#model option").first.wait_for(state="attached")
        assert send(page, "Hi")
    finally:
        made.stop()
