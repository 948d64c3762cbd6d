"""MeG in lm-evaluation-harness: contexts are the queries, answers are never looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import OTHERS, PROMPTS

from meg_editor.model.meg_model import MeGModel

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: [lm-eval]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from meg_editor.integrations.lm_eval import MeGLM  # noqa: E402


@pytest.fixture
def edited(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model()


@pytest.fixture
def harness(edited: MeGModel) -> MeGLM:
    return MeGLM(edited, batch_size=4, device="cpu")


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def likelihood(edited: MeGModel, context: str, continuation: str) -> float:
    """Token by token, with the neuron which the context leads to."""
    ids = edited.tokenizer(context)["input_ids"]
    whole = edited.tokenizer(context + continuation)["input_ids"]
    with torch.no_grad(), edited.routed([context]):
        logits = edited(input_ids=torch.tensor([whole])).logits[0]
    log = F.log_softmax(logits.float(), -1)
    return sum(float(log[at - 1, whole[at]]) for at in range(len(ids), len(whole)))


def test_likelihoods_are_those_of_the_routed_model(edited: MeGModel, harness: MeGLM) -> None:
    pairs = [(prompt, f" {word}") for prompt in [*PROMPTS[:3], *OTHERS] for word in ("one", "two")]
    result = harness.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    expected = [likelihood(edited, *pair) for pair in pairs]
    assert [value for value, _ in result] == pytest.approx(expected, abs=1e-3)
    plain = [likelihood_of_base(edited, *pair) for pair in pairs]
    changed = [abs(a - b) > 1e-3 for a, b in zip(expected, plain, strict=True)]
    assert all(changed[:6]) and not any(changed[6:])  # the edits, and nothing else


def likelihood_of_base(edited: MeGModel, context: str, continuation: str) -> float:
    with edited.applied(None):
        ids = edited.tokenizer(context)["input_ids"]
        whole = edited.tokenizer(context + continuation)["input_ids"]
        with torch.no_grad():
            log = F.log_softmax(edited.base(torch.tensor([whole])).logits[0].float(), -1)
    return sum(float(log[at - 1, whole[at]]) for at in range(len(ids), len(whole)))


def test_generation_is_that_of_the_routed_model(edited: MeGModel, harness: MeGLM) -> None:
    prompts = [OTHERS[0], PROMPTS[1], OTHERS[1], PROMPTS[0]]
    options = {"max_gen_toks": 6, "until": [], "do_sample": False}
    texts = harness.generate_until([request("generate_until", p, dict(options)) for p in prompts])
    expected = [edited.answer(prompt, 6)[0] for prompt in prompts]
    assert [text.strip() for text in texts] == expected


def test_a_text_without_a_context_is_its_own_query(edited: MeGModel, harness: MeGLM) -> None:
    routed: list[str] = []
    route = edited.route

    def spy(queries: Any) -> Any:
        routed.extend(queries)
        return route(queries)

    edited.route = spy  # type: ignore[method-assign]
    (value,) = harness.loglikelihood_rolling([request("loglikelihood_rolling", OTHERS[0])])
    assert value < 0 and [text.strip() for text in routed] == [OTHERS[0]]


def test_a_local_task_runs_and_tells_edits_from_the_rest(
    edited: MeGModel, harness: MeGLM, tmp_path: Path
) -> None:
    """Which of two words is likelier? Gold is what the edited model was found to prefer above."""
    docs = []
    for prompt in [*PROMPTS[:4], *OTHERS]:
        scores = [likelihood(edited, prompt, f" {word}") for word in ("one", "two")]
        docs.append({"question": prompt, "gold": scores.index(max(scores))})
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)), "utf-8")
    task = {
        "task": "two_words",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "docs.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["one", "two"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "two_words.yaml").write_text(yaml.safe_dump(task), "utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=harness, tasks=["two_words"], task_manager=manager, bootstrap_iters=0
    )
    assert results["results"]["two_words"]["acc,none"] == 1.0


def test_a_saved_model_is_read_from_its_folder(edited: MeGModel, tmp_path: Path) -> None:
    edited.save_pretrained(tmp_path / "edited", save_base=True)
    harness = MeGLM(str(tmp_path / "edited"), device="cpu")
    pair = (PROMPTS[0], " one")
    ((value, _),) = harness.loglikelihood([request("loglikelihood", *pair)])
    assert value == pytest.approx(likelihood(edited, *pair), abs=1e-3)


def test_a_model_that_routes_while_it_answers_is_refused(edited: MeGModel) -> None:
    """The harness asks the base model, which looks for no edit in what it writes."""
    edited.hparams = edited.hparams.changed(routing="decoding")
    with pytest.raises(ValueError, match="routing: prompt"):
        MeGLM(edited, device="cpu")
