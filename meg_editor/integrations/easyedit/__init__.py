"""MeG as a method of EasyEdit.

    from meg_editor.integrations.easyedit import BaseEditor  # EasyEdit's own, with MeG

    editor = BaseEditor.from_hparams(MeGHyperParams.from_hparams("hparams/MeG/phi-2.yaml"))
    metrics, edited_model, _ = editor.batch_edit(prompts=prompts, target_new=targets)

Importing this package changes nothing; importing `BaseEditor` from it calls `register()`.
"""

from __future__ import annotations

from typing import Any

from meg_editor.integrations.easyedit.importing import EasyEditError, import_easyedit
from meg_editor.integrations.easyedit.registration import RegistrationError, register, unregister

__all__ = [
    "BaseEditor",
    "EasyEditError",
    "RegistrationError",
    "import_easyedit",
    "register",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name == "BaseEditor":
        return register().BaseEditor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
