"""The colours of page and picture, light and dark, and their style sheet.

Hues follow Okabe and Ito's set, which people with any of the common colour-vision deficiencies can
tell apart; no meaning is carried by colour alone. Every pair of :data:`TEXT_ON` has a contrast of
4.5:1 or more in both themes (WCAG 2.2, 1.4.3), every pair of :data:`SHAPE_ON` 3:1 (1.4.11).
"""

from __future__ import annotations

HUES = 8
"""How many colours groups take turns with."""

LIGHT: dict[str, str] = {
    "page": "#ffffff",
    "panel": "#f5f7fa",
    "band": "#eef2f6",
    "line": "#c8d0da",
    "strong": "#6b7785",
    "text": "#17202b",
    "muted": "#525e6b",
    "accent": "#0b5cab",
    "on-accent": "#ffffff",
    "warn": "#a33600",
    "warn-fill": "#fdeadd",
    "direct": "#1767b1",
    "on-direct": "#ffffff",
    "through": "#f0c869",
    "on-through": "#3a2a00",
    "none": "#dde2e8",
    "on-none": "#46515d",
    "hue0": "#ffd699",
    "hue1": "#bbe1f6",
    "hue2": "#a5e0c8",
    "hue3": "#f5ea93",
    "hue4": "#b6cbf2",
    "hue5": "#f6bda2",
    "hue6": "#ebc3da",
    "hue7": "#cfd3d8",
}
DARK: dict[str, str] = {
    "page": "#11161c",
    "panel": "#171e26",
    "band": "#1a222b",
    "line": "#36414d",
    "strong": "#7c8997",
    "text": "#e4e9ef",
    "muted": "#9eabb9",
    "accent": "#6db4f6",
    "on-accent": "#08131f",
    "warn": "#ffa06b",
    "warn-fill": "#3d2415",
    "direct": "#4d9fea",
    "on-direct": "#06121f",
    "through": "#c4993a",
    "on-through": "#191100",
    "none": "#2a333d",
    "on-none": "#a9b5c1",
    "hue0": "#5f430d",
    "hue1": "#1c4b68",
    "hue2": "#0d4f3d",
    "hue3": "#56500e",
    "hue4": "#1e3f78",
    "hue5": "#6d3014",
    "hue6": "#5c3052",
    "hue7": "#454c55",
}
TEXT_ON: tuple[tuple[str, str], ...] = (
    *((text, back) for text in ("text", "muted", "accent") for back in ("page", "panel", "band")),
    *(("warn", back) for back in ("page", "panel", "band", "warn-fill")),
    ("text", "warn-fill"),
    ("on-accent", "accent"),
    ("on-direct", "direct"),
    ("on-through", "through"),
    ("on-none", "none"),
    *(("text", f"hue{number}") for number in range(HUES)),
)
"""Colour of text, and what it may stand on."""
SHAPE_ON: tuple[tuple[str, str], ...] = (
    ("strong", "page"),
    ("strong", "band"),
    ("accent", "band"),
    ("warn", "band"),
)
"""Colour of lines and marks that mean something, and what they may stand on."""


def style_sheet() -> str:
    """The colours as custom properties: by the reader's preference, or by ``data-theme``."""
    light, dark = _block(LIGHT), _block(DARK)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media print{{:root,:root:not([data-theme=light]){{color-scheme:light;{light}}}}}\n"
    )


def _block(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def hue_of_groups(sizes: dict[int, int]) -> dict[int, int]:
    """A hue for every group with more than one member, in turn; groups of one need none.

    ``sizes`` maps a group's id to the count of its members.
    """
    shared = [group for group, size in sizes.items() if size > 1]
    return {group: index % HUES for index, group in enumerate(shared)}
