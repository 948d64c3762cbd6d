"""fit: bad input changes nothing, stages run once, the report tells."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from conftest import OTHERS, PROMPTS

from meg_editor.collection import shards
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.world.requests import sweep_requests
from meg_editor.fitting.generator_stage import GeneratorStage
from meg_editor.fitting.pipeline import fit
from meg_editor.fitting.stage import declared
from meg_editor.generators import GENERATORS
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.loading import load_model
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, RequestError
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore

SETTINGS = MeGHyperParams(
    layers=[1],
    encoder_tuning="infonce",
    encoder_steps=3,
    gate_threshold=None,
    gate_name_weight=0.2,
    collection_optimizer="sgd",
    collection_contexts=2,
    collection_loss_threshold=0.01,
    familiarity_epochs=20,
    collection_steps=20,
    generator="dit",
    generator_width=32,
    generator_depth=1,
    generator_steps=30,
    generator_epochs=1,
)
EDITS = [EditRequest(prompt, "Paris") for prompt in PROMPTS[:4]]
TUNING = [
    EditRequest(prompt, "x", rephrases=(f"Say: {prompt}",), locality_prompts=(other,))
    for prompt, other in zip(PROMPTS[8:13], OTHERS, strict=True)
]


@pytest.fixture
def run(tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder) -> Any:
    def run(requests: Any = EDITS, model: Any = tiny_llama, **options: Any) -> Any:
        defaults = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
        hparams = options.pop("hparams", SETTINGS)
        tokenizer = options.pop("tokenizer", tiny_tokenizer)
        return fit(model, tokenizer, requests, hparams, **{**defaults, **options})

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hparams": "default"}, r"hparams: expected MeGHyperParams, got str \('default'\)"),
        ({"hparams": None}, "hparams: expected MeGHyperParams, got NoneType"),
        ({"encoder": "all-MiniLM-L6-v2"}, "encoder: expected TextEncoder or None, got str"),
        ({"runtime": {}}, "runtime: expected RuntimeConfig or None, got dict"),
        ({"store": "runs"}, r"store: expected ArtifactStore or None, got str \('runs'\)"),
        ({"processes": 2}, "processes: expected Processes or None, got int"),
    ],
)
def test_arguments_of_another_type_are_named(run: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        run(**options)


def test_a_name_is_no_settings_to_load_a_model_by() -> None:
    with pytest.raises(TypeError, match=r"hparams: expected MeGHyperParams, got str \('gpt2'\)"):
        load_model("gpt2")  # type: ignore[arg-type]


def test_tuning_facts_may_be_mappings_like_the_edits(run: Any) -> None:
    rows = [
        {
            "prompt": fact.prompt,
            "target_new": fact.target_new,
            "rephrases": list(fact.rephrases),
            "locality_prompts": list(fact.locality_prompts),
        }
        for fact in TUNING
    ]
    same, _ = run()
    theirs = [{**row, "locality": {"near": {"prompt": row["locality_prompts"]}}} for row in rows]
    given, _ = run(pseudo=rows, calibration=[without(row, "locality_prompts") for row in theirs])
    for name, value in same.gate.state_dict().items():
        assert torch.equal(value, given.gate.state_dict()[name])
    with pytest.raises(RequestError, match="pseudo, fact 1: expected an object with 'prompt'"):
        run(pseudo=[TUNING[0], "France"])
    with pytest.raises(RequestError, match="calibration, fact 0: field 'target_new' is missing"):
        run(calibration=[{"prompt": "x"}])
    with pytest.raises(RequestError, match="expected a list of facts for pseudo, got dict"):
        run(pseudo=rows[0])
    with pytest.raises(RequestError, match="pseudo, fact 0: field 'prompt' must be text"):
        run(pseudo=[EditRequest(5, "x")])  # type: ignore[arg-type]


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def test_fit_gives_a_routed_model_and_tells_what_happened(run: Any, tiny_llama: Any) -> None:
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    model, report = run()
    assert isinstance(model, MeGModel) and report.edits == 4
    assert list(report.seconds) == ["encoder", "collection", "gate", "generator"]
    assert report.seconds_per_edit == pytest.approx(sum(report.seconds.values()) / 4)
    assert report.calibration is not None
    assert float(model.gate.threshold) == pytest.approx(report.calibration.threshold)
    assert all(torch.equal(before[n], v) for n, v in tiny_llama.state_dict().items())
    failed = set(report.not_collected)
    assert failed == {
        e.prompt for e, ok in zip(EDITS, report.collection.success, strict=True) if not ok
    }


def test_tuning_facts_which_are_edited_in_another_spelling_are_left_out(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(context: Any, *_: Any) -> None:
        raise Stopped(context)

    monkeypatch.setattr("meg_editor.fitting.pipeline.EncoderStage", stop)
    twin = dataclasses.replace(TUNING[0], prompt=EDITS[0].prompt.replace(" ", " \u200b "))
    with pytest.raises(Stopped) as caught:
        run(pseudo=[*TUNING, twin], calibration=[twin, *TUNING])
    (context,) = caught.value.args
    assert list(context.pseudo) == list(context.calibration) == TUNING


def test_the_same_seed_gives_the_same_model(run: Any) -> None:
    first, second = run()[0], run()[0]
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_stages_run_once_for_the_same_inputs(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first, _ = run(store=ArtifactStore(tmp_path))
    monkeypatch.setattr(shards, "collect", lambda *_: pytest.fail("collected again"))
    second, report = run(store=ArtifactStore(tmp_path))
    assert report.resumed == ["encoder", "collection", "gate", "generator"]
    assert torch.equal(
        first.neurons(first.route(PROMPTS[:4])), second.neurons(second.route(PROMPTS[:4]))
    )


def test_an_interrupted_run_resumes_after_its_last_stage(
    run: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    real = GeneratorStage.compute
    monkeypatch.setattr(GeneratorStage, "compute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(store=ArtifactStore(tmp_path))
    monkeypatch.setattr(GeneratorStage, "compute", real)
    _, report = run(store=ArtifactStore(tmp_path))
    assert report.resumed == ["encoder", "collection", "gate"]


def test_another_request_runs_collection_again(run: Any, tmp_path: Path) -> None:
    run(store=ArtifactStore(tmp_path))
    _, report = run([*EDITS[:3], EditRequest(PROMPTS[5], "Lima")], store=ArtifactStore(tmp_path))
    assert report.resumed == ["encoder"]


def test_duplicates_are_merged_and_known_answers_reported(
    run: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    (answer,) = greedy_answers(tiny_llama, tiny_tokenizer, [PROMPTS[6]], 3)
    known = EditRequest(PROMPTS[6], answer)
    _, report = run([*EDITS, EDITS[0]])
    assert (report.edits, report.duplicates) == (4, 1)
    if answer and len(tiny_tokenizer(answer)["input_ids"]) == 4:  # it stops where the target does
        assert known.prompt in run([*EDITS, known])[1].already_correct


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers": [7]}, ValueError, "layer 7 does not exist.*3 decoder layers"),
        ({"max_length": 4}, RequestError, "request 0.*tokens, more than 4"),
        ({"mlp_module_tmp": "model.layers.{}.no"}, ValueError, "no' does not exist"),
    ],
)
def test_bad_settings_are_named(run: Any, change: Any, error: Any, words: str) -> None:
    hparams = MeGHyperParams.from_dict({**SETTINGS.to_dict(), **change})
    with pytest.raises(error, match=words):
        run(hparams=hparams)


def test_bad_models_and_requests_are_refused(run: Any, tiny_llama: Any) -> None:
    broken = copy.deepcopy(tiny_llama)
    broken.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight.*NaN"):
        run(model=broken)
    with pytest.raises(RequestError, match="different answers"):
        run([EDITS[0], EditRequest(EDITS[0].prompt, "Lima")])
    with pytest.raises(RequestError, match="no edit requests"):
        run([])
    with pytest.raises(RequestError, match="more than 128"):
        run([EditRequest("word " * 200, "x")])
    edited, _ = run()
    with pytest.raises(ValueError, match=r"MeGModel: pass its \.base"):
        run(model=edited)


def test_what_is_no_model_and_no_tokenizer_is_named(run: Any, tiny_llama: Any) -> None:
    for model, words in (
        (torch.nn.DataParallel(tiny_llama), r"got DataParallel: pass its \.module"),
        (tiny_llama.model, "expected a causal LM of transformers.*got LlamaModel"),
        ("tiny-llama", "got str"),
    ):
        with pytest.raises(TypeError, match=words):
            run(model=model)
    with pytest.raises(TypeError, match="tokenizer: expected one of transformers, got NoneType"):
        run(tokenizer=None)


def test_a_padding_token_without_an_embedding_is_named(
    run: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    rows = tiny_llama.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<{n}>" for n in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<pad too far>"})
    with pytest.raises(ValueError, match=f"padding token has the id {rows}.*embeddings for {rows}"):
        run(tokenizer=tokenizer)


def test_a_model_in_training_mode_is_fitted_as_another(run: Any, tiny_llama: Any) -> None:
    """Dropout made answers and neurons a gamble."""
    usual = run()[0].collected
    model = copy.deepcopy(tiny_llama)
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    edited, _ = run(model=model.train())
    assert torch.equal(edited.collected, usual)
    assert not any(module.training for module in model.modules())


def test_a_model_spread_by_a_device_map_is_fitted_alike(
    run: Any, tiny_llama: Any, tmp_path: Path
) -> None:
    """accelerate moves weights from the disk for each pass; a GPU of its own would do as well."""
    plain, _ = run()
    spread = copy.deepcopy(tiny_llama)
    names = [name for name, _ in spread.model.named_children() if name != "layers"]
    places: dict[str, Any] = {"lm_head": "cpu", **{f"model.{name}": "cpu" for name in names}}
    for layer in range(len(spread.model.layers)):
        places[f"model.layers.{layer}"] = "disk" if layer != 1 else "cpu"
    spread = dispatch_model(
        spread, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert spread.model.layers[0].mlp.up_proj.weight.is_meta
    model, _ = run(model=spread)
    assert plain.collected is not None and model.collected is not None
    # Fused attention here, plain on the working copy there.
    torch.testing.assert_close(plain.collected, model.collected, atol=1e-3, rtol=1e-3)
    assert model.answer(PROMPTS[:6]) == plain.answer(PROMPTS[:6])
    assert spread.model.layers[0].mlp.up_proj.weight.is_meta


# ------------------------------------------------------------------- what a key holds

STAGES = ["encoder", "collection", "gate", "generator"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, []),
        ({"subject": "Atlantis"}, ["gate"]),
        ({"target_new": "Lima"}, ["collection", "gate", "generator"]),
        ({"calibration": "another fact"}, ["gate"]),
        ({"calibration": "another neighbour"}, ["gate"]),
        ({"pseudo": "another fact"}, ["encoder", "gate", "generator"]),
        ({"model": "one weight"}, ["collection", "gate", "generator"]),
        ({"model": "rope_theta"}, ["collection", "gate"]),
        ({"tokenizer": "chat_template"}, ["collection", "gate"]),
        ({"encoder": "layer_norm_eps"}, STAGES[:1] + STAGES[2:]),
        ({"gate_name_weight": 0.3}, ["gate"]),
        ({"gate_state_weight": 0.25}, ["gate"]),
        ({"collection_steps": 19}, ["collection", "gate", "generator"]),
        ({"generator_steps": 31}, ["generator"]),
        ({"sampling_steps": 3}, ["generator"]),
        ({"encoder_lr": 2e-4}, ["encoder", "gate", "generator"]),
        ({"seed": 5}, STAGES),
        ({"device": "cpu", "batch_size": 7, "api_key": "x"}, []),
        ({"runtime": RuntimeConfig(collection_batch_size=3, neuron_cache=0)}, []),
    ],
    ids=str,
)
def test_a_stage_runs_again_exactly_if_something_it_reads_changed(
    run: Any,
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tiny_encoder: TextEncoder,
    tmp_path: Path,
    change: dict[str, Any],
    again: list[str],
) -> None:
    run(store=ArtifactStore(tmp_path))
    edits, options = list(EDITS), dict[str, Any]()
    for name, value in change.items():
        if name in ("subject", "target_new"):
            edits[1] = dataclasses.replace(edits[1], **{name: value})
        elif value == "rope_theta":
            options["model"] = copy.deepcopy(tiny_llama)
            options["model"].config.rope_parameters = {"rope_theta": 77.0}
        elif name == "tokenizer":
            options["tokenizer"] = copy.deepcopy(tiny_tokenizer)
            options["tokenizer"].chat_template = "{{ messages[-1]['content'] }}, please"
        elif name == "encoder":
            options["encoder"] = copy.deepcopy(tiny_encoder)
            options["encoder"].model.config.layer_norm_eps = 0.1
        elif name == "model":
            options["model"] = copy.deepcopy(tiny_llama)
            options["model"].model.layers[2].self_attn.v_proj.weight[3] += 0.5
        elif value == "another neighbour":
            other = dataclasses.replace(TUNING[2], locality_prompts=("Something else",))
            options[name] = [*TUNING[:2], other, *TUNING[3:]]
        elif name in ("calibration", "pseudo"):
            other = dataclasses.replace(TUNING[2], rephrases=("Another question",))
            options[name] = [*TUNING[:2], other, *TUNING[3:]]
        elif name == "runtime":
            options[name] = value
        else:
            options["hparams"] = options.get("hparams", SETTINGS).changed(**{name: value})
    _, report = run(edits, store=ArtifactStore(tmp_path), **options)
    assert [stage for stage in STAGES if stage not in report.resumed] == again


def test_rounding_on_purpose_is_in_the_keys(run: Any, tmp_path: Path) -> None:
    run(store=ArtifactStore(tmp_path))
    half = RuntimeConfig(collection_bfloat16=True)
    _, report = run(store=ArtifactStore(tmp_path), runtime=half)
    assert not {"collection", "gate"} & set(report.resumed)


def test_a_stage_can_read_no_setting_it_has_not_declared() -> None:
    some = declared(SETTINGS, ["encoder_lr"])
    assert some.encoder_lr == SETTINGS.encoder_lr
    with pytest.raises(AttributeError, match="has not declared that it reads 'encoder_steps'"):
        _ = some.encoder_steps


def test_a_fit_works_without_gradients_around_it(run: Any) -> None:
    with torch.no_grad():
        model, _ = run()
    assert model.answer(PROMPTS[0], 2)


def test_a_report_prints_short(run: Any) -> None:
    _, report = run([*EDITS, EDITS[0]])
    assert len(repr(report)) < 600 and "tensor" not in repr(report)
    assert "4 edits in" in repr(report) and "1 repeated rows" in repr(report)


@pytest.mark.parametrize("gate", ["similarity", "familiarity", "verified"])
def test_fit_whatever_defaults_torch_has(run: Any, gate: str) -> None:
    try:
        torch.set_default_device("meta")
        with torch.inference_mode():
            model, report = run(hparams=SETTINGS.changed(gate=gate, verifier_steps=2))
    finally:
        torch.set_default_device(None)
    assert report.edits == 4 and len(model.answer(PROMPTS[:2])) == 2


# ----------------------------------------------------------------------- generator: auto


def test_auto_keeps_a_dit_only_where_every_fact_is_answered_alike(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hparams = SETTINGS.changed(generator="auto")
    assert run(hparams=hparams)[0].hparams.generator == "bank"
    monkeypatch.setattr("meg_editor.fitting.generator_stage.smallest", lambda *_: "dit")
    for lost, kind in ((0, "dit"), (2, "bank")):
        monkeypatch.setattr(GeneratorStage, "_lost", lambda *_, lost=lost: lost)
        model, report = run(hparams=hparams)
        assert model.hparams.generator == kind and type(model.generator) is GENERATORS[kind]
        assert report.collection is not None
    assert "answers 2 of 4 facts otherwise" in caplog.text


def test_what_is_lost_is_counted_by_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DiT without training loses every fact its neuron has learned."""
    monkeypatch.setattr("meg_editor.fitting.generator_stage.smallest", lambda *_: "dit")
    counts: list[int] = []
    real = GeneratorStage._lost

    def count(*arguments: Any) -> int:
        counts.append(real(*arguments))
        return counts[-1]

    monkeypatch.setattr(GeneratorStage, "_lost", count)
    hparams = MeGHyperParams.preset(
        "default", device="cpu", encoder_steps=0, gate_threshold=0.8, generator_steps=1,
        generator_width=64, generator_depth=1, generator_epochs=1,
    )  # fmt: skip
    facts = sweep_requests(3, 0)
    model, report = fit(*load_model(hparams), facts, hparams)
    assert report.collection is not None and bool(report.collection.success.all())
    assert counts == [3] and model.hparams.generator == "bank"
    assert model.answer([fact.prompt for fact in facts]) == [fact.target_new for fact in facts]
