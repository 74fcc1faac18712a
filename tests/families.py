"""Run tiny random models of all families that AutoModelForCausalLM knows through oelkit:
`python tests/families.py` writes the table of docs/families.md.
"""

import os
import re
import tempfile
import warnings
from pathlib import Path

# Must be set before torch is loaded: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from helpers import make_tokenizer, shake, some_prompts
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oelkit.model.loading import load_policy
from oelkit.model.losses import reverse_kl
from oelkit.model.prefix import can_share
from oelkit.model.sampling import generate
from oelkit.model.scoring import reply_hidden, token_logprobs

PAGE = Path(__file__).parents[1] / "docs/families.md"
MOST = 10_000_000  # parameters of a tiny model
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
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "head_dim": 8,
}
# settings that a kind of model needs in addition to BASE, or that its trained models have
CHANGES = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"head_dim": 16, "sliding_window": 40},
    "deepseek_v2": {**MOE, **MLA},
    "deepseek_v3": {**MOE, **MLA},
    "dots1": {**MOE, "n_shared_experts": 1},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 48,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "exaone4": {"head_dim": 16, "sliding_window": 40, "sliding_window_pattern": 4},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128, "lm_head_multiplier": 0.3},
    "gemma2": {"head_dim": 32, "sliding_window": 40, "final_logit_softcapping": 2.0},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma3n_text": {
        "head_dim": 16,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 264,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 264,
        "num_kv_shared_layers": 2,
    },
    "glm4_moe": {**MOE, "head_dim": 16},
    "glm4_moe_lite": {**MOE, **MLA, "num_key_value_heads": 4},  # it cannot run with fewer
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 40,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 40},
    "gptj": {"rotary_dim": 8},
    "granite": {
        "logits_scaling": 8.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
    },
    "granitemoehybrid": {
        **MAMBA,
        "attention_multiplier": 0.25,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 96,
        "position_embedding_type": None,
    },
    "jamba": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
    "lfm2_moe": {
        **MOE,
        "layer_types": ["conv", "full_attention"] * 2,
        "conv_L_cache": 3,
        "num_dense_layers": 1,
    },
    "mamba2": {"state_size": 16, "num_heads": 8, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "minimax_m3_vl_text": {
        "head_dim": 16,
        "rotary_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 48,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 32,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "mistral": {"head_dim": 16, "sliding_window": 40},
    "phi3": {"sliding_window": None},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3_5_moe_text": {**MOE, **LINEAR, "shared_expert_intermediate_size": 48},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": {**MOE, "head_dim": 16, "decoder_sparse_step": 1},
    "qwen3_next": {
        **MOE,
        **LINEAR,
        "shared_expert_intermediate_size": 48,
        "decoder_sparse_step": 1,
    },
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
}
COLUMNS = "replies", "log-probs", "gradient", "shared beginning", "NF4", "in PEFT"
START = some_prompts(1, seed=1, low=70, high=71)[0]  # longer than a sliding window of 40
PROMPTS = [*some_prompts(3, seed=2), *([*START, *p] for p in some_prompts(2, seed=3))]
REPLIES = some_prompts(5, seed=4, low=2, high=9)
NEW_TOKENS = 6


def make_family(kind: str, folder: Path) -> Path:
    """Save a model of this kind in which every parameter has an effect. Return its folder.

    Raises:
        Exception: The model cannot be built this small.
    """
    tokenizer = make_tokenizer()
    start = {**BASE, "vocab_size": len(tokenizer)}
    tries = [{}, {"head_dim": 16}, {**MOE, "head_dim": 16}, MOE, {**MOE, **MLA}]
    error = ValueError(f"{kind} wants what is not known here")
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for changes in [CHANGES[kind]] if kind in CHANGES else tries:
            torch.manual_seed(0)
            try:
                config = AutoConfig.for_model(kind, **{**start, **changes})
                with torch.device("meta"):
                    if AutoModelForCausalLM.from_config(config).num_parameters() > MOST:
                        continue
                model = AutoModelForCausalLM.from_config(config).eval()
                model(input_ids=torch.arange(8)[None])
                break
            except Exception as fault:
                error = fault
        else:
            raise error
        for key, p in model.named_parameters():  # in a new model these are zeros and ones
            if p.ndim == 1 and "bias" in key:
                p.normal_(0, 0.05)
            elif p.ndim == 1 and "norm" in key:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_logits(model, prompt, reply=()):
    """Return the logits of a Transformers or PEFT model: one row, no padding, no cache."""
    return model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0]


def greedy(model, eos):
    """Return greedy replies from whole forward passes, one prompt at a time."""
    replies = []
    for prompt in PROMPTS:
        ids = []
        while len(ids) < NEW_TOKENS and not (ids and ids[-1] in eos):
            ids.append(int(plain_logits(model, prompt, ids)[-1].argmax()))
        replies.append(ids)
    return replies


def same(got, want, tolerance):
    return bool((got - want).norm() <= tolerance * want.norm())


def of_replies(model, temperature=1.0):
    """Return log-softmax [N, V] of the model's own logits at the reply tokens."""
    rows = [
        plain_logits(model, p, r)[len(p) - 1 : -1] / temperature
        for p, r in zip(PROMPTS, REPLIES, strict=True)
    ]
    return torch.cat(rows).log_softmax(-1)


