"""Colours: contrast by WCAG's formula, and apart for people who see colours differently."""

from __future__ import annotations

import itertools

import pytest
from contrast import contrast, linear

from vfiokit.web.palette import DARK, HUES, LIGHT, SHAPE_ON, TEXT_ON, hue_of_groups, style_sheet
from vfiokit.web.svg import asset

THEMES = {"light": LIGHT, "dark": DARK}

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}

Vector = tuple[float, ...]


def _lab(rgb: Vector) -> Vector:
    matrix = (
        (0.4124564, 0.3575761, 0.1804375),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339, 0.1191920, 0.9503041),
    )
    white = (0.95047, 1.0, 1.08883)
    xyz = [
        sum(row[index] * min(max(rgb[index], 0), 1) for index in range(3)) / reference
        for row, reference in zip(matrix, white, strict=True)
    ]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return (116 * y - 16, 500 * (x - y), 200 * (y - z))


def _seen(colour: str, matrix: tuple[Vector, ...]) -> Vector:
    rgb = linear(colour)
    return _lab(tuple(sum(row[index] * rgb[index] for index in range(3)) for row in matrix))


def test_contrast_formula_agrees_with_the_known_extremes() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("text", "back"), TEXT_ON)
def test_text_has_enough_contrast(theme: str, text: str, back: str) -> None:
    assert contrast(THEMES[theme][text], THEMES[theme][back]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("shape", "back"), SHAPE_ON)
def test_lines_that_mean_something_have_enough_contrast(theme: str, shape: str, back: str) -> None:
    assert contrast(THEMES[theme][shape], THEMES[theme][back]) >= 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_answers_are_apart_whatever_eyes_one_has(theme: str, deficiency: str) -> None:
    colours = [THEMES[theme][name] for name in ("direct", "through", "none", "page")]
    seen = [_seen(colour, DEFICIENCIES[deficiency]) for colour in colours]
    for one, other in itertools.combinations(seen, 2):
        distance = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        assert distance > 9


def test_both_themes_have_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()


def test_every_colour_that_a_style_names_exists() -> None:
    import re

    for name in ("drawing.css", "page.css"):
        assert set(re.findall(r"var\(--([a-z0-9-]+)\)", asset(name))) <= LIGHT.keys()


def test_style_sheet_has_all_three_ways_to_a_theme() -> None:
    sheet = style_sheet()
    assert "prefers-color-scheme:dark" in sheet
    assert "[data-theme=dark]" in sheet
    assert "@media print" in sheet
    assert sheet.count("--page:#ffffff") == 2
    assert sheet.count("--page:#11161c") == 2


def test_only_groups_of_several_get_a_hue_and_neighbours_differ() -> None:
    hues = hue_of_groups({group: 1 + group % 2 for group in range(40)})
    assert set(hues) == set(range(1, 40, 2))
    assert all(0 <= hue < HUES for hue in hues.values())
    values = list(hues.values())
    assert all(one != other for one, other in itertools.pairwise(values))
