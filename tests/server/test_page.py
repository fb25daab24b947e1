"""The chat page in a real browser."""

import os
import re
import shutil

import pytest

from tests.support.running_server import Running

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUESTION = "What does os.path.join do?"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        path = os.environ.get("CHROMIUM", CHROMIUM)
        if path is None and not os.path.exists(running.chromium.executable_path):
            pytest.skip("no Chromium: set CHROMIUM, or run `playwright install chromium`")
        found = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def bundled():
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def page(browser, bundled):
    context = browser.new_context(viewport={"width": 375, "height": 700})
    found = context.new_page()
    problems, requests = [], []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    found.on("request", lambda request: requests.append(request.url))
    found.goto(bundled.url)
    found.locator("#model option").first.wait_for(state="attached")
    yield found
    # the content security policy reports inline handlers before the sanitizer removes them
    assert not [problem for problem in problems if "inline event handler" not in problem]
    assert all(url.startswith((bundled.url, "data:")) for url in requests)
    context.close()


def ask(page, text=QUESTION):
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.locator("#stop").wait_for(state="hidden")


def settings(page, **values):
    page.evaluate("document.querySelector('#settings').open = true")
    for name, value in values.items():
        page.fill(f"#{name.replace('_', '-')}", value)


def test_an_answer_streams_with_its_reasoning_folded(page):
    settings(page, temperature="0")
    ask(page)
    answer = page.locator(".message.assistant")
    assert "Join two or more pathname components" in answer.locator(".answer").inner_text()
    reasoning = answer.locator("details.reasoning")
    assert reasoning.get_attribute("open") is None
    reasoning.locator("summary").click()
    assert "os.path.join" in reasoning.locator(".thoughts").inner_text()
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s", answer.inner_text())


def test_retry_edit_and_new_chat(page):
    settings(page, temperature="0")
    ask(page)
    page.get_by_role("button", name="Retry").click()
    page.locator("#stop").wait_for(state="hidden")
    assert page.locator(".message.assistant").count() == 1
    page.get_by_role("button", name="Edit").click()
    assert page.input_value("#message") == QUESTION
    assert page.locator(".message").count() == 0
    ask(page, "What does os.getcwd do?")
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0


def test_stop_ends_the_answer(page):
    settings(page, temperature="2", max_tokens="3000")
    page.fill("#message", "go on")
    page.press("#message", "Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.keyboard.press("Escape")
    page.locator("#stop").wait_for(state="hidden")


def test_answers_are_sanitized_and_code_is_highlighted(page):
    text = (
        "<img src=x onerror=alert(1)><script>alert(2)</script>\n\n"
        "```python\ndef f(): return 'x'\n```\n\n[x](javascript:alert(3))"
    )
    page.evaluate(
        "text => { const m = {role: 'assistant', content: text, reasoning: ''}; messages.push(m); show(m); }", text
    )
    answer = page.locator(".message.assistant .answer")
    html = answer.inner_html()
    assert "<script" not in html
    assert "onerror" not in html
    assert "javascript:" not in html
    assert answer.locator(".hljs-keyword").count() >= 1


def test_nothing_overflows_375_pixels_in_either_theme(page):
    ask(page)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.get_by_role("button", name="Switch between dark and light").click()
    page.get_by_role("tab", name="Tasks").click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_control_has_a_name_and_tabs_take_arrow_keys(page):
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea')].filter(
            (e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"""
    )
    assert unnamed == 0
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Tasks").get_attribute("aria-selected") == "true"
    assert page.locator("#view-tasks").is_visible()
    assert not page.locator("#view-chat").is_visible()


def test_tasks_show_their_results(page):
    page.get_by_role("tab", name="Tasks").click()
    page.fill("#labels", "files\nnetwork")
    page.fill("#texts", "os.path.join\nsocket.bind")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("#task-result table")
    assert page.locator("#task-result tbody tr").count() == 4
    page.select_option("#task", "embed")
    page.get_by_role("button", name="Run").click()
    page.locator("#task-result:has-text('Cosine')").wait_for()
    assert "1.000" in page.inner_text("#task-result")
