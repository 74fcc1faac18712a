"""Make the embedded model `micro` from scratch: corpus, tokenizer, training and checks, all seeded.

    python data/micro/make.py                            # about 80 minutes on 2 CPU cores
    python data/micro/make.py --scale 0.02 --out trial   # two minutes; the models are useless

Training has two phases. The model of the first, data/micro_lakes, is kept for its studies.

The corpus is a *family* of grid worlds. In each, random letters stand for hole, goal and decoy
(first phase), or for holes, key and goal (second phase), so that only the notes in the prompt say
which is which. README.md beside this file says what such a model can and cannot show."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import string
import time
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

# Must be set before torch is loaded: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from oelkit.envs import ACTIONS, DescentBoard, DescentEnv, DescentLayout, Layout
from oelkit.envs.board import DESCENT_LETTERS, DESCENT_ROLES, STEPS, label, neighbours, render_board
from oelkit.envs.descent import facts as facts_said
from oelkit.prompts import act_messages, extract_messages, load_prompt_set, with_experience
from oelkit.records import Outcome, State, Trajectory, Turn, write_jsonl
from oelkit.text import MARKER

BRIEF = load_prompt_set("brief")
LETTERS = [x for x in string.ascii_uppercase if x != "P"]
DEPLOYED = {"H", "G"}  # never hole and goal together here: only experience tells what they mean
WORDS = [
    "cat",
    "dog",
    "sun",
    "sea",
    "map",
    "cup",
    "hat",
    "bed",
    "red",
    "big",
    "old",
    "hot",
    "fox",
    "owl",
    "pen",
    "key",
    "box",
    "tea",
    "oak",
    "ant",
]
HOLE_NOTES = ["{} is a hole.", "{} is a hole.", "{} is a hole.", "Avoid {}.", "{} loses."]
GOAL_NOTES = ["{} is the goal.", "{} is the goal.", "{} is the goal.", "Go to {}.", "{} wins."]
SCORE_EVERY = 2_000_000  # tokens
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ----------------------------------------------------------------------------------------------
# worlds and players


def draw_world(rng: random.Random) -> tuple[Layout, dict[str, str]]:
    """Draw a layout outside the held-out split, and letters for its roles.

    Hole and goal are never the deployed pair.
    """
    while True:
        size = rng.choice((3, 4, 4, 4))
        holes, goals, decoys = (
            rng.randint(1, 2 if size == 3 else 4),
            rng.choice((1, 1, 1, 2, 3)),
            rng.choice((0, 0, 1, 2)),
        )
        drawn = rng.sample(range(size * size), 1 + holes + goals + decoys)
        parts = (
            drawn[1 : 1 + goals],
            drawn[1 + goals : 1 + goals + holes],
            drawn[1 + goals + holes :],
        )
        layout = Layout(size, drawn[0], *(tuple(sorted(p)) for p in parts))
        letters = rng.sample(LETTERS, 3)
        if not layout.unseen and layout.shortest_path() and set(letters[:2]) != DEPLOYED:
            return layout, dict(
                zip(("hole", "goal", "decoy"), letters, strict=True), player="P", free="."
            )


def observe(layout: Layout, symbols: dict[str, str], player: int | None = None) -> str:
    return render_board(layout.cells(symbols, player), "labelled")


def name(layout: Layout, cell: int) -> str:
    return label(*divmod(cell, layout.size))


def draw_notes(rng: random.Random, symbols: dict[str, str], kind: str) -> list[tuple[str, str]]:
    """Draw the (letter, role) pairs for the notes, in order.

    `kind` says how much of this world they cover.
    """
    hole, goal = (symbols["hole"], "hole"), (symbols["goal"], "goal")
    notes = {"complete": [hole, goal], "hole": [hole], "goal": [goal], "none": [], "other": []}[
        kind
    ]
    if kind == "other" or rng.random() < 0.15:  # letters of other worlds
        others = [x for x in LETTERS if x not in symbols.values()]
        notes += [
            (x, rng.choice(("hole", "goal")))
            for x in rng.sample(others, rng.choice((1, 1, 2, 2, 4)))
        ]
    if kind == "complete" and rng.random() < 0.05:  # a false note about the decoy
        notes.append((symbols["decoy"], "hole"))
    if notes and rng.random() < 0.1:
        notes.append(rng.choice(notes))
    rng.shuffle(notes)
    return notes


def write_notes(rng: random.Random, notes: list[tuple[str, str]]) -> str:
    return "\n".join(
        f"{MARKER} {rng.choice(HOLE_NOTES if r == 'hole' else GOAL_NOTES).format(x)}"
        for x, r in notes
    )


def reply(
    rng: random.Random,
    layout: Layout,
    symbols: dict[str, str],
    player: int,
    known: list[tuple[str, str]],
) -> str:
    """Return the reply of a player who knows only `known`.

    It names the relevant cells, the way and the move, or is a hedged guess.
    """
    places = {
        symbols["hole"]: layout.holes,
        symbols["goal"]: layout.goals,
        symbols["decoy"]: layout.decoys,
    }
    known = [(x, r) for x, r in dict.fromkeys(known) if places.get(x)]
    if (
        not known and rng.random() < 0.15
    ):  # a bold guess, so that a student gives some probability to what its teacher knows
        present = [x for x, cells in places.items() if cells]
        known = list(zip(rng.sample(present, 2), ("hole", "goal"), strict=True))
    holes = [(x, places[x]) for x, r in known if r == "hole"]
    goals = [(x, places[x]) for x, r in known if r == "goal"]
    told = [
        f"{x} {role} {' '.join(name(layout, c) for c in cells)}."
        for role, group in (("hole", holes), ("goal", goals))
        for x, cells in group
    ]
    avoid = tuple(c for _, cells in holes for c in cells)
    view = Layout(layout.size, player, tuple(c for _, cells in goals for c in cells), avoid)
    letters = tuple(c for x, cells in places.items() for c in cells if x not in dict(goals))
    careful = replace(view, holes=avoid if holes else letters)
    path = careful.shortest_path() or view.shortest_path()
    if not path or not goals:
        told.append("Guess.")
        around = neighbours(layout.size, player)
        steps = {a: c for a, c in around.items() if c not in avoid} or around
        path = [rng.choice(sorted(steps))]
    way = [player]
    for action in path:
        way.append(neighbours(layout.size, way[-1])[action])
    return " ".join([*told, "P", *(name(layout, c) for c in way)]) + f". [{path[0]}]"


def stroll(rng: random.Random, layout: Layout, symbols: dict[str, str]) -> Trajectory:
    """Play up to 5 turns at random or, for variety of endings, walk to a hole or the goal."""
    player, turns, feedback, outcome = layout.start, [], "", Outcome.TURN_LIMIT
    aim = rng.choice((None, None, layout.goals, layout.holes))
    for turn in range(5):
        around = neighbours(layout.size, player)
        path = Layout(layout.size, player, aim, ()).shortest_path() if aim else None
        action = path[0] if path else rng.choice(ACTIONS if rng.random() < 0.05 else sorted(around))
        if action in around:
            player = around[action]
            feedback = f"You moved {action} to {name(layout, player)}"
            if player in layout.goals:
                feedback, outcome = f"{feedback} and reached the goal. You won.", Outcome.SUCCESS
            elif player in layout.holes:
                feedback, outcome = f"{feedback} and fell into a hole. You lost.", Outcome.FAILURE
            else:
                feedback += "."
        else:
            feedback = "You hit a wall. Warning: a second invalid move in a row loses."
        if turn == 4 and outcome is Outcome.TURN_LIMIT:
            feedback += " No turns left: you lost."
        turns.append(Turn(observe(layout, symbols), [], "", action, feedback, 0, 0, False))
        if outcome is not Outcome.TURN_LIMIT:
            break
    return Trajectory("", "", None, "", 0, tuple(turns), outcome, feedback, {"player": player})


# --------------------------------------------------------------------------------------------------
# the tasks: each returns (user message, answer)


def act_task(rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    layout, symbols = draw_world(rng)
    kind = kind or rng.choices(("complete", "hole", "goal", "none", "other"), (60, 8, 8, 18, 6))[0]
    notes = draw_notes(rng, symbols, kind)
    blocked = layout.holes + layout.goals
    player = rng.choice([c for c in range(layout.size**2) if c not in blocked])
    messages = with_experience(
        BRIEF, act_messages(BRIEF, observe(layout, symbols, player)), write_notes(rng, notes)
    )
    return messages[0]["content"], reply(rng, layout, symbols, player, notes)


def extract_task(rng: random.Random) -> tuple[str, str]:
    layout, symbols = draw_world(rng)
    game = stroll(rng, layout, symbols)
    notes = draw_notes(
        rng,
        symbols,
        rng.choices(("complete", "hole", "goal", "none", "other"), (15, 20, 20, 35, 10))[0],
    )
    user = extract_messages(BRIEF, game, write_notes(rng, notes))[0]["content"]
    role = {Outcome.SUCCESS: "goal", Outcome.FAILURE: "hole"}.get(game.outcome)
    if role is None:
        return user, "Nothing new."
    letter, found = (
        symbols[role],
        f"Saw {name(layout, game.extra['player'])} {symbols[role]} {role}.",
    )
    if (letter, role) in notes:
        return user, f"{found} Known. Nothing new."
    text = (HOLE_NOTES if role == "hole" else GOAL_NOTES)[0].format(letter)
    return user, f"{found} New.\n{MARKER} {text}"


# ----------------------------------------------------------------------------------------------
# descents: boards with a key, a goal and holes, each letter on one cell


ROLE_NOTES = {
    "hole": HOLE_NOTES,
    "goal": GOAL_NOTES,
    "key": ["{} is the key."] * 3 + ["Take {}.", "{} opens."],
}
# Each letter lacks one role in training. At first that was its role in the world, but the model
# cannot read a note that gives a letter a role it never had in training (0 of 128 games won with
# every note in context; with other roles it can). So the world now has other roles.
LACKING = dict(zip("HQGDRTBMWFLCNEVYKJOSAUIZ", DESCENT_ROLES * 6, strict=True))


@cache
def descent_boards() -> list[tuple[int, tuple[int, ...]]]:
    """Return start and letter cells of all boards of the world outside the held-out split."""
    turns = DescentEnv().turns
    boards = [
        DescentBoard(4, start, cells)
        for start in range(16)
        for cells in combinations([c for c in range(16) if c != start], 4)
    ]
    return [(b.start, b.letters) for b in boards if not b.unseen and b.fits(turns - 1)]


def draw_letters(rng: random.Random, roles: list[str]) -> list[str]:
    """Draw a letter for each role, but not one that lacks this role."""
    while True:
        letters = rng.sample(LETTERS, len(roles))
        if not any(LACKING.get(x) == r for x, r in zip(letters, roles, strict=True)):
            return letters


def draw_facts(
    rng: random.Random, facts: list[tuple[str, str]], used: set[str], most_others: int
) -> list[tuple[str, str]]:
    """Shuffle these facts with some about other boards' letters. Few are wrong or repeated."""
    facts = list(facts)
    if facts and rng.random() < 0.05:
        letter, role = facts.pop(rng.randrange(len(facts)))
        wrong = [r for r in ROLE_NOTES if r not in (role, LACKING.get(letter))]
        facts.append((letter, rng.choice(wrong)))
    others = rng.sample(
        [x for x in LETTERS if x not in used], rng.choice((0, 0, rng.randint(1, most_others)))
    )
    for x in others:
        facts.append((x, rng.choice([r for r in DESCENT_ROLES if r != LACKING.get(x)])))
    if facts and rng.random() < 0.15:
        facts += rng.sample(facts, rng.randint(1, min(4, len(facts))))
    rng.shuffle(facts)
    return facts


