"""Models that are known by their sizes, and what training each takes: an estimate beforehand.

It counts what `memory_plan` measures on a loaded model, which is exact and needs the weights."""

from __future__ import annotations

from typing import NamedTuple

import psutil

EXPERIENCE_TOKENS, SEQUENCE_TOKENS = 2048, 1536  # of the experience; of a state with its reply
LORA_RANK = 16


class Sizes(NamedTuple):
    """Widths and counts of a decoder, as its config.json has them."""

    hidden: int
    layers: int
    query: int
    keys: int
    ffn: int
    vocabulary: int
    heads: int = 1
    """Matrices of the size of the vocabulary: 1 where input and output share theirs."""

    @property
    def linear(self) -> int:
        """Weights of the linear layers, which NF4 quantises."""
        attention = 2 * self.hidden * (self.query + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def embedding(self) -> int:
        """Weights that stay as they are."""
        return self.heads * self.hidden * self.vocabulary

    @property
    def lora(self) -> int:
        """Weights of an adapter on all linear layers."""
        wide = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.keys)
        return LORA_RANK * self.layers * (wide + 3 * (self.hidden + self.ffn))

    def training_bytes(self, kind: str, experience_tokens: int = EXPERIENCE_TOKENS) -> int:
        """What a training takes at its worst moment, checkpointed, one sequence at a time.

        Args:
            kind: of the weights: float32, bfloat16, float16 or nf4.
            experience_tokens: of the experience text.
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
    """Where a model would run here."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of weights that it takes, best first."""
    free: int
    total: int


def place() -> Place:
    """The card that `load_policy` takes, or the CPU; bytes free and in all."""
    import torch  # only here: the names above are asked for where nothing is loaded

    if not torch.cuda.is_available():
        memory = psutil.virtual_memory()
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
        return Place(f"CPU, {cores} cores", ("float32",), memory.available, memory.total)
    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    name = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    return Place(name, ("bfloat16" if major >= 8 else "float16", "nf4"), free, total)
