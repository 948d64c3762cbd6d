"""The server, as OpenAI's own client and others use it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="serve is an extra")
openai = pytest.importorskip("openai", reason="the server is asked by OpenAI's client")

from live_facts import listed  # noqa: E402
from served import ADMIN_KEY, API_KEY, client, serving  # noqa: E402

from meg_editor import MeGHyperParams, fit, load_model  # noqa: E402
from meg_editor.data.world.facts import load_world  # noqa: E402
from meg_editor.data.world.requests import edit_cases  # noqa: E402
from meg_editor.lm.answers import greedy_answers  # noqa: E402
from meg_editor.model.meg_model import MeGModel  # noqa: E402

CASES = edit_cases(load_world(), 12, 0)
FACTS = [case.request for case in CASES]
FITTED = 8
NEW = FACTS[FITTED]


@pytest.fixture(scope="module")
def fitted() -> MeGModel:
    hparams = MeGHyperParams.preset("default", device="cpu")
    return fit(*load_model(hparams), FACTS[:FITTED], hparams)[0]


@pytest.fixture(scope="module")
def server(fitted: MeGModel, tmp_path_factory: Any) -> Iterator[tuple[str, Any]]:
    with serving(fitted.fork(), tmp_path_factory.mktemp("served") / "facts") as found:
        yield found


@pytest.fixture(scope="module")
def ask(server: Any) -> Any:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture
def admin(server: Any) -> Iterator[Any]:
    """Of the server; edits that a test adds are gone after it."""
    before = {edit.id for edit in server[1].model.edits}
    with client(server[0]) as http:
        yield http
        for edit in server[1].model.edits:
            if edit.id not in before:
                http.delete(f"/v1/edits/{edit.id}").raise_for_status()


def said(ask: Any, prompt: str, model: str = "facts", **options: Any) -> str:
    options = {"max_tokens": 24, **options}
    answer = ask.completions.create(model=model, prompt=prompt, **options)
    return answer.choices[0].text.strip()


def in_chat(ask: Any, *turns: str, **options: Any) -> Any:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return ask.chat.completions.create(model="facts", messages=messages, **options)


def test_models_are_the_edited_one_and_its_base(ask):
    assert [model.id for model in ask.models.list()] == ["facts", "facts:base"]
    assert ask.models.retrieve("facts:base").owned_by == "meg_editor"
    with pytest.raises(openai.NotFoundError, match="facts:base"):
        ask.models.retrieve("gpt-4")


def test_answers_are_those_of_the_model_alone(ask, fitted):
    prompts = [fact.prompt for fact in FACTS]
    answers = ask.completions.create(model="facts", prompt=prompts, max_tokens=24)
    assert [c.text.strip() for c in answers.choices] == fitted.answer(prompts, 24)
    assert [c.index for c in answers.choices] == list(range(len(prompts)))
    for fact, choice in zip(FACTS[:FITTED], answers.choices[:FITTED], strict=True):
        assert choice.text.strip() == fact.target_new and choice.finish_reason == "stop"
    base = [said(ask, prompt, "facts:base") for prompt in prompts]
    assert base == [greedy_answers(fitted.base, fitted.tokenizer, [p], 24)[0] for p in prompts]


def test_a_chat_and_its_stream_are_the_same(ask):
    prompt, target = FACTS[0].prompt, FACTS[0].target_new
    whole = in_chat(ask, prompt, max_tokens=16)
    assert whole.choices[0].message.content == target
    assert whole.choices[0].message.role == "assistant"
    options = {"include_usage": True}
    chunks = list(in_chat(ask, prompt, max_tokens=16, stream=True, stream_options=options))
    parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(parts) == target and len(parts) > 2
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert {c.id for c in chunks} == {chunks[0].id}
    second = in_chat(ask, "Hello!", "Hello.", prompt, max_completion_tokens=16)
    assert second.choices[0].message.content == target


def test_stop_limit_and_several_answers(ask):
    fact = next(f for f in FACTS[:FITTED] if " " in f.target_new)
    first, _, rest = fact.target_new.partition(" ")
    choice = ask.completions.create(model="facts", prompt=fact.prompt, stop=rest[:3]).choices[0]
    assert choice.text.strip() == first and choice.finish_reason == "stop"
    parts = ask.completions.create(model="facts", prompt=fact.prompt, stop=[rest[:3]], stream=True)
    assert "".join(part.choices[0].text for part in parts).strip() == first
    short = ask.completions.create(model="facts", prompt=fact.prompt, max_tokens=1)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1
    many = ask.completions.create(model="facts", prompt=fact.prompt, n=3, max_tokens=24)
    assert [choice.text.strip() for choice in many.choices] == [fact.target_new] * 3
    assert many.usage.prompt_tokens == short.usage.prompt_tokens


def test_a_stop_is_looked_for_in_what_is_seen(ask):
    """An answer begins with a blank, which a chat does not show: it stopped there."""
    fact = next(fact for fact in FACTS[:FITTED] if " " in fact.target_new)
    answer = in_chat(ask, fact.prompt, stop=[" "]).choices[0]
    assert answer.message.content == fact.target_new.split()[0] and answer.finish_reason == "stop"


def test_a_seed_repeats_an_answer_in_any_company(ask):
    options = {"temperature": 2.0, "seed": 11, "max_tokens": 12}
    alone = said(ask, "Once upon a time", **options)
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(said, ask, fact.prompt, temperature=1.5) for fact in FACTS]
        again = pool.submit(said, ask, "Once upon a time", **options).result()
        [other.result() for other in others]
    assert again == alone != said(ask, "Once upon a time", **{**options, "seed": 12})
    several = ask.completions.create(model="facts", prompt="Once upon a time", n=2, **options)
    assert several.choices[0].text.strip() == alone != several.choices[1].text.strip()


def test_log_probabilities(ask):
    choice = in_chat(ask, FACTS[0].prompt, logprobs=True, top_logprobs=2, max_tokens=8).choices[0]
    tokens = choice.logprobs.content
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    legacy = ask.completions.create(
        model="facts", prompt=FACTS[0].prompt, logprobs=2, max_tokens=8
    ).choices[0]
    assert len(legacy.logprobs.tokens) == len(legacy.logprobs.token_logprobs)
    offsets = legacy.logprobs.text_offset
    assert offsets[0] == 0
    parts = ask.completions.create(
        model="facts", prompt=FACTS[0].prompt, logprobs=2, max_tokens=8, stream=True
    )
    streamed = [part.choices[0].logprobs for part in parts if part.choices]
    assert [offset for each in streamed for offset in each.text_offset] == offsets


def test_tokens_may_be_the_prompt(ask, fitted):
    ids = fitted.tokenizer(FACTS[0].prompt)["input_ids"]
    answer = ask.completions.create(model="facts", prompt=[ids, ids], max_tokens=24)
    assert [c.text.strip() for c in answer.choices] == [FACTS[0].target_new] * 2


def test_many_at_once_each_as_alone(ask, fitted):
    prompts = [fact.prompt for fact in FACTS] * 4
    expected = dict(zip(prompts, fitted.answer(prompts, 24), strict=True))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda prompt: said(ask, prompt), prompts))
    assert found == [expected[prompt] for prompt in prompts]


def test_an_edit_is_added_changed_checked_and_taken_back(server, ask, admin):
    before = said(ask, NEW.prompt)
    body = {"prompt": NEW.prompt, "target_new": NEW.target_new, "subject": NEW.subject}
    added = admin.post("/v1/edits", json=body)
    assert added.status_code == 201 and added.json()["kind"] == "add"
    identity = added.json()["added"][0]["id"]
    assert said(ask, NEW.prompt) == NEW.target_new
    assert identity in listed(server[1].folder)  # on the disk once it is acknowledged

    assert admin.get(f"/v1/edits/{identity}").json()["prompt"] == NEW.prompt
    search = admin.get("/v1/edits", params={"search": NEW.prompt.upper()}).json()
    assert [edit["id"] for edit in search["data"]] == [identity] and search["total"] == 1
    check = admin.get(f"/v1/edits/{identity}/check").json()
    bare = check["answers"][0]
    assert (bare["form"], bare["answer"], bare["right"]) == ("bare", NEW.target_new, True)
    assert check["right"] == sum(answer["right"] for answer in check["answers"]) >= 4

    changed = admin.patch(f"/v1/edits/{identity}", json={"target_new": "Atlantis"})
    assert said(ask, NEW.prompt) == "Atlantis"
    (new,) = changed.json()["added"]
    assert [edit["id"] for edit in changed.json()["removed"]] == [identity]
    taken = admin.post("/v1/edits/undo", json={"steps": 2}).json()["data"]
    assert [change["kind"] for change in taken] == ["replace", "add"]
    assert said(ask, NEW.prompt) == before
    assert not {identity, new["id"]} & listed(server[1].folder)
    kinds = [change["kind"] for change in admin.get("/v1/edits/history").json()["data"]]
    assert kinds[-4:] == ["add", "replace", "undo", "undo"]


def test_the_list_has_pages(admin):
    first = admin.get("/v1/edits", params={"limit": 5}).json()
    rest = admin.get("/v1/edits", params={"limit": 5, "after": first["data"][-1]["id"]}).json()
    assert first["has_more"] and not rest["has_more"] and first["total"] == FITTED
    assert len({edit["id"] for edit in first["data"] + rest["data"]}) == FITTED
    assert admin.get("/v1/edits", params={"after": ""}).json()["total"] == FITTED
    gone = admin.get("/v1/edits", params={"after": "0" * 12})  # it ended the list
    assert gone.status_code == 404 and "begin at the start" in gone.json()["error"]["message"]


def test_a_conflict_is_refused_or_replaced(ask, admin):
    body = {"prompt": FACTS[0].prompt, "target_new": "Atlantis"}
    refused = admin.post("/v1/edits", json=body)
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "conflict"
    assert said(ask, FACTS[0].prompt) == FACTS[0].target_new
    replaced = admin.post("/v1/edits", json={"edits": [body], "on_conflict": "replace"})
    assert replaced.status_code == 201 and said(ask, FACTS[0].prompt) == "Atlantis"
    assert admin.post("/v1/edits/undo", json={}).status_code == 200
    assert said(ask, FACTS[0].prompt) == FACTS[0].target_new


def test_why_a_prompt_is_routed(ask, admin):
    edited = admin.post("/v1/route", json={"prompt": FACTS[0].prompt}).json()
    assert edited["is_edit"] and edited["edit"]["target_new"] == FACTS[0].target_new
    assert edited["score"] >= edited["threshold"] and edited["candidates"][0]["verified"] == 1
    chat = {"messages": [{"role": "user", "content": FACTS[0].prompt}]}
    assert admin.post("/v1/route", json=chat).json()["edit"]["id"] == edited["edit"]["id"]
    other = admin.post("/v1/route", json={"prompt": "Good morning!"}).json()
    assert not other["is_edit"] and other["edit"] is None
    said(ask, FACTS[0].prompt)
    histogram = admin.get("/v1/routing").json()
    counted = sum(each["edited"] + each["left_alone"] for each in histogram["bins"])
    assert counted == histogram["count"] > 0


def test_edits_change_under_load_and_no_answer_is_touched(server, ask, admin, fitted):
    prompts = [fact.prompt for fact in FACTS[:FITTED]]
    expected = fitted.answer(prompts, 24)
    over = threading.Event()

    def keep_asking() -> list[bool]:
        right = []
        while not over.is_set():
            for prompt, answer in zip(prompts, expected, strict=True):
                right.append(said(ask, prompt) == answer)
        return right

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(keep_asking) for _ in range(3)]
        for _ in range(4):
            before = said(ask, NEW.prompt)
            body = {"prompt": NEW.prompt, "target_new": NEW.target_new, "subject": NEW.subject}
            added = admin.post("/v1/edits", json=body).json()
            assert said(ask, NEW.prompt) == NEW.target_new
            admin.delete(f"/v1/edits/{added['added'][0]['id']}").raise_for_status()
            assert said(ask, NEW.prompt) == before
        over.set()
        answers = [right for future in asking for right in future.result()]
    assert len(answers) > 20 and all(answers)


def test_health_and_metrics(server, ask):
    assert httpx.head(f"{server[0]}/health").status_code == 200
    said(ask, FACTS[0].prompt)
    with client(server[0], key=None) as http:
        health = http.get("/health").json()
        assert health["status"] == "ok" and health["edits"] == FITTED
    with client(server[0], key=API_KEY) as http:
        lines = http.get("/metrics").text.splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
              for line in lines if not line.startswith("#")}  # fmt: skip
    assert values['meg_editor_prompts_total{by="edited"}'] >= 1
    assert values['meg_editor_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert values["meg_editor_edits"] == FITTED


def test_langchain_asks_it_unchanged(server):
    chat = pytest.importorskip("langchain_openai", reason="LangChain is not installed")
    model = chat.ChatOpenAI(
        model="facts", base_url=f"{server[0]}/v1", api_key=API_KEY, max_tokens=16, temperature=0
    )
    assert model.invoke(FACTS[0].prompt).content == FACTS[0].target_new
    streamed = [part.content for part in model.stream(FACTS[0].prompt)]
    assert "".join(streamed) == FACTS[0].target_new and len(streamed) > 2


def test_a_served_folder_is_what_the_next_server_loads(fitted, tmp_path):
    folder = tmp_path / "facts"
    with serving(fitted.fork(), folder) as (address, _), client(address) as http:
        body = {"prompt": NEW.prompt, "target_new": NEW.target_new}
        http.post("/v1/edits", json=body).raise_for_status()
    again = MeGModel.from_pretrained(folder, base=fitted.base)
    with serving(again, folder) as (address, _), client(address, ADMIN_KEY) as http:
        assert http.get("/v1/edits").json()["total"] == FITTED + 1
        body = {"prompt": NEW.prompt, "max_tokens": 24}
        answer = http.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"].strip() == NEW.target_new
