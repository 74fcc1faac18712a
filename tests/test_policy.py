"""Loading, adapters, hidden states and log-probabilities, on a tiny random model and, if given, a
real one.
"""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TOOLS, make_model, make_tokenizer, shake
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oelkit import load_prompt_set, read_chats, states
from oelkit.config import ModelConfig
from oelkit.model import loading
from oelkit.model.base import context_length
from oelkit.model.head import Head
from oelkit.model.loading import load_policy, policy_from_config
from oelkit.model.losses import cross_entropy
from oelkit.model.memory import checkpointed
from oelkit.model.plain import PlainModel
from oelkit.model.sampling import generate
from oelkit.model.scoring import reply_hidden, token_batches, token_logprobs
from oelkit.prompts import with_experience
from oelkit.text import answer_text

ROOT = str(Path(__file__).parents[1])
MESSAGES = [{"role": "user", "content": "go left the"}]
PROMPTS = [[5, 6, 7], [9], [20, 30, 40, 50, 60, 70, 80]]
REPLIES = [[8, 2], [11, 12, 13, 14], [90]]


def sft_loss(policy):
    hidden = reply_hidden(policy, PROMPTS, REPLIES)
    return cross_entropy(hidden, torch.tensor(sum(REPLIES, [])), policy.head)


def close(a, b, tolerance):
    """Compare relative to the size of b, so that small gradients do not count as equal."""
    return (a - b).norm() <= tolerance * b.norm() and b.norm() > 1e-6


def test_text_and_ids(tiny, tiny_model):
    ids = tiny.encode(MESSAGES)
    said = "<|im_start|>user\ngo left the<|im_end|>\n<|im_start|>assistant\n"
    assert tiny.tokenizer.decode(ids) == said
    assert tiny.decode(ids) == "user\ngo left the\nassistant\n"
    assert tiny.eos_ids == [2] and tiny.pad_id == 0 and tiny.context_length == 512
    thinking = load_policy(tiny_model, enable_thinking=True)
    assert thinking.decode(thinking.encode(MESSAGES)).endswith("<think>\n")


def test_answer_text():
    assert answer_text("<think>[up]?</think>\n\n[left]") == "[left]"
    assert answer_text("[up]?</think>[left]") == "[left]"
    assert answer_text("<think>[up]? or") == "" and answer_text(" [left] ") == " [left] "


def test_a_switch_that_the_template_does_not_know_is_told(tmp_path):
    folder = make_model(tmp_path, chat_template="{{ messages[0].content }}")
    with pytest.warns(UserWarning, match="enable_thinking=False changes nothing"):
        load_policy(folder, enable_thinking=False)


def test_a_thought_that_the_template_opens_and_nobody_ends_is_no_answer(tiny_model):
    thinking = load_policy(tiny_model, enable_thinking=True)  # its template writes <think> itself
    assert thinking.answer_text("maybe [up]? or") == ""
    assert thinking.answer_text("maybe [up]? no</think>\n[left]") == "[left]"
    for plain in (load_policy(tiny_model), load_policy(tiny_model, enable_thinking=False)):
        assert plain.answer_text("maybe [up]? or") == "maybe [up]? or"
        assert plain.answer_text("<think>[up]? or") == ""


