"""The snippets of docs/capture.md record chats, and `oelkit import` reads them."""

import json
import re
from pathlib import Path

import pytest
from serve_micro import serve

from oelkit import load_policy
from oelkit.__main__ import main
from oelkit.records import Trajectory, read_jsonl

PAGE = Path(__file__).parents[1] / "docs" / "capture.md"
SDK, LITELLM, LLAMA = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[:3]


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import chats.jsonl of the working directory into a run, as on the page."""
    monkeypatch.chdir(tmp_path)

    def games():
        assert main(["import", "chats.jsonl", "--run", "mine"]) == 0
        return read_jsonl(tmp_path / "runs" / "mine" / "round_1" / "trajectories.jsonl", Trajectory)

    return games


def test_around_the_openai_sdk_a_session_is_one_conversation(imported):
    asked = [{"role": "user", "content": "Board:\n4x4\nH a2\nP b4\nG d3\nMove? a@b.org"}]
    with serve(load_policy("micro")) as server:
        here = {}
        exec(SDK.replace("http://localhost:8000/v1", server.url), here)
        said = here["ask"]("42", asked, model="micro", max_tokens=8)
        more = [*asked, said, {"role": "user", "content": "And now?"}]
        here["ask"]("42", more, model="micro", max_tokens=8)
        here["ask"]("43", asked, model="micro", max_tokens=8)
    one, two = imported()
    assert [len(one.turns), len(two.turns)] == [2, 1]
    assert one.turns[0].reply == said["content"] and one.turns[0].feedback == "And now?"
    assert "[e-mail]" in one.turns[0].observation and "a@b.org" not in str(one)


def test_litellm_hands_its_callback_what_the_page_takes(imported):
    """LiteLLM is not installed; the callback gets the arguments that its documentation describes.

    The snippet was tried by hand with LiteLLM 1.110.
    """
    here = {}
    code = LITELLM.replace("import litellm\n", "").replace("litellm.success_callback", "callbacks")
    exec(code, here)
    message = type("Message", (), {"model_dump": lambda self, **_: answer})()
    answer = {"role": "assistant", "content": "Paris."}
    choices = [type("Choice", (), {"message": message})()]
    kwargs = {"model": "m", "messages": [{"role": "user", "content": "Capital of France?"}]}
    kwargs["litellm_params"] = {"metadata": {"session": "42"}}
    here["callbacks"][0](kwargs, type("Answer", (), {"choices": choices})(), 0, 1)
    assert [t.reply for game in imported() for t in game.turns] == ["Paris."]


def slot(*turns):
    """Return a line of llama-server's log (llama-cpp-python 0.3.36) without its settings."""
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    about = {"id": 0, "n_ctx": 4096, "is_processing": False}
    about |= {"prompt": f"{said}<|im_start|>assistant\n", "generated": ""} if turns else {}
    return (
        f"0.19.316.212 D slot launch_slot_: id  0 | task -1 | launching slot : {json.dumps(about)}"
    )


def reply(text):
    body = json.dumps({"role": "assistant", "content": text}, ensure_ascii=False)
    return f"0.22.486.356 D Parsed message: {body}"


def test_the_log_of_llama_server_becomes_conversations(imported):
    system, first = ("system", "You help."), ("user", "Capital of France?\nIn a word.")
    second = [("assistant", "Parîs."), ("user", "Spain?")]
    lines = [slot(), reply("Parîs."), slot(system, first), reply("Madrid.")]
    lines += [slot(system, first, *second), reply("Hello."), slot(("user", "Hi"))]
    Path("llama.log").write_bytes("\n".join(lines).encode() + b"\nbroken \xff\n")
    exec(LLAMA, {})
    one, two = imported()
    assert [turn.reply for turn in one.turns] == ["Parîs.", "Madrid."]
    assert one.turns[0].prompt[0]["content"] == "You help."
    assert one.turns[0].observation == "Capital of France?\nIn a word."
    assert [turn.reply for turn in two.turns] == ["Hello."]
