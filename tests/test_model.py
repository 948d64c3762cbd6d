"""MeGModel: routing at prefill, mixed batches, everything generate and forward can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextStreamer

from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.tokens import encode_example, left_padded
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import ANSWER_TOKENS

EDITED, OTHER = PROMPTS[0], OTHERS[0]


@pytest.fixture(scope="module")
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


def answers(model: Any, prompts: list[str], **options: Any) -> torch.Tensor:
    batch = left_padded(model.tokenizer, prompts, "cpu")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


def base_answers(model: MeGModel, prompts: list[str], **options: Any) -> torch.Tensor:
    with model.applied(None):
        return answers(model, prompts, **options)


def test_an_edit_changes_the_answer_and_others_stay_bit_for_bit(model: MeGModel) -> None:
    batch = model.tokenizer(OTHER, return_tensors="pt")
    assert torch.equal(model(**batch).logits, model.base(**batch).logits)
    batch = model.tokenizer(EDITED, return_tensors="pt")
    assert not torch.allclose(model(**batch).logits, model.base(**batch).logits)
    assert not torch.equal(answers(model, [EDITED]), base_answers(model, [EDITED]))


def test_answering_leaves_the_base_model_alone(model: MeGModel) -> None:
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    expected = model.base(**model.tokenizer(EDITED, return_tensors="pt")).logits
    answers(model, [EDITED, OTHER])
    assert all(torch.equal(before[name], value) for name, value in model.base.state_dict().items())
    assert torch.equal(model.base(**model.tokenizer(EDITED, return_tensors="pt")).logits, expected)


def test_many_questions_are_answered_in_parts(
    model: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of thousands was one batch."""
    sizes: list[int] = []
    generate = model.base.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(model.base, "generate", counted)
    few = model.answer(PROMPTS[:4] + OTHERS[:2], 2)
    assert model.answer((PROMPTS[:4] + OTHERS[:2]) * 50, 2) == few * 50
    assert sizes == [6, 256, 44]


def test_prompts_are_healed_before(model: MeGModel) -> None:
    for options in (
        {"token_healing": True},
        {"generation_config": GenerationConfig(token_healing=True, max_new_tokens=2)},
    ):
        with pytest.raises(ValueError, match="heal_tokens"):
            answers(model, PROMPTS[:2], tokenizer=model.tokenizer, **options)


def test_rows_of_a_mixed_batch_answer_as_they_do_alone(model: MeGModel) -> None:
    prompts = [EDITED, OTHER, PROMPTS[9], PROMPTS[2]]
    together = greedy_answers(model, model.tokenizer, prompts, 6)
    assert together == [greedy_answers(model, model.tokenizer, [p], 6)[0] for p in prompts]
    assert model.answer(prompts, 6) == together


