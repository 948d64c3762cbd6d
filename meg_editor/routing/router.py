"""Router: prompts -> which ask for an edit, which one, with what score (eq. 9 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.requests.prompts import ReadPrompt
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import excerpt, surface
from meg_editor.requests.turns import ends_of, under
from meg_editor.routing.contrasts import asks_otherwise
from meg_editor.routing.edit_texts import EditTexts
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import Match, QueryIndex
from meg_editor.routing.pairs import pairs_of, verify
from meg_editor.routing.routing import Routing
from meg_editor.routing.verifier import Verifier, fact_text

_UNDER_SYSTEM = 300  # characters of a turn that are read under a system text
_EPS = 1e-6  # least distance of a probability from 0 and 1, whose log-odds are finite


def build_index(
    edits: Sequence[EditRequest],
    encoder: TextEncoder,
    states: HiddenStateReader,
    usual: Tensor | None,
    hparams: MeGHyperParams,
) -> QueryIndex:
    """Index of the queries of N edits.

    Args:
        usual: mean and deviation (2, D) of the features of other queries, from `states.usual`.
        hparams: a `gate_state_weight` that is not known yet counts as 0.
    """
    queries = [surface(edit.prompt) for edit in edits]
    state_weight = hparams.gate_state_weight or 0.0
    return QueryIndex(
        encoder.encode(queries),
        [edit.subject for edit in edits],
        states.read(queries) if state_weight else None,
        usual,
        name_weight=hparams.gate_name_weight,
        state_weight=state_weight,
    )


class Router:
    """Routes prompts (eq. 9 and 10): encoder, index of the edited queries, hidden states, gate.

    With a verifier the index and the gate's threshold only retrieve: any span of a prompt may
    resemble an edit, and the verifier decides whether the whole prompt asks for it. Without one,
    the gate decides, by the spans which end the prompt.

    Args:
        edits: the N edits of the index.
        row_of_key: the row of each, by `EditRequest.key`.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(model, tokenizer, facts, hparams)
        >>> edited.router.route([ReadPrompt.of("The capital of France is")])[0].is_edit
        True
    """

    def __init__(
        self,
        encoder: TextEncoder,
        gate: Gate,
        index: QueryIndex,
        states: HiddenStateReader,
        edits: Sequence[EditRequest] = (),
        verifier: Verifier | None = None,
        row_of_key: Mapping[str, int] | None = None,
    ) -> None:
        self.encoder, self.gate, self.index, self.states = encoder, gate, index, states
        self.edits, self.verifier = edits, verifier
        self.texts = EditTexts(edits, encoder, index.names, row_of_key)

    @property
    def threshold(self) -> float:
        """Lowest score at which a prompt, read by itself, is an edit."""
        return self.verifier.threshold if self.verifier else float(self.gate.threshold)

    @property
    def measure(self) -> str:
        """What that score is: the verifier's "probability", or `Gate.measure`."""
        return "probability" if self.verifier else self.gate.measure

    @torch.no_grad()
    def route(self, prompts: Sequence[ReadPrompt]) -> Routing:
        """Route B prompts; of a prompt's spans the one with the highest score counts."""
        if not len(self.index.anchors):
            return self._nothing(prompts)
        if self.verifier is None:
            return self._by_similarity(prompts)
        verifier = self.verifier
        routing = self._verified(verifier, prompts, verifier.threshold)
        if verifier.dialogue is not None:
            routing = self._with_dialogues(verifier, routing, prompts, verifier.dialogue)
        if verifier.system is not None:
            routing = self._under_system(verifier, routing, prompts, verifier.system)
        return routing

    @torch.no_grad()
    def goes_back(self, prompts: Sequence[ReadPrompt]) -> Tensor | None:
        """Scores (B,) of the last turns of B prompts, at least 0 for one that may go back to an
        earlier turn; None where any may."""
        follow_up = self.verifier.follow_up if self.verifier else None
        if follow_up is None or not prompts:
            return None
        turns = self.encoder.encode([surface(read.closing[0]) for read in prompts])
        scores: Tensor = follow_up(turns)
        return scores.cpu()

    def _with_dialogues(
        self, verifier: Verifier, routing: Routing, prompts: Sequence[ReadPrompt], limit: float
    ) -> Routing:
        """A turn which asks for no edit may go back to one that did, if it looks like one."""
        found = routing.is_edit.tolist()
        dialogues = {
            row: prompt.dialogue
            for row, prompt in enumerate(prompts)
            if prompt.dialogue and not found[row]
        }
        scores = self.goes_back([prompts[row] for row in dialogues])
        if scores is not None:
            allowed = dict(zip(dialogues, (scores >= 0).tolist(), strict=True))
            dialogues = {row: read for row, read in dialogues.items() if allowed[row]}
        if not dialogues:
            return routing
        threshold = max(verifier.threshold, limit)
        further = self._verified(verifier, list(dialogues.values()), threshold)
        # "And how wide is it?" goes back to a question for the height, and asks otherwise.
        differs = [
            query.is_edit and asks_otherwise(self.edits[query.edit], prompts[row].closing[0])
            for row, query in zip(dialogues, further, strict=True)
        ]
        is_edit = further.is_edit & ~torch.tensor(differs, device=further.is_edit.device)
        return routing.improved(list(dialogues), replace(further, is_edit=is_edit))

    def _under_system(
        self, verifier: Verifier, routing: Routing, prompts: Sequence[ReadPrompt], limit: float
    ) -> Routing:
        """A system text may ask for something else: "Translate what the user writes"."""
        found = routing.is_edit.tolist()
        rows = [
            row
            for row, prompt in enumerate(prompts)
            if prompt.system and found[row] and self.texts.row_of(prompt.whole) is None
        ]
        if not rows:
            return routing
        routed = [routing[row] for row in rows]
        parts = [
            (prompts[row].of_spans(routing.spans[row]).text, query.question)
            for row, query in zip(rows, routed, strict=True)
        ]
        probabilities = verifier.probability(
            [
                under(
                    prompts[row].system,
                    self.texts.spelled(query.edit, excerpt(*part, _UNDER_SYSTEM)),
                )
                for row, query, part in zip(rows, routed, parts, strict=True)
            ],
            [fact_text(self.edits[query.edit]) for query in routed],
        )
        if verifier.system_text is not None:
            systems = [ends_of(prompts[row].system) for row in rows]
            texts = list(dict.fromkeys(systems))  # most prompts of a batch have the same
            scores = verifier.system_text(self.encoder.encode(texts)).cpu()
            shift = scores[[texts.index(text) for text in systems]]
            probabilities = torch.sigmoid(torch.logit(probabilities, _EPS) + shift)
        limit = min(verifier.threshold, limit)
        refused = {
            row: sure
            for row, sure in zip(rows, probabilities.tolist(), strict=True)
            if sure < limit
        }
        return routing.refused(refused, limit)

    def _nothing(self, prompts: Sequence[ReadPrompt]) -> Routing:
        """Routing of B prompts where nothing is edited."""
        anchors, spans = self.index.anchors, [prompt.closing for prompt in prompts]
        none = torch.full((len(prompts),), -1, device=anchors.device)
        low = torch.full((len(prompts),), -torch.inf, device=anchors.device)
        embeddings = anchors.new_zeros(len(prompts), anchors.shape[1])
        threshold = torch.tensor(self.threshold, device=anchors.device)
        return Routing(
            spans, torch.zeros_like(none), embeddings, none >= 0, low, threshold, none, low
        )

    def _retrieve(self, flat: Sequence[str], min_score: float | Tensor) -> tuple[Tensor, Match]:
        """Embeddings (S, E) of S spans, and the edits that each resembles most."""
        embeddings = self.encoder.encode(flat)
        match = self.index.candidates(
            embeddings,
            flat,
            lambda rows: self.states.read([flat[row] for row in rows]),
            min_score,
        )
        return embeddings, match

    def _by_similarity(self, prompts: Sequence[ReadPrompt]) -> Routing:
        spans = [prompt.closing for prompt in prompts]
        flat = [surface(span) for given in spans for span in given]
        min_score = self.gate.threshold
        embeddings, match = self._retrieve(flat, min_score)
        if self.texts.may_be_unread:
            match = self._readable(match, flat)
        match = match.best()
        score = self.gate.score(embeddings, match.score)
        # (B, most spans) places in `flat`; who has fewer has the first one repeated.
        width = max(map(len, spans), default=1)
        starts = accumulate(map(len, spans), initial=0)
        table = [
            [start + (n if n < len(given) else 0) for n in range(width)]
            for start, given in zip(starts, spans, strict=False)
        ]
        places = torch.tensor(table, dtype=torch.long).reshape(len(spans), width)
        places = places.to(score.device, non_blocking=True)
        best = score[places].argmax(1, keepdim=True)
        rows = places.gather(1, best)[:, 0]
        exact = [-1 if edit is None else edit for edit in self._exact(prompts)]
        prompt_of = torch.tensor(exact, dtype=torch.long).to(score.device, non_blocking=True)
        return Routing(
            spans,
            rows - places[:, 0],
            embeddings[rows],
            score[rows] >= min_score,
            score[rows],
            min_score,
            torch.where(prompt_of < 0, match.index[rows], prompt_of),
            match.cosine[rows],
        )

    def _readable(self, match: Match, spans: Sequence[str]) -> Match:
        """The candidates of S spans, in front those that differ in no word the encoder misses."""
        has = [
            [self.texts.has_unread(span, edit) for edit in edits]
            for span, edits in zip(spans, match.index.tolist(), strict=True)
        ]
        lacks = ~torch.tensor(has, device=match.score.device).reshape(match.score.shape)
        score, order = match.score.masked_fill(lacks, -torch.inf).sort(
            dim=1, descending=True, stable=True
        )
        return Match(match.index.gather(1, order), score, match.cosine.gather(1, order))

    def _exact(self, prompts: Sequence[ReadPrompt]) -> list[int | None]:
        """The edits whose prompts these are: more may look the same to the encoder."""
        return [self.texts.row_of(prompt.whole, prompt.text) for prompt in prompts]

    def _verified(
        self, verifier: Verifier, prompts: Sequence[ReadPrompt], threshold: float
    ) -> Routing:
        spans = [prompt.spans for prompt in prompts]
        flat = [span for given in spans for span in given]
        plain, read = list(map(surface, flat)), [surface(prompt.text) for prompt in prompts]
        right = list(map(self.texts.corrected, plain))
        embeddings, match = self._retrieve(right, self.gate.threshold)
        starts = list(accumulate(map(len, spans), initial=0))
        pairs = pairs_of(prompts, read, plain, match, starts, self._exact(prompts), self.texts)
        verify(pairs, verifier, read, plain, self.texts, float(self.gate.threshold))
        ranked = [sorted(row, key=lambda pair: pair.rank(threshold), reverse=True) for row in pairs]
        best = [row[0] for row in ranked]
        device = embeddings.device
        rows = torch.tensor([pair.place for pair in best], dtype=torch.long, device=device)
        nearest = torch.tensor([pair.edit for pair in best], dtype=torch.long, device=device)
        score = torch.tensor([pair.verified for pair in best], dtype=torch.float, device=device)
        return Routing(
            spans,
            rows - torch.tensor(starts[:-1], dtype=torch.long, device=device),
            embeddings[rows],
            (score >= threshold) & (score > 0),  # 0: not verified
            score,
            torch.tensor(threshold),
            nearest,
            (self.index.anchors[nearest].to(embeddings) * embeddings[rows]).sum(-1),
            [tuple(pair.candidate(flat[pair.place]) for pair in row) for row in ranked],
        )
