"""The policy: one language model, its tokenizer, and two LoRA adapters over one set of frozen base
weights.

What it does: turns messages into token ids; switches between student (trains), teacher (the student
as it was when `sync_teacher` was last called) and bare base model; saves and loads adapters;
gives the final hidden states that the losses of `kl` work on. What it does not: load models (see
`loading`), sample (see `generation`).

Departure from the paper: it fine-tunes all weights and keeps a second copy of the model as the
teacher; here the student is a LoRA adapter and the teacher a second, frozen adapter, so that both
share the base weights.

Rules that callers keep: finish the teacher's forward before the student's, and do not switch
adapters between a forward and its backward (gradient checkpointing would recompute with the wrong
adapter)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from ..text import answer_text
from .prefix import SharedPrefix

_bnb_log = logging.getLogger(
    "bitsandbytes"
)  # PEFT imports it, and on a CPU it warns of kernels nobody asked for
_level = _bnb_log.level
_bnb_log.setLevel(logging.ERROR)
from peft import (  # noqa: E402  # noqa: E402
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer  # noqa: E402

_bnb_log.setLevel(_level)

# more weights than this: merging costs more than the adapter's own products (measured on a CPU)
MERGE_MAX_PARAMS = 20_000_000


@dataclass
class Policy:
    """A model with its tokenizer; `model` is the PeftModel with the adapters "student" and
    "teacher".
    """

    model: PeftModel
    tokenizer: object
    name: str
    """What the caller named: "micro", a hub id or a folder; goes into the records."""
    default_prompt_set: str = "paper"
    """Name of the default prompt set (the model folder's oelkit.json may say another)."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None leaves it to the template's own default."""
    source: str = ""
    """The model folder, or the hub id again; a folder may hold an oelkit.json and a probe.jsonl."""

    def __post_init__(self) -> None:
        self.base_lm = self.model.get_base_model()
        self.lora_layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        # generate hands on a slice, [B, 1, D] of [B, T, D], for which torch would copy the whole
        # head B times
        self.base_lm.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: (args[0].contiguous(),)
        )
        self._head: torch.Tensor | None = None
        self.shares: bool | None = (
            None  # whether prompts may share a beginning's KV; see prefix.can_share
        )

    @property
    def device(self) -> torch.device:
        return self.base_lm.get_input_embeddings().weight.device

    @property
    def context_length(self) -> int:
        """Longest prompt + reply, in tokens."""
        positions = getattr(self.base_lm.config.get_text_config(), "max_position_embeddings", None)
        return positions or self.tokenizer.model_max_length

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a reply: the tokenizer's and those of the model's generation_config."""
        ids = self.base_lm.generation_config.eos_token_id
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.eos_ids or [0])[0]

    def trainable(self) -> list[torch.nn.Parameter]:
        """The student's LoRA weights."""
        return [p for n, p in self.model.named_parameters() if ".student." in n]

    # -- text and ids

    def encode(self, messages: list[dict], reply_prefix: str = "") -> list[int]:
        """Prompt ids of chat messages, generation prompt and the first words of the reply
        (`reply_prefix`) included.
        """
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **thinking
            )
        except (
            TemplateError
        ) as error:  # e.g. a template that knows no system role says so in this way
            raise ValueError(
                f"{self.name}: its chat template does not take these messages ({error}); give it roles "
                f"that it knows, not {[m['role'] for m in messages]}"
            ) from error
        # the template has written the special tokens already
        return self.tokenizer(text + reply_prefix, add_special_tokens=False)["input_ids"]

    def answer_text(self, reply: str) -> str:
        """The answer in a reply to a prompt of this policy: what follows `</think>`.

        It is "" where the thinking never ended, also where not the model but the chat template
        wrote `<think>`, at the end of the prompt (Qwen3-Thinking, R1 distils).
        """
        prompt = self.tokenizer.decode(self.encode([{"role": "user", "content": "?"}]))
        return answer_text(("<think>" if prompt.rstrip().endswith("<think>") else "") + reply)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    # -- adapters

    @contextmanager
    def adapter(self, adapter: str | None, merge: bool = False) -> Iterator[Policy]:
        """Run with "student", "teacher" or None (bare base); active adapter and requires_grad are
        as before afterwards.

        merge=True allows, without gradients, to save the adapter's own products: an untrained one
        (B = 0) is left out, and for a small dense float32 model the weights W are W + BA for the
        time being; the very same W comes back. Not so for others: in 16 bits W + BA is rounded, and
        4-bit weights are never merged."""
        if adapter not in ("student", "teacher", None):
            raise ValueError(
                f'no adapter {adapter!r}: say "student", "teacher" or None for the base model'
            )
        tuner = self.model.base_model
        grads = [(p, p.requires_grad) for p in self.model.parameters()]
        active, disabled = tuner.active_adapters[0], self.lora_layers[0].disable_adapters
        merge = merge and adapter is not None and not torch.is_grad_enabled()
        untrained = merge and self._untrained(adapter)
        merge = merge and not untrained and self._mergeable()
        weights = []
        try:
            if merge:
                for layer in self.lora_layers:
                    weight = layer.get_base_layer().weight
                    weights.append((weight, weight.data))
                    b, a = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
                    weight.data = torch.addmm(weight.data, b, a, alpha=layer.scaling[adapter])
            if adapter is None or merge or untrained:
                tuner.disable_adapter_layers()
            else:
                tuner.enable_adapter_layers()
                self.model.set_adapter(adapter, inference_mode=adapter == "teacher")
            yield self
        finally:
            for weight, data in weights:
                weight.data = data
            tuner.enable_adapter_layers()
            self.model.set_adapter(active)
            if disabled:
                tuner.disable_adapter_layers()
            for p, flag in grads:
                p.requires_grad_(flag)

    def _untrained(self, adapter: str) -> bool:
        """Whether the adapter adds nothing yet."""
        return not any(
            layer.lora_variant
            or adapter not in layer.lora_B
            or any(p.any() for p in layer.lora_B[adapter].parameters())
            for layer in self.lora_layers
        )

    def _mergeable(self) -> bool:
        """A small model whose LoRA layers all are plain ones over dense float32 matrices (no DoRA,
        no 4 bits).
        """
        bases = [layer.get_base_layer() for layer in self.lora_layers]
        return (
            all(
                type(base) is torch.nn.Linear and base.weight.dtype == torch.float32
                for base in bases
            )
            and not any(layer.lora_variant for layer in self.lora_layers)
            and sum(base.weight.numel() for base in bases) < MERGE_MAX_PARAMS
        )

    def reset(self) -> None:
        """Make the student, and the teacher with it, the untrained model again."""
        with (
            torch.random.fork_rng()
        ):  # LoRA's A is random: the same at each call, and the caller's generator untouched
            torch.manual_seed(0)
            for layer in self.lora_layers:
                layer.reset_lora_parameters(
                    "student", self.model.peft_config["student"].init_lora_weights
                )
        self.sync_teacher()

    @torch.no_grad()
    def sync_teacher(self) -> None:
        """Make the teacher the student of this moment (called at the start of a round)."""
        parameters = dict(self.model.named_parameters())
        for name, p in parameters.items():
            if ".teacher." in name:
                p.copy_(parameters[name.replace(".teacher.", ".student.")])

    def save_adapter(self, folder: str | Path) -> None:
        """Write the student as a PEFT adapter folder (adapter_config.json,
        adapter_model.safetensors, oelkit.json).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(
            self.model, adapter_name="student", save_embedding_layers=False
        )
        save_file(
            {k: v.contiguous().cpu() for k, v in state.items()},
            folder / "adapter_model.safetensors",
        )
        config = self.model.peft_config["student"]
        was, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = was
        base = {"base": self.name, "base_embedding": self._fingerprint()}
        (folder / "oelkit.json").write_text(json.dumps(base) + "\n")

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT LoRA folder into the student; ValueError where it is of another base model or
        another shape.
        """
        folder, ours = Path(folder), self.model.peft_config["student"]
        theirs = adapter_config(folder)
        notes = folder / "oelkit.json"
        if notes.is_file():
            mark, here = json.loads(notes.read_text()).get("base_embedding"), self._fingerprint()
            # 2 % and a bit: the same base in bfloat16 passes, another one does not
            if mark and (
                len(mark) != len(here)
                or any(abs(a - b) > 0.02 * abs(b) + 1e-4 for a, b in zip(mark, here))
            ):
                raise ValueError(
                    f"{folder}: this adapter was trained on another base model "
                    f"({theirs.base_model_name_or_path}), not on {self.name}; load it with that one"
                )
        for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
            if getattr(theirs, key) != getattr(ours, key):
                raise ValueError(
                    f"{folder}: its LoRA has {key}={getattr(theirs, key)}, the policy "
                    f"{getattr(ours, key)}; give the folder to load_policy(adapter=...), "
                    "which takes the adapter's own settings"
                )
        state = load_file(folder / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(
            self.model, adapter_name="student", save_embedding_layers=False
        )
        shapes, want = ({k: v.shape for k, v in tensors.items()} for tensors in (state, expected))
        if shapes != want:
            wrong = sorted(k for k in {**shapes, **want} if shapes.get(k) != want.get(k))
            raise ValueError(
                f"{folder}: an adapter of another base model than {self.name} "
                f"({theirs.base_model_name_or_path}): {len(wrong)} tensors do not fit, first {wrong[0]}"
            )
        set_peft_model_state_dict(self.model, state, adapter_name="student")

    def _fingerprint(self) -> list[float]:
        """A few embedding values: they tell one base from another, at whatever path and in whatever
        dtype it lies.
        """
        weight = self.base_lm.get_input_embeddings().weight
        return weight[:: max(1, len(weight) // 16), 0].float().tolist()

    # -- tensors for the losses

    @property
    def head_weight(self) -> torch.Tensor:
        """The frozen output matrix [V, D]; ValueError where logits are not just hidden states times
        this matrix.
        """
        if self._head is None:
            head = self.base_lm.get_output_embeddings()
            where = f"{self.name}: the losses need logits that are the hidden states times one frozen matrix, but "
            if isinstance(head, LoraLayer) or any(p.requires_grad for p in head.parameters()):
                raise ValueError(
                    where
                    + "its head is trained; leave lm_head out of target_modules and modules_to_save"
                )
            if not isinstance(head, torch.nn.Linear) or head.bias is not None:
                raise ValueError(
                    where + f"its head is a {type(head).__name__} with a bias or another form"
                )
            ids = torch.arange(8, device=self.device)[None] % len(head.weight)
            training = self.model.training
            self.model.eval()  # no dropout between the two
            with torch.no_grad():
                logits, plain = (
                    self.base_lm(input_ids=ids, use_cache=False).logits,
                    head(self.hidden(ids)),
                )
            self.model.train(training)
            # catches soft-caps, logit scales and whatever comes next without naming a single
            # architecture
            if (logits - plain).abs().max() > 1e-4 * plain.abs().max():
                raise ValueError(
                    where
                    + "it scales or caps them (soft-cap, logit scale); this model is not supported"
                )
            self._head = head.weight.detach()
        return self._head

    def hidden(self, input_ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Final hidden states [B, T, D] of right-padded ids [B, T], with the adapter in use and the
        caller's grad mode.

        No attention mask: attention is causal, so that a real token never sees the padding to its
        right, and without a mask SDPA takes its fast path. What stands at padded positions means
        nothing. cache: what comes before the ids."""
        return self.base_lm.base_model(
            input_ids=input_ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state


def reply_hidden(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    prefix: SharedPrefix | None = None,
) -> torch.Tensor:
    """Hidden states [N, D] from which each reply token is predicted; N = all reply tokens, row
    after row.

    One forward pass over one micro-batch of prompt + reply ids, padded on the right. Adapter
    (`policy.adapter`) and grad mode are the caller's. prefix: what all prompts begin with, computed
    before under the same adapter. ValueError where a prompt is empty or prompt + reply is longer
    than the context."""
    for i, (p, r) in enumerate(zip(prompts, replies, strict=True)):
        if not p or len(p) + len(r) > policy.context_length:
            raise ValueError(
                f"sequence {i}: {len(p)} prompt and {len(r)} reply tokens; the prompt must not be empty "
                f"and both together must fit the context of {policy.context_length}"
            )
    skip = len(prefix.ids) if prefix else 0
    # the last reply token predicts nothing, so it is not fed
    rows = [torch.tensor(([*p, *r][:-1] if len(r) else p)[skip:]) for p, r in zip(prompts, replies)]
    ids = pad_sequence(rows, batch_first=True, padding_value=policy.pad_id).to(policy.device)
    with prefix.as_cache(policy) if prefix else nullcontext() as cache:
        hidden = policy.hidden(ids, cache)
    starts = [len(p) - 1 - skip for p in prompts]
    return torch.cat([hidden[i, a : a + len(r)] for i, (a, r) in enumerate(zip(starts, replies))])


@torch.no_grad()
def token_logprobs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    *,
    adapter: str | None = "student",
    temperature: float = 1.0,
    batch_tokens: int = 16_384,
) -> list[torch.Tensor]:
    """Log-probability of every reply token: one float32 tensor [len(reply)] a pair, in the order
    given.
    """
    head, out = policy.head_weight, [None] * len(prompts)
    with policy.adapter(adapter, merge=True):
        for batch in token_batches(
            [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)], batch_tokens
        ):
            hidden = reply_hidden(policy, [prompts[i] for i in batch], [replies[i] for i in batch])
            ids = torch.tensor(
                [t for i in batch for t in replies[i]], dtype=torch.long, device=hidden.device
            )
            rows = max(1, 2**24 // len(head))  # never all [N, V] logits at once
            parts = [
                (h @ head.T).float().div_(temperature).log_softmax(-1).gather(-1, t[:, None])[:, 0]
                for h, t in zip(hidden.split(rows), ids.split(rows))
            ]
            for i, logprobs in zip(
                batch, torch.cat(parts).cpu().split([len(replies[i]) for i in batch])
            ):
                out[i] = logprobs
    return out


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by like length, each group at most batch_tokens when padded (one that is
    longer goes alone).
    """
    groups: list[list[int]] = []
    for i in sorted(
        range(len(lengths)), key=lambda i: -lengths[i]
    ):  # longest first: it sets the group's width
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > batch_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def adapter_config(folder: Path) -> LoraConfig:
    """The settings of a LoRA folder; FileNotFoundError where it is none, ValueError for another
    kind of adapter.
    """
    if (
        not (folder / "adapter_config.json").is_file()
        or not (folder / "adapter_model.safetensors").is_file()
    ):
        raise FileNotFoundError(
            f"{folder}: no adapter there (adapter_config.json and adapter_model.safetensors)"
        )
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"{folder}: a {config.peft_type} adapter; oelkit trains LoRA adapters only"
        )
    return config
