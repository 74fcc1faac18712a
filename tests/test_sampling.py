"""Sampling: ids in, ids out, independent of batches, the folder's generation_config and the global
generator.
"""

from types import SimpleNamespace

import pytest
import torch
from helpers import SLIDING, greedy_by_hand, make_model, make_tokenizer, shake, some_prompts

from oelkit.config import Sampling
from oelkit.model.kept import Kept
from oelkit.model.loading import load_policy
from oelkit.model.memory import memory_plan
from oelkit.model.sampling import generate

LENGTH = {"brief": SimpleNamespace(max_new_tokens=3)}


@pytest.mark.slow
def test_greedy_replies_do_not_depend_on_the_batch(tiny):
    shake(tiny)
    prompts = some_prompts(32)
    alone = [generate(tiny, [p], max_new_tokens=40, temperature=0)[0] for p in prompts]
    sevens = [
        r
        for i in range(0, 32, 7)
        for r in generate(tiny, prompts[i : i + 7], max_new_tokens=40, temperature=0)
    ]
    assert generate(tiny, prompts, max_new_tokens=40, temperature=0) == alone == sevens
    assert generate(tiny, prompts, max_new_tokens=40, temperature=0, batch_tokens=200) == alone
    assert [r.ids for r in alone[:8]] == [greedy_by_hand(tiny, p, 40) for p in prompts[:8]]


def test_rows_that_end_leave_the_batch_and_the_others_go_on_the_same(tiny, monkeypatch):
    """Random replies hit end tokens at different times; the reference is decoding by hand."""
    shake(tiny)
    prompts = some_prompts(12, seed=3)
    long = [r.ids for r in generate(tiny, prompts, max_new_tokens=40, temperature=0)]
    ends = sorted({ids[min(at, len(ids) - 1)] for ids, at in zip(long, (2, 17, 20, 33))})
    tiny.base_lm.generation_config.eos_token_id = ends
    replies = generate(tiny, prompts, max_new_tokens=40, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(tiny, p, 40) for p in prompts]
    assert len({len(r.ids) for r in replies}) > 2  # otherwise the test shows nothing
    for reply in replies:
        ended = reply.ids[-1] in tiny.eos_ids
        assert reply.truncated is not ended and (ended or len(reply.ids) == 40)
        assert not set(reply.ids[:-1]) & set(tiny.eos_ids)
        assert reply.text == tiny.tokenizer.decode(reply.ids, skip_special_tokens=True)


@pytest.mark.parametrize("shared", [0, 300])
def test_a_prompt_that_is_there_several_times_is_read_once(tiny, shared, monkeypatch):
    shake(tiny)
    begin = torch.arange(shared).remainder(200).add(3).tolist()
    three = [begin + p for p in some_prompts(3, seed=5)]
    prompts = [three[i] for i in (0, 1, 0, 2, 2, 0, 1)]
    seen, forward = [], tiny.base_lm.base_model.forward
    monkeypatch.setattr(
        tiny.base_lm.base_model,
        "forward",
        lambda **kwargs: seen.append(kwargs["input_ids"].shape) or forward(**kwargs),
    )
    replies = generate(tiny, prompts, max_new_tokens=12, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(tiny, p, 12) for p in prompts]
    assert all(rows <= 3 or width == 1 for rows, width in seen[:20])
    alike = generate(tiny, [three[0]] * 20, max_new_tokens=6, temperature=1.5)
    assert len({tuple(r.ids) for r in alike}) > 10  # read once, but each sampled separately


def test_the_head_is_never_given_a_slice(tiny):
    """For a [B, 1, D] slice torch copies the head B times."""
    whole = []
    tiny.base_lm.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: whole.append(args[0].is_contiguous())
    )
    generate(tiny, some_prompts(4), max_new_tokens=3)
    assert whole and all(whole)


