"""What an edited model and its server stand: copies, engines, other modes, odd values."""

from __future__ import annotations

import copy
import gc
import math
import pickle  # noqa: TID251
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OTHERS, PROMPTS
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from meg_editor.edits import live
from meg_editor.edits.edition import Edition
from meg_editor.lm.working_copy import working_copy
from meg_editor.model import merging
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.files import read_requests
from meg_editor.requests.request import RequestError, merge_requests
from meg_editor.serving.errors import api_error
from meg_editor.serving.routing_queue import RoutingQueue
from meg_editor.serving.texts import Detokenizer

NEW = {"prompt": "Somebody else's river is", "target_new": "Lima"}


@pytest.fixture
def edited(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model(n=6, collection_steps=2, collection_contexts=1)


# ------------------------------------------------------------------- copies and engines


def test_an_engine_is_never_left_on_the_base(edited: MeGModel) -> None:
    """transformers stored ours there: the unedited model answered with the edits from then on."""
    ids = [edited.tokenizer(text)["input_ids"] for text in (PROMPTS[0], OTHERS[0])]
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    few = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)  # else most of the memory

    def answers(model: Any, **options: Any) -> list[list[int]]:
        given = model.generate_batch(
            ids, generation_config=config, continuous_batching_config=few, **options
        )
        return [answer.generated_tokens for answer in given.values()]

    before, changed = answers(edited.base), answers(edited)
    assert answers(edited, persistent_manager=True) == changed != before
    assert answers(edited.base) == before
    # The base may have an engine of its own, with threads, which nothing can copy.
    try:
        assert answers(edited.base, persistent_manager=True) == before
        assert working_copy(edited.base) is not edited.base
        assert copy.deepcopy(edited).edits == edited.edits
    finally:
        edited.base.destroy_cached_continuous_batching_manager()


def test_a_shallow_copy_has_a_history_of_its_own(edited: MeGModel) -> None:
    """It shared the list: a change of the copy was undone in the original, which got 7 edits."""
    copied = copy.copy(edited)
    copied.remove(PROMPTS[0])
    assert not edited.history() and len(edited.edits) == 6 and len(copied.edits) == 5


def test_what_cannot_be_pickled_says_what_to_do(edited: MeGModel) -> None:
    with pytest.raises(TypeError, match="save_pretrained"):
        pickle.dumps(edited)


def test_a_cache_goes_with_its_last_use(edited: MeGModel) -> None:
    """It was a reference cycle: full caches waited for the garbage collection."""
    batch = edited.tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    gc.collect()
    gc.disable()
    try:
        known = {id(each) for each in gc.get_objects() if isinstance(each, DynamicCache)}
        edited(**batch, use_cache=True)
        left = [each for each in gc.get_objects() if isinstance(each, DynamicCache)]
        assert not [each for each in left if id(each) not in known]
    finally:
        gc.enable()
    cache = edited(**batch, use_cache=True).past_key_values
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        copied.batch_select_indices(torch.tensor([1]))
        assert (copied.layers[0].keys.shape[0], cache.layers[0].keys.shape[0]) == (1, 2)


# ------------------------------------------------------------------------------- changes


