"""Rollout: the policy plays text worlds and returns trajectories.

Each turn, all live games share one generation call. A trajectory holds the outcome but no reward.
The worlds implement the paper's protocol (`envs`); sampling is the paper's T = 0.7 by default."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from numbers import Integral
from threading import current_thread, main_thread
from typing import Any

from .. import envs, given
from ..config import Sampling, also_takes
from ..model.kept import Kept
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..progress import Bar
from ..prompts import (
    SHIPPED,
    PromptSet,
    act_messages,
    game_text,
    load_prompt_set,
    with_experience,
    without_experience,
)
from ..records import Message, Outcome, State, Trajectory, Turn
from .training import oom_hint

WORLD_SECONDS = 600  # most that a world can take to begin or to go on; more is a hang


# why: thirteen, because five say what is played, and a run drives and records it with the rest
@also_takes(Sampling)
def rollout(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    experience: str | Sequence[str] = "",
    sampling: Sampling | None = None,
    *,
    prompt_set: str | PromptSet | None = None,
    system: str | None = None,
    seed: int = 0,
    round: int = 0,
    adapter: str | None = "student",
    env_kwargs: dict[str, Any] | None = None,
    progress: bool | str = False,
    **changes: Any,
) -> list[Trajectory]:
    """Play one game per map seed.

    Args:
        policy: the player.
        env_id: a registered world.
        seeds: one map seed per game.
        experience: a text for all prompts, or one text per game.
        sampling: how replies are sampled.
        prompt_set: texts of the prompts; also sets the board's rendering and the default of
            max_new_tokens (None: the policy's own).
        system: the agent's system prompt, in front of each state (None: the prompt set's).
        seed: fixes the replies.
        round: stored in the records.
        adapter: "student", "teacher", or None for the base model.
        env_kwargs: arguments of the world.
        progress: show a progress bar; a text names it.
        **changes: fields of the sampling (`oelkit.config.Sampling`: temperature, top_p, top_k,
            max_new_tokens, batch_tokens), as keywords.

    Returns:
        The trajectories, in the order of the seeds. A game ends early if its prompt outgrows the
        context (outcome turn_limit, tokens of the prompt in `extra["overflow"]`). It also ends if
        its world raises, hangs or returns invalid data, or if the chat template rejects its
        messages (unknown, `extra["error"]`). A warning counts both.

    Raises:
        ValueError: unknown world, no seeds, or a wrong number of texts.
        TypeError: seeds or texts have the wrong type, such as one text for a list of seeds.
        RuntimeError: every game ended in an error.
    """
    given.a_policy(policy)
    seeds, round = given.seeds("seeds", seeds), given.whole("round", round)
    if not seeds:
        raise ValueError("no games to play: seeds is empty")
    texts, seed = _one_each(experience, len(seeds)), given.whole("seed", seed)
    prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    if system is not None:
        prompt_set = replace(prompt_set, system=system)
    drawn = given.settings("sampling", Sampling, sampling, changes)
    options = drawn.options(prompt_set.max_new_tokens)
    kwargs = {"board": prompt_set.board, **given.one("env_kwargs", env_kwargs or {}, dict)}
    room = policy.context_length - options["max_new_tokens"]
    name = progress if isinstance(progress, str) else "rollout"
    bar = Bar(name, len(seeds), "game", bool(progress))
    games, kept = list[_Game](), Kept()  # what a turn reads is not read again in the next
    with bar, ExitStack() as worlds:  # closed even if something raises
        for s, text in zip(seeds, texts):
            games.append(_Game(envs.make(env_id, **kwargs), env_id, s, text))
            worlds.callback(games[-1].close)
            games[-1].begin()
        for turn in range(max(game.env.max_turns for game in games)):
            asked = [g for g in games if g.outcome is None and g.ask(policy, prompt_set)]
            live = [game for game in asked if len(game.ids) <= room]
            if turn or live:  # else the settings are wrong, and `generate` says so
                for game in asked:
                    if len(game.ids) > room:  # it has outgrown the context; the others go on
                        game.outcome, game.extra = Outcome.TURN_LIMIT, {"overflow": len(game.ids)}
                asked = live
            if not asked:
                break
            draw = {**options, "seed": seed * 1009 + turn, "kept": kept}
            with oom_hint("playing", max_new_tokens=options["max_new_tokens"], games=len(asked)):
                replies = generate(policy, [g.ids for g in asked], adapter=adapter, **draw)
            for game, reply in zip(asked, replies, strict=True):
                game.play(reply, policy.answer_text(reply.text, game.ids))
            bar.update(sum(game.outcome is not None for game in games) - bar.n)
            bar.set_postfix(won=sum(g.outcome == Outcome.SUCCESS for g in games), refresh=False)
        bar.update(len(games) - bar.n)
    _complain(games, policy.context_length)
    thinks = policy.enable_thinking
    thinking = {} if thinks is None else {"enable_thinking": thinks}
    out: list[Trajectory] = []
    for i, game in enumerate(games):
        name = f"{env_id.split('/')[-1]}-r{round}-m{game.seed}-s{seed}-{i}"
        about = name + _arm(adapter, game.text), env_id, game.seed, policy.name, round
        end = game.outcome or Outcome.UNKNOWN, game.turns[-1].feedback if game.turns else ""
        out.append(Trajectory(*about, tuple(game.turns), *end, game.extra | thinking))
    return out


def _one_each(experience: str | Sequence[str], games: int) -> list[str]:
    """Return one text per game; ValueError if the number is wrong."""
    texts = given.texts("experience", experience)
    texts = texts * games if isinstance(experience, str) else texts
    if len(texts) != games:
        raise ValueError(f"{len(texts)} experience texts for {games} games: need one, or one each")
    return texts


def _complain(games: list[_Game], context: int) -> None:
    """Warn about games that ended early; RuntimeError if all of them failed."""
    if over := [game.seed for game in games if "overflow" in game.extra]:
        warnings.warn(
            f"{len(over)} of {len(games)} games outgrew the context of {context} "
            f"tokens and ended there (maps {', '.join(map(str, over[:5]))})",
            stacklevel=3,
        )
    if failed := [game for game in games if game.error]:
        said = f"{len(failed)} of {len(games)} games ended in an error of their world, of the chat "
        said += f"template or of the model's server, first {failed[0].extra['error']}"
        if len(failed) == len(games):
            raise RuntimeError(said) from failed[0].error
        warnings.warn(said, stacklevel=3)


class _Game:
    """A running game, and the experience text that its player reads."""

    def __init__(self, env: Any, world: str, seed: int, text: str):
        self.env, self.world, self.seed, self.text = env, world, seed, text
        self.board, self.about = "", dict[str, Any]()
        self.prompt, self.ids = list[Message](), list[int]()
        self.turns: list[Turn] = []
        self.outcome: Outcome | None = None
        self.extra: dict[str, Any] = {}
        self.error: BaseException | None = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let any error of the world or of the chat template end this game, and no other."""
        try:
            with _time_limit(WORLD_SECONDS):
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's own world can even call sys.exit
            self.error, self.outcome = error, Outcome.UNKNOWN
            self.extra["error"] = f"{self.world}, map {self.seed}: {_told(error)}"

    def begin(self) -> None:
        """Reset the world and record what it shows first."""
        with self._guarded():
            board, info = self.env.reset(seed=self.seed)
            self.board, self.about = _text(board, "observation"), _about(info)

    def close(self) -> None:
        """Close the world; if that fails, only warn, because the game is complete."""
        try:
            with _time_limit(WORLD_SECONDS):
                self.env.close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as in `_guarded`
            what = f"{self.world}, map {self.seed}: its world could not be closed"
            warnings.warn(f"{what}: {_told(error)}", stacklevel=2)

    def ask(self, policy: Policy, prompt_set: PromptSet) -> bool:
        """Write the messages of this turn; return whether the chat template takes them."""
        with self._guarded():
            limits = self.env.max_turns, self.env.moves, self.env.tools
            state = act_messages(prompt_set, self.board, self.turns, *limits)
            self.prompt = with_experience(prompt_set, state, self.text)
            self.ids = policy.encode(self.prompt)
        return not self.error

    def play(self, reply: Reply, answer: str) -> None:
        """Record the reply and give its answer to the world."""
        action, feedback, about = None, "", self.about
        before, lengths = self.board, (len(self.ids), len(reply.ids))
        with self._guarded():
            if reply.error:
                raise reply.error
            board, _, _, _, info = self.env.step(answer)
            self.board, feedback = _text(board, "observation"), _text(info["feedback"], "feedback")
            action = None if info["action"] is None else _text(info["action"], "action")
            self.outcome = None if info["outcome"] is None else Outcome(info["outcome"])
            self.about = _about(info)
        rest = reply.truncated, about
        self.turns.append(Turn(before, self.prompt, reply.text, action, feedback, *lengths, *rest))


