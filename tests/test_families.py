"""docs/families.md agrees with what tiny models of every family do in each part."""

import families
import pytest
import torch
from helpers import greedy_by_hand, shake, some_prompts
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oelkit.model.loading import load_policy
from oelkit.model.memory import memory_plan
from oelkit.model.plain import merge_adapter
from oelkit.model.sampling import generate

FEW = ["qwen3", "gemma2", "lfm2", "bert"]
# padding within blocks, a custom cache, names that PEFT changes, routers that stay dense
ODD = ["deepseek_v4", "minimax", "laguna", "longcat_flash", "afmoe"]
TENTH = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*FEW, *ODD})[::10]


@pytest.mark.parametrize("kind", FEW)
def test_a_row_of_the_page(kind):
    assert families.row_of(kind) == families.read_page()[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ODD, *TENTH])
def test_odd_ones_and_every_tenth_row(kind):
    """All rows would take minutes: `python tests/families.py` regenerates the page."""
    assert families.row_of(kind) == families.read_page().get(kind)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_a_saved_adapter_is_loaded_again(kind, tmp_path):
    """PEFT itself moves the adapters of experts in a single tensor to `target_parameters`."""
    folder, ids = families.make_family(kind, tmp_path), torch.arange(9)[None]
    policy = load_policy(folder)
    fresh = policy.model(ids).logits.detach()
    shake(policy)
    policy.save_adapter(tmp_path / "adapter")
    again = load_policy(folder)
    again.load_adapter(tmp_path / "adapter")
    for other in (again, load_policy(folder, adapter=tmp_path / "adapter")):
        with torch.no_grad():
            assert torch.equal(other.model(ids).logits, policy.model(ids).logits)
            assert not torch.allclose(other.model(ids).logits, fresh)
            other.reset()
            assert torch.allclose(other.model(ids).logits, fresh)


@pytest.mark.parametrize("kind", ["deepseek_v4", "minimax", "minimax_m3_vl_text"])
def test_long_replies_where_padding_or_a_cache_of_ours_would_alter_them(kind, tmp_path):
    """Replies outlast the steps at which rows are removed; some rows end or appear twice."""
    policy = load_policy(families.make_family(kind, tmp_path))
    shake(policy)
    a, b, c = some_prompts(3, seed=4)
    long = generate(policy, [a, b, c], max_new_tokens=20, temperature=0)
    policy.base_lm.generation_config.eos_token_id = [2, long[1].ids[3]]
    prompts = [a, b, a, c, c[::-1]]
    replies = generate(policy, prompts, max_new_tokens=36, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 36) for p in prompts]
    assert len({len(r.ids) for r in replies}) > 1
    assert memory_plan(policy, 20, state_tokens=30, reply_tokens=8).fits


def test_weights_that_layers_share_are_not_merged(tmp_path):
    policy = load_policy(families.make_family("zamba", tmp_path / "base"))
    shake(policy)
    policy.save_adapter(tmp_path / "adapter")
    ids, found = torch.arange(9)[None], []
    with torch.no_grad():
        for merge in (True, False):
            with policy.adapter("student", merge):
                found.append(policy.hidden(ids))
    assert torch.allclose(*found, atol=1e-4)
    with pytest.raises(ValueError, match="weights that several layers of this model share"):
        merge_adapter(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
