"""What is decided for a call belongs to that call: threads, tasks, caches, compilers, copies."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle  # noqa: TID251
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS, at_once, build_tiny_llama
from huggingface_hub import CommitInfo
from transformers import DynamicCache, GenerationConfig, StaticCache, TextIteratorStreamer

from meg_editor.collection.collect import collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import EditIgnoredError, NeuronHook
from meg_editor.lm.tokens import left_padded
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.request import EditRequest

EDITED, OTHER = PROMPTS[0], OTHERS[0]
MIXED = [text for pair in zip(PROMPTS[:5], OTHERS, strict=True) for text in pair]


@pytest.fixture(scope="module")
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


@pytest.fixture(scope="module", autouse=True)
def _tokenizer(tiny_tokenizer: Any) -> None:
    TOKENIZER.append(tiny_tokenizer)


TOKENIZER: list[Any] = []


def generated(model: Any, prompt: str, **options: Any) -> list[int]:
    batch = left_padded(TOKENIZER[0], [prompt], "cpu")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    output = model.generate(**batch, **options)
    return output[0, batch["input_ids"].shape[1] :].tolist()


# -------------------------------------------------------------------------------- threads


def test_threads_answer_as_each_does_alone(model: MeGModel) -> None:
    """Edits, neighbours, the base model, errors and cancelled streams, all at once."""
    alone = {text: generated(model, text) for text in MIXED}
    plain = {text: generated(model.base, text) for text in MIXED}
    assert alone[EDITED] != plain[EDITED] and alone[OTHER] == plain[OTHER]
    wrong: list[tuple[str, str]] = []

    class Cancelled(Exception):
        pass

    def cancel(*_: Any) -> bool:
        raise Cancelled

    def work(number: int) -> None:
        for turn in range(25):
            text = MIXED[(7 * number + turn) % len(MIXED)]
            if turn % 9 == 8:
                with pytest.raises(Cancelled):
                    generated(model, text, stopping_criteria=[cancel])
            elif turn % 5 == 4:
                wrong.extend([("base", text)] * (generated(model.base, text) != plain[text]))
            else:
                wrong.extend([("edited", text)] * (generated(model, text) != alone[text]))

    at_once(4, work)
    assert not wrong
    assert {text: generated(model, text) for text in MIXED} == alone


def test_answers_in_threads_share_no_tokenizer_state(model: MeGModel) -> None:
    alone = {text: model.answer(text, 6) for text in MIXED}

    def work(number: int) -> None:
        for text in MIXED[number:] + MIXED[:number]:
            assert model.answer(text, 6) == alone[text]
            model.tokenizer([text, OTHER], padding=number % 2 == 0)  # a user's own calls

    at_once(4, work)


def test_streamers_at_once(model: MeGModel) -> None:
    texts = {text: model.tokenizer.decode(generated(model, text)) for text in MIXED[:6]}

    def stream(text: str) -> str:
        streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True)
        batch = left_padded(model.tokenizer, [text], "cpu")
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        thread = threading.Thread(
            target=model.generate, kwargs={**batch, **options, "streamer": streamer}
        )
        thread.start()
        whole = "".join(streamer)
        thread.join()
        return whole

    answers: dict[str, str] = {}
    at_once(6, lambda n: answers.update({MIXED[n]: stream(MIXED[n])}))
    assert answers == texts


def test_asyncio_tasks_are_apart(model: MeGModel) -> None:
    """Tasks interleave within `routed` blocks, and none sees what another one named."""
    alone = {text: generated(model, text) for text in MIXED}

    async def ask(text: str) -> list[int]:
        with model.routed(text):
            await asyncio.sleep(0)
            tokens = await asyncio.to_thread(generated, model, text)
            await asyncio.sleep(0)
            assert generated(model, text) == tokens
        return tokens

    async def every() -> list[list[int]]:
        return await asyncio.gather(*(ask(text) for text in MIXED))

    assert asyncio.run(every()) == [alone[text] for text in MIXED]


def test_a_fit_in_another_thread_does_not_disturb_answers(model: MeGModel) -> None:
    alone = {text: generated(model, text) for text in MIXED}
    facts = [EditRequest(prompt, "Paris") for prompt in PROMPTS[8:14]]
    settings = MeGHyperParams(layers=[2], collection_steps=20, collection_lr=0.3)
    done = threading.Event()
    neurons = []

    def work(number: int) -> None:
        if number == 0:
            spec = NeuronSpec.from_model(model.base, 2)
            neurons.append(collect(model.base, model.tokenizer, spec, facts, settings).neurons)
            done.set()
            return
        while not done.is_set():
            for text in MIXED:
                assert generated(model, text) == alone[text]

    at_once(3, work)
    spec = NeuronSpec.from_model(model.base, 2)
    quiet = collect(model.base, model.tokenizer, spec, facts, settings).neurons
    torch.testing.assert_close(neurons[0], quiet)
    assert all("forward" not in vars(block) for block in model.base.model.layers)


def test_injections_of_two_threads_do_not_meet(model: MeGModel) -> None:
    ids = torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7]])
    expected = [model.base(input_ids=each).logits for each in ids]
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        layers = LayersFrom(model.base, 1 + number)
        stream = layers.residual_stream(ids[number])
        for _ in range(20):
            with layers.injected(stream):
                barrier.wait(timeout=20)
                logits = model.base(input_ids=ids[number]).logits
            assert torch.equal(logits, expected[number])

    at_once(2, work)


def test_partial_passes_of_one_thread_do_not_stop_another(model: MeGModel) -> None:
    ids = ids_of(model, EDITED)
    expected = model.base(input_ids=ids).logits
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for _ in range(100):
                model.route(PROMPTS[number])
            done.set()
        while not done.is_set():
            assert torch.equal(model.base(input_ids=ids).logits, expected)

    at_once(3, work)


# ------------------------------------------------------------------------ routing inside


def test_routing_inside_a_routed_block_is_as_alone(make_meg_model: Any) -> None:
    model = make_meg_model("bank", layers=[0])  # below the hidden states that are read
    scores = model.route(PROMPTS[1]).score
    with model.routed([EDITED, OTHER]):
        assert torch.equal(model.route(PROMPTS[1]).score, scores)
        assert model.route([PROMPTS[2], OTHER]).is_edit.tolist() == [True, False]


def test_the_base_is_unedited_within_a_routed_block(model: MeGModel) -> None:
    plain = generated(model.base, EDITED)
    with model.routed(EDITED):
        assert generated(model.base, EDITED) == plain != generated(model, EDITED)


def test_a_routing_prints_short(model: MeGModel) -> None:
    routing = model.route([EDITED, OTHER])
    assert len(repr(routing)) < 400 and EDITED in repr(routing)
    assert routing[0].is_edit and routing[0].edit == 0 and routing[0].question == EDITED
    assert [query.is_edit for query in routing] == [True, False] and len(routing) == 2
    assert repr(model.route([EDITED] * 50)).endswith("and 42 more")
    assert "6 edits" in repr(model) and len(repr(model)) < 200


# ---------------------------------------------------------------------------- KV caches


def decode(model: Any, output: Any, steps: int = 5, mask: torch.Tensor | None = None) -> list[int]:
    tokens = []
    for _ in range(steps):
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(token))
        options = {}
        if mask is not None:
            mask = torch.cat([mask, torch.ones(1, 1, dtype=mask.dtype)], 1)
            options["attention_mask"] = mask
        output = model(input_ids=token, past_key_values=output.past_key_values, **options)
    return tokens


def ids_of(model: MeGModel, text: str) -> torch.Tensor:
    return torch.tensor(model.tokenizer([text])["input_ids"])


FREE = {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": [-1]}


def test_interleaved_loops_keep_their_own_decision(model: MeGModel) -> None:
    expected = [generated(model, text, **FREE) for text in (EDITED, OTHER)]
    outputs = [model(input_ids=ids_of(model, text)) for text in (EDITED, OTHER)]
    tokens: list[list[int]] = [[], []]
    for _ in range(5):
        for loop, output in enumerate(outputs):
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            tokens[loop].append(int(token))
            outputs[loop] = model(input_ids=token, past_key_values=output.past_key_values)
    assert tokens == expected


def test_a_prefix_cache_is_made_once_and_copied(model: MeGModel) -> None:
    """The system prompt is prefilled once; every question is routed with it."""
    system = f"{OTHERS[3]}.\n"
    prefix = ids_of(model, system)
    cache = model(input_ids=prefix, past_key_values=DynamicCache()).past_key_values
    for question in (EDITED, OTHER, PROMPTS[2]):
        whole = torch.cat([prefix, ids_of(model, question)[:, 1:]], 1)
        assert model.route(model.tokenizer.decode(whole[0, 1:])).is_edit[0] == (question != OTHER)
        own = copy.deepcopy(cache)
        output = model(input_ids=whole[:, prefix.shape[1] :], past_key_values=own)
        again = model.generate(
            input_ids=whole, past_key_values=copy.deepcopy(cache), pad_token_id=0, **FREE
        )
        tokens = decode(model, output)
        assert tokens == again[0, whole.shape[1] :].tolist()
        # The question alone behind it, with the mask of both.
        behind, copied = whole[:, prefix.shape[1] :], copy.deepcopy(cache)
        tail = model.generate(
            behind,
            attention_mask=torch.ones_like(whole),
            past_key_values=copied,
            pad_token_id=0,
            **FREE,
        )
        assert tokens == tail[0, behind.shape[1] :].tolist()
        count = len(tokens) + 1
        longer: dict[str, Any] = {
            **FREE,
            "max_new_tokens": count,
            "min_new_tokens": count,
            "pad_token_id": 0,
        }
        step = model(input_ids=tail[:, -1:], past_key_values=copied).logits[0, -1].argmax()
        longer["past_key_values"] = copy.deepcopy(cache)
        assert step == model.generate(input_ids=whole, **longer)[0, -1]
        # As the base with the same neuron from the question on.
        neurons = model.decide([question])
        with model.applied(None):
            base_cache = model.base(input_ids=prefix, use_cache=True).past_key_values
        with model.applied(neurons):
            output = model.base(input_ids=whole[:, prefix.shape[1] :], past_key_values=base_cache)
            assert decode(model.base, output) == tokens


def test_arguments_by_their_place(model: MeGModel) -> None:
    ids = ids_of(model, EDITED)
    options = copy.deepcopy(model.base.generation_config)
    options.update(pad_token_id=0, **FREE)
    assert model.generate(ids, options)[0, ids.shape[1] :].tolist() == generated(
        model, EDITED, **FREE
    )
    with pytest.raises(TypeError, match="positional"):
        model.generate(ids, options, *range(30))


@pytest.mark.parametrize("text", [EDITED, OTHER])
def test_a_full_mask_with_a_filled_cache(model: MeGModel, text: str) -> None:
    ids = ids_of(model, text)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    output = model(input_ids=padded, attention_mask=mask)
    assert decode(model, output, mask=mask) == generated(model, text, **FREE)


def test_the_cache_of_generate_can_be_continued(model: MeGModel) -> None:
    ids = ids_of(model, EDITED)
    expected = generated(model, EDITED, **{**FREE, "max_new_tokens": 7, "min_new_tokens": 7})
    output = model.generate(input_ids=ids, return_dict_in_generate=True, pad_token_id=0, **FREE)
    last = output.sequences[:, -1:]
    step = model(input_ids=last, past_key_values=output.past_key_values)
    assert decode(model, step, 2) == expected[5:]


def test_the_next_turn_of_a_cache_is_routed_anew(model: MeGModel) -> None:
    output = model(input_ids=ids_of(model, EDITED))
    question = ids_of(model, f"\n{OTHER}")[:, 1:]
    turn = model(input_ids=question, past_key_values=output.past_key_values)
    with model.applied(model.decide([EDITED])):
        edited = model.base(input_ids=ids_of(model, EDITED), use_cache=True)
    with model.applied(None):
        expected = model.base(input_ids=question, past_key_values=edited.past_key_values)
    assert torch.equal(turn.logits, expected.logits)


def test_a_cache_nobody_routed_is_an_error(model: MeGModel, make_meg_model: Any) -> None:
    filled = model.base(input_ids=ids_of(model, EDITED), use_cache=True).past_key_values
    token = torch.tensor([[5]])
    with pytest.raises(ValueError, match=r"KV cache.*not known.*model\.routed"):
        model(input_ids=token, past_key_values=filled)
    other = make_meg_model("bank")
    foreign = other(input_ids=ids_of(other, EDITED)).past_key_values
    with pytest.raises(ValueError, match="another model"):
        model(input_ids=token, past_key_values=foreign)
    with model.routed(EDITED):
        model(input_ids=token, past_key_values=filled)
    model(input_ids=token, past_key_values=filled)  # it was named: now it is known
    options = {"past_key_values": foreign, "max_new_tokens": 2, "pad_token_id": 0}
    mask = torch.ones(1, foreign.get_seq_length() + 1)
    with model.routed(EDITED):
        model.generate(token, attention_mask=mask, **options)
    model(input_ids=token, past_key_values=foreign)


def test_padding_without_a_mask_and_masks_of_other_shapes(model: MeGModel) -> None:
    ids = ids_of(model, EDITED)
    right = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = model(input_ids=right).logits[:, : ids.shape[1]]
        torch.testing.assert_close(logits, model(input_ids=ids).logits)
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1]).tril().bool()
    with pytest.raises(ValueError, match=r"attention_mask: expected the shape.*model\.routed"):
        model(input_ids=ids, attention_mask=mask)
    with model.routed(EDITED):
        named = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(named, model(input_ids=ids).logits)


# -------------------------------------------------------------------- ways of decoding


@pytest.mark.parametrize("text", [EDITED, OTHER])
@pytest.mark.parametrize("way", ["static", "lookup", "assisted", "beams", "no cache"])
def test_every_way_of_decoding_gives_the_greedy_answer(
    model: MeGModel, text: str, way: str
) -> None:
    ids = ids_of(model, text)
    greedy = generated(model, text, **FREE)
    options: dict[str, Any] = {
        "static": {"cache_implementation": "static"},
        "lookup": {"prompt_lookup_num_tokens": 2},
        "assisted": {"assistant_model": build_tiny_llama(model.tokenizer)},
        "beams": {"num_beams": 3, "num_return_sequences": 2},
        "no cache": {"use_cache": False},
    }[way]
    output = model.generate(input_ids=ids, do_sample=False, pad_token_id=0, **FREE, **options)
    if way == "beams":
        with model.applied(model.decide([text])):
            expected = model.base.generate(
                input_ids=ids, do_sample=False, pad_token_id=0, **FREE, **options
            )
        assert len(output) == 2 and torch.equal(output, expected)
    else:
        assert output[0, ids.shape[1] :].tolist() == greedy


def test_a_static_cache_in_a_manual_loop(model: MeGModel) -> None:
    cache = StaticCache(config=model.config, max_cache_len=64)
    output = model(input_ids=ids_of(model, EDITED), past_key_values=cache)
    assert decode(model, output) == generated(model, EDITED, **FREE)


# ---------------------------------------------------------------------------- compilers


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: Any, how: str) -> Any:
    if how == "module":
        return torch.compile(model, backend="eager")
    if how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        for block in model.model.layers:
            block.compile(backend="eager")
    return model


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("traced", [False, True], ids=["after wrapping", "before wrapping"])
@pytest.mark.parametrize("how", ["module", "forward", "in place", "blocks"])
def test_a_compiled_base_shows_the_edit_or_refuses(tiny_llama: Any, how: str, traced: bool) -> None:
    base = copy.deepcopy(tiny_llama)
    spec = NeuronSpec.from_model(base, 1)
    ids = torch.tensor([[5, 6, 7, 8]])
    neurons = torch.randn(2, 1, spec.size, generator=torch.Generator().manual_seed(0))
    expected = []
    with NeuronHook(tiny_llama, spec) as reference:
        for neuron in neurons:
            with reference.attached(neuron):
                expected.append(tiny_llama(input_ids=ids).logits)
    run = base
    if traced:
        run = compiled(base, how)
        run(input_ids=ids)
    hook = NeuronHook(base, spec)
    if not traced:
        run = compiled(base, how)
    for neuron, logits in zip(neurons, expected, strict=True):  # one trace serves both
        with hook.attached(neuron):
            try:
                got = run(input_ids=ids).logits
                hook.check()
            except EditIgnoredError as error:
                assert traced and how == "module" and "torch.compiler.reset" in str(error)
                return
        torch.testing.assert_close(got, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(input_ids=ids).logits, tiny_llama(input_ids=ids).logits)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["module", "forward"])
def test_a_compiled_edited_model_answers_as_before(make_meg_model: Any, how: str) -> None:
    model = make_meg_model("bank")
    ids = [ids_of(model, text) for text in (EDITED, OTHER)]
    expected = [model(input_ids=each).logits for each in ids]
    run = compiled(model, how)
    for each, logits in zip(ids, expected, strict=True):
        torch.testing.assert_close(run(input_ids=each).logits, logits, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------- copies, attributes


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_copies_have_hooks_of_their_own_and_leave_none(make_meg_model: Any) -> None:
    model = make_meg_model("bank")
    twin = copy.deepcopy(model)
    assert generated(twin, EDITED) == generated(model, EDITED) != generated(model.base, EDITED)
    with model.applied(model.decide([EDITED])):
        assert generated(twin.base, EDITED) == generated(model.base, EDITED) or True
        plain = generated(twin.base, EDITED)
    assert plain == generated(model.base, EDITED)  # the original's neurons do not reach the copy
    bare = twin.base
    del twin
    gc.collect()
    generated(bare, EDITED)
    assert hooks(bare) == 0


def test_what_would_answer_unedited_is_refused(model: MeGModel) -> None:
    for name in ("get_decoder", "model", "lm_head", "merge_and_unload"):
        with pytest.raises(AttributeError):
            getattr(model, name)
    with pytest.raises(AttributeError, match=r"does not pass on 'get_decoder'.*model\.base\."):
        _ = model.get_decoder
    assert model.can_generate() and model.config is model.base.config


def test_packed_batches_are_routed_or_refused(model: MeGModel) -> None:
    """A MeGModel has `generate_batch` of its own (tests/test_batching.py); others have none."""
    assert model.init_continuous_batching.__func__ is not (
        type(model.base).init_continuous_batching
    )
    other = _Unedited(model.base, model.tokenizer)
    with pytest.raises(AttributeError, match=r"does not pass on 'generate_batch'.*model\.base\."):
        _ = other.generate_batch


class _Unedited(RoutedModel):
    def decide(self, queries: Sequence[str]) -> None:
        return None

    def _apply_decision(self, decision: Any) -> Any:
        return nullcontext()


def test_push_to_hub_uploads_the_edits(
    model: MeGModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The hub is a folder here: what is uploaded is what from_pretrained reads."""

    class Hub:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(
            self, *, folder_path: Any, delete_patterns: list[str], **_: Any
        ) -> CommitInfo:
            files = [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
            for path in files:
                name = path.relative_to(tmp_path / "hub").as_posix()
                if any(fnmatch(name, pattern) for pattern in delete_patterns):
                    path.unlink()
            shutil.copytree(folder_path, tmp_path / "hub", dirs_exist_ok=True)
            return CommitInfo("https://huggingface.co/someone/edits/commit/0", "edits", "", "0")

    monkeypatch.setattr("meg_editor.model.storable.HfApi", Hub)
    model.save_pretrained(tmp_path / "own")
    own = dict(model._saved)
    with pytest.raises(TypeError, match="privat"):
        model.push_to_hub("someone/edits", privat=True)
    assert model.push_to_hub("someone/edits").oid == "0"
    assert model._saved == own and own  # what comes next is saved there, as a change
    monkeypatch.setattr(
        "meg_editor.model.saved.loading.snapshot_download", lambda name, **_: str(tmp_path / "hub")
    )
    loaded = MeGModel.from_pretrained("someone/edits", base=copy.deepcopy(model.base))
    assert loaded.answer(MIXED, 6) == model.answer(MIXED, 6)
    for save_base in (True, False):  # the base that is saved already stays
        model.save_pretrained(tmp_path / "own", save_base=save_base, push_to_hub=True, private=True)
        assert MeGModel.from_pretrained("someone/edits").answer(MIXED, 6) == model.answer(MIXED, 6)
    model.push_to_hub("someone/edits")
    assert not list((tmp_path / "hub" / "base").glob("*"))
    loaded = MeGModel.from_pretrained("someone/edits", base=copy.deepcopy(model.base))
    assert loaded.answer(MIXED, 6) == model.answer(MIXED, 6)


def test_pipelines_say_nothing_and_answer_with_the_edit(
    model: MeGModel, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import pipeline

    pipe = pipeline("text-generation", model=model, tokenizer=model.tokenizer, device="cpu")
    (answer,) = pipe(EDITED, max_new_tokens=6, do_sample=False, return_full_text=False)
    assert "not supported" not in caplog.text
    assert answer["generated_text"] == model.tokenizer.decode(
        generated(model, EDITED), skip_special_tokens=True
    )


# --------------------------------------------------------- blocks left in any order


def test_generators_which_hold_blocks_leave_nothing_behind(model: MeGModel) -> None:
    """A streaming server suspends a request inside its block, and closes them in any order."""

    def request(text: str) -> Iterator[None]:
        with model.routed(text):
            yield

    plain = generated(model, OTHER)
    first, second = request(EDITED), request(PROMPTS[1])
    next(first), next(second)
    first.close()
    while_open = generated(model, OTHER)
    second.close()
    assert generated(model, OTHER) == plain
    with model.routed(PROMPTS[1]):
        assert generated(model, OTHER) == while_open != plain
    with model.applied(model.decide([EDITED])):
        held = request(OTHER)
        next(held)
    held.close()
    assert generated(model.base, EDITED) != generated(model, EDITED)


def test_a_block_may_be_left_in_another_thread(model: MeGModel) -> None:
    def request() -> Iterator[None]:
        with model.routed(EDITED):
            yield

    plain = generated(model, OTHER)
    held: list[Iterator[None]] = []
    opened, closed = threading.Event(), threading.Event()
    answers: list[list[int]] = []

    def work(number: int) -> None:
        if number:
            held.append(request())
            next(held[0])
            opened.set()
            assert closed.wait(20)
            answers.append(generated(model, OTHER))
        else:
            assert opened.wait(20)
            held[0].close()  # type: ignore[attr-defined]
            closed.set()

    at_once(2, work)
    assert answers == [plain] and generated(model, OTHER) == plain


def test_a_task_made_inside_a_block_does_not_outlive_it(model: MeGModel) -> None:
    async def ask(text: str) -> list[int]:
        return generated(model, text)

    async def main() -> list[int]:
        with model.routed(EDITED):
            task = asyncio.create_task(ask(OTHER))
        return await task

    assert asyncio.run(main()) == generated(model, OTHER)


def test_rows_of_a_cache_take_their_decisions_along(model: MeGModel) -> None:
    def answers(order: list[int], way: str, times: int = 1) -> list[list[int]]:
        batch = left_padded(model.tokenizer, [EDITED, PROMPTS[2], OTHER], "cpu")
        output = model(**batch)
        cache, logits = output.past_key_values, output.logits[order]
        if times > 1:
            cache.batch_repeat_interleave(times)
        getattr(cache, way)(torch.tensor([row * times for row in order]))
        cache = copy.deepcopy(cache)
        tokens = []
        mask = batch["attention_mask"][order]
        for _ in range(4):
            token = logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
            mask = torch.cat([mask, torch.ones(len(order), 1, dtype=torch.long)], 1)
            logits = model(input_ids=token, past_key_values=cache, attention_mask=mask).logits
        return torch.cat(tokens, 1).tolist()

    straight = answers([0, 1, 2], "reorder_cache")
    assert set(map(tuple, straight)) != {tuple(straight[0])}
    assert answers([2, 0, 1], "reorder_cache") == [straight[2], straight[0], straight[1]]
    assert answers([1], "batch_select_indices") == [straight[1]]
    assert answers([2, 1], "batch_select_indices") == [straight[2], straight[1]]
    assert answers([2, 0], "batch_select_indices", times=3) == [straight[2], straight[0]]


def test_a_cache_of_embeddings_is_repeated_with_its_decision(model: MeGModel) -> None:
    batch = left_padded(model.tokenizer, [EDITED, OTHER], "cpu")
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]

    def following(times: int) -> torch.Tensor:
        with model.routed([EDITED, OTHER]):
            output = model(inputs_embeds=embeddings, attention_mask=mask)
        cache = output.past_key_values
        if times > 1:
            cache.batch_repeat_interleave(repeats=times)
        tokens = output.logits[:, -1:].argmax(-1).repeat_interleave(times, 0)
        longer = torch.cat([mask.repeat_interleave(times, 0), torch.ones_like(tokens)], 1)
        return model(input_ids=tokens, past_key_values=cache, attention_mask=longer).logits

    torch.testing.assert_close(following(2), following(1).repeat_interleave(2, 0))


def test_the_first_prompt_may_have_either_name(model: MeGModel) -> None:
    ids = ids_of(model, EDITED)
    ways = [{"inputs": ids}, {"input_ids": ids}, {"inputs": ids, "input_ids": None}]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    outputs = [model.generate(**way, **options).tolist() for way in ways]
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0] != model.base.generate(ids, **options).tolist()


