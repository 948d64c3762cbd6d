"""The last user turn, in the formats of chat templates and of plain text."""

from __future__ import annotations

import pytest

from meg_editor.requests.turns import Turn, dialogue, turns_of

Q = "Which instrument does Ada play?"
# As the templates of these models render a chat; written out by hand.
CHATS = {
    "chatml": f"<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "chatml without generation prompt": f"<|im_start|>user\n{Q}<|im_end|>\n",
    "llama-3": f"<|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-4": f"<|header_start|>user<|header_end|>\n\n{Q}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "gemma": f"<start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n",
    "phi-3": f"<|user|>\n{Q}<|end|>\n<|assistant|>\n",
    "zephyr": f"<|system|>\nBe terse.</s>\n<|user|>\n{Q}</s>\n<|assistant|>\n",
    "granite": f"<|start_of_role|>user<|end_of_role|>{Q}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "gpt-oss": f"<|start|>user<|message|>{Q}<|end|><|start|>assistant",
    "deepseek": f"<｜User｜>{Q}<｜Assistant｜>",
    "command-r": f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{Q}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "mistral": f"[INST] Hello! [/INST] Hello.</s>[INST] {Q} [/INST]",
    "llama-2": f"[INST] <<SYS>>\nBe terse.\n<</SYS>>\n\n{Q} [/INST]",
    "alpaca": f"### Instruction:\n{Q}\n\n### Response:\n",
    "user and assistant": f"User: Hello!\nAssistant: Hello.\nUser: {Q}\nAssistant:",
    "human and AI": f"Human: {Q}\nAI:",
    "qwen-3 with an empty think block": f"<|im_start|>user\n{Q}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "qwen-3 after a tool": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"
    '<tool_call>\n{"name": "search"}\n</tool_call><|im_end|>\n<|im_start|>user\n'
    "<tool_response>\nNothing found.\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "tool role": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>tool\nNothing.<|im_end|>\n"
    "<|im_start|>assistant\n",
}


def last_turn(text: str) -> Turn:
    return turns_of(text)[-1]


@pytest.mark.parametrize("name", CHATS)
def test_the_last_user_turn_is_read(name: str) -> None:
    begun = "<tool_call>" not in CHATS[name]
    turn = last_turn(CHATS[name])
    assert turn.text == Q
    assert turn.begun == "" or not begun


@pytest.mark.parametrize("name", CHATS)
def test_blanks_at_the_end_do_not_matter(name: str) -> None:
    assert last_turn(CHATS[name].strip()).text == Q


def test_a_begun_answer_is_apart_from_the_question() -> None:
    text = f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\nThe answer is"
    assert last_turn(text) == Turn(Q, "The answer is")
    assert last_turn(text).whole == f"{Q}\nThe answer is"


def test_a_later_turn_takes_the_place_of_an_earlier_one() -> None:
    first = CHATS["chatml"]
    text = f"{first}The harp.<|im_end|>\n<|im_start|>user\nThanks!<|im_end|>\n"
    assert last_turn(text) == Turn("Thanks!", system="Be terse.")


def test_turns_of_several_lines_and_markers_of_no_format_stay_whole() -> None:
    text = "Here is a list:\n- one\n- two\n\nWhat is missing?"
    assert last_turn(f"<|im_start|>user\n{text}<|im_end|>\n").text == text
    assert last_turn("a <|strange|> text").text == "a <|strange|> text"


def test_plain_text_is_its_own_turn() -> None:
    for text in (Q, "", "One. Two.", "Q: Who?\nA:"):
        assert last_turn(f" {text}\n") == Turn(text)


EXAMPLES = "Q: Who wrote Emma?\nA: Austen\n"


@pytest.mark.parametrize("end", ["A:", "A: It is", ""])
def test_the_last_of_several_examples_is_asked(end: str) -> None:
    turn = last_turn(f"Answer in one word.\n\n{EXAMPLES}Q: {Q}\n{end}")
    assert turn == Turn(Q, end.removeprefix("A:").strip(), "Answer in one word.")
    chat = f"<|im_start|>user\n{EXAMPLES}Q: {Q}\nA:<|im_end|>\n<|im_start|>assistant\n"
    assert last_turn(chat).text == Q


@pytest.mark.parametrize(
    "text",
    [
        f"Q: {Q}\nA:",
        f"Q: Who?\nQ: {Q}\nA:",  # no answer between: asked together
        f"{EXAMPLES}Q: {Q}\nA: the lute\nAnswer: and what else?",
        f"A: Austen\nQ: {Q}",
    ],
)
def test_one_question_is_no_series_of_examples(text: str) -> None:
    assert last_turn(text).text == text


MESSAGE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUOTING = [
    f"Translate this chat to German.\n\nUser: {Q}\nAssistant: The harp.",
    f"How many words are in this message?\nHuman: {Q}",
    f"Proofread this FAQ.\n\n## Question\n{Q}\n\n## Answer\nThe harp",
    f"What does this prompt string do?\n[INST] {Q} [/INST]",
    f"Output: one word\n{Q}",
    f"Answer the question below.\nOutput: one word, no explanation.\n\n{Q}",
]