def test_answers_are_as_long_as_the_edits_asked_for(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model("bank")
    code = "def f(x):\n    return [\n" + "        x,\n" * 20 + "    ]"
    long = dataclasses.replace(model.edits[1], target_new=code)
    model.edition.edits = (model.edits[0], long, *model.edits[2:])
    limits: list[int] = []

    def noted(_: Any, __: Any, prompts: list[str], max_new_tokens: int, ___: Any) -> list[str]:
        limits.append(max_new_tokens)
        return prompts

    monkeypatch.setattr("meg_editor.model.routed_model.batched_answers", noted)
    for queries in ([OTHER], [EDITED, OTHER], [OTHER, long.prompt]):
        model.answer(queries)
    model.answer(long.prompt, 7)
    needed = len(encode_example(model.tokenizer, long.prompt, code).target)
    assert limits == [ANSWER_TOKENS, ANSWER_TOKENS, needed, 7] and needed > ANSWER_TOKENS


def test_the_neuron_is_the_one_the_hand_computes(model: MeGModel) -> None:
    """The routed answer equals the bank's neuron attached by hand to the base model."""
    neuron = model.generator.neurons[0].float().unsqueeze(0)  # type: ignore[union-attr,operator]
    with model.applied(neuron):
        expected = answers(model, [EDITED])
    assert torch.equal(answers(model, [EDITED]), expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_keep_the_neuron_of_their_row(model: MeGModel, options: dict[str, int]) -> None:
    each = options.get("num_return_sequences", 1)
    both = answers(model, [EDITED, PROMPTS[3]], **options)
    assert len(both) == 2 * each
    for row, prompt in enumerate((EDITED, PROMPTS[3])):
        alone = answers(model, [prompt], **options)
        width = min(alone.shape[1], both.shape[1])
        assert torch.equal(both[row * each : (row + 1) * each, :width], alone[:, :width])


def test_sampling_is_reproducible_and_differs_from_greedy(model: MeGModel) -> None:
    options = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3}
    torch.manual_seed(5)
    first = answers(model, [EDITED], **options)
    torch.manual_seed(5)
    assert torch.equal(first, answers(model, [EDITED], **options))
    assert not all(torch.equal(row, first[0]) for row in first[1:])


def test_streamer_and_stopping_criteria(model: MeGModel, capsys: Any) -> None:
    class Stop(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.ones(len(ids), dtype=torch.bool)

    stopped = answers(model, [EDITED], stopping_criteria=StoppingCriteriaList([Stop()]))
    assert stopped.shape[1] == 1
    answers(model, [EDITED], streamer=TextStreamer(model.tokenizer, skip_prompt=True))
    assert greedy_answers(model, model.tokenizer, [EDITED], 6)[0].split()[0] in (
        capsys.readouterr().out
    )


def test_a_manual_decoding_loop_equals_generate(model: MeGModel) -> None:
    batch = model.tokenizer([EDITED], return_tensors="pt")
    output = model(**batch, use_cache=True)
    tokens = []
    for _ in range(4):
        tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
    expected = answers(model, [EDITED], max_new_tokens=4, min_new_tokens=4, eos_token_id=[-1])
    assert torch.equal(torch.cat(tokens, 1), expected)


def test_routed_names_the_query_whatever_is_fed(model: MeGModel) -> None:
    batch = model.tokenizer(f"{EDITED} some answer", return_tensors="pt")
    with model.routed([EDITED]) as routing:
        forced = model(**batch).logits
    assert routing.is_edit.tolist() == [True] and routing.nearest.tolist() == [0]
    with model.applied(model.neurons(routing)):
        assert torch.equal(model(**batch).logits, forced)
    with model.routed([OTHER]):
        assert torch.equal(model(**batch).logits, model.base(**batch).logits)


def test_route_tells_which_edit_and_why(model: MeGModel) -> None:
    routing = model.route([PROMPTS[4], OTHER])
    assert routing.is_edit.tolist() == [True, False]
    assert int(routing.nearest[0]) == 4
    assert float(routing.score[0]) >= routing.threshold > float(routing.score[1])
    assert float(routing.cosine[0]) == pytest.approx(1.0, abs=1e-5)


def test_a_question_at_the_end_of_a_long_context(model: MeGModel) -> None:
    context = "\n".join([*OTHERS, *OTHERS])
    routing = model.route([f"{context}\n{EDITED}", f"{context}\n{OTHER}"])
    assert routing.is_edit.tolist() == [True, False]
    assert routing.questions[0] == EDITED


def test_a_chat_is_routed_by_its_last_user_turn(make_meg_model: Callable[..., MeGModel]) -> None:
    model = make_meg_model("bank")
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    try:
        chat = MeGModel(
            model.base, model.tokenizer, model.hparams, model.spec, model.encoder, model.edition
        )
        turns = [
            {"role": "user", "content": OTHER},
            {"role": "assistant", "content": "I do not know"},
            {"role": "user", "content": EDITED},
        ]
        text = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        routing = chat.route([text])
        assert routing.questions == [EDITED] and routing.is_edit.tolist() == [True]
    finally:
        model.tokenizer.chat_template = None


def test_what_cannot_be_routed_is_refused(model: MeGModel) -> None:
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match=r"input_ids.*model\.routed"):
        model.generate(inputs_embeds=embeds)
    none = torch.zeros(1, 0, dtype=torch.long)  # was answered as an empty prompt, unedited
    with pytest.raises(ValueError, match=r"input_ids.*model\.routed"):
        model.generate(input_ids=none, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="expected a cache of one call, got 'paged'.*generate_ba"):
        model.generate(torch.tensor([[5, 6]]), cache_implementation="paged")
    with model.routed([EDITED]):
        assert model.generate(inputs_embeds=embeds, max_new_tokens=2, pad_token_id=0).shape[1] == 2
    with pytest.raises(ValueError, match=r"unedited model.*\.base"):
        MeGModel(model, model.tokenizer, model.hparams, model.spec, model.encoder, model.edition)


def test_the_wrapper_looks_like_the_model_it_wraps(model: MeGModel) -> None:
    assert model.config is model.base.config
    assert model.generation_config is model.base.generation_config
    assert model.device == model.base.device
    with pytest.raises(AttributeError):
        _ = model.no_such_thing
