"""Lines thinned for drawing, and figures made part of a page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from megatron_cpt.report.figures import (
    DARK,
    LIGHT,
    LONGEST_LINE,
    drawing,
    inline_svg,
    logarithmic_token_axis,
    new_panel,
    thin,
)


def test_a_short_line_is_left_alone_save_for_what_is_not_a_number():
    tokens, values = thin(np.array([1, 2, 3]), np.array([5.0, np.nan, 7.0]))
    assert tokens.tolist() == [1, 3] and values.tolist() == [5.0, 7.0]


def test_a_long_line_becomes_weighted_means_of_neighbours():
    steps = 4 * LONGEST_LINE
    tokens, values = thin(np.arange(steps), np.arange(steps) % 4.0, np.tile([1.0, 0.5, 1.0, 1.5], LONGEST_LINE))
    assert len(values) == LONGEST_LINE
    assert values == pytest.approx(np.full(LONGEST_LINE, 7.0 / 4.0))  # (0 + 0.5 + 2 + 4.5) / 4
    assert tokens[:2].tolist() == [3, 7]


def test_an_inline_figure_is_coloured_by_variables_and_names_no_place():
    with drawing():
        figure, axes = new_panel("loss & <nats>")
        axes.plot([1, 1000], [4.0, 5.0], color=LIGHT["series0"])
        logarithmic_token_axis(axes)
        svg = inline_svg(figure, 'a "name" <b>')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "name" <b>'
    assert "var(--series0)" in svg and "var(--grid)" in svg
    assert not re.search("#[0-9a-f]{6}", svg)
    assert "http" not in svg and "<style" not in svg
    assert "loss & <nats>" in [text.text for text in root.iter("text")]


def test_both_schemes_have_every_colour_and_light_ones_differ():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
