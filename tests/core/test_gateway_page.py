"""The page of the gateway in a real browser, by real clicks and keys, with pictures of what it looks like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Page, browser
from gateway_doubles import running

pytestmark = pytest.mark.deadline(120)

PICTURES = Path(__file__).parent.parent.parent / ".screenshots"
Say = Callable[[str], None]
OBJECT = '[data-name="http.things"]'


def method(name: str) -> str:
    return f'article[aria-label="{name}"]'


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Prints past the capturing."""

    def past(text: str) -> None:
        with capsys.disabled():
            print(text)

    yield past


async def call(page: Page, name: str, *arguments: str) -> str:
    """Fill in the form of a method with the mouse and the keyboard, send it, and say what stands there then."""
    await unfold(page, name)
    for number, text in enumerate(arguments, 1):
        await page.click(f"{method(name)} .field:nth-child({number}) :is(input, textarea)")
        await page.write(text)
    await page.click(f"{method(name)} button.primary")
    answer = f"document.querySelector({json.dumps(method(name) + ' .answer:not(.running)')})"
    await page.until(f"{answer}?.innerText.includes(' ms')")
    return str(await page.value(f"{answer}.innerText"))


async def unfold(page: Page, name: str) -> None:
    """Open the form of a method."""
    await page.until(f"document.querySelector('{method(name)}')")
    if not await page.value(f"document.querySelector('{method(name)} details').open"):
        await page.click(f"{method(name)} summary")


async def test_objects_are_shown_and_called(tmp_path: Path, say: Say) -> None:
    """Names, documentation and parameters; a call, an exception, a stream, an attribute, wrong input; all by hand."""
    async with running() as up, browser(tmp_path) as page:
        await page.look()
        await page.open(up.served.url)
        await page.click(OBJECT)
        await page.text("main", "With a second paragraph.")
        await page.text(method("add"), "The sum of two numbers.")
        await page.text(method("add"), "a: int, b: int = 2")
        assert "42" in await call(page, "add", "40")
        failed = await call(page, "fail", "as you like")
        assert "ValueError: ('as you like', 3)" in failed
        assert "outcome Executed" in failed
        await page.click(f"{method('fail')} .answer summary")
        await page.text(f"{method('fail')} .answer pre", "raise ValueError")
        assert "7 items" in await call(page, "count", "7")
        await page.click(f"{method('colour')} button")
        await page.text(f"{method('colour')} .answer", '"blue"')
        await unfold(page, "echo")
        await page.click(f"{method('echo')} button.primary")
        await page.text(f"{method('echo')} .wrong", "this is needed")
        assert await page.value("document.activeElement.getAttribute('aria-invalid')") == "true"
        assert '"a": 1' in await call(page, "echo", '{"a": 1}')
        await picture(page, say, "page-light.png")
        await page.look(dark=True)
        await picture(page, say, "page-dark.png")
        await page.look(width=390, height=844)
        assert await page.value("document.documentElement.scrollWidth") <= 390
        await picture(page, say, "page-phone.png")
        assert not page.complaints
        assert all(url.startswith((up.served.url, "data:", "about:")) for url in page.requested), page.requested


async def picture(page: Page, say: Say, name: str) -> None:
    await page.value("scrollTo(0, 0)")
    await page.screenshot(PICTURES / name)
    say(f"\nscreenshot: {PICTURES / name}")


async def test_an_endless_stream_can_be_stopped(tmp_path: Path) -> None:
    """The button appears while items come, and the remote iterator is closed by it."""
    async with running() as up, browser(tmp_path) as page:
        await page.open(up.served.url + "#/http.things")
        await unfold(page, "silent_items")
        await page.click(f"{method('silent_items')} button.primary")
        await page.text(f"{method('silent_items')} pre", "1")
        await page.click(f"{method('silent_items')} .actions button:not(.primary)")
        await page.text(f"{method('silent_items')} .answer", "Stopped")
        await up.things.closed.wait()