def gradients(policy):
    """Return the gradients of reverse KL: the library's, and autograd's on full logits."""
    with torch.no_grad(), policy.adapter("teacher"):
        teacher, t = reply_hidden(policy, PROMPTS, REPLIES), of_replies(policy.model, 0.7)
    s = of_replies(policy.model, 0.7)
    hidden = reply_hidden(policy, PROMPTS, REPLIES)
    losses = (
        reverse_kl(hidden, teacher, policy.head, temperature=0.7),
        (s.exp() * (s - t)).sum(-1).mean(),
    )
    for loss in losses:
        found = torch.autograd.grad(loss, policy.trainable(), allow_unused=True)
        yield torch.cat([g.flatten() for g in found if g is not None])


def log_probs(policy):
    """Return log-probabilities of all reply tokens: the library's, and the model's own."""
    ids = torch.tensor(sum(REPLIES, []))[:, None]
    with torch.no_grad():
        want = of_replies(policy.model).gather(1, ids)[:, 0]
    return torch.cat(token_logprobs(policy, PROMPTS, REPLIES)), want


def attempt(work):
    """Return a cell: the result of `work`, or the name of its error."""
    try:
        found = work()
        return {True: "yes", False: "**no**"}.get(found, found)
    except Exception as error:
        return f"**{type(error).__name__}**"


def measure(folder: Path) -> tuple[str, ...]:
    """Return the cells of a family's row, or one cell with the message that refuses it."""
    try:
        policy = load_policy(folder, device="cpu")
        _ = policy.head
    except ValueError as error:
        said = str(error).partition(": ")[2]
        return (re.sub("^a [a-z0-9_-]+ model ", "it ", said),)
    shake(policy), shake(policy, "teacher", 2)
    policy.save_adapter(folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(base, folder / "adapter").eval()
    shares = can_share(policy)

    def replies():
        with torch.no_grad():
            want = greedy(peft, policy.eos_ids)
        got = generate(policy, PROMPTS, temperature=0, max_new_tokens=NEW_TOKENS)
        return [r.ids for r in got] == want

    def in_peft():
        with torch.no_grad():
            return same(of_replies(policy.model), of_replies(peft), 1e-4)

    def nf4():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            four = load_policy(folder, quantize="nf4", device="cpu")
        shake(four), shake(four, "teacher", 2)
        exact = same(*gradients(four), 1e-3) and same(*log_probs(four), 1e-4)
        dense = any("weights are quantised" in str(w.message) for w in said)
        return "in part" if exact and dense else exact

    return (
        attempt(replies),
        attempt(lambda: same(*log_probs(policy), 1e-4)),
        attempt(lambda: same(*gradients(policy), 1e-3)),
        "yes" if shares else "in full",
        attempt(nf4),
        attempt(in_peft),
    )


def row_of(kind: str) -> tuple[str, ...] | None:
    """Return the cells of a kind, or None if no tiny model of it can be built."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = make_family(kind, Path(folder))
        except Exception:
            return None
        return measure(made)


def page(rows: dict) -> str:
    """Return the text of docs/families.md."""
    lines = [HEAD, "| family | " + " | ".join(COLUMNS) + " |", "|---" * 7 + "|"]
    lines += [f"| `{k}` | {' | '.join(c)} |" for k, c in rows.items() if c and len(c) > 1]
    lines += ["", "## Refused, in one sentence", ""]
    refused: dict = {}
    for kind, cells in rows.items():
        if cells and len(cells) == 1:
            refused.setdefault(cells[0], []).append(f"`{kind}`")
    lines += [f"- {', '.join(kinds)}: {why}" for why, kinds in sorted(refused.items())]
    untried = ", ".join(f"`{kind}`" for kind, cells in rows.items() if not cells)
    return "\n".join([*lines, "", "## Not built so small, and not tried", "", f"{untried}.", ""])


def read_page() -> dict:
    """Return the rows of docs/families.md."""
    rows: dict = {}
    for line in PAGE.read_text("utf-8").splitlines():
        kinds, *cells = [part.strip() for part in line.strip("|").split(" | ")]
        if line.startswith("- `"):
            kinds, _, sentence = line.partition(": ")
            rows |= {k.strip("`- "): (sentence,) for k in kinds.split(", ")}
        elif line.startswith("| `"):
            rows[kinds.strip("` ")] = tuple(cells)
    return rows


HEAD = """# Families of models

This page shows what works for each kind of model (`model_type` of its config.json) that
Transformers 5.23 loads as a causal language model and that can be built with at most ten million
parameters. The models are tiny and random, in float32 on a CPU. `python tests/families.py` makes
this page; a test compares every tenth row and a few more.

- **replies:** greedy replies to prompts of unequal length, in one batch, equal those of plain PEFT,
  one at a time and without a cache.
- **log-probs:** of given replies, against the model's own logits without padding (1e-4).
- **gradient:** of the reverse KL by the adapter, against autograd on full logits (1e-3).
- **shared beginning:** "yes" if the common beginning of prompts is computed once; "in full" if each
  prompt is computed in full, which only costs time.
- **NF4:** log-probs and gradient in 4 bits; "in part" if more than half of the inner weights stay
  dense: experts in one tensor, which Transformers does not quantise, and routers. Loading warns.
- **in PEFT:** the saved adapter gives the same logits in plain Transformers and PEFT.

Known faults that are not fixed would be in bold; there are none today.
"""


def main() -> None:
    rows = {kind: row_of(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    PAGE.write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
