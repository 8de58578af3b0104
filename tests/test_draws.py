"""What a training sees when: a function of the seed and of how many clips were seen, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from hf_motive.training.draws import DrawOrder, Draws, seed_of


def sequence(order: DrawOrder, epochs: int) -> list[tuple[int, int]]:
    shown = []
    for epoch in range(epochs):
        order.steps_done = lambda epoch=epoch: epoch * order.steps
        shown += list(order)
    return shown


def test_every_clip_is_seen_once_before_any_is_seen_again():
    shown = sequence(DrawOrder(7, clips_a_step=4, seed=1), epochs=4)
    assert [draw for draw, _ in shown] == list(range(32))  # an epoch of 7 clips is two full steps of 4
    rows = [row for _, row in shown]
    for turn in range(4):
        assert sorted(rows[7 * turn : 7 * turn + 7]) == list(range(7))
    assert rows[:7] != rows[7:14]


def test_the_sequence_does_not_depend_on_the_batch():
    one, other = sequence(DrawOrder(6, 1, seed=3), 4), sequence(DrawOrder(6, 8, seed=3), 3)
    assert one[:24] == other[:24]
    assert sequence(DrawOrder(6, 1, seed=4), 4) != one


@pytest.mark.parametrize("processes, batch, accumulation", [(1, 4, 1), (2, 2, 1), (2, 1, 2), (4, 1, 1), (1, 1, 4)])
def test_each_step_sees_the_same_clips_however_they_are_dealt_out(processes, batch, accumulation):
    steps = [set() for _ in range(3)]
    for process in range(processes):
        order = DrawOrder(10, clips_a_step=4, seed=0)
        batches = list(BatchSamplerShard(BatchSampler(order, batch, False), processes, process))
        assert len(batches) == 3 * accumulation
        for place, shown in enumerate(batches):
            assert len(shown) == batch
            steps[place // accumulation] |= set(shown)
    whole = list(DrawOrder(10, 4, seed=0))
    assert steps == [set(whole[4 * step : 4 * step + 4]) for step in range(3)]


def test_a_draw_is_a_function_of_seed_and_number():
    draws = Draws(5, range(999), caption_dropout=0.5)
    assert [draws(number) for number in (3, 1, 2)] == [Draws(5, range(999), caption_dropout=0.5)(n) for n in (3, 1, 2)]
    assert draws(1) != draws(2)
    assert Draws(6, range(999))(1) != draws(1)


def test_uniform_draws_fill_the_positions_that_are_asked_for():
    positions = np.array([Draws(0, range(300, 500))(number).position for number in range(4000)])
    assert positions.min() >= 300 and positions.max() < 500
    counts, _ = np.histogram(positions, bins=10, range=(300, 500))
    assert np.abs(counts - 400).max() < 5 * 400**0.5


def test_the_other_densities_are_those_of_diffusers():
    normal = [Draws(0, range(1000), "logit_normal", logit_mean=1.0, logit_std=0.5)(n).position for n in range(2000)]
    logits = np.log(np.array(normal) / 1000 / (1 - np.array(normal) / 1000))
    assert abs(logits.mean() - 1.0) < 0.05 and abs(logits.std() - 0.5) < 0.05
    mode = np.array([Draws(0, range(1000), "mode", mode_scale=1.29)(n).position for n in range(2000)])
    assert np.mean((mode > 250) & (mode < 750)) > 0.6  # the middle is preferred; uniform gives half


def test_captions_are_left_out_as_often_as_asked():
    share = np.mean([Draws(0, range(999), caption_dropout=0.1)(number).without_caption for number in range(4000)])
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / 4000) ** 0.5
    assert not any(Draws(0, range(999))(number).without_caption for number in range(100))


def test_a_draw_drops_its_caption_at_all_noise_levels_alike():
    """Level and dropout come from one generator: neither may tell the other."""
    drawn = [Draws(0, range(1000), caption_dropout=0.5)(number) for number in range(4000)]
    level = np.array([draw.position for draw in drawn])
    without = np.array([draw.without_caption for draw in drawn])
    assert abs(np.corrcoef(level, without)[0, 1]) < 5 / 4000**0.5


def test_the_noise_does_not_know_the_level():
    """Of one seed, the noise's first numbers would follow from those that chose the timestep."""
    draws = Draws(0, range(1000))
    levels, first = [], []
    for number in range(2000):
        draw = draws(number)
        assert draw.seed != draw.call_seed
        levels.append(draw.position)
        noise = torch.randn(16, generator=torch.Generator().manual_seed(draw.seed))
        first.append(noise[[0, 8]].square().sum().item())
    assert abs(np.corrcoef(levels, first)[0, 1]) < 5 / 2000**0.5


def test_seeds_differ():
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900
    assert all(0 <= seed_of(a) < 2**63 for a in range(100))
