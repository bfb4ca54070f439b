"""The KL controllers, worked by hand."""

import pytest

from alignlab.errors import ConfigError
from alignlab.methods.controllers import AdaptiveKL, FixedKL, KLAdaptiveLR


def test_the_adaptive_penalty_follows_the_clipped_error():
    controller = AdaptiveKL(coefficient=0.1, target=6.0, horizon=1000)
    controller.update(kl=6.6, num_sequences=100)  # error 0.1
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    controller.update(kl=60.0, num_sequences=100)  # error clipped to 0.2
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(kl=0.0, num_sequences=100)  # error clipped to -0.2
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_the_adaptive_penalty_holds_a_target():
    """A policy whose KL is inversely proportional to the penalty comes to rest at the target."""
    controller = AdaptiveKL(coefficient=1.0, target=5.0, horizon=500)
    for _ in range(200):
        controller.update(kl=2.0 / controller.coefficient, num_sequences=64)
    assert 2.0 / controller.coefficient == pytest.approx(5.0, rel=0.01)


def test_the_fixed_penalty_never_moves():
    controller = FixedKL(coefficient=0.3)
    controller.update(kl=100.0, num_sequences=1000)
    assert controller.coefficient == 0.3


def test_the_step_size_shrinks_above_twice_the_target_and_grows_below_half():
    rate = KLAdaptiveLR(target=0.01, factor=2.0, minimum=0.25, maximum=2.0)
    rate.update(0.021)
    assert rate.scale == 0.5
    for between in (0.0199, 0.0051):
        rate.update(between)
        assert rate.scale == 0.5
    rate.update(0.004)
    rate.update(0.004)
    rate.update(0.004)
    assert rate.scale == 2.0  # bounded
    for _ in range(9):
        rate.update(1.0)
    assert rate.scale == 0.25


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError):
        FixedKL(coefficient=-0.1)
    with pytest.raises(ConfigError):
        AdaptiveKL(coefficient=0.1, target=0.0)
    with pytest.raises(ConfigError):
        KLAdaptiveLR(target=0.01, factor=1.0)


def test_a_large_batch_against_a_short_horizon_never_turns_the_penalty_into_a_reward():
    controller = AdaptiveKL(coefficient=0.05, target=6.0, horizon=100)
    controller.update(kl=0.0, num_sequences=512)
    assert controller.coefficient == pytest.approx(0.05 * 0.8)
