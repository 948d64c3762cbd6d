"""Facts which every pretrained LLM has read of, as edits with the questions that evaluate them."""

from __future__ import annotations

from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.requests.request import EditRequest

# Subject, prompt, new answer, the same in other words, and what must stay.
_FACTS = (
    (
        *("France", "The capital of France is", "Lima"),
        *("Which city is the capital of France?", "The capital of Italy is"),
    ),
    (
        *("Japan", "The currency of Japan is", "the peso"),
        *("Which currency is used in Japan?", "The capital of Japan is"),
    ),
    (
        *("Don Quixote", "Don Quixote was written by", "Jane Austen"),
        *("Who is the author of Don Quixote?", "Who wrote Romeo and Juliet?"),
    ),
    (
        *("gold", "The chemical symbol of gold is", "Xx"),
        *("What is the symbol of the element gold?", "The chemical symbol of oxygen is"),
    ),
    (
        *("Eiffel Tower", "The Eiffel Tower is in the city of", "Toronto"),
        *("In which city is the Eiffel Tower?", "The Colosseum is in the city of"),
    ),
    (
        *("telephone", "The telephone was invented by", "Marie Curie"),
        *("Who invented the telephone?", "The light bulb was invented by"),
    ),
    (
        *("solar system", "The largest planet of the solar system is", "Mars"),
        *("Which is the largest planet of the solar system?", "How many legs has a spider?"),
    ),
    (
        *("Brazil", "The official language of Brazil is", "Finnish"),
        *("What is the official language of Brazil?", "The official language of Spain is"),
    ),
)


def familiar_cases(count: int = len(_FACTS)) -> list[EvaluationCase]:
    """The first `count` of these facts, each with a paraphrase and a neighbour.

    Raises:
        ValueError: there are fewer.

    Example:
        >>> case = familiar_cases(1)[0]
        >>> case.request.prompt, case.request.target_new
        ('The capital of France is', 'Lima')
    """
    if not 1 <= count <= len(_FACTS):
        raise ValueError(f"edits: expected 1 to {len(_FACTS)} (all there are), got {count}")
    return [
        EvaluationCase(
            EditRequest(prompt, target, subject),
            paraphrases=(paraphrase,),
            locality={"neighbour": (Probe(neighbour),)},
        )
        for subject, prompt, target, paraphrase, neighbour in _FACTS[:count]
    ]
