"""Distillation: a whole step against float64 autograd on full logits, and what training must not
change.
"""

import signal
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import LOSSES, make_model, shake, spy_on_generate
from safetensors import safe_open
from safetensors.torch import save_file

from oelkit.config import DistillConfig
from oelkit.messages import in_parts
from oelkit.model.loading import load_policy
from oelkit.model.sampling import Reply, generate
from oelkit.model.scoring import reply_hidden, token_logprobs
from oelkit.prompts import act_messages, load_prompt_set, with_experience
from oelkit.records import State, read_jsonl
from oelkit.steps import distillation as module
from oelkit.steps import teacher as teaching
from oelkit.steps.distillation import distill
from oelkit.steps.training import prepare

PROMPTS = load_prompt_set("brief")
STATES = [
    State(f"s{i}", "t", i, act_messages(PROMPTS, f"BOARD {'x' * 3 * i}{i}")) for i in range(6)
]
TEXT = "- EXPERIENCE ITEM: the left one is a hole, the right one is not."


def train(policy, states=STATES, experiences=(TEXT,), **options):
    small = {"prompt_set": PROMPTS, "steps": 1, "batch_size": 6, "max_new_tokens": 5}
    plain = {"lr": 1e-3, "warmup": 0, "retention": 0.0}
    return distill(policy, states, experiences, **small | plain | options)


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def weights(policy):
    return [p.detach().clone() for p in policy.trainable()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def calls(monkeypatch):
    return spy_on_generate(monkeypatch, module)


def reference(policy, students, teachers, replies, loss, top_k, temperature, frozen="teacher"):
    """Return loss and LoRA gradients by definition.

    In float64, one sample at a time, from full logits with plain autograd.
    """
    policy.model.double()
    for p in policy.trainable():
        p.grad = None
    total = 0.0
    for student, teacher, reply in zip(students, teachers, replies, strict=True):

        def logprobs(adapter, prompt):
            with policy.adapter(adapter):
                logits = policy.base_lm(input_ids=torch.tensor([prompt + reply])).logits[0]
            return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)

        with torch.no_grad():
            t = logprobs(frozen, teacher)
        s = logprobs("student", student)
        if loss in ("sft", "sampled_kl"):
            own, ids = s, torch.tensor(reply)[:, None]
            terms = -own.gather(1, ids)
            if loss == "sampled_kl":  # value of the log-ratio, with a policy gradient
                cost, own = (own - t).gather(1, ids), own.gather(1, ids)
                terms = cost.detach() * own + (cost - cost * own).detach()
        elif loss == "jsd":
            m = ((s.exp() + t.exp()) / 2).log()
            terms = (s.exp() * (s - m) + t.exp() * (t - m)) / 2
        else:
            terms = s.exp() * (s - t) if loss == "reverse_kl" else t.exp() * (t - s)
            if top_k:
                terms = terms.gather(1, s.detach().topk(top_k, 1).indices)
        total = total + terms.sum(1).mean() / len(students)
    total.backward()
    return total.item(), [p.grad.clone() for p in policy.trainable()]


@pytest.mark.parametrize(
    "loss, top_k, temperature",
    [
        ("reverse_kl", None, 1.0),
        ("reverse_kl", 7, 0.7),
        ("forward_kl", None, 1.0),
        ("forward_kl", 7, 0.7),
        ("jsd", None, 0.7),
        ("sampled_kl", None, 1.0),
        ("sft", None, 0.7),
    ],
)
def test_a_whole_step_equals_float64_autograd(tiny_model, calls, loss, top_k, temperature):
    policy, exact = load_policy(tiny_model), load_policy(tiny_model)
    for p in (policy, exact):
        shake(p)
        p.sync_teacher()
    before, grads = weights(policy), []
    (row,) = train(
        policy,
        loss=loss,
        top_k=top_k,
        temperature=temperature,
        batch_tokens=150,  # some micro-batches
        on_step=lambda row: grads.extend(p.grad.clone() for p in policy.trainable()),
    )
    ((asked, options, replies),) = calls
    # the prompts reveal the order of the states
    told = [with_experience(PROMPTS, s.prompt, TEXT) for s in STATES]
    plain = [policy.encode(s.prompt) for s in STATES]
    with_text = [policy.encode(m) for m in told]
    order = [(with_text if loss in ("forward_kl", "sft") else plain).index(p) for p in asked]
    assert sorted(order) == list(range(6)) and options["temperature"] == temperature
    students, teachers = ([ids[i] for i in order] for ids in (plain, with_text))
    said = [r.ids for r in replies]
    value, wanted = reference(exact, students, teachers, said, loss, top_k, temperature)
    assert row["loss"] == pytest.approx(value, rel=1e-4, abs=1e-7)
    norm = torch.stack([g.norm() for g in wanted]).norm()
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    clip = min(1.0, 1.0 / (norm.item() + 1e-6))
    errors = [(g.double() - clip * w).norm() for g, w in zip(grads, wanted, strict=True)]
    assert torch.stack(errors).norm() < 1e-4 * norm * clip
    # Adam's first step is lr against the sign of the gradient
    for old, new, g in zip(before, policy.trainable(), grads, strict=True):
        assert torch.allclose(new, old - 1e-3 * g / (g.abs() + 1e-8), atol=1e-6)


