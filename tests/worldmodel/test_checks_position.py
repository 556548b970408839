"""Horizons start at the last given frame, a lost body scores the diagonal, baselines are exact."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.checks.bootstrap import bootstrap_ci, bootstrap_pooled_ci
from worldmodel.checks.position import (
    constant_velocity_error,
    frozen_error,
    horizons_s,
    position_error,
    unrelated_errors,
)

STRAIGHT_T2 = np.stack([0.1 + 0.03 * np.arange(20), 0.2 + 0.04 * np.arange(20)], axis=-1)  # 0.05 a frame


def test_the_first_generated_frame_is_one_interval_after_the_last_given_one():
    assert horizons_s(4, 16).tolist() == [0.0625, 0.125, 0.1875, 0.25]


def test_frozen_error_grows_by_the_distance_of_one_frame():
    np.testing.assert_allclose(frozen_error(STRAIGHT_T2, 4)[:3], [0.05, 0.10, 0.15])


def test_constant_velocity_is_exact_until_something_bounces():
    bounced_T2 = STRAIGHT_T2.copy()
    bounced_T2[10:, 0] = bounced_T2[9, 0] - 0.03 * np.arange(1, 11)
    error_K = constant_velocity_error(bounced_T2, 4)
    assert error_K[:6].max() < 1e-12
    assert error_K[6] == pytest.approx(0.06)


def test_a_lost_body_scores_the_diagonal_and_nothing_scores_more():
    lost_T2 = STRAIGHT_T2.copy()
    lost_T2[3] = np.nan
    error_T = position_error(lost_T2, STRAIGHT_T2)
    assert error_T[3] == pytest.approx(np.sqrt(2))
    assert error_T[[2, 4]].max() == 0
    assert position_error(STRAIGHT_T2 + 5, STRAIGHT_T2).max() == pytest.approx(np.sqrt(2))


def test_swapped_axes_are_an_error():
    assert position_error(STRAIGHT_T2[:, ::-1], STRAIGHT_T2).min() > 0.1


def test_no_episode_is_its_own_unrelated_one():
    assert unrelated_errors([STRAIGHT_T2, STRAIGHT_T2 + 0.1], 4).min() > 0.1
    assert len(unrelated_errors([STRAIGHT_T2], 4)) == 0


def test_bootstrap_covers_the_median_of_the_population_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_ci(rng.exponential(size=40), rng, resamples=300)
        covered += low <= np.log(2) <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_repeats_with_its_generator_and_knows_emptiness():
    values_E = np.arange(20.0)
    first, second = (bootstrap_ci(values_E, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert first[0] < 9.5 < first[1]
    assert np.isnan(bootstrap_ci(np.array([]), np.random.default_rng(0))).all()
    assert np.isnan(bootstrap_pooled_ci(0, np.random.default_rng(0), statistic=lambda picks: 0.0)).all()
