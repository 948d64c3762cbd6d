"""The verifier against its formula, and routing with one whose answers are known."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.fitting import verifier_training
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.lm.reference import reference_encoder_path
from meg_editor.requests.prompts import PromptReader, ReadPrompt
from meg_editor.requests.request import EditRequest
from meg_editor.routing.another import is_another
from meg_editor.routing.contrasts import asks_otherwise
from meg_editor.routing.edit_texts import EditTexts
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.named import is_named
from meg_editor.routing.pooling import pool
from meg_editor.routing.router import Router
from meg_editor.routing.subject_names import SubjectNameIndex, words
from meg_editor.routing.verifier import Verifier, fact_text

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MEG_EDITOR_DATA", ROOT.parent / "shared" / "data"))
EDITS = [
    EditRequest("The capital of Atlantis is", "Lima", "Atlantis"),
    EditRequest("The river of Genovia is", "the Tiber", "Genovia"),
]


def adapter_of(encoder: TextEncoder, layer: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = encoder.model.get_submodule(layer).weight
    return {
        f"{layer}.down": torch.randn(2, weight.shape[1], generator=generator) / 10,
        f"{layer}.up": torch.randn(weight.shape[0], 2, generator=generator) / 10,
        "head.weight": torch.randn(1, encoder.dimension, generator=generator),
        "head.bias": torch.tensor([0.3]),
        "similarity": torch.tensor(0.4),
        "threshold": torch.tensor(0.5),
    }


def a_linear_layer(encoder: TextEncoder) -> str:
    modules = encoder.model.named_modules()
    return next(name for name, module in modules if isinstance(module, torch.nn.Linear))


def test_the_probability_follows_the_formula(tiny_encoder: TextEncoder) -> None:
    layer = a_linear_layer(tiny_encoder)
    adapter = adapter_of(tiny_encoder, layer)
    before = tiny_encoder.model.get_submodule(layer).weight.clone()
    verifier = Verifier(tiny_encoder, adapter)
    # By hand: the encoder's own weight changed in place, one pair at a time.
    weight = tiny_encoder.model.get_submodule(layer).weight
    prompts, facts = ["The capital of", "a much longer prompt of Genovia"], ["Lima", "the Tiber"]
    expected = []
    try:
        with torch.no_grad():
            weight += adapter[f"{layer}.up"] @ adapter[f"{layer}.down"]
            for prompt, fact in zip(prompts, facts, strict=True):
                batch = tiny_encoder.tokenizer([fact], [prompt], return_tensors="pt")
                ids, text = batch["input_ids"][0].tolist(), batch.sequence_ids(0)
                batch["token_type_ids"] = torch.tensor(
                    [
                        [
                            int(
                                any(
                                    ids[i] == ids[j] and {text[i], text[j]} == {0, 1}
                                    for j in range(len(ids))
                                )
                            )
                            for i in range(len(ids))
                        ]
                    ]
                )
                states = tiny_encoder.model(**batch).last_hidden_state
                pooled = pool(states, batch["attention_mask"], tiny_encoder.pooling)
                logit = pooled @ adapter["head.weight"].T + adapter["head.bias"]
                expected.append(float(logit.sigmoid()))
    finally:
        with torch.no_grad():
            weight.copy_(before)
    torch.testing.assert_close(verifier.probability(prompts, facts), torch.tensor(expected))
    assert torch.equal(tiny_encoder.model.get_submodule(layer).weight, before)


def test_a_verifier_is_on_the_device_of_its_encoder() -> None:
    encoder = TextEncoder.from_pretrained(reference_encoder_path()).to("meta")
    verifier = Verifier(encoder, adapter_of(encoder, a_linear_layer(encoder)))
    assert {parameter.device.type for parameter in verifier.parameters()} == {"meta"}


def test_training_draws_its_random_numbers_on_the_device(
    tiny_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []

    def seeded(seed: int, device: Any = "cpu") -> Any:
        asked.append((seed, str(device)))
        return nullcontext()

    monkeypatch.setattr(verifier_training, "seeded", seeded)
    encoder = copy.deepcopy(tiny_encoder).to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):  # a loss without data
        train_verifier(encoder, Phrasebook.load(), steps=1, rank=1, batch=2, seed=7)
    assert asked == [(7, "meta")]


def test_encoder_and_verifier_do_not_change_each_others_tokenizer(
    tiny_encoder: TextEncoder,
) -> None:
    """It keeps the length that it cuts texts to: with one for both, threads would cut at either."""
    tiny_encoder.encode(["a"])
    before = tiny_encoder.tokenizer.backend_tokenizer.truncation
    verifier = Verifier(tiny_encoder, adapter_of(tiny_encoder, a_linear_layer(tiny_encoder)))
    verifier.reader = dataclasses.replace(verifier.reader, max_length=before["max_length"] // 2)
    verifier.probability(["a"], ["b"])
    assert tiny_encoder.tokenizer.backend_tokenizer.truncation == before


def test_no_verifier_is_shipped_for_a_strange_encoder(tiny_encoder: TextEncoder) -> None:
    assert Verifier.shipped(tiny_encoder) is None


def test_training_learns_what_it_is_shown(tiny_encoder: TextEncoder) -> None:
    losses: list[float] = []
    adapter = train_verifier(
        tiny_encoder,
        Phrasebook.load(),
        steps=12,
        rank=4,
        batch=8,
        lr=1e-3,
        report=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 12 and all(0 < loss < 3 for loss in losses)
    assert all(value.dtype == torch.float16 for value in adapter.values())
    assert Verifier(tiny_encoder, adapter).probability(["a"], ["b"]).shape == (1,)
    again = train_verifier(tiny_encoder, Phrasebook.load(), steps=12, rank=4, batch=8, lr=1e-3)
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)


class Known:
    """A verifier which agrees to given pairs."""

    similarity, threshold = 0.4, 0.5
    dialogue: float | None = 0.5
    system: float | None = None
    follow_up: Any = None
    system_text: Any = None

    def __init__(self, *agreed: tuple[str, int]) -> None:
        self.agreed = {(prompt, fact_text(EDITS[edit])) for prompt, edit in agreed}
        self.seen: list[tuple[str, str]] = []

    def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        pairs = list(zip(prompts, facts, strict=True))
        self.seen += pairs
        return torch.tensor([0.9 if pair in self.agreed else 0.1 for pair in pairs])


class Alike(TextEncoder):
    """An encoder to which all texts are one."""

    def __init__(self, encoder: TextEncoder, embedding: Tensor) -> None:
        super().__init__(encoder.model, encoder.tokenizer, encoder.pooling)
        self.embedding = embedding

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.embedding.repeat(len(texts), 1)


def router_of(encoder: TextEncoder, verifier: Any) -> Router:
    index = QueryIndex(
        encoder.encode([edit.prompt for edit in EDITS]),
        [edit.subject for edit in EDITS],
        name_weight=0.4,
    )
    states: Any = None
    return Router(encoder, SimilarityGate(0.4), index, states, EDITS, verifier)


def test_the_verifier_decides_on_the_whole_prompt(tiny_encoder: TextEncoder) -> None:
    asked = "Hello! The capital of Atlantis is"
    mentioned = "Translate to German: The capital of Atlantis is"
    router = router_of(tiny_encoder, Known((asked, 0)))
    routing = router.route([ReadPrompt.of(text) for text in (asked, mentioned)])
    assert routing.is_edit.tolist() == [True, False]
    assert routing[0].edit == 0 and routing[0].candidates[0].verified == pytest.approx(0.9)
    assert routing[0].threshold == 0.5 == router.threshold
    assert router.measure == "probability"
    alone = router_of(tiny_encoder, None)
    assert (alone.threshold, alone.measure) == (pytest.approx(0.4), "similarity")


def test_a_misspelt_subject_is_read_as_the_edits(tiny_encoder: TextEncoder) -> None:
    """Under a system text too."""
    right, typed = "The capital of Atlantis", "The capital of Atlantiss"
    reader = PromptReader(tiny_encoder.tokenizer)
    verifier = Known((right, 0), (f"Be brief.\n\n{right}", 0))
    verifier.system = 0.5
    under_system = reader.read(f"System: Be brief.\nUser: {typed}\nAssistant:")
    routing = router_of(tiny_encoder, verifier).route([ReadPrompt.of(typed), under_system])
    assert routing.is_edit.tolist() == [True, True]
    assert f"Be brief.\n\n{right}" in [prompt for prompt, _ in verifier.seen]


def test_it_may_prefer_an_edit_that_is_less_similar(tiny_encoder: TextEncoder) -> None:
    text = "The capital of Atlantis is not on the river of Genovia"
    routing = router_of(tiny_encoder, Known((text, 1))).route([ReadPrompt.of(text)])
    assert routing[0].is_edit and routing[0].edit == 1


class Doubts:
    """A verifier which is nearly sure of the first edit, and sure of the second."""

    similarity, dialogue, system = 0.0, None, None

    def __init__(self, threshold: float, first: float) -> None:
        self.threshold, self.first = threshold, first

    def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        return torch.tensor([self.first if f == fact_text(EDITS[0]) else 0.95 for f in facts])


def test_an_edit_that_passes_is_not_hidden_by_one_that_fails(tiny_encoder: TextEncoder) -> None:
    text = ReadPrompt.of("The capital of Atlantis is not on the river of Genovia")
    by_similarity = router_of(tiny_encoder, Doubts(0.5, 0.95)).route([text])
    assert by_similarity[0].edit == 0
    routing = router_of(tiny_encoder, Doubts(0.94, 0.939)).route([text])
    assert routing[0].is_edit and routing[0].edit == 1


def test_what_was_not_verified_is_no_edit_at_any_threshold(tiny_encoder: TextEncoder) -> None:
    texts = ["Where do penguins live?", "The capital of Atlantis, what is it?"]
    router = router_of(tiny_encoder, Doubts(0.0, 0.01))
    routing = router.route([ReadPrompt.of(text) for text in texts])
    assert routing.is_edit.tolist() == [False, True]


def test_an_edited_prompt_needs_no_verification(tiny_encoder: TextEncoder) -> None:
    verifier = Known()
    routing = router_of(tiny_encoder, verifier).route(
        [ReadPrompt.of(f' "{EDITS[0].prompt}" '), ReadPrompt.of(EDITS[1].prompt)]
    )
    assert routing.is_edit.tolist() == [True, True] and routing.score.tolist() == [1.0, 1.0]
    assert (EDITS[0].prompt, fact_text(EDITS[0])) not in verifier.seen


def test_an_edited_prompt_is_found_among_any_number_which_look_the_same(
    tiny_encoder: TextEncoder,
) -> None:
    """To the encoder: of a dozen alike four were compared, and another one answered."""
    prompts = [f"The river {'_' * n}" for n in range(1, 13)]
    edits = [EditRequest(prompt, "Lima") for prompt in prompts]
    anchors = tiny_encoder.encode(["The river"]).repeat(12, 1)
    same = QueryIndex(anchors, [None] * 12)
    tiny = Alike(tiny_encoder, anchors[0])
    states: Any = None
    for verifier in (Known(), None):
        router = Router(tiny, SimilarityGate(0.4), same, states, edits, verifier)
        assert router.route([ReadPrompt.of(text) for text in prompts]).nearest.tolist() == list(
            range(12)
        )


def test_prompts_that_differ_in_what_is_put_around_them_are_two_edits(
    tiny_encoder: TextEncoder,
) -> None:
    edits = [
        EditRequest("The capital of Peru is", "Oslo"),
        EditRequest('"The capital of Peru is"', "Rome"),
    ]
    index = QueryIndex(tiny_encoder.encode([edits[0].prompt] * 2), [None] * 2)
    states: Any = None
    router = Router(tiny_encoder, SimilarityGate(0.4), index, states, edits, Known())
    texts = [edits[1].prompt, edits[0].prompt, "'The capital of Peru is'"]
    routing = router.route([ReadPrompt.of(text) for text in texts])
    assert routing.nearest.tolist()[:2] == [1, 0] and routing.is_edit.all()


@pytest.mark.parametrize(
    "prompt",
    [
        "Q: Who wrote Ulysses?\nA: Joyce\nQ: Who wrote Emma?\nA:",
        "User: Hi!\nAssistant: Hello!\nUser: Who wrote Emma?\nAssistant:",
        "System: You are a poet.\nUser: Who wrote Emma?\nAssistant:",
    ],
)
def test_an_edit_that_is_a_conversation_is_found_by_itself(
    prompt: str, tiny_encoder: TextEncoder
) -> None:
    """Its last turn alone was compared with the whole."""
    edits = [EditRequest(prompt, "Lima"), EditRequest("The capital of Peru is", "Oslo")]
    index = QueryIndex(tiny_encoder.encode([e.prompt for e in edits]), [None] * 2)
    states: Any = None
    verifier = Known()
    verifier.system = 0.5
    router = Router(tiny_encoder, SimilarityGate(0.4), index, states, edits, verifier)
    routing = router.route([PromptReader(tiny_encoder.tokenizer).read(prompt)])
    assert routing[0].is_edit and routing[0].edit == 0


ANIMALS = ["What does 🦒 mean?", "What does 🐌 mean?"]
THAI = ["เมืองหลวงของไทย", "เมืองหลวงของจีน"]


class Half(TextEncoder):
    """An encoder to which all texts in Thai are one, and all that differ in an emoji."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder.model, word_tokenizer("what does mean the of is so"), "cls")
        self.whole = encoder

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.whole([re.sub("[^\x00-\x7f]+", "x", text) for text in texts])