def test_ids_are_the_sampled_ones_where_text_would_give_others(tiny):
    replies = generate(tiny, some_prompts(20), max_new_tokens=20, temperature=2.0)
    again = [tiny.tokenizer(r.text, add_special_tokens=False)["input_ids"] for r in replies]
    # byte-level: half characters do not survive decoding
    assert any(r.ids != a for r, a in zip(replies, again))
    assert all(1 <= len(r.ids) <= 20 for r in replies)


def test_seed_and_global_generator(tiny):
    prompts = some_prompts(5)
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    a = generate(tiny, prompts, max_new_tokens=12, seed=1)
    assert torch.equal(torch.rand(2), want)
    assert generate(tiny, prompts, max_new_tokens=12, seed=1) == a
    assert generate(tiny, prompts, max_new_tokens=12, seed=2) != a


def test_mode_flags_and_config_are_as_before(tiny):
    config = tiny.base_lm.generation_config
    for mode in (True, False):
        tiny.model.train(mode)
        # one part in another mode, such as routers without noise
        tiny.base_lm.base_model.layers[0].eval()
        modes = [m.training for m in tiny.model.modules()]
        flags = [p.requires_grad for p in tiny.model.parameters()]
        generate(tiny, [[5, 6]], max_new_tokens=2, adapter="teacher")
        assert [m.training for m in tiny.model.modules()] == modes
        assert [p.requires_grad for p in tiny.model.parameters()] == flags
        assert tiny.base_lm.generation_config is config


def test_sampling_follows_the_models_distribution_not_the_folders_generation_config(tiny):
    """Compares first tokens of many samples with the softmax at that temperature. The folder's
    generation_config is misleading.
    """
    poison = tiny.base_lm.generation_config
    poison.do_sample, poison.top_k, poison.top_p, poison.repetition_penalty = True, 1, 0.1, 9.0
    poison.suppress_tokens, poison.min_new_tokens, poison.no_repeat_ngram_size = [10, 11, 12], 30, 2
    prompt, n = [5, 6, 7, 8], 4000
    with torch.no_grad():
        p = (tiny.model(input_ids=torch.tensor([prompt])).logits[0, -1] / 4.0).softmax(-1)

    def first(n, **options):
        replies = generate(tiny, [prompt] * n, max_new_tokens=1, temperature=4.0, **options)
        return [r.ids[0] for r in replies]

    seen = torch.bincount(torch.tensor(first(n)), minlength=len(p)) / n
    # mean total variation of n draws from p itself
    expected = (2 * p * (1 - p) / (torch.pi * n)).sqrt().sum() / 2
    assert 0.5 * (seen - p).abs().sum() < 1.3 * expected
    assert set(first(300, top_k=3)) == set(p.topk(3).indices.tolist())
    order = p.argsort(descending=True)
    nucleus = set(order[: int((p[order].cumsum(0) < 0.2).sum()) + 1].tolist())
    assert set(first(300, top_p=0.2)) <= nucleus


def test_adapters_differ(tiny):
    shake(tiny)
    prompts = some_prompts(4)
    student, teacher, base = (
        generate(tiny, prompts, max_new_tokens=8, temperature=0, adapter=a)
        for a in ("student", "teacher", None)
    )
    assert student != base and teacher == base
    assert [r.ids for r in student] == [greedy_by_hand(tiny, p, 8) for p in prompts]