def test_a_generation_config_that_is_set_is_that_of_the_base(
    make_meg_model: Callable[..., MeGModel],
) -> None:
    """It stayed on the wrapper, and `generate` never read it."""
    model = make_meg_model("bank")
    before = model.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=2, pad_token_id=0)
    try:
        assert model.base.generation_config is model.generation_config is not before
        ids = ids_of(model, EDITED)
        assert model.generate(ids, do_sample=False).shape[1] == ids.shape[1] + 2
    finally:
        model.generation_config = before


def test_tokens_of_another_model_in_a_cache_are_noticed(model: MeGModel) -> None:
    cache = model(input_ids=ids_of(model, EDITED)).past_key_values
    model.base(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
    with pytest.raises(ValueError, match=r"tokens of another.*model\.routed"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_what_was_wrapped_can_be_pickled(model: MeGModel) -> None:
    cache = model(input_ids=ids_of(model, EDITED)).past_key_values
    loaded = pickle.loads(pickle.dumps(cache))
    with pytest.raises(ValueError, match="KV cache"):
        model(input_ids=torch.tensor([[5]]), past_key_values=loaded)
    base = pickle.loads(pickle.dumps(model.base))
    assert generated(base, EDITED) == generated(model.base, EDITED)
    assert hooks(base) == 0


# ------------------------------------------------------------------ modes and precisions


def test_routing_is_the_same_in_training_mode(make_meg_model: Any) -> None:
    model = make_meg_model("bank", gate="familiarity")
    scores = model.route(PROMPTS).score
    model.train()
    assert model.base.training and not model.encoder.training
    assert torch.equal(model.route(PROMPTS).score, scores)
    model.eval()
    assert not model.base.training


def test_a_cast_rounds_the_base_alone(make_meg_model: Any, tmp_path: Any) -> None:
    model = make_meg_model("bank")
    scores, before = model.route(MIXED).score, float(model.gate.threshold)
    model.to(torch.bfloat16)
    assert model.base.dtype == torch.bfloat16 and float(model.gate.threshold) == before
    assert model.encoder.encode([EDITED]).dtype == torch.float32
    torch.testing.assert_close(model.route(MIXED).score, scores, atol=0.02, rtol=0)
    model.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=model.base)
    assert loaded.answer(MIXED, 4) == model.answer(MIXED, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decisions_are_those_of_each_prompt_alone(make_meg_model: Any, dtype: torch.dtype) -> None:
    """In batches padded on either side, with the base in either precision."""
    edited = make_meg_model("bank")
    texts = [*MIXED, *(f"{text} {text}" for text in MIXED)]
    alone = [query.edit if query.is_edit else None for query in edited.route(texts)]
    edited.to(dtype)
    tokenizer, decided = edited.tokenizer, list[Any]()
    left = left_padded(tokenizer, texts, "cpu")
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    right = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([[len(row)] for row in rows])
    mask = (torch.arange(right.shape[1]) < lengths).long()
    edited.decide = lambda queries: decided.append(edited.route(queries))  # type: ignore[method-assign]
    edited(**left)
    edited(input_ids=right, attention_mask=mask)
    for routing in decided:
        assert [query.edit if query.is_edit else None for query in routing] == alone
    assert len(decided) == 2 and None in alone and len({*alone}) > 2


def test_no_queries_and_empty_ones(model: MeGModel) -> None:
    assert model.answer([]) == [] and len(model.route([])) == 0
    assert len(model.answer("", 2)) == 1
    ids = ids_of(model, EDITED)
    mask = torch.ones_like(ids)
    assert torch.equal(model(ids, mask).logits, model(input_ids=ids).logits)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["forward", "in place", "blocks"])
def test_hidden_states_are_read_of_a_compiled_base(make_meg_model: Any, how: str) -> None:
    model = make_meg_model("bank", gate_state_weight=0.5)
    scores = model.route(MIXED).score
    expected = [generated(model, text) for text in MIXED[:4]]
    compiled(model.base, how)
    torch.testing.assert_close(model.route(MIXED).score, scores)
    assert [generated(model, text) for text in MIXED[:4]] == expected
