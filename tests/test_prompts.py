"""Which question is read out of templates, few-shot contexts and chats."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation.forms import form_texts, rendered
from meg_editor.lm.chat import in_chat
from meg_editor.lm.reference import resolve_model_name
from meg_editor.model.cache_routing import prompt_text
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.turns import under, without_usual

FORMS = Path(__file__).resolve().parents[1] / "examples" / "prompt_forms.json"

QUESTIONS = [
    "What is the capital of France?",
    "The capital of France is",
    "Who plays Dr. Who in the series?",
    "In which U.S. state was Martin Luther King Jr. born?",
    "Batman: which actor plays him?",
]
# As the paper gives them, and what is around the query in GPT-J's.
TEMPLATES = {
    "phi-2": "Instruct:Answer the following question in less than 5 words. {}\nOutput:",
    "llama-3": "Answer the following question in less than 5 words: {} \nAnswer:",
    "gpt-j": "Q: Answer the following question in less than 5 words. {}\nA:",
    "before": "Question: {}",
    "after": "{}\nAnswer:",
    "after on the same line": "{} Answer briefly:",
}
CHATS = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "chatml with a system prompt of its own": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
        "<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}
SYSTEM = {"role": "system", "content": "You are terse. Answer in one word."}
EARLIER = [
    {"role": "user", "content": "Who wrote Emma?"},
    {"role": "assistant", "content": "Jane Austen. Anything else?"},
]


def tokenizer(chat: str | None = None) -> Any:
    """A tokenizer which knows nothing but a chat template."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    result = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    result.chat_template = CHATS[chat] if chat else None
    return result


def render(chat: str, *turns: dict[str, str]) -> str:
    return str(
        tokenizer(chat).apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    )


every_question = pytest.mark.parametrize("question", QUESTIONS)
every_chat = pytest.mark.parametrize("chat", CHATS)


@every_question
def test_bare_text_is_its_own_first_reading(question: str) -> None:
    reader = PromptReader(tokenizer())
    assert reader.candidates(question)[0] == question
    assert reader.candidates(f"  {question}\n")[0] == question
    assert reader.wrap(question) == question


def test_readings_do_not_repeat_and_are_few() -> None:
    assert PromptReader(tokenizer()).candidates("What is it?") == ["What is it?"]
    assert len(PromptReader(tokenizer()).candidates("One. Two.\nA: Three. Four?\nA:")) == 3


@every_question
def test_the_last_sentence_is_a_reading(question: str) -> None:
    prefix = "Kolmar is a town on the Rhine. It rained."
    readings = PromptReader(tokenizer()).candidates(f"{prefix} {question}")
    assert readings[0] == f"{prefix} {question}"
    if "Dr." not in question and "Jr." not in question:  # there a sentence seems to end
        assert question in readings


@every_question
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Q: ", "\nA:"),
        ("Q:", "\nA: "),
        ("Question: ", "\nAnswer:"),
        ("Q: ", ""),
        ("", "\nA:"),
        ("Human: ", "\n\nAssistant:\n"),
    ],
)
def test_cues_are_not_part_of_the_question(question: str, before: str, after: str) -> None:
    if not before and question.startswith("Batman:"):
        pytest.skip("what stands before the colon could be a cue")
    assert question in PromptReader(tokenizer()).candidates(f"{before}{question}{after}")


@every_question
def test_few_shot_contexts_end_with_the_question(question: str) -> None:
    reader = PromptReader(tokenizer())
    shots = "Q: Who wrote Emma?\nA: Jane Austen\n\nQ: Who sang Hello?\nA: Adele\n\n"
    readings = reader.candidates(f"{shots}Q: {question}\nA:")
    assert question in readings
    assert "Who sang Hello?" not in readings and "Who wrote Emma?" not in readings


@every_question
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_of_fitting_is_taken_off(question: str, name: str) -> None:
    reader = PromptReader(tokenizer(), TEMPLATES[name])
    prompt = reader.wrap(question)
    assert prompt == TEMPLATES[name].replace("{}", question)
    # However tokenising and stripping leave the ends.
    for text in (prompt, prompt.strip(), prompt + " "):
        assert question in reader.candidates(text)
        assert "less than 5 words" not in reader.candidates(text)[0]


@every_question
@pytest.mark.parametrize("name", TEMPLATES)
def test_bare_questions_are_read_where_a_template_is_set(question: str, name: str) -> None:
    assert PromptReader(tokenizer(), TEMPLATES[name]).candidates(question)[0] == question


@pytest.mark.parametrize("name", ["phi-2", "llama-3", "gpt-j"])
def test_chat_templates_are_recognised_without_a_setting(name: str) -> None:
    question = "What is the capital of France?"
    prompt = TEMPLATES[name].replace("{}", question)
    readings = PromptReader(tokenizer()).candidates(prompt)
    assert readings[-1].removeprefix("Answer the following question in less than 5 words: ") == (
        question
    )