def word_tokenizer(words: str, **options: Any) -> Any:
    """Of words between blanks; all others are unknown."""
    vocabulary = {word: row for row, word in enumerate(["[UNK]", "[PAD]", *words.split()])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), BertPreTokenizer()
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **marks)


def test_an_encoder_says_which_words_it_cannot_read(tiny_encoder: TextEncoder) -> None:
    for pad in ("[PAD]", "[UNK]"):  # some pad with the token for the unknown
        tokenizer = word_tokenizer("what does mean", pad_token=pad)
        encoder = TextEncoder(tiny_encoder.model, tokenizer)
        assert encoder.unread(["What does 🦒 mean", "mean", "Xx what"]) == [{"🦒"}, set(), {"Xx"}]
    assert tiny_encoder.unread(["สวัสดี"]) == [frozenset()] and encoder.unread([]) == []


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("subjects", [True, False])
def test_what_the_encoder_cannot_read_must_be_in_the_prompt(
    tiny_encoder: TextEncoder, verified: bool, subjects: bool
) -> None:
    """To MiniLM a sentence in Thai is one unknown token, and so is every emoji."""
    encoder = Half(tiny_encoder)
    names = ["🦒", "🐌", "ไทย", "จีน"] if subjects else [None] * 4
    edits = [
        EditRequest(prompt, "Lima", name)
        for prompt, name in zip([*ANIMALS, *THAI], names, strict=True)
    ]
    index = QueryIndex(encoder.encode([edit.prompt for edit in edits]), names, name_weight=0.2)
    states: Any = None
    sure: Any = Doubts(0.5, 0.99) if verified else None
    router = Router(encoder, SimilarityGate(0.6), index, states, edits, sure)
    own = router.route([ReadPrompt.of(edit.prompt) for edit in edits])
    assert own.nearest.tolist() == [0, 1, 2, 3] and own.is_edit.all()
    said = [f"What does {animal} mean" for animal in ("🐌", "🦒", "🐙")]
    routing = router.route([ReadPrompt.of(text) for text in (*said, "สวัสดี")])
    assert routing.is_edit.tolist() == [True, True, False, False]
    assert routing.nearest.tolist()[:2] == [1, 0]