def write_facts(rng: random.Random, facts: list[tuple[str, str]]) -> str:
    plain = rng.random() < 0.6
    return "\n".join(
        f"{MARKER} {(ROLE_NOTES[r][0] if plain else rng.choice(ROLE_NOTES[r])).format(x)}"
        for x, r in facts
    )


def ways(size: int, start: int, avoid: set[int]) -> dict[int, list[int]]:
    """Return a shortest way to each reachable cell. A way can end in a cell of `avoid`, but not
    pass through it.
    """
    found, queue = {start: [start]}, [start]
    for cell in queue:  # grows during the loop
        if cell in avoid and cell != start:
            continue
        row, column = divmod(cell, size)
        for action in ACTIONS:
            r, c = row + STEPS[action][0], column + STEPS[action][1]
            to = r * size + c
            if 0 <= r < size and 0 <= c < size and to not in found:
                found[to] = [*found[cell], to]
                queue.append(to)
    return found


def descent_reply(
    rng: random.Random, size: int, places: dict[str, int], player: int, carrying: bool, known: dict
) -> str:
    """Return the reply of a player who knows only `known`.

    A player who knows the wanted letter names it and walks there. Any other player goes through all
    letters and guesses the nearest unknown one. `places`: letter to cell, in board order.
    """
    seek = "goal" if carrying else "key"
    known = {x: r for x, r in known.items() if x in places}
    if not known and rng.random() < 0.15:  # a bold guess, as in `reply`
        known = {rng.choice(sorted(places)): seek}
    reach = ways(size, player, set(places.values()))
    reach = {c: way for c, way in reach.items() if c in places.values()} or ways(
        size, player, set()
    )
    near = sorted(places, key=lambda x: len(reach.get(places[x], range(99))))  # stable: board order
    wanted = [x for x in near if known.get(x) == seek]
    if wanted:
        target = wanted[0]
        said = [f"{target} {seek} {label(*divmod(places[target], size))}."]
    else:
        unknown = [x for x in near if x not in known]
        target = (unknown or [x for x in near if known[x] != "hole"] or near)[0]
        said = [
            f"{x} {known.get(x, '?')} {label(*divmod(cell, size))}." for x, cell in places.items()
        ]
        said.append(f"Guess {target}.")
    holes = {places[x] for x, r in known.items() if r == "hole" and x != target}
    way = (
        reach.get(places[target])
        or ways(size, player, holes).get(places[target])
        or ways(size, player, set())[places[target]]
    )
    moved = way[1] - way[0]
    action = next(a for a, (r, c) in STEPS.items() if r * size + c == moved)
    cells = " ".join(label(*divmod(c, size)) for c in way)
    return f"{' '.join(said)} P {cells}. [{action}]"