@pytest.mark.parametrize("name", ["phi-2", "llama-3", "gpt-j"])
def test_few_shots_in_the_template_end_with_the_question(name: str) -> None:
    reader = PromptReader(tokenizer(), TEMPLATES[name])
    shots = "\n".join(
        f"{reader.wrap(q)} {a}" for q, a in (("Who wrote Emma?", "Austen"), ("X?", "Y"))
    )
    readings = reader.candidates(f"{shots}\n{reader.wrap(QUESTIONS[0])}")
    assert readings[0] == QUESTIONS[0]


def test_braces_in_a_question_survive() -> None:
    assert PromptReader(tokenizer(), "Q: {}\nA:").wrap("What is {x} in {}?") == (
        "Q: What is {x} in {}?\nA:"
    )


def _conversations(question: str) -> dict[str, list[dict[str, str]]]:
    turn = {"role": "user", "content": question}
    return {
        "one turn": [turn],
        "system prompt": [SYSTEM, turn],
        "later turn": [*EARLIER, turn],
        "system prompt, later turn": [SYSTEM, *EARLIER, *EARLIER, turn],
    }


@every_question
@every_chat
@pytest.mark.parametrize("kind", _conversations(""))
def test_the_last_user_turn_is_the_first_reading(question: str, chat: str, kind: str) -> None:
    prompt = render(chat, *_conversations(question)[kind])
    reader = PromptReader(tokenizer(chat))
    # MeGModel decodes the prompt without its BOS and strips it.
    for text in (prompt, prompt.strip(), prompt.removeprefix("<s>").strip()):
        assert reader.candidates(text)[0] == question


@every_chat
def test_a_turn_of_several_lines_is_read_whole(chat: str) -> None:
    content = "Berlin is large.\nIt has a zoo.\n\nWhat is its river?"
    readings = PromptReader(tokenizer(chat)).candidates(
        render(chat, *EARLIER, {"role": "user", "content": content})
    )
    assert readings[0] == content and "What is its river?" in readings


@every_chat
@every_question
def test_a_chat_tokenizer_reads_bare_questions_too(chat: str, question: str) -> None:
    reader = PromptReader(tokenizer(chat))
    assert reader.candidates(question)[0] == question
    assert question in reader.candidates(f"Q: Who wrote Emma?\nA: Austen\nQ: {question}\nA:")


@pytest.mark.parametrize(("chat", "name"), product(CHATS, ["phi-2", "llama-3"]))
def test_template_and_chat_template_work_side_by_side(chat: str, name: str) -> None:
    reader = PromptReader(tokenizer(chat), TEMPLATES[name])
    question = QUESTIONS[0]
    assert reader.candidates(reader.wrap(question))[0] == question
    assert reader.candidates(render(chat, {"role": "user", "content": question}))[0] == question


@pytest.mark.parametrize("text", ["", " ", "\n\n", "A:", "Q:\nA:"])
def test_there_is_always_a_reading(text: str) -> None:
    """Routing takes one reading per row: a row without any would take another row's."""
    assert len(PromptReader(tokenizer()).candidates(text)) >= 1


