"""Correctness on a card: `OELKIT_TEST_DEVICE=cuda pytest -m gpu`. On a CPU the same tests are a
rehearsal, without what only a card can do.

The yardstick is Transformers with the same dtype and device: oelkit must be as close to float32 on
a CPU.
"""

import os

import pytest
import torch
from helpers import shake
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3ForCausalLM

from oelkit import distill, load_policy, rollout, states
from oelkit.config import DistillConfig
from oelkit.model.memory import checkpointed
from oelkit.model.prefix import SharedPrefix, can_share
from oelkit.model.sampling import Reply, generate
from oelkit.model.scoring import reply_hidden, token_logprobs
from oelkit.prompts import with_experience
from oelkit.steps import distillation, teacher, training

DEVICE = os.environ.get("OELKIT_TEST_DEVICE", "cpu")
CUDA = DEVICE.startswith("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.slow]
TEXT = "- EXPERIENCE ITEM: H is a hole, never step on it.\n" * 8
KINDS = {  # dtype and quantisation, and the lowest cosine of its gradient with that in float32
    "float32": ("float32", None, 0.9999),
    "bf16": ("bfloat16", None, 0.99),
    "fp16": ("float16", None, 0.99),
    "NF4 in bf16": ("bfloat16", "nf4", 0.99),
    "NF4 in fp16": ("float16", "nf4", 0.99),
}


@pytest.fixture(scope="module", params=["micro", "0.2B"])
def model(request, tmp_path_factory):
    """The embedded model, and on a card also a random one of 0.2 billion parameters."""
    if request.param == "micro":
        return "micro"
    if not CUDA:
        pytest.skip("a model of 0.2 B takes a CPU minutes; set OELKIT_TEST_DEVICE=cuda")
    folder, small = tmp_path_factory.mktemp("model"), load_policy("micro", device="cpu")
    config = Qwen3Config(
        vocab_size=32_768,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=small.eos_ids[0],
        pad_token_id=small.pad_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found():
    return states(rollout(load_policy("micro", device="cpu"), "oelkit/FrozenLake4x4-v0", range(3)))


def both(model, kind):
    """Return the policy under test, and its twin in float32 on a CPU."""
    dtype, quantize, _ = KINDS[kind]
    pair = (
        load_policy(model, dtype=dtype, quantize=quantize, device=DEVICE),
        load_policy(model, dtype="float32", quantize=quantize, device="cpu"),
    )
    for policy in pair:
        shake(policy, size=0.02), shake(policy, "teacher", 2, size=0.02)
    return pair


def some_replies(found, policy):
    prompts = [policy.encode(state.prompt) for state in found[:6]]
    g = torch.Generator().manual_seed(0)
    replies = [
        torch.randint(3, len(policy.tokenizer), (n,), generator=g).tolist() for n in range(3, 9)
    ]
    return prompts, replies[: len(prompts)]


def by_hand(policy, prompts, replies):
    """Return log-probabilities from Transformers' own logits, one sequence at a time."""
    out = []
    with torch.no_grad():
        for p, r in zip(prompts, replies, strict=True):
            ids = torch.tensor([p + r], device=policy.device)
            s = policy.model(input_ids=ids).logits[0, len(p) - 1 : -1].float().log_softmax(-1)
            out.append(s.gather(1, ids[0, len(p) :, None])[:, 0].cpu())
    return torch.cat(out)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities(model, found, kind):
    policy, exact = both(model, kind)
    prompts, replies = some_replies(found, exact)
    want = by_hand(exact, prompts, replies)
    got = torch.cat(token_logprobs(policy, prompts, replies))
    plain = by_hand(policy, prompts, replies)
    off, other = ((x - want).abs().mean() for x in (got, plain))
    print(f"{kind}: off by {off:.2e}, Transformers by {other:.2e}")
    assert (got - want).norm() <= 1.5 * (plain - want).norm() + 1e-4 * want.norm()


def step_gradient(policy, found, replies):
    """Do one step on given replies. Return loss, student gradient and training."""
    config = DistillConfig(batch_size=len(replies), max_new_tokens=8, retention=0.0)
    t = training.prepare(policy, found[: len(replies)], [TEXT], config, None, 0, {})
    asked = [policy.encode(state.prompt) for state in t.states]
    told = [policy.encode(with_experience(t.prompt_set, s.prompt, TEXT)) for s in t.states]
    answers = [Reply(ids, "", False) for ids in replies]
    groups = teacher.group_by_prefix(t, [TEXT] * len(told), told)
    hidden = teacher.hidden_states(t, told, answers, groups)
    loss, _ = distillation._backward(t, asked, answers, hidden)
    t.scaler.unscale_(t.optimizer)
    grads = torch.cat([p.grad.flatten().float().cpu() for p in policy.trainable()])
    t.optimizer.zero_grad(set_to_none=True)
    return loss, grads, t


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_distillation(model, found, kind):
    policy, exact = both(model, kind)
    _, replies = some_replies(found, exact)
    loss, got, t = step_gradient(policy, found, replies)
    want_loss, want, _ = step_gradient(exact, found, replies)
    cosine = float(torch.cosine_similarity(got, want, dim=0))
    print(f"{kind}: loss {loss:.4f} for {want_loss:.4f}, cosine of the gradients {cosine:.5f}")
    assert cosine > KINDS[kind][2] and loss == pytest.approx(want_loss, rel=0.1)
    assert float(got.norm()) == pytest.approx(float(want.norm()), rel=0.1)
    assert (t.scaler.get_scale() > 1) == ("16" in kind and "bf" not in kind)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_beginnings(model, found, kind):
    policy, exact = both(model, kind)
    assert can_share(policy)
    start = exact.encode([{"role": "user", "content": TEXT}])
    prompts, replies = some_replies(found, exact)
    prompts = [start + p for p in prompts]
    with torch.no_grad(), policy.adapter("teacher"):
        whole = reply_hidden(policy, prompts, replies)
        kept = SharedPrefix(policy, start).to("cpu")
        assert kept.kv[0][0].device.type == "cpu"
        behind = reply_hidden(policy, prompts, replies, kept)
    with torch.no_grad(), exact.adapter("teacher"):
        want = reply_hidden(exact, prompts, replies)
    far, plain = ((x.float().cpu() - want).norm() / want.norm() for x in (behind, whole))
    print(f"{kind}: off by {far:.2e} behind a beginning, {plain:.2e} in full")
    assert far <= 1.5 * plain + 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(model, found, kind):
    policy, exact = both(model, kind)
    _, replies = some_replies(found, exact)
    _, want, _ = step_gradient(policy, found, replies)
    with checkpointed(policy):
        _, got, _ = step_gradient(policy, found, replies)
    assert (got - want).norm() <= 1e-2 * want.norm() and want.norm() > 0


@pytest.mark.parametrize("kind", ["float32", "bf16", "NF4 in bf16"])
def test_greedy_replies(model, found, kind):
    """In float32, equal to the CPU's. In 16 bits, nearly equal logits can swap, but not at once."""
    policy, exact = both(model, kind)
    prompts = [policy.encode(state.prompt) for state in found[:6]]
    got, want = (generate(p, prompts, temperature=0, max_new_tokens=12) for p in (policy, exact))
    same = sum(a.ids == b.ids for a, b in zip(got, want, strict=True))
    print(f"{kind}: {same} of {len(want)} replies are those of float32")
    assert same == len(want) or kind != "float32"
    first = sum(a.ids[0] == b.ids[0] for a, b in zip(got, want, strict=True))
    assert first >= len(want) - 2


def test_8_bit_adamw_learns_as_adamw_does(found):
    """Paged on a card. States have 8 bits for tensors with at least 4,096 elements."""
    import bitsandbytes

    rows = []
    for eight in (True, False):
        policy = load_policy("micro", device=DEVICE, quantize=None)
        shake(policy, "teacher")
        options = {"max_new_tokens": 8, "lr": 1e-3, "batch_size": 16}
        t = training.prepare(policy, found, [TEXT], None, None, 0, options)
        if not eight:
            t.optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3, weight_decay=0.0)
        elif CUDA:
            assert type(t.optimizer) is bitsandbytes.optim.PagedAdamW8bit
        else:
            options = {"lr": 1e-3, "weight_decay": 0.0}
            t.optimizer = bitsandbytes.optim.AdamW8bit(policy.trainable(), **options)
        rows.append([distillation.distill_step(t, step)["loss"] for step in range(8)])
    print(*([f"{x:.4f}" for x in row] for row in rows))
    assert rows[0][0] == pytest.approx(rows[1][0], rel=1e-3) and rows[0][-1] < 0.9 * rows[0][0]
    assert rows[0][-1] == pytest.approx(rows[1][-1], rel=0.2)


def test_8_bit_training_that_was_stopped_goes_on(found, tmp_path, monkeypatch):
    """The optimiser's states are tensors in nested dicts: all of them are in the file."""
    import bitsandbytes

    if not CUDA:
        adamw = bitsandbytes.optim.AdamW8bit
        monkeypatch.setattr(
            training, "_adamw", lambda p, c: adamw(p.trainable(), lr=c.lr, weight_decay=0.0)
        )
    monkeypatch.setattr(distillation, "CHECKPOINT_EVERY", 2)
    options = {"steps": 5, "batch_size": 4, "max_new_tokens": 8, "lr": 1e-3}
    file, rows = tmp_path / "training.safetensors", []

    def kill(row):
        if row["step"] == 3:
            raise RuntimeError("killed")

    for kept, stop in ((None, None), (file, kill), (file, None)):
        policy = load_policy("micro", device=DEVICE, quantize=None)
        try:
            rows.append(distill(policy, found, [TEXT], checkpoint=kept, on_step=stop, **options))
        except RuntimeError as error:
            assert stop and str(error) == "killed"
    whole, again = ([row["loss"] for row in history] for history in rows)
    assert again[:2] == whole[:2] and again == pytest.approx(whole, rel=0.0 if not CUDA else 1e-3)
    with safe_open(file, "pt") as saved:
        kinds = {saved.get_tensor(name).dtype for name in saved.keys()}  # noqa: SIM118
    assert torch.uint8 in kinds  # so some states have 8 bits
    if not CUDA:  # another optimiser does not resume from it, but starts again
        monkeypatch.undo()
        policy = load_policy("micro", device=DEVICE, quantize=None)
        assert len(distill(policy, found, [TEXT], checkpoint=file, **options)) == 5


@pytest.mark.skipif(not CUDA, reason="a CPU has no memory of its own; set OELKIT_TEST_DEVICE=cuda")
def test_a_step_holds_what_the_plan_says(model, found):
    policy = load_policy(model, device=DEVICE, quantize="nf4", dtype="auto")
    options = {"batch_size": 16, "max_new_tokens": 32, "steps": 2}
    plan = training.prepare(policy, found, [TEXT], None, None, 0, options).plan
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rows = distill(policy, found, [TEXT], **options)
    held = torch.cuda.max_memory_allocated() - before
    print(f"{held / 2**20:.0f} MiB held, {plan.peak / 2**20:.0f} planned; {plan}")
    assert rows[-1]["loss"] > 0 and held < 1.25 * plan.peak
