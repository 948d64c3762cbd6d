"""TextEncoder: queries -> unit vectors, tuned so that paraphrases meet (section 4.1 a)."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from meg_editor.lm.one_load import one_load
from meg_editor.lm.sources import load_options
from meg_editor.lm.tokens import by_length
from meg_editor.requests.request import EditRequest
from meg_editor.routing.pooling import check_pooling, own_pooling, pool
from meg_editor.runtime.progress import progress_bar

_CHUNK = 256
_BATCH = 64  # facts in a tuning step
_TEMPERATURE = 0.05  # τ of InfoNCE (eq. 5)
_IGNORED = "_keys_to_ignore_on_load_unexpected"  # of transformers' classes
_UNUSED = (r"(^|\.)pooler\.", r"^(cls|lm_head|classifier|qa_outputs|vocab_\w+)\.")
_LOCATION = ("local_files_only", "trust_remote_code", "revision", "token", "cache_dir")


class TextEncoder(nn.Module):
    """A text encoder of transformers with a sentence pooling.

    Args:
        pooling: see `meg_editor.routing.pooling`.

    Attributes:
        dimension: E, the size of an embedding.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> tuple(encoder.encode(["The capital of France is"]).shape) == (1, encoder.dimension)
        True
    """

    def __init__(self, model: Any, tokenizer: Any, pooling: str = "cls") -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pooling = check_pooling(pooling)
        self.dimension = int(model.config.hidden_size) * len(pooling.split("+"))
        limit = getattr(model.config, "max_position_embeddings", None) or 512
        self.max_length = min(int(limit), tokenizer.model_max_length, 512)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, pooling: str | None = None, device: str = "cpu"
    ) -> TextEncoder:
        """Load any transformers encoder by hub id or local directory, in float32.

        Without `pooling` it is that which a sentence-transformers model names, else CLS.

        Raises:
            OSError: no such encoder; or it is on the hub, which cannot be reached, and not in its
                cache.
        """
        options = load_options(name, "encoder")
        # Questions end with what they ask: a long text keeps its end. Padding behind a text shifts
        # no position.
        sides = {"truncation_side": "left", "padding_side": "right"}
        tokenizer = AutoTokenizer.from_pretrained(name, **sides, **options)
        if tokenizer.pad_token_id is None:  # any token will do: it is masked
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        network = load_network(name, dtype=torch.float32, **options)
        return cls(network, tokenizer, pooling or own_pooling(name, **options)).to(device)

    def save_pretrained(self, folder: Path) -> None:
        """Write weights (safetensors), config and tokenizer to `folder`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts with gradients: list of B strings -> (B, E), L2-normalised."""
        batch = self._tokens(texts, return_tensors="pt")
        # transformers looks whether a mask hides anything, and waits for the device to see it.
        padded = not bool(batch["attention_mask"].all())
        batch = batch.to(next(self.parameters()).device, non_blocking=True)
        mask = batch["attention_mask"]
        output = self.model(input_ids=batch["input_ids"], attention_mask=mask if padded else None)
        pooled = pool(output[0], mask, self.pooling)
        return F.normalize(pooled.float(), dim=-1)

    def is_word(self, word: str) -> bool:
        """Whether it has a token for a word as a whole."""
        return word in self._vocabulary

    def unread(self, texts: Sequence[str]) -> list[frozenset[str]]:
        """The words of each text that its tokenizer has no token for, of its last `max_length`.

        Nothing of a byte-level tokenizer, which reads all, nor of one without offsets.
        """
        unknown = self.tokenizer.unk_token_id
        if not texts or unknown is None or not self.tokenizer.is_fast:
            return [frozenset()] * len(texts)
        batch = self._tokens(texts, return_offsets_mapping=True)
        return [
            frozenset(
                text[start:end]
                for token, (start, end) in zip(ids, offsets, strict=True)
                if token == unknown and start < end  # in some it pads, too
            )
            for text, ids, offsets in zip(
                texts, batch["input_ids"], batch["offset_mapping"], strict=True
            )
        ]

    def _tokens(self, texts: Sequence[str], **options: Any) -> Any:
        # Padding and truncation always alike: changing them is what threads cannot do at once.
        return self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, **options
        )

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        """Its tokens, without the marks of a word's beginning."""
        # To tokenize would change options of the tokenizer, which other threads are using.
        return frozenset(token.lstrip("Ġ▁") for token in self.tokenizer.get_vocab())

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed any number of texts without gradients: list of B strings -> (B, E)."""
        if not texts:
            return torch.empty(0, self.dimension, device=next(self.parameters()).device)
        # Equal lengths together: no padding to pay for.
        chunks = list(by_length([len(text) for text in texts], _CHUNK))
        bar = progress_bar(chunks, "embeddings", "batch")
        parts = [self([texts[index] for index in chunk]) for chunk in bar]
        inverse = torch.tensor([row for chunk in chunks for row in chunk]).argsort()
        return torch.cat(parts)[inverse.to(parts[0].device, non_blocking=True)]


def load_network(name: str | Path, **options: Any) -> Any:
    """`AutoModel.from_pretrained` without BERT's pooler, which checkpoints often lack.

    Poolers and heads in a checkpoint are not used, and not reported.
    """
    located = {key: options[key] for key in _LOCATION if key in options}
    with one_load():
        config = AutoConfig.from_pretrained(name, **located)
        kind = MODEL_MAPPING.get(type(config), None)
        if not isinstance(kind, type):  # code of a repository
            return AutoModel.from_pretrained(name, **options)
        # transformers reports what it does not use, unless the class says that it is known.
        known = [*(getattr(kind, _IGNORED) or ()), *_UNUSED]
        silent: Any = type(kind.__name__, (kind,), {_IGNORED: known, "__module__": kind.__module__})
        if "add_pooling_layer" in signature(kind).parameters:
            options["add_pooling_layer"] = False
        loaded = silent.from_pretrained(name, config=config, **options)
        (loaded[0] if isinstance(loaded, tuple) else loaded).__class__ = kind
        return loaded


def tune_encoder(
    encoder: TextEncoder,
    pseudo: Sequence[EditRequest],
    *,
    objective: Literal["infonce", "mse", "frozen"] = "infonce",
    tuned_layers: Literal["last", "all"] = "last",
    hard_negatives: bool = False,
    steps: int = 100,
    lr: float = 1e-4,
    seed: int = 0,
) -> list[float]:
    """Pull paraphrases of pseudo-knowledge together, in place; returns the loss of each step.

    "infonce" is eq. 5: the original prompts of the batch are the candidates, with
    `hard_negatives` also the facts' locality prompts. "mse" draws a paraphrase to where the
    untuned encoder put its original (table 4); "frozen" does nothing.

    Raises:
        ValueError: fewer than two pseudo facts have rephrases.
        FloatingPointError: the loss is not finite; the encoder is left as it was.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> pseudo = [
        ...     EditRequest("The capital of Peru is", "Lima", rephrases=("Peru's capital is",)),
        ...     EditRequest("Emma was written by", "Austen", rephrases=("Who wrote Emma?",)),
        ... ]
        >>> len(tune_encoder(encoder, pseudo, steps=2))
        2
    """
    if objective == "frozen" or steps < 1:
        return []
    usable = [fact for fact in pseudo if fact.rephrases]
    if len(usable) < 2:
        raise ValueError(
            f"tuning the encoder needs pseudo facts with rephrases, got {len(usable)} of "
            f"{len(pseudo)}; give more, or set encoder_tuning: frozen"
        )
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    parameters = _tuned_parameters(encoder.model, tuned_layers)
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    rng = random.Random(seed)
    loss_of = _infonce if objective == "infonce" else _mse(encoder)
    losses: list[float] = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for step in progress_bar(range(steps), "encoder"):
            # A short warm-up and a linear decay, as is usual for fine-tuning BERT.
            scale = min(1.0, (step + 1) / (0.1 * steps + 1), (steps - step) / (0.5 * steps))
            optimizer.param_groups[0]["lr"] = lr * scale
            facts = rng.sample(usable, min(_BATCH, len(usable)))
            loss = loss_of(encoder, facts, rng, hard_negatives)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"encoder tuning: loss is {loss.item()} at step {step}; lower encoder_lr ({lr})"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
    except BaseException:
        encoder.load_state_dict(before)
        raise
    finally:
        encoder.requires_grad_(False)
    return losses


def _infonce(
    encoder: TextEncoder,
    facts: Sequence[EditRequest],
    rng: random.Random,
    hard_negatives: bool,
) -> Tensor:
    queries = encoder([rng.choice(fact.rephrases) for fact in facts])
    candidates = [fact.prompt for fact in facts]
    if hard_negatives:
        candidates += [rng.choice(f.locality_prompts) for f in facts if f.locality_prompts]
    logits = queries @ encoder(candidates).T / _TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(facts), device=logits.device))


def _mse(encoder: TextEncoder) -> Callable[..., Tensor]:
    frozen = copy.deepcopy(encoder)
    cache: dict[str, Tensor] = {}

    def loss(
        encoder: TextEncoder,
        facts: Sequence[EditRequest],
        rng: random.Random,
        hard_negatives: bool,
    ) -> Tensor:
        new = [fact.prompt for fact in facts if fact.prompt not in cache]
        cache.update(zip(new, frozen.encode(new), strict=True))
        targets = torch.stack([cache[fact.prompt] for fact in facts])
        queries = encoder([rng.choice(fact.rephrases) for fact in facts])
        distances: Tensor = (queries - targets).square().sum(-1)
        return distances.mean()

    return loss


def _tuned_parameters(model: Any, layers: Literal["last", "all"]) -> list[nn.Parameter]:
    if layers == "all":
        return list(model.parameters())
    count = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise ValueError(
            f"encoder_tuned_layers: last: no list of {count} layers in {type(model).__name__}; "
            "use encoder_tuned_layers: all"
        )
    return list(stacks[0][-1].parameters())
