"""Shared beginnings: stored once, with the same hidden states and replies as without, and turned
off if that is impossible.
"""

import pytest
import torch
from families import make_family
from helpers import SLIDING, greedy_by_hand, make_model, make_tokenizer, shake, some_prompts

import oelkit.model.attention as attention
import oelkit.model.sampling as sampling
from oelkit.config import Sampling
from oelkit.model.loading import load_policy
from oelkit.model.memory import peak_bytes
from oelkit.model.packing import can_pack
from oelkit.model.prefix import (
    SharedPrefix,
    can_share,
    group_by_shared_prefix,
    join_small_groups,
    trial_fault,
)
from oelkit.model.sampling import generate
from oelkit.model.scoring import reply_hidden

START = some_prompts(1, seed=5, low=300, high=301)[0]
ENDS, REPLIES = some_prompts(9, seed=6), some_prompts(9, seed=7, low=1, high=12)
PROMPTS = [START + end for end in ENDS]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("adapter", ["teacher", None])
@pytest.mark.parametrize("at_once", [20_000, 1_000])  # a few rows, a few queries of one
def test_same_hidden_states_as_the_full_forward(
    tiny_model, dtype, tolerance, adapter, at_once, monkeypatch
):
    monkeypatch.setattr(attention, "MAX_SCORES", at_once)
    policy = load_policy(tiny_model, dtype=dtype)
    shake(policy, "teacher")
    with torch.no_grad(), policy.adapter(adapter):
        want = reply_hidden(policy, PROMPTS, REPLIES)
        prefix = SharedPrefix(policy, PROMPTS[0])
        prefix.crop(len(START))
        assert prefix.ids == START and prefix.kv[0][0].shape[2] == len(START)
        got = reply_hidden(policy, PROMPTS, REPLIES, prefix)
        assert torch.equal(reply_hidden(policy, PROMPTS, REPLIES), want)  # no setting stays changed
    assert (got - want).norm() <= tolerance * want.norm()
    z, t = ((x @ policy.head.weight.T).float().log_softmax(-1) for x in (got, want))
    if dtype == "float32":
        assert (z - t).norm() <= 1e-5 * t.norm()
    # as close to the exact values as the full forward in the same dtype
    exact = load_policy(tiny_model)
    shake(exact, "teacher")
    with torch.no_grad(), exact.adapter(adapter):
        true = reply_hidden(exact, PROMPTS, REPLIES)
    assert (got - true).norm() <= 1.5 * (want - true).norm() + 1e-5 * true.norm()


