"""Adapters agree with PEFT or are refused with the name of the setting; folders that are already
quantised; no dropout between student and teacher.
"""

import json
import shutil
import warnings
from types import SimpleNamespace

import families
import pytest
import torch
from helpers import make_model, make_tokenizer, shake, some_prompts
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from oelkit import distill, export
from oelkit.model import lora
from oelkit.model.loading import load_policy
from oelkit.model.plain import merge_adapter
from oelkit.model.sampling import generate
from oelkit.model.scoring import token_logprobs
from oelkit.records import State

IDS = torch.tensor([[5, 6, 7, 20, 30, 40, 50, 3, 9]])
QV = ["q_proj", "v_proj"]
STATES = [State(str(i), "t", i, [{"role": "user", "content": f"go {i}"}]) for i in range(4)]


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def said(model):
    with torch.no_grad():
        return model(IDS).logits[0].log_softmax(-1)


def trained_with_peft(base, folder, **settings):
    """Save a PEFT folder as another program would, with all weights changed. Return its model."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": QV, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(plain(base), LoraConfig(**options))
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "magnitude" not in name:
                p.add_(torch.randn(p.shape, generator=g) * 0.05)
            elif p.requires_grad:
                p.mul_(1.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
        {"use_dora": True},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {"layers_to_transform": [1], "lora_dropout": 0.3},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"init_lora_weights": "olora", "alpha_pattern": {"v_proj": 3}},
        {"init_lora_weights": False, "target_modules": r".*\.1\..*proj"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"r": 16, "rank_pattern": {r".*\.0\..*q_proj": 2, "q_proj": 4, "v_proj": 4}},
        {"rank_pattern": {"of_no_layer": 32}},
        {"init_lora_weights": "pissa", "target_modules": ["q_proj", "embed_tokens"]},
        {"init_lora_weights": "pissa", "r": 48},  # v_proj has 32 rows
        {"target_modules": ["q_proj", "lm_head"]},  # shares its weight with the embedding
    ],
)
def test_an_adapter_of_peft_is_the_same_model_here(tiny_model, tmp_path, settings):
    trained = trained_with_peft(tiny_model, tmp_path / "a", **settings)
    theirs = PeftModel.from_pretrained(plain(tiny_model), tmp_path / "a").eval()
    torch.testing.assert_close(said(theirs), said(trained), rtol=1e-4, atol=1e-4)
    policy = load_policy(tiny_model, adapter=tmp_path / "a")
    for adapter, want in (("student", trained), ("teacher", trained), (None, plain(tiny_model))):
        for merge in (True, False):
            with torch.no_grad(), policy.adapter(adapter, merge=merge):
                torch.testing.assert_close(said(policy.model), said(want), rtol=1e-4, atol=1e-4)
    policy.save_adapter(tmp_path / "b")
    again = PeftModel.from_pretrained(plain(tiny_model), tmp_path / "b").eval()
    torch.testing.assert_close(said(again), said(trained), rtol=1e-4, atol=1e-4)
    policy.load_adapter(tmp_path / "b")
    policy.reset()
    for adapter in ("student", "teacher"):
        with policy.adapter(adapter):
            torch.testing.assert_close(said(policy.model), said(plain(tiny_model)))


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"lora_bias": True}])
def test_reset_is_the_untrained_model_whatever_was_trained(tiny_model, lora):
    policy = load_policy(tiny_model, lora=lora)
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    flags = {n: p.requires_grad for n, p in policy.model.named_parameters()}
    trained = policy.trainable()
    with torch.no_grad():
        for p in trained:
            p.mul_(1.2).add_(0.01)
    policy.sync_teacher()
    policy.reset()
    now = dict(policy.model.named_parameters())
    assert now.keys() == before.keys() and all(torch.equal(p, before[n]) for n, p in now.items())
    assert {n: p.requires_grad for n, p in now.items()} == flags
    assert all(a is b for a, b in zip(trained, policy.trainable(), strict=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save="),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices="),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication="),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "both use_dora and init_lora_weights"),
        ({"some_new_setting": 3}, "some_new_setting=3"),
        ({"peft_type": "IA3"}, "a IA3 adapter"),
    ],
)
def test_what_is_more_than_a_and_b_is_refused_by_name(tiny_model, tmp_path, settings, message):
    trained_with_peft(tiny_model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    for load in (
        lambda: load_policy(tiny_model, adapter=tmp_path),
        lambda: load_policy(tiny_model).load_adapter(tmp_path),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("start", ["pissa", "olora", "eva", False])
def test_a_new_student_begins_at_the_base(tiny_model, start):
    with pytest.raises(ValueError, match=f"lora= has init_lora_weights={start!r}"):
        load_policy(tiny_model, lora={"init_lora_weights": start})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 16, "lora_alpha": 32}, r"on 4 layers \(target_modules: q_proj, v_proj\), the pol"),
        ({"alpha_pattern": {"q_proj": 5}}, "alpha_pattern={'q_proj': 5}, the policy {}"),
        ({"rank_pattern": {"q_proj": 5}}, "rank_pattern={'q_proj': 5}, the policy {}"),
        ({"use_dora": True}, "use_dora=True, the policy False"),
        ({"lora_bias": True}, "lora_bias=True, the policy False"),
        ({"use_rslora": True}, "use_rslora=True, the policy False"),
        ({"init_lora_weights": "pissa", "r": 16, "lora_alpha": 32}, "r=32, the policy 16"),
    ],
)
def test_what_a_policy_cannot_take_is_said_with_the_real_reason(
    tiny_model, tmp_path, settings, message
):
    trained_with_peft(tiny_model, tmp_path, **{"r": 16, "lora_alpha": 32, **settings})
    with pytest.raises(ValueError, match=message) as error:
        load_policy(tiny_model).load_adapter(tmp_path)
    assert "another base model" not in str(error.value)
    assert "load_policy(adapter=" in str(error.value)


def test_weights_of_the_base_in_a_folder_may_be_the_tied_ones(tiny_model, tmp_path):
    trained = trained_with_peft(tiny_model, tmp_path)
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    policy = load_policy(tiny_model, adapter=tmp_path)
    torch.testing.assert_close(said(policy.model), said(trained), rtol=1e-4, atol=1e-4)


def test_nulls_in_a_config_are_what_peft_takes_them_for_and_a_base_must_be_named(
    tiny_model, tmp_path
):
    trained = trained_with_peft(tiny_model, tmp_path)
    path = tmp_path / "adapter_config.json"
    given = json.loads(path.read_text()) | dict.fromkeys(["bias", "use_dora", "lora_bias"])
    given["init_lora_weights"] = given["base_model_name_or_path"] = None
    path.write_text(json.dumps(given))
    policy = load_policy(tiny_model, adapter=tmp_path)
    torch.testing.assert_close(said(policy.model), said(trained), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        export(tmp_path, "merged")


def test_an_adapter_whose_training_diverged_is_refused(tiny_model, tmp_path):
    trained_with_peft(tiny_model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors[first := sorted(tensors)[0]][0, 0] = torch.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"{first} holds numbers that are not finite"):
        load_policy(tiny_model, adapter=tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_an_adapter_may_be_stored_in_any_dtype(tiny_model, tmp_path, dtype):
    trained_with_peft(tiny_model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: x.to(getattr(torch, dtype)) for k, x in load_file(path).items()}, path)
    theirs = PeftModel.from_pretrained(plain(tiny_model), tmp_path).eval()
    policy = load_policy(tiny_model, adapter=tmp_path)
    torch.testing.assert_close(said(policy.model), said(theirs))


def test_an_adapter_of_experts_as_single_layers_says_how_to_convert_it(tmp_path):
    """As Transformers 4 had them; PEFT moves them to `target_parameters` when it loads them."""
    base, folder = families.make_family("qwen3_moe", tmp_path / "base"), tmp_path / "a"
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    parts = {"gate_proj": (64, 48), "up_proj": (64, 48), "down_proj": (48, 64)}
    (folder / "adapter_config.json").write_text(json.dumps(about | {"target_modules": [*parts]}))
    tensors, config = {}, plain(base).config
    for layer in range(config.num_hidden_layers):
        for expert in range(config.num_experts):
            for name, (wide, out) in parts.items():
                key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, wide) * 0.1
                tensors[f"{key}.lora_B.weight"] = torch.randn(out, 4) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="its experts are single layers.* save it again"):
        load_policy(base, adapter=folder)
    theirs = PeftModel.from_pretrained(plain(base), folder).eval()
    theirs.save_pretrained(tmp_path / "b")
    policy = load_policy(base, adapter=tmp_path / "b")
    torch.testing.assert_close(said(policy.model), said(theirs), rtol=1e-4, atol=1e-4)


def test_adapters_of_other_bases_and_damaged_ones(tiny_model, tmp_path):
    trained_with_peft(make_model(tmp_path / "deep", num_hidden_layers=3), tmp_path / "a")
    with pytest.raises(ValueError, match="another base model"):
        load_policy(tiny_model, adapter=tmp_path / "a")
    other = make_model(tmp_path / "other", seed=5)  # of the same shape
    trained_with_peft(other, tmp_path / "c")
    with pytest.warns(UserWarning, match="trained on .*other, not on .*tiny_model"):
        load_policy(tiny_model, adapter=tmp_path / "c")
    trained_with_peft(tiny_model, tmp_path / "b")
    (tmp_path / "b/adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        load_policy(tiny_model, adapter=tmp_path / "b")
    (tmp_path / "b/adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="adapter_config.json is not JSON"):
        load_policy(tiny_model, adapter=tmp_path / "b")


def test_an_adapter_whose_tensors_have_another_prefix_is_told_so(tiny_model, tmp_path):
    """Prefixes of a model within a vision model, of no PeftModel, or with the adapter's name."""
    trained_with_peft(tiny_model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    for old, new in (
        ("base_model.model.model.", "base_model.model.model.language_model."),
        ("base_model.model.", ""),
        ("base_model.model.", "module.base_model.model."),
    ):
        save_file({key.replace(old, new, 1): x for key, x in state.items()}, file)
        with pytest.raises(ValueError, match="other names than PEFT's: .* should be base_model"):
            load_policy(tiny_model, adapter=tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 10**9}, "its config says rank 1000000000, its matrices have at most 4"),
        ({"rank_pattern": {"q_proj": 10**9}}, "its config says rank 1000000000, its matrices"),
        ({"r": "8"}, "r='8', which has the wrong type"),
        ({"rank_pattern": [8]}, r"rank_pattern=\[8\], which has the wrong type"),
        ({"alpha_pattern": {"x": "8"}}, "an alpha of '8'; need a number"),
        ({"rank_pattern": {"q_proj": 2.5}}, "a rank of 2.5; need a whole number"),
        ({"r": None}, "r=None, which has the wrong type"),
        ({"r": 0}, "a rank of 0; need a whole number from 1"),
        ({"lora_alpha": float("nan")}, "an alpha of nan; need a number"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5; need 0 to below 1"),
        ({"use_rslora": "no"}, "use_rslora='no', which has the wrong type"),
        ({"layers_to_transform": "0"}, "layers_to_transform='0', which has the wrong type"),
        ({"target_modules": ["nope"]}, "its LoRA does not fit .*'nope'"),
        ({"target_modules": "["}, "its LoRA does not fit .*unterminated"),
    ],
)
def test_a_strangers_settings_are_checked_before_anything_is_made_of_them(
    tiny_model, tmp_path, settings, message
):
    trained_with_peft(tiny_model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        load_policy(tiny_model, adapter=tmp_path)


@pytest.mark.parametrize(
    "settings", [{"target_modules": "PATTERN"}, {"rank_pattern": {"PATTERN": 4}}]
)
def test_a_pattern_that_takes_forever_is_refused(tiny_model, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(lora, "PATIENCE", 2)
    trained_with_peft(tiny_model, tmp_path)
    path = tmp_path / "adapter_config.json"
    given = json.dumps(json.loads(path.read_text()) | settings)
    path.write_text(given.replace("PATTERN", "(([a-z0-9_.])+)+[!]"))
    with pytest.raises(ValueError, match="patterns .* take over 2 s to compare with the layers'"):
        load_policy(tiny_model, adapter=tmp_path)


def test_a_small_file_is_not_given_the_memory_that_its_settings_ask_for(tiny_model, tmp_path):
    trained_with_peft(tiny_model, tmp_path, target_modules="all-linear")
    path, file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 100_000}))
    state = load_file(file)
    state[next(key for key in state if "lora_A" in key)] = torch.zeros(100_000, 1)
    save_file(state, file)
    with pytest.raises(ValueError, match=r"asks for matrices of [\d,]+ numbers, its file has"):
        load_policy(tiny_model, adapter=tmp_path)