def _told(error: BaseException) -> str:
    with suppress(Exception):  # its message can itself raise an error
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"its {what} is a {type(value).__name__}, not text")
    return value


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds`; works only with signals, in the main thread on Unix."""
    if current_thread() is not main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it hung for {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # fires again if it was caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


def _about(info: dict[str, Any]) -> dict[str, Any]:
    """Return what a world says about the board that it shows, for the record of the turn."""
    level = info.get("level")  # a world of one's own can mean something else by it
    return {"level": int(level)} if isinstance(level, Integral) else {}


def _arm(adapter: str | None, text: str) -> str:
    """Return an id's part for adapter and experience; "" for the student without experience."""
    weights = "" if adapter == "student" else f"-{adapter or 'base'}"
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return weights + (f"-{digest}" if text else "")


def states(
    trajectories: Sequence[Trajectory],
    experience: str | Sequence[str] = "",
    prompt_set: str | PromptSet | None = None,
) -> list[State]:
    """Return the training states of trajectories: every turn's prompt, without experience.

    Args:
        trajectories: games or conversations.
        experience: the text that they were played with, or one per trajectory; it is removed.
        prompt_set: the prompt set that inserted the text (None: any that ships with oelkit).

    Raises:
        ValueError: no states, a wrong number of texts, or a prompt that does not contain its text.
    """
    out, games = [], given.records("trajectories", trajectories, Trajectory)
    sets = [load_prompt_set(name) for name in ([prompt_set] if prompt_set else SHIPPED)]
    for t, text in zip(games, _one_each(experience, len(games)), strict=True):
        for i, turn in enumerate(t.turns):
            prompt = without_experience(sets, turn.prompt, text) if text else turn.prompt
            out.append(State(f"{t.id}/{i}", t.id, i, prompt))
    if not out:
        raise ValueError("no states: the trajectories are empty")
    return out


def raw_games_text(trajectories: Sequence[Trajectory], prompt_set: PromptSet) -> str:
    """Return raw trajectories as an experience text, for the arm that skips extraction."""
    return "\n".join(game_text(prompt_set, game) for game in trajectories).strip("\n")
