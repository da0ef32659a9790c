# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The page for reviews in a browser: its keys, what it keeps, what it saves, and names that want to run as code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.cohort.review_page import PAGE, review_page
from bundle.cohort.writer import verify_cohort, write_cohort
from bundle.release.review import Review, read_review
from tests.browser import CHROMIUM, CONTROL, Browser
from tests.cohort.test_export import make
from tests.cohort.test_writer import NAMES, images, resealed

pytestmark = pytest.mark.integration
NORMAL = [f"images/normal_{number:06d}.png" for number in (1, 2, 3)]
TUBERCULOSIS = [f"images/tuberculosis_{number:06d}.png" for number in (1, 2)]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    opened = Browser(tmp_path)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five images and their page."""
    folder = make(tmp_path / "run" / "cohort")
    review_page(folder)
    return folder


@pytest.fixture
def page(cohort: Path, browser: Browser) -> Browser:
    """A browser that shows the page."""
    browser.open(cohort.parent / PAGE)
    return browser


def review(cohort: Path, file: Path) -> Review:
    return read_review(file, cohort, verify_cohort(cohort))


def state(page: Browser) -> tuple[str, str, str]:
    """What the page says of the image that it shows, of the decision about it, and of all."""
    return page.text("name"), page.text("decision"), page.text("counts")


def failures(page: Browser) -> list[Any]:
    """What went wrong in the page, and what it wanted to load from elsewhere."""
    wrong = [event for event in page.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    requests = [event["params"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    return wrong + [each for each in requests if not each["request"]["url"].startswith(("file:", "data:", "blob:"))]


def test_keys_decide_and_what_is_saved_is_what_was_decided(page: Browser, cohort: Path) -> None:
    assert state(page) == (f"1 of 5: {NORMAL[0]}", "", "0 of 5 reviewed: 0 accepted, 0 rejected")
    assert page.text("label") == "normal"
    assert page.value("document.getElementById('picture').naturalWidth") == 16
    page.press("a")
    assert state(page) == (f"2 of 5: {NORMAL[1]}", "", "1 of 5 reviewed: 1 accepted, 0 rejected")
    page.press("r", "2")
    page.press("4")
    page.press("ArrowLeft")
    assert state(page)[:2] == (f"3 of 5: {NORMAL[2]}", "rejected: may show or name a real person")
    page.press("Home", "ArrowLeft")
    assert state(page)[:2] == (f"1 of 5: {NORMAL[0]}", "accepted")
    page.press("n")
    assert page.text("label") == "tuberculosis"
    page.press("5")
    assert page.value("document.activeElement.id") == "comment"
    page.write('=1, a "vessel" that ends; see Mr. O\'Hara')
    page.press("Enter")
    assert state(page) == (f"5 of 5: {TUBERCULOSIS[1]}", "", "4 of 5 reviewed: 1 accepted, 3 rejected")
    unfinished = review(cohort, page.saved())
    assert unfinished.undecided(NORMAL + TUBERCULOSIS) == [TUBERCULOSIS[1]]
    assert "Not reviewed yet: 1." in page.text("notice")
    page.press("A")
    assert page.text("notice") == "Every image is reviewed. Save review.csv (S)."
    saved = page.saved()
    assert review(cohort, saved) == Review(
        frozenset({NORMAL[0], TUBERCULOSIS[1]}),
        {NORMAL[1]: "label", NORMAL[2]: "identifiable", TUBERCULOSIS[0]: "other"},
        0,
    )
    files = verify_cohort(cohort)["files"]
    assert saved.read_text(encoding="utf-8").splitlines() == [
        "image,sha256,label_name,decision,reason,comment,reviewer",
        f"{NORMAL[0]},{files[NORMAL[0]]},normal,accept,,,",
        f"{NORMAL[1]},{files[NORMAL[1]]},normal,reject,label,,",
        f"{NORMAL[2]},{files[NORMAL[2]]},normal,reject,identifiable,,",
        f"{TUBERCULOSIS[0]},{files[TUBERCULOSIS[0]]},tuberculosis,reject,other,"
        '"\'=1, a ""vessel"" that ends; see Mr. O\'Hara",',
        f"{TUBERCULOSIS[1]},{files[TUBERCULOSIS[1]]},tuberculosis,accept,,,",
    ]
    assert failures(page) == []


def test_undo_takes_back_one_decision_after_the_other(page: Browser) -> None:
    page.press("a", "1", "u")
    assert state(page) == (f"2 of 5: {NORMAL[1]}", "", "1 of 5 reviewed: 1 accepted, 0 rejected")
    page.press("Backspace", "Backspace")
    assert state(page) == (f"1 of 5: {NORMAL[0]}", "", "0 of 5 reviewed: 0 accepted, 0 rejected")


def test_keys_that_are_held_or_meant_otherwise_decide_nothing(page: Browser) -> None:
    page.press("a", repeated=True)
    page.press("a", modifiers=CONTROL)
    page.press("9", "x", "Shift")
    page.press("c")
    page.write("a1")
    page.press("a", "2")
    assert page.value("document.getElementById('comment').value") == "a1a2"
    page.press("Escape")
    assert state(page) == (f"1 of 5: {NORMAL[0]}", "", "0 of 5 reviewed: 0 accepted, 0 rejected")
    page.press("ArrowRight", repeated=True)
    assert state(page)[0] == f"2 of 5: {NORMAL[1]}"


def test_mouse_does_what_keys_do(page: Browser, cohort: Path) -> None:
    page.click("accept")
    page.press(" ")  # would press the button again, if it still had the focus
    page.click("next")
    page.call("Runtime.evaluate", expression="document.querySelectorAll('#reasons button')[2].click()")
    page.click("previous")
    page.call("Runtime.evaluate", expression="document.querySelectorAll('#map span')[4].click()")
    assert state(page)[::2] == (f"5 of 5: {TUBERCULOSIS[1]}", "2 of 5 reviewed: 1 accepted, 1 rejected")
    page.click("reviewer")
    page.write("Dr. A")
    page.press("Escape")
    page.forget()
    page.click("save")
    page.wait("Browser.downloadProgress", state="completed")
    found = review(cohort, page.downloads / "review.csv")
    assert (found.accepted, found.rejected, found.reviewers) == (frozenset(NORMAL[:1]), {NORMAL[2]: "artefact"}, 1)


def test_progress_outlasts_a_reload_and_is_shared_between_windows(page: Browser, cohort: Path) -> None:
    page.press("a", "3", "c")
    page.write("remember")
    page.reload()
    assert state(page) == (f"3 of 5: {NORMAL[2]}", "", "2 of 5 reviewed: 1 accepted, 1 rejected")
    assert page.value("document.getElementById('comment').value") == "remember"
    first = page.attached
    page.new_page()
    page.open(cohort.parent / PAGE)
    page.press("a")
    assert state(page)[2] == "3 of 5 reviewed: 2 accepted, 1 rejected"
    second, page.attached = page.attached, first
    page.until("document.getElementById('counts').textContent.startsWith('3 of 5')")
    assert state(page)[2] == "3 of 5 reviewed: 2 accepted, 1 rejected"
    page.press("u")  # of this window's decisions there is none to take back
    page.attached = second
    assert state(page)[2] == "3 of 5 reviewed: 2 accepted, 1 rejected"


def test_two_cohorts_keep_their_progress_apart(page: Browser, tmp_path: Path) -> None:
    page.press("a")
    other = make(tmp_path / "other" / "cohort", channels=3)
    review_page(other)
    page.open(other.parent / PAGE)
    assert state(page)[2] == "0 of 5 reviewed: 0 accepted, 0 rejected"


def test_saved_review_continues_in_another_browser(page: Browser, cohort: Path, tmp_path: Path) -> None:
    page.press("a", "2", "5")
    page.write("+ a; b")
    page.press("Escape")
    page.click("reviewer")
    page.write("@ B")
    page.press("Escape")
    saved = page.saved()
    text = saved.read_text(encoding="utf-8").replace(",", ";").replace("\n", "\r\n")
    (tmp_path / "back.csv").write_text(f"\ufeff{text}", encoding="utf-8", newline="")  # as spreadsheets may save it
    for name in (saved, tmp_path / "back.csv"):
        page.value("localStorage.clear()")
        page.reload()
        page.give("file", name)
        page.until("!document.getElementById('notice').hidden")
        assert page.text("notice") == "Decisions taken over: 3. Not reviewed yet: 2."
        assert state(page)[::2] == (f"4 of 5: {TUBERCULOSIS[0]}", "3 of 5 reviewed: 1 accepted, 2 rejected")
        page.press("ArrowLeft")
        assert page.value("document.getElementById('comment').value") == "+ a; b"
        assert page.value("document.getElementById('reviewer').value") == "@ B"
    other = make(tmp_path / "other" / "cohort", channels=3)
    review_page(other)
    page.open(other.parent / PAGE)
    page.give("file", saved)
    page.until("!document.getElementById('notice').hidden")
    assert page.text("notice") == "This file holds no decision about an image of this cohort."


def test_page_says_so_where_the_browser_keeps_nothing(page: Browser, cohort: Path) -> None:
    script = "Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('no storage'); };"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    page.open(cohort.parent / PAGE)
    assert "keeps no decisions. Save review.csv before you close" in page.text("notice")
    page.press("a", "a", "a", "a", "1")
    assert "keeps no decisions" in page.text("notice")
    assert len(review(cohort, page.saved()).accepted) == 4


EVIL = "</script><script>hacked=1</script><img src=x onerror=hacked=1>"


def test_names_are_shown_and_never_run(browser: Browser, tmp_path: Path) -> None:
    folder = make(tmp_path / "run" / "cohort")
    image = "images/<img src=x onerror=hacked=1>&amp;'+alert(1)+'.png"
    (folder / NORMAL[0]).rename(folder / image)
    table = (folder / "labels.csv").read_text()
    table = table.replace(NORMAL[0], image).replace("0,normal", f'0,"{EVIL}"').replace("1,tuberculosis", "1,'=cmd|x")
    (folder / "labels.csv").write_text(table)
    resealed(folder, modality=f'xray"{EVIL}')
    review_page(folder)
    browser.open(folder.parent / PAGE)
    assert (browser.text("label"), browser.text("name")) == (EVIL, f"1 of 5: {image}")
    assert f'xray"{EVIL}' in browser.value("document.body.innerText")
    browser.press("a", "a", "5")
    browser.write(EVIL)
    browser.press("Escape", "End")
    assert browser.text("label") == "=cmd|x"
    browser.press("1", "a")
    found = review(folder, browser.saved())
    assert found.rejected == {NORMAL[2]: "other", TUBERCULOSIS[1]: "unrealistic"}
    assert found.accepted == {image, NORMAL[1], TUBERCULOSIS[0]}
    wrong = failures(browser)
    browser.reload()
    assert browser.value("typeof hacked") == "undefined"
    assert browser.value("document.querySelectorAll('img, script').length") == 5 + 3
    assert wrong + failures(browser) == []


def test_page_runs_and_loads_nothing_else(page: Browser) -> None:
    page.value(f"document.body.insertAdjacentHTML('beforeend', {EVIL!r})")
    page.value("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked=1'}))")
    page.value("new Promise(done => setTimeout(done, 0))")
    assert page.value("typeof hacked") == "undefined"
    for url in ("http://127.0.0.1:9/x", "https://example.org/"):
        assert page.value(f"fetch({url!r}).then(() => 'sent', () => 'refused')") == "refused"
    blocked = [event["params"]["entry"]["text"] for event in page.events if event["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in text for text in blocked)
    assert not any(
        event["method"] == "Network.responseReceived" and "http" in str(event["params"]["response"]["url"])
        for event in page.events
    )


def test_thousand_images_can_be_paged_through(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "cohort"
    write_cohort(folder, images(numbers=(500, 500)), NAMES, {}, "")
    review_page(folder)
    browser.open(folder.parent / PAGE)
    browser.press("End")
    assert browser.text("name") == "1000 of 1000: images/tuberculosis_000500.png"
    browser.press("a")
    assert state(browser)[::2] == (f"1 of 1000: {NORMAL[0]}", "1 of 1000 reviewed: 1 accepted, 0 rejected")
    browser.press(*"a" * 20)
    assert len(review(folder, browser.saved()).accepted) == 21