def test_rehearsal_adds_the_kl_to_the_untrained_model_on_the_students_answers(tiny_model, calls):
    def ask(i):
        return State(f"r{i}", "t", i, [{"role": "user", "content": f"Count to {i}{i}."}])

    def trained(**options):
        policy, grads = load_policy(tiny_model), []
        shake(policy)
        kept = {"on_step": lambda row: grads.extend(p.grad.clone() for p in policy.trainable())}
        (row,) = train(policy, loss="forward_kl", **kept, **options)
        return row, [g * max(1.0, row["grad_norm"] + 1e-6) for g in grads], policy  # not clipped

    (row, without, _), (told, grads, policy) = trained(), trained(rehearsal=[*map(ask, range(4))])
    assert told["loss"] == row["loss"] and "rehearsal_loss" not in row
    asked, options, replies = calls[-1]  # after the teacher's answers to the states
    assert len(asked) == 3 and options["adapter"] == "student"
    assert {*map(tuple, asked)} <= {tuple(policy.encode(ask(i).prompt)) for i in range(4)}
    exact, said = load_policy(tiny_model), [reply.ids for reply in replies]
    shake(exact)
    how = ("reverse_kl", None, 1.0, None)
    value, wanted = reference(exact, asked, asked, said, *how)
    assert told["rehearsal_loss"] == pytest.approx(value, rel=1e-4) and value > 0
    for a, b, w in zip(grads, without, wanted, strict=True):  # three prompts, six states
        torch.testing.assert_close((a - b).double(), w / 2, rtol=1e-3, atol=1e-6)


def test_what_is_rehearsed_fits_the_context_and_is_the_policys_own(tiny):
    long = State("long", "t", 0, [{"role": "user", "content": "x" * 5000}])
    short = State("short", "t", 0, [{"role": "user", "content": "x"}])
    with pytest.warns(UserWarning, match="1 of 2 states are left out: state 'long' has"):
        (row,) = train(tiny, rehearsal=[long, short])
    assert row["rehearsal_loss"] == pytest.approx(0, abs=1e-5)  # an untrained student
    with pytest.raises(TypeError, match="rehearsal: expected a list of State records"):
        train(tiny, rehearsal="prompts.jsonl")


def prepared(policy, batch_tokens=100_000, **changes):
    """Return a training whose micro-batches have so many tokens."""
    options = {"batch_size": 6, "max_new_tokens": 5, **changes}
    training = prepare(policy, STATES, [TEXT], None, PROMPTS, 0, options)
    sizes = {"batch_tokens": batch_tokens, "scored_tokens": batch_tokens}
    training.plan = replace(training.plan, **sizes)
    return training


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_give_the_same_gradient(tiny, loss):
    shake(tiny)
    tiny.sync_teacher()
    shake(tiny, seed=2)
    students = [tiny.encode(s.prompt) for s in STATES]
    teachers = [tiny.encode(with_experience(PROMPTS, s.prompt, TEXT)) for s in STATES]
    replies, found = generate(tiny, students, max_new_tokens=5), []
    for batch_tokens in (1, 200, 100_000):
        training = prepared(tiny, batch_tokens, loss=loss)
        told = teaching.hidden_states(training, teachers, replies, [(None, list(range(6)))])
        value = module._backward(training, students, replies, None if loss == "sft" else told)
        found.append((value, [p.grad.clone() for p in tiny.trainable()]))
        for p in tiny.trainable():
            p.grad = None
    for value, grads in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5)
        for g, w in zip(grads, found[0][1], strict=True):
            assert (g - w).norm() <= 1e-5 * (1 + w.norm())
    named = tiny.model.named_parameters()
    assert not any(p.requires_grad for n, p in named if ".student." not in n)


