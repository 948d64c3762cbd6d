"""Run-time choices: how fast the work is done, and how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass

from meg_editor.config.settings import FlatHyperParams, setting


@dataclass
class RuntimeConfig(FlatHyperParams):
    """Memory, batch and cache sizes.

    Results agree up to rounding, and no stage key holds these choices, but for two: facts of a
    shard take their contexts from each other, and bfloat16 rounds more.

    Raises:
        HParamsError: a value of the wrong type or out of its range.

    Example:
        >>> RuntimeConfig(collection_batch_size=16).collection_batch_size
        16
    """

    collection_batch_size: int | None = setting(
        None,
        "Rows (facts times contexts) optimised at once; null: as many as fit into memory. Set it "
        "when another program will need the memory later.",
        ge=1,
        lt=2**20,
    )
    collection_memory: float = setting(
        0.5,
        "Share of the free memory which collection may take, above 0 and below 1. Lower it when "
        "the machine is shared.",
        ge=0.01,
        lt=1,
    )
    collection_shard_size: int = setting(
        1024,
        "Facts after which neurons are stored; an interruption loses no more. Several processes "
        "share the work shard by shard.",
        ge=1,
        lt=2**24,
    )
    collection_bfloat16: bool | None = setting(
        None,
        "Optimise neurons on a copy of the model in bfloat16: faster where the hardware has it, "
        "with more rounding; null: on CPUs with AMX, for models of 32 M weights and more.",
    )
    neuron_cache: int = setting(
        1024,
        "Generated neurons that stay in memory, least recently used ones go first.",
        ge=0,
        lt=2**24,
    )
    generator_compile: bool = setting(
        False,
        "Compile the diffusion transformer for answering (on a GPU with CUDA graphs). The first "
        "answer waits for it.",
    )
