"""The page in headless Chromium: upload, findings, map, cases, search, two models, errors, key; no foreign request.

MASKEDCLIP_SCREENSHOTS=DIR keeps pictures of the page, to be looked at.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskedclip.deployment.server.served import Served, serve_index, shown_columns
from maskedclip.deployment.server.settings import Settings
from tests.deployment.server.case import EYE, LABELS, build_guard, running, with_own_head

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions"),
)
DESKTOP, PHONE = (1280, 900), (390, 844)
KEY = "0123456789abcdef0123"


@contextmanager
def serving(served: list[Served], index_file: Path, **more: Any) -> Iterator[str]:
    index, indexed = serve_index(index_file, served)
    settings = Settings(port=0, max_bytes=1 << 20, **more)
    guard = build_guard(served, settings, index=index, indexed=indexed, shown=shown_columns(index, []))
    with running(guard, settings) as at:
        yield at


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(served: list[Served], index_file: Path) -> Iterator[str]:
    with serving(served, index_file) as at:
        yield at


@dataclass
class Watched:
    """A page and what it said and asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, at: str, *, refused: int = 0) -> None:
        """No error in the console but the lines of `refused` refused requests; nothing asked of another server."""
        failed = [line for line in self.console if line.startswith("Failed to load resource")]
        assert [line for line in self.console if line not in failed] == []
        assert len(failed) == refused, failed
        assert [url for url in self.requests if not url.startswith((at + "/", "blob:" + at, "data:"))] == []


