"""The server's web page in a real browser: by mouse, by keyboard alone, and on a phone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
for needed in ("fastapi", "uvicorn"):
    pytest.importorskip(needed, reason="the page is tested with a server")

from page_mock import ADMIN_KEY, API_KEY, HOSTILE, serve_mock  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")

PROMPT, SUBJECT = "The oldest bridge of Erewhon is the", "Erewhon"
TARGET, OTHER_TARGET = "Oslo", "Rome"
LEARNED = 60_000  # ms which an edit may take
VIEWS = ("ask", "edits", "routing", "health")
REFUSED = re.compile("the server responded with a status of 4")  # a browser logs each of them
expect = api.expect
expect.set_options(timeout=10_000)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Address of the server, without keys."""
    with serve_mock() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(url: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end there was no error in it, and no request to another host."""
    contexts, errors, requests = [], [], []

    def opened(keys: str = f"admin={ADMIN_KEY}", **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{url}/#{keys}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [error for error in errors if not REFUSED.search(error)] == []
    assert [address for address in requests if not address.startswith(url)] == []


def view(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def ask(page: Any, prompt: str) -> tuple[str, str]:
    """Both answers, once they are complete."""
    view(page, "Ask")
    page.locator("#ask").get_by_label("Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    for which in ("edited", "base"):
        expect(page.locator(f"#{which}-caption")).to_contain_text("complete", timeout=LEARNED)
    edited, base = (page.locator(f"#{which}-answer").inner_text() for which in ("edited", "base"))
    return edited, base


def add(page: Any, prompt: str, target: str, subject: str = "") -> None:
    view(page, "Edits")
    form = page.locator("#add-form")
    form.get_by_label("Prompt").fill(prompt)
    form.get_by_label("Target").fill(target)
    form.get_by_label("Subject").fill(subject)
    form.get_by_role("button", name="Add").click()


def added(page: Any, prompt: str, target: str, subject: str = "") -> None:
    add(page, prompt, target, subject)
    expect(rows(page, prompt)).to_contain_text(target, timeout=LEARNED)


def rows(page: Any, prompt: str) -> Any:
    return page.locator("#edit-list li").filter(has_text=prompt)


def undo(page: Any) -> None:
    view(page, "Edits")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#notice-text")).to_contain_text("Taken back")


def tab_to(page: Any, selector: str) -> None:
    """Presses Tab until the focus is on an element."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.locator(selector).first.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError(f"Tab does not get to {selector}")


def test_both_answers_are_streamed_at_once_and_explained(new_page: Any) -> None:
    page = new_page()
    added(page, PROMPT, TARGET, SUBJECT)
    page.evaluate(
        """() => {
            window.seen = [];
            for (const which of ["edited", "base"]) {
                const node = document.getElementById(`${which}-answer`);
                const note = () => node.textContent && window.seen.push(which);
                new MutationObserver(note).observe(node, {childList: true});
            }
        }"""
    )
    edited, base = ask(page, PROMPT)
    assert TARGET in edited and TARGET not in base and base
    seen = page.evaluate("window.seen")
    assert seen.count("edited") > 1 and seen.count("base") > 1
    assert seen.index("base") < len(seen) - 1 - seen[::-1].index("edited")  # neither waits
    assert seen.index("edited") < len(seen) - 1 - seen[::-1].index("base")
    why = page.locator("#why")
    expect(why).to_contain_text("Answered with an edit")
    expect(why.get_by_role("img", name="threshold")).to_be_visible()
    expect(why.locator(".spans .chosen")).to_contain_text(PROMPT)
    expect(why.get_by_role("table", name="Candidates")).to_contain_text(f"{PROMPT} → {TARGET}")
    undo(page)


def test_another_prompt_is_left_alone(new_page: Any) -> None:
    page = new_page()
    edited, base = ask(page, "Good morning!")
    assert edited == base
    expect(page.locator("#why")).to_contain_text("No edit is taken")


def test_plain_text_is_asked_as_such_and_an_answer_can_be_stopped(new_page: Any) -> None:
    page = new_page()
    expect(page.get_by_role("switch", name="In chat")).to_be_checked()
    page.get_by_role("switch", name="In chat").uncheck()
    with page.expect_request("**/v1/completions") as sent:
        assert all(ask(page, "Good morning!"))
    assert sent.value.post_data_json["prompt"] == "Good morning!"
    page.route("**/v1/completions", lambda route: None)  # it never answers
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#edited-caption")).to_have_text("stopped")
    expect(page.locator("#base-caption")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_an_error_within_a_stream_and_a_stream_that_breaks_off_are_said(new_page: Any) -> None:
    page = new_page()
    bodies = iter(
        ['data: {"error": {"message": "out of memory"}}\n\n', 'data: {"choices": []}\n\n']
    )
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=next(bodies)),
    )
    page.locator("#ask").get_by_label("Prompt").fill("Good morning!")
    page.get_by_role("button", name="Ask", exact=True).click()
    captions = page.locator("#edited-caption.error, #base-caption.error")
    expect(captions).to_have_count(2)
    said = sorted(captions.all_inner_texts())
    assert said == ["The server ended the answer early.", "out of memory"]