def test_two_steps_are_taken_back_or_none(
    edited: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in PROMPTS[:2]:
        edited.remove(prompt)
    real, calls = Edition.changed, []

    def fails_at_the_second(self: Edition, *arguments: Any, **options: Any) -> Edition:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(self, *arguments, **options)

    monkeypatch.setattr(Edition, "changed", fails_at_the_second)
    with pytest.raises(MemoryError):
        edited.undo(2)
    assert len(edited.edits) == 4 and [change.kind for change in edited.history()] == 2 * ["remove"]


def test_what_is_rolled_back_keeps_its_fit_report(edited: MeGModel) -> None:
    report: Any = object()
    edited.fitted = report
    with pytest.raises(OSError, match="full"), edited.transaction():
        edited.remove(PROMPTS[0])
        raise OSError("the disk is full")
    assert edited.fitted is report


def test_a_gate_learns_a_change_in_inference_mode(make_meg_model: Callable[..., MeGModel]) -> None:
    edited = make_meg_model(gate="familiarity", familiarity_epochs=2)
    with torch.inference_mode():
        edited.remove(PROMPTS[0])
        edited.undo()
    assert len(edited.edits) == 6


def test_scores_are_counted_while_others_come_in(edited: MeGModel) -> None:
    """The deque is read by the server's thread and written by the one that routes."""
    queue = RoutingQueue(edited)
    queue.latest += [(0.5, True)] * 50
    stop, failed = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            queue.latest.append((0.25, False))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            queue.histogram()
    except RuntimeError as error:
        failed.append(error)
    finally:
        stop.set()
        writer.join()
    assert not failed


def test_edits_are_learned_in_inference_mode(edited: MeGModel) -> None:
    with torch.inference_mode():
        edited.add([NEW])
    assert len(edited.edits) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_edits_are_learned_within_autocast(edited: MeGModel, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        edited.add([NEW])
    plain = edited.fork()
    plain.remove(NEW["prompt"])
    plain.add([NEW])
    assert torch.equal(edited.edition.neurons([-1]), plain.edition.neurons([-1]))


def test_edits_are_learned_whatever_device_tensors_are_made_on(edited: MeGModel) -> None:
    """torch.set_default_device("cuda"), as in many scripts: what names no device stays here."""
    try:
        torch.set_default_device("meta")
        edited.add([NEW])
    finally:
        torch.set_default_device(None)
    assert len(edited.edits) == 7 and len(edited.answer(NEW["prompt"])) == 1


def test_another_default_dtype_is_refused(edited: MeGModel) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(ValueError, match="expected torch's default dtype to be float32, got"):
            edited.add([NEW])
        assert len(edited.answer(PROMPTS[:2])) == 2
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(edited.edits) == 6


def test_a_number_of_steps_may_be_numpys(edited: MeGModel) -> None:
    edited.remove(PROMPTS[0])
    assert len(edited.undo(np.int64(1))) == 1 and len(edited.edits) == 6


def test_what_is_no_edit_is_refused_by_its_type(edited: MeGModel) -> None:
    with pytest.raises(RequestError, match="its id or prompt, got dict"):
        edited.remove({"prompt": PROMPTS[0], "target_new": "Lima"})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected a list of edits, got NoneType"):
        edited.add(None)  # type: ignore[arg-type]


def test_a_model_without_edits_has_no_neurons(edited: MeGModel) -> None:
    edited.remove([edit.id for edit in edited.edits])
    assert edited.generated_neurons().shape == (0, edited.spec.size)


def test_a_hub_repository_of_another_base_is_merged(
    edited: MeGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository's name was taken for a folder once its neurons did not serve."""
    other = edited.fork()
    other._change("add", [], live.Rows.none())
    other.save_pretrained(tmp_path / "snapshot")

    def fails(*_: Any, **__: Any) -> None:
        raise merging.WrongModelError("another base")

    monkeypatch.setattr(merging, "local_folder", lambda name: tmp_path / "snapshot")
    monkeypatch.setattr(MeGModel, "from_pretrained", fails)
    change = edited.merge("user/repository")
    assert len(change.merged) == 6


# ----------------------------------------------------------------------- files and values


def test_lists_may_be_arrays() -> None:
    """As pandas reads them from parquet."""
    row = {"prompt": "a", "target_new": "b", "rephrases": np.array(["x", "y"], dtype=object)}
    assert merge_requests([row]).requests[0].rephrases == ("x", "y")
    empty = {**row, "rephrases": np.array([]), "rephrase_prompt": "z"}
    assert merge_requests([empty]).requests[0].rephrases == ("z",)


def test_an_export_has_the_name_it_is_known_by(
    edited: MeGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edits.json", "edits"):
        with pytest.raises(ValueError, match=r"expected a name that ends in \.jsonl, got"):
            edited.export(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    edited.export(tmp_path / "edits.jsonl")
    assert len(read_requests("~/edits.jsonl").requests) == 6


# -------------------------------------------------------------------------------- serving


def test_a_bad_request_about_memory_is_a_bad_request() -> None:
    """It got 503, on which clients ask again."""
    assert api_error(RequestError("two targets for 'What does out of memory mean'")).status == 400
    assert api_error(RuntimeError("CUDA out of memory")).status == 503


def test_no_finished_request_leaves_its_neuron(edited: MeGModel) -> None:
    """With several answers to a prompt, or behind a stop, all stayed."""
    config = GenerationConfig(
        max_new_tokens=2, do_sample=True, num_return_sequences=2, pad_token_id=0, eos_token_id=-1
    )
    manager = edited.init_continuous_batching(config)
    for text in PROMPTS[:3]:
        manager.add_request(edited.tokenizer(text)["input_ids"])
    assert len(manager._riders) == 3  # before the first can be over
    manager.start()
    try:
        for _ in range(6):
            assert manager.get_result(timeout=60) is not None
    finally:
        manager.stop()
    assert not manager._riders


def test_the_histogram_holds_scores_below_zero(edited: MeGModel) -> None:
    """Those of a Familiarity gate: all were in the first bin, edited or not."""
    queue = RoutingQueue(edited)
    queue.latest += [(-0.3, False), (-0.02, True), (0.0, True), (-math.inf, False)]
    found = queue.histogram()
    bins: Any = found["bins"]
    assert bins[0]["from"] == -0.3 and bins[-1]["to"] == pytest.approx(0) and found["count"] == 3
    assert (
        bins[0]["left_alone"] == 1 and sum(each["edited"] for each in bins[len(bins) // 2 :]) == 2
    )


class _Words:
    """Strips the first blank of a text, and tidies blanks up where that is not switched off."""

    words = ("▁Hello", "<special>", "▁is", "▁world", "▁,")

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = True, **_: Any) -> str:
        text = "".join(self.words[i] for i in ids if i != 1).replace("▁", " ").removeprefix(" ")
        return text.replace(" ,", ",") if clean_up_tokenization_spaces else text


def test_pieces_of_a_text_are_the_text() -> None:
    """The blank behind a special token, and a comma behind a blank, were lost."""
    pieces: Any = Detokenizer(_Words())  # type: ignore[arg-type]
    said = "".join(pieces.push([token]) for token in range(5)) + pieces.rest()
    assert said == "Hello is world ,"


def test_without_edits_the_threshold_is_still_the_routers(edited: MeGModel) -> None:
    edited.remove([edit.prompt for edit in edited.edits])
    routed = edited.route(["The capital of France is"])
    assert float(routed.threshold) == pytest.approx(edited.router.threshold)