def test_teacher_and_base_do_not_move_and_the_student_does(tiny):
    shake(tiny)
    tiny.sync_teacher()
    prompts = [tiny.encode(s.prompt) for s in STATES]
    replies = [r.ids for r in generate(tiny, prompts, max_new_tokens=5)]
    named = tiny.model.named_parameters()
    frozen = {n: p.detach().clone() for n, p in named if ".student." not in n}

    def logprobs(adapter):
        return token_logprobs(tiny, prompts, replies, adapter=adapter)

    seen, checked = {a: logprobs(a) for a in ("student", "teacher", None)}, []

    def on_step(row):
        for adapter in ("teacher", None):
            assert same(seen[adapter], logprobs(adapter))
        checked.append(row["step"])

    train(tiny, steps=3, on_step=on_step)
    assert checked == [0, 1, 2]
    assert all(torch.equal(p, frozen[n]) for n, p in tiny.model.named_parameters() if n in frozen)
    assert not same(seen["student"], logprobs("student"))
    assert not tiny.model.training and all(p.grad is None for p in tiny.model.parameters())


def test_the_loss_falls_and_the_student_without_the_text_becomes_like_the_teacher_with_it(tiny):
    plain = [tiny.encode(s.prompt) for s in STATES]
    told = [tiny.encode(with_experience(PROMPTS, s.prompt, TEXT)) for s in STATES]
    replies = [r.ids for r in generate(tiny, plain, max_new_tokens=5, temperature=1.0, seed=99)]

    @torch.no_grad()
    def distance():  # fixed states and replies that were not trained on
        with tiny.adapter("teacher"):
            teacher = reply_hidden(tiny, told, replies)
        with tiny.adapter("student"):
            student = reply_hidden(tiny, plain, replies)
        return module.losses.reverse_kl(student, teacher, tiny.head).item()

    start = distance()
    rows = train(tiny, steps=12, batch_size=12, lr=5e-3)
    assert start > 0.01 and distance() < 0.6 * start
    losses = [row["loss"] for row in rows]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert [row["step"] for row in rows] == list(range(12))
    fields = "step loss entropy lr replies reply_tokens truncated skipped grad_norm seconds"
    assert set(rows[0]) == set(fields.split())
    for row in rows:
        assert 0 < row["reply_tokens"] <= 5 and 0 <= row["truncated"] <= 1 and row["entropy"] > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_who_speaks(tiny, calls, loss):
    train(tiny, loss=loss, steps=2, batch_size=3)
    for prompts, options, _ in calls:
        texts = [tiny.decode(p) for p in prompts]
        if loss in ("reverse_kl", "jsd", "sampled_kl"):
            assert options["adapter"] == "student" and not any(TEXT in t for t in texts)
        else:
            assert options["adapter"] == "teacher" and all(TEXT in t for t in texts)
    asked = [tuple(p) for prompts, _, _ in calls for p in prompts]
    assert len(set(asked)) == 6  # every state once before any repeats
    assert calls[0][1]["seed"] != calls[1][1]["seed"]


def test_several_texts_are_drawn_by_sample(tiny, calls):
    train(tiny, experiences=["TEXT-A", "", "TEXT-B", "  "], loss="sft", batch_size=12)
    texts = [tiny.decode(p) for p in calls[0][0]]
    counts = [sum(t in text for text in texts) for t in ("TEXT-A", "TEXT-B")]
    assert sum(counts) == 12 and min(counts) > 0  # empty texts teach nothing and are left out


def test_a_long_experience_is_computed_once_a_round_and_changes_nothing(tiny, monkeypatch):
    facts = "left one is a hole", "right one is the goal"
    long = [f"- EXPERIENCE ITEM: the {fact}. " * 7 for fact in facts]
    built, used, real = [], [], teaching.SharedPrefix

    def spy(policy, prompts, replies, prefix=None):
        used.append(prefix and len(prefix.ids))
        return reply_hidden(policy, prompts, replies, prefix)

    monkeypatch.setattr(
        teaching, "SharedPrefix", lambda *args: built.append(args[1]) or real(*args)
    )
    monkeypatch.setattr(teaching, "reply_hidden", spy)

    def once():
        tiny.reset()
        shake(tiny)
        rows = train(tiny, experiences=long, steps=3)
        return [(row["loss"], row["grad_norm"]) for row in rows], weights(tiny)

    (rows, end), shared = once(), [n for n in used if n]
    assert len(built) == 2 and shared and min(shared) > 256
    monkeypatch.setattr(teaching, "min_shared_prefix", lambda policy: 10_000)
    used.clear()
    again, other = once()
    torch.testing.assert_close(rows, again, rtol=1e-4, atol=1e-6)
    assert all((a - b).norm() <= 1e-3 * b.norm() for a, b in zip(end, other, strict=True))
    assert not any(used)


