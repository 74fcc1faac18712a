"""Run the CUDA code paths on fake tensors.

No card and no values are involved, but devices, dtypes, shapes and operators are those of a card.
NF4 is left out, as its packed tensors cannot be faked. test_fake_cuda.py runs this file with
noop_guard.cpp preloaded. It prints a line per path and exits with 1 if one fails.
"""

import itertools
import random
import sys
import traceback
import warnings

import torch
from helpers import LOSSES, make_tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationMixin,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from oelkit.config import DistillConfig
from oelkit.model import attention, losses
from oelkit.model.adapters import Adapters
from oelkit.model.head import Head
from oelkit.model.kept import Kept
from oelkit.model.loading import LORA
from oelkit.model.lora import attach
from oelkit.model.lora_settings import lora_config
from oelkit.model.memory import MemoryPlan
from oelkit.model.packing import packed_batches
from oelkit.model.policy import Policy
from oelkit.model.prefix import SharedPrefix
from oelkit.model.sampling import Reply, generate
from oelkit.model.scoring import token_logprobs
from oelkit.prompts import load_prompt_set
from oelkit.steps import distillation, teacher, training

warnings.simplefilter("ignore")
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,  # of each kind
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"sliding_window": 40, "num_hidden_layers": 2}),
}
LEFT = [0]  # tokens of the running generate call
DTYPES = torch.bfloat16, torch.float16, torch.float32
PROMPTS = [[5 + i % 7 for i in range(300)] + [9, 8, j] for j in range(3)]
REPLIES = [[7, 8, 9], [4], [5, 6]]
STUDENTS = [p[-20:] for p in PROMPTS]


def without_values() -> None:
    """Answer zeros, ones or "false" when code asks a fake tensor for its values."""
    tensor = torch.Tensor
    tensor.item = lambda self: {torch.bool: False, torch.int64: 9}.get(self.dtype, 1.0)
    tensor.__float__ = lambda self: 0.0
    tensor.__bool__ = lambda self: False
    tensor.nonzero = lambda self: torch.arange(len(self), device=self.device)[:, None]
    tensor.data_ptr = lambda self: self.untyped_storage()._cdata  # fake tensors all answer 0
    GenerationMixin.generate = counted(GenerationMixin.generate)
    GenerationMixin._has_unfinished_sequences = goes_on
    torch.isin = lambda x, y: torch.zeros_like(x, dtype=torch.bool)
    Adapters.is_untrained = lambda self, name="student": False
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch.nn.Module._apply = _apply


def counted(generate):
    """Limit Transformers' generate, which would otherwise wait for a tensor value to stop."""

    def wrapped(self, *args, max_new_tokens, **options):
        LEFT[:] = [max_new_tokens]
        return generate(self, *args, max_new_tokens=max_new_tokens, **options)

    return wrapped


def goes_on(self, *args, **options):
    LEFT[0] -= 1
    return LEFT[0] >= 0


def _apply(self, fn, recurse=True):
    for module in self.children():
        module._apply(fn)
    for key, p in self._parameters.items():
        if p is not None:  # fake parameters cannot be swapped in place
            self._parameters[key] = torch.nn.Parameter(fn(p.detach()), p.requires_grad)
    for key, b in self._buffers.items():
        if b is not None:
            self._buffers[key] = fn(b)
    return self


def build(family, dtype):
    cls, config, changes = FAMILIES[family]
    tokenizer = make_tokenizer()
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        base = cls(config(vocab_size=len(tokenizer), **SIZE | changes)).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    attention.repeat_key_heads(base)
    model = attach(base, lora_config({**LORA, "task_type": "CAUSAL_LM"}, ""), "fake")
    policy = Policy(model, "fake", tokenizer, "brief")
    weight = base.get_output_embeddings().weight.detach()
    policy.head = Head(weight, scale=0.5, cap=30.0) if family == "gemma2" else Head(weight)
    return policy