def test_an_added_edit_is_listed_answers_and_is_taken_back(new_page: Any) -> None:
    page = new_page()
    before, _ = ask(page, PROMPT)
    added(page, PROMPT, TARGET, SUBJECT)
    expect(rows(page, PROMPT)).to_contain_text(f"subject {SUBJECT}")
    assert TARGET in ask(page, PROMPT)[0]
    view(page, "Edits")
    page.get_by_text("History").click()
    expect(page.locator("#history-list > li").first).to_contain_text(PROMPT)
    undo(page)
    expect(rows(page, PROMPT)).to_have_count(0)
    expect(page.locator("#history-list > li").first).to_contain_text("undo")
    assert ask(page, PROMPT)[0] == before


def test_a_conflict_is_said_and_can_be_resolved(new_page: Any) -> None:
    page = new_page()
    added(page, PROMPT, TARGET, SUBJECT)
    add(page, PROMPT, OTHER_TARGET, SUBJECT)
    expect(page.locator("#add-line")).to_contain_text(PROMPT, timeout=LEARNED)
    expect(page.get_by_label("On conflict")).to_be_focused()
    page.get_by_label("On conflict").select_option("replace")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(rows(page, PROMPT)).to_contain_text(OTHER_TARGET, timeout=LEARNED)
    expect(rows(page, PROMPT)).to_have_count(1)
    undo(page)
    expect(rows(page, PROMPT)).to_contain_text(TARGET)
    undo(page)