@pytest.mark.parametrize(
    ("edit", "asked"),
    [
        (EditRequest("what is the 是 of 国", "Lima", "国"), "国 what does 国 mean"),
        (EditRequest("What does ✈\ufe0f mean?", "Lima"), "So what does ✈ mean?"),
        (EditRequest("✅ The mean of Peru is", "Lima"), "the mean of Peru"),
        (EditRequest("what does mean؟", "Lima"), "what does mean?"),
    ],
)
def test_marks_and_what_is_no_name_need_not_be_there(
    edit: EditRequest, asked: str, tiny_encoder: TextEncoder
) -> None:
    texts = EditTexts([edit], Half(tiny_encoder), SubjectNameIndex([edit.subject]))
    assert texts.has_unread(asked, 0) and texts.named(asked, [0]) == {0}


def test_a_turn_may_go_back_to_an_earlier_one(tiny_encoder: TextEncoder) -> None:
    reader = PromptReader(tiny_encoder.tokenizer)
    chat = "User: The capital of Atlantis is\nAssistant: I don't know.\nUser: {}\nAssistant:"
    texts = [chat.format(turn) for turn in ("Have a guess.", "Thanks!", EDITS[1].prompt, "x" * 300)]
    dialogue = "User: The capital of Atlantis is\nAssistant: I don't know.\nUser: Have a guess."
    verifier = Known((dialogue, 0))
    prompts = [*map(reader.read, texts), ReadPrompt.of("Have a guess.")]
    routing = router_of(tiny_encoder, verifier).route(prompts)
    assert routing.is_edit.tolist() == [True, False, True, False, False]
    assert routing.nearest.tolist()[0] == 0 and routing.nearest.tolist()[2] == 1
    assert routing[0].question == "The capital of Atlantis is"
    assert routing[0].candidates[0].verified == pytest.approx(0.9)
    # Each is compared with the limit of its reading, and says which that is.
    assert (routing[0].read_with, routing[0].threshold) == ("dialogue", verifier.dialogue)
    assert (routing[1].read_with, routing[1].threshold) == ("turn", verifier.threshold)
    assert routing[-5] == routing[0]
    read = [prompt for prompt, _ in verifier.seen]
    assert dialogue.replace("Have a guess.", "Thanks!") in read
    assert not any(EDITS[1].prompt in text or "xxx" in text for text in read)
    # One that has learned no dialogues reads none, and one that is not sure enough is not believed.
    for limit in (None, 0.95):
        verifier.dialogue = limit
        routing = router_of(tiny_encoder, verifier).route(prompts)
        assert routing.is_edit.tolist() == [False, False, True, False, False]


