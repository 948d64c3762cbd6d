"""Many threads ask one edited model at once, with errors and cancelled streams in between.

    python tests/campaigns/threads.py [--threads 16] [--each 200] [--seed 0]

prints `threads tried=... failed=...` and exits with 1 if anything failed. `tests/test_threads.py`
runs the same campaign for some seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TextIteratorStreamer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from meg_editor.lm.tokens import left_padded

TOKENS = 6
Tokens = list[int]


class Raised(Exception):
    """What the callbacks of this campaign raise in the middle of `generate`."""


@dataclass
class Campaign:
    """Threads which ask `prompts` in every way, and what went wrong.

    Attributes:
        tried: calls that were compared or had to fail.
        failures: one line each.
    """

    model: Any
    prompts: Sequence[str]
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, threads: int, each: int, seed: int = 0) -> Campaign:
        """`each` calls in each thread, then every prompt once more alone."""
        ways = self.ways()
        alone = {(name, text): way(text) for name, way in ways.items() for text in self.prompts}
        hooks = hook_count(self.model)
        barrier = threading.Barrier(threads)

        def work(number: int) -> None:
            rng = random.Random(1000 * seed + number)
            barrier.wait()
            for _ in range(each):
                text = rng.choice(self.prompts)
                if rng.random() < 0.25:
                    self._disturb(rng.choice(self.disturbances()), text)
                name = rng.choice(list(ways))
                self._compare(f"{name} in threads", ways[name], text, alone[name, text])

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for (name, text), expected in alone.items():
            self._compare(f"{name} afterwards", ways[name], text, expected)
        if (left := hook_count(self.model)) != hooks:
            self._fail(f"hooks: {hooks} before, {left} afterwards")
        if patched := [b for b in self.model.base.modules() if "forward" in vars(b)]:
            self._fail(f"{len(patched)} modules have a forward of their own")
        return self

    # ------------------------------------------------------------------------ ways to ask

    def ways(self) -> dict[str, Callable[[str], Any]]:
        """Name -> a way to ask, deterministic for each prompt."""
        return {
            "generate": self._generate,
            "answer": lambda text: self.model.answer(text, TOKENS),
            "answers": lambda text: self.model.answer([text, self.prompts[0]], TOKENS),
            "stream": self._stream,
            "decoding loop": self._loop,
            "base": lambda text: self._generate(text, self.model.base),
            "route": lambda text: self.model.route(text).is_edit.tolist(),
            "routed": self._routed,
            "tasks": lambda text: asyncio.run(self._tasks(text)),
        }

    def _generate(self, text: str, model: Any = None, **options: Any) -> Tokens:
        batch = left_padded(self.model._tokenizer, [text], "cpu")
        options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, **options}
        output = (self.model if model is None else model).generate(**batch, **options)
        tokens: Tokens = output[0, batch["input_ids"].shape[1] :].tolist()
        return tokens

    def _stream(self, text: str) -> str:
        streamer = TextIteratorStreamer(self.model._tokenizer, skip_prompt=True, timeout=60)
        asked = threading.Thread(target=self._generate, args=(text,), kwargs={"streamer": streamer})
        asked.start()
        answer = "".join(streamer)
        asked.join()
        return answer

    def _loop(self, text: str) -> Tokens:
        batch = left_padded(self.model._tokenizer, [text], "cpu")
        tokens: Tokens = []
        with torch.no_grad():
            output = self.model(input_ids=batch["input_ids"])
            for _ in range(TOKENS):
                token = output.logits[:, -1].argmax(-1, keepdim=True)
                tokens.append(int(token))
                cache = output.past_key_values
                output = self.model(input_ids=token, past_key_values=cache)
        return tokens

    def _routed(self, text: str) -> list[Tokens]:
        with self.model.routed(text):
            return [self._generate(text), self._generate(text, self.model.base)]

    async def _tasks(self, text: str) -> list[Any]:
        async def ask(question: str) -> Tokens:
            with self.model.routed(question):
                await asyncio.sleep(0)
                tokens = self._generate(question)
                await asyncio.sleep(0)
                return tokens if tokens == await asyncio.to_thread(self._generate, question) else []

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as pool:
            return await asyncio.gather(
                ask(text),
                ask(self.prompts[0]),
                loop.run_in_executor(pool, self._generate, text),
            )

    # ------------------------------------------------------------------------ disturbances

    def disturbances(self) -> list[Callable[[str], None]]:
        """Calls which fail or are given up; each raises AssertionError if it does not."""
        return [
            self._raising("logits_processor"),
            self._raising("stopping_criteria"),
            self._raising("streamer"),
            self._bad_arguments,
            self._too_long,
            self._stopped_early,
            self._abandoned_stream,
            self._closed_elsewhere,
            self._batch_of_other_rows,
        ]

    def _raising(self, kind: str) -> Callable[[str], None]:
        def call(text: str) -> None:
            def raise_later(ids: Any, *_: Any) -> Any:
                steps.append(1)
                if len(steps) == 3:
                    raise Raised(kind)
                return _[0] if kind == "logits_processor" else torch.tensor([False])

            steps: list[int] = []
            hook: Any = _Streamer(raise_later) if kind == "streamer" else [raise_later]
            self._must_raise(
                Raised,
                lambda: self._generate(text, min_new_tokens=TOKENS, **{kind: hook}),
            )

        return call

    def _bad_arguments(self, text: str) -> None:
        self._must_raise((ValueError, TypeError), lambda: self._generate(text, no_such_option=1))
        self._must_raise(Exception, lambda: self.model(input_ids="text"))
        self._must_raise(ValueError, lambda: self.model.generate(max_new_tokens=2))

    def _too_long(self, text: str) -> None:
        with suppress(Exception):  # some models have no longest prompt
            self.model.answer(f"{text} " * 400, 1)

    def _stopped_early(self, text: str) -> None:
        def stop(ids: Any, scores: Any) -> Any:
            return torch.ones(len(ids), dtype=torch.bool)

        if len(self._generate(text, stopping_criteria=[stop])) != 1:
            raise AssertionError("a StoppingCriteria did not stop")

    def _abandoned_stream(self, text: str) -> None:
        """Its reader leaves after the first piece; the thread is stopped."""
        left = threading.Event()

        def stop(ids: Any, scores: Any) -> Any:
            return torch.full((len(ids),), left.is_set(), dtype=torch.bool)

        streamer = TextIteratorStreamer(self.model._tokenizer, skip_prompt=True, timeout=60)
        options = {"streamer": streamer, "stopping_criteria": [stop], "min_new_tokens": TOKENS}
        asked = threading.Thread(target=self._generate, args=(text,), kwargs=options)
        asked.start()
        next(iter(streamer), None)
        left.set()
        asked.join()

    def _closed_elsewhere(self, text: str) -> None:
        """A request is suspended within its block; another thread closes it."""

        def request() -> Iterator[None]:
            with self.model.routed(text):
                yield

        suspended = request()
        next(suspended)
        closer = threading.Thread(target=suspended.close)  # type: ignore[attr-defined]
        closer.start()
        closer.join()

    def _batch_of_other_rows(self, text: str) -> None:
        two = [text, self.prompts[0]]
        with self.model.applied(self.model.decide([self.prompts[0]] * 2)):
            batch = left_padded(self.model._tokenizer, [*two, text], "cpu")
            with suppress(ValueError):  # no edit is among them: nothing is attached
                self.model.base(**batch)
                if self.model.route(self.prompts[0]).is_edit[0]:
                    raise AssertionError("3 rows took the neurons of 2")

    @staticmethod
    def _must_raise(kind: Any, call: Callable[[], Any]) -> None:
        try:
            call()
        except kind:
            return
        raise AssertionError(f"expected {kind}, nothing was raised")

    # ------------------------------------------------------------------------ bookkeeping

    def _compare(self, name: str, way: Callable[[str], Any], text: str, expected: Any) -> None:
        try:
            result = way(text)
        except BaseException as error:
            self._fail(f"{name}: {text!r}: {type(error).__name__}: {error}")
        else:
            if result != expected:
                self._fail(f"{name}: {text!r}: alone {expected}, now {result}")
        self._check_state(name)

    def _disturb(self, call: Callable[[str], None], text: str) -> None:
        try:
            call(text)
        except BaseException as error:
            self._fail(f"disturbance, {text!r}: {type(error).__name__}: {error}")
        self._check_state("disturbance")

    def _check_state(self, name: str) -> None:
        if in_effect := entries():
            self._fail(f"{name}: left in effect: {in_effect}")
        with self.lock:
            self.tried += 1

    def _fail(self, line: str) -> None:
        with self.lock:
            self.failures.append(line)


class _Streamer:
    """A streamer which calls `put` with every token."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self.put = put

    def end(self) -> None:
        pass


