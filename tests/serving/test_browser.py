"""The device's page in a real browser: an answer in its colours, a stream, an outage. `make test-browser` runs it."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fedtandem.serving.tiers import Tier, build_cloud, build_device

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update",
]  # fmt: skip
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="SKIPPED: playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("SKIPPED: there is no chromium; set CHROMIUM or install Debian's package")
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield one
        one.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    one = browser.new_page()
    one.set_default_timeout(PATIENCE_MS)
    one.faults = []
    one.on("pageerror", lambda fault: one.faults.append(str(fault)))
    one.on("requestfailed", lambda request: one.faults.append(f"{request.url}: {request.failure}"))
    yield one
    one.close()


def asked(page: Any, prompt: str, mode: str) -> list[str]:
    """Ask and wait; the tiers of the tokens that are shown."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Mode").select_option(mode)
    page.get_by_role("button", name="Ask").click()
    page.locator("#go:enabled").wait_for()
    assert page.locator("#fault").inner_text() == ""
    return [
        token.get_attribute("class").removeprefix("token ") for token in page.locator("#answer .token").all()
    ]


def counter(page: Any, name: str) -> str:
    return str(
        page.locator("#counters tr", has=page.get_by_role("rowheader", name=name, exact=True))
        .locator("td")
        .first.inner_text()
    )


def test_each_mode_colours_its_tokens_and_counts_them(tiers: Any, page: Any) -> None:
    page.goto(tiers.urls["device"])
    page.get_by_text("ready").wait_for()
    texts = {}
    for mode, expected in (
        ("exact", {"slm-verified", "llm", "llm-corrected"}), ("local", {"slm"}), ("cloud", {"llm"}),
        ("fedhlm", {"slm", "llm-corrected", "llm", "slm-verified"}),
    ):  # fmt: skip
        shown = asked(page, "Q 3 + 5 * 2 A", mode)
        assert shown
        assert set(shown) <= expected
        assert int(counter(page, "tokens")) in (len(shown), len(shown) + 1)  # the closing mark is no text
        texts[mode] = page.locator("#answer").inner_text()
    assert texts["exact"] == texts["cloud"]  # greedy, through two tokenizers, the LLM's own answer
    assert page.locator("#answer .token").first.get_attribute("title").count("τ") == 1
    assert page.get_by_label("ε", exact=True).is_hidden()
    page.get_by_label("Mode").select_option("bounded")
    assert page.get_by_label("ε", exact=True).is_visible()
    # Chromium calls a no-store body that was read to its end aborted, now and then; a lost one is in #fault.
    assert [fault for fault in page.faults if not fault.endswith("net::ERR_ABORTED")] == []


def test_an_outage_is_said_and_the_next_answer_is_whole_again(lab: Any, page: Any) -> None:
    config = lab.config(device={"on_outage": "degrade"})
    with lab.Running([lambda _: build_cloud(config)], config) as cloud:

        def device(_: dict[str, str]) -> Tier:
            pointed = config.device.model_copy(update={"upstream": cloud.urls["cloud"]})
            return build_device(config.model_copy(update={"device": pointed}))

        with lab.Running([device], config) as one:
            page.goto(one.urls["device"])
            page.get_by_text("ready").wait_for()
            assert "degraded" not in asked(page, "Q 7 m 4 A", "exact")
            cloud.stop()
            shown = asked(page, "Q 9 - 4 A", "exact")
            assert shown
            page.get_by_role("status").get_by_text("Degraded").wait_for()
            assert set(asked(page, "Q 7 m 4 A", "local")) == {"slm"}
            assert page.get_by_role("status").inner_text() == ""
