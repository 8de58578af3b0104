"""Counts, intervals, agreement and judges: against closed forms, other libraries and simulated truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from krippendorff import alpha
from scipy.stats import binomtest, norm

from hf_motive.errors import ClipError
from hf_motive.motion import DISFlow
from hf_motive.preference import (
    Preference,
    agreement,
    compare,
    design_effect,
    judge_by_metric,
    judge_by_model,
    minimum_sample,
    read_choices,
    wilson,
    write_page,
)
from hf_motive.preference.__main__ import main
from hf_motive.preference.clusters import bootstrap, spread
from hf_motive.preference.printed import largest_design_effect, printed
from hf_motive.video import load_clip
from tests.clips import moving_square, write_corpus


def study(prompts: int, raters: int, *, by_prompt: float = 0.0, by_rater: float = 0.0, mu: float = 0.5, seed: int = 0):
    """Every rater judges every prompt; above 0.2 a is better, below -0.2 b."""
    rng = np.random.default_rng(seed)
    seen = mu + by_prompt**0.5 * rng.standard_normal((prompts, 1)) + by_rater**0.5 * rng.standard_normal(raters)
    seen = seen + (1 - by_prompt - by_rater) ** 0.5 * rng.standard_normal((prompts, raters))
    said = np.where(seen > 0.2, "a", np.where(seen < -0.2, "b", "tie"))
    return [{"prompt": f"p{p}", "rater": r, "choice": str(said[p, r])} for p in range(prompts) for r in range(raters)]


def alike(prompts: int, raters: int, wins: int) -> list[dict]:
    """All raters say the same of a prompt."""
    return [
        {"prompt": p, "rater": r, "choice": "a" if p < wins else "b"} for p in range(prompts) for r in range(raters)
    ]


# Counts ---------------------------------------------------------------------------------------------------------


def test_the_published_table_has_an_interval():
    found = Preference.from_shares(74.1, 12.3, 13.6, n=850)
    assert (found.win, found.tie, found.loss) == (630, 104, 116)
    assert found.interval("win") == pytest.approx(binomtest(630, 850).proportion_ci(method="wilson"))
    assert found.interval("win") == pytest.approx((0.7107, 0.7695), abs=5e-5)
    assert found.win_rate == pytest.approx((630 + 52) / 850)
    assert found.net == pytest.approx(2 * found.win_rate - 1)
    assert found.interval("net") == pytest.approx([2 * end - 1 for end in found.interval()])
    # 50 prompts judged as one each: what is left if all 17 raters agree on each.
    assert found.interval("win", design_effect=17) == pytest.approx(wilson(630 / 850, 50))


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (0, 20), (3, 7), (20, 20), (499, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.99])
def test_wilson_is_scipys(wins, n, level):
    expected = binomtest(wins, n).proportion_ci(level, method="wilson")
    assert wilson(wins / n, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_narrow_the_win_rate_but_never_to_nothing():
    even, tied = Preference(50, 0, 50), Preference(10, 80, 10)
    assert even.interval().half_width > 1.5 * tied.interval().half_width
    # Normal theory, where there are many: ties take a quarter of their share from the variance.
    many = Preference(3000, 4000, 3000)
    assert many.interval().half_width == pytest.approx(norm.ppf(0.975) * math.sqrt((0.25 - 0.1) / 10_000), rel=0.02)
    assert Preference(0, 5, 0).interval().half_width > 0.1
    assert Preference(5, 0, 0).interval().low < 0.6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Preference(0, 0, 0), "nothing to compare"),
        (lambda: Preference(74.1, 12.3, 13.6), "from_shares"),
        (lambda: Preference.from_shares(74, 12, 30, n=850), "add up to 100"),
        (lambda: Preference.from_shares(50, 0, 50, n=0), "number of judgements"),
        (lambda: Preference(1, 0, 0).interval("wins"), "win, tie, loss, win_rate, net"),
        (lambda: Preference(1, 0, 0).interval("win", 95), "between 0 and 1"),
        (lambda: wilson(1.2, 5), r"\[0, 1\]"),
        (lambda: minimum_sample(0.5, 5), "± 3 %"),
        (lambda: minimum_sample(0.5, 0.05, design_effect=0.5), "at least 1"),
        (lambda: compare([]), "no judgements"),
        (lambda: compare([{"prompt": "p", "choice": "left"}]), "judgement 0 must choose.*'left'"),
        (lambda: compare([{"choice": "a"}]), "judgement 0 needs"),
        (lambda: judge_by_metric([1.0], [1.0, 2.0]), "1 a_scores, 2 b_scores"),
        (lambda: judge_by_metric([None], [1.0]), "none of 1 pairs.*no score of a"),
        (lambda: judge_by_metric([1.0], [2.0], tie=-1), "0 or more"),
    ],
)
def test_errors_say_what_to_do(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(("share", "half_width"), [(0.5, 0.05), (0.741, 0.03), (0.02, 0.01), (1.0, 0.1)])
def test_the_smallest_sample_is_the_smallest(share, half_width):
    n = minimum_sample(share, half_width)
    assert wilson(share, n).half_width <= half_width < wilson(share, n - 1).half_width
    assert minimum_sample(share, half_width, design_effect=3) == 3 * n


# Prompts and raters ---------------------------------------------------------------------------------------------


def test_a_judgement_a_prompt_is_plain_wilson():
    rows = [{"prompt": i, "choice": "a" if i < 30 else "tie" if i < 34 else "b"} for i in range(40)]
    found = compare(rows)
    assert found.design_effect == 1
    assert found.intervals == found.independent
    assert found.interval("win") == pytest.approx(wilson(0.75, 40))
    assert found.p_value == pytest.approx(binomtest(30, 36).pvalue)
    assert found.is_apart and found.notes == ()


def test_raters_who_all_agree_count_as_one_a_prompt():
    found = compare(alike(50, 17, 37))
    assert found.n == 850
    assert found.design_effect == pytest.approx(17 * 50 / 49 * 849 / 850, rel=1e-6)
    assert found.interval("win").half_width > 3.5 * found.independent["win"].half_width
    assert found.interval("win") == pytest.approx(wilson(0.74, 50), abs=0.02)
    assert found.p_value == pytest.approx(binomtest(37, 50).pvalue)


def test_prompts_that_all_raters_split_alike_count_raters():
    rows = [{"prompt": p, "rater": r, "choice": "a" if r < 6 else "b"} for p in range(50) for r in range(8)]
    assert compare(rows).interval("win").low < wilson(0.75, 8).low + 0.02
    assert design_effect(rows) == pytest.approx(50 * 8 / 7, rel=0.01)


def test_independent_judgements_cost_nothing():
    effects = [design_effect(study(60, 10, seed=seed)) for seed in range(20)]
    assert np.mean(effects) < 1.25 and min(effects) == 1


def test_the_variance_is_that_of_many_studies():
    """The spread of the mean over fresh prompts and raters, estimated from one study, against that seen in many."""
    kind = {"by_prompt": 0.3, "by_rater": 0.1}
    means, estimates = [], []
    for seed in range(300):
        rows = study(30, 10, seed=seed, **kind)
        values = np.array([{"a": 1.0, "tie": 0.5, "b": 0.0}[row["choice"]] for row in rows])
        prompt, rater = np.repeat(np.arange(30), 10), np.tile(np.arange(10), 30)
        means.append(values.mean())
        estimates.append(spread(values, prompt, rater).variance)
    assert np.mean(estimates) == pytest.approx(np.var(means), rel=0.2)
    drawn = bootstrap(values[:, None], prompt, rater, 2000, seed=0)
    assert np.var(drawn) == pytest.approx(estimates[-1], rel=0.6)


@pytest.mark.parametrize(("prompts", "raters"), [(30, 8), (20, 1), (8, 6)])
def test_intervals_hold_the_truth_as_often_as_they_say(prompts, raters):
    """A coarse check; benchmarks/preference.py has the fine one."""
    by_prompt, by_rater = (0.3, 0.1) if raters > 1 else (0.3, 0.0)
    win, loss = norm.cdf(0.5 - 0.2), norm.cdf(-0.5 - 0.2)
    truth = win + (1 - win - loss) / 2
    studies = [
        compare(study(prompts, raters, by_prompt=by_prompt, by_rater=by_rater, seed=seed)) for seed in range(100)
    ]
    held = np.mean([not found.interval("win_rate").leaves_out(truth) for found in studies])
    assert 0.89 <= held <= 1
    if raters > 1:
        naive = np.mean([not found.independent["win_rate"].leaves_out(truth) for found in studies])
        assert naive < 0.87


def test_where_nothing_varies_no_interval_is_empty():
    found = compare(alike(12, 5, 12))
    assert found.bootstrap["win"] is None
    assert found.interval("win") == pytest.approx(wilson(1.0, 5))
    assert found.interval("loss") == pytest.approx(wilson(0.0, 5))
    assert any("every judgement is the same" in note for note in found.notes)
    assert compare([{"prompt": i, "choice": "tie"} for i in range(9)]).interval("net").half_width > 0.1
    # No loss at all, but wins and ties that come by prompts: losses are taken to come by prompts as well.
    some = [{"prompt": p, "rater": r, "choice": "a" if p < 30 else "tie"} for p in range(40) for r in range(10)]
    assert compare(some).interval("loss").high > wilson(0.0, 60).high
    assert compare([{"prompt": 0, "choice": "a"}]).interval("win").low == pytest.approx(wilson(1.0, 1).low)


def test_few_prompts_and_raters_are_said():
    notes = " ".join(compare(study(6, 3)).notes)
    assert "6 prompts are few" in notes and "3 raters say little" in notes
    assert "one prompt" in compare([{"prompt": "p", "rater": r, "choice": "a"} for r in range(9)]).notes[0]


def test_many_seeds_of_a_prompt_from_one_judge_are_one_prompt():
    rows = [{"prompt": p, "choice": "a" if p < 7 else "b"} for p in range(10) for _ in range(20)]
    assert compare(rows).interval("win").half_width > 2.5 * wilson(0.7, 200).half_width


def test_the_seed_decides_and_order_does_not():
    rows = study(12, 4, by_prompt=0.3)
    assert compare(rows, seed=1) == compare(rows, seed=1)
    assert compare(rows, seed=1).bootstrap != compare(rows, seed=2).bootstrap
    for share, ends in compare(rows[::-1]).intervals.items():
        assert ends == pytest.approx(compare(rows).interval(share))


def test_a_report_reads_well():
    found = compare(study(30, 6, by_prompt=0.3))
    table = found.markdown("tuned", "base | 2")
    lines = table.splitlines()
    assert lines[0].startswith("|  | n | share | interval | bootstrap |")
    assert lines[2].startswith(f"| tuned better | {found.preference.win} |")
    assert all(line.count("|") - line.count("\\|") == 7 for line in lines[:7])
    assert "180 judgements of 30 prompts, 6 raters" in table and "exact sign test over prompts" in table
    assert "tuned better" in found.text("tuned", "base")
    assert json.loads(json.dumps(found.to_dict()))["intervals"]["win"] == list(found.interval("win"))


# Agreement ------------------------------------------------------------------------------------------------------


def test_alpha_is_krippendorffs():
    rows = [row for i, row in enumerate(study(20, 4, by_prompt=0.5)) if i % 7]  # some cells are missing
    grid = np.full((4, 20), np.nan)
    for row in rows:
        grid[row["rater"], int(row["prompt"][1:])] = {"a": 1, "tie": 0, "b": -1}[row["choice"]]
    found = agreement(rows)
    domain = [-1, 0, 1]
    assert found.nominal == pytest.approx(alpha(grid, level_of_measurement="nominal", value_domain=domain))
    assert found.ordinal == pytest.approx(alpha(grid, level_of_measurement="ordinal", value_domain=domain))
    assert found.nominal_interval.low < found.nominal < found.nominal_interval.high
    assert "between 4 raters over 20 pairs" in str(found)


def test_full_agreement_is_one_and_chance_is_zero():
    assert agreement(alike(20, 4, 10)).nominal == pytest.approx(1)
    assert abs(agreement(study(400, 3, mu=0)).nominal) < 0.06


def test_agreement_that_cannot_be_told_says_why():
    assert "one rater" in agreement([{"prompt": i, "choice": "a"} for i in range(3)]).untold
    apart = [{"prompt": i, "rater": i, "choice": "a"} for i in range(3)]
    assert "no two raters" in agreement(apart).untold
    same = agreement(alike(3, 2, 3))
    assert same.nominal is None and "every judgement is the same" in str(same)
    with pytest.raises(ValueError, match='give each row a "pair"'):
        agreement([{"prompt": 0, "rater": r, "choice": "a"} for r in (0, 0, 1)])
    seeds = [
        {"prompt": 0, "pair": s, "rater": r, "choice": "a" if s else "b"} for s in (0, 1) for r in ("Ada", "Grace")
    ]
    assert agreement(seeds).units == 2


# Judges ---------------------------------------------------------------------------------------------------------


def test_a_metric_judges_real_clips(tmp_path):
    """The scores of DIS flow, clip by clip; one clip is broken."""
    write_corpus(tmp_path / "still", range(3), speed=0.0)
    write_corpus(tmp_path / "moving", range(3))
    (tmp_path / "moving" / "002.mp4").write_bytes(b"broken")

    def scores(folder):
        for path in sorted(folder.glob("*.mp4")):
            try:
                yield float(DISFlow()(load_clip(path)).flow.norm(dim=1).mean())
            except ClipError:
                yield None

    rows = judge_by_metric(list(scores(tmp_path / "moving")), list(scores(tmp_path / "still")), ["p", "q", "r"])
    assert [(row["prompt"], row["choice"]) for row in rows] == [("p", "a"), ("q", "a")]
    assert rows.failed == {2: "no score of a"}
    assert compare(rows).preference == Preference(2, 0, 0)


def test_scores_that_hardly_differ_are_a_tie():
    rows = judge_by_metric([1.0, 1.0, 1.0, float("nan")], [1.05, 0.0, 2.0, 0.0], tie=0.1)
    assert [row["choice"] for row in rows] == ["tie", "a", "b"]
    lower = judge_by_metric([1.0, 1.0], [0.0, 1.0], higher_is_better=False)
    assert [row["choice"] for row in lower] == ["b", "tie"]


def test_a_model_is_asked_both_ways_and_must_not_contradict_itself():
    asked = []

    def likes_motion(prompt, one, other):
        asked.append(prompt)
        if prompt == "broken":
            raise RuntimeError("out of memory")
        if prompt == "first":
            return "a"  # whatever it is shown first
        motion = [video.diff(dim=0).abs().mean() for video in (one, other)]
        return motion[0] - motion[1]  # a tensor

    still, moving = moving_square(0, speed=0.0), moving_square(1)
    prompts = ["moves", "stays", "first", "broken", "same"]
    a, b = [moving, still, moving, moving, still], [still, moving, still, still, still]
    rows = judge_by_model(likes_motion, a, b, prompts)
    assert [(row["prompt"], row["choice"], row["consistent"]) for row in rows] == [
        ("moves", "a", True),
        ("stays", "b", True),
        ("first", "tie", False),
        ("same", "tie", True),
    ]
    assert rows.failed == {3: "RuntimeError: out of memory"}
    assert asked.count("moves") == 2
    assert judge_by_model(lambda *_: 0.05, [0], [0], ["p"], tie=0.1)[0]["choice"] == "tie"
    with pytest.raises(ValueError, match='none of 1 pairs.*answers "a", "b", "tie" or a number.*better!'):
        judge_by_model(lambda *_: "better!", [0], [0], ["p"])


# Files and commands ---------------------------------------------------------------------------------------------


def choice(pair: int, said: str, rater: str = "Ada", sitting: str = "x", at: str = "1", page: str = "f") -> str:
    row = {"page": page, "rater": rater, "sitting": sitting, "pair": str(pair), "prompt": f"p{pair}"}
    return json.dumps({**row, "choice": said, "left": "a", "position": 0, "seconds": 2.5, "at": at})


def test_files_of_choices_are_joined(tmp_path):
    early, late, other = (tmp_path / name for name in ("early.jsonl", "late.jsonl", "other.jsonl"))
    early.write_text(choice(0, "a") + "\n" + choice(1, "tie") + "\n")
    late.write_text("\n".join([choice(0, "b", at="2"), choice(1, "tie"), choice(2, "a")]))
    other.write_text(choice(0, "a", rater="Grace", sitting="y") + "\n\n")
    rows = read_choices(tmp_path)
    assert {(row["rater"], row["pair"], row["choice"]) for row in rows} == {
        ("Ada", "0", "b"),
        ("Ada", "1", "tie"),
        ("Ada", "2", "a"),
        ("Grace", "0", "a"),
    }
    assert read_choices([late, early]) == rows[:3]
    two_pages = tmp_path / "page-two.jsonl"
    two_pages.write_text(choice(0, "a", page="g"))
    assert {row["pair"] for row in read_choices([early, two_pages])} == {"f/0", "f/1", "g/0"}
    two_pages.write_text(choice(0, "b", sitting="z"))
    with pytest.raises(ValueError, match="early.jsonl, line 1 and page-two.jsonl, line 1: 'Ada'.*rename one"):
        read_choices([early, two_pages])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no choices"),
        ("{", "line 1 is not JSON"),
        ('\n{"choice": "a"}', "line 2 lacks page, rater"),
        ("[1]", "line 1 lacks"),
        (choice(0, "left"), "has the choice 'left'"),
    ],
)
def test_files_that_are_none_are_named(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.jsonl.*{message}" if text else message):
        read_choices(path)
    with pytest.raises(FileNotFoundError, match="gone.jsonl does not exist: name the files that raters downloaded"):
        read_choices(tmp_path / "gone.jsonl")


def test_from_folders_to_a_report(tmp_path, capsys):
    for name, speed in (("tuned", 2.0), ("base", 0.0)):
        write_corpus(tmp_path / name, range(2), speed=speed)
    page = tmp_path / "out" / "judge.html"
    main(["page", str(tmp_path / "tuned"), str(tmp_path / "base"), "--output", str(page)])
    assert "2 pairs" in capsys.readouterr().out
    text = page.read_text()
    assert '"prompt": "a square goes left"' in text and '"pair": "000"' in text
    assert "tuned" not in text.replace("-tuned", "") and str(tmp_path) not in text
    file = tmp_path / "ada.jsonl"
    file.write_text("\n".join(choice(i, "a" if i < 15 else "b", rater) for i in range(20) for rater in ("A", "B")))
    main(["report", str(file), "--names", "tuned", "base"])
    out = capsys.readouterr().out
    assert (
        "tuned better" in out and "75.0 %" in out and "Krippendorff" in out and "left was preferred in 30 of 40" in out
    )
    main(["report", str(file), "--json"])
    assert json.loads(capsys.readouterr().out)["agreement"]["nominal"] == pytest.approx(1)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("\n".join(json.dumps({"prompt": i, "choice": "a"}) for i in range(12)))
    main(["report", str(plain), "--markdown"])
    assert capsys.readouterr().out.startswith("|  | n | share |")
    (tmp_path / "base" / "001.mp4").unlink()
    with pytest.raises(SystemExit, match="same name in both folders; only in .*tuned: 001"):
        main(["page", str(tmp_path / "tuned"), str(tmp_path / "base")])
    with pytest.raises(SystemExit, match="report them apart"):
        main(["report", str(plain), str(file)])


def test_printed_shares_and_samples_on_the_command_line(capsys):
    main(
        ["report", "--shares", "46.9", "20.0", "33.1", "--of", "850", "--prompts", "50", "--names", "mask", "no mask"]
    )
    out = capsys.readouterr().out
    assert "399 / 170 / 281 of 850" in out and "correlate by less than 0.25" in out
    assert "| 1 | 17 |" in out
    largest = largest_design_effect(Preference(399, 170, 281))
    assert Preference(399, 170, 281).interval(design_effect=largest * 0.999).leaves_out(0.5)
    assert not Preference(399, 170, 281).interval(design_effect=largest * 1.001).leaves_out(0.5)
    assert "Neither side" in printed(50, 0, 50, of=100)
    main(["sample", "--share", "0.6", "--half-width", "0.05", "--raters", "5", "--alike", "0.2"])
    assert "132 prompts × 5 raters = 660 judgements" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="needs --of N"):
        main(["report", "--shares", "50", "0", "50"])


@pytest.mark.parametrize("command", [[], ["page"], ["report"], ["sample"]])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert "python -m hf_motive.preference" in capsys.readouterr().out


def test_a_pair_that_cannot_be_read_costs_its_row(tmp_path, caplog):
    clip = moving_square(0)
    good, bad = {"prompt": "p", "a": clip, "b": clip}, {"prompt": "q", "a": clip, "b": tmp_path / "missing.mp4"}
    text = write_page(tmp_path / "page.html", [bad, good]).read_text()
    assert text.count('data-mime="video/mp4"') == 2 and '"pairs": [{"pair": "1", "prompt": "p"}]' in text
    assert "pair 0: missing.mp4 is not there" in caplog.text
    for wrong, message in (
        ([bad], "no pair to show.*missing.mp4"),
        ([], "no pair to show"),
        ([{"prompt": "p", "a": clip}], "pair 0 lacks b"),
        ([{**good, "pair": "x"}, {**good, "pair": "x"}], 'pair 1 is called "x"'),
    ):
        with pytest.raises(ValueError, match=message):
            write_page(tmp_path / "none.html", wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html"]


def test_the_page_is_the_same_each_time(tmp_path):
    rows = [{"prompt": "p", "a": torch.zeros(3, 3, 16, 16) - 0.5, "b": moving_square(0)}]
    pages = [write_page(tmp_path / name, rows).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]
