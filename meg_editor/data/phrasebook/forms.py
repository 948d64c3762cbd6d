"""The forms of the phrasebook: what is said around a question that asks for a fact, or does not."""

from __future__ import annotations

from meg_editor.data.phrasebook.kinds import read_yaml
from meg_editor.data.prompt_forms import PromptForm

_FILES = (
    "forms",
    "more_forms",
    "asking_forms",
    "mentioning_forms",
    "instruction_forms",
    "further_forms",
    "shape_forms",
    "language_forms",
    "turn_forms",
)


def read_forms() -> list[PromptForm]:
    """All forms of the phrasebook's files."""
    return [
        PromptForm(f"{kind}-{name}-{number}", kind, "edit" if group == "asks" else "none", template)
        for name in _FILES
        for group, kinds in read_yaml(f"{name}.yaml").items()
        for kind, templates in kinds.items()
        for number, template in enumerate(templates)
    ]