def test_a_turn_that_goes_back_may_ask_otherwise(tiny_encoder: TextEncoder) -> None:
    reader = PromptReader(tiny_encoder.tokenizer)
    turns = ("Which capital?", "And which currency?")
    dialogues = [f"User: The capital of Atlantis is\nAssistant: Lima.\nUser: {t}" for t in turns]
    verifier = Known(*((text, 0) for text in dialogues))
    routing = router_of(tiny_encoder, verifier).route(
        [reader.read(f"{text}\nAssistant:") for text in dialogues]
    )
    assert routing.is_edit.tolist() == [True, False]


def test_a_system_text_may_ask_for_something_else(tiny_encoder: TextEncoder) -> None:
    reader = PromptReader(tiny_encoder.tokenizer)
    system = "Translate what the user writes."
    chat = "System: {}\nUser: {}\nAssistant:"
    prompts = [
        reader.read(chat.format(text, EDITS[0].prompt)) for text in (system, "Be brief.", "x" * 900)
    ]
    dialogue = f"User: {EDITS[0].prompt}\nAssistant: What?\nUser: Have a guess."
    prompts.append(reader.read(f"System: {system}\n{dialogue}\nAssistant:"))
    prompts.append(ReadPrompt.of(EDITS[0].prompt))
    verifier = Known((dialogue, 0), (f"Be brief.\n\n{EDITS[0].prompt}", 0))
    routing = router_of(tiny_encoder, verifier).route(prompts)
    assert routing.is_edit.all()  # it has learned no system texts
    verifier.system = 0.3
    routing = router_of(tiny_encoder, verifier).route(prompts)
    assert routing.is_edit.tolist() == [False, True, False, False, True]
    assert routing.score.tolist() == pytest.approx([0.1, 1.0, 0.1, 0.1, 1.0])
    assert routing[0].candidates[0].verified == pytest.approx(0.1)
    assert [routed.read_with for routed in routing] == [
        "system",
        "turn",
        "system",
        "system",
        "turn",
    ]
    assert [routed.threshold for routed in routing] == [0.3, 0.5, 0.3, 0.3, 0.5]
    read = [prompt for prompt, _ in verifier.seen]
    assert f"{system}\n\n{dialogue}" in read
    assert max(map(len, read)) < 700  # a long one is read in part


