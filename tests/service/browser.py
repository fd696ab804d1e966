"""A real Chromium on a page that embeds Flowise's own chat widget.

``GENOPS_TEST_CHROMIUM`` says what to do about the browser:

=============  ======================================================
(unset)        use the system's where there is one, else skip
``require``    fail where it is missing
a path         use that program
``off``        skip these tests
=============  ======================================================

The widget is the file that Flowise's installation brings with it (``flowise-embed``), so the tests need
that too: ``GENOPS_TEST_FLOWISE=install``.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.real.flowise_install import find

VARIABLE = "GENOPS_TEST_CHROMIUM"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PAGE = """<!doctype html><meta charset="utf-8"><title>A shop</title><link rel="icon" href="data:,">
<body style="background: #fafafa"><h1>A shop</h1><flowise-fullchatbot></flowise-fullchatbot>
<script type="module">
import Chatbot from "/widget.js"
%s
Chatbot.initFull({chatflowid: "%s", apiHost: "%s"})
</script></body>"""
WHOLE = """
const ask = window.fetch
window.fetch = (...of) => String(of[0]).includes("/chatflows-streaming/")
    ? Promise.resolve(Response.json({isStreaming: false})) : ask(...of)
"""


def chromium() -> str:
    """The browser's program; skips or fails as the environment says."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        pytest.skip(f"{VARIABLE}=off")
    named = [wanted] if wanted not in ("", "require") else PROGRAMS
    found = next((path for name in named if (path := shutil.which(name))), None)
    if found is not None:
        return found
    missing = f"no Chromium: install it (apt-get install chromium), or say {VARIABLE}=<path of Chrome>"
    if wanted:
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


def widget() -> Path:
    """The widget's built file, as the real Flowise of the tests has it."""
    installation = find()
    if installation is None:
        missing = "the widget comes with Flowise: set GENOPS_TEST_FLOWISE=install to install it"
        if os.environ.get("GENOPS_TEST_FLOWISE") == "require":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return installation.modules / "flowise-embed" / "dist" / "web.js"


class Site:
    """A web site with one page that embeds the widget; ``with Site(script) as site:``."""

    def __init__(self, script: Path) -> None:
        self.page = ""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_script = self.path == "/widget.js"
                content = script.read_bytes() if is_script else site.page.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript" if is_script else "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def origin(self) -> str:
        """Another host and another port than the service's."""
        return f"http://localhost:{self._server.server_address[1]}"

    def embed(self, flow: str, host: str, *, streams: bool = True) -> None:
        """The page shows the widget on this flow of the service at this address; as one that cannot stream
        where that is asked for."""
        self.page = PAGE % ("" if streams else WHOLE, flow, host)

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@dataclass
class Tab:
    """A page in the browser, and all that it said and asked."""

    page: Any
    console: list[str] = field(default_factory=list)
    """errors and warnings"""
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """method, path and status of each request to another origin; 0 for one that failed"""
    heard: list[str] = field(default_factory=list)
    """addresses and headers of all requests and answers, and the answers' bodies"""
    questions: int = 0

    def ask(self, question: str) -> None:
        self.questions += 1
        box = self.page.get_by_placeholder("Type your question")
        box.fill(question)
        box.press("Enter")

    def answers(self) -> list[str]:
        """What the chat shows from the bot, oldest first."""
        return [text.strip() for text in self.page.locator(".chatbot-host-bubble").all_inner_texts()]

    def answer(self, number: int, *, seconds: float = 120.0) -> str:
        """The bot's message of that number, once it is whole; the welcome is number 0."""
        deadline = time.monotonic() + seconds
        text = ""
        while time.monotonic() < deadline:
            ended = sum(f"{how} {path}".startswith("POST prediction/") for how, path, _ in self.asked)
            shown = self.answers()
            before, text = text, shown[number] if len(shown) > number else ""
            if text and text == before and ended >= self.questions:
                return text
            self.page.wait_for_timeout(200)
        raise AssertionError(f"no message {number}: {self.answers()}, console {self.console}, {self.asked}")


@contextmanager
def browsing(program: str) -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            timeout=120_000,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab_on(browser: Any, address: str, *, ready: str = "textarea") -> Iterator[Tab]:
    """A visitor with no history opens the page, and waits for what the selector ``ready`` finds."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    context.set_default_timeout(120_000)
    page = context.new_page()
    tab = Tab(page)
    page.on("console", lambda said: said.type in ("error", "warning") and tab.console.append(said.text))
    page.on("pageerror", lambda error: tab.console.append(f"uncaught: {error}"))

    def path_of(request: Any) -> str:
        _, _, path = request.url.partition("/api/v1/")
        return str(path)

    def ended(request: Any, failed: bool) -> None:
        tab.heard += [request.url, str(request.headers), str(request.post_data or "")]
        if request.url.startswith(address):
            return
        answer = None if failed else request.response()
        tab.asked.append((request.method, path_of(request), answer.status if answer else 0))
        if answer is not None:
            tab.heard.append(str(answer.headers))

    page.on("requestfinished", lambda request: ended(request, False))
    page.on("requestfailed", lambda request: ended(request, True))
    try:
        page.goto(address)
        page.locator(ready).first.wait_for()
        page.wait_for_load_state("networkidle")  # only then it knows whether the flow streams
        yield tab
    finally:
        context.close()
