#!/usr/bin/env python3
"""Opens each page of the built site in a headless browser. Fails at errors in its console, and at anything that it asks elsewhere for.

    scripts/docs/browse.py [--pictures FOLDER [PAGE ...]]    pictures of pages, wide and narrow
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import http.server
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import aiohttp

SITE = Path(__file__).resolve().parent.parent.parent / "target/site"
WIDTHS = {"wide": 1400, "narrow": 390}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Tab:
    """A tab of the browser, spoken to by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, site: str) -> None:
        self.socket, self.site = socket, site
        self.number = 0
        self.complaints: list[str] = []
        self.loaded = False

    async def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        number = self.number
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=30)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.note(message)

    def note(self, message: dict[str, Any]) -> None:
        method, given = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {given['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
            self.complaints.append(f"console: {[part.get('value') for part in given['args']]}")
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.complaints.append(f"log: {given['entry']['text']} {given['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith((self.site, "data:", "blob:", "about:")):
                self.complaints.append(f"asks elsewhere: {url}")

    async def open(self, url: str) -> list[str]:
        """Loads a page; what it complains about."""
        self.complaints, self.loaded = [], False
        await self.call("Page.navigate", url=url)
        while not self.loaded:
            self.note(await self.socket.receive_json(timeout=30))
        # What its scripts do when it is there, and whether anything is wider than the page.
        script = "new Promise(done => setTimeout(() => done(document.documentElement.scrollWidth - innerWidth), 150))"
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True)
        if (surplus := answer["result"].get("value", 0)) > 1:
            self.complaints.append(f"is {surplus} pixels wider than the window")
        return self.complaints


async def browse(pages: list[str], pictures: Path | None) -> int:
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_port}/"
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "there is no chromium on this machine: scripts/setup.sh docs"
    profile = tempfile.mkdtemp(prefix="pinion-browser.")
    line = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    line += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "about:blank"]
    browser = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
    bad = 0
    try:
        port_file = Path(profile) / "DevToolsActivePort"
        for _ in range(600):
            if port_file.exists() and port_file.read_text().strip():
                break
            await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                [target, *_] = [entry for entry in await answer.json() if entry["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket, site)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                for page in pages:
                    for name, width in WIDTHS.items():
                        await tab.call(
                            "Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False
                        )
                        for complaint in await tab.open(site + page):
                            bad += 1
                            print(f"{page} ({name}): {complaint}", file=sys.stderr)
                        if pictures:
                            picture = await tab.call("Page.captureScreenshot", format="png")
                            path = pictures / f"{page.replace('/', '-').removesuffix('.html')}-{name}.png"
                            path.write_bytes(base64.b64decode(picture["data"]))
    finally:
        browser.kill()
        await browser.wait()
        shutil.rmtree(profile, ignore_errors=True)
        server.shutdown()
    print(f"{len(pages)} pages, {bad} complaints")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("pages", nargs="*")
    given = parser.parse_args()
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
    pages = given.pages or sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
    return asyncio.run(browse(pages, given.pictures))


if __name__ == "__main__":
    sys.exit(main())