def test_retain_lets_the_student_read_too(tiny, calls):
    (first,) = train(tiny, retention=0.5)
    assert sum(TEXT in tiny.decode(p) for p in calls[0][0]) == 3
    tiny.reset()
    (whole,) = train(tiny, retention=1.0)
    assert all(TEXT in tiny.decode(p) for p in calls[1][0])
    assert first["loss"] > 1e-3 and abs(whole["loss"]) < 1e-6  # student = teacher, same prompt


def test_token_ids_are_never_tokenised_again(tiny, calls, monkeypatch):
    scored = []

    def spy(real):
        return lambda policy, prompts, replies, *rest: (
            scored.append({(tuple(p), tuple(r)) for p, r in zip(prompts, replies)})
            or real(policy, prompts, replies, *rest)
        )

    for where, name in ((teaching, "reply_hidden"), (module, "packed_hidden")):
        monkeypatch.setattr(where, name, spy(getattr(where, name)))
    train(tiny, STATES, batch_size=6, max_new_tokens=24, temperature=1.5)
    prompts, _, replies = calls[0]
    student = set(zip(map(tuple, prompts), (tuple(r.ids) for r in replies)))
    assert scored[1] == student and {r for _, r in scored[0]} == {r for _, r in student}
    again = [tiny.tokenizer(r.text, add_special_tokens=False)["input_ids"] for r in replies]
    assert any(ids != r.ids for ids, r in zip(again, replies, strict=True))


def test_a_seed_fixes_the_run_and_what_was_left_over_does_not_count(tiny):
    def once(seed):
        tiny.reset()
        return timeless(train(tiny, steps=2, seed=seed)), weights(tiny)

    rows, end = once(3)
    for p in tiny.trainable():  # as after an interrupted cell
        p.grad = torch.ones_like(p)
    again, end_again = once(3)
    assert rows == again and same(end, end_again)
    other, end_other = once(4)
    assert rows != other and not same(end, end_other)


@pytest.mark.parametrize("loss", ["reverse_kl", "sft"])
def test_the_first_steps_can_be_off_policy(tiny, calls, loss):
    """They are those of forward KL, then come those of the loss; an off-policy loss stays."""

    def rows(**options):
        tiny.reset()
        return timeless(train(tiny, steps=3, lr=1e-2, seed=3, max_new_tokens=4, **options))

    mixed = rows(loss=loss, off_policy_steps=2)
    asked = [options["adapter"] for _, options, _ in calls]
    if loss == "sft":
        assert mixed == rows(loss=loss)
    else:
        assert asked == ["teacher", "teacher", "student"]
        forward = rows(loss="forward_kl")
        assert mixed[:2] == forward[:2] and mixed[2] != forward[2]


def test_warmup_then_constant(tiny):
    rows = train(tiny, steps=4, batch_size=2, lr=1e-3, warmup=2, max_new_tokens=2)
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])


def test_a_linear_schedule_falls_to_nothing(tiny):
    options = {"lr": 1e-3, "warmup": 1, "lr_schedule": "linear"}
    rows = train(tiny, steps=4, batch_size=2, max_new_tokens=2, **options)
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 / 2, 1e-3, 2e-3 / 3, 1e-3 / 3])
    with pytest.raises(ValueError, match="lr_schedule"):
        train(tiny, lr_schedule="cosine")


def test_weight_decay_takes_its_share_of_the_adapter_at_each_step(tiny):
    def size(**options):
        tiny.reset()
        start = torch.cat([p.flatten() for p in weights(tiny)]).norm()
        train(tiny, steps=3, lr=1e-4, warmup=0, max_new_tokens=2, **options)
        return float(torch.cat([p.flatten() for p in weights(tiny)]).norm() / start)

    assert size() == pytest.approx(1, abs=0.05)
    assert size(weight_decay=5_000) == pytest.approx(0.5**3, abs=0.05)


