"""Sizes of known models, and an estimate of the memory that training each of them needs.

`memory_plan` measures the same on a loaded model, which is exact but needs the weights."""

from __future__ import annotations

from typing import NamedTuple

import psutil

EXPERIENCE_TOKENS, SEQUENCE_TOKENS = 2048, 1536  # of experience; of state and reply
LORA_RANK = 16


class Sizes(NamedTuple):
    """Widths and counts of a decoder, from its config.json."""

    hidden: int
    layers: int
    query: int
    keys: int
    ffn: int
    vocabulary: int
    heads: int = 1
    """Number of vocabulary-sized matrices: 1 if input and output share one."""

    @property
    def linear(self) -> int:
        """Number of weights in the linear layers, which NF4 quantises."""
        attention = 2 * self.hidden * (self.query + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def embedding(self) -> int:
        """Number of weights in the vocabulary-sized matrices, which are never quantised."""
        return self.heads * self.hidden * self.vocabulary

    @property
    def lora(self) -> int:
        """Number of weights in an adapter on all linear layers."""
        wide = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.keys)
        return LORA_RANK * self.layers * (wide + 3 * (self.hidden + self.ffn))

    def training_bytes(self, kind: str, experience_tokens: int = EXPERIENCE_TOKENS) -> int:
        """Estimate the peak memory of training, checkpointed, one sequence at a time, in bytes.

        Args:
            kind: kind of the weights: float32, bfloat16, float16 or nf4.
            experience_tokens: length of the experience text.
        """
        width = 4 if kind == "float32" else 2
        weights = self.linear * (0.52 if kind == "nf4" else width) + self.embedding * width
        adapters = self.lora * (2 * 4 + 4 + (8 if kind == "float32" else 2))  # two, gradient, AdamW
        cache = 2 * self.layers * self.keys * width * experience_tokens
        layer = 8 * self.hidden + 4 * (self.query + self.keys) + 6 * self.ffn
        activations = SEQUENCE_TOKENS * width * (self.layers * self.hidden + layer)
        chunks = 4 * 4 * (2**22 if kind == "float32" else 2**25)  # of logits: model/head.py
        return int(weights + adapters + cache + activations + chunks)


KNOWN = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Sizes(576, 30, 576, 192, 1536, 49_152),
    "Qwen/Qwen2.5-0.5B-Instruct": Sizes(896, 24, 896, 128, 4864, 151_936),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Sizes(896, 24, 896, 128, 4864, 151_936),
    "Qwen/Qwen3-0.6B": Sizes(1024, 28, 2048, 1024, 3072, 151_936),
    "Qwen/Qwen2.5-1.5B-Instruct": Sizes(1536, 28, 1536, 256, 8960, 151_936),
    "Qwen/Qwen3-1.7B": Sizes(2048, 28, 2048, 1024, 6144, 151_936),
    "Qwen/Qwen3-4B-Instruct-2507": Sizes(2560, 36, 4096, 1024, 9728, 151_936),
    "Qwen/Qwen3-8B": Sizes(4096, 36, 4096, 1024, 12_288, 151_936, heads=2),
}


class Place(NamedTuple):
    """The device on which a model would run here."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of weights that it supports, best first."""
    free: int
    total: int


def place() -> Place:
    """Return the GPU that `load_policy` would use, or the CPU, with free and total bytes."""
    import torch  # imported here: the names above are also needed without torch

    if not torch.cuda.is_available():
        memory = psutil.virtual_memory()
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
        return Place(f"CPU, {cores} cores", ("float32",), memory.available, memory.total)
    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    name = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    return Place(name, ("bfloat16" if major >= 8 else "float16", "nf4"), free, total)
