"""Shared fixtures: a tiny random model that goes through the same code as any other model folder."""

import os

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # before huggingface_hub is imported: no test may need the network

import pytest
import torch

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def make_tokenizer(chat_template=TEMPLATE):
    """Byte-level, two special tokens, a few merges (so that decoding and encoding again gives other
    ids).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("f", "t"), ("l", "e"), ("le", "ft")]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, *("".join(m) for m in merges)]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=chat_template,
    )


def make_model(folder, seed=0, chat_template=TEMPLATE, **changes):
    """Save a random Qwen3 model and its tokenizer to folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer(chat_template)
    config = Qwen3Config(
        **{
            **dict(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                tie_word_embeddings=True,
                max_position_embeddings=512,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.2,
            ),
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a tiny random Qwen3 model (2 layers of 64, byte-level tokenizer, ChatML with
    enable_thinking).
    """
    return make_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def tiny(tiny_model):
    """A fresh policy on the tiny model."""
    from oelkit.model.loading import load_policy

    return load_policy(tiny_model)


@pytest.fixture(scope="session")
def real_model():
    """Folder of a real pretrained model, named by OELKIT_TEST_MODEL."""
    folder = os.environ.get("OELKIT_TEST_MODEL")
    if not folder:
        pytest.skip(
            "OELKIT_TEST_MODEL names no model folder (a small real model such as SmolLM2-135M)"
        )
    return folder
