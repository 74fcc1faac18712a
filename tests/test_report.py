"""The report: one file that loads nothing, runs no model text, and states results and what is
missing.
"""

import base64
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from helpers import assert_whole, make_game, make_metrics, make_rows, rate, words

from oelkit.__main__ import main
from oelkit.prompts import load_prompt_set
from oelkit.records import Outcome, to_dict, write_jsonl
from oelkit.runs.stages import FORM
from oelkit.stats import draw_spread, wilson_interval
from oelkit.views import comparison, report
from oelkit.views.findings import Finding, compare, findings
from oelkit.views.report import write_report
from oelkit.views.summary import headline, summary

EVIL = "</pre><script>alert(1)</script><img src=http://x.example/a.png> & \ud800"


class Page(HTMLParser):
    """Parses tags with their attributes, and text by the tag around it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def shown(*games):
    return json.dumps({"shown": [to_dict(game) for game in games]})


def make_run(folder, metrics):
    rounds = [r["round"] for r in metrics["rounds"]]
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(
        json.dumps(
            {
                "settings": {"model": "micro", "lr": 0.001, "top_k": None},
                "versions": {"torch": "2.13"},
            }
        )
    )
    write_jsonl(folder / "metrics.jsonl", make_rows(arms=[(f"round {k}", k) for k in rounds]))
    (folder / "base.json").write_text(shown(make_game(), make_game(("[up]", EVIL), seed=5)))
    for k in rounds:
        (folder / f"round_{k}").mkdir()
        won = replace(make_game(("[down]", EVIL), seed=5), outcome=Outcome.SUCCESS)
        (folder / f"round_{k}" / "metrics.json").write_text(shown(make_game(), won))
        text = f"## Draw 0\n- EXPERIENCE ITEM: {EVIL}\n"
        (folder / f"round_{k}" / "experience.md").write_bytes(text.encode(errors="replace"))
    return folder


@pytest.mark.parametrize(
    "metrics", [make_metrics(), make_metrics((90,), probe=None, arms=False)], ids=["full", "bare"]
)
def test_report_is_self_contained_and_escaped(tmp_path, metrics):
    run = make_run(tmp_path / "demo", {**metrics, "model": "<i>m</i>"})
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "i", "object"} & {tag for tag, _ in page.tags}
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    figures = sorted(f.read_bytes() for f in (run / "figures").glob("*.png"))
    assert (
        sorted(base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources)
        == figures
    )
    drawn = 5 if metrics.get("arms") else 3  # nothing to draw except round 1, and no probe
    assert len(figures) == drawn + 2
    k = metrics["rounds"][-1]["round"]
    captions = [text for text in page.texts["figcaption"] if ", map 5" in text]
    assert [c.split(", nothing in the prompt, ") for c in captions] == [
        ["Before training", "map 5: lost."],
        [f"After round {k}", "map 5: won."],
    ]
    own = text.replace("&lt;img src=http://x.example/a.png", "")
    assert not re.search(r"""(src|href|url|action)\s*[=(]\s*["']?\s*(https?:|//|file:)""", own)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert "<script>alert(1)</script>" in "".join(page.texts["pre"])  # as text
    cells = page.texts["td"]
    assert page.texts["th"][:4] == ["round", "base", "in context", "consolidated"]
    assert "5.5% [3%, 11%]" in cells and "21 of 31" in cells
    lines = [text for text in page.texts["li"] if text.strip()]
    assert lines == [str(found) for found in findings(metrics)]
    (head,) = re.findall(r'<p class="head">(.*)</p>', text)
    assert re.match(r"\d rounds?: untrained 5% → .*% of 128 held-out maps passed", head)
    assert "maps passed" not in words(next(report._figures(run, metrics))[1]), "said twice"
    assert text.index("<img") < text.index("Findings")
    assert "model micro" in "".join(page.texts["small"]) and "torch 2.13" in "".join(
        page.texts["small"]
    )
    assert not list(run.glob("*.partial"))


def test_games_before_and_after_are_called_so(tmp_path):
    run = make_run(tmp_path / "demo", make_metrics((90,)))
    titles = [words(figure) for _, figure, _ in report._games(run, make_metrics((90,)))]
    assert ["before: lost" in titles[0], "after: won" in titles[1]] == [True, True]


@pytest.mark.slow
def test_report_can_be_written_again(tmp_path):
    run = make_run(tmp_path / "demo", make_metrics((90,)))
    first = write_report(run).read_text(encoding="utf-8")
    (run / "round_1" / "experience.md").write_text("## Draw 0\n- EXPERIENCE ITEM: another\n")
    second = write_report(run).read_text(encoding="utf-8")
    assert "another" in second and "another" not in first


@pytest.mark.slow
def test_unfinished_run_and_damaged_records(tmp_path):
    run = make_run(tmp_path / "demo", make_metrics())
    write_report(run)
    before = (run / "report.html").read_bytes()
    (run / "base.json").write_text('{"shown": [{"schema": 1, "id": 3, "seed": 3}]}')
    with pytest.raises(ValueError, match=r"base.json.*is damaged.*field 'id'"):
        write_report(run)
    (run / "metrics.jsonl").write_text("x\n")
    with pytest.raises(ValueError, match=r"^\S+metrics\.jsonl, line 1: not JSON"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    (run / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"loop --run \S+/demo --resume"):
        write_report(run)
    with pytest.raises(FileNotFoundError, match="nothing holds no run; there are: demo$"):
        write_report(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"demmo holds no run \(did you mean demo\?\)$"):
        write_report(tmp_path / "demmo")


@pytest.mark.parametrize(
    "row, arm, name, value",
    [
        ("ood", "base", "n", 0),
        ("pass_rate", "consolidated", "maps", 0),
        ("pass_rate", "base", "pass_rate", "1%"),
    ],
)
def test_a_damaged_number_is_an_error_that_names_the_run(tmp_path, row, arm, name, value):
    """A flipped bit makes 0 of 2: the command ended in a traceback, or in NumPy's own words."""
    metrics = make_metrics()
    for played in metrics["rounds"]:
        played["pass_rate"]["consolidated"] |= {"passes": "01" * 64, "maps": 128}
        played[row][arm][name] = value
    with (
        pytest.raises(ValueError, match=f"^{tmp_path}: its metrics.json, .* is damaged"),
        report.damage_told(tmp_path),
    ):
        print(summary(metrics), *findings(metrics))


def missed(metrics):
    return [found.text for found in findings(metrics) if not found.came_out]


def test_findings_of_a_run_in_which_all_came_out():
    said = findings(make_metrics((115, 116), base=3))
    assert missed(make_metrics((115, 116), base=3)) == []
    text = " ".join(map(str, said))
    for part in (
        "base model passes 2.3% [1%, 7%] of 128",
        "best fixed plan 6.2%",
        "The model of round 1 with the experience of round 2 in context reaches 81.2%",
        "The model of round 2 with nothing in context reaches 90.6%",
        "The student of round 2 reaches 1.12 times its teacher's pass rate",
        "Round 2 is not distinguishable from round 1",
        "Replies get shorter: 27.1 tokens per reply after round 2, 39.7 before; 2.0% cut off",
        "Other abilities are kept",
        "above SFT on the teacher's replies at 62.5%",
        "above raw games in context at 31.2%",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    "metrics, part",
    [
        (make_metrics(base=60), "The base alone is better than a player who guesses"),
        (
            make_metrics(in_context=9),
            "of round 2 in context reaches 7.0% [4%, 13%], not distinguishable from the base",
        ),
        (
            make_metrics((100, 2), base=40),
            "The model of round 2 with nothing in context reaches 1.6% [0%, 6%], below the base",
        ),
        (make_metrics((100, 70)), "round 2 reaches 0.67 times its teacher's pass rate"),
        (make_metrics((115, 90)), "Round 2 falls below round 1: 70.3%"),
        (
            make_metrics((115, 115), probe=(0.91, 0.9, 0.7)),
            "Other abilities are partly lost: 70.0% of 200",
        ),
        (make_metrics((2, 2)), "Replies do not get shorter: 39.8 tokens per reply after round 2, "),
        (make_metrics((95, 95)), "not distinguishable from off-policy (forward KL) at 73.4%"),
    ],
)
def test_findings_say_what_did_not_come_out(metrics, part):
    assert any(part in line for line in missed(metrics)), missed(metrics)


def test_findings_of_one_round_without_probe_and_arms():
    said = findings(make_metrics((115,), probe=None, arms=False))
    assert len(said) == 6 and not any("Round 1 " in one.text or "OOD" in one.text for one in said)


def test_spread_of_the_draws_beyond_noise_is_a_finding():
    metrics, draws = make_metrics(), [0.3, 0.9, 0.8, 0.6]
    told = metrics["rounds"][-1]["pass_rate"]["in_context"]
    told["by_draw"] = draws
    (line,) = [found for found in findings(metrics) if "texts of round 2" in found.text]
    assert f"4 experience texts of round 2 differ by {100 * draw_spread(draws, 32):.1f} points" in (
        line.text
    )
    told["by_draw"] = [0.5, 0.5, 0.5, 0.5]
    assert any(
        "round 2 differ no more than by chance." in found.text for found in findings(metrics)
    )
    for few in ([0.9], []):
        told["by_draw"] = few
        assert not any("chance" in found.text for found in findings(metrics))


def outcomes(bits):
    """Return a report's summary, as in metrics.json, of maps that passed (1) or not (0)."""
    low, high = wilson_interval(bits.count("1"), len(bits))
    return {**rate(bits.count("1"), len(bits)), "low": low, "high": high, "passes": bits}


def test_arms_of_the_same_maps_are_compared_paired():
    """Overlapping intervals say nothing if one arm passes every map that the other passes."""
    base, learned = outcomes("1" * 60 + "0" * 68), outcomes("1" * 74 + "0" * 54)
    assert base["high"] > learned["low"]  # they overlap
    metrics = make_metrics((74,), base=60, arms=False)
    metrics["rounds"][0]["pass_rate"] |= {"base": base, "consolidated": learned}
    (line,) = [f for f in findings(metrics) if f.text.startswith("The model of round 1 with")]
    assert line.came_out and "above the base" in line.text
    assert "+10.9 points [+6.2, +16.4], paired by map" in line.text
    base |= {"passes": base["passes"][:64], "n": 64}  # different maps: nothing to pair
    (line,) = [f for f in findings(metrics) if f.text.startswith("The model of round 1 with")]
    assert not line.came_out and line.text.endswith("the intervals overlap.")


def test_episodes_on_the_same_maps_are_no_more_maps():
    """With ten games per map, both numbers are given, and the bootstrap resamples maps."""
    rows = {}
    for arm, won in (("base", 3), ("in_context", 8), ("consolidated", 6)):
        rows[arm] = outcomes(("1" * won + "0" * (8 - won)) * 10) | {"maps": 8}
    metrics = make_metrics((6,), arms=False)
    metrics["rounds"][0]["pass_rate"] = rows
    first, *_, replies = findings(metrics)[:6]
    assert "of 80 episodes on 8 held-out maps" in first.text
    line = next(f for f in findings(metrics) if f.text.startswith("The model of round 1 with"))
    assert "paired by map" in line.text and replies
    difference = float(re.search(r"\[\+([\d.]+), ", line.text)[1])
    assert difference < 20, "eight maps cannot say it that closely"


def test_a_single_map_shows_no_difference():
    """Resampling one map, or a few that all differ alike, gives an interval without width."""
    for n, sign in ((1, 0), (3, 0), (20, 1)):
        rows = []
        for won in (n, 0):
            low, high = wilson_interval(won, n)
            passes = "1" * won + "0" * (n - won)
            rows.append({"low": low, "high": high, "n": n, "maps": n, "passes": passes})
        assert compare(*rows)[0] == sign
    more = [row | {"n": 60, "maps": 1} for row in (rows[0] | {"passes": "1" * 20}, rows[1])]
    intervals = [{"low": 0.2, "high": 1.0}, {"low": 0.0, "high": 0.8}]
    assert compare(*(a | b for a, b in zip(more, intervals, strict=True)))[0] == 0


def test_nothing_passes_in_context():
    metrics = make_metrics((64,), in_context=0)
    for row in metrics["rounds"][0]["pass_rate"].values():
        row["truncated"] = 0.0
    said = [str(found) for found in findings(metrics)]
    assert any(line.endswith("before; none cut off.") for line in said)
    assert not any(re.search(r"\d{5}", line) for line in said)
    assert any(
        line.startswith("Not as hoped: The teacher's interval is not above the base")
        for line in said
    )
    one = [f.text for f in findings(make_metrics((1,), base=1, in_context=1))]  # of 128, all three
    assert not any("times its teacher" in line for line in one)


@pytest.mark.slow
def test_the_report_shows_what_training_read(tmp_path):
    """It also says if experience.md was changed afterwards."""
    run = make_run(tmp_path / "demo", make_metrics((90,)))
    text = write_report(run).read_text(encoding="utf-8")
    assert "did not keep the text read in training" in text
    (run / "round_1/adapter").mkdir()
    (run / "round_1/adapter/experience.md").write_text("## Draw 0\n- EXPERIENCE ITEM: H kills.\n")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.texts["pre"][0] == "## Draw 0\n- EXPERIENCE ITEM: H kills."
    assert any("has not read the new version" in text for text in page.texts["p"])
    (run / "round_1/experience.md").write_text("## Draw 0\n- EXPERIENCE ITEM: H kills.\n\n")
    assert "has not read" not in write_report(run).read_text(encoding="utf-8")


def test_the_report_tells_the_chain_of_adapters_and_the_gate(tmp_path):
    metrics = make_metrics()
    for r in metrics["rounds"]:
        r["gate"] = {"lost": "", "maps": 64}
    lost = "round 2 passes 2.6% of 64 validation maps, round 1 before it 55.4% <b>"
    metrics["chain"] = [
        {"round": 1, "start": 0, "lost": ""},
        {"round": 2, "start": 1, "lost": lost},
    ]
    metrics["next_start"] = 1
    page = Page(write_report(make_run(tmp_path / "demo", metrics)).read_text(encoding="utf-8"))
    lines = [text for text in page.texts["li"] if text.strip()]
    assert "Round 1 starts from the untrained model: the gate found no loss against it." in lines
    assert f"Round 2 starts from round 1: the gate found that {lost}." in lines
    assert "The next round starts from round 1." in lines
    assert f"gate: {lost}" in summary(metrics)
    assert headline(metrics).endswith("nothing in the prompt (rolled back: round 2)")
    assert "rolled back" not in headline(metrics | {"next_start": 2})
    metrics["rounds"][0]["pass_rate"]["base"]["levels"] = [0.0]
    for row, rates in zip(metrics["rounds"], ([0.5], [0.75, 0.25]), strict=True):
        row["pass_rate"]["consolidated"]["levels"] = rates
    metrics["bounds"]["known_levels"] = [0.0, 0.1, 0.5, 1.0]
    told = "base 0.0%, 0.0%, 0.0%; round 1 50.0%, 0.0%, 0.0%; round 2 75.0%, 25.0%, 0.0%"
    assert f"passed board 1, 2, ...: {told}" in summary(metrics), "a rate of each board"
    metrics["chain"][1]["lost"] = ""
    metrics["rounds"][0]["ood"]["base"] |= {"all": 0.9}
    metrics["rounds"][-1]["ood"]["consolidated"] |= {"all": 0.5}
    assert any("so the gate said nothing" in str(found) for found in findings(metrics))


@pytest.mark.filterwarnings("ignore:Glyph 27")
def test_a_strangers_metrics_do_not_steer_the_terminal(tmp_path, capsys):
    metrics = make_metrics()
    metrics["arms"]["\x1b]0;owned\x07"] = metrics["arms"].pop("sft")
    assert main(["report", str(make_run(tmp_path / "demo", metrics))]) == 0
    out = capsys.readouterr().out
    assert r"arm \x1b]0;owned\x07:" in out and not {"\x1b", "\x07"} & {*out}
    assert main(["report", str(tmp_path / "\x1b[31m")]) == 1
    assert r"\x1b[31m" in (told := capsys.readouterr().err) and "\x1b" not in told


def test_the_report_says_first_what_is_out_of_date(tmp_path):
    run = make_run(tmp_path / "demo", make_metrics((90,)))
    assert "out of date" not in write_report(run).read_text(encoding="utf-8")  # an older format
    record = json.loads((run / "run.json").read_text())
    settings = record["settings"] | {"rounds": 1, "env": "oelkit/FrozenLake4x4-v0"}
    prompts = asdict(load_prompt_set("brief"))
    record = {"form": FORM, "settings": settings, "prompts": prompts, "versions": {}}
    (run / "run.json").write_text(json.dumps(record))
    text = write_report(run).read_text(encoding="utf-8")  # no stage has written these metrics
    assert text.index("This run is out of date") < text.index("Findings")
    assert "<li>evaluate of round 1: round_1/metrics.json" in text or "<li>metrics: " in text
    assert f"loop --run {run} --redo" in text
    (run / "metrics.jsonl").unlink()  # no stage can make it again
    text = write_report(run.rename(tmp_path / "copy")).read_text(encoding="utf-8")
    assert f"loop --run {tmp_path / 'copy'} --redo" in text and "by training step" not in text


def test_a_finding_says_what_did_not_come_out():
    assert (str(Finding("yes.")), str(Finding("no.", False))) == ("yes.", "Not as hoped: no.")


def test_draws_that_say_the_same_stand_once(tmp_path):
    run = make_run(tmp_path / "demo", make_metrics((90,)))
    texts = ("H kills.", "G wins.", "H kills.")
    (run / "round_1/adapter").mkdir(exist_ok=True)
    (run / "round_1/adapter/experience.md").write_text(
        "".join(f"## Draw {d}\n- EXPERIENCE ITEM: {text}\n\n" for d, text in enumerate(texts))
    )
    shown = "".join(Page(write_report(run).read_text("utf-8")).texts["pre"])
    assert shown.count("H kills.") == 1 and "## Draw 0, 2\n" in shown and "## Draw 1\n" in shown


def test_runs_beside_each_other():
    one, two = make_metrics((60,), arms=False), make_metrics((100, 115), arms=False)
    text = comparison.table(
        {"one": one, "two": two}, {"one": {"lr": 1}, "two": {"lr": 2, "tail": 3}}
    )
    first, second, *differs = text.split("\n")
    assert first.startswith("one  rounds 46.9% [38%, 55%], OOD")
    assert (
        "rounds 78.1% → 89.8% [83%, 94%]" in second
        and "; above one: the intervals do not overlap" in second
    )
    assert differs == ["lr: one 1, two 2", "tail: one None, two 3"]
    other = two | {"eval_env": "oelkit/SokobanUnseen-v0"}
    last = comparison.table({"one": one, "x": other}, {"one": {}, "x": {}}).split("\n")[1]
    assert last.endswith("; played oelkit/SokobanUnseen-v0, so not compared")
    figure = comparison.figure({"one": one, "two": two})
    assert_whole(figure)
    assert "two ends highest: 89.8% [83%, 94%] passed" in words(figure)
    near = make_metrics((110,), arms=False)
    said = " ".join(words(comparison.figure({"one": one, "two": two, "near": near})).split())
    assert "two and near are not distinguishable after their last rounds" in said
    assert "2 worlds, so the runs do not compare" in words(
        comparison.figure({"1": one, "x": other})
    )