async def test_the_page_follows_the_name_server(tmp_path: Path) -> None:
    """What is registered, leased, moved and removed appears by itself, and is told to a screen reader."""
    async with running() as up, browser(tmp_path) as page:
        await page.open(up.served.url)
        await page.text("#live", "Live")
        uri = str(up.daemon.uri_for("things"))
        await up.ns.name_server.register("http.fresh", uri, metadata=["new"], ttl=30.0)
        await page.text("#objects", "http.fresh")
        await page.text("#entries", "alive; gone 30 s after its daemon")
        await page.text("#entries", "none; stays until removed")
        await page.text("#entries", uri)
        await page.text("#news", "New: http.fresh")
        assert "private.things" not in await page.value("document.body.innerText")
        await up.ns.name_server.remove("http.fresh")
        await page.text("#news", "Gone: http.fresh")
        assert "http.fresh" not in await page.value("document.querySelector('#objects').innerText")


async def test_the_page_works_with_the_keyboard_and_a_screen_reader(tmp_path: Path) -> None:
    """Focus order as on the screen, everything that takes the focus has a name, and answers are spoken."""
    async with running() as up, browser(tmp_path) as page:
        await page.open(up.served.url)
        await page.until(f"document.querySelector('{OBJECT}')")
        order = [await tab_to_next(page) for _ in range(4)]
        assert order == ["Skip to the object", "filter", "http.plain", "http.things"]
        await page.press("Enter")
        await page.text("main", "The sum of two numbers.")
        assert await page.value("document.activeElement.id") == "main"
        await tab_until(page, "add(")
        await page.press("Enter")
        await tab_until(page, "Call add")
        await page.press("Enter")
        await page.text(f"{method('add')} .wrong", "this is needed")
        await page.write("1")
        await page.press("Enter")
        await page.text(f"{method('add')} .answer", "3")
        nodes = await page.nodes()
    roles = {"button", "textbox", "searchbox", "combobox", "checkbox", "link"}
    nameless = [node for node in nodes if node["role"] in roles and not node["name"]]
    assert not nameless
    assert {"navigation", "main", "table", "status", "heading", "region"} <= {node["role"] for node in nodes}
    spoken = [node for node in nodes if node["role"] == "status" and node["name"] == "Answer"]
    assert spoken[0]["live"] == "polite"
    assert {"Objects", "Name server"} <= {node["name"].partition(" (")[0] for node in nodes}


async def tab_to_next(page: Page) -> str:
    """What has the focus after one more press of the key."""
    await page.press("Tab")
    what = "((one) => one.id || one.getAttribute('aria-label') || one.innerText)(document.activeElement)"
    return str(await page.value(what))


async def tab_until(page: Page, wanted: str) -> None:
    """Go on until the focus is where it is wanted."""
    for _ in range(60):
        if (await tab_to_next(page)).startswith(wanted):
            return
    raise AssertionError(f"the focus never comes to {wanted}")


async def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    """Names, tags, documentation, values and errors full of markup are shown as text; no script of theirs runs."""
    markup = "<img/src=x/onerror=document.title='owned'>"
    async with running() as up, browser(tmp_path) as page:
        names = up.ns.name_server
        await names.register(f"http.{markup}", up.daemon.uri_for("things"), metadata=[markup])
        await page.open(up.served.url)
        await page.text("#entries", markup)
        await page.click(f'[data-name="http.{markup}"]')
        await page.text(method("hostile"), "<script>alert(1)</script>")
        assert "<img src=x" in await call(page, "hostile")
        assert markup in await call(page, "fail", markup)
        assert await page.value("document.querySelectorAll('img, script:not([src]), iframe').length") == 0
        assert await page.value("document.title") == f"http.{markup} – Pyro objects"
        assert not page.complaints


async def test_a_gateway_with_a_key_asks_for_it(tmp_path: Path) -> None:
    """Nothing is told without it; it never stands in an address."""
    async with running({"key": "hush hush"}) as up, browser(tmp_path) as page:
        await page.open(up.served.url)
        await page.text("#live", "A key is needed")
        assert "http." not in await page.value("document.body.innerText")
        await give_key(page, "wrong")
        await page.text("#key-help", "That was not the key")
        await give_key(page, "hush hush")
        await page.click(OBJECT)
        assert "42" in await call(page, "add", "40")
        assert not [url for url in page.requested if "hush" in url]


async def give_key(page: Page, key: str) -> None:
    await page.click("#key")
    await page.write(key)
    await page.click("#key-form button")