def test_student_starts_as_the_base_in_float32_and_only_lora_trains(tiny, tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.tensor([PROMPTS[2]])
    assert torch.equal(tiny.model(input_ids=ids).logits, base(input_ids=ids).logits)
    trained = [n for n, p in tiny.model.named_parameters() if p.requires_grad]
    assert len(trained) == len(tiny.trainable()) == 2 * 7 * 2
    assert all(".student." in n for n in trained)
    assert not any("lm_head" in n or "embed" in n for n in trained)
    assert not tiny.model.training


def test_lora_arguments(tiny_model):
    policy = load_policy(tiny_model, lora={"r": 4, "target_modules": ["q_proj"]})
    assert sorted(tuple(p.shape) for p in policy.trainable()) == [(4, 64)] * 2 + [(64, 4)] * 2
    with pytest.warns(UserWarning, match="lora= names qproj: .* has no such layer"):
        load_policy(tiny_model, lora={"target_modules": ["qproj", "v_proj"]})
    for wrong, told in (
        ({"r": None}, "lora= has r=None, which has the wrong type"),
        ({"layers_to_transform": [0]}, "lora= is not valid: .layers_to_transform. cannot be used"),
    ):
        with pytest.raises(ValueError, match=told):
            load_policy(tiny_model, lora=wrong)


def test_same_adapter_in_each_process_and_the_global_generator_untouched(tiny_model):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    a = load_policy(tiny_model)
    assert torch.equal(torch.rand(3), want)
    b = load_policy(tiny_model)
    assert all(map(torch.equal, a.trainable(), b.trainable()))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("outer", ["student", None])
def test_use_switches_and_restores(tiny, merge, outer):
    shake(tiny), shake(tiny, "teacher", 2)
    # a user's own choice, which PEFT's set_adapter would undo
    tiny.trainable()[0].requires_grad_(False)
    ids = torch.tensor([PROMPTS[2]])

    @torch.no_grad()
    def logits():
        return tiny.model(input_ids=ids).logits

    def flags():
        return {n: p.requires_grad for n, p in tiny.model.named_parameters()}

    weights = {n: p.clone() for n, p in tiny.model.named_parameters()}
    outside, seen = flags(), {}
    with tiny.adapter(outer):
        before, inside = logits(), flags()
        for adapter in ("student", "teacher", None):
            with torch.no_grad(), tiny.adapter(adapter, merge=merge):
                seen[adapter] = logits()
        assert torch.equal(logits(), before)
        assert flags() == inside
        with pytest.raises(KeyError), torch.no_grad(), tiny.adapter("teacher", merge=merge):
            raise KeyError
        assert torch.equal(logits(), before)
    assert flags() == outside
    assert all(torch.equal(p, weights[n]) for n, p in tiny.model.named_parameters())
    # merged float32 weights give the same function up to rounding; the adapters really differ
    for adapter in ("student", "teacher"):
        with tiny.adapter(adapter):
            torch.testing.assert_close(seen[adapter], logits(), rtol=1e-3, atol=1e-4)
    for other in ("teacher", None):
        assert (seen["student"] - seen[other]).abs().max() > 0.1
    with pytest.raises(ValueError, match="no adapter 'pupil'"), tiny.adapter("pupil"):
        pass


def test_an_untrained_adapter_costs_nothing_where_nothing_is_trained(tiny, monkeypatch):
    # as in 16 and 4 bits, where adapters stay apart
    monkeypatch.setattr("oelkit.model.adapters.MERGE_MAX_PARAMS", 0)
    calls, ids = [], torch.tensor([PROMPTS[2]])
    a = tiny.lora_layers[0].lora_A["student"]
    a.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), tiny.adapter("student", merge=True):
        blank = tiny.hidden(ids)
    assert not calls
    # with gradients it is present, otherwise it would never be trained
    with tiny.adapter("student", merge=True):
        assert torch.equal(tiny.hidden(ids), blank) and calls
    tiny.lora_layers[-1].lora_B["student"].weight.data[0, 0] = 1.0
    with torch.no_grad(), tiny.adapter("student", merge=True):
        assert not torch.equal(tiny.hidden(ids), blank) and len(calls) == 2


