"""A text world in courses, for a real language model: each question depends on having answered the
previous one correctly.

    PYTHONPATH=examples/dinner oelkit play --env dinner:dinner/Dinner-v0 --prompt-set
    examples/dinner/dinner.toml ...

A guest sits down, and the model says what they want to drink, to eat and for dessert. A guest who
is served the wrong thing says what is usual at this table and leaves. Four tables and three courses
make twelve facts, none of which can be guessed. A game is won if all three courses are right. Day,
hour and company carry no information; `unseen` draws guests that no training seed can draw."""

import re
import zlib

import gymnasium

_DISHES = {  # the verb of each course, and the dish for each of TABLES in order
    "drink": ("tea", "coffee", "milk", "juice"),
    "eat": ("rice", "beans", "eggs", "fish"),
    "take for dessert": ("figs", "nuts", "cake", "plums"),
}
TABLES = ("red", "green", "blue", "white")
COURSES = {verb: dict(zip(TABLES, dishes, strict=True)) for verb, dishes in _DISHES.items()}
WORDS = {dish for dishes in _DISHES.values() for dish in dishes}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
HOURS = ("morning", "noon", "afternoon", "evening")
COMPANY = "a dog,a cat,a book,a child,a violin,an umbrella,a newspaper,a suitcase,a camera,flowers"


class Dinner(gymnasium.Env):
    """One guest per game. `unseen`: the quarter of all guests reserved for evaluation."""

    observation_space = action_space = gymnasium.spaces.Text(10_000)

    def __init__(self, unseen: bool = False):
        self.unseen = unseen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.table, self.course = str(self.np_random.choice(TABLES)), 0
        while True:
            words = DAYS, HOURS, COMPANY.split(",")
            day, hour, company = (str(self.np_random.choice(w)) for w in words)
            self.guest = f"It is {day} {hour}. A guest with {company} is at the {self.table} table"
            if (zlib.crc32(self.guest.encode()) % 4 == 0) == self.unseen:
                return self._text(), {"level": 1}

    def _text(self):
        return f"{self.guest}. What do the guests at this table {self._asked()[0]}?"

    def _asked(self):
        return list(COURSES.items())[self.course]

    def step(self, reply):
        verb, menu = self._asked()
        named = set(re.findall(r"\w+", reply.lower())) & WORDS
        right = named == {menu[self.table]}
        usual = f"At the {self.table} table we {verb} {menu[self.table]}."
        feedback = "The guest thanks you." if right else f'The guest leaves: "{usual}"'
        won = right and self.course == len(COURSES) - 1
        self.course += right and not won
        info = {"action": " ".join(sorted(named)) or None, "feedback": feedback}
        info |= {"level": self.course + 1}
        return self._text(), float(won), won or not right, False, info


for _name, _unseen in (("Dinner", False), ("DinnerUnseen", True)):
    gymnasium.register(
        f"dinner/{_name}-v0",
        entry_point=Dinner,
        kwargs={"unseen": _unseen},
        max_episode_steps=len(COURSES),
    )