def test_a_long_own_part_takes_no_memory_for_its_square(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", 2**18)
    policy = load_policy(make_model(tmp_path, max_position_embeddings=4096))
    prompt, replies = START + some_prompts(1, seed=9, low=3000, high=3001)[0], [[5, 6, 7]]
    with torch.no_grad():
        prefix = SharedPrefix(policy, START)
        read = lambda: reply_hidden(policy, [prompt], replies, prefix)  # noqa: E731
        want = reply_hidden(policy, [prompt], replies)
        assert (read() - want).norm() < 1e-5 * want.norm()
        assert peak_bytes(read, policy.device) < 4 * 3000**2  # scores of one head of four


def test_greedy_replies_are_those_by_hand(tiny):
    shake(tiny)
    lone = some_prompts(3, seed=8)
    replies = generate(tiny, [*PROMPTS, *lone], max_new_tokens=20, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(tiny, p, 20) for p in [*PROMPTS, *lone]]
    few = generate(tiny, PROMPTS, max_new_tokens=20, temperature=0, batch_tokens=200)
    assert few == replies[:9]


def test_the_beginning_is_kept_once_and_not_copied_for_each_row(tiny, monkeypatch):
    used = []
    assert can_share(tiny)
    real = attention._with_logsumexp
    spy = lambda q, k, v, s: used.append(k) or real(q, k, v, s)  # noqa: E731
    monkeypatch.setattr(attention, "_with_logsumexp", spy)
    generate(tiny, PROMPTS, max_new_tokens=3)
    assert used and {k.shape for k in used} == {(1, 2, len(START), 16)}
    # one per layer, from the first token to the last
    assert len({k.data_ptr() for k in used[:2] + used[-2:]}) == 2


def test_groups():
    a, b, short = list(range(400)), [*range(300), *range(1000, 1400)], [1, 2, 3]
    prompts = [a + [1], b + [1], short, a + [2, 3], b + [2], a + [5]]
    groups = {tuple(rows): n for n, rows in group_by_shared_prefix(prompts, 256)}
    assert sorted(i for rows in groups for i in rows) == list(range(6)) and groups[(2,)] == 0
    for rows, n in groups.items():
        assert n == 0 or n >= 256
        assert all(prompts[i][:n] == prompts[rows[0]][:n] and len(prompts[i]) > n for i in rows)
    assert group_by_shared_prefix([a, a], 256)[0] == (399, [0, 1])
    assert group_by_shared_prefix([[1], [1]], 64) == [(0, [0, 1])]
    assert group_by_shared_prefix([], 64) == []


def test_groups_that_save_less_than_a_pass_for_each_token_are_sampled_together():
    """Where a pass is expensive, as on a GPU, four pairs that share 280 tokens are one batch."""
    room, cost = 32_768, 4000
    pairs = [(280, [i, i + 1]) for i in range(0, 8, 2)]
    prompts = [[i // 2] * 280 + [9] * 40 for i in range(8)]
    assert join_small_groups(pairs, prompts, 32, room, cost) == [(0, list(range(8)))]
    assert join_small_groups(pairs, prompts, 32, room, 0) == pairs  # where only tokens cost
    texts = [(2000, list(range(i, i + 32))) for i in (0, 32)]  # two texts, 32 games each
    long = [[i // 32] * 2000 + [9] * 700 for i in range(64)]
    assert join_small_groups(texts, long, 32, room, cost) == texts
    mixed = [(0, [66]), *texts, (280, [64, 65])]
    joined = join_small_groups(mixed, [*long, *prompts[:3]], 32, room, cost)
    assert joined == [(0, [64, 65, 66]), *texts]
    alone = [(280, [0, 1])]  # nothing to join it with, and still no saving
    assert join_small_groups(alone, prompts, 32, room, cost) == [(0, [0, 1])]
    assert join_small_groups(alone, prompts, 32, room, 10) == [(319, [0, 1])]  # a cheap pass
    assert join_small_groups([], [], 32, room, cost) == []


def test_joined_groups_keep_the_prefix_that_all_of_them_share():
    prompts = [[1] * 500 + [i // 2] * 280 + [9] * 40 for i in range(8)]
    pairs = [(780, [i, i + 1]) for i in range(0, 8, 2)]
    assert join_small_groups(pairs, prompts, 32, 32_768, 40) == [(500, list(range(8)))]
    assert join_small_groups(pairs, prompts, 512, 32_768, 40) == [(0, list(range(8)))]


def test_groups_sampled_together_reply_the_same(tiny, monkeypatch):
    prompts = [[*START, i, *end] for i in (5, 6) for end in ENDS[:3]]
    batches, real = [], sampling._sample
    monkeypatch.setattr(sampling, "_sample", lambda *a: (batches.append(len(a[1])), real(*a))[1])
    replies = []
    for cost in (0, 4000):
        monkeypatch.setattr(sampling, "pass_tokens", lambda policy, cost=cost: cost)
        monkeypatch.setattr(sampling, "min_shared_prefix", lambda policy: len(START) + 1)
        replies.append([r.ids for r in generate(tiny, prompts, max_new_tokens=5, temperature=0)])
    assert batches == [3, 3, 6] and replies[0] == replies[1]
    room = Sampling(max_new_tokens=5, temperature=0, batch_tokens=2 * len(prompts[0]) + 10)
    assert [r.ids for r in generate(tiny, prompts, room)] == replies[0]
    assert batches[3:] == [3, 3]  # six at once are too many


def test_other_layers_turn_it_off_with_one_line(tmp_path):
    policy = load_policy(make_model(tmp_path, **SLIDING))
    told = "computed in full, because it has sliding windows"
    with pytest.warns(UserWarning, match=told) as seen:
        replies = generate(policy, PROMPTS[:3], max_new_tokens=6, temperature=0)
        assert not can_share(policy) and len(seen) == 1
    assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 6) for p in PROMPTS[:3]]


def test_an_attention_that_comes_out_otherwise_turns_it_off(tiny, monkeypatch):
    real = attention._with_logsumexp
    off = lambda *args: (real(*args)[0] * 1.1, real(*args)[1])  # noqa: E731
    monkeypatch.setattr(attention, "_with_logsumexp", off)
    with pytest.warns(UserWarning, match="trial run was off by"):
        assert not can_share(tiny)


def test_a_model_that_refuses_the_trial_without_a_word_turns_it_off(tiny, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(type(tiny), "hidden", refuse)
    with pytest.warns(UserWarning, match=r"trial run failed \(NotImplementedError\(\)\)"):
        assert not can_share(tiny)


def test_each_token_of_a_trial_counts_except_in_16_bits():
    want = torch.ones(2, 4, 8)
    got = want.clone()
    got[1, 2] = 1.1
    assert trial_fault(got, want) == "a trial run was off by 1e-01"
    assert trial_fault(got.bfloat16(), want.bfloat16()) == ""
    got[1, 2] = torch.nan
    assert trial_fault(got.double(), want.double())


@pytest.mark.parametrize("kind", ["aria_text", "ernie4_5_moe"])
def test_tokens_that_take_another_expert_in_16_bits_do_not_turn_it_off(kind, tmp_path):
    policy = load_policy(make_family(kind, tmp_path), dtype="bfloat16")
    shake(policy)
    assert can_share(policy) and can_pack(policy)


def test_a_model_whose_vocabulary_size_stands_in_its_text_config(tmp_path):
    """Gemma 3 from 4 B on loads as a model of text and images."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = make_tokenizer()
    layer = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2)
    text = dict(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        layer_types=["full_attention"] * 2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    vision = dict(num_hidden_layers=1, image_size=28, patch_size=14)
    config = Gemma3Config(
        text_config=layer | text, vision_config=layer | vision, mm_tokens_per_image=4
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    assert not hasattr(policy.base_lm.config, "vocab_size") and can_share(policy)
    replies = generate(policy, PROMPTS[:3], max_new_tokens=6, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 6) for p in PROMPTS[:3]]


def test_grouped_queries_on_an_old_card_take_no_quadratic_kernel(tiny, monkeypatch):
    """There, torch has no other kernel if there are fewer key heads than query heads."""
    real, seen = torch.nn.functional.scaled_dot_product_attention, []

    def spy(query, key, value, **options):
        seen.append((query.shape[1], key.shape[1], options.get("enable_gqa", False)))
        return real(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    ids, prompts = torch.tensor([START]), [PROMPTS[0][200:], PROMPTS[1][150:250]]
    with torch.no_grad():
        want, greedy = tiny.hidden(ids), generate(tiny, prompts, max_new_tokens=9, temperature=0)
        assert (4, 2, True) in seen
        seen.clear()
        with monkeypatch.context() as patch:  # as on a T4
            patch.setattr(type(tiny.base_lm), "device", torch.device("cuda"))
            patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
            attention.repeat_key_heads(tiny.base_lm)
        got = tiny.hidden(ids)
        assert generate(tiny, prompts, max_new_tokens=9, temperature=0) == greedy
    assert seen and {(q, k, gqa) for q, k, gqa in seen} == {(4, 4, False)}
    assert (got - want).norm() < 1e-5 * want.norm()
    assert can_share(tiny)  # and is used again after a shared beginning
    assert generate(tiny, PROMPTS[:3], max_new_tokens=3)
    assert tiny.base_lm.config._attn_implementation == "repeated_keys"