def turns_of(games, shared=300):
    """Return prompts of games by turn. Each continues the previous one except for its end."""
    begin = torch.arange(shared).remainder(200).add(3).tolist()
    parts = [some_prompts(5, seed=9 + g) for g in range(games)]
    for turn in range(1, 5):
        yield [begin + sum(p[:turn], []) + p[4] for p in parts[turn // 3 :]]  # two go home


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("long"), max_position_embeddings=1024)


@pytest.fixture(scope="module", params=[0, 300])
def played(long_model, request):
    """Return turns of five games as prompts and replies by hand; all share a beginning, or not."""
    tiny = load_policy(long_model)
    shake(tiny)
    turns = [[*prompts, prompts[0]] for prompts in turns_of(5, request.param)]
    return [[(p, greedy_by_hand(tiny, p, 20)) for p in turn] for turn in turns]


@pytest.mark.parametrize("room", [None, 150_000])
def test_keys_and_values_are_kept_from_turn_to_turn(long_model, played, room, monkeypatch):
    """Replies equal those of whole forward passes, also with ended games and equal prompts. Fewer
    tokens are read; if room is short, some are read again.
    """
    tiny = load_policy(long_model)
    shake(tiny)
    read, forward = [], tiny.base_lm.base_model.forward
    monkeypatch.setattr(
        tiny.base_lm.base_model,
        "forward",
        lambda **kwargs: read.append(kwargs["input_ids"].numel()) or forward(**kwargs),
    )
    tokens = {}
    for keep in (Kept(room), Kept(0)):
        read.clear()
        for turn in played:
            prompts, by_hand = zip(*turn, strict=True)
            got = generate(tiny, prompts, max_new_tokens=20, temperature=0, kept=keep)
            assert tuple(r.ids for r in got) == by_hand
        tokens[keep.keeps] = sum(read)
        held = [x.nbytes for row in keep.rows for pair in row.kv for x in pair]
        assert bool(held) is keep.keeps and (room is None or sum(held) <= room)
    assert tokens[True] < tokens[False] * (0.8 if room is None else 1)


def test_nothing_is_kept_of_a_cache_that_cannot_be_cut(tmp_path):
    policy = load_policy(make_model(tmp_path, max_position_embeddings=1024, **SLIDING))
    kept = Kept()
    with pytest.warns(UserWarning, match="in full"):
        for prompts in turns_of(3, 70):
            replies = generate(policy, prompts, max_new_tokens=9, temperature=0, kept=kept)
            assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 9) for p in prompts]
    assert not kept.rows and not kept.prefixes


def test_sliding_window_and_other_cache_layers(tmp_path):
    policy = load_policy(make_model(tmp_path, **SLIDING))
    prompts = some_prompts(9)
    replies = generate(policy, prompts, max_new_tokens=36, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 36) for p in prompts]


def test_recurrent_layers_beside_attention(tmp_path):
    """Their cache has no keys. It stays correct when rows end or appear twice."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    tokenizer = make_tokenizer()
    config = Qwen3_5TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Qwen3_5ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    a, b, c = some_prompts(3, seed=4)
    long = generate(policy, [a, b, c], max_new_tokens=20, temperature=0)
    policy.base_lm.generation_config.eos_token_id = [2, long[1].ids[3]]
    prompts = [a, b, a, c]
    replies = generate(policy, prompts, max_new_tokens=36, temperature=0)
    assert [r.ids for r in replies] == [greedy_by_hand(policy, p, 36) for p in prompts]
    assert len({len(r.ids) for r in replies}) > 1
    assert memory_plan(policy, 100, state_tokens=50, reply_tokens=8).fits


def test_settings_as_an_object_or_as_keywords(tiny, monkeypatch):
    prompts, short = some_prompts(4), Sampling(temperature=1.5, max_new_tokens=5)
    plain = generate(tiny, prompts, temperature=1.5, max_new_tokens=5)
    assert generate(tiny, prompts, short) == plain
    assert generate(tiny, prompts, short, temperature=0, seed=1) != plain
    tiny.default_prompt_set = "brief"
    monkeypatch.setattr("oelkit.model.sampling.load_prompt_set", lambda name: LENGTH[name])
    assert {len(r.ids) for r in generate(tiny, prompts)} == {3}  # the prompt set's own
    with pytest.raises(TypeError, match="max_tokens"):
        generate(tiny, prompts, max_tokens=3)


def test_bad_input(tiny):
    with pytest.raises(ValueError, match="prompt 1 has 500 tokens"):
        generate(tiny, [[5], [5] * 500], max_new_tokens=20)
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        generate(tiny, [[]])
    odd = [{"temperature": t} for t in (-1, 1e-300, float("nan"), float("inf"))]
    for bad in (*odd, {"top_p": 0}, {"top_k": -1}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            generate(tiny, [[5]], **bad)
    assert generate(tiny, []) == []
