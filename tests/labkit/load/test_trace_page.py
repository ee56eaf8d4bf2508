"""The HTML page of a trace in a real browser without network: keyboard, pointer, a small and a large window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from captured import captured, page
from playwright.sync_api import sync_playwright

QKV = "model.layers.1.self_attn.qkv_proj.weight"
HOSTILE_NAME = '</script><script>document.title="taken"</script><img src=x onerror=alert(1)>.weight'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the path; the page is tested in a real browser")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page in a real browser without network; records its requests, its console messages and its errors."""

    def __init__(self, browser: Any, file: Path, width: int, height: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.route("**/*", self._route)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def _route(self, route: Any) -> None:
        self.asked.append(route.request.url)
        route.continue_() if route.request.url.startswith("file:") else route.abort()

    def panel(self) -> str:
        return str(self.page.inner_text("#panel"))

    def boxes(self, label: str) -> list[dict[str, float]]:
        return [found.bounding_box() for found in self.page.locator(f".slice[aria-label^='{label}']").all()]

    def close(self) -> None:
        """Sees that the page asked for nothing but itself, had no error, and does not run off to the right."""
        overflow = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert (len(self.asked), self.complaints, overflow) == (1, [], 0)
        self.page.close()


SIZES = pytest.mark.parametrize(("width", "height"), [(640, 400), (1280, 800)])


@SIZES
def test_the_page_by_keyboard(browser: Any, tmp_path: Path, width: int, height: int) -> None:
    file = tmp_path / "load.html"
    file.write_text(page(captured("llama-3-8b-tp2")))
    opened = Opened(browser, file, width, height)
    keyboard = opened.page.keyboard
    keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.id") == "part"
    keyboard.press("Tab")
    assert "q_proj[0:2048], shard q on rank 0" in opened.panel()
    keyboard.press("ArrowRight")
    keyboard.press("ArrowDown")
    told = opened.panel()
    assert "k_proj[512:1024], shard k on rank 1" in told
    assert "It is written from row 2048 = 2048 rows of q_proj above it." in told
    assert "rows 2048:2560 of model.layers.0.self_attn.qkv_proj.weight (3072, 4096) bfloat16" in told
    assert ".k_proj -> .qkv_proj, shard k" in told
    focused = opened.page.locator(".slice:focus").bounding_box()
    covered = opened.page.locator("#panel").bounding_box()
    assert focused["y"] >= 0
    assert covered["x"] >= focused["x"] + focused["width"] or focused["y"] + focused["height"] <= covered["y"]
    opened.close()


@SIZES
def test_the_bars_are_in_true_proportion_on_the_screen(browser: Any, tmp_path: Path, width: int, height: int) -> None:
    file = tmp_path / "load.html"
    file.write_text(page(captured("llama-3-8b-one-layer-tp16")))
    opened = Opened(browser, file, width, height)
    q, k, v = (opened.boxes(f"{name}_proj[") for name in "qkv")
    assert (len(q), len(k), len(v)) == (16, 16, 16)
    for first, second, third in zip(q, k, v, strict=True):  # 256, 128 and 128 of 512 rows
        assert first["width"] == pytest.approx(2 * second["width"], abs=0.5)
        assert second["width"] == pytest.approx(third["width"], abs=0.5)
        assert second["x"] == pytest.approx(first["x"] + first["width"], abs=0.5)
    assert len({box["y"] for box in q}) == 16
    opened.close()


@SIZES
def test_the_page_by_layer_and_by_fault(browser: Any, tmp_path: Path, width: int, height: int) -> None:
    file = tmp_path / "load.html"
    file.write_text(page(captured("fault-k-proj-missing")))
    opened = Opened(browser, file, width, height)
    options = [option.inner_text() for option in opened.page.locator("#part option").all()]
    assert options == ["embeddings", "layer 0", "layer 1 (fault)", "norm and head"]
    opened.page.select_option("#part", label="embeddings")
    assert opened.page.locator("h2").first.inner_text() == "model.embed_tokens.weight (96, 64)"
    opened.page.locator(".slice.padding").hover()
    assert "no checkpoint tensor has values for it" in opened.panel()
    opened.page.get_by_role("button", name="on rank 1").first.click()
    assert opened.page.locator("#part option:checked").inner_text() == "layer 1 (fault)"
    assert (
        "Missing: rows 64:96 of model.layers.1.self_attn.qkv_proj.weight (128x64) were never written on rank 1." in opened.panel()
    )
    fault = opened.page.locator(".slice.fault").first
    assert fault.inner_text().startswith("missing")
    assert "repeating-linear-gradient" in fault.evaluate("element => getComputedStyle(element).backgroundImage")
    opened.close()


def test_hostile_names_stay_text_in_the_browser(browser: Any, tmp_path: Path) -> None:
    trace = captured("tiny-tp2")
    first, *rest = trace.records
    trace = replace(trace, records=(replace(first, tensor=HOSTILE_NAME, file=HOSTILE_NAME, bytes=(8, 40)), *rest))
    (tmp_path / "load.html").write_text(page(trace))
    opened = Opened(browser, tmp_path / "load.html", 640, 400)
    opened.page.locator(".slice[aria-label*='taken']").focus()
    assert 'document.title="taken"' in opened.panel()
    assert "bytes 8:40" in opened.panel()
    assert "taken" not in opened.page.title()[:14]
    assert opened.page.locator("img").count() == 0
    opened.close()
