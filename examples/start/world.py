"""A world of your own: a door with a light. It sends text and gets the model's whole reply."""

import gymnasium

OPENS = {"red": "up", "green": "left", "blue": "right"}  # the rule to learn


class Doors(gymnasium.Env):
    """Each light needs its own direction. A final reward above 0 is a win.

    The reward is used to measure, never to train.
    """

    observation_space = action_space = gymnasium.spaces.Text(10_000)
    moves = tuple(OPENS.values())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.light = str(self.np_random.choice(list(OPENS)))
        return f"The light is {self.light}.", {}

    def step(self, reply):
        won = f"[{OPENS[self.light]}]" in reply
        # The model learns from this text: say what happened and under which condition.
        told = f"With {self.light} light [{OPENS[self.light]}] opens the door."
        feedback = "The door is open." if won else f"The door is shut. {told}"
        return feedback, float(won), won, False, {}


gymnasium.register("mine/Doors-v0", entry_point=Doors, max_episode_steps=2)