def test_nothing_to_learn_from_and_wrong_arguments(tiny):
    before = weights(tiny)
    long = State("long", "t", 0, [{"role": "user", "content": "x" * 600}])
    for states, options, message in [
        ([], {}, "there are no states"),
        (STATES, {"experiences": []}, "no experience is left"),
        (STATES, {"experiences": ["", " \n"]}, "no experience is left.*all were rejected"),
        (STATES, {"loss": "kl"}, f"loss='kl': choose one of {', '.join(LOSSES)}"),
        (STATES, {"batch_size": 0}, "batch_size=0"),
        (STATES, {"temperature": 0}, "temperature=0"),
        (STATES, {"temperature": float("inf")}, "temperature=inf"),
        (STATES, {"retention": 1.5}, "retention=1.5"),
        (STATES, {"lr": 1e-3, "weight_decay": 1e3}, "weight_decay=1000.0: one step would decay"),
        (STATES, {"weight_decay": -1}, "weight_decay=-1"),
        (STATES, {"steps": 0}, "steps=0"),
        (STATES, {"off_policy_steps": -1}, "off_policy_steps=-1"),
        (STATES, {"lr": float("nan")}, "lr=nan"),
        (
            STATES,
            {"experiences": [TEXT, "LONG ONE " * 60]},
            "the experience that begins 'LONG ONE .*512.*budget",
        ),
        ([long], {}, "state 'long' has .* context of 512"),
        (STATES, {"prompt_set": "none"}, "no prompt set 'none'"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(tiny, states, **options)
    assert same(before, weights(tiny))


@pytest.mark.parametrize("length", [600, 330])  # too long alone; only behind the experience
def test_a_state_over_the_context_is_left_out_and_the_others_are_learned(tiny, length):
    long = State("long", "t", 0, [{"role": "user", "content": "x" * length}])
    assert (len(tiny.encode(long.prompt)) > 500) == (length == 600)
    wanted = train(tiny)
    tiny.reset()
    with pytest.warns(UserWarning, match=rf"1 of {len(STATES) + 1} states are left out: .*'long'"):
        rows = train(tiny, [*STATES, long], experiences=[TEXT, TEXT + " word" * 20])
    assert len(rows) == len(wanted)
    with pytest.warns(UserWarning, match="are left out"):
        options = [TEXT + " word" * 20, None, PROMPTS, 0, {"max_new_tokens": 5}]
        assert prepare(tiny, [long, *STATES], *options).states == STATES


def test_only_the_setting_that_is_wrong_is_named(tiny):
    for wrong in ({"lr": -1}, {"warmup": -1}, {"steps": 0}, {"retention": 2}, {"batch_size": 0}):
        (name, value), *_ = wrong.items()
        with pytest.raises(ValueError, match=f"^{name}={value}[.0]*: need"):
            train(tiny, **wrong)


def test_a_cell_that_is_run_twice_says_that_it_trains_on_top(tiny):
    for again in (False, True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(tiny, STATES[:1], max_new_tokens=2)
        assert any("policy.reset()" in str(w.message) for w in caught) == again
        if again:
            tiny.reset()


def test_states_that_cannot_be_asked_are_left_out_and_the_others_are_learned(tiny):
    """The template rejects one, and the other has no place for the experience."""
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    asked = State("tools", "t", 0, [{"role": "user", "content": "?", "tools": tools}])
    said = State("said", "t", 0, [{"role": "assistant", "content": "Hi."}])
    wanted = train(tiny)
    tiny.reset()
    told = rf"2 of {len(STATES) + 2} states are left out: state 'tools': .* shows no tools"
    with pytest.warns(UserWarning, match=told):
        rows = train(tiny, [asked, *STATES, said])
    assert [row["loss"] for row in rows] == [row["loss"] for row in wanted]
    with pytest.raises(ValueError, match="state 'tools': .* shows no tools"):
        train(tiny, [asked])
    with pytest.raises(ValueError, match="state 'said': a prompt without a user message"):
        train(tiny, [said])


@pytest.mark.parametrize("fault", ["gradient", "loss"])
def test_what_is_not_finite_stops_before_it_ruins_the_weights(tiny, monkeypatch, tmp_path, fault):
    before, bad = weights(tiny), float("inf" if fault == "gradient" else "nan")
    if fault == "gradient":
        hook = tiny.trainable()[-1].register_hook(lambda grad: grad * bad)
    else:  # the gradient itself is fine
        loss = module._loss
        monkeypatch.setattr(module, "_loss", lambda *args: loss(*args) + bad)
    told = rf"step 0: the {fault} is (inf|nan); lower lr \(now 0.0"
    with pytest.raises(RuntimeError, match=told):
        train(tiny, checkpoint=tmp_path / ".distill.checkpoint")
    if fault == "gradient":
        hook.remove()
    assert same(before, weights(tiny))
    rows = read_jsonl(tmp_path / "distill.failed.jsonl")  # all that the batch was made of
    assert {row["state"] for row in rows} == {state.id for state in STATES}
    assert all(row["fault"].startswith(f"the {fault} is ") for row in rows)
    for row in rows:
        state = next(state for state in STATES if state.id == row["state"])
        asked = with_experience(PROMPTS, state.prompt, row["experience"])
        assert row["student_ids"] == tiny.encode(state.prompt)
        assert row["teacher_ids"] == tiny.encode(asked)
        assert row["reply"] == tiny.reply_text(row["student_ids"], row["reply_ids"])


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("long"), max_position_embeddings=2048)


@pytest.mark.slow
@pytest.mark.parametrize("replies", [32, 64])
def test_float16_learns_the_gradient_of_float32(long_model, monkeypatch, replies):
    """On four of the paper's 64 replies of 1,024 tokens, with their weight in the loss."""
    grads, g, told, loss = [], torch.Generator().manual_seed(0), None, module._loss
    answers = [Reply(y, "", True) for y in torch.randint(3, 250, (4, 1024), generator=g).tolist()]
    monkeypatch.setattr(module, "_loss", lambda *a: loss(*a[:4], a[4] * 4 / replies, a[5]))
    for dtype in ("float32", "float16"):
        policy = load_policy(long_model, dtype=dtype)
        # a small loss: without scaling, most of its gradient underflows to 0
        shake(policy, "teacher", size=0.005)
        training = prepared(policy, 4096, batch_size=replies, max_new_tokens=1024)
        students = [policy.encode(s.prompt) for s in STATES[:4]]
        told = told or teaching.hidden_states(training, students, answers, [(None, [0, 1, 2, 3])])
        module._backward(training, students, answers, [x.to(policy.head.weight) for x in told])
        training.scaler.unscale_(training.optimizer)
        grads.append(torch.cat([p.grad.flatten() for p in policy.trainable()]))
    want, got = grads
    assert torch.cosine_similarity(want, got, dim=0) > 0.999
    assert float(got.norm()) == pytest.approx(float(want.norm()), rel=0.01)


def test_an_overflow_in_float16_skips_the_step_and_goes_on(tiny_model, tmp_path):
    policy, rows = load_policy(tiny_model, dtype="float16"), []
    before = weights(policy)

    def watch(row):
        rows.append((row["skipped"], same(before, weights(policy))))

    hook = policy.trainable()[-1].register_hook(
        lambda grad: grad * (float("inf") if len(rows) < 2 else 1)
    )
    with pytest.warns(UserWarning) as said:
        history = train(policy, steps=4, on_step=watch, checkpoint=tmp_path / "t.safetensors")
    hook.remove()
    assert rows == [(True, True), (True, True), (False, False), (False, False)]
    assert [row["skipped"] for row in history] == [True, True, False, False]
    texts = [str(w.message) for w in said if "overflowed" in str(w.message)]
    assert "step 0" in texts[0] and "(1 of 1 so far)" in texts[0] and "scale is 16 " in texts[0]
    assert "step 1" in texts[1] and "(2 of 2 so far)" in texts[1] and "scale is 8 " in texts[1]
    # a stopped training resumes with that scale
    training = prepared(policy)
    saved = module.Checkpoint(training, tmp_path / "t.safetensors")
    saved.identity = safe_open(saved.path, "pt").metadata()["identity"]
    saved.restore()
    assert training.scaler.get_scale() == 8


def test_a_gradient_that_overflows_at_every_scale_ends_the_training(tiny_model):
    policy = load_policy(tiny_model, dtype="float16")
    policy.trainable()[-1].register_hook(lambda grad: grad * float("inf"))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="step 5: the gradient is"):
        train(policy, steps=9)  # 6 states of 5 tokens: the scale begins at 32


def test_a_loss_that_jumps_is_said_at_once(tiny, monkeypatch):
    values, said = iter([0.2, 0.3, 0.8, 1.0, 0.2, 3.1]), []
    real = module._backward
    monkeypatch.setattr(module, "_backward", lambda *args: real(*args) and (next(values), 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tiny, steps=6, warmup=2, on_step=lambda row: said.append(len(caught)))
    assert said == [0, 0, 0, 0, 0, 1]  # a ninefold rise over a single low value does not count
    told = "step 5: the loss jumped from 1 to 3.1 nats per token; lower lr (now 0.001) or raise w"
    assert told in str(caught[0].message)


def test_the_losses_before_and_after_the_off_policy_steps_are_not_compared(tiny, monkeypatch):
    values = iter([0.2, 0.3, 9.0, 9.0, 9.0, 30.0])
    monkeypatch.setattr(module, "_backward", lambda *args: (next(values), 0.0))
    with pytest.warns(UserWarning) as caught:
        train(tiny, steps=6, off_policy_steps=2)
    (jump,) = [str(w.message) for w in caught if "jumped" in str(w.message)]
    assert jump.startswith("step 5: the loss jumped from 9")


def test_the_texts_whose_keys_and_values_find_no_room_are_read_again(tiny, monkeypatch):
    words = "left", "right", "up"
    long = [f"- EXPERIENCE ITEM: the {word} one is a hole. " * 7 for word in words]

    def once(kept):
        tiny.reset()
        shake(tiny)
        training = prepare(tiny, STATES, long, None, PROMPTS, 0, {"max_new_tokens": 5, "steps": 3})
        training.plan = replace(training.plan, kept_texts=kept)
        most, rows = 0, []
        for step in range(3):
            rows.append(module.distill_step(training, step)["loss"])
            most = max(most, len(training.prefixes))
        return rows, weights(tiny), most

    rows, end, kept = once(3)
    assert kept == 3
    again, other, kept = once(1)
    assert kept == 1 and again == rows and same(end, other)


@pytest.mark.parametrize(
    "where, what, lower",
    [
        ("generate", "sampling", r"max_new_tokens \(now 5\) or batch_size \(now 6\)"),
        ("reply_hidden", "training", r"batch_tokens \(now \d+\); oelkit.memory_plan"),
    ],
)
def test_out_of_memory_says_what_to_lower_and_leaves_the_student(
    tiny, monkeypatch, where, what, lower
):
    before = weights(tiny)

    def full(*args, **kwargs):  # on a CPU, the system kills the process without an error
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nLong advice")

    told = f"step 0: {what} ran out of memory: lower {lower}"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=told):
        patch.setattr(teaching if where == "reply_hidden" else module, where, full)
        train(tiny)
    assert same(before, weights(tiny)) and not tiny.model.training
    assert train(tiny)[0]["loss"] > 0  # and goes on


@pytest.mark.parametrize("stop", [0, 1, 4, 6])
def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(tiny, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    options = {"steps": 7, "batch_size": 4, "retention": 0.3, "experiences": [TEXT, "TEXT-B"]}
    options |= {"rehearsal": STATES[:3], "lr_schedule": "linear"}
    tiny.reset()
    rows, end = train(tiny, **options), weights(tiny)
    tiny.reset()

    def kill(row):
        if row["step"] == stop:
            raise RuntimeError("killed")

    file, seen = tmp_path / "training.safetensors", []
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny, checkpoint=file, on_step=kill, **options)
    tiny.reset()  # as a new process starts the round
    again = train(tiny, checkpoint=file, on_step=seen.append, **options)
    assert timeless(again) == timeless(rows) and same(end, weights(tiny))
    assert [row["step"] for row in seen] == list(range(stop // 2 * 2, 7))
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_is_refused_and_never_other_weights(tiny, tmp_path):
    file = tmp_path / "training.safetensors"
    said = r"training\.safetensors is damaged .*: delete it, and the training starts"
    tiny.reset()
    rows, end = train(tiny, steps=2, checkpoint=file), weights(tiny)
    saved = module.Checkpoint(prepared(tiny), file)
    with safe_open(file, "pt") as whole:
        header, tensors = whole.metadata(), {k: whole.get_tensor(k) for k in whole.keys()}  # noqa: SIM118
    saved.identity, whole = header["identity"], file.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")  # byte of the tensors
    tiny.reset()
    start = weights(tiny)
    for at in [*range(0, first, first // 90), *range(first, len(whole), len(whole) // 90)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=said):
            saved.restore()
    without = {k: v for k, v in tensors.items() if k != "student.1"}
    for left, about in ((without, header), (tensors, {**header, "sha256": ""}), (tensors, None)):
        save_file(left, file, about)
        with pytest.raises(ValueError, match=said):
            saved.restore()
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=said):
        train(tiny, steps=2, checkpoint=file)
    assert same(start, weights(tiny)) and not saved.training.history
    file.unlink()
    assert timeless(train(tiny, steps=2, checkpoint=file)) == timeless(rows)
    assert same(end, weights(tiny))


def test_a_checkpoint_is_of_one_base_one_lora_and_one_date(tiny, tmp_path, monkeypatch):
    def identity():
        return module.Checkpoint(prepared(tiny), tmp_path / "t.safetensors").identity

    first, lora = identity(), tiny.model.peft_config["student"]
    inner = tiny.lora_layers[-1].get_base_layer().weight  # the embedding stays
    for thing, name, value in (
        (inner, "data", inner.data + 0.01),
        (lora, "lora_alpha", lora.lora_alpha + 1),
        (lora, "lora_dropout", 0.1),
        (tiny, "date", "1999-12-31"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(thing, name, value)
            assert identity() != first, name
    assert identity() == first


def test_what_is_no_checkpoint_is_not_replaced_by_one(tiny, tmp_path):
    tiny.save_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not the checkpoint of a training; name another file"):
        train(tiny, steps=1, checkpoint=file)
    with pytest.raises(ValueError, match="a folder; a checkpoint is a file"):
        train(tiny, steps=1, checkpoint=tmp_path)
    assert file.read_bytes() == before


def test_a_checkpoint_of_another_training_is_not_gone_on_with(tiny, tmp_path):
    file = tmp_path / "training.safetensors"
    train(tiny, steps=2, checkpoint=file)
    for changes in ({"lr": 2e-3}, {"experiences": ["other"]}, {"states": STATES[:5]}, {"seed": 1}):
        tiny.reset()
        wanted = train(tiny, steps=2, **changes)
        tiny.reset()
        assert timeless(train(tiny, steps=2, checkpoint=file, **changes)) == timeless(wanted)


def test_ctrl_c_ends_after_the_step_and_what_was_done_is_kept(tiny, tmp_path):
    file, seen = tmp_path / "training.safetensors", []
    tiny.reset()
    rows = train(tiny, steps=3)
    tiny.reset()

    def press(row):
        seen.append(row)
        if row["step"] == 0:
            signal.raise_signal(signal.SIGINT)

    # a background job of a shell ignores SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped after 1 of 3 steps"):
            train(tiny, steps=3, checkpoint=file, on_step=press)
    finally:
        signal.signal(signal.SIGINT, before)
    tiny.reset()
    assert timeless(train(tiny, steps=3, checkpoint=file, on_step=press)) == timeless(rows)
    assert [row["step"] for row in seen] == [0, 1, 2]


def test_retention_holds_in_the_mean_for_small_batches(tiny, calls):
    train(tiny, steps=8, batch_size=2, retention=0.25, max_new_tokens=2)
    read = [sum(TEXT in tiny.decode(p) for p in prompts) for prompts, _, _ in calls]
    assert sum(read) == 4 and max(read) == 1


def test_one_text_may_be_a_plain_string(tiny, calls):
    train(tiny, experiences=TEXT, loss="sft")
    assert all(TEXT in tiny.decode(p) for p in calls[0][0])


def test_settings_come_as_a_config_and_as_keywords(tiny, calls):
    config = DistillConfig(steps=1, batch_size=3, max_new_tokens=2)
    distill(tiny, STATES, TEXT, config, prompt_set=PROMPTS, lr=1e-3)
    assert len(calls[0][0]) == 3 and calls[0][1]["max_new_tokens"] == 2


def test_states_that_contain_the_experience_are_said(tiny):
    told = [replace(s, prompt=with_experience(PROMPTS, s.prompt, TEXT)) for s in STATES[:2]]
    told[1] = replace(told[1], prompt=in_parts(told[1].prompt))
    with pytest.warns(UserWarning, match="2 of 6 states, first 's0', contain the experience"):
        train(tiny, [*told, *STATES[2:]])


def test_a_checkpoint_belongs_to_its_base_model(tmp_path):
    for seed in (0, 1):  # the adapters begin alike
        policy = load_policy(make_model(tmp_path / str(seed), seed=seed))
        seen = []
        train(policy, steps=2, checkpoint=tmp_path / "kept", on_step=seen.append)
        assert len(seen) == 2
