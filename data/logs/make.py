"""Make the sample log from the sample games: python data/logs/make.py (takes a second).

One conversation per board: the agent's prompt, its reply and the feedback.
"""

import json
from pathlib import Path

from oelkit.records import Trajectory, read_jsonl

HERE = Path(__file__).parent


def main() -> None:
    lines, asked = [], set()
    for game in read_jsonl(HERE.parent / "sample/trajectories.jsonl", Trajectory):
        for i, turn in enumerate(game.turns):
            question = turn.prompt[0]["content"]
            if question in asked:
                continue
            asked.add(question)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": turn.reply},
                {"role": "user", "content": turn.feedback},
            ]
            chat = {"id": f"{game.id}/{i}", "model": game.model, "messages": messages}
            lines.append(json.dumps(chat, ensure_ascii=False) + "\n")
    (HERE / "lake_chats.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
