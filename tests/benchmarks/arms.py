"""Measures one arm of one figure for `bench.py`, in its own process: `arms.py '{"figure": "kl",
...}'`. Without an argument it reads one specification per line from stdin, and keeps the loaded
model for the next.

Prints one JSON line for each: seconds (a list without the warm-up), peak (bytes above those held
before, or None) and further results. Peak memory is the process's resident set (VmHWM of /proc,
reset after everything is loaded and all weights were in use once), on CUDA the allocator's, and
None on other systems."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import GenerationConfig

from oelkit import envs
from oelkit.model import losses as kl
from oelkit.model.kept import Kept
from oelkit.model.loading import LORA, load_policy
from oelkit.model.memory import memory_plan
from oelkit.model.policy import Policy
from oelkit.model.sampling import generate
from oelkit.prompts import act_messages, load_prompt_set, with_experience
from oelkit.records import State, Turn
from oelkit.steps.distillation import distill
from oelkit.steps.extraction import extract
from oelkit.steps.rollouts import rollout
from oelkit.text import truncate_to_budget

ENV = "oelkit/FrozenLake-v0"
ITEM = (
    "- EXPERIENCE ITEM: Note {}: the goal wins, a hole ends the game, "
    "and a step into the wall is lost.\n"
)


class Peak:
    """Peak memory since `start`, above what was held then."""

    def start(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")

    def bytes(self) -> int | None:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self.before
        return self._status("VmHWM") - self.before if hasattr(self, "before") else None

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def timed(call, repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def experience(policy: Policy, tokens: int) -> str:
    """Return whole item lines that just fit into so many tokens."""
    return truncate_to_budget(
        "".join(map(ITEM.format, range(tokens // 8 + 8))).rstrip("\n"), tokens, policy.tokenizer
    )


def first_states(policy: Policy, n: int) -> list[State]:
    """Return the first state of n games."""
    prompts = load_prompt_set(policy.default_prompt_set)
    boards = [envs.make(ENV, board=prompts.board).reset(seed=i)[0] for i in range(n)]
    return [
        State(f"s{i}", f"g{i}", 0, act_messages(prompts, board)) for i, board in enumerate(boards)
    ]


@functools.lru_cache(maxsize=1)
def _load(model: str, quantize: str) -> Policy:
    return load_policy(model, quantize={"none": None}.get(quantize, quantize))


def _policy(spec: dict) -> Policy:
    return _load(spec["model"], spec["quantize"])


# -- figures: each takes the whole specification and returns the content of the JSON line


def measure_kl(spec: dict) -> dict:
    """Measure reverse KL of N tokens with its gradient, on random hidden states."""
    n, width, vocab = spec["tokens"], spec["width"], spec["vocab"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, width, generator=g).to(device) for _ in range(2))
    head = (torch.randn(vocab, width, generator=g) / width**0.5).to(device)
    student.requires_grad_()

    def naive(s, t):
        s, t = (s @ head.T).log_softmax(-1), (t @ head.T).log_softmax(-1)
        return (s.exp() * (s - t)).sum(-1).mean()

    if spec["arm"] == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        def loss(s, t):
            return ChunkedDivergenceFunction.apply(s, head, None, t, head, None, 1.0)[0].mean()
    elif spec["arm"] == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        # compiling needs a C compiler
        fused = LigerFusedLinearJSDLoss(0.0, 1.0, beta=1.0, compiled=False)

        def loss(s, t):
            return fused(s, head, t, head, torch.zeros(len(s), dtype=torch.long, device=device))
    else:
        loss = {"naive": naive, "ours": lambda s, t: kl.reverse_kl(s, t, head)}[spec["arm"]]

    def step():
        student.grad = None
        loss(student, teacher).backward()

    # the warm-up on 64 rows also checks that all arms compute the same
    few, grads = student[:64].detach(), []
    for f in (loss, naive):
        x = few.clone().requires_grad_()
        f(x, teacher[:64]).backward()
        grads.append(x.grad)
    error = float((grads[0] - grads[1]).norm() / grads[1].norm())
    peak = Peak()
    peak.start()
    return {"seconds": timed(step, spec["repeats"]), "peak": peak.bytes(), "gradient_error": error}


def measure_step(spec: dict) -> dict:
    """Measure distillation steps: sample, score, update.

    The first, which caches the teacher's prefix, is reported separately.
    """
    policy, repeats, batch = _policy(spec), spec["repeats"], spec["states"]
    prompts, states = load_prompt_set(policy.default_prompt_set), first_states(policy, batch)
    text = experience(policy, spec["experience"])
    told = [with_experience(prompts, state.prompt, text) for state in states]
    counts = {
        "experience_tokens": len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]),
        "student_tokens": sum(len(policy.encode(state.prompt)) for state in states) / batch,
        "teacher_tokens": sum(map(len, map(policy.encode, told))) / batch,
    }
    if spec["arm"] == "trl":
        return counts | _trl_steps(policy, spec, states, text, prompts)
    peak = _above_weights(policy.base_lm)
    warm_up = {"steps": 1, "batch_size": 1, "max_new_tokens": 2, "retention": 0.0}
    distill(policy, states[:1], [experience(policy, 64)], **warm_up)
    history = distill(
        policy,
        states,
        [text],
        steps=repeats + 1,
        batch_size=batch,
        retention=spec.get("retention", 0.0),
        max_new_tokens=spec["reply"],
        batch_tokens=spec.get("batch_tokens"),
    )
    found = peak.bytes()
    plan = memory_plan(
        policy,
        round(counts["teacher_tokens"] - counts["student_tokens"]),
        batch_size=batch,
        state_tokens=round(counts["student_tokens"]),
        reply_tokens=spec["reply"],
    )
    return counts | {
        "seconds": [step["seconds"] for step in history[1:]],
        "first": history[0]["seconds"],
        "peak": found,
        "planned": plan.peak,
        "loss": [step["loss"] for step in history],
        "reply_tokens": sum(step["reply_tokens"] for step in history[1:]) / repeats,
    }


@torch.no_grad()
def _above_weights(model) -> Peak:
    """Use every weight once, then start measuring peak memory."""
    model(torch.ones(1, 8, dtype=torch.long, device=model.device))
    peak = Peak()
    peak.start()
    return peak


def _trl_steps(policy: Policy, spec: dict, states: list[State], text: str, prompts) -> dict:
    """Measure the same steps with TRL's SDFTTrainer on full logits.

    LoRA, prompts, sampling and reverse KL are the same, with one update per batch. The warm-up step
    has a short experience. The template puts the experience before the prompt, not within it.
    """
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    repeats, batch = spec["repeats"], spec["states"]
    blocks = [
        prompts.experience.format(items=text)
        for text in (experience(policy, 64), *[text] * repeats)
    ]
    rows = [
        {"prompt": state.prompt, "privileged_context": block}
        for block in blocks
        for state in states
    ]
    bits = getattr(policy.base_lm.config, "quantization_config", None)  # 4 bits if ours is
    model = AutoModelForCausalLM.from_pretrained(
        policy.source,
        trust_remote_code=False,
        dtype=policy.head.weight.dtype,
        device_map=policy.device,
        **({"quantization_config": bits} if bits else {}),
    )
    begins, ends = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            begins.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SDFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch // spec["split"],
            num_generations=1,
            gradient_accumulation_steps=spec["split"],
            max_steps=repeats + 1,
            max_prompt_length=None,
            max_completion_length=spec["reply"],
            temperature=1.0,
            distillation_mode="full_logits",
            distillation_alpha=1.0,
            distillation_is_clip=None,
            teacher_prompt_template="{privileged_context}{prompt}",
            teacher_model_kind="base",
            shuffle_dataset=False,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = SDFTTrainer(
            model,
            config,
            datasets.Dataset.from_list(rows),
            processing_class=policy.tokenizer,
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        peak = _above_weights(trainer.model)
        trainer.train()
        logs = [line for line in trainer.state.log_history if "loss" in line]
    lengths = [line["completions/mean_length"] for line in logs[1:]]
    return {
        "seconds": [b - a for a, b in zip(begins, ends)][1:],
        "peak": peak.bytes(),
        "loss": [line["loss"] for line in logs],
        "reply_tokens": sum(lengths) / len(lengths),
    }


def measure_turns(spec: dict) -> dict:
    """Measure replies to the prompts of games, turn by turn.

    Moves are scripted, so that all arms read the same prompts.
    """
    policy = _policy(spec)
    prompts = load_prompt_set(policy.default_prompt_set)
    text = experience(policy, spec["experience"])
    worlds = [envs.make(ENV, board=prompts.board) for _ in range(spec["games"])]
    boards = [world.reset(seed=i)[0] for i, world in enumerate(worlds)]
    played, asked = [[] for _ in worlds], []
    for turn in range(spec["turns"]):
        messages = [act_messages(prompts, board, turns) for board, turns in zip(boards, played)]
        asked.append([policy.encode(with_experience(prompts, m, text)) for m in messages])
        for turns, board in zip(played, boards):  # into the wall, so boards do not change
            turns.append(
                Turn(board, [], "", "up" if turn % 2 else "left", "You did not move.", 0, 0, False)
            )

    kept = Kept(0 if spec["arm"] == "again" else None)

    def ours(batch):
        options = {"max_new_tokens": spec["reply"], "temperature": 0}
        generate(policy, batch, adapter=None, kept=kept, **options)

    def padded(batch):
        width = max(map(len, batch))
        ids = [[policy.pad_id] * (width - len(p)) + p for p in batch]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in batch]
        read = {"input_ids": ids, "attention_mask": mask}
        policy.base_lm.generate(
            **{name: torch.tensor(rows, device=policy.device) for name, rows in read.items()},
            max_new_tokens=spec["reply"],
            do_sample=False,
            pad_token_id=policy.pad_id,
        )

    def alone(batch):
        for prompt in batch:
            padded([prompt])

    def paged(batch):  # Transformers' continuous batching, which detects shared prefixes
        found = policy.base_lm.generate_batch(
            batch,
            GenerationConfig(
                max_new_tokens=spec["reply"],
                do_sample=False,
                eos_token_id=policy.eos_ids,
                pad_token_id=policy.pad_id,
            ),
        )
        assert len(found) == len(batch)

    run = {"padded": padded, "alone": alone, "paged": paged}.get(spec["arm"], ours)
    with torch.no_grad(), policy.adapter(None):
        padded([asked[0][0][:32]])  # warm-up
        peak = Peak()
        peak.start()
        began = time.process_time()
        seconds = timed(lambda: [run(batch) for batch in asked], spec["repeats"])
    return {
        "seconds": seconds,
        "cpu_seconds": (time.process_time() - began) / spec["repeats"],
        "peak": peak.bytes(),
        "turns": spec["games"] * spec["turns"],
        "prompt_tokens": sum(map(len, sum(asked, []))) / spec["games"] / spec["turns"],
    }


def measure_scaling(spec: dict) -> dict:
    """Measure a rollout, or an extraction from games played before, by the number of games."""
    policy, games = _policy(spec), spec["games"]
    options = {"max_new_tokens": spec["reply"]}
    extracts = spec["arm"] == "extract"
    played = rollout(policy, ENV, range(games if extracts else 2), **options)  # and warm-up
    if extracts:
        seconds = timed(lambda: extract(policy, played, **options), spec["repeats"])
    else:
        seconds = timed(lambda: rollout(policy, ENV, range(games), **options), spec["repeats"])
    return {"seconds": seconds, "peak": None}


def measure(spec: dict) -> dict:
    return globals()["measure_" + spec["figure"]](spec)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    for line in sys.stdin if len(sys.argv) == 1 else ():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # peers print to stdout
                found = measure(json.loads(line))
        except Exception as error:  # such as out of memory: the next may need less
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(found), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
