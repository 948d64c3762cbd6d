"""Tiny random models, built in memory: no hub, no files, the same in every run."""

from __future__ import annotations

import atexit
import copy
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from synthetic_neurons import Collector
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits import live
from meg_editor.edits.edit import edits_of
from meg_editor.edits.edition import Edition
from meg_editor.generators import GENERATORS, NeuronBank
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import GATES
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.router import build_index

# Nothing in the user's cache decides a test, and no test leaves anything in it.
os.environ["MEG_EDITOR_CACHE"] = tempfile.mkdtemp(prefix="meg-editor-tests-")
atexit.register(shutil.rmtree, os.environ["MEG_EDITOR_CACHE"], ignore_errors=True)
torch.set_num_threads(1)  # at these sizes several threads only wait for each other
gc.freeze()  # what is imported is no garbage: transformers collects often, in all there is

_PLACES = ("Atlantis", "Borduria", "Cimmeria", "Dinotopia", "Erewhon", "Freedonia", "Genovia")
_ASKED = ("The capital of {} is", "The language of {} is", "The river of {} is")
PROMPTS = [question.format(place) for question in _ASKED for place in _PLACES]
OTHERS = ["Who wrote the book?", "Water boils at", "2 + 2 =", "My cat sat on", "Once upon a time"]


def _tokenizer(specials: dict[str, str], template: str) -> Any:
    """Byte-level BPE, which decodes to the very text it was given."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*PROMPTS, *OTHERS] * 2, trainer)
    ids = [(token, backend.token_to_id(token)) for token in specials.values()]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return FastTokenizer(tokenizer_object=backend, model_max_length=128, **specials)


def tokenizer_of_llama() -> Any:
    """With <s> in front, like Llama's."""
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return _tokenizer(specials, "<s> $A")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test prepares is not there for the next."""
    monkeypatch.setenv("MEG_EDITOR_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Of `tiny_llama`."""
    return tokenizer_of_llama()


def build_tiny_llama(tokenizer: Any) -> Any:
    """A random Llama, D = 32, 3 layers."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,  # larger than usual: the logits are far apart
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: Any) -> Any:
    """`build_tiny_llama`. Shared by all tests: copy it before changing it."""
    return build_tiny_llama(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_encoder() -> TextEncoder:
    """A TextEncoder around a random BERT, E = 16. Shared by all tests: copy before changing it."""
    specials = {"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}
    tokenizer = _tokenizer(specials, "<cls> $A <sep>")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=1.0,  # embeddings far apart
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TextEncoder(BertModel(config).float(), tokenizer)


@pytest.fixture(scope="session")
def make_meg_model(
    tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder
) -> Callable[..., MeGModel]:
    """make_meg_model(generator="bank", gate="similarity", n=6, **hyper_parameters).

    A MeGModel with n edits of `PROMPTS` and random neurons so large that answers change. Its gate
    takes all edited prompts for edits; of `OTHERS` a similarity gate takes none, a Familiarity
    Network, which learns little from so few, some. It has its own copies of LLM and encoder.
    """

    def make(
        generator: str = "bank",
        gate: str = "similarity",
        n: int = 6,
        runtime: RuntimeConfig | None = None,
        **changes: Any,
    ) -> MeGModel:
        settings = {
            "layers": [1],
            "gate_state_weight": 0.5,
            "familiarity_epochs": 200,
            "generator_width": 16,
            "generator_depth": 2,
            "generator_patch_size": 10,
        }
        hparams = MeGHyperParams(**{**settings, **changes}, generator=generator, gate=gate)
        base, encoder = copy.deepcopy(tiny_llama), copy.deepcopy(tiny_encoder)
        spec = NeuronSpec.from_model(base, hparams.layer)
        edits = [
            EditRequest(prompt, f"answer {row}", rephrases=(f"Say: {prompt}",))
            for row, prompt in enumerate(PROMPTS[:n])
        ]
        reader = PromptReader(tiny_tokenizer, hparams.prompt_template)
        states = HiddenStateReader(base, tiny_tokenizer, spec, reader)
        index = build_index(edits, encoder, states, states.usual(OTHERS), hparams)
        anchors = index.anchors
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            decide = GATES[gate].build(hparams, encoder.dimension)
            decide.fit(anchors, seed=1)
            source = GENERATORS[generator].build(hparams, encoder.dimension, spec.size, n)
            if isinstance(source, NeuronBank):
                source.fit(anchors, torch.randn(n, spec.size))
            else:
                for parameter in source.parameters():  # a DiT starts with zeros
                    parameter.normal_(0, 0.3)
                source.mean.normal_()
                source.scale.fill_(1.0)

        def score(texts: list[str]) -> Tensor:
            z = encoder.encode(texts)
            match = index.search(z, texts, lambda rows: states.read([texts[r] for r in rows]))
            return decide.score(z, match.score)

        inside, outside = score(PROMPTS[:n]), score(OTHERS)
        lowest = inside.min()
        decide.threshold.fill_(float(lowest + outside[outside < lowest].max()) / 2)
        return MeGModel(
            base,
            tiny_tokenizer,
            hparams,
            spec,
            encoder,
            Edition(edits_of(edits), decide, index, source),
            runtime,
        )

    return make


@pytest.fixture
def exact_model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    """With six stored edits, each found by its very prompt alone."""
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)
    return model


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    """Neurons of later edits are random ones, not collected."""
    monkeypatch.setattr(live, "collect", collector := Collector())
    return collector


def at_once(count: int, work: Callable[[int], None]) -> None:
    """`work(0)` ... `work(count - 1)` in threads which start together; raises the first error."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def guarded(number: int) -> None:
        try:
            barrier.wait(20)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