def hook_count(model: torch.nn.Module) -> int:
    """Forward hooks and pre-hooks of all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def entries() -> list[str]:
    """What our ContextVars hold in this thread; a block left in another thread counts no more."""
    return [
        f"{variable.name}={value!r}"
        for variable, value in contextvars.copy_context().items()
        if variable.name.startswith("meg_editor_") and value and getattr(value, "entered", True)
    ]


def main() -> int:
    from meg_editor import MeGHyperParams, fit, load_model
    from meg_editor.data.world.facts import load_world
    from meg_editor.data.world.requests import edit_cases

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hparams = MeGHyperParams.preset(
        "default", device="cpu", encoder_steps=0, gate_threshold=0.6, gate_state_weight=0.2
    )
    base, tokenizer = load_model(hparams)
    cases = edit_cases(load_world(), 16, arguments.seed)
    model, _ = fit(base, tokenizer, [case.request for case in cases], hparams)
    prompts = [case.request.prompt for case in cases]
    prompts += [next(iter(case.locality.values()))[0].prompt for case in cases]
    edits = int(model.route(prompts).is_edit.sum())
    result = Campaign(model, prompts).run(arguments.threads, arguments.each, arguments.seed)
    for line in result.failures[:20]:
        print(f"  {line}")
    print(
        f"threads tried={result.tried} failed={len(result.failures)} "
        f"({arguments.threads} threads, {edits} of {len(prompts)} prompts are edits)"
    )
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main())
