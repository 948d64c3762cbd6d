"""Bodies of requests, as OpenAI's clients send them, and of edits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from meg_editor.config.input_files import type_and_repr
from meg_editor.lm.sampling import Sampling

MAX_ANSWERS = 16  # to one prompt
MAX_EDITS = 1000  # in one request
MAX_TOP_LOGPROBS = 20
# What would change the answer and is not served; a value here is the one that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "min_p": (None, 0),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "stop_token_ids": (None, []),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_k": (None, 0, -1),
    "web_search_options": (None,),
}


def _whole_letters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected Unicode, got half of a surrogate pair") from None
    return text


def _joined(content: Any) -> Any:
    """The text of a turn, which may come in parts."""
    if isinstance(content, str | None):
        return content
    if not isinstance(content, list):
        raise ValueError(f"expected text or a list of parts, got {_kind(content)}")
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else _kind(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                'expected parts such as {"type": "text", "text": "..."}, got '
                f"{str(kind)[:40]!r} at {place}"
            )
    return "".join(part["text"] for part in content)


def _listed(prompt: Any) -> list[str] | list[list[int]]:
    """One or more prompts, as texts or token ids."""
    many = prompt if isinstance(prompt, list) else [prompt]
    if isinstance(prompt, list) and _are_tokens(prompt):
        many = [prompt]
    if all(isinstance(one, str) for one in many):
        return [_whole_letters(one) for one in many]
    if all(isinstance(one, list) and _are_tokens(one) for one in many):
        return many
    raise ValueError(
        "expected text, a list of texts, a list of token ids or a list of such lists, got "
        f"{_kind(prompt)}"
    )


def _are_tokens(values: list[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _kind(value: Any) -> str:
    return "null" if value is None else type_and_repr(value, 40)


def _wrong(field: str, message: str, value: Any) -> ValidationError:
    """The error of a field which is checked beside others; a ValueError would name none."""
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    details = InitErrorDetails(type=error, loc=(field,), input=value)
    return ValidationError.from_exception_data(field, [details])


Text = Annotated[str, AfterValidator(_whole_letters)]
Stop = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=16)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool = False


class _Generation(BaseModel):
    """What chats and plain prompts have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: Stop = Field(default_factory=list)
    stream: bool = False
    stream_options: _Options | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else (value or [])

    @field_validator("n", "stream", mode="before")
    @classmethod
    def _default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @model_validator(mode="after")
    def _nothing_unserved(self) -> _Generation:
        for name, value in (self.model_extra or {}).items():
            if name in _NEUTRAL and value not in _NEUTRAL[name]:
                message = f"not served, got {_kind(value)}: leave it out"
                raise _wrong(name, message, value)
        return self

    def sampling(self, number: int, logprobs: int | None) -> Sampling:
        """Of the answer with this number.

        Without a temperature, top_p or seed it is greedy, and with a top_p of 0.
        """
        sampled = self.top_p is not None or self.seed is not None
        temperature = (1.0 if sampled else 0.0) if self.temperature is None else self.temperature
        temperature = 0.0 if self.top_p == 0 else temperature
        seed = None if self.seed is None else (self.seed + number) % 2**63
        return Sampling(temperature, self.top_p or 1.0, seed, logprobs)


class Message(BaseModel):
    """A turn of a chat."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text | None, BeforeValidator(_joined)] = Field(None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _asks(cls, content: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("role") == "user" and not (content or "").strip():
            got = "null" if content is None else "no text"
            raise ValueError(
                f"expected what the user says, got {got}: fill it in, or leave the message out"
            )
        return content

    @property
    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content or ""}


# The first error is enough: a body of 1 MiB may have hundreds of thousands.
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class Chat(_Generation):
    """Body of /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _logprobs_first(self) -> Chat:
        if self.top_logprobs and not self.logprobs:
            message = f"expected logprobs true beside it, got {_kind(self.logprobs)}"
            raise _wrong("top_logprobs", message, self.top_logprobs)
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """Most likely tokens to name; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class Prompt(_Generation):
    """Body of /v1/completions."""

    prompts: Annotated[Any, BeforeValidator(_listed), Field(alias="prompt")]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class NewEdit(BaseModel):
    """A fact to be edited in."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    target_new: str
    subject: str | None = None

    @property
    def request(self) -> dict[str, Any]:
        """As `MeGModel.add` takes it."""
        return self.model_dump(exclude_none=True)


class NewEdits(BaseModel):
    """Body of POST /v1/edits."""

    model_config = ConfigDict(extra="forbid")

    edits: Annotated[list[NewEdit], Field(min_length=1, fail_fast=True)]
    on_conflict: Literal["refuse", "replace", "keep"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """One edit may stand without the list."""
        if isinstance(value, dict) and "edits" not in value and "prompt" in value:
            others = {name: each for name, each in value.items() if name != "on_conflict"}
            conflict = {k: v for k, v in value.items() if k == "on_conflict"}
            return {"edits": [others], **conflict}
        return value


class NewTarget(BaseModel):
    """Body of PATCH /v1/edits/{id}."""

    model_config = ConfigDict(extra="forbid")

    target_new: str


class Undo(BaseModel):
    """Body of POST /v1/edits/undo."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1)] = 1


class RouteQuery(BaseModel):
    """Body of POST /v1/route: a prompt or a chat."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _either(self) -> RouteQuery:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        return self