def test_an_adapter_that_is_saved_again_has_the_same_bytes(tiny, tmp_path):
    saved = set()
    for _ in range(12):
        tiny.save_adapter(tmp_path)
        saved.add((tmp_path / "adapter_model.safetensors").read_bytes())
    assert len(saved) == 1 and len(next(iter(saved))) > 1000


def test_a_flipped_bit_of_an_adapter_is_refused(tiny, tmp_path):
    shake(tiny)
    tiny.save_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole, before = file.read_bytes(), [p.detach().clone() for p in tiny.trainable()]
    first = 8 + int.from_bytes(whole[:8], "little")  # byte of the tensors
    for at in [*range(0, first, first // 40), *range(first, len(whole), len(whole) // 40)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
            tiny.load_adapter(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(before, tiny.trainable()))
    file.write_bytes(whole)
    tiny.load_adapter(tmp_path)
    PeftModel.from_pretrained(plain(tiny.source), tmp_path)  # takes it as it is


@pytest.mark.parametrize("said", ["[" * 5000, "[1]", "{", '"x"'])
def test_a_damaged_oelkit_json_names_the_file(tiny_model, tmp_path, said):
    trained_with_peft(tiny_model, tmp_path)
    (tmp_path / "oelkit.json").write_text(said)
    with pytest.raises(ValueError, match=r"oelkit\.json: damaged"):
        load_policy(tiny_model, adapter=tmp_path)
    (tmp_path / "oelkit.json").write_text('{"base_embedding": ["x"]}')
    with pytest.raises(ValueError, match="was trained on another base"):
        load_policy(tiny_model, adapter=tmp_path)


def test_a_header_of_weights_may_not_promise_more_than_the_file_holds(tiny_model, tmp_path):
    trained_with_peft(tiny_model, tmp_path)
    huge = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    header = json.dumps({"x.lora_A.weight": huge}).encode()
    for size, rest in ((len(header), header), (2**62, b""), (10**9, b"{}")):
        file = tmp_path / "adapter_model.safetensors"
        file.write_bytes(size.to_bytes(8, "little") + rest)
        with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
            load_policy(tiny_model, adapter=tmp_path)


def test_an_adapter_of_pissa_wants_the_dense_base(tiny_model, tmp_path):
    trained_with_peft(tiny_model, tmp_path, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="quantize=None"):
        load_policy(tiny_model, adapter=tmp_path, quantize="nf4", device="cpu")


# -- dropout

# the student reads what the teacher reads
READ = dict(steps=2, batch_size=4, retention=1.0, max_new_tokens=8)

FAMILIES_WITH_DROPOUT = {
    "GPT2": dict(n_embd=32, n_layer=2, n_head=2, n_positions=512),
    "OPT": dict(hidden_size=32, ffn_dim=32, word_embed_proj_dim=32, num_hidden_layers=2),
    "Qwen3": dict(attention_dropout=0.3),
    "Mixtral": dict(router_jitter_noise=0.5, num_local_experts=2),
    # in configs of its parts
    "Dbrx": dict(
        attn_config={"kv_n_heads": 1, "attn_pdrop": 0.5, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 2, "ffn_act_fn": {"name": "silu"}},
        **dict(d_model=32, n_heads=2, n_layers=2, max_seq_len=512),
    ),
}


@pytest.mark.parametrize("family", FAMILIES_WITH_DROPOUT)
def test_a_student_that_is_its_teacher_has_no_loss(tmp_path, family):
    import transformers

    tokenizer = make_tokenizer()
    size = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_key_value_heads=1)
    extra = {**size, "head_dim": 16} if family in ("Qwen3", "Mixtral") else {}
    if family != "Dbrx":
        extra |= {"num_attention_heads": 2, "max_position_embeddings": 512}
    config = getattr(transformers, family + "Config")(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        **extra,
        **FAMILIES_WITH_DROPOUT[family],
    )
    name = "GPT2LMHeadModel" if family == "GPT2" else family + "ForCausalLM"
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    rows = distill(policy, STATES, "H is bad.", **READ)
    assert all(abs(row["loss"]) < 1e-5 for row in rows)


def test_a_model_that_reads_a_layer_without_its_adapter_in_training(tmp_path):
    """Gemma 3n does, to clip the layer's weights."""
    folder = families.make_family("gemma3n_text", tmp_path)
    policy = load_policy(folder)
    shake(policy)
    with torch.no_grad():
        want = policy.hidden(IDS)
        with policy.train_mode():
            torch.testing.assert_close(policy.hidden(IDS), want)


def test_an_adapters_own_dropout(tiny_model, tmp_path):
    """It is ignored when loaded from a folder. If requested, the seed still fixes the run."""
    trained_with_peft(tiny_model, tmp_path, lora_dropout=0.5)
    rows = distill(load_policy(tiny_model, adapter=tmp_path), STATES, "H is bad.", **READ)
    assert abs(rows[0]["loss"]) < 1e-6
    runs = []
    for _ in range(2):
        policy = load_policy(tiny_model, lora={"lora_dropout": 0.5})
        shake(policy)
        torch.rand(3)  # another state of the global generator
        runs.append([row["loss"] for row in distill(policy, STATES, "H is bad.", **READ)])
    assert runs[0] == runs[1] and runs[0][0] > 1e-3


def test_nothing_is_measured_with_dropout_though_the_model_was_left_in_train_mode(tiny_model):
    """With DoRA, which is never merged, so that its dropout layers are called."""
    policy = load_policy(tiny_model, lora={"lora_dropout": 0.5, "use_dora": True})
    shake(policy)
    for adapter in ("student", "teacher"):
        want = token_logprobs(policy, [[5, 6]], [[7, 8]], adapter=adapter)
        policy.model.train()
        found = token_logprobs(policy, [[5, 6]], [[7, 8]], adapter=adapter)
        assert torch.equal(found[0], want[0]) and policy.model.training
        policy.model.eval()
    losses = []
    for left in (False, True):
        policy.reset()
        shake(policy)
        policy.model.train(left)
        policy.check_hidden()
        how = {"steps": 1, "batch_size": 2, "max_new_tokens": 2, "retention": 0.0}
        losses += [distill(policy, STATES, "notes", **how)[0]["loss"]]
        assert policy.model.training is left
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "lora, told",
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "weights that several layers"),
        ({"lora_bias": True}, "lora_bias=True.* Export to peft"),
    ],
)
def test_what_the_base_has_no_place_for_is_not_merged(tiny_model, tmp_path, lora, told):
    """Merged into tied weights, an adapter of the embedding would change the head as well."""
    load_policy(tiny_model, lora=lora).save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match=told):
        merge_adapter(str(tiny_model), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_of_a_merged_base_is_not_one_of_the_base(tiny_model, tmp_path, dtype):
    """Merging leaves the embedding as it is."""
    policy = load_policy(tiny_model, dtype=dtype)
    shake(policy, size=0.003)
    policy.save_adapter(tmp_path / "first")
    merge_adapter(str(tiny_model), tmp_path / "first", tmp_path / "merged")
    load_policy(tmp_path / "merged", dtype=dtype).save_adapter(tmp_path / "second")
    for folder, other in (("first", tiny_model), ("second", tmp_path / "merged")):
        for as_is in ("float32", "bfloat16", "float16"):
            load_policy(other, dtype=as_is, adapter=tmp_path / folder)
    with pytest.raises(ValueError, match="trained on another base"):
        load_policy(tiny_model, adapter=tmp_path / "second")


def test_a_model_of_the_hub_is_merged_in_the_16_bits_in_which_it_is_stored(
    tiny, tmp_path, monkeypatch
):
    tiny.source = "some/model"
    stored = SimpleNamespace(dtype=torch.float16)
    monkeypatch.setattr("oelkit.model.plain.load_policy", lambda *_, **__: tiny)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **_: stored)
    merge_adapter(tiny.source, tmp_path, tmp_path / "out")
    weights = load_file(tmp_path / "out/model.safetensors").values()
    assert {x.dtype for x in weights} == {torch.float16}


