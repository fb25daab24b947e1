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
    # the content security policy reports these while the sanitizer parses them
    reported = ("inline event handler", "base URI", "inline style")
    assert not [problem for problem in problems if not any(words in problem for words in reported)]
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


HOSTILE = """<div id=message name=log>x</div> <b id="send">y</b> <a id=model name=key href="data:text/html,x">z</a>

<picture><source srcset="https://remote.example/a"></picture>
<table background="https://remote.example/b"><tr><td>t</table>
<iframe src="https://remote.example/c"></iframe> <object data="https://remote.example/d"></object>
<svg><image href="https://remote.example/e"/><script>alert(1)</script></svg>
<math><mi xlink:href="javascript:alert(2)"></mi></math>
<form action="https://remote.example/f"><button formaction="javascript:alert(3)">b</button>
<input autofocus onfocus=alert(4)></form> <meta http-equiv=refresh content="0;x">
<link rel=stylesheet href="https://remote.example/g"> <base href="https://remote.example/">
<p style="background: url(https://remote.example/i)">p</p>
<p><style>@import "https://remote.example/h"; body { display: none }</style></p>

![image](https://remote.example/j) [link](JaVaScRiPt:alert(5)) <https://remote.example/k> [v](vbscript:x)
"""


def test_hostile_markup_loads_nothing_and_shadows_no_control(page):
    page.evaluate(
        "text => { const m = {role: 'assistant', content: text, reasoning: ''}; messages.push(m); show(m); }", HOSTILE
    )
    answer = page.locator(".message.assistant .answer")
    found = answer.evaluate("a => [...a.querySelectorAll('*')].map((e) => [e.localName, ...e.getAttributeNames()])")
    assert not {name for name, *_ in found} & {
        "img",
        "iframe",
        "object",
        "svg",
        "form",
        "button",
        "input",
        "link",
        "style",
    }
    assert {attribute for _, *attributes in found for attribute in attributes} <= {"href", "target", "rel"}
    links = answer.evaluate("a => [...a.querySelectorAll('a[href]')].map((e) => e.getAttribute('href'))")
    assert links == ["https://remote.example/k"]
    page.fill("#message", "still the control")
    assert page.evaluate("byId('message').localName") == "textarea"


def test_new_chat_while_an_answer_arrives_leaves_nothing(page):
    settings(page, temperature="2", max_tokens="3000")
    page.fill("#message", "go on")
    page.press("#message", "Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.get_by_role("button", name="New chat").click()
    page.locator("#stop").wait_for(state="hidden")
    assert page.locator(".message").count() == 0


def test_a_lost_connection_is_reported(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body='data: {"choices": []}\n\n'))
    ask(page)
    assert "closed before the answer was complete" in page.locator(".message.assistant [role=alert]").inner_text()


def test_long_words_and_wide_tables_stay_in_the_page(page):
    table = "|" + "wide column|" * 30 + "\n|" + "---|" * 30 + "\n|" + "x" * 40 + "|" * 30
    for text in ("w" * 500, table, "```\n" + "c" * 500 + "\n```", "# " + "h" * 300):
        page.evaluate(
            "text => { const m = {role: 'assistant', content: text, reasoning: text}; messages.push(m); show(m); }",
            text,
        )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("byId('log').scrollWidth <= byId('log').clientWidth")


def test_a_key_beyond_ascii_opens_the_server(browser, chat_folder):
    running = Running("--model", str(chat_folder), "--api-key", "schlüssel-鍵")
    context = browser.new_context()
    try:
        found = context.new_page()
        found.goto(running.url)
        found.wait_for_selector("#settings[open]")
        found.fill("#key", "schlüssel-鍵")
        found.locator("#key").blur()
        found.locator("#model option").first.wait_for(state="attached")
    finally:
        context.close()
        running.stop()


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