def test_teacher_is_the_student_of_the_last_freeze_and_stays_so(tiny, tmp_path, tiny_model):
    shake(tiny)
    tiny.sync_teacher()
    tiny.save_adapter(tmp_path / "start")
    before = token_logprobs(tiny, PROMPTS, REPLIES, adapter="teacher")
    optimizer = torch.optim.AdamW(tiny.trainable(), lr=1e-2)
    for _ in range(3):
        sft_loss(tiny).backward()
        optimizer.step()
    after = token_logprobs(tiny, PROMPTS, REPLIES, adapter="teacher")
    assert all(map(torch.equal, before, after))
    assert (before[0] - token_logprobs(tiny, PROMPTS, REPLIES)[0]).abs().max() > 1e-3
    fresh = load_policy(tiny_model, adapter=tmp_path / "start")
    for adapter in ("teacher", "student"):
        for a, b in zip(before, token_logprobs(fresh, PROMPTS, REPLIES, adapter=adapter)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_teacher_equals_the_saved_adapter_in_a_fresh_process(tiny, tmp_path, tiny_model):
    shake(tiny)
    tiny.sync_teacher()
    tiny.save_adapter(tmp_path)
    shake(tiny, seed=2)  # the student changes further
    code = """
import json, sys
from oelkit.model.loading import load_policy
from oelkit.model.scoring import token_logprobs
model, adapter, prompts, replies = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
policy = load_policy(model, adapter=adapter)
found = token_logprobs(policy, prompts, replies, adapter="teacher")
print(json.dumps([x.tolist() for x in found]))"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model), str(tmp_path), str(PROMPTS), str(REPLIES)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    fresh = json.loads(run.stdout.splitlines()[-1])
    for a, b in zip(token_logprobs(tiny, PROMPTS, REPLIES, adapter="teacher"), fresh, strict=True):
        torch.testing.assert_close(a, torch.tensor(b), rtol=0, atol=1e-6)


def test_saved_adapter_is_plain_peft(tiny, tmp_path, tiny_model):
    from peft import PeftModel

    shake(tiny)
    tiny.save_adapter(tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)  # the same bytes from every process
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(f.name for f in tmp_path.glob("adapter*")) == files
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([PROMPTS[2]])
    torch.testing.assert_close(plain(input_ids=ids).logits, tiny.model(input_ids=ids).logits)
    assert tiny.model.peft_config["student"].inference_mode is False


def test_token_logprobs_equal_the_definition(tiny):
    shake(tiny)
    for temperature in (1.0, 0.7):
        got = token_logprobs(tiny, PROMPTS, REPLIES, temperature=temperature)
        assert [len(g) for g in got] == [2, 4, 1]
        small = token_logprobs(tiny, PROMPTS, REPLIES, temperature=temperature, batch_tokens=1)
        for prompt, reply, g, s in zip(PROMPTS, REPLIES, got, small):
            with torch.no_grad():
                logits = tiny.model(input_ids=torch.tensor([prompt + reply])).logits[0]
            logprobs = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
            want = logprobs[range(len(reply)), reply]
            torch.testing.assert_close(g, want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(s, want, rtol=1e-4, atol=1e-5)


def test_token_logprobs_where_head_and_hidden_states_differ_in_dtype(tiny_model):
    policy = load_policy(tiny_model, dtype="bfloat16")
    shake(policy)
    same = token_logprobs(policy, PROMPTS, REPLIES)
    policy.head = Head(policy.head.weight.float())
    for a, b in zip(same, token_logprobs(policy, PROMPTS, REPLIES), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.1)


def test_sixteen_bits_on_a_cpu_without_them_are_told_to_be_slow(tiny_model, monkeypatch):
    monkeypatch.setattr(loading, "ONE_THREAD_PARAMS", 0)
    for has, slow in (("AVX2", True), ("AVX512", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda has=has: has)
        with warnings.catch_warnings(record=True) as told:
            load_policy(tiny_model, dtype="bfloat16")
            load_policy(tiny_model, dtype="float32")
        assert ["bfloat16 several times slower" in str(w.message) for w in told] == [True] * slow


def test_reply_hidden_times_head_is_the_logits_and_padding_does_not_matter(tiny):
    together = reply_hidden(tiny, PROMPTS, REPLIES)
    alone = torch.cat([reply_hidden(tiny, [p], [r]) for p, r in zip(PROMPTS, REPLIES)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    logits = tiny.model(input_ids=torch.tensor([PROMPTS[1] + REPLIES[1]])).logits[0, :-1]
    torch.testing.assert_close(together[2:6] @ tiny.head.weight.T, logits, rtol=1e-4, atol=1e-4)
    assert not tiny.head.weight.requires_grad
    assert reply_hidden(tiny, [[5, 6]], [[]]).shape == (0, 64)
    with pytest.raises(ValueError, match="sequence 1: 510 prompt and 4 reply"):
        reply_hidden(tiny, [[5], [5] * 510], [[6], [7] * 4])


def test_token_batches_keep_all_and_stay_within_the_budget():
    lengths = [3, 100, 7, 7, 50, 1]
    groups = token_batches(lengths, 100)
    assert sorted(i for g in groups for i in g) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 100 for g in groups)
    assert groups[0] == [1] and token_batches([], 10) == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    grads = []
    for context in (nullcontext, checkpointed):
        policy = load_policy(tiny_model)
        shake(policy)
        policy.model.train()
        with context(policy):
            sft_loss(policy).backward()
        assert not policy.base_lm.is_gradient_checkpointing
        grads.append([p.grad for p in policy.trainable()])
    assert all(g is not None for g in grads[1])
    assert all(close(a, b, 1e-4) for a, b in zip(*grads))


def test_a_second_policy_on_a_model_adds_nothing_to_it(tiny):
    head = tiny.base_lm.get_output_embeddings()
    hooks = len(head._forward_pre_hooks)
    again = replace(tiny, enable_thinking=True)
    assert len(head._forward_pre_hooks) == hooks == 1 and again.model is tiny.model
    assert len({tiny, again}) == 2  # distinguished by identity, not by comparing tensors


def test_a_policy_from_the_settings_of_a_run(tiny_model):
    config = ModelConfig(str(tiny_model), dtype="bfloat16", lora_rank=4, enable_thinking=True)
    policy = policy_from_config(config)
    lora = policy.model.peft_config["student"]
    assert (lora.r, lora.lora_alpha) == (4, 8)
    assert policy.head.weight.dtype == torch.bfloat16 and policy.enable_thinking
    four = policy_from_config(replace(config, quantize="nf4"), device="cpu")
    assert four.lora_layers[0].get_base_layer().weight.dtype == torch.uint8


def test_nothing_switches_within_an_adapter_that_is_merged(tiny):
    shake(tiny)
    with torch.no_grad(), tiny.adapter("student", merge=True):
        for name in ("student", "teacher", None):
            with pytest.raises(ValueError, match="inside a merged adapter"), tiny.adapter(name):
                pass
    with tiny.adapter("teacher"):
        pass


@pytest.mark.parametrize(
    "device, capability, want",
    [("mps", None, "bfloat16"), ("cuda", (9, 0), "bfloat16"), ("cuda", (7, 5), "float16")],
)
def test_the_dtype_of_a_large_model_on_a_device(tiny_model, monkeypatch, device, capability, want):
    monkeypatch.setattr("oelkit.model.loading.SMALL_MODEL_PARAMS", 0)
    if capability:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    asked = {}

    def load(*args, **options):
        raise asked.update(options) or OSError("far enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(ValueError, match="far enough"):
        load_policy(tiny_model, device=device)
    assert asked["dtype"] == getattr(torch, want)
    assert (asked["quantization_config"] is not None) == (device == "cuda")


def test_hidden_states_that_overflow_in_float16_are_said_at_load(tmp_path):
    """As with Gemma 3: replies were padding, and sampling crashed."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1e5
    model.save_pretrained(tmp_path)
    assert load_policy(tmp_path).hidden(torch.tensor([[5, 6]])).isfinite().all()
    with pytest.raises(ValueError, match='overflow in float16; load it with dtype="float32", or'):
        load_policy(tmp_path, dtype="float16")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not finite numbers; its weight files are damaged"):
        load_policy(tmp_path)


# -- NF4 on a CPU


def lora_gradients(policy):
    sft_loss(policy).backward()
    named = policy.model.named_parameters()
    return {n: p.grad for n, p in named if ".student." in n and p.grad is not None}


@pytest.mark.parametrize("workaround", [True, False])
def test_nf4_keeps_its_gradients_after_generating(tiny_model, workaround, monkeypatch):
    """After generating, gradients are the same as in a fresh model. The second case shows that they
    differ without the fix.
    """
    from bitsandbytes.nn.modules import has_avx512bf16

    fresh = load_policy(tiny_model, quantize="nf4", device="cpu")
    if not workaround:
        if not has_avx512bf16():
            pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack the weights")
        monkeypatch.setattr("oelkit.model.loading.keep_gradients", lambda model: None)
    used = load_policy(tiny_model, quantize="nf4", device="cpu")
    shake(fresh), shake(used)
    generate(used, PROMPTS, max_new_tokens=4)
    want, got = lora_gradients(fresh), lora_gradients(used)
    attention = [n for n in want if "self_attn" in n]
    assert len(attention) == 2 * 4 * 2
    same = [n in got and close(got[n], want[n], 1e-4) for n in attention]
    assert all(same) if workaround else not any(same)


def test_nf4_is_four_bit_with_float32_adapters_and_never_merged(tiny_model):
    policy = load_policy(tiny_model, quantize="nf4", device="cpu")
    weight = policy.lora_layers[0].get_base_layer().weight
    assert weight.dtype == torch.uint8 and all(p.dtype == torch.float32 for p in policy.trainable())
    assert policy.head.weight.dtype == torch.float32
    shake(policy)
    before = weight.data.clone()
    with torch.no_grad(), policy.adapter("student", merge=True):
        assert not policy.lora_layers[0].disable_adapters and torch.equal(weight.data, before)


def test_bfloat16_on_request(tiny_model):
    policy = load_policy(tiny_model, dtype="bfloat16")
    assert policy.head.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in policy.trainable())
    assert len(generate(policy, PROMPTS, max_new_tokens=3)) == 3


