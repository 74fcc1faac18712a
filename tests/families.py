"""Tiny random models of many families, for tests: four layers of 64, a byte-level tokenizer."""

import warnings
from pathlib import Path

import torch
from helpers import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
# kind of model in Transformers, and what differs from BASE
FAMILIES = {
    "Qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "Cohere": ("cohere", {"logit_scale": 0.25}),
    "Gemma 2": ("gemma2", {"head_dim": 32, "sliding_window": 40, "final_logit_softcapping": 2.0}),
    "Granite": (
        "granite",
        {
            "logits_scaling": 8.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
        },
    ),
    "Phi": ("phi", {}),
    "Falcon-H1": (
        "falcon_h1",
        {
            "lm_head_multiplier": 0.3,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
}


def make_family(name: str, folder: Path) -> Path:
    """A folder with such a model, all of whose parameters say something."""
    kind, changes = FAMILIES[name]
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(kind, **{**BASE, "vocab_size": len(tokenizer), **changes})
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for key, p in model.named_parameters():  # a new model has zeros and ones there
            if p.ndim == 1 and "bias" in key:
                p.normal_(0, 0.05)
            elif p.ndim == 1 and "norm" in key:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
