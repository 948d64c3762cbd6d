"""What a benchmark measures: a data set, its facts by their use, methods, numbers of edits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from meg_editor.benchmark.methods import Method
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import EvaluationCase, MultiHopCase
from meg_editor.data.preprocessing import locality_keys
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.data.relations import Relations
from meg_editor.data.splits import Split, choose, known_texts, tuning_requests
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder


@dataclass(frozen=True)
class FittingFacts:
    """What the fitting stages may see: facts, none of them edited, and known texts.

    Attributes:
        pseudo: facts which tune encoders and train hypernetworks.
        calibration: facts which choose thresholds and settings.
        texts: what the model should go on knowing.
    """

    pseudo: list[EditRequest]
    calibration: list[EditRequest]
    texts: list[str]

    @classmethod
    def of(cls, split: Split, pseudo: int = 2000, calibration: int = 400) -> FittingFacts:
        """Up to so many facts of the two sets of `split` which are never edited."""
        phrasings = Relations([*split.pseudo, *split.calibration])
        asked = locality_keys(split.edited)
        return cls(
            # Encoders need many examples of other questions; a threshold is not about these alone.
            tuning_requests(split.pseudo, pseudo, 0, phrasings, others=16, unless=asked),
            tuning_requests(split.calibration, calibration, 0, phrasings, unless=asked),
            known_texts(split.pseudo),
        )


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        data: the name of the data set.
        split: its facts: those to edit, and those of the fitting stages.
        methods: the rows of the tables.
        edits: numbers of edits.
        seeds: how many samples of the edits, 0, 1, ….
        facts: what the fitting stages may see; None: `FittingFacts.of(split)`.
        hparams: the prompt template, and the encoder which compares long answers.
        max_asked: number of edits to ask about, sampled at random, while all are in place.
        timed: number of edits, and of other queries, answered one by one for the latency.
        whole_pool: edit facts too whose target the model gives anyway.
        sample: (edits, seed) -> cases, where these are not chosen from `split.edited`.
        multi_hop: chains of facts; those with all their edits are evaluated.
        forms: prompt forms in which at most 64 of the evaluated edits are asked for too.
        sequential: edits arrive in chunks of so many, one after another, as the data set orders
            them; None: all at once.
        natural: ask anew without a limit at the target's length (`evaluation.natural`).

    Raises:
        ValueError: two methods of one name, whose cells would be taken for each other's.
    """

    data: str
    split: Split
    methods: Sequence[Method]
    edits: Sequence[int] = (1024,)
    seeds: int = 3
    facts: FittingFacts | None = None
    hparams: MeGHyperParams = field(default_factory=lambda: MeGHyperParams.preset("default"))
    multi_hop: Sequence[MultiHopCase] = ()
    max_asked: int | None = None
    timed: int = 20
    whole_pool: bool = False
    sample: Callable[[int, int], Sequence[EvaluationCase]] | None = None
    forms: Sequence[PromptForm] = ()
    sequential: int | None = None
    natural: bool = False

    def __post_init__(self) -> None:
        names = Counter(method.name for method in self.methods)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"methods: expected different names, got {twice[0]!r} twice")

    def cases(self, pool: Sequence[EvaluationCase], count: int, seed: int) -> list[EvaluationCase]:
        """So many edits from `pool`: a sample, one after another in the order of the data set.

        Raises:
            ValueError: there are fewer, or two edits of one prompt.
        """
        chosen = list(self.sample(count, seed)) if self.sample else choose(pool, count, seed)
        prompts = Counter(case.request.key for case in chosen)
        if twice := [prompt for prompt, number in prompts.items() if number > 1]:
            raise ValueError(
                f"edits: expected different prompts, got {twice[0]!r} twice; "
                "`without_conflicts` of meg_editor.data.preprocessing takes the first of each"
            )
        if self.sequential is None or self.sample:
            return chosen
        place = {case.request: index for index, case in enumerate(self.split.edited)}
        return sorted(chosen, key=lambda case: place[case.request])

    @property
    def protocol(self) -> str:
        """What is strict about it, as a suffix of file names: "-sequential-1-natural", or ""."""
        sequence = "" if self.sequential is None else f"-sequential-{self.sequential}"
        return sequence + ("-natural" if self.natural else "")

    @cached_property
    def options(self) -> dict[str, Any]:
        """Keywords of every method: `pseudo`, `calibration` and `texts` of `FittingFacts`."""
        facts = self.facts or FittingFacts.of(self.split)
        return {entry.name: getattr(facts, entry.name) for entry in dataclasses.fields(facts)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors (B, E), by the encoder as it is before any tuning."""
        name = resolve_model_name(self.hparams.encoder_name)
        return TextEncoder.from_pretrained(name).encode(texts)