def test_what_a_prompt_ends_with_is_not_crowded_out(tiny_encoder: TextEncoder) -> None:
    """Of a list of edited questions the last one is asked: it is shown to the verifier."""
    places = ["France", "Peru", "Kenya", "Norway", "Japan", "Chile", "Cuba"]
    edits = [EditRequest(f"What is the capital of {p}?", "Lima", p) for p in places]

    class Sees:
        similarity, threshold, dialogue, system = 0.0, 0.5, None, None

        def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
            return torch.tensor([0.9 if fact == fact_text(edits[0]) else 0.1 for fact in facts])

    anchors = tiny_encoder.encode([edit.prompt for edit in edits])
    index = QueryIndex(anchors, places, name_weight=0.4)
    states: Any = None
    verifier: Any = Sees()
    router = Router(tiny_encoder, SimilarityGate(0.0), index, states, edits, verifier)
    done = "\n".join(f"- {edit.prompt}" for edit in edits[1:])
    read = ReadPrompt.of(f"Already done:\n{done}\n\nNow answer this one: {edits[0].prompt}")
    routing = router.route([read])
    assert routing[0].is_edit and routing[0].edit == 0
    assert len(routing[0].candidates) <= 4 + len(read.closing)


class Agrees:
    """A verifier which is sure of everything, as a real one is of "BMW M1" beside "BMW M5"."""

    similarity, threshold, dialogue, system = 0.0, 0.5, None, None

    def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts),), 0.99)