def test_an_edit_is_searched_checked_changed_and_removed_by_keyboard_alone(new_page: Any) -> None:
    page = new_page()
    tab_to(page, "#tab-edits")
    page.keyboard.press("Enter")
    tab_to(page, "#add-prompt")
    page.keyboard.type(PROMPT)
    tab_to(page, "#add-target")
    page.keyboard.type(TARGET)
    page.keyboard.press("Enter")
    expect(rows(page, PROMPT)).to_contain_text(TARGET, timeout=LEARNED)
    tab_to(page, "#search")
    page.keyboard.type(PROMPT[:-3])
    expect(page.locator("#edits-title")).to_have_text("1 edit found")

    tab_to(page, f'[aria-label="Check: {PROMPT}"]')
    page.keyboard.press("Enter")
    expect(rows(page, PROMPT).get_by_role("table")).to_contain_text(TARGET, timeout=LEARNED)

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Change the target")).to_be_visible()
    expect(page.locator("#change-target")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type(OTHER_TARGET)
    page.keyboard.press("Enter")
    expect(rows(page, PROMPT)).to_contain_text(OTHER_TARGET, timeout=LEARNED)
    expect(page.get_by_label(f"Change: {PROMPT}")).to_be_focused()

    tab_to(page, f'[aria-label="Remove: {PROMPT}"]')
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Remove this edit?")
    expect(dialog).to_contain_text(OTHER_TARGET)
    page.keyboard.press("Enter")  # the focus is on Cancel
    expect(dialog).to_be_hidden()
    expect(page.get_by_label(f"Remove: {PROMPT}")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(rows(page, PROMPT)).to_have_count(0, timeout=LEARNED)
    assert page.evaluate("document.activeElement !== document.body")


def test_tabs_follow_the_arrow_keys(new_page: Any) -> None:
    page = new_page()
    page.get_by_role("tab", name="Ask").focus()
    for name in ("Edits", "Routing", "Health", "Ask"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
    expect(page.get_by_role("tabpanel")).to_have_count(1)


def test_the_list_goes_on_where_it_ended(new_page: Any) -> None:
    page = new_page()
    view(page, "Edits")
    expect(page.locator("#edits-title")).to_have_text(re.compile(r"^\d+ edits$"))
    total = int(page.locator("#edits-title").inner_text().split()[0])
    last = page.locator("#edit-list li").last
    last.get_by_role("button", name="Remove").click()  # the place from which the list goes on
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator("#edits-title")).to_have_text(f"{total - 1} edits")
    while page.locator("#more").is_visible():
        shown = page.locator("#edit-list li").count()
        page.locator("#more").click()
        expect(page.locator("#edit-list li").nth(shown)).to_be_visible()
    assert page.locator("#edit-list li").count() == total - 1
    undo(page)
    expect(page.locator("#edits-title")).to_have_text(f"{total} edits")


def test_routing_has_the_counts_of_the_prompts(new_page: Any) -> None:
    page = new_page()
    ask(page, "Good morning!")
    view(page, "Routing")
    table = page.get_by_role("table", name="Prompts by score")
    last = table.get_by_role("row").last
    expect(last).to_contain_text("all")
    counts = [int(text) for text in last.get_by_role("cell").all_inner_texts()[1:]]
    assert counts[1] >= 1
    expect(page.locator("#routing-summary")).to_contain_text(f"{counts[1]} left alone")
    assert page.locator("#histogram rect.alone").count() > 1
    expect(page.locator("#histogram line.threshold")).to_have_count(1)


def test_health_names_state_and_models(new_page: Any) -> None:
    page = new_page()
    view(page, "Health")
    expect(page.locator("#health-list")).to_contain_text("ok")
    expect(page.locator("#health-list")).to_contain_text("Edits in force")
    expect(page.locator("#models-list")).to_contain_text(":base")


def test_keys_leave_the_address_and_stay_in_the_tab(new_page: Any) -> None:
    page = new_page(f"edits&admin={ADMIN_KEY}&api={API_KEY}")
    expect(page.locator("#edit-list li").first).to_be_visible()
    assert page.url.endswith("/#edits")
    page.reload()
    expect(page.locator("#edit-list li").first).to_be_visible()
    page.evaluate("location.hash = '#routing&admin=another'")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert page.url.endswith("/#routing")


def test_without_a_key_the_page_asks_for_one(new_page: Any) -> None:
    page = new_page("edits")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog.get_by_role("alert")).not_to_be_empty()
    dialog.get_by_label("Admin key").fill(ADMIN_KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#edit-list li").first).to_be_visible()
    assert all(ask(page, "Good morning!"))  # the admin key is the API key too


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_horizontal_scrolling(new_page: Any, scheme: str) -> None:
    page = new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    added(page, "x" * 120, "y" * 60)
    ask(page, "x" * 120)
    for name in VIEWS:
        page.locator(f"#tab-{name}").click()
        expect(page.get_by_role("tabpanel")).to_have_attribute("id", name)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
    page.get_by_role("button", name="Keys").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Escape")
    undo(page)


def test_text_of_the_server_stays_text(new_page: Any) -> None:
    page = new_page()
    added(page, HOSTILE, HOSTILE, HOSTILE)
    page.get_by_text("History").click()
    expect(page.locator("#history-list")).to_contain_text(HOSTILE)
    page.get_by_label(f"Check: {HOSTILE}").click()
    expect(rows(page, HOSTILE).get_by_role("table")).to_be_visible(timeout=LEARNED)
    page.get_by_label(f"Remove: {HOSTILE}").click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    add(page, HOSTILE, OTHER_TARGET)
    expect(page.locator("#add-line")).to_contain_text("onerror", timeout=LEARNED)
    ask(page, HOSTILE)
    expect(page.locator("#why .spans")).to_contain_text(HOSTILE)
    expect(page.locator("#why table")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.title() == "meg_editor"
    undo(page)