@contextmanager
def opened(browser: Any, at: str, size: tuple[int, int] = DESKTOP, **more: Any) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **more)
    page = context.new_page()
    page.set_default_timeout(15_000)
    watched = Watched(page)
    page.on("console", lambda said: watched.console.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: watched.console.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.goto(at + "/")
    yield watched
    context.close()


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("MASKEDCLIP_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def give(page: Any, *files: tuple[str, bytes]) -> None:
    page.set_input_files(
        "#file", [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    )


@pytest.mark.parametrize(("size", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
def test_page__from_upload_to_similar_cases(browser: Any, site: str, size: tuple[int, int], name: str) -> None:
    scheme = "dark" if name == "phone" else "light"
    with opened(browser, site, size, color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.page
        expect(page.get_by_text("Research use; not a diagnosis.").first).to_be_visible()
        expect(page.locator("#keeps")).to_contain_text("nothing is kept")
        give(page, ("eye.png", EYE), ("second.png", EYE))
        expect(page.locator("#strip button")).to_have_count(2)
        panels = page.locator(".panel")
        expect(panels).to_have_count(2)  # two models side by side
        for panel in panels.all():
            expect(panel.locator(".finding")).to_have_count(len(LABELS))
            expect(panel).to_contain_text("Not calibrated")
        widths = page.locator(".fill").evaluate_all("all => all.map(one => one.style.width)")
        amounts = page.locator(".finding .amount").all_inner_texts()
        assert [round(float(width[:-1])) for width in widths] == pytest.approx([100 * float(a) for a in amounts], abs=1)
        expect(page.locator("#similar-cases .case")).to_have_count(6)
        expect(page.locator("#similar-cases .report").first).not_to_be_empty()
        assert page.locator("#similar-cases img").first.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0

        page.get_by_role("button", name=f"Show where {LABELS[0]} is, by run").click()
        heat = page.locator("#heat")
        expect(heat).to_be_visible()
        boxes = [page.locator(place).bounding_box() for place in ("#photo", "#heat")]
        assert boxes[0] == pytest.approx(boxes[1], abs=1.5)
        page.locator("#opacity").fill("25")
        expect(page.locator("#opacity-value")).to_have_text("25 %")
        assert heat.evaluate("one => getComputedStyle(one).opacity") == "0.25"
        picture(page, f"{name}-map")
        page.locator("#map-text").fill("a green lesion")
        page.locator("#map-form button").click()
        expect(page.locator("#heat")).to_have_attribute("alt", "Heat map of a green lesion")
        page.locator("#map-clear").click()
        expect(heat).to_be_hidden()

        page.locator("#similar-text").fill("green lesion")
        page.locator("#similar-filter").fill("label.green = 1")
        page.locator("#similar-form button").click()
        expect(page.locator("#similar-cases .case").first).to_contain_text("green")
        page.locator("#search-text").fill("normal fundus")
        page.locator("#search-text").press("Enter")
        expect(page.locator("#search-cases .case")).to_have_count(6)
        picture(page, name)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        watched.check(site)


def test_page__errors_in_plain_words(browser: Any, site: str) -> None:
    with opened(browser, site) as watched:
        page = watched.page
        errors = page.locator("#errors .error")
        give(page, ("notes.png", b"just words"))
        expect(errors).to_have_count(1)
        expect(errors).to_contain_text("notes.png: the file is a text file, not an image")
        expect(page.locator("#results")).to_be_hidden()
        give(page, ("large.png", bytes(3 << 20)))
        expect(errors).to_contain_text("this server takes 1 MB")
        page.locator("#search-text").fill("drusen")
        page.locator("#search-filter").fill("patient = 'p1'")
        page.locator("#search-text").press("Enter")
        expect(errors).to_contain_text("no column `patient`")
        page.locator("#search-text").fill("")
        page.locator("#search-text").press("Enter")
        expect(errors).to_contain_text("give words")
        picture(page, "errors")
        watched.check(site, refused=3)  # two models refused the first file; the filter


def test_page__shows_what_a_browser_cannot(browser: Any, site: str) -> None:
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = str(get_testdata_file("CT_small.dcm"))
    with opened(browser, site) as watched:
        page = watched.page
        give(page, ("scan", Path(path).read_bytes()))
        expect(page.locator("#photo-facts")).to_contain_text("DICOM, 128 × 128 px")
        assert page.locator("#photo").evaluate("one => one.decode().then(() => one.naturalWidth)") == 128
        watched.check(site)


def test_page__takes_a_photograph_before_it_knows_its_server(browser: Any, site: str) -> None:
    with opened(browser, site) as watched:
        page, held = watched.page, []
        page.route("**/model", lambda route: held.append(route))
        page.reload(wait_until="domcontentloaded")
        page.wait_for_function("() => document.readyState === 'complete'")
        give(page, ("eye.png", EYE))
        expect(page.locator("#status")).to_contain_text("Reading")
        assert held
        held[0].continue_()
        expect(page.locator("#photo-facts")).to_contain_text("PNG")
        watched.check(site)


def test_page__says_when_the_model_abstains(browser: Any, served: list[Served], index_file: Path) -> None:
    with (
        serving([with_own_head(served[0], served[1].model)], index_file) as at,
        opened(browser, at) as watched,
    ):
        give(watched.page, ("eye.png", EYE))
        panel = watched.page.locator(".panel")
        expect(panel).to_contain_text("The model abstains.")
        expect(panel).to_contain_text("Calibrated: of photographs")
        expect(panel.locator(".chip.undecided")).to_have_count(len(LABELS))
        expect(watched.page.locator("#status")).to_contain_text("of 48 cases")
        assert all(text.endswith("%") for text in panel.locator(".amount").all_inner_texts())
        watched.check(at)


def test_page__takes_drops_and_pastes(browser: Any, site: str) -> None:
    give_it = """([kind, bytes]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: carried, bubbles: true})
            : new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    }"""
    with opened(browser, site) as watched:
        for count, kind in enumerate(("drop", "paste"), 1):
            watched.page.evaluate("() => document.fonts.ready")
            expect(watched.page.locator("#limits")).not_to_be_empty()
            watched.page.evaluate(give_it, [kind, list(EYE)])
            expect(watched.page.locator("#strip .thumbnail")).to_have_count(count)
        watched.check(site)


def test_page__is_used_by_keyboard_and_read_aloud(browser: Any, site: str) -> None:
    with opened(browser, site) as watched:
        page = watched.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(6):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "file":
                break
        assert page.evaluate("document.activeElement.id") == "file"
        give(page, ("eye.png", EYE))
        expect(page.locator("#status")).to_contain_text("first")
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("input, select, button, img, progress")].filter((one) =>
                one.checkVisibility() && !(one.labels?.length || one.ariaLabel || one.innerText?.trim()
                || one.getAttribute("aria-labelledby") || one.hasAttribute("alt"))).map((one) => one.outerHTML)"""
        )
        assert unnamed == []
        levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
        assert levels[0] == 1
        assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
        assert page.locator("#status").get_attribute("aria-live") == "polite"
        button = page.get_by_role("button", name=f"Show where {LABELS[1]} is, by second")
        button.focus()
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-pressed", "true")
        page.locator("#opacity").focus()
        before = page.locator("#opacity-value").inner_text()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#opacity-value")).not_to_have_text(before)
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        watched.check(site)


CONTRAST = """() => {
    const light = (c) => { const v = c / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const luminance = (c) => 0.2126 * light(c[0]) + 0.7152 * light(c[1]) + 0.0722 * light(c[2]);
    const read = (text) => {
        const n = text.match(/[\\d.]+/g).map(Number);
        return n.length > 3 && n[3] === 0 ? null : n;
    };
    const own = (one) => read(getComputedStyle(one).backgroundColor);
    const ground = (one) => one ? own(one) ?? ground(one.parentElement) : [255, 255, 255];
    return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
        && [...one.childNodes].some((part) => part.nodeType === 3 && part.textContent.trim())).map((one) => {
        const [a, b] = [luminance(read(getComputedStyle(one).color)), luminance(ground(one))].sort((x, y) => y - x);
        return [(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 90)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__contrast_is_enough(browser: Any, site: str, scheme: str) -> None:
    with opened(browser, site, color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.page
        give(page, ("eye.png", EYE))
        expect(page.locator("#similar-cases .case")).to_have_count(6)
        give(page, ("notes.png", b"just words"))
        expect(page.locator("#errors .error")).to_have_count(1)
        assert page.evaluate(CONTRAST) == []
        page.goto(site + "/docs")
        assert page.evaluate(CONTRAST) == []


def test_page__asks_for_the_key_and_says_what_is_kept(
    browser: Any, served: list[Served], index_file: Path, tmp_path: Path
) -> None:
    with serving(served, index_file, api_key=KEY, keep_uploads=tmp_path) as at, opened(browser, at, PHONE) as watched:
        page = watched.page
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.locator("#key").fill("wrong-key-wrong-key")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("not this server's")
        picture(page, "key")
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#keeps")).to_contain_text("keeps the photographs")
        give(page, ("eye.png", EYE))
        expect(page.locator(".panel")).to_have_count(2)
        watched.check(at, refused=2)
    kept = list(tmp_path.iterdir())
    assert kept
    assert all(Image.open(path).size == (48, 48) for path in kept)