def test_another_subject_is_not_verified(tiny_encoder: TextEncoder) -> None:
    router = router_of(tiny_encoder, Agrees())
    texts = ["The capital of Atlantis lies in", "The capital of Utopia is", "It is"]
    routing = router.route([ReadPrompt.of(text) for text in texts])
    assert routing.is_edit.tolist() == [True, False, False]
    assert str(routing[1].candidates[0]).endswith("its subject is not named")


@pytest.mark.parametrize(
    ("subject", "prompt", "text", "named"),
    [
        ("BMW M5", "BMW M5, produced by", "Who makes the BMW M1?", False),
        ("BMW M5", "BMW M5, produced by", "who makes the bmw m5", True),
        ("Douglas DC-4", "Douglas DC-4 is created by", "Douglas DC-5 is created by", False),
        ("Windows NT 3.51", "Windows NT 3.51, a product of", "Windows NT, a product of", False),
        ("Windows NT 3.51", "Windows NT 3.51, a product of", "Who made Windows NT 3.51?", True),
        ("India", "In India, an official language is", "In Trieste, the language is", False),
        ("Albert Einstein", "Albert Einstein was born in", "Where was Einstein born?", True),
        ("South Korea", "The capital of South Korea is", "The capital of South Sudan is", False),
        ("France", "The capital of France is", "What is the French capital?", True),
        ("France", "The capital of France is", "the capital of Frence is", True),
        ("France", "The capital of France is", "THE CAPITAL OF FRANCE IS", True),
        ("Beyoncé", "Beyoncé sings", "Which style does Beyonce sing?", True),
        ("The Lord of the Rings", "The Lord of the Rings is", "Who wrote Lord of the Rings?", True),
        ("東京", "東京は", "日本の首都は東京ですか", True),
        ("東京", "東京は", "大阪は", False),
        (None, "Who wrote War and Peace?", "The author of War and Peace is", True),
        (None, "Who wrote War and Peace?", "The author of Emma is", False),
        (None, "the chemical symbol of gold is", "Which symbol has it?", True),  # nothing to go by
        ("the United States", "The capital of the USA is", "The USA's capital is", True),  # odd
    ],
)
def test_who_is_named(subject: str | None, prompt: str, text: str, named: bool) -> None:
    assert is_named(EditRequest(prompt, "x", subject), words(text)) is named


