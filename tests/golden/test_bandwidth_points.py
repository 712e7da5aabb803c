"""The model against published measurements, and the page that shows both."""

from __future__ import annotations

import bandwidth_points as published
import pytest

from vfiokit.p2p.bandwidth import lifts, parse_flows, predict
from vfiokit.p2p.bandwidth.sketch import sketch


@pytest.mark.parametrize("point", published.POINTS, ids=[each.name for each in published.POINTS])
def test_a_published_point_is_predicted_within_its_bound(point):
    assert abs(point.error()) <= point.bound, f"{point.predicted():.4g} for {point.measured:g}"


def test_half_of_the_measured_points_are_within_a_twentieth_and_two_are_known_misses():
    errors = sorted(abs(point.error()) for point in published.POINTS)
    assert errors[len(errors) // 2] <= 0.06
    assert sum(error > 0.2 for error in errors) == 2


def test_the_model_is_an_upper_bound():
    assert all(point.error() > -0.01 for point in published.POINTS)


def test_redirect_halves_a_pair_in_the_model_as_in_the_measurement():
    names = {point.name: point for point in published.POINTS}
    off = names["two below one switch, ACS redirect off, both ways"]
    on = names["the same two, ACS redirect on"]
    assert on.predicted() / off.predicted() == pytest.approx(on.measured / off.measured, rel=0.03)


@pytest.mark.parametrize("scenario", published.SCENARIOS, ids=lambda each: each.name)
def test_the_85_gbps_scenario_is_in_its_range(scenario):
    assert scenario.low <= scenario.gbps() <= scenario.high


def test_two_redirected_pairs_both_ways_are_near_what_was_seen_and_others_are_not():
    values = {scenario.name: scenario.gbps() for scenario in published.SCENARIOS}
    assert 85 / values["**redirect on, two pairs, both ways**"] == pytest.approx(0.77, abs=0.03)
    assert (
        min(
            values["redirect off, two pairs, both ways"],
            values["redirect on, one pair, one way"],
            values["redirect on, one pair, both ways"],
            values["redirect on, two pairs, one way"],
        )
        > 2 * 85
    )


def test_what_would_lift_the_85_gbps_case_is_redirect_off_or_ats_with_direct_translated():
    drawn = sketch(published.BOX)
    flows = parse_flows(drawn.topology, published.PAIRS, names=drawn.names)
    found = lifts(drawn.topology, flows, predict(drawn.topology, flows))
    assert [lift.kind for lift in found[:2]] == ["acs", "ats"]
    for lift in found[:2]:
        assert all(rate.gbps == pytest.approx(392) for rate in lift.prediction.rates)


def test_the_page_shows_the_tables_as_they_are_computed_now():
    text = published.PAGE.read_text(encoding="utf-8")
    assert published.written(text) == text, "run: python tests/golden/bandwidth_points.py --write"


def test_the_page_calls_the_85_gbps_explanation_a_hypothesis():
    assert "a hypothesis that fits" in published.PAGE.read_text(encoding="utf-8")
