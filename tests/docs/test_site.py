"""The site is built strictly, its links work there and on GitHub, and it loads nothing from other hosts."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import PAGES, tokens
from playwright.sync_api import sync_playwright

from labkit.system.labs import ROOT

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data", "video": "src"}
WORDS = """token, position, block, block table, slot, prefill, decode, chunk, step, shard, rank, fused parameter, mapping row,
checkpoint tensor, checkpoint, trace, coverage, fingerprint, preemption, tripwire, invariant, replica, padding, contract,
prefix cache, tied head, meta device"""


class Links(HTMLParser):
    """The files that a page of the site loads, its links and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        elif tag in LOADS and LOADS[tag] in given and given.get("rel") != "canonical":
            self.loads.append(given[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def links(site: Path) -> dict[Path, Links]:
    return {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html") if page.name != "404.html"}


def test_every_page_of_the_project_is_in_it(site: Path) -> None:
    for page in PAGES:
        name = page.relative_to(ROOT)
        assert (site / (name.parent / "index.html" if name.name == "README.md" else name.with_suffix(".html"))).is_file(), name


def test_no_link_of_the_site_is_broken(links: dict[Path, Links], site: Path) -> None:
    broken = []
    for page, found in links.items():
        for link in found.leads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            anchors = links[target].ids if target in links else {url.fragment}
            if not target.is_file() or (url.fragment and unquote(url.fragment) not in anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_it_loads_nothing_from_elsewhere(links: dict[Path, Links], site: Path) -> None:
    for page, found in links.items():
        away = [link for link in found.loads if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc]
        assert not away, f"{page.relative_to(site)} loads {away}"
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder, by HTTP on this machine."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_browser_asks_nobody_else(site: Path) -> None:
    """Opened, searched and turned dark, with every other host out of reach."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the path; the site is opened in a real browser")
    asked: list[str] = []
    complaints: list[str] = []
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{address}/labs/lab-03-weight-mapping/")
        assert page.evaluate("document.querySelector('img[src*=qkv-slices]').naturalWidth") == 800
        page.wait_for_load_state("networkidle")
        page.click("input[name=query]")
        page.keyboard.type("preemption", delay=20)
        page.click(".md-search-result__link[href*=glossary]")
        page.wait_for_url("**/docs/glossary.html**")
        browser.close()
    assert not complaints
    assert {url.partition("://")[2].partition("/")[0] for url in asked if not url.startswith(("data:", "blob:"))} == {
        address.removeprefix("http://")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_of_a_page_leads_to_a_file_on_github(page: Path) -> None:
    inline = [child for token in tokens(page) for child in token.children or ()]
    targets = [str(child.attrs[name]) for child in inline for name in ("href", "src") if name in child.attrs]
    for target in targets:
        url = urlsplit(target)
        assert url.scheme in ("", "https"), f"{page.name}: {target}"
        if not url.scheme and url.path:
            assert (page.parent / unquote(url.path)).is_file(), f"{page.name}: {target} is no file here"


def test_the_glossary_has_the_words() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = {word.strip() for entry in re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.MULTILINE) for word in entry.split(",")}
    wanted = {word.strip() for word in WORDS.split(",")}
    assert wanted <= entries, wanted - entries


HERE = re.compile(r"`([\w.]*[a-zA-Z])` \(`((?:mini_vllm|labkit|labs|tests|scripts)/[\w/.-]+\.py)`\)")


@pytest.mark.parametrize("page", [page for page in PAGES if HERE.search(page.read_text("utf-8"))], ids=lambda page: page.name)
def test_a_name_of_ours_that_a_page_places_is_defined_there(page: Path) -> None:
    for name, path in HERE.findall(page.read_text(encoding="utf-8")):
        last = name.split(".")[-1]
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:class|def|async def) {last}\b|^{last}\b.*=", text, re.MULTILINE), f"{path} defines no {name}"