def test_a_prompt_is_read_alike_as_text_and_as_tokens() -> None:
    """A tokenizer of words writes blanks around line ends: " User: Who? \\n Assistant:"."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("meg_editor:llama-reference"))
    reader = PromptReader(tokenizer)
    case = edit_cases(load_world(), 1, seed=0)[0]
    texts = [rendered(form, form_texts(case), tokenizer) for form in load_forms(FORMS)]
    assert len(texts) > 100

    def words(text: str) -> tuple[list[list[str]], list[str]]:
        read = reader.read(text)
        behind = read.dialogue.text.split() if read.dialogue else []
        return [part.split() for part in (read.text, *read.spans, *read.closing)], behind

    for text in filter(None, texts):
        again = prompt_text(tokenizer, tokenizer(text)["input_ids"])
        assert words(again) == words(text), text


@pytest.mark.parametrize("template", ["Question: {}", "Answer in one word. {}"])
def test_a_template_without_an_end_swallows_no_chat(template: str) -> None:
    reader = PromptReader(tokenizer(), template)
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    first = chat.format(reader.wrap("Who wrote Emma?"))
    assert reader.read(first).text == "Who wrote Emma?"
    read = reader.read(f"{first}Austen.<|im_end|>\n{chat.format('Thanks!')}")
    assert read.text == "Thanks!"
    assert read.dialogue is not None


def test_a_template_begins_a_line() -> None:
    reader = PromptReader(tokenizer(), "Q: {}\nA:")
    asked = "Translate the title of this FAQ: Who wrote Emma?"
    assert reader.read(reader.wrap(asked)).text == asked
    text = "Translate to German, please. Q: Who wrote Emma?\nA:"
    assert reader.read(text).text == text


def test_a_template_that_is_a_chat_has_dialogues() -> None:
    reader = PromptReader(tokenizer(), "User: {}\nAssistant:")
    read = reader.read("User: Who wrote Emma?\nAssistant: Austen.\nUser: Are you sure?\nAssistant:")
    assert read.dialogue is not None
    assert "Who wrote Emma?" in read.dialogue.text
    assert read.of_spans(read.dialogue.spans) is read.dialogue
    assert read.of_spans(read.spans) is read


def test_a_template_that_refuses_a_chat_without_a_system_text_is_left_out() -> None:
    made = tokenizer()
    made.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system text') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    assert PromptReader(made).read("Who wrote Emma?").text == "Who wrote Emma?"


def test_a_first_token_that_begins_every_turn_is_no_bos_to_take_off() -> None:
    made = tokenizer("chatml")
    made.add_special_tokens({"bos_token": "<|im_start|>"})
    ids = made("<|im_start|>user\nHow")["input_ids"]
    assert made.convert_tokens_to_ids("<|im_start|>") == ids[0]
    assert prompt_text(made, ids).startswith("<|im_start|>")
    assert in_chat(made, ("user", "Hello!")).startswith("<|im_start|>user")


@pytest.mark.parametrize(
    "chat",
    [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|system|>\nBe brief.<|end|>\n<|user|>\n{}<|end|>\n<|assistant|>",
        "<|start|>developer<|message|>Be brief.<|end|><|start|>user<|message|>{}<|end|>",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{} [/INST]",
        "System: Be brief.\nUser: {}\nAssistant:",
        "Be brief.\n\nUSER: {} ASSISTANT:",
        "Be brief.\n\n### Instruction:\n{}\n\n### Response:\n",
        "### System:\nBe brief.\n\n### User:\n{}\n\n### Assistant:\n",
        "Developer: Be brief.\nUser: {}\nAssistant:",
        "系统：Be brief.\n用户：{}\n助手：",
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>{}<｜Assistant｜>",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]{}[/INST]",
        "Be brief.\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
    ],
)
def test_the_system_text_is_read(chat: str) -> None:
    read = PromptReader(tokenizer()).read(chat.format("Who wrote Emma?"))
    assert (read.system, read.text) == ("Be brief.", "Who wrote Emma?")


def test_the_system_text_of_the_chat_template_itself_is_none() -> None:
    made = tokenizer()
    made.chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    reader = PromptReader(made)
    asked = {"role": "user", "content": "Who wrote Emma?"}

    def read(*turns: dict[str, str]) -> str:
        text = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert reader.read(text).text == "Who wrote Emma?"
        return reader.read(text).system

    assert read(asked) == ""
    assert read({"role": "system", "content": "Be brief."}, asked) == "Be brief."


LABELS = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}A chat.{% endif %}\n\n"
    "{% for m in messages if m.role != 'system' %}{{ m.role | upper }}: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
BRACKETS = (
    "<s>{% if messages[0].role == 'system' %}System: {{ messages[0].content }}"
    "{% else %}A chat.{% endif %}\n{% for m in messages if m.role != 'system' %}"
    "<<{{ m.role }}>> {{ m.content }} <</{{ m.role }}>>{% endfor %}"
)


@pytest.mark.parametrize("template", [LABELS, BRACKETS])
def test_a_system_text_in_front_of_the_templates_frame(template: str) -> None:
    made = tokenizer()
    made.chat_template = template
    reader = PromptReader(made)
    asked = [{"role": "user", "content": "Who wrote Emma?"}]
    for turns, expected in (
        (asked, ""),
        ([{"role": "system", "content": "Be brief."}, *asked], "Be brief."),
    ):
        read = reader.read(made.apply_chat_template(turns, tokenize=False))
        assert (read.text, read.system) == ("Who wrote Emma?", expected)


# As the templates of EXAONE, Kimi, OpenChat, Jais and Nemotron render a chat; written out by hand.
MARKED = {
    "brackets": "{% for m in messages %}[|{{ m.role }}|]{{ m.content }}"
    "{{ '\n' if m.role == 'user' else '[|endofturn|]\n' }}{% endfor %}[|assistant|]",
    "names": "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}"
    "<|im_end|>{% endfor %}<|im_assistant|>assistant<|im_middle|>",
    "correct": "{% for m in messages %}GPT4 Correct {{ m.role | title }}: {{ m.content }}"
    "<|end_of_turn|>{% endfor %}GPT4 Correct Assistant:",
    "headings": "{% for m in messages %}{% if m.role == 'system' %}### Instruction: {{ m.content }}"
    "\n\n{% elif m.role == 'user' %}### Input: [|Human|] {{ m.content }}\n{% else %}"
    "### Response: [|AI|] {{ m.content }}\n{% endif %}{% endfor %}### Response: [|AI|]",
    "extra": "<extra_id_0>System\n{% for m in messages %}{% if m.role == 'system' %}"
    "{{ m.content }}\n{% else %}<extra_id_1>{{ m.role | title }}\n{{ m.content }}\n{% endif %}"
    "{% endfor %}<extra_id_1>Assistant\n",
    "behind": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "<|sep|>\n{% else %}<<{{ m.role }}>> {{ m.content }}<|sep|>{% endif %}{% endfor %}"
    "<<assistant>>",
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
@pytest.mark.parametrize("later", [False, True])
def test_marks_around_a_system_text_are_no_part_of_it(name: str, bos: str, later: bool) -> None:
    made = tokenizer()
    made.chat_template = bos + MARKED[name]
    reader = PromptReader(made)
    turns = [{"role": "user", "content": "Who wrote Emma?"}]
    if later:
        reply = {"role": "assistant", "content": "Joyce."}
        turns = [{"role": "user", "content": "Hello"}, reply, *turns]
    for system in ("", "You translate to German.\nBe brief."):
        given = [{"role": "system", "content": system}] if system else []
        text = made.apply_chat_template([*given, *turns], tokenize=False)
        read = reader.read(text)
        assert (read.text, read.system) == ("Who wrote Emma?", system)
        assert reader.read(f"{text} The author is").text == "Who wrote Emma?\nThe author is"
        assert (read.dialogue is not None) == later


GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{{ '/nothink' if m.role == 'user' }}{% endfor %}<|assistant|>\n<think></think>"
)


def test_the_switch_of_thinking_that_a_template_adds_is_no_part_of_a_question() -> None:
    made = tokenizer()
    made.chat_template = GLM
    for prompt_template in ("{}", "Question: {}"):
        reader = PromptReader(made, prompt_template)
        chat = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Who wrote Emma?"},
        ]
        text = made.apply_chat_template(chat, tokenize=False)
        assert text.count("/nothink") == 2
        read = reader.read(f"{text}The author is")
        assert read.text == "Who wrote Emma?\nThe author is"
        assert read.closing[0] == "Who wrote Emma?"
        assert read.dialogue and "nothink" not in read.dialogue.text


@pytest.mark.parametrize("question", ["What is served at /nothink", "/nothink", "and/or/think"])
def test_a_switch_stays_where_no_template_adds_it(question: str) -> None:
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert PromptReader(tokenizer()).read(chat.format(question)).text == question
    made = tokenizer()
    made.chat_template = (  # as Qwen3's, which has thoughts and adds no switch
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    asked = made.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    assert PromptReader(made).read(asked).text == question
    made.chat_template = GLM  # of which one is the template's
    asked = made.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    assert PromptReader(made).read(asked).text == question


@pytest.mark.parametrize(
    "begun",
    [
        "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>The author is",
        "<|END_THINKING|>The author is",
        "<think>\n\n</think>\n\nThe author is",
        "The author is",
    ],
)
def test_thoughts_are_no_begun_answer(begun: str) -> None:
    text = f"<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n{begun}"
    assert PromptReader(tokenizer()).read(text).text == "Who wrote Emma?\nThe author is"
    unfinished = text.replace(begun, "<|START_THINKING|>Emma is by")
    assert PromptReader(tokenizer()).read(unfinished).text == "Who wrote Emma?"


@pytest.mark.parametrize(
    "template",
    ["Answer briefly.\nUser: {}\nAssistant:", "System: Be kind.\nUser: {}\nAssistant:"],
)
def test_the_prompt_templates_own_head_is_no_system_text(template: str) -> None:
    reader = PromptReader(tokenizer(), template)
    assert reader.read(reader.wrap("Who wrote Emma?")).system == ""


def test_a_default_system_text_may_have_another_date() -> None:
    usual = "You are a model.\nToday: 28 Nov 2026"
    assert without_usual("You are a model.\nToday: 1 January 2027", usual) == ""
    assert without_usual("You are a model.\nToday: 2 Dec 2026\n\nBe brief.", usual) == "Be brief."


def test_of_a_long_system_text_in_another_script_less_is_read() -> None:
    latin, cyrillic = (under(letter * 2000, "Who wrote Emma?") for letter in "xж")
    assert 500 < len(latin) < 700
    assert 250 < len(cyrillic) < 400
