"""A text world whose rule cannot be guessed: which drink belongs to which table is arbitrary.

    PYTHONPATH=examples/waiter oelkit play --env waiter:waiter/Waiter-v0 --prompt-set
    examples/waiter/waiter.toml ...

A guest sits down, the model answers in a sentence, and the guest says what is drunk at that table.
A game is won if the reply names that drink and no other. Day, hour and company carry no
information; `unseen` draws guests that no training seed can draw."""

import re
import zlib

import gymnasium

TABLES = {
    "red": "tea",
    "green": "coffee",
    "blue": "milk",
    "white": "juice",
    "black": "soup",
    "yellow": "water",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
HOURS = ("morning", "noon", "afternoon", "evening")
COMPANY = "a dog,a cat,a book,a child,a violin,an umbrella,a newspaper,a suitcase,a camera,flowers"
COMPANY = [*COMPANY.split(","), "a hat", "a stick"]


class Waiter(gymnasium.Env):
    """One guest per game. `unseen`: the quarter of all guests reserved for evaluation."""

    observation_space = action_space = gymnasium.spaces.Text(10_000)

    def __init__(self, unseen: bool = False):
        self.unseen = unseen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.table = str(self.np_random.choice(list(TABLES)))
        while True:
            day, hour, company = (
                str(self.np_random.choice(words)) for words in (DAYS, HOURS, COMPANY)
            )
            guest = f"It is {day} {hour}. A guest with {company} sits down"
            if (zlib.crc32(guest.encode()) % 4 == 0) == self.unseen:
                return f"{guest} at the {self.table} table.", {}

    def step(self, reply):
        named = set(re.findall(r"\w+", reply.lower())) & set(TABLES.values())
        won = named == {TABLES[self.table]}
        answer = "thanks you" if won else "sends it back"
        told = f'The guest {answer}: "At the {self.table} table we drink {TABLES[self.table]}."'
        return told, float(won), True, False, {"action": " ".join(sorted(named)) or None}


for _name, _unseen in (("Waiter", False), ("WaiterUnseen", True)):
    gymnasium.register(
        f"waiter/{_name}-v0", entry_point=Waiter, kwargs={"unseen": _unseen}, max_episode_steps=1
    )
