"""Loudness in blocks is loudness of the whole; a limited sound reaches its level and stays under its ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import loudness
from pipeline.codec import GATE_LUFS, normalise, true_peak_db
from pipeline.loudness import LoudnessMeter, limited, master

RATE = 32_000


def noise(seconds: float, *, level: float = 0.05, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Swells and fades once in ten seconds."""
    n = round(seconds * rate)
    swell = 1 + 0.9 * np.sin(2 * np.pi * np.arange(n) / rate / 10)
    return (level * swell * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def clicks(seconds: float) -> np.ndarray:
    """Quiet noise with a loud sample eight times a second: 33 dB from its loudness to its peaks."""
    signal = noise(seconds, level=0.01)
    signal[:: RATE // 8] = 1
    return signal


def whole(signal: np.ndarray, *, gain_db: float, peak_db: float) -> np.ndarray:
    return np.concatenate(list(limited(signal, RATE, gain_db=gain_db, peak_db=peak_db)))


@settings(max_examples=20)
@given(
    rate=st.sampled_from([32_000, 44_100, 48_000]),
    seconds=st.sampled_from([0.4, 0.7, 3.3, 12.0]),
    cuts=st.lists(st.floats(0, 1), max_size=8),
)
def test_a_meter_fed_in_blocks_reads_what_normalise_reads(rate: int, seconds: float, cuts: list[float]) -> None:
    signal = noise(seconds, rate=rate)
    meter = LoudnessMeter(rate)
    for block in np.split(signal, sorted(int(c * len(signal)) for c in cuts)):
        meter.feed(block)
    assert meter.lufs == pytest.approx(normalise(signal, rate, lufs=-14, peak_db=0)[1].lufs, abs=1e-6)
    assert meter.peak_db == pytest.approx(true_peak_db(signal), abs=1e-5)


def test_less_than_a_block_is_measured_as_if_silence_followed() -> None:
    meter = LoudnessMeter(RATE)
    assert (meter.lufs, meter.peak_db) == (GATE_LUFS, -math.inf)
    meter.feed(noise(0.15))
    assert meter.lufs == pytest.approx(normalise(noise(0.15), RATE, lufs=-14, peak_db=0)[1].lufs, abs=0.01)


@pytest.mark.parametrize("signal", [noise(7.3), clicks(7.3), noise(0.5), clicks(0.5)])
def test_a_sound_reaches_its_loudness_under_its_ceiling(signal: np.ndarray) -> None:
    mastering = master(signal, RATE, lufs=-14, peak_db=-1)
    made = whole(signal, gain_db=mastering.gain_db, peak_db=-1)
    measured = normalise(made, RATE, lufs=-14, peak_db=0)[1].lufs
    assert made.shape == signal.shape
    assert measured == pytest.approx(-14, abs=0.1)
    assert mastering.lufs == pytest.approx(measured, abs=0.01)
    assert true_peak_db(made) <= -1 + 0.02


def test_where_no_peak_is_in_the_way_one_gain_is_all_that_is_done() -> None:
    signal = noise(3)
    mastering = master(signal, RATE, lufs=-30, peak_db=-1)
    expected, measured = normalise(signal, RATE, lufs=-30, peak_db=-1)
    assert mastering.gain_db == pytest.approx(measured.gain_db, abs=1e-6)
    np.testing.assert_allclose(whole(signal, gain_db=mastering.gain_db, peak_db=-1), expected, atol=1e-6)


def test_the_limiter_leaves_alone_what_is_far_from_a_peak() -> None:
    signal = noise(2, level=0.01)
    signal[RATE] = 1
    made = whole(signal, gain_db=0, peak_db=-12)
    far = np.abs(np.arange(len(signal)) - RATE) > 2.1 * loudness.LOOKAHEAD_S * RATE
    np.testing.assert_array_equal(made[far], signal[far])
    assert abs(made[RATE]) == pytest.approx(10 ** (-12 / 20), rel=1e-3)
    assert (np.abs(made) <= np.abs(signal) + 1e-9).all()


def test_what_is_limited_does_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = clicks(5)
    at_once = whole(signal, gain_db=20, peak_db=-1)
    monkeypatch.setattr(loudness, "PASS_S", 1)
    np.testing.assert_allclose(whole(signal, gain_db=20, peak_db=-1), at_once, atol=1e-6)


def test_silence_stays_silence() -> None:
    mastering = master(np.zeros(RATE, np.float32), RATE, lufs=-14, peak_db=-1)
    assert (mastering.before, mastering.gain_db, mastering.lufs) == (GATE_LUFS, 0, GATE_LUFS)


def test_a_lone_click_comes_as_close_as_it_can() -> None:
    signal = np.zeros(5 * RATE, np.float32)
    signal[RATE] = 0.5
    mastering = master(signal, RATE, lufs=-14, peak_db=-1)
    assert GATE_LUFS < mastering.lufs < -14
    assert true_peak_db(whole(signal, gain_db=mastering.gain_db, peak_db=-1)) <= -1 + 0.02
