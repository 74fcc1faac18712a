"""Make a random Qwen3 of a published size, to measure speed and memory.

    python tests/benchmarks/random_model.py 1.7B FOLDER

The shapes are those of config.json on the hub. The tokenizer is the embedded model's; all its ids
are within the vocabulary."""

import os
import sys
from pathlib import Path

# Must be set before torch is loaded: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from oelkit.model.source import model_folder

SIZES = {  # hidden, intermediate, layers, heads; all with 8 key heads of 128
    "0.6B": (1024, 3072, 28, 16),
    "1.7B": (2048, 6144, 28, 16),
    "4B": (2560, 9728, 36, 32),
    "8B": (4096, 12288, 36, 32),
}


def main(size: str, folder: str) -> None:
    width, wide, layers, heads = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(model_folder("micro"), trust_remote_code=False)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=size != "8B",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(Path(folder))
    print("{}")  # gpu.py reads a JSON line


if __name__ == "__main__":
    main(*sys.argv[1:])