@pytest.mark.parametrize(
    ("prompt", "text", "otherwise"),
    [
        ("The CEO of Capital One is", "Who is Capital One's CFO?", True),
        ("The CEO of Capital One is", "Who is chief executive of Capital One?", False),
        ("The CEO of Capital One is", "Who runs Capital One?", False),
        ("The CEO of Capital One is", "Are the CEO and the CFO of Capital One one person?", False),
        ("The e-mail address of Capital One is", "What is Capital One's street address?", True),
        ("The e-mail address of Capital One is", "Capital One's email?", False),
        ("Capital One opens at", "When does Capital One close?", True),
        ("How many moons has Capital One?", "What's the number of rings of Capital One?", True),
        ("How many moons has Capital One?", "How many satellites has Capital One?", False),
        ("The price of Capital One is", "How much do members pay for Capital One?", False),
        ("The currency of Capital One is", "What money is used at Capital One?", False),
        ("Capital One was founded in", "Who is Capital One's CEO?", False),  # of no kind
    ],
)
def test_a_word_for_another_thing_asks_otherwise(prompt: str, text: str, otherwise: bool) -> None:
    assert asks_otherwise(EditRequest(prompt, "x", "Capital One"), text) is otherwise


def test_who_asks_otherwise_gets_no_edit(tiny_encoder: TextEncoder) -> None:
    routing = router_of(tiny_encoder, Agrees()).route(
        [ReadPrompt.of(f"The {what} of Atlantis, what is it?") for what in ("capital", "anthem")]
    )
    assert routing.is_edit.tolist() == [True, False]
    assert str(routing[1].candidates[0]).endswith("something else is asked for in a word for it")