def trainings(policy, all_losses):
    """Return the default with gradient checkpointing, and one training per loss."""
    options = [{"loss": loss} for loss in LOSSES if loss != "reverse_kl"]
    options += [{"top_k": 9, "tail": tail} for tail in losses.TAILS] + [{"clip": 1.0}]
    for changes in [{}, *(options if all_losses else [])]:
        checkpointing = not changes
        config = DistillConfig(**changes)
        plan = MemoryPlan({}, {}, 0, 700, 700, checkpointing)
        optimizer = torch.optim.AdamW(policy.trainable())
        scaler = training._scaler(policy, 128)
        state = policy, [], ["a text"], config, load_prompt_set("brief"), 0, plan, optimizer, scaler
        yield f"{changes}", training.Training(*state, random.Random(0))


def learn(t):
    """Do the score, loss, backward and update of one `distill` step."""
    t.beginnings["a text"] = PROMPTS[0][:300]
    replies = [Reply(ids, "", False) for ids in REPLIES]
    shares = attention.prefix_obstacle(t.policy.base_lm) == ""
    groups = [("a text" if shares else None, [0, 1, 2])]
    with torch.no_grad():
        told = teacher.hidden_states(t, PROMPTS, replies, groups)
    context = distillation.checkpointed(t.policy) if t.plan.gradient_checkpointing else None
    t.optimizer.zero_grad()
    packed = packed_batches(t.policy, PROMPTS, [len(p) + 3 for p in PROMPTS], 700)
    assert max(n for n, _ in packed) == (len(PROMPTS[0]) - 1 if shares else 0)
    students = PROMPTS if t.plan.gradient_checkpointing else STUDENTS
    with context or torch.enable_grad():
        distillation._backward(t, students, replies, None if t.config.loss == "sft" else told)
    for p in t.policy.trainable():
        assert p.dtype == torch.float32 and p.device.type == "cuda" and p.grad is not None
        assert p.grad.dtype == torch.float32 and p.grad.device.type == "cuda"
    training.update(t, 0, 1.0, [])


def paths(policy, all_losses):
    yield "log-probabilities", lambda: token_logprobs(policy, STUDENTS, REPLIES)
    for name, t in trainings(policy, all_losses):
        yield f"a step {name}", lambda t=t: learn(t)
    policy.model.eval()
    if attention.prefix_obstacle(policy.base_lm) == "":

        def kept():
            kept = SharedPrefix(policy, PROMPTS[0][:300]).to("cpu")
            assert {x.device.type for pair in kept.kv for x in pair} == {"cpu"}
            assert {x.device.type for pair in kept.to("cuda").kv for x in pair} == {"cuda"}

        yield "a beginning in main memory", kept
        yield "replies behind a beginning", lambda: turns(policy, PROMPTS * 5)  # worth a pass
    yield "replies", lambda: replies(policy, [*STUDENTS, STUDENTS[0]])


def replies(policy, prompts, kept=None):
    # the first pass makes room in the cache, the others use it
    found = generate(policy, prompts, max_new_tokens=3, kept=kept)
    lengths = [len(r.ids) for r in found]
    assert lengths == [3] * len(prompts), lengths


def turns(policy, prompts):
    kept = Kept(2**40)
    for _ in range(2):
        prompts = [[*prompt, 7, 8, 5 + i % 3] for i, prompt in enumerate(prompts)]
        replies(policy, prompts, kept)
        assert kept.prefixes and len(kept.rows) == len({*map(tuple, prompts)})
        assert {row.start for row in kept.rows} == {len(kept.prefixes[0].ids)}


def main() -> int:
    global CAPABILITY
    without_values()
    failed = 0
    for family, dtype in itertools.product(FAMILIES, DTYPES):
        CAPABILITY = (9, 0) if dtype == torch.bfloat16 else (7, 5)
        with FakeTensorMode(allow_non_fake_inputs=True):
            policy = build(family, dtype)
            for name, work in paths(policy, family == "qwen3"):
                what = f"{family} {str(dtype)[6:]}: {name}"
                try:
                    work()
                    print("ok  ", what, flush=True)
                except Exception:
                    failed += 1
                    print("FAIL", what, traceback.format_exc(limit=-4), flush=True)
    return int(failed > 0)


CAPABILITY = 9, 0
if __name__ == "__main__":
    sys.exit(main())
