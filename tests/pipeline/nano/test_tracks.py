"""The fit of the model of changes of track, on made-up colours."""

from __future__ import annotations

import numpy as np

from pipeline.music.curves import COLOUR_HZ
from pipeline.music.tracks import GROUPS, LENGTHS_S, evidence
from pipeline.nano.tracks import Heard, examples, fit_network, fit_ratios

TRACK_S = 40


def compilation(rng: np.random.Generator, tracks: int = 4) -> Heard:
    """Tracks of one colour each, with noise, joined by cuts."""
    rows = [rng.normal(0, 1, 27) + rng.normal(0, 0.5, (TRACK_S * COLOUR_HZ, 27)) for _ in range(tracks)]
    joins = tuple((float(TRACK_S * i),) * 2 for i in range(1, tracks))
    return Heard(np.concatenate(rows), np.ones(tracks * TRACK_S * COLOUR_HZ, bool), joins)


def test_the_fitted_model_finds_joins_of_tracks_it_did_not_hear():
    rng = np.random.default_rng(0)
    made = [compilation(rng) for _ in range(12)]
    ratios = fit_ratios(made, rng)
    fitted = fit_network(*examples(made, ratios))

    assert len(ratios) == len(LENGTHS_S) * len(GROUPS)
    new = compilation(rng)
    z = evidence(new.rows, new.heard, ratios)
    for i in range(2):
        z = np.maximum(z @ fitted[f"weights.{i}"] + fitted[f"bias.{i}"], 0)
    odds = (z @ fitted["weights.2"] + fitted["bias.2"])[:, 0]
    joins = np.array([round(a * COLOUR_HZ) for a, _ in new.joins])
    assert (odds[joins] > 0).all()
    assert (np.delete(odds, np.add.outer(joins, np.arange(-2, 3)).ravel()) < 0).mean() > 0.99


def test_what_is_near_a_join_or_a_gap_teaches_nothing():
    rng = np.random.default_rng(0)
    cut = compilation(rng, tracks=2)
    gap = Heard(cut.rows, cut.heard, ((TRACK_S - 1.0, float(TRACK_S)),))
    ratios = fit_ratios([compilation(rng) for _ in range(3)], rng)

    (_, said), (_, of_gap) = examples([cut], ratios), examples([gap], ratios)

    assert sorted(said[said > 0].tolist()) == [0.5, 0.5, 1.0, 1.0, 1.0]
    heard = 1 + (2 * TRACK_S - 2 * 4) * COLOUR_HZ  # with 4 s before and after
    assert len(said) == heard - 8  # without what lies 1.5 to 3 s from the cut
    assert not of_gap.any()
