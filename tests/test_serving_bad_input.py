"""What a server is sent that it should not be, and what happens to it: an answer, and no more."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("fastapi", reason="serve is an extra")

from conftest import OTHERS, PROMPTS
from families import FAMILIES, LAYER, build
from live_facts import facts, ids, listed
from pydantic import ValidationError
from served import ADMIN, ADMIN_KEY, API_KEY, client, serving
from starlette.testclient import TestClient
from synthetic_neurons import Collector

from meg_editor.edits import live
from meg_editor.edits.edit import edits_of
from meg_editor.lm import paged
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.paged import PagedManager
from meg_editor.requests.request import EditRequest
from meg_editor.serving import completions
from meg_editor.serving.app import build_app
from meg_editor.serving.bodies import Chat, NewEdits, Prompt
from meg_editor.serving.check import check_batching
from meg_editor.serving.edit_store import _says
from meg_editor.serving.keys import Keys
from meg_editor.serving.server import Server
from meg_editor.serving.texts import Detokenizer, token_bytes

CHAT, TEXT, EDITS = "/v1/chat/completions", "/v1/completions", "/v1/edits"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def served(make_meg_model: Any, tmp_path: Any, monkeypatch: Any) -> Iterator[tuple[Any, Any]]:
    """A client with the admin key, and the server; a random model with six edits."""
    monkeypatch.setattr(live, "collect", Collector())
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)
    with serving(model, tmp_path / "facts", body=200_000) as (address, server):
        with client(address) as http:
            yield http, server
        assert server.engine.running == 0  # nothing goes on that nobody waits for


def answer(http: Any, prompt: str, **options: Any) -> str:
    found = http.post(TEXT, json={"prompt": prompt, "max_tokens": 6, **options})
    found.raise_for_status()
    return found.json()["choices"][0]["text"]


def soon(holds: Callable[[], bool]) -> None:
    """Waits until it holds: what is over for a client is over for the engine a step later."""
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to hold")


def error(response: Any, status: int) -> dict[str, Any]:
    """The error, which has OpenAI's shape and names no path."""
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "/tmp" not in response.text and "Traceback" not in response.text
    kind = "server_error" if status >= 500 else "invalid_request_error"
    assert response.json()["error"]["type"] == kind
    return response.json()["error"]