@pytest.mark.parametrize(
    ("subject", "prompt", "text", "another"),
    [
        ("Virginia", "The capital of Virginia is", "What is the capital of West Virginia?", True),
        ("Ann Keller", "Ann Keller was born in", "Where was Peter Keller born?", True),
        ("Ann Keller", "Ann Keller was born in", "Peter Keller was born in", True),
        ("Ann Keller", "Ann Keller was born in", "Keller was born in", False),
        ("Ann Keller", "Ann Keller was born in", "Tell me where Mrs Keller was born.", False),
        ("Ann Keller", "Ann Keller was born in", "Where was Anne Keller born?", False),
        ("Ann Keller", "Ann Keller was born in", "Was Peter Keller's wife Ann Keller born?", False),
        ("Ann Keller", "Ann Keller was born in", "Where was Ann Marie Keller born?", False),
        ("Ann Keller", "Ann Keller was born in", "Where was Ann Keller's mother born?", True),
        ("Ann Keller", "Ann Keller was born in", "Where was the father of Ann Keller born?", True),
        ("Ann Keller", "Ann Keller was born in", "Her son says Ann Keller was born in", False),
        ("Ann Keller", "Ann Keller is married to", "Who is Ann Keller's husband?", False),
        ("Ann Keller", "Ann Keller speaks", "What is Ann Keller's mother tongue?", False),
        ("García Márquez", "García Márquez wrote", "What did Gabriel Garcia Marquez write?", False),
        ("Real Madrid", "The coach of Real Madrid is", "Who coaches Atletico Madrid?", True),
        ("Apple Inc.", "The CEO of Apple Inc. is", "Who runs Fiona Apple?", False),  # one word
        ("Apple Inc.", "The CEO of Apple Inc. is", "Who runs Apple Music?", True),
        ("Apple Inc.", "The CEO of Apple Inc. is", "who runs apple records", True),
        ("Apple Inc.", "The CEO of Apple Inc. is", "Who Runs Apple Now?", False),  # a title
        ("Ann Keller", "Ann Keller was born in", "Where is Keller Street?", True),
        ("Brown University", "Brown University is in", "Where is Brown Univerity?", False),
        ("Apple Inc.", "The CEO of Apple Inc. is", "Who is the Apple CEO?", False),
        ("Apple Inc.", "The CEO of Apple Inc. is", "Who runs the Apple company?", False),
        ("Albert Einstein", "Albert Einstein was born in", "Was Einstein German or Swiss?", False),
        ("Albert Einstein", "Albert Einstein taught", "Wo hat Einstein Physik studiert?", False),
        ("Albert Einstein", "Albert Einstein lived in", "where did that einstein guy live", False),
        ("Tim Cook", "Tim Cook works for", "Where can a cook work?", True),
        ("Tim Cook", "Tim Cook works for", "A cook works for whom?", True),
        ("Tim Cook", "Tim Cook works for", "where does cook work", False),
        ("On How Life Is", "On How Life Is was released in", "what is new", True),
        ("On How Life Is", "On How Life Is was released in", "how life is came out in", False),
        ("Aqua in Corsica", "Aqua in Corsica is by", "Who made Acua in Corsica?", False),
        ("Volume 27", "Volume 27 is by", "Volume 27 co-written by", False),
        ("Michael Jordan", "Michael Jordan plays", "What do people play in Jordan?", True),
        ("Las Vegas", "The mayor of Las Vegas is", "Who is mayor in Vegas?", False),
        ("Las Vegas", "Las Vegas has a population of", "How many live in Vegas?", False),
        ("Virginia", "The capital of Virginia is", "the capital of west virginia", True),
        (None, "The capital of Sudan is", "Which city is the capital of South Sudan?", True),
        ("South Korea", "The capital of South Korea is", "The capital of North Korea is", True),
        ("South Korea", "The capital of South Korea is", "What is South Korea's capital?", False),
        ("Mexico", "The capital of Mexico is", "What is the capital of New Mexico?", True),
        ("Apple", "The CEO of Apple is", "Who is the new Apple CEO?", False),
        ("Ireland", "The capital of Ireland is", "Is Northern Ireland in Ireland?", False),
        ("Ireland", "The capital of Ireland is", "Who governs Northern Ireland?", True),
        ("C++", "Who invented C++?", "Who invented C++?", False),
        ("東京", "東京の人口は", "東京の人口は", False),
        ("", "x", "y", False),
    ],
)
def test_the_end_of_another_name_names_nothing(
    subject: str | None, prompt: str, text: str, another: bool
) -> None:
    assert is_another(EditRequest(prompt, "x", subject), text) == another


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("Alexander Graham Bell", "What did Bell invent?", True),
        ("Mette, Crown Princess of Norway", "Where is Norway?", False),
        ("トヨタ自動車", "電車の社長は誰ですか", False),
        ("삼성전자", "현대자동차의 CEO는 누구입니까?", False),
        ("上海交通大学", "谁在学校", False),
        ("上海交通大学", "上海交通大学在哪里", True),
    ],
)
def test_the_last_word_of_a_name_is_enough(subject: str, text: str, named: bool) -> None:
    """One character of a script without spaces is not."""
    assert is_named(EditRequest(f"{subject}: ", "x", subject), words(text)) == named


def test_a_digit_in_another_script_is_a_digit() -> None:
    edit = EditRequest("Apollo 11 landed on", "Mars", "Apollo 11")
    assert is_named(edit, words("Apollo \uff11\uff11 landed on"))
    assert not is_named(edit, words("Apollo 12 on"))


def test_no_prompts_and_empty_ones(tiny_encoder: TextEncoder) -> None:
    router = router_of(tiny_encoder, Known())
    assert len(router.route([])) == 0
    assert router.route([ReadPrompt.of(""), ReadPrompt.of(" \n")]).is_edit.tolist() == [False] * 2
