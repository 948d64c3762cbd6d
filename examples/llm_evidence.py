"""Would the LLM's own states tell another question about an edited subject from a paraphrase?

    python examples/llm_evidence.py --model smollm2 --data counterfact --path counterfact.json

Of facts which tune and calibrate, and are never edited: paraphrases, and questions about something
else of the same subject behind the same unrelated sentences. Prints for the verifier, for features
of the unedited LLM at the end of both prompts, and for both together (logistic regression,
cross-validated) the area under the ROC curve and the paraphrases accepted where 2, 5, 10 and 20 %
of the other questions are.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor

from meg_editor import EditRequest, MeGHyperParams, load_model
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.relations import Relations
from meg_editor.data.splits import split_cases
from meg_editor.lm.reference import resolve_model_name
from meg_editor.lm.tokens import left_padded
from meg_editor.requests.spans import spans_of
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import Verifier, fact_text

OTHERS, ROWS = 4, 32
ACCEPTED = (0.02, 0.05, 0.1, 0.2)
Pair = tuple[EditRequest, str, bool]  # an edit, a prompt, and whether it asks for the edit


def pairs_of(options: argparse.Namespace) -> list[Pair]:
    """Paraphrases of --facts facts, and other questions about their subjects."""
    cases = one_per_subject(without_conflicts(DATASETS[options.data](options.path).cases))
    training = None
    if options.training_path:
        training = DATASETS[options.data](options.training_path).cases
    split = split_cases(cases, training)
    known = [*split.calibration, *split.pseudo]
    usable = [case for case in known if case.paraphrases and case.request.subject]
    relations, rng = Relations(known), random.Random(0)
    pairs: list[Pair] = []
    for case in rng.sample(usable, min(len(usable), options.facts)):
        pairs += [(case.request, text, True) for text in case.paraphrases]
        before = [text[: text.rfind(". ") + 2] for text in case.paraphrases if ". " in text]
        for text in relations.others(case, OTHERS, rng):
            pairs.append((case.request, (rng.choice(before) if before else "") + text, False))
    return pairs


@torch.no_grad()
def states_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, V) of the next token, and hidden states (B, D) at half the depth."""
    scores, states = [], []
    for start in range(0, len(texts), ROWS):
        batch = left_padded(tokenizer, list(texts[start : start + ROWS]), model.device)
        output = model(**batch, output_hidden_states=True, use_cache=False)
        scores.append(output.logits[:, -1].float().log_softmax(-1))
        states.append(output.hidden_states[len(output.hidden_states) // 2][:, -1].float())
    return torch.cat(scores), torch.cat(states)


def features_of(options: argparse.Namespace, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Name -> a number for each pair, higher for what asks for the edit."""
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    verifier = Verifier.shipped(encoder)
    if verifier is None:
        raise ValueError(f"--encoder: there is no verifier for {options.encoder}")
    sure = verifier.probability([p for _, p, _ in pairs], [fact_text(e) for e, _, _ in pairs])
    spans, cosines = [], []
    for edit, prompt, _ in pairs:
        parts = spans_of(prompt)
        vectors = encoder.encode([*parts, edit.prompt])
        each = vectors[:-1] @ vectors[-1]
        spans.append(parts[int(each.argmax())])
        cosines.append(each.max())
    model, tokenizer = load_model(MeGHyperParams(model_name=options.model))
    texts = sorted({*spans, *(edit.prompt for edit, _, _ in pairs)}, key=len)
    scores, states = states_of(model, tokenizer, texts)
    row = {text: index for index, text in enumerate(texts)}
    asked, edited = [row[s] for s in spans], [row[edit.prompt] for edit, _, _ in pairs]
    lifted = scores - scores.mean(0)
    usual = (states - states.mean(0)) / states.std(0).clamp_min(1e-6)
    first = lifted.masked_fill(scores < -9, -torch.inf).topk(16).indices
    return {
        "verifier": sure.clamp(1e-5, 1 - 1e-5).logit(),
        "similarity": torch.stack(cosines),
        "next token's scores, centred": F.cosine_similarity(lifted[asked], lifted[edited]),
        "probability of the old answer's first tokens": torch.stack(
            [scores[a, first[e]].logsumexp(0) for a, e in zip(asked, edited, strict=True)]
        ),
        "hidden state, half of the depth": F.cosine_similarity(usual[asked], usual[edited]),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="as in `meg-editor edit`")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--data", choices=list(DATASETS), default="counterfact")
    parser.add_argument("--path", type=Path, required=True, help="the file of the data set")
    parser.add_argument("--training-path", type=Path, help="facts of the fitting stages (ZsRE)")
    parser.add_argument("--facts", type=int, default=250)
    options = parser.parse_args()
    pairs = pairs_of(options)
    right = torch.tensor([asks for _, _, asks in pairs])
    features = features_of(options, pairs)

    def report(name: str, score: Tensor) -> None:
        others = score[~right].sort(descending=True).values
        accepted = [
            100 * float((score[right] > others[int(share * len(others))]).float().mean())
            for share in ACCEPTED
        ]
        area = roc_auc_score(right.numpy(), score.numpy())
        print(f"{name:56} {area:.3f}  " + "  ".join(f"{share:5.1f}" for share in accepted))

    print(f"{int(right.sum())} paraphrases, {int((~right).sum())} other questions")
    print(f"{'':56} area   " + "  ".join(f"{100 * share:3.0f} %" for share in ACCEPTED))
    for name, score in features.items():
        report(name, score)
    verifier = features.pop("verifier")
    for name, score in features.items():
        both = torch.stack([verifier, score], 1)
        both = (both - both.mean(0)) / both.std(0)
        fitted = cross_val_predict(
            LogisticRegression(), both.numpy(), right.numpy(), cv=5, method="decision_function"
        )
        report(f"verifier and {name}", torch.from_numpy(fitted))


if __name__ == "__main__":
    main()
