"""The fields which EasyEdit's BaseEditor reads of a method's hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meg_editor.config.settings import FlatHyperParams, setting


@dataclass
class BaseEditorFields(FlatHyperParams):
    """Which model is loaded, where, and how EasyEdit evaluates; in EasyEdit's spelling."""

    model_name: str = setting("", "Hub id or local directory of the causal LM.")
    alg_name: str = setting("MeG", "Always MeG.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, or a CUDA index.")
    fp16: bool = setting(False, "Load the LM in float16. Default: as stored; float32 on a CPU.")
    model_parallel: bool = setting(False, "Spread the LM over all GPUs (device_map='auto').")
    batch_size: int = setting(1024, "Facts in one call of EasyEdit's batch_edit.", ge=1, lt=2**24)
    max_length: int = setting(
        512, "Longest prompt with its target, in tokens. Raise it for long answers.", ge=1, lt=2**24
    )
    evaluation_type: Literal["traditional", "LLM-judge", "generate-text"] | None = setting(
        None, "How EasyEdit evaluates; null: its default."
    )
    api_key: str | None = setting(None, "Of EasyEdit's LLM judge; null: exact match.")
    use_chat_template: bool = setting(False, "Whether EasyEdit evaluates in chat turns.")
