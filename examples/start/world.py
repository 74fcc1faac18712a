"""A world of your own: a door with a light. Text goes in, the model's whole reply comes back."""

import gymnasium

OPENS = {"red": "up", "green": "left", "blue": "right"}  # what there is to learn


class Doors(gymnasium.Env):
    """Each light needs a direction of its own. A reward above 0 at the end is a win; it is used to
    measure, never to train.
    """

    observation_space = action_space = gymnasium.spaces.Text(10_000)
    moves = tuple(OPENS.values())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.light = str(self.np_random.choice(list(OPENS)))
        return f"The light is {self.light}.", {}

    def step(self, reply):
        won = f"[{OPENS[self.light]}]" in reply
        # what the model learns from: say in words what happened, and to what it belongs
        told = f"With {self.light} light [{OPENS[self.light]}] opens the door."
        feedback = "The door is open." if won else f"The door is shut. {told}"
        return feedback, float(won), won, False, {}


gymnasium.register("mine/Doors-v0", entry_point=Doors, max_episode_steps=2)
