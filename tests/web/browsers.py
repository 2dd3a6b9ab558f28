"""What the browser tests share: when they run, the browser, and what axe-core finds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dsv4.server.static import is_built
from tests.conftest import ROOT
from tests.server.browser import find_chromium

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
BROWSER_MARKS = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed"),
    pytest.mark.skipif(not is_built(), reason="the pages were not built (python3 -m deploy.build_pages)"),
]


@contextmanager
def running_chromium() -> Iterator[Any]:
    """Chromium without a window. Skips the test where playwright is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def settled(page: Any) -> None:
    """Until everything is drawn where it stays: two frames have passed, and what fades or moves once has ended."""
    page.evaluate(
        """async () => {
            for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
            const ends = (one) => Number.isFinite(one.effect.getComputedTiming().endTime);
            const once = document.getAnimations().filter(ends);
            await Promise.allSettled(once.map((one) => one.finished));
        }"""
    )


def serious(page: Any) -> list[str]:
    """What axe-core finds that is serious or worse. Skips the test where it is not installed."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm ci in web/)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    settled(page)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