@pytest.mark.parametrize("text", QUOTING)
def test_labels_inside_a_turn_begin_no_turn(text: str) -> None:
    assert turns_of(MESSAGE.format(text))[0].text == text
    assert last_turn(f"User: Hello!\nAssistant: Hi.\nUser: {Q}\nOutput: a word\nAssistant:") == (
        Turn(f"{Q}\nOutput: a word")
    )


@pytest.mark.parametrize("text", [*QUOTING[:3], *QUOTING[4:]])
def test_a_task_in_front_of_quoted_turns_is_part_of_what_is_asked(text: str) -> None:
    assert " ".join(last_turn(text).whole.split())[:8] == text[:8]


def test_a_task_in_front_of_examples_is_part_of_what_is_asked() -> None:
    turn = last_turn(f"Translate to German.\nInput: Who?\nOutput: Wer?\nInput: {Q}\nOutput:")
    assert (turn.text, turn.whole) == (Q, f"Translate to German.\n{Q}")


def test_a_tool_result_that_quotes_a_chat_is_no_turn() -> None:
    first = MESSAGE.format("Summarise ticket 12.")
    result = f"Ticket 12\nUser: {Q}\nBot: No idea."
    for said in (
        f"<|im_start|>tool\n{result}",
        f"<|im_start|>user\n<tool_response>\n{result}\n</tool_response>",
    ):
        text = f"{first}<tool_call>\n{{}}\n</tool_call><|im_end|>\n{said}<|im_end|>\n"
        assert last_turn(f"{text}<|im_start|>assistant\n").text == "Summarise ticket 12."


LABELS = {
    "capitals": ("USER: ", "ASSISTANT: "),
    "small": ("user: ", "assistant: "),
    "full width": ("User：", "Assistant："),
    "blank": ("User : ", "Assistant : "),
    "Chinese": ("用户：", "助手："),
    "brackets": ("[User]: ", "[Assistant]: "),
    "quoted": ("> User: ", "> Assistant: "),
    "bold": ("**User:** ", "**Assistant:** "),
    "human": ("Human: ", "AI: "),
}


@pytest.mark.parametrize("name", LABELS)
def test_plain_labels_in_many_spellings(name: str) -> None:
    user, assistant = LABELS[name]
    text = f"{user}{Q}\n{assistant}The harp.\n{user}Thanks!\n{assistant}"
    assert turns_of(text.strip()) == [Turn(Q, "The harp."), Turn("Thanks!")]


def test_vicuna_has_its_labels_on_one_line() -> None:
    text = f"A chat. USER: {Q} ASSISTANT: The harp.</s>USER: Thanks! ASSISTANT:"
    assert turns_of(text) == [Turn(Q, "The harp."), Turn("Thanks!", system="A chat.")]
    assert turns_of(f"SYSTEM: Be brief.\nUSER: {Q}\nASSISTANT:") == [Turn(Q, system="Be brief.")]
    assert turns_of("ASK THE USER: WHO WROTE EMMA?") == [Turn("ASK THE USER: WHO WROTE EMMA?")]


def test_the_separator_of_phi_4_begins_the_text_of_a_turn() -> None:
    begin = "<|im_start|>{}<|im_sep|>"
    user, assistant = begin.format("user"), begin.format("assistant")
    lines = f"Translate into German:\n{Q}"
    assert last_turn(f"{user}{lines}<|im_end|>{assistant}").text == lines
    text = f"{user}{Q}<|im_end|>{assistant}Sure.\nThe harp<|im_end|>{user}Thanks!<|im_end|>"
    assert turns_of(f"{text}{assistant}") == [Turn(Q, "Sure.\nThe harp"), Turn("Thanks!")]


def test_thoughts_that_are_over_are_no_begun_answer() -> None:
    assert last_turn(f"<｜User｜>{Q}<｜Assistant｜></think>") == Turn(Q)


EXCHANGES = {
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
    "llama-3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "gemma": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n",
    "mistral": "[INST] {} [/INST] {}</s>",
    "plain": "User: {}\nAssistant: {}\n",
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_all_turns_are_read_with_their_replies(name: str) -> None:
    one = EXCHANGES[name]
    text = one.format(Q, "The harp.") + one.format("Are you sure?", "")
    assert turns_of(text) == [Turn(Q, "The harp."), Turn("Are you sure?")]


def test_a_dialogue_has_the_last_turns_and_short_replies() -> None:
    turns = [Turn("One?", "1"), Turn(Q, "harp " * 60), Turn("In a word.", "Harp."), Turn("Sure?")]
    lines = dialogue(turns).splitlines()
    assert [lines[0], *lines[2:]] == [
        f"User: {Q}",
        "User: In a word.",
        "Assistant: Harp.",
        "User: Sure?",
    ]
    assert lines[1].startswith("Assistant: harp harp")
    assert len(lines[1]) < 150
