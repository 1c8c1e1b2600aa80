"""Headless Chromium, driven over the two pipes of its DevTools protocol: no port, no extra package."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
INSTALL: Final = "apt-get install --no-install-recommends chromium fonts-dejavu-core"
WITHIN_S: Final = 40.0
"""How long a step may take; a page that is right needs milliseconds."""
KEYS: Final = {"Tab": 9, "Enter": 13, "Escape": 27}


def chromium() -> str:
    """The browser's command; the test fails with what to do where there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.fail(f"no Chromium on this machine: run, as root, {INSTALL}")


class Page:
    """One page of a browser."""

    def __init__(self, commands: trio.lowlevel.FdStream, answers: trio.lowlevel.FdStream) -> None:
        self._commands = commands
        self._answers = answers
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._last = 0
        self._session: str | None = None
        self.requested: list[str] = []
        """Every address that was asked for."""
        self.complaints: list[str] = []
        """Exceptions of scripts and what the policy of the page forbade."""

    async def read(self) -> None:
        """Take what the browser says; to be run in the background."""
        rest = bytearray()
        async for data in self._answers:
            rest += data
            *whole, rest = rest.split(b"\0")
            for text in whole:
                self._take(json.loads(text))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            event, answer = self._waiting.pop(message["id"])
            answer.append(message)
            event.set()
            return
        about = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and about["entry"]["source"] == "security":
            self.complaints.append(about["entry"]["text"])

    async def command(self, method: str, **parameters: Any) -> Any:
        """Give a command and wait for its answer."""
        self._last += 1
        event, answer = self._waiting[self._last] = trio.Event(), []
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._commands.send_all(json.dumps(message).encode() + b"\0")
        with trio.fail_after(WITHIN_S):
            await event.wait()
        if "error" in answer[0]:
            raise RuntimeError(f"{method}: {answer[0]['error']}")
        return answer[0]["result"]

    async def attach(self) -> None:
        """Make a page and listen to it."""
        target = await self.command("Target.createTarget", url="about:blank")
        found = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
            await self.command(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.command("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """What a JavaScript expression says."""
        found = await self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        with trio.move_on_after(WITHIN_S):
            while not await self.value(f"!!({script})"):  # noqa: ASYNC110  # what is waited for is in another process
                await trio.sleep(0.03)
            return
        raise AssertionError(f"never true: {script}; the page says: {await self.value('document.body.innerText')}")

    async def text(self, selector: str, wanted: str) -> None:
        """Wait until an element says something."""
        await self.until(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(wanted)})")

    async def click(self, selector: str) -> None:
        """Move there and press, as a hand does."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element} && {element}.offsetParent !== null")
        await self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        sides = "({x, y, width, height}) => [x, y, width, height]"
        box = await self.value(f"({sides})({element}.getBoundingClientRect())")
        at = {"x": box[0] + box[2] / 2, "y": box[1] + box[3] / 2, "button": "left", "clickCount": 1}
        await self.command("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"], y=at["y"])
        await self.command("Input.dispatchMouseEvent", type="mousePressed", **at)
        await self.command("Input.dispatchMouseEvent", type="mouseReleased", **at)

    async def write(self, text: str) -> None:
        """Type into what has the focus."""
        await self.command("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], **text}
        await self.command("Input.dispatchKeyEvent", type="keyDown", **about)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **about)

    async def look(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """The size of the window, and the colours the person likes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def screenshot(self, path: Path) -> None:
        """The whole page as a picture."""
        size = (await self.command("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": math.ceil(size["width"]), "height": math.ceil(size["height"]), "scale": 1}
        found = await self.command("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))

    async def nodes(self) -> list[dict[str, Any]]:
        """The page as a screen reader gets it: role, name and whether it can have the focus."""
        found = []
        for node in (await self.command("Accessibility.getFullAXTree"))["nodes"]:
            if node.get("ignored"):
                continue
            properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
            found.append({"role": role, "name": name.strip(), **properties})
        return found


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser with one empty page, its files in a folder of their own."""
    their_input, commands = os.pipe()
    answers, their_output = os.pipe()
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    script = f'exec "$@" 3<&{their_input} 4>&{their_output} {their_input}<&- {their_output}>&-'
    process = subprocess.Popen(  # noqa: ASYNC220  # starting it takes a moment that nobody else waits for
        ["bash", "-c", script, "bash", chromium(), *options],
        pass_fds=(their_input, their_output),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_input)
    os.close(their_output)
    async with trio.lowlevel.FdStream(commands) as out, trio.lowlevel.FdStream(answers) as back:
        try:
            page = Page(out, back)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(page.read)
                await page.attach()
                yield page
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            process.wait()
