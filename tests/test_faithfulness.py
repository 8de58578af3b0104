"""benchmarks/faithfulness.py: its arithmetic against what is known, and all of it once, tiny."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import faithfulness  # noqa: E402
from faithful import (  # noqa: E402
    case,
    contenders,
    counterfactual,
    crossed,
    finished,
    first_order,
    gap,
    gradients,
    retraining,
    shares,
    table,
    truth,
    worlds,
)

from hf_motive.draws import side_by_side  # noqa: E402
from hf_motive.projection import Fastfood  # noqa: E402


def test_correlations_are_spearmans() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(6, size=(20, 3)), rng.standard_normal((20, 3))
    expected = [spearmanr(left[:, q], right[:, q]).statistic for q in range(3)]
    np.testing.assert_allclose(truth.correlations(left, right), expected)
    assert truth.mean_correlation(np.ones((5, 2)), right[:5, :2]) == 0.0, "what does not vary predicts nothing"
    half = np.stack([left[:, 0], np.zeros(20)], axis=1)
    assert truth.mean_correlation(half, left[:, [0, 1]]) == pytest.approx(0.5), "and counts"


def test_the_ceiling_is_what_a_perfect_prediction_reaches() -> None:
    """The expected loss itself, against means over seeds that scatter about it."""
    rng = np.random.default_rng(1)
    expected = rng.standard_normal((600, 12))
    for seeds, noise in ((2, 1.0), (4, 2.0)):
        losses = expected + noise * rng.standard_normal((seeds, *expected.shape))
        reached = truth.correlations(losses.mean(0), expected).mean()
        assert truth.ceiling(losses) == pytest.approx(reached, abs=0.02)
    assert truth.ceiling(rng.standard_normal((2, 600, 12))) < 0.2
    # As many as are retrained: one query's correlation of two seeds says little, and their mean enough.
    expected = rng.standard_normal((30, 48, 40))
    losses = expected + 3**0.5 * rng.standard_normal((2, 30, 48, 40))
    reached = np.mean([truth.correlations(losses[:, i].mean(0), expected[i]).mean() for i in range(30)])
    assert np.mean([truth.ceiling(losses[:, i]) for i in range(30)]) == pytest.approx(reached, abs=0.02)


def test_a_model_whose_loss_is_a_sum_has_a_score_of_one() -> None:
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((30, 4))
    members = np.zeros((12, 30), dtype=int)
    for number, row in enumerate(members):
        row[faithfulness.half(number, 30)] = 1
    assert (members.sum(1) == 15).all() and len(np.unique(members, axis=0)) == 12
    sums = truth.predicted(scores, members)
    assert truth.mean_correlation(sums, sums) == pytest.approx(1.0)
    rounds = truth.Rounds(12, np.array(["a", "a", "b", "b"]), rounds=50)
    low, high = truth.interval(rounds.means(sums, sums + 0.5 * rng.standard_normal(sums.shape)))
    assert low < high < 1.0 + 1e-12


def retrained(losses: np.ndarray, members: np.ndarray) -> table.Retrained:
    """Of losses (S, Q), with two seeds that agree but for a tenth."""
    rng = np.random.default_rng(9)
    seeds = [losses + 0.1 * losses.std() * rng.standard_normal(losses.shape) for _ in range(2)]
    return table.Retrained(
        members, np.stack([np.stack([seed, seed], axis=1)[..., None] for seed in seeds]), (1.0,), 1.0
    )


def test_what_draws_cost_is_told_from_what_the_score_misses() -> None:
    """Features that are the truth and noise: the more noise the less one predicts, and endless ones all of it."""
    rng = np.random.default_rng(3)
    groups, told = np.repeat(["a", "b"], 10), np.ones(20, dtype=bool)
    clips, queries = rng.standard_normal((60, 1, 1, 64)), rng.standard_normal((20, 1, 1, 64))
    members = (rng.random((40, 60)) < 0.5).astype(int)
    losses = -truth.predicted(contenders.unit(clips[:, 0, 0]) @ contenders.unit(queries[:, 0, 0]).T, members)
    found = retrained(losses, members)
    noisy = [side + 1.0 * rng.standard_normal((len(side), 1, 2, 64)) for side in (clips, queries)]
    one, endless = map(
        float,
        re.findall(
            r"from (\S+) with one noise, endless noises would come to (\S+)", gap.draws(found, *noisy, groups, told)
        )[0],
    )
    assert one < 0.7 and endless == pytest.approx(0.97, abs=0.12)
    opposed = np.concatenate([noisy[0][:, :, :1], -noisy[0][:, :, :1]], axis=2)
    assert "agrees by -1.00" in (text := gap.draws(found, opposed, noisy[1][:, :, [0, 0]], groups, told))
    assert "endless noises would come to nobody knows what." in text
    turned = [np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in range(2)]
    sides = [np.concatenate([side @ turn for turn in turned], axis=2) for side in (clips, queries)]
    text = gap.draws(found, *sides, groups, told)
    assert (
        "agrees by 1.00; so from 0.9" in text and abs(float(re.search(r"another it predicts (\S+)\.$", text)[1])) < 0.2
    )


def test_a_loss_that_is_a_sum_is_learned_from_other_halves() -> None:
    rng = np.random.default_rng(5)
    members = np.array([np.isin(np.arange(60), faithfulness.half(number, 60)) for number in range(41)], dtype=int)
    summed = truth.predicted(rng.standard_normal((60, 30)), members)
    assert truth.mean_correlation(summed, gap.left_out(summed, members)) == pytest.approx((40 / 60) ** 0.5, abs=0.12)
    other = rng.standard_normal(summed.shape)
    assert abs(truth.mean_correlation(other, gap.left_out(other, members))) < 0.15
    told, groups = np.ones(30, dtype=bool), np.repeat(["a", "b", "c"], 10)
    text = gap.additive(retrained(-summed, members), groups, told)
    found, expected = (
        float(re.search(before + r" (0\.\d+)", text)[1]) for before in ("another seed by", "tell about")
    )
    assert found == pytest.approx(expected, abs=0.12) and expected > 0.7


def test_each_part_of_the_losses_has_its_score() -> None:
    """One contender knows what all queries have in common, and nothing of what sets one off."""
    rng = np.random.default_rng(4)
    groups, told = np.array(["a", "a", "b", "b"]), np.ones(4, dtype=bool)
    common, own = rng.standard_normal((60, 1)), rng.standard_normal((60, 4))
    members = (rng.random((40, 60)) < 0.5).astype(int)
    contender = contenders.Contender("it", lambda _: common + np.zeros((1, 4)), (0, 0))
    losses = -truth.predicted(common + (own - own.mean(1, keepdims=True)), members)
    text = gap.parts(retrained(losses, members), [contender], {"it": 0.0}, groups, told)
    ceilings, row = (line.strip("| ").split(" | ")[1:] for line in text.splitlines()[2:])
    assert float(row[2]) > 0.95 and float(row[3]) == 0.0 and 0.5 < float(row[0]) < 0.9
    assert all(float(value.strip("*")) > 0.9 for value in ceilings)


def test_worlds_count_alike_and_what_one_hides_another_tells() -> None:
    rng = np.random.default_rng(6)
    found = {}
    for name, halves in (("long", 60), ("short", 12)):
        best = rng.standard_normal((halves, 8))
        sums = {"right": best, "half": best + 2.0 * rng.standard_normal(best.shape), "here": best}
        if name == "short":
            del sums["here"]
        losses = -best + 0.1 * rng.standard_normal((2, *best.shape))
        found[name] = worlds.World(losses, np.repeat(["a", "b"], 4), sums)
    lines = [line.strip("| ").split(" | ") for line in worlds.together(found, ("half",)).splitlines()]
    assert lines[0] == ["contender", "long", "short", "mean", "less half"] and len(lines) == 5
    rows = {line[0]: line[1:] for line in lines[3:]}
    assert set(rows) == {"right", "half"} and all(float(rows["right"][i]) > 0.9 for i in (0, 1))
    mean, low, high = (float(value) for value in re.findall(r"-?[0-9.]+", rows["half"][2]))
    assert (
        mean == pytest.approx((float(rows["half"][0]) + float(rows["half"][1])) / 2, abs=0.011) and low < mean < high
    )
    assert float(rows["right"][3].split("[")[1].split(",")[0]) > 0


def test_the_kernel_is_the_ridge_by_features() -> None:
    rng = np.random.default_rng(3)
    clips, queries = rng.standard_normal((7, 4)), rng.standard_normal((3, 4))
    level = 0.5 * np.trace(clips @ clips.T) / 7
    expected = clips @ np.linalg.inv(clips.T @ clips + level * np.eye(4)) @ queries.T
    np.testing.assert_allclose(contenders.ridge(clips, queries, 0.5), expected, rtol=1e-8)


def test_the_first_tenth_is_left_out_or_taken_alone() -> None:
    """Of forty clips, four by votes: those that three queries out of three rank highest, at any scale of a score."""
    scores = np.random.default_rng(4).random((40, 3))
    scores[[3, 9, 20, 31]] += 5
    scores[[1, 2, 7, 8]] -= 5
    assert set(counterfactual.ranking(1000 * scores)[:4]) == {3, 9, 20, 31}
    contender = contenders.Contender("a score", lambda _: scores, (1, 1))
    every = list(counterfactual.choices([contender], {"a score": 0.0}, chances=2))
    assert [choice.method for choice in every] == [counterfactual.CHANCE] * 6 + ["a score"] * 3
    without_best, without_worst, alone = (set(choice.chosen.tolist()) for choice in every[6:])
    assert alone == {3, 9, 20, 31} and without_best == set(range(40)) - alone
    assert without_worst == set(range(40)) - {1, 2, 7, 8}
    assert not np.array_equal(every[0].chosen, every[3].chosen), "chance chooses anew"
    assert list(counterfactual.choices([], {}, chances=2)) == []


def test_another_ranking_is_not_taken_for_this_one(tmp_path) -> None:
    """By a file's name alone, what was left out on another machine would be."""
    contender = contenders.Contender("a score", lambda _: np.arange(40.0)[:, None], (1, 1))
    every = list(counterfactual.choices([contender], {"a score": 0.0}, chances=1))
    (tmp_path / "models").mkdir()
    groups = np.array(["a", "b"])
    for place, choice in enumerate(every):
        losses = np.full((2, 2, 1, 1), 0.5 + 0.001 * place)
        np.savez(tmp_path / "models" / f"{choice.name}-0.npz", losses=losses, chosen=choice.chosen)
    text = counterfactual.written(tmp_path, every, (0,), groups)
    # Without the best: 0.503, by chance 0.500 and 0.501; the best alone 0.505, by chance 0.502.
    assert "| a score | +2.5 [+2.5, +2.5] | +3.5 [+3.5, +3.5] | +3.0 [+3.0, +3.0] |" in text
    np.savez(tmp_path / "models" / f"{every[3].name}-0.npz", losses=losses, chosen=every[0].chosen)
    assert "| a score |  | +3.5" in counterfactual.written(tmp_path, every, (0,), groups)


