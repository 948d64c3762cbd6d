"""The page before the real server: ask, add, see the change, check, undo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
pytest.importorskip("fastapi", reason="serve is an extra")

import test_serving_page as page_test
from served import ADMIN_KEY, serving
from test_serving_page import ask, browser, new_page, view  # noqa: F401 - fixtures

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases

pytestmark = page_test.pytestmark
FACTS = [case.request for case in edit_cases(load_world(), 6, 0)]
NEW = FACTS[-1]
KEYS = f"admin={ADMIN_KEY}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: Any) -> Iterator[str]:
    hparams = MeGHyperParams.preset("default", device="cpu")
    edited, _ = fit(*load_model(hparams), FACTS[:-1], hparams)
    with serving(edited, tmp_path_factory.mktemp("served") / "facts") as (address, _):
        yield address


def test_ask_add_see_the_change_and_undo(new_page):  # noqa: F811
    page = new_page(KEYS)
    edited, base = ask(page, FACTS[0].prompt)
    assert edited.strip() == FACTS[0].target_new != base.strip()
    before, base = ask(page, NEW.prompt)
    assert before == base
    page_test.added(page, NEW.prompt, NEW.target_new, NEW.subject or "")
    assert page_test.rows(page, NEW.prompt).count() == 1
    view(page, "Ask")
    edited, base = ask(page, NEW.prompt)
    assert edited.strip() == NEW.target_new != base.strip() and base == before
    view(page, "Edits")
    page_test.undo(page)
    view(page, "Ask")
    assert ask(page, NEW.prompt) == (before, before)
    view(page, "Routing")
    view(page, "Health")
    page_test.expect(page.locator("main")).to_contain_text("facts:base")
