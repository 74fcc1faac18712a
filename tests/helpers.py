"""Helpers for several test files: tiny models, games, metrics. Tests never import each other."""

import importlib.util
import math
import os
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import get_args, get_type_hints

import gymnasium as gym
import pytest
import torch
from matplotlib.text import Text

from oelkit import envs
from oelkit.config import DistillConfig
from oelkit.envs import parse_action
from oelkit.records import Evidence, ExperienceItem, Outcome, Trajectory, Turn, write_jsonl
from oelkit.stats import wilson_interval

ROOT = Path(__file__).parents[1]
LOSSES = get_args(get_type_hints(DistillConfig)["loss"])
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)

# a chat template that renders tools, calls and results
TOOLS = (
    "{% if tools %}{% for t in tools %}<tool>{{ t.function.name }}</tool>{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template=TEMPLATE):
    """Make a byte-level tokenizer with two special tokens and a few merges.

    The merges make sure that decoding and encoding again gives different ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("f", "t"), ("l", "e"), ("le", "ft")]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, *("".join(m) for m in merges)]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=chat_template,
    )


SLIDING = {  # one layer of each kind, for make_model
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention"],
}


def make_model(folder, seed=0, chat_template=TEMPLATE, **changes):
    """Save a random Qwen3 model and its tokenizer to folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer(chat_template)
    config = Qwen3Config(
        **{
            **dict(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                tie_word_embeddings=True,
                max_position_embeddings=512,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.2,
            ),
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_short_probe(source, folder, every=16):
    """Copy a model that ships with oelkit, with only a few of its OOD questions."""
    shutil.copytree(source, folder)
    lines = (folder / "probe.jsonl").read_text("utf-8").splitlines(True)
    (folder / "probe.jsonl").write_text("".join(lines[::every]), "utf-8")
    return folder


def short_prompts(folder, most=16):
    """Copy the embedded model's prompt set, with replies so short that the base model's rambling
    is cut off. Return the file's name.
    """
    text = (ROOT / "oelkit/prompts/brief.toml").read_text("utf-8")
    assert "max_new_tokens = 128\n" in text
    path = folder / "short.toml"
    path.write_text(text.replace("max_new_tokens = 128\n", f"max_new_tokens = {most}\n"), "utf-8")
    return str(path)


def shake(policy, adapter="student", seed=1, size=0.1):
    """Set LoRA B weights at random, so that the adapter has an effect."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if f".{adapter}." in name and "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=g) * size)


def some_prompts(n, seed=0, low=3, high=40):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (n,), generator=g).tolist()
    return [torch.randint(3, 250, (length,), generator=g).tolist() for length in lengths]


def greedy_by_hand(policy, prompt, n):
    """Decode greedily with whole forward passes, without cache, padding or batch."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + n:
            ids.append(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] in policy.eos_ids:
                break
    return ids[len(prompt) :]


def rate(passes, n=128):
    low, high = wilson_interval(passes, n)
    return {
        "pass_rate": passes / n,
        "low": low,
        "high": high,
        "n": n,
        "reply_tokens": 40 - passes / 9,
        "truncated": 0.02,
    }


def make_metrics(
    consolidated=(115, 112), base=7, in_context=104, probe=(0.91, 0.88, 0.9), arms=True
):
    """Return metrics as from `Run.run_all`. probe: OOD of the base and after each round."""

    def ood(share):
        return probe and {"all": share, "copy": share, "other_letters": share - 0.05, "n": 200}

    rounds = []
    for k, passes in enumerate(consolidated, 1):
        rows = {
            "base": rate(base),
            "in_context": {**rate(in_context), "by_draw": [0.7, 0.9]},
            "consolidated": rate(passes),
        }
        rounds.append(
            {
                "round": k,
                "pass_rate": rows,
                "items": 30 + k,
                "kept": 20 + k,
                "ood": {
                    "base": ood(probe and probe[0]),
                    "consolidated": ood(probe and probe[min(k, len(probe) - 1)]),
                },
                **{
                    kind: {arm: row[kind] for arm, row in rows.items()}
                    for kind in ("reply_tokens", "truncated")
                },
                "seconds": {"rollout": 1.5, "distill": 20.0},
            }
        )
    metrics = {
        "run": "demo",
        "env": "oelkit/FrozenLake4x4-v0",
        "eval_env": "oelkit/FrozenLake4x4Unseen-v0",
        "model": "micro",
        "seed": 0,
        "bounds": {"random": 0.031, "fixed_plan": 0.062, "ceiling": 1.0},
        "rounds": rounds,
    }
    if arms:
        metrics["arms"] = {
            "raw": {"in_context": rate(40), "consolidated": rate(30), "ood": ood(0.85)},
            "forward_kl": {"consolidated": rate(94), "ood": ood(0.7)},
            "sft": {"consolidated": rate(80), "ood": ood(0.6)},
        }
    return metrics


def make_rows(
    steps=8, arms=(("round 1", 1), ("round 2", 2), ("forward_kl", 1), ("sft", 1), ("raw", 1))
):
    return [
        {"arm": arm, "round": k, "step": s, "loss": math.exp(-s / k), "entropy": 0.3}
        for arm, k in arms
        for s in range(steps)
    ]


def make_game(
    moves=("[left]", "[down]", "no idea", "[right]", "[right]"),
    env_id="oelkit/FrozenLake4x4-v0",
    seed=3,
):
    env = envs.make(env_id, board="labelled", max_turns=max(5, len(moves)))
    board, turns = env.reset(seed=seed)[0], []
    for reply in moves:
        after, *_, info = env.step(reply)
        prompt = [{"role": "user", "content": board}]
        turns.append(Turn(board, prompt, reply, info["action"], info["feedback"], 9, 3, False))
        board = after
        if info["outcome"]:
            break
    return Trajectory(
        f"game-m{seed}",
        env_id,
        seed,
        "micro",
        1,
        tuple(turns),
        info["outcome"] or Outcome.UNKNOWN,
        info["feedback"],
    )


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def words(figure):
    return " | ".join(t.get_text() for t in texts(figure))


def assert_whole(figure):
    """Assert that all text is inside the figure and drawing gives no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert (
        min(drawn.x0, drawn.y0) > -0.01 and drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01
    ), drawn


class Doors(gym.Env):
    """One of four doors opens under each light; a second guess is allowed."""

    action_space = observation_space = gym.spaces.Text(200)
    OPENS = {"red": "up", "green": "left"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.light = ("red", "green")[self.np_random.integers(2)]
        return f"The light is {self.light}.", {}

    def step(self, reply):
        won = parse_action(reply) == self.OPENS[self.light]
        return f"{self.light}: {'open' if won else 'shut'}", float(won), won, False, {}


def by_hand(run, *texts, k=1):
    """Add a person's own items between two stages, as for a model that wrote none."""
    first = run.rollout(k)[0]
    run.extract(k)
    write_jsonl(
        run.round_folder(k) / "items.jsonl",
        [
            ExperienceItem(f"i{n}", text, (Evidence(first.id, 0),), "tiny", k, n % 2)
            for n, text in enumerate(texts or ("H is a hole.", "G is the goal."))
        ],
    )
    return run


def spy_on_generate(monkeypatch, module):
    """Record a module's calls of the real generator: (prompts, options, replies)."""
    from oelkit.model.sampling import generate

    calls = []

    def spy(policy, prompts, **options):
        calls.append((prompts, options, generate(policy, prompts, **options)))
        return calls[-1][2]

    monkeypatch.setattr(module, "generate", spy)
    return calls


def in_mounts(mounts, *command, **options):
    """Run a command with the mounts of a shell script, which nothing else sees.

    Skips the test if the system does not allow mounts.
    """
    own = ["unshare", "-rm"]
    try:
        subprocess.run([*own, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mounts of one's own here: unshare -rm")
    shell = [*own, "sh", "-ec", f'{mounts}\ncd "$PWD"\nexec "$@"', "sh", *map(str, command)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    return subprocess.run(shell, capture_output=True, text=True, env=env, timeout=900, **options)


def read_only(folder):
    """Return the script that mounts a folder read-only, for `in_mounts`."""
    at = shlex.quote(str(folder))
    return f"mount --bind {at} {at}; mount -o remount,ro,bind {at}"


def load_script(path):
    """Load a script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