# -- bad input: each gives one clear sentence


def test_missing_folder_and_not_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        load_policy("./nowhere/at/all")
    with pytest.raises(ValueError, match="not a model folder"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text('{"hello": 1}')
    with pytest.raises(ValueError, match="not a usable causal language model"):
        load_policy(tmp_path)


def test_damaged_weights(tmp_path):
    weights = make_model(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weight files lack model.layers.1.mlp.up_proj.weight"):
        load_policy(tmp_path)
    for damage in (lambda: weights.write_bytes(b"junk"), weights.unlink):
        damage()
        with pytest.raises(ValueError, match="not a usable causal language model"):
            load_policy(tmp_path)


@pytest.mark.parametrize(
    "tensors, config, told",
    [
        ({".self_attn.q_proj.weight_scale": [1]}, {}, "hold .*q_proj.weight_scale, which"),
        ({".mlp.up_proj.bias": [128]}, {}, "hold .*up_proj.bias, which the model would leave out"),
        ({".input_layernorm.weight": [2]}, {}, r"is \[2\] in its weight files and \[64\] by"),
        ({}, {"quantization_config": {"load_in_4bit": True}}, "but its weights are dense; delete"),
        ({".self_attn.rotary_emb.inv_freq": [8], ".self_attn.k_proj.k_scale": [1]}, {}, ""),
    ],
)
def test_weights_with_which_the_model_would_not_compute(
    tiny_model, tmp_path, tensors, config, told
):
    """Such as an 8-bit scale that Transformers does not know."""
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(path := tmp_path / "model/model.safetensors")
    weights |= {f"model.layers.0{name}": torch.ones(shape) for name, shape in tensors.items()}
    save_file(weights, path, {"format": "pt"})
    settings = json.loads((path := tmp_path / "model/config.json").read_text())
    path.write_text(json.dumps(settings | config))
    with pytest.raises(ValueError, match=told) if told else nullcontext():
        load_policy(tmp_path / "model")


def test_a_model_of_another_kind(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="not a usable causal language model") as error:
        load_policy(tmp_path)
    assert "\n" not in str(error.value)


def test_hub_id_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = "nobody/nothing: no such folder here, and the hub cannot be reached"
    with pytest.raises(ConnectionError, match=told):
        load_policy("nobody/nothing")


def test_unknown_hub_id(monkeypatch):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        try:
            told = "neither a folder here nor a .public. model on the hub"
            with pytest.raises(FileNotFoundError, match=told):
                load_policy("nobody/nothing")
        finally:
            server.shutdown()


def test_no_chat_template(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        load_policy(make_model(tmp_path, chat_template=None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tiny_model):
    with pytest.raises(RuntimeError, match="no usable CUDA device"):
        load_policy(tiny_model, device="cuda")


def test_unknown_quantisation(tiny_model):
    with pytest.raises(ValueError, match="quantize='int3'"):
        load_policy(tiny_model, quantize="int3")


def test_adapters_that_do_not_fit(tiny, tmp_path, tiny_model):
    with pytest.raises(FileNotFoundError, match="no adapter there"):
        load_policy(tiny_model, adapter=tmp_path)
    other_shape = load_policy(make_model(tmp_path / "wide", intermediate_size=192))
    other_shape.save_adapter(tmp_path / "wide_adapter")
    (tmp_path / "wide_adapter/oelkit.json").unlink()  # as a plain PEFT adapter
    with pytest.raises(ValueError, match="another base model"):
        load_policy(tiny_model, adapter=tmp_path / "wide_adapter")
    twin = load_policy(make_model(tmp_path / "twin", seed=1))  # same shapes
    twin.save_adapter(tmp_path / "twin_adapter")
    with pytest.raises(ValueError, match="another base model"):
        load_policy(tiny_model, adapter=tmp_path / "twin_adapter")
    small = load_policy(tiny_model, lora={"r": 4})
    small.save_adapter(tmp_path / "r4")
    with pytest.raises(ValueError, match="r=4, the policy 16"):
        tiny.load_adapter(tmp_path / "r4")
    assert load_policy(tiny_model, adapter=tmp_path / "r4").model.peft_config["student"].r == 4


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_rope_that_changes_with_the_length_ends_where_it_changes(tmp_path):
    from transformers import Phi3Config, Phi3ForCausalLM

    factors = dict(short_factor=[1.0] * 8, long_factor=[4.0] * 8)
    config = Phi3Config(
        vocab_size=len(make_tokenizer()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters=dict(rope_type="longrope", rope_theta=1e4, **factors),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    policy = load_policy(save(Phi3ForCausalLM(config), tmp_path))
    assert policy.context_length == 64
    assert PlainModel(tmp_path, str(tmp_path), "paper").context_length == 64
    with pytest.raises(ValueError, match="context of 64"):
        generate(policy, [[5] * 60], max_new_tokens=8)
    nested = {**config.rope_parameters, "original_max_position_embeddings": 32}
    config.rope_parameters = {"full_attention": nested}
    assert context_length(config, policy.tokenizer) == 32


def test_the_context_of_models_that_name_it_otherwise(tiny):
    from transformers import BloomConfig, MptConfig

    assert context_length(MptConfig(max_seq_len=64), tiny.tokenizer) == 64
    tiny.tokenizer.model_max_length = 99
    assert context_length(BloomConfig(), tiny.tokenizer) == 99


def test_a_recurrent_model_with_a_state_of_its_own_is_refused(tmp_path):
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=2)
    with pytest.raises(ValueError, match="a rwkv model keeps its state in a format of its own"):
        load_policy(save(RwkvForCausalLM(config), tmp_path))


def test_a_template_without_a_system_role(tmp_path):
    template = (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    policy = load_policy(make_model(tmp_path, chat_template=template))
    assert policy.decode(policy.encode(MESSAGES)) == "go left the"
    with pytest.raises(ValueError, match="no system role"):
        policy.encode([{"role": "system", "content": "be brief"}, *MESSAGES])


def test_model_folder_names_its_prompts(tmp_path):
    folder = make_model(tmp_path)
    assert load_policy(folder).default_prompt_set == "paper"
    (folder / "oelkit.json").write_text(json.dumps({"prompts": "brief"}))
    assert load_policy(folder).default_prompt_set == "brief"


# -- a real model


def test_real_model(real_model, tmp_path):
    policy = load_policy(real_model)
    questions = ("What is 2 + 2?", "Name a colour of the sky.")
    prompts = [policy.encode([{"role": "user", "content": text}]) for text in questions]
    replies = generate(policy, prompts, max_new_tokens=12, temperature=0)
    assert any(word in replies[1].text.lower() for word in ("blue", "sky", "colo"))
    logprobs = token_logprobs(policy, prompts, [r.ids for r in replies])
    assert all(torch.isfinite(x).all() and x.exp().mean() > 0.2 for x in logprobs)
    shake(policy)
    policy.save_adapter(tmp_path)
    again = load_policy(real_model, adapter=tmp_path)
    ids = [r.ids for r in replies]
    found = (token_logprobs(p, prompts, ids) for p in (policy, again))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


TALK = read_chats([
    {
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "tool_calls": [{"name": "find", "arguments": '{"order": 7}'}]},
            {"role": "tool", "content": "lost"},
            {"role": "assistant", "content": "Lost."},
        ],
        "tools": [{"name": "find", "parameters": {}}],
    }
])  # fmt: skip


def test_tools_calls_and_results_of_a_log_reach_the_prompt(tmp_path):
    policy = load_policy(make_model(tmp_path, chat_template=TOOLS))
    first, second = (policy.tokenizer.decode(policy.encode(s.prompt)) for s in states(TALK))
    assert first.startswith("<tool>find</tool><|im_start|>user")
    assert '<call>{"order": 7}</call>' in second and "<|im_start|>tool\nlost" in second
    read = with_experience(load_prompt_set("rules"), states(TALK)[1].prompt, "- EXPERIENCE ITEM: x")
    told = policy.tokenizer.decode(policy.encode(read))
    assert "<tool>find</tool>" in told and "ITEM: x" in told
    # DeepSeek's templates take arguments as text, MiniMax's refuse a result without its call
    policy.tokenizer.chat_template = TOOLS.replace(
        "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
    ).replace(
        "{% for c",
        "{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call') }}{% endif %}{% for c",
    )
    assert policy.tokenizer.decode(policy.encode(states(TALK)[1].prompt)) == second


@pytest.mark.parametrize(
    ("template", "missing", "turn"),
    [
        (TOOLS.replace("{% if tools %}", "{% if false %}"), "tools", 0),
        (TOOLS.replace("{{ c.function.arguments | tojson }}", ""), "", 1),
        (TOOLS.replace("m.tool_calls or []", "[]"), "tool calls", 1),
        (TOOLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
         "tool results", 1),
    ],
)  # fmt: skip
def test_a_template_that_leaves_tools_out_is_an_error(tmp_path, template, missing, turn):
    policy = load_policy(make_model(tmp_path, chat_template=template))
    state = states(TALK)[turn]
    if not missing:
        policy.encode(state.prompt)
        return
    with pytest.raises(ValueError, match=f"its chat template shows no {missing}; take a model"):
        policy.encode(state.prompt)


def test_the_chat_template_of_a_real_model_renders_tools(real_model):
    policy = load_policy(real_model)
    try:
        prompt = policy.tokenizer.decode(policy.encode(states(TALK)[1].prompt))
    except ValueError as error:
        assert "its chat template shows no tools" in str(error)
    else:
        assert "find" in prompt and "order" in prompt and "lost" in prompt


def test_a_small_model_takes_one_thread_and_a_larger_one_those_of_before(tiny_model, monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(loading, "_threads", 2)
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's choice wins
        load_policy(tiny_model)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        load_policy(tiny_model)
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(loading, "ONE_THREAD_PARAMS", 0)
        load_policy(tiny_model)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