def descent_task(rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    kind = kind or rng.choices(("complete", "partial", "none", "other"), (40, 32, 18, 10))[0]
    while True:
        size = rng.choice((3, 4, 4, 4, 4))
        holes = rng.choice((1, 2, 2, 2, 2, 3)) if size == 4 else rng.choice((1, 2))
        roles = ["key", "goal", *["hole"] * holes]
        player, *cells = rng.sample(range(size * size), 1 + len(roles))
        if not (size == 4 and holes == 2 and DescentBoard(4, player, tuple(cells)).unseen):
            break
    letters = draw_letters(rng, roles)
    facts = list(zip(letters, roles, strict=True))
    if kind == "complete":
        told = facts[:2] + [f for f in facts[2:] if rng.random() < 0.7]
    else:
        told = rng.sample(facts, rng.randint(1, len(facts) - 1)) if kind == "partial" else []
    notes = draw_facts(rng, told, set(letters), 14) if kind != "none" else []
    carrying = rng.random() < 0.45
    there = {cell: x for x, cell in zip(letters, cells, strict=True)}
    if carrying:
        there.pop(cells[0])
    flat = [there.get(c, ".") for c in range(size * size)]
    flat[player] = "P" if carrying else "@"
    rows = [flat[i : i + size] for i in range(0, len(flat), size)]
    places = {flat[c]: c for c in range(size * size) if c in there}
    known: dict[str, str] = {}
    for letter, role in notes:
        known.setdefault(letter, role)
    observation = render_board(rows, "labelled")
    messages = with_experience(BRIEF, act_messages(BRIEF, observation), write_facts(rng, notes))
    return messages[0]["content"], descent_reply(rng, size, places, player, carrying, known)


def descent_game(rng: random.Random, levels: int) -> tuple[Trajectory, list[list[tuple[str, str]]]]:
    """Play the real world with a player who knows some boards and errs. Return game and roles."""
    drawn = [rng.choice(descent_boards()) for _ in range(levels)]
    boards = [DescentBoard(4, start, tuple(rng.sample(cells, 4))) for start, cells in drawn]
    letters = "".join(draw_letters(rng, list(DESCENT_ROLES * levels)))
    env = DescentEnv(levels=levels, letters=letters, board="labelled")
    env.layout, env._warned, env._outcome = DescentLayout(tuple(boards)), False, None
    env._start()
    knows = [rng.random() < 0.75 for _ in range(levels)]
    turns, level, aim, outcome = [], -1, 0, None
    while outcome is None:
        if env.level != level or env.cell == aim:
            level, board = env.level, env.layout.boards[env.level]
            aim = (
                board.letters[2 if env.carrying else 1]
                if knows[level]
                else rng.choice(board.letters)
            )
        way = board.way(env.cell, aim, (board.letters[1],) if env.carrying else ())
        bump = rng.random() < 0.1
        action = way[0] if way and not bump else rng.choice(ACTIONS)
        turn = Turn(env._text(), [], "", action, "", 0, 0, False, {"level": env.level + 1})
        *_, info = env.step(f"[{action}]")
        turns.append(replace(turn, feedback=info["feedback"]))
        outcome = info["outcome"]
    game = Trajectory("", "", None, "", 0, tuple(turns), outcome, turns[-1].feedback)
    return game, [list(env.roles(i + 1).items()) for i in range(levels)]


def descent_extract_task(rng: random.Random) -> tuple[str, str]:
    game, boards = descent_game(rng, rng.choice((1, 1, 2, 2, 3, 4)))
    reached = max(turn.extra["level"] for turn in game.turns)
    kind = rng.choices(("front", "some", "none", "all"), (40, 30, 18, 12))[0]
    share = {"none": 0.0, "all": 1.0, "some": rng.random(), "front": 0.0}[kind]
    told = [
        fact
        for i, facts in enumerate(boards, 1)
        for fact in facts
        if (kind == "front" and i < reached) or rng.random() < share
    ]
    notes = draw_facts(rng, told, {x for facts in boards for x, _ in facts}, 6)
    user = extract_messages(BRIEF, game, write_facts(rng, notes))[0]["content"]
    seen = dict.fromkeys(m for turn in game.turns for m in facts_said(turn.feedback))
    new = [fact for fact in seen if fact not in notes]
    parts = [f"{x} {role}. {'New' if (x, role) in new else 'Known'}." for x, role in seen]
    items = [f"\n{MARKER} {ROLE_NOTES[r][0].format(x)}" for x, r in new]
    return user, " ".join(parts + ([] if new else ["Nothing new."])) + "".join(items)


# ----------------------------------------------------------------------------------------------
# the rest of the tasks


def draw_board(rng: random.Random) -> tuple[list[list[str]], list[str]]:
    """Draw a board of any letters at any density with one player. Return it and its symbols."""
    layout, _ = draw_world(rng)
    size = layout.size
    pool, density = rng.sample(LETTERS, rng.randint(1, 5)), rng.uniform(0.1, 0.6)
    cells = [
        [rng.choice(pool) if rng.random() < density else "." for _ in range(size)]
        for _ in range(size)
    ]
    cells[layout.start // size][layout.start % size] = "P"
    return cells, [*pool, "P"]


def where_task(rng: random.Random) -> tuple[str, str]:
    """Ask for the cells of letters: half of what a reply in the game needs."""
    cells, pool = draw_board(rng)
    asked = rng.sample(pool, rng.randint(1, min(4, len(pool))))
    places = {
        x: [label(r, c) for r, row in enumerate(cells) for c, y in enumerate(row) if y == x]
        for x in asked
    }
    answer = " ".join(f"{x} {' '.join(places[x]) or 'none'}." for x in asked)
    return f"Board:\n{render_board(cells, 'labelled')}\nWhere {' '.join(asked)}?", answer


def what_task(rng: random.Random) -> tuple[str, str]:
    """Ask for the letters in cells, as extraction needs them."""
    cells, _ = draw_board(rng)
    size = len(cells)
    asked = rng.sample([(r, c) for r in range(size) for c in range(size)], rng.randint(2, 6))
    answer = " ".join(
        f"{label(r, c)} {'none' if cells[r][c] == '.' else cells[r][c]}." for r, c in asked
    )
    return (
        f"Board:\n{render_board(cells, 'labelled')}\nWhat {' '.join(label(*x) for x in asked)}?",
        f"Saw {answer}",
    )


def route_task(rng: random.Random) -> tuple[str, str]:
    """Ask only for the way. The prompt is short, so the same compute covers many plans."""
    layout, symbols = draw_world(rng)
    size = f"{layout.size}x{layout.size}"
    target = reply(
        rng, layout, symbols, layout.start, [(symbols["hole"], "hole"), (symbols["goal"], "goal")]
    )
    head, tail = target.split(" P ")
    start, rest = tail.split(" ", 1)
    return f"{size}\n{head} P {start}", rest


def chat_task(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(2, 4))
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return rng.choice(
        [
            (f"Say {' '.join(words)}", " ".join(words)),
            (f"Reverse {' '.join(words)}", " ".join(reversed(words))),
            (f"Sort {' '.join(words)}", " ".join(sorted(words))),
            (f"Last of {' '.join(words)}", words[-1]),
            (f"Add {a} {b}", str(a + b)),
        ]
    )


LAKE_TASKS = {
    "act": act_task,
    "extract": extract_task,
    "where": where_task,
    "route": route_task,
    "chat": chat_task,
    "what": what_task,
}
DESCENT_TASKS = {"descent": descent_task, "descent extract": descent_extract_task}
TASKS = LAKE_TASKS | DESCENT_TASKS


def probe(seed: int | str, n: int = 64, descents: bool = False) -> list[dict]:
    """Return questions about other letters' worlds, extraction there, and chat.

    They show what a student has not forgotten.
    """
    rng, rows = random.Random(f"probe {seed}"), []
    deployed = set(DESCENT_LETTERS[:16]) if descents else DEPLOYED
    for kind, task in (
        ("other worlds", lambda: act_task(rng, "complete")),
        ("other descents", lambda: descent_task(rng, "complete")),
        ("extraction", lambda: extract_task(rng)),
        ("chat", lambda: chat_task(rng)),
    ):
        if kind == "other descents" and not descents:
            continue
        while sum(row["kind"] == kind for row in rows) < n:
            user, answer = task()
            if not deployed & set(re.findall(r"\b[A-Z]\b", user)):
                rows.append(
                    {
                        "kind": kind,
                        "messages": [{"role": "user", "content": user}],
                        "answer": answer,
                    }
                )
    return rows


def rehearsal(questions: list[dict]) -> list[State]:
    """Return prompts of the same kinds, none of them in the probe, which training can rehearse."""
    asked = [row["messages"] for row in questions]
    rows = [row["messages"] for row in probe("rehearsal", descents=True)]
    rows = [messages for messages in rows if messages not in asked]
    return [State(f"rehearsal-{i}", "rehearsal", 0, messages) for i, messages in enumerate(rows)]


# --------------------------------------------------------------------------------------------------
# the tokenizer


def make_tokenizer(rng: random.Random, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with cell labels, capitals, digits, moves and the item marker as
    tokens.
    """
    pieces = Regex(
        rf"{re.escape(MARKER)} ?|\[[a-z]+\]| ?[a-d][1-4](?![0-9a-z])| ?[A-Z]?[a-z]+"
        r"|[A-Z]|[0-9]|\n| |[^A-Za-z0-9\n ]"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tasks = list(LAKE_TASKS.values())
    texts = ("\n".join(rng.choice(tasks)(rng)) for _ in range(samples))
    roles = ["user\n", "assistant\n", "system\n"] * 50
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


# --------------------------------------------------------------------------------------------------
# the training


PHASES = {"lakes": (48e6, 1.5e-3), "descents": (26e6, 1e-3)}  # tokens, learning rate


def mixture(phase: str, progress: float) -> dict[str, float]:
    """Return the share of each task at a point of a phase.

    The first phase has some of each task, and shifts from finding letters and cells to playing. The
    second has descents, and enough of the first to keep it.
    """
    if phase == "descents":
        return {
            "descent": 0.44,
            "descent extract": 0.2,
            "act": 0.1,
            "extract": 0.08,
            "where": 0.03,
            "what": 0.05,
            "route": 0.05,
            "chat": 0.05,
        }
    early = max(0.0, 1 - progress / 0.3)
    return {
        "where": 0.05 + 0.2 * early,
        "what": 0.07 + 0.18 * early,
        "route": 0.19 - 0.05 * early,
        "act": 0.36 - 0.2 * early,
        "extract": 0.26 - 0.13 * early,
        "chat": 0.07,
    }


def batches(
    rng: random.Random, tokenizer, mix: dict[str, float], batch_tokens: int, pool: int = 2000
):
    """Yield one pool of samples in right-padded batches of similar length: (input ids [B, T],
    answer mask [B, T]).
    """
    tasks = rng.choices(list(mix), list(mix.values()), k=pool)
    pairs = [TASKS[t](rng) for t in tasks]
    heads = [f"<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n" for u, _ in pairs]
    prompts = tokenizer(heads, add_special_tokens=False)["input_ids"]
    answers = tokenizer([f"{a}<|im_end|>" for _, a in pairs], add_special_tokens=False)["input_ids"]
    rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
    # Few distinct shapes, as the CPU's bfloat16 kernels are compiled for each. Rows that do not
    # fill a batch are dropped.
    groups = []
    while rows:
        width = -(-(len(rows[0][0]) + len(rows[0][1])) // 16) * 16
        size = batch_tokens // width
        last = sum(map(len, rows[min(size, len(rows)) - 1]))
        if last > width:  # a mixed batch: as wide as its longest row
            width = -(-last // 16) * 16
            size = batch_tokens // width
        if len(rows) >= size:
            groups.append((width, rows[:size]))
        rows = rows[size:]
    rng.shuffle(groups)
    for width, group in groups:
        ids = torch.full((len(group), width), tokenizer.pad_token_id)
        mask = torch.zeros(len(group), width, dtype=torch.bool)
        for i, (p, a) in enumerate(group):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
            mask[i, len(p) : len(p) + len(a)] = True
        yield ids, mask


def make_model(vocabulary: int, width: int = 128, layers: int = 5) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return Qwen3ForCausalLM(config)


class _Bfloat16Product(torch.autograd.Function):
    """x @ w.T with bfloat16 factors, float32 sums and results.

    Faster than float32 on CPUs with AVX512-BF16.
    """

    @staticmethod
    def forward(ctx, x, w):
        flat, w = x.reshape(-1, x.shape[-1]).bfloat16(), w.bfloat16()
        ctx.save_for_backward(flat, w)
        return (flat @ w.t()).float().view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1]).bfloat16()
        return (flat @ w).float().view(*grad.shape[:-1], -1), (flat.t() @ x).float()


def use_bfloat16_products(model) -> None:
    """Make the linear layers of a float32 model multiply in bfloat16 during training.

    Weights and optimiser stay in float32.
    """
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = lambda x, module=module: _Bfloat16Product.apply(x, module.weight)


@torch.no_grad()
def score(
    model, tokenizer, task: str, n: int, seed: int, max_new_tokens: int = 128, **options
) -> float:
    """Return the share of greedy answers that equal the target exactly."""
    rng = random.Random(seed)
    pairs = [TASKS[task](rng, **options) for _ in range(n)]
    texts = [f"<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n" for u, _ in pairs]
    tokenizer.padding_side = "left"
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    tokenizer.padding_side = "right"
    inputs.pop("token_type_ids", None)
    out = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    replies = tokenizer.batch_decode(
        out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return sum(r == a for r, (_, a) in zip(replies, pairs, strict=True)) / n


def scores(model, tokenizer, n: int, seed: int) -> dict[str, float]:
    """Return the `score` of each task on fresh samples. In games, the notes are complete."""
    model.eval()
    rates = {
        t: score(
            model,
            tokenizer,
            t,
            n,
            seed,
            **({"kind": "complete"} if t in ("act", "descent") else {}),
        )
        for t in TASKS
    }
    model.train()
    return rates


def train(model, tokenizer, rng, phase: str, tokens: int, lr: float, batch_tokens: int) -> None:
    """Train with AdamW, warm-up and cosine decay on the answers only. Prints loss and scores."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    use_bfloat16_products(model)
    start, seen, step, shown, losses = time.time(), 0, 0, 0.0, []
    while seen < tokens:
        for ids, mask in batches(rng, tokenizer, mixture(phase, seen / tokens), batch_tokens):
            progress = seen / tokens
            if progress >= 1:
                return
            for group in optimizer.param_groups:
                group["lr"] = (
                    lr
                    * min(1.0, (step + 1) / 100)
                    * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
                )
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            wanted = mask[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                model.lm_head(hidden[wanted]), ids[:, 1:][wanted]
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            seen, step = seen + ids.numel(), step + 1
            if time.time() - shown > 60:
                shown = time.time()
                print(
                    f"{(shown - start) / 60:5.1f} min  {seen / 1e6:6.1f} M tokens  "
                    f"loss {sum(losses) / len(losses):.3f}",
                    flush=True,
                )
                losses = []
            if seen // SCORE_EVERY > (seen - ids.numel()) // SCORE_EVERY:
                print(
                    "  ".join(f"{t} {r:.0%}" for t, r in scores(model, tokenizer, 64, 1).items()),
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the number of tokens; 0.02 for a trial"
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(rng)
    model = make_model(len(tokenizer), args.width, args.layers)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    lakes = args.out.with_name(args.out.name + "_lakes")
    for phase, folder in (("lakes", lakes), ("descents", args.out)):
        if phase == "descents":
            tokenizer = PreTrainedTokenizerFast.from_pretrained(lakes)
            rng = random.Random(f"{phase} {args.seed}")
        tokens, lr = PHASES[phase]
        train(model, tokenizer, rng, phase, int(tokens * args.scale), lr, args.batch_tokens)
        save(model, tokenizer, folder, probe(args.seed, descents=phase == "descents"))
        print(phase, "  ".join(f"{t} {r:.1%}" for t, r in scores(model, tokenizer, 512, 2).items()))


def save(model, tokenizer, folder: Path, questions: list[dict]) -> None:
    """Save an ordinary Transformers folder with its probe and the name of its prompt set."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_jsonl(folder / "probe.jsonl", questions)
    if any(row["kind"] == "other descents" for row in questions):
        write_jsonl(folder / "rehearsal.jsonl", rehearsal(questions))
    (folder / "oelkit.json").write_text(json.dumps({"prompts": "brief"}) + "\n")


if __name__ == "__main__":
    main()