# -- folders that are already quantised


def quantised_folder(model, folder, **options):
    bits = BitsAndBytesConfig(**options)
    options = {"quantization_config": bits, "dtype": torch.float32}
    AutoModelForCausalLM.from_pretrained(model, **options).save_pretrained(folder)
    for path in model.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    return folder


def gradients(policy):
    shake(policy)
    generate(policy, some_prompts(2), max_new_tokens=4)  # as before each step
    with policy.adapter("student"):
        policy.hidden(IDS).float().square().sum().backward()
    return [p.grad for p in policy.trainable()]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_in_4_bits_learns_as_with_quantize_nf4(tiny_model, tmp_path, compute):
    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantised_folder(tiny_model, tmp_path, load_in_4bit=True, bnb_4bit_compute_dtype=compute, **how)
    want = gradients(load_policy(tiny_model, quantize="nf4", device="cpu"))
    for quantize in ("auto", "nf4", None):
        policy = load_policy(tmp_path, quantize=quantize)
        assert policy.lora_layers[0].get_base_layer().weight.dtype == torch.uint8
        for a, b in zip(gradients(policy), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_codes_stored_in_floating_point_are_no_weights(tiny_model, tmp_path):
    how = {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16}
    quantised_folder(tiny_model, tmp_path / "q", **how)
    with warnings.catch_warnings(action="error", category=UserWarning):
        load_policy(tmp_path / "q").save_adapter(tmp_path / "own")
    load_policy(tiny_model, adapter=tmp_path / "own")  # such codes are no mark of the base
    trained_with_peft(tiny_model, tmp_path / "a", init_lora_weights="pissa")
    with pytest.raises(ValueError, match="needs the dense base"):
        load_policy(tmp_path / "q", adapter=tmp_path / "a")


def test_a_quantised_head_is_told_to_whoever_needs_it(tmp_path):
    model = make_model(tmp_path / "m", tie_word_embeddings=False)
    how = {"load_in_4bit": True, "llm_int8_skip_modules": ["q_proj"]}
    policy = load_policy(quantised_folder(model, tmp_path / "q", **how))
    with pytest.raises(ValueError, match="its head is quantised"):
        token_logprobs(policy, [[5, 6]], [[7, 8]])


def test_a_folder_quantised_by_a_method_that_is_not_installed(tmp_path):
    folder = make_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for method in ("gptq", "awq", "hqq"):
        own = {"quant_method": method, "bits": 4, "group_size": 128}
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
        with pytest.raises(ValueError, match="not a usable causal language model") as error:
            load_policy(folder)
        assert "\n" not in str(error.value)


def test_an_adapter_is_not_merged_into_weights_that_are_codes_on_disk(tmp_path):
    """On a CPU Transformers makes them dense, but it stores them as codes again."""
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    own = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "_proj." in name]:
        weights[name] = weights[name].to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    policy = load_policy(folder)
    assert policy.lora_layers[0].get_base_layer().weight.dtype == torch.float32
    policy.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="its weights are quantised"):
        merge_adapter(str(folder), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- layers that text does not use


def test_towers_of_pictures_get_no_adapter(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = make_tokenizer()
    layer = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1)
    text = dict(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, eos_token_id=2)
    text |= dict(pad_token_id=0, bos_token_id=None)
    config = Gemma3Config(
        text_config=layer | text,
        vision_config=layer | dict(image_size=28, patch_size=14),
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    for more in (["q_proj"], r".*\.q_proj", None):
        policy = load_policy(tmp_path / "m", lora={"exclude_modules": more})
        names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
        assert names and not [n for n in names if "vision" in n or "projector" in n]
        assert any("q_proj" in n for n in names) is (more is None)
    shake(policy)
    policy.save_adapter(tmp_path / "a")
    model = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "m")
    again = PeftModel.from_pretrained(model, tmp_path / "a").eval()
    torch.testing.assert_close(said(again), said(policy.model))