def test_queries_of_a_motion_are_drawn_together() -> None:
    groups = np.array(["a", "b", "a", "b", "c"])
    rounds = truth.resampled(groups, 200, np.random.default_rng(0))
    assert all(len(np.unique(groups[chosen])) <= 3 for chosen in rounds)
    alone = [chosen for chosen in rounds if len(np.unique(groups[chosen])) == 1]
    assert alone, "a motion may be drawn three times, as a query alone would hardly be"
    tuning = faithfulness.first_third(np.array(list("aaabbbab")))
    assert tuning.tolist() == [True, False, False, True, False, False, False, False]
    assert faithfulness.first_third(np.array(list("abcd"))).tolist() == [True, False, False, True]


def test_draws_are_compared_as_the_attributor_does() -> None:
    draws = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(draws, dim=-1)
    np.testing.assert_allclose(contenders.side_by_side(draws.numpy()), side_by_side(units).numpy(), atol=1e-6)
    mean = units.mean(1)
    np.testing.assert_allclose(contenders.averaged(draws.numpy()), mean / mean.norm(dim=1, keepdim=True), atol=1e-6)
    other = torch.nn.functional.normalize(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    equal = contenders.side_by_side(draws.numpy()) @ contenders.side_by_side(other.numpy()).T
    np.testing.assert_allclose(equal, torch.einsum("ikd,jkd->ij", units, other).numpy() / 3, atol=1e-6)


def test_exact_gradients_foretell_a_short_training() -> None:
    """Small steps of gradient descent lower each query's loss by the sum of their terms, and by nothing else."""
    pipe = case.pipeline(ROOT / "examples" / "lab" / "pipeline")
    model = retraining.Model(pipe, precise=True)
    config, made = pipe.transformer.config, torch.Generator().manual_seed(0)

    def drawn(count: int) -> case.Clips:
        latents = torch.randn(count, config.in_channels, 2, 4, 4, generator=made)
        captions, weights = torch.randn(count, 6, config.text_dim, generator=made), torch.rand(count, 2, 4, 4)
        return case.Clips(latents, captions, weights, [{}] * count, Dataset.from_dict({"id": range(count)}))

    corpus, queries = drawn(4), drawn(2)
    settings, measured = retraining.Training(2, batch=2, lr=1e-4, warmup=1), retraining.Measurement((500.0, 900.0), 1)
    scales = gradients.adaptive({name: torch.full_like(part, 4.0) for name, part in model.denoiser.named_parameters()})
    scale = torch.cat([part.flatten() for part in scales.values()])
    plain, weighed = first_order.terms(model, corpus, queries, settings, measured, (3,), scale)
    assert plain.shape == (1, 2, 4, 2)
    assert np.allclose(weighed, plain / 2.02, rtol=1e-4, atol=1e-3 * np.abs(plain).max())
    chosen = [0, 1, 3]
    foretold = sum(
        lr / settings.batch * plain[0, showing, clip]
        for lr, seen in retraining.schedule(chosen, 4, 3, settings)
        for clip, showing in seen
    )
    before = retraining.losses(model, queries, measured)[0].mean((1, 2))
    retraining.fine_tune(model, corpus, chosen, 3, settings, adaptive=False)
    after = retraining.losses(model, queries, measured)[0].mean((1, 2))
    assert before - after == pytest.approx(foretold, rel=0.03)


def test_exact_terms_are_told_by_the_noise_that_they_were_drawn_with() -> None:
    """Each of two seeds follows terms of its own, of which half is common to both."""
    rng = np.random.default_rng(8)
    common, own = rng.standard_normal((60, 30)), rng.standard_normal((2, 60, 30))
    members = (rng.random((40, 60)) < 0.5).astype(int)
    losses = np.stack([-truth.predicted(common + seed, members) for seed in own])[:, :, None, :, None]
    groups, told = np.repeat(["a", "b", "c"], 10), np.ones(30, dtype=bool)
    found = np.stack([(common + own)[:, None], rng.standard_normal((2, 1, 60, 30))])
    text = gap.exact(table.Retrained(members, losses, (1.0,), 1.0), {"base": found}, groups, told)
    right, wrong = (line.strip("| ").split(" | ") for line in text.splitlines()[3:])
    assert right[0] == "base" and right[2].startswith("**1.00**") and float(right[4]) == 1.0
    assert float(right[3]) == float(right[5]) == pytest.approx(0.5, abs=0.12)
    assert abs(float(wrong[4])) < 0.1


def test_two_choices_differ_by_their_clips_alone() -> None:
    """What both have comes in one order, with one noise and one timestep each time."""
    some, others = [0, 2, 5, 7], [1, 2, 5, 6]
    order, other = (retraining.showings(chosen, 8, 3, 2) for chosen in (some, others))
    common = {2, 5}
    assert [s for s in order if s[0] in common] == [s for s in other if s[0] in common]
    assert sorted(order) == sorted((clip, showing) for clip in some for showing in range(2))
    assert retraining.showings(some, 8, 4, 2) != order
    drawn = [retraining.draw((2, 3), 1, 5, showing, 4, 3.0) for showing in range(4)]
    again = retraining.draw((2, 3), 1, 5, 2, 4, 3.0)
    assert torch.equal(again[0], drawn[2][0]) and again[1] == drawn[2][1]
    assert not torch.equal(drawn[0][0], drawn[1][0])
    # Undo the scheduler's shift: one showing in each quarter.
    quarters = sorted(int(4 * sigma / (3 - 2 * sigma)) for _, sigma in drawn)
    assert quarters == [0, 1, 2, 3]


def test_several_projections_are_those_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    named = {"a": torch.randn(40, 7, generator=generator), "b": torch.randn(5, generator=generator)}
    moments = {name: value**2 + 0.1 for name, value in named.items()}
    second = gradients.Second(moments)
    law = gradients.Several(64, [gradients.as_it_is, gradients.unit, second])
    stream = law.stream()
    for name, value in named.items():
        stream.add(name, value)
    found = law.finish(stream.total()).view(3, 64)
    plain = Fastfood(dim=64, seed=0)
    for part, scale in zip(found, (gradients.as_it_is, gradients.unit, second), strict=True):
        torch.testing.assert_close(part, plain.project({name: scale(name, value) for name, value in named.items()}))


def clips(facts: list[dict]) -> case.Clips:
    return case.Clips(torch.zeros(len(facts), 1), torch.zeros(1), torch.zeros(1), facts, None)


def test_motions_have_looks_in_the_corpus_and_other_looks_in_the_queries() -> None:
    assert len(set(crossed.LOOKS.values())) == len(crossed.LOOKS) == 10
    corpus, queries = crossed.corpus_clips(200), crossed.query_clips(3)
    own = np.mean([crossed.look(clip.spec.to_dict()) == clip.shown for clip in corpus])
    assert 0.7 < own < 0.9
    assert all(crossed.look(clip.spec.to_dict()) != clip.shown for clip in queries) and len(queries) == 30
    named = [clip.spec.color in clip.spec.caption and clip.spec.background in clip.spec.caption for clip in corpus]
    assert all(named), "captions say what is seen"


def test_shares_are_counted_among_each_query_s_first_tenth() -> None:
    """Twenty clips, two of them first: both show the first query's motion, one that of the second, one is red."""
    labels = np.array(["roll"] * 10 + ["spin"] * 10)
    scores = np.zeros((20, 2))
    scores[[3, 4], 0], scores[[4, 15], 1] = 1, 1
    np.testing.assert_allclose(shares.share(scores, labels, np.array(["roll", "spin"])), [1.0, 0.5])
    joint = shares.together(np.arange(6.0).reshape(2, 3), np.array(["spin", "roll", "spin"]))
    np.testing.assert_allclose(joint, [[1.0, 1.0], [4.0, 4.0]])
    corpus = clips([{"shown": motion, "color": "red" if i == 4 else "blue"} for i, motion in enumerate(labels)])
    queries = clips([{"shown": "roll", "color": "red"}, {"shown": "spin", "color": "red"}])
    contender = contenders.Contender("it", lambda s: s * scores, (0, 0), settings=(-1.0, 1.0))
    assert shares.setting(contender, corpus, queries, np.array([False, True])) == 1.0
    text = shares.written([contender], {"it": 1.0}, corpus, queries, np.array([True, True]))
    row = next(line for line in text.splitlines() if line.startswith("| it"))
    assert [cell.split()[0] for cell in row.strip("| ").split(" | ")[1:]] == ["75%", "50%", "75%"]
    assert shares.written([contender], {"it": 0.0}, corpus, queries, np.array([True, True])).count("ranks none") == 3
    other = contenders.Contender("other", lambda _: np.arange(20.0)[:, None] + np.zeros(2), (0, 0))
    counted = shares.count([contender, other], {"it": 1.0, "other": 0.0}, corpus, queries, np.array([True, True]))
    text = shares.ahead([counted, counted], "it")
    row = next(line for line in text.splitlines() if line.startswith("| other"))
    assert [cell.split()[0] for cell in row.strip("| ").split(" | ")[1:]] == ["-25", "-50"], "two spin, none is red"


def test_only_clips_that_move_otherwise_than_asked_are_failures() -> None:
    samples = clips(
        [
            {"shown": "roll", "motion": "spin", "seed": 12},
            {"shown": "spin", "motion": "spin", "seed": 10},
            {"shown": "roll", "motion": "spin", "seed": 99},
        ]
    )
    draws = np.random.default_rng(5).standard_normal((3, 3, 1, 4))
    found = contenders.failures(samples, draws, clips([{"seed": seed} for seed in (10, 11, 12)]))
    np.testing.assert_allclose(found[2], contenders.side_by_side(draws[:1, :, 0])[0])
    assert not found[:2].any()


def test_what_trainings_showed_is_packed_and_unpacked(tmp_path) -> None:
    rng, told = np.random.default_rng(6), {}
    (tmp_path / "models").mkdir()
    for name in ("half-000-0", "by-chance-1"):
        told[name] = {
            "losses": rng.random((2, 5, 4, 2)),
            "chosen": np.sort(rng.permutation(21)[:9]),
            "seconds": np.array([50.0, 60.0]),
        }
        np.savez(tmp_path / "models" / f"{name}.npz", **told[name])
    (tmp_path / "models" / "half-001-0.partial.npz").write_bytes(b"")
    corpus = rng.integers(2**40, size=21)
    finished.pack(tmp_path / "models", tmp_path / "packed.npz", corpus)
    finished.unpack(tmp_path / "packed.npz", tmp_path / "again", corpus)
    with pytest.raises(SystemExit, match="another corpus"):
        finished.unpack(tmp_path / "packed.npz", tmp_path / "third", corpus[:20])
    with pytest.raises(SystemExit, match="is not there"):
        finished.unpack(tmp_path / "none.npz", tmp_path / "third", corpus)
    assert {path.stem for path in (tmp_path / "again").iterdir()} == set(told)
    for name, expected in told.items():
        found = np.load(tmp_path / "again" / f"{name}.npz")
        np.testing.assert_array_equal(found["chosen"], expected["chosen"])
        np.testing.assert_allclose(found["losses"].mean(-1), expected["losses"].mean(-1), rtol=1e-6)
        np.testing.assert_allclose(found["seconds"], expected["seconds"])


def test_the_smoke_run_writes_a_table(tmp_path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    script, output = str(ROOT / "benchmarks" / "faithfulness.py"), str(tmp_path / "out")
    for options, models in (((), 6), (("--known", "--table"), 0)):
        command = [sys.executable, script, "--smoke", "--output", output, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("half-") == models
        shutil.move(tmp_path / "out" / "models", tmp_path / f"models{models}")
    text = (tmp_path / "out" / "faithfulness.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for models in ("models6", "models0"):
        assert len(list((tmp_path / models).glob("without-the-best-the-paper-s-score-0-*.npz"))) == 2
    for row in ("*the ceiling*", "the paper's score", "MotiveAttributor(pipe, noise_draws=2)", "at 2 checkpoints"):
        assert any(row in line for line in lines), row
    assert "nan" not in text and "same motion" in text