BAD = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "Hello"}, "messages"),
    (CHAT, {"messages": [{"role": "wizard", "content": "Hello"}]}, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": HELLO, "temperature": 3}, "temperature"),
    (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    (CHAT, {"messages": [*HELLO, {"role": "user", "content": " "}]}, "messages.1.content"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    (CHAT, {"messages": HELLO, "top_p": -1}, "top_p"),
    (CHAT, {"messages": HELLO, "top_p": 2}, "top_p"),
    (CHAT, {"messages": HELLO, "n": 0}, "n"),
    (CHAT, {"messages": HELLO, "n": 100}, "n"),
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": HELLO, "stop": ["a"] * 20}, "stop"),
    (CHAT, {"messages": HELLO, "top_logprobs": 50, "logprobs": True}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "top_logprobs": 3, "logprobs": False}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"messages": HELLO, "presence_penalty": 1}, "presence_penalty"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"messages": HELLO, "modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"messages": HELLO, "web_search_options": {}}, "web_search_options"),
    (CHAT, {"messages": HELLO, "prediction": {"type": "content", "content": "A"}}, "prediction"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [10**6]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt"),
    (TEXT, {"prompt": {"a": 1}}, "prompt"),
    (TEXT, {"prompt": "Hello", "echo": True}, "echo"),
    (TEXT, {"prompt": "Hello", "top_k": 5}, "top_k"),
    (TEXT, {"prompt": "Hello", "best_of": 2}, "best_of"),
    (EDITS, {"prompt": "A", "target_new": "B", "rephrases": ["C"]}, "edits.0.rephrases"),
    (EDITS, {"edits": []}, "edits"),
    (EDITS, {"edits": [{"prompt": "A"}]}, "edits.0.target_new"),
    (EDITS, {"prompt": "", "target_new": "Lima"}, None),
    (EDITS, {"prompt": "The capital of France is", "target_new": ""}, None),
    (EDITS, {"prompt": "A", "target_new": "B", "colour": "red"}, "edits.0.colour"),
    (EDITS, {"edits": [{"prompt": "A", "target_new": t} for t in "BC"]}, None),
    (EDITS, {"edits": [{"prompt": "A", "target_new": "B"}], "on_conflict": "win"}, "on_conflict"),
    (f"{EDITS}/undo", {"steps": 0}, "steps"),
    (f"{EDITS}/undo", {"steps": 99}, None),
    ("/v1/route", {}, None),
    ("/v1/route", {"prompt": "A", "messages": HELLO}, None),
]


def test_bad_fields_are_named_and_change_nothing(served):
    http, server = served
    before, text = ids(server.model), answer(http, PROMPTS[0])
    for path, body, param in BAD:
        said = error(http.post(path, json=body), 400)
        assert said["message"]
        if param is not None:
            assert (said["param"] or "").startswith(param), (body, said)
    assert ids(server.model) == before == listed(server.folder)
    assert answer(http, PROMPTS[0]) == text


NEUTRAL = [
    {"modalities": ["text"], "web_search_options": None, "prediction": None, "tools": []},
    {"messages": [*HELLO, {"role": "assistant", "content": None}, {"role": "assistant"}, *HELLO]},
    {"logprobs": None, "top_logprobs": None},
    {"logprobs": True, "top_logprobs": 0},
]


def test_what_asks_for_nothing_else_is_taken(served):
    http, _ = served
    for options in NEUTRAL:
        found = http.post(CHAT, json={"messages": HELLO, "max_tokens": 2, **options})
        assert found.status_code == 200, found.text


def test_a_top_p_of_zero_is_the_most_likely_token(served):
    http, _ = served
    greedy = answer(http, PROMPTS[0], temperature=0)
    for options in ({}, {"temperature": 2, "seed": 1}):
        assert answer(http, PROMPTS[0], top_p=0, **options) == greedy


@pytest.mark.parametrize("body", ["{", '{"messages": NaN', "[1, 2]", "null", '"x"', ""])
def test_what_is_no_json_object_is_refused(served, body):
    http, _ = served
    headers = {"Content-Type": "application/json"}
    error(http.post(CHAT, content=body, headers=headers), 400)
    error(http.post(EDITS, content=body, headers=headers), 400)


def test_a_form_of_another_site_cannot_send_json(served):
    """A browser sends text/plain to any host without asking it first, but JSON it does not."""
    http, server = served
    before = ids(server.model)
    body = json.dumps({"prompt": PROMPTS[9], "target_new": "Lima"})
    said = error(http.post(EDITS, content=body, headers={"Content-Type": "text/plain"}), 400)
    assert "application/json" in said["message"]
    assert ids(server.model) == before


def test_unknown_models_paths_methods_and_edits(served):
    http, _ = served
    said = error(http.post(CHAT, json={"model": "gpt-4", "messages": HELLO}), 404)
    assert said["code"] == "model_not_found" and said["param"] == "model"
    for path in ("/v1/nothing", "/v1/responses", "/v1/embeddings"):
        message = error(http.post(path, json={}), 404)["message"]
        assert repr(path) in message and f"POST {CHAT}; POST {TEXT}" in message
        assert "GET, POST /v1/edits" in message and "GET, HEAD /health" in message
        assert "page.js" not in message
    error(http.get("/../../etc/passwd"), 404)
    for call, path, allowed in (
        (http.get, CHAT, "POST"),
        (http.put, EDITS, "GET, POST"),
        (http.post, "/page.js", "GET"),
    ):
        refused = call(path)
        assert error(refused, 405)["message"].startswith(f"expected {allowed} at {path!r}, got ")
        assert refused.headers["Allow"] == allowed
    for path in (f"{EDITS}/ffffffffffff", f"{EDITS}/ffffffffffff/check"):
        assert error(http.get(path), 404)["code"] == "not_found"
    assert error(http.delete(f"{EDITS}/..%2f.."), 404)
    assert error(http.patch(f"{EDITS}/ffffffffffff", json={"target_new": "A"}), 404)


def test_a_prompt_longer_than_the_context(served):
    http, server = served
    long = "word " * (server.engine.capacity + 1)
    for path, body in (
        (TEXT, {"prompt": long}),
        (CHAT, {"messages": [{**HELLO[0], "content": long}]}),
    ):
        said = error(http.post(path, json=body), 400)
        assert (
            said["code"] == "context_length_exceeded"
            and str(server.engine.capacity) in said["message"]
        )
    body = {"prompt": "Hello", "max_tokens": server.engine.capacity}
    assert error(http.post(TEXT, json=body), 400)["code"] == "context_length_exceeded"
    room = server.engine.capacity - len(server.model.tokenizer("Hello")["input_ids"])
    full = {"prompt": [5] * (server.engine.capacity - 3)}  # nobody asked for 16 tokens
    assert http.post(TEXT, json=full).json()["usage"]["completion_tokens"] <= 3
    body = {"prompt": "Hello", "max_tokens": room}
    assert http.post(TEXT, json=body).status_code == 200


def test_ten_thousand_edits_and_a_body_that_is_too_large(served):
    http, server = served
    before = ids(server.model)
    many = [{"prompt": str(n), "target_new": "a"} for n in range(5000)]
    assert error(http.post(EDITS, json={"edits": many}), 400)["code"] == "too_many_edits"
    error(http.post(TEXT, json={"prompt": "a" * 300_000}), 413)

    def parts() -> Iterator[bytes]:  # of a length that is not announced
        yield b'{"prompt": "'
        for _ in range(40):
            yield b"a" * 10_000
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    with suppress(httpx.WriteError, httpx.ReadError):  # it may hang up before all of it is sent
        error(http.post(TEXT, content=parts(), headers=headers), 413)
    assert ids(server.model) == before and answer(http, PROMPTS[0])


def test_keys(served):
    http, server = served
    address = str(http.base_url)
    for key in (None, "wrong", API_KEY):
        with client(address, key) as other:
            for call in (
                other.get(EDITS),
                other.post(EDITS, json={"prompt": "A", "target_new": "B"}),
                other.delete(f"{EDITS}/{server.model.edits[0].id}"),
                other.post(f"{EDITS}/undo", json={}),
                other.post("/v1/route", json={"prompt": "A"}),
                other.get("/v1/routing"),
            ):
                assert error(call, 401)["code"] == "invalid_api_key"
                assert call.headers["WWW-Authenticate"] == "Bearer"
            expected = 200 if key == API_KEY else 401
            assert other.post(TEXT, json={"prompt": "A"}).status_code == expected
            assert other.get("/v1/models").status_code == expected
            assert other.get("/metrics").status_code == expected
            assert other.get("/health").status_code == 200
    with client(address, None) as other:
        for given in (
            f"Basic {ADMIN_KEY}",
            ADMIN_KEY,
            "Bearer",
            f"Bearer {ADMIN_KEY}x",
            "Bearer é",
        ):
            headers = {"Authorization": given.encode("latin-1", "replace")}
            error(other.get(EDITS, headers=headers), 401)
    assert http.get(EDITS).status_code == 200


def test_too_many_at_once_and_too_often(make_meg_model, tmp_path):
    model = make_meg_model("bank")
    limits = {"answers": 2, "per_minute": 8}
    with serving(model, tmp_path / "facts", **limits) as (address, _), client(address) as http:
        error(http.post(TEXT, json={"prompt": ["A", "B", "C"]}), 400)  # never fits
        statuses = [http.post(TEXT, json={"prompt": "A", "max_tokens": 1}) for _ in range(9)]
        assert [each.status_code for each in statuses[:7]] == [200] * 7
        last = error(statuses[-1], 429)
        assert last["code"] == "rate_limit_exceeded" and "8" in last["message"]


def asked_by(http: Any, body: dict[str, Any]) -> socket.socket:
    """A connection over which an answer is asked for, and not yet read."""
    content = json.dumps(body)
    raw = socket.create_connection((http.base_url.host, http.base_url.port))
    request = (
        f"POST {TEXT} HTTP/1.1\r\nHost: a\r\nAuthorization: {ADMIN['Authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
    )
    raw.sendall(request.encode())
    return raw


def test_a_client_that_goes_away_in_mid_stream(served):
    http, server = served
    expected = answer(http, PROMPTS[0])
    for _ in range(5):
        raw = asked_by(http, {"prompt": OTHERS[0], "max_tokens": 100, "stream": True})
        raw.recv(300)  # the first tokens
        raw.close()
    assert answer(http, PROMPTS[0]) == expected
    manager = server.engine._manager
    soon(lambda: server.engine.running == server.answers == 0)
    soon(lambda: not len(manager._riders) and not manager.output_router.result_handlers)
    soon(lambda: not manager.batch_processor.scheduler.active_requests)  # no token for nobody
    assert manager.output_router.output_queue.empty()


def test_a_client_that_goes_before_a_whole_answer_leaves_no_traceback(served, monkeypatch, caplog):
    """What is cancelled was never looked at, which asyncio logs when it is collected."""
    monkeypatch.setattr(completions, "_LOOK", 0.01)
    http, server = served
    forward = server.model.base.forward

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return forward(*args, **options)

    monkeypatch.setattr(server.model.base, "forward", slow)
    for _ in range(3):
        raw = asked_by(http, {"prompt": OTHERS[0], "max_tokens": 100, "n": 2})
        soon(lambda: server.engine.running == 2)
        raw.close()
        soon(lambda: server.engine.running == server.answers == 0)
    assert answer(http, PROMPTS[0]) is not None  # the last task is over
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_disk_that_is_full_leaves_the_edits_as_they_were(served, monkeypatch):
    http, server = served
    before, on_disk = ids(server.model), listed(server.folder)
    expected = [answer(http, PROMPTS[0]), answer(http, PROMPTS[9])]
    new, old = {"prompt": PROMPTS[9], "target_new": "Lima"}, server.model.edits[0].id

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(server.folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for call in (
            http.post(EDITS, json=new),
            http.patch(f"{EDITS}/{old}", json={"target_new": "Lima"}),
            http.delete(f"{EDITS}/{old}"),
        ):
            assert error(call, 507)["code"] == "disk_full"
            assert ids(server.model) == before and listed(server.folder) == on_disk
            assert [answer(http, PROMPTS[0]), answer(http, PROMPTS[9])] == expected
        assert http.get(f"{EDITS}/history").json()["data"] == []
    assert http.post(EDITS, json=new).status_code == 201
    assert listed(server.folder) == ids(server.model) > before


def test_a_folder_that_is_replaced_under_the_server(served, make_meg_model, tmp_path):
    http, server = served
    other = make_meg_model("bank")
    other.add(facts(8), on_conflict="keep")
    other.save_pretrained(tmp_path / "other")
    shutil.rmtree(server.folder)
    shutil.copytree(tmp_path / "other", server.folder)
    before, there = ids(server.model), listed(server.folder)
    said = error(http.post(EDITS, json={"prompt": PROMPTS[9], "target_new": "Lima"}), 409)
    assert said["code"] == "other_writer" and "restart" in said["message"]
    assert ids(server.model) == before and listed(server.folder) == there
    assert answer(http, PROMPTS[0])
    shutil.rmtree(server.folder)
    gone = http.post(EDITS, json={"prompt": PROMPTS[9], "target_new": "Lima"})
    assert gone.status_code in (201, 409, 503), gone.text
    assert (gone.status_code == 201) == (ids(server.model) > before)


def test_out_of_memory_in_a_batch_touches_only_its_cause(served, monkeypatch):
    http, server = served
    prompts = [*PROMPTS[:6], *OTHERS]
    expected = [answer(http, prompt) for prompt in prompts]
    base, forward = server.model.base, server.model.base.forward

    def short_of_memory(*args: Any, **options: Any) -> Any:
        given = options.get("input_ids")
        if given is not None and given.shape[1] > 1 and _ends_with_cause(given):
            raise RuntimeError(
                "[enforce fail at alloc] DefaultCPUAllocator: can't allocate: out of memory"
            )
        return forward(*args, **options)

    cause = server.model.tokenizer("zzqq zzqq")["input_ids"]

    def _ends_with_cause(given: torch.Tensor) -> bool:
        row = given[0].tolist()
        return any(row[n : n + len(cause)] == cause for n in range(len(row)))

    monkeypatch.setattr(base, "forward", short_of_memory)
    with ThreadPoolExecutor(len(prompts) + 1) as pool:
        asked = [pool.submit(answer, http, prompt) for prompt in prompts[:6]]
        culprit = pool.submit(http.post, TEXT, json={"prompt": "zzqq zzqq", "max_tokens": 6})
        asked += [pool.submit(answer, http, prompt) for prompt in prompts[6:]]
        assert [each.result() for each in asked] == expected
        assert error(culprit.result(), 503)["code"] == "out_of_memory"
    assert [answer(http, prompt) for prompt in prompts] == expected
    assert http.get("/health").json()["status"] == "ok"


def test_half_a_surrogate_pair_is_refused(served):
    http, _ = served
    headers = {"Content-Type": "application/json"}
    for path, body in (
        (TEXT, r'{"prompt": "\ud800"}'),
        (CHAT, r'{"messages": [{"role": "user", "content": "\udc00"}]}'),
        (EDITS, r'{"prompt": "A \ud800", "target_new": "B"}'),
    ):
        error(http.post(path, content=body, headers=headers), 400)


def test_an_undo_whose_save_fails_leaves_all_of_it(served, monkeypatch):
    """Two steps are one transaction: the disk has what memory has, and so it goes on."""
    http, server = served
    for row in (8, 9):
        body = {"edits": [{"prompt": PROMPTS[row], "target_new": "Lima"}], "on_conflict": "keep"}
        assert http.post(EDITS, json=body).status_code == 201
    real, left = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        real(descriptor)

    for room in range(4):
        before, left = ids(server.model), room
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            taken = http.post(f"{EDITS}/undo", json={"steps": 2})
        assert taken.status_code in (200, 507)
        assert listed(server.folder) == ids(server.model)
        assert (ids(server.model) == before) == (taken.status_code == 507)
        if taken.status_code == 200:
            break
    body = {"edits": [{"prompt": PROMPTS[10], "target_new": "Oslo"}], "on_conflict": "keep"}
    assert http.post(EDITS, json=body).status_code == 201
    assert listed(server.folder) == ids(server.model)


def test_an_id_that_was_replaced_meanwhile_is_not_another_edit(served):
    http, server = served
    identity = server.model.edits[0].id
    first = http.patch(f"{EDITS}/{identity}", json={"target_new": "Lima"})
    assert first.status_code == 200
    error(http.patch(f"{EDITS}/{identity}", json={"target_new": "Oslo"}), 404)
    new = first.json()["added"][0]
    body = {"prompt": new["prompt"], "target_new": "Lima"}
    again = http.post(EDITS, json=body)
    assert again.status_code == 200 and again.json()["added"] == []


def test_an_answer_that_ends_in_half_a_letter_is_given_up_to_there(tiny_tokenizer):
    tokenizer = tiny_tokenizer
    text = "Lima 好"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    found = "".join(detokenizer.push([token]) for token in tokens[:-1])
    assert found.startswith("Lima ") and "\N{REPLACEMENT CHARACTER}" not in found
    assert detokenizer.rest() == "\N{REPLACEMENT CHARACTER}"
    whole = Detokenizer(tokenizer)
    assert "".join(whole.push([token]) for token in tokens) + whole.rest() == text


def test_the_bytes_of_parts_of_a_letter_are_their_own(tiny_tokenizer):
    text = "Lima 好, 東京 é"
    tokens = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [token_bytes(tiny_tokenizer, token) for token in tokens]
    assert b"".join(parts).decode().strip() == text
    assert any(len(part) == 1 and part[0] > 127 for part in parts)  # "�" was EF BF BD


def test_each_prompt_names_what_was_expected(served):
    http, _ = served
    image = [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": {"url": "x"}}]
    for content, words in (
        (image, "got 'image_url' at 1"),
        (7, "text or a list of parts, got int"),
    ):
        said = error(
            http.post(CHAT, json={"messages": [{"role": "user", "content": content}]}), 400
        )
        assert said["param"] == "messages.0.content" and words in said["message"]
    for prompt in (None, [1.5], ["a", 1], [[1], "a"], True):
        said = error(http.post(TEXT, json={"prompt": prompt}), 400)
        assert said["param"] == "prompt" and "expected text, a list of texts" in said["message"]
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo")]
    bodies = [{"messages": [{"role": "user", "content": each}]} for each in ("Hello", parts)]
    answers = [http.post(CHAT, json={**body, "max_tokens": 4}).json() for body in bodies]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_of_many_errors_one_is_found():
    """A body of 1 MiB had hundreds of thousands, for seconds in which nobody was answered."""
    many = 100_000
    for model, body in (
        (Chat, {"messages": [{}] * many}),
        (Chat, {"messages": [{"role": "user", "content": [{}] * many}]}),
        (Prompt, {"prompt": ["a", *[1] * many]}),
        (NewEdits, {"edits": [{}] * many}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(body)
        assert caught.value.error_count() <= 3


def test_bytes_that_are_no_text_are_named(served):
    http, _ = served
    headers = {"Content-Type": "application/json"}
    said = error(http.post(TEXT, content=b'{"prompt": "\xff"}', headers=headers), 400)
    assert "cannot be read as JSON in UTF-8" in said["message"]


def test_an_edit_as_long_as_the_context_is_checked_as_far_as_it_fits(served):
    http, server = served
    room = server.model.base.config.max_position_embeddings - 26
    tokenizer, words = server.model.tokenizer, "Tell me who wrote"
    while len(tokenizer(words + " so")["input_ids"]) <= room:
        words += " so"
    added = http.post(EDITS, json={"prompt": words, "target_new": "Lima"})
    assert added.status_code == 201, added.text
    checked = http.get(f"{EDITS}/{added.json()['added'][0]['id']}/check")
    assert checked.status_code == 200 and checked.json()["answers"][0]["form"] == "bare"
    assert checked.json()["asked"] < 6


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("Oslo.", "Oslo", True),
        ("oslo, of course", "Oslo", True),
        ("Osloic", "Oslo", False),
        ("11", "1", False),
        ("东京是首都", "东京", True),
        ("e\u0301te\u0301", "été", True),
        ("Oslo", "Oslo!", False),
    ],
)
def test_a_check_wants_the_target_as_a_whole_word(answer, target, right):
    (edit,) = edits_of([EditRequest("Where?", target)])
    assert _says(answer, edit) is right


def test_a_full_cache_whose_answers_are_cancelled_lets_others_in(
    make_meg_model, tmp_path, monkeypatch
):
    """transformers lets nobody in after an eviction until an answer has finished by itself."""
    monkeypatch.setattr(paged, "_CPU_TOKENS", 256)
    model = make_meg_model("bank")
    with serving(model, tmp_path / "facts") as (address, server), client(address) as http:
        ends = [chr(n) for n in range(33, 48)]

        def stopped(n: int) -> Any:
            body = {"prompt": PROMPTS[n % 9], "max_tokens": 100, "stop": ends}
            return http.post(TEXT, json={**body, "temperature": 1.5, "seed": n})

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(stopped, range(24)))
        assert [each.status_code for each in answers] == [200] * 24
        assert answer(http, PROMPTS[0]) is not None
        manager = server.engine._manager
        soon(lambda: manager.output_router.output_queue.empty() and not len(manager._riders))


@pytest.mark.parametrize(("name", "fine"), [("Llama 2, 3", True), ("RecurrentGemma", False)])
def test_a_model_which_cannot_be_batched_is_refused_at_the_start(name, fine, tiny_tokenizer):
    base = build(next(f for f in FAMILIES if f.name == name), tiny_tokenizer)
    with NeuronHook(base, NeuronSpec.from_model(base, LAYER)) as hook:
        model = SimpleNamespace(base=base, hook=hook)
        if fine:
            check_batching(model)
        else:
            with pytest.raises(ValueError, match="RecurrentGemma"):
                check_batching(model)


@pytest.mark.parametrize("late", [False, True])
def test_what_keeps_an_engine_from_starting_is_said(monkeypatch, make_meg_model, late):
    def fails(manager: Any, *_: Any, **__: Any) -> None:
        if not late:
            raise RuntimeError("CUDA out of memory")

    stopped = []
    stop = PagedManager.stop
    monkeypatch.setattr(PagedManager, "get_result", fails)
    monkeypatch.setattr(PagedManager, "stop", lambda self, **o: stopped.append(stop(self, **o)))
    with pytest.raises(ValueError, match="no answer in" if late else "CUDA out of memory"):
        check_batching(make_meg_model("bank"))
    assert len(stopped) == 1


def test_an_engine_that_cannot_be_started_anew_is_tried_again(served, monkeypatch):
    http, server = served
    engine = server.engine
    made, failed = engine._new_manager, []

    def new() -> Any:
        if not failed:
            failed.append(True)
            raise RuntimeError("out of memory")
        return made()

    monkeypatch.setattr(engine, "_new_manager", new)
    engine._manager.stop(hard_stop=True)
    soon(lambda: failed and engine.is_alive())
    assert http.get("/health").status_code == 200 and answer(http, PROMPTS[0]) is not None


def test_another_name_for_this_machine_is_refused(make_meg_model, tmp_path):
    """A page of another site whose name leads to this machine's address."""
    model, folder = make_meg_model("bank"), tmp_path / "facts"
    model.save_pretrained(folder)
    app = build_app(Server(model, folder, Keys(ADMIN_KEY)), ["localhost", "127.0.0.1"])
    with TestClient(app, base_url="http://localhost") as http:
        assert http.get("/health").status_code == 200
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_the_page_brings_its_own_and_nothing_else(served):
    http, _ = served
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert http.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    error(http.get("/page.py"), 404)
