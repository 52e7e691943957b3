"""The report: one file that works offline, in which no string from data is ever code; and the figures on it."""

import re

import numpy as np
import pandas as pd
import pytest

from sae_lab import plots
from sae_lab.report import Section, Tokens, page, write_page

EVIL = "<script>alert('x')</script> & \"quotes\""
LOG = pd.DataFrame({"tokens": [1, 2, 3], "fvu": [1.0, 0.5, 0.2], "l0": [4.0, 4.0, 4.0], "dead": [0, 1, 2]})
DOSE = pd.DataFrame(
    {
        "edit": ["latent", "latent", "random latent", "random latent"],
        "strength": [0.0, 4.0, 0.0, 4.0],
        "found": [0.1, 0.9, 0.1, 0.2],
        "low": [0.0, 0.8, 0.0, 0.1],
        "high": [0.2, 1.0, 0.2, 0.3],
        "surprise": [1.0, 2.0, 1.0, 3.0],
    }
)


def without_plotly(text: str) -> str:
    return text.replace(plots.script(), "")


def test_every_string_from_data_is_escaped():
    table = pd.DataFrame({EVIL: [EVIL]})
    section = Section(EVIL, EVIL, (EVIL, table, Tokens((EVIL, "b"), (1.0, 0.0), 1.0, label=EVIL)))
    text = without_plotly(page(EVIL, EVIL, [section]))
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") == 10


def test_the_page_needs_nothing_from_outside():
    text = without_plotly(page("t", "s", [Section("a", "b", (plots.curves(LOG),))]))
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", text)


def test_writing_replaces_the_page_whole(tmp_path):
    target = tmp_path / "new" / "report.html"
    write_page(target, "first", "", [])
    write_page(target, "second", "", [])
    assert "<h1>second</h1>" in target.read_text()
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_stronger_activations_are_shaded_more_and_negative_ones_not_at_all():
    text = page("", "", [Section("", "", (Tokens(("a", "b", "c"), (2.0, 1.0, -1.0), 2.0),))])
    shades = [float(x) for x in re.findall(r"rgba\(var\(--hot\),([\d.]+)\)", without_plotly(text))]
    assert shades == pytest.approx([0.75, 0.375, 0.0], abs=0.01)


def test_curves_show_what_the_log_has():
    figure = plots.curves(LOG)
    assert [list(trace.y) for trace in figure.data] == [[1.0, 0.5, 0.2], [4.0, 4.0, 4.0], [0, 1, 2]]
    assert len(plots.curves(LOG.drop(columns="dead")).data) == 2


def test_densities_leave_silent_latents_out_and_count_them():
    figure = plots.densities(np.array([0.1, 0.01, 0.0, 0.0]))
    assert sorted(figure.data[0].x) == pytest.approx([-2, -1])
    assert "2 silent" in figure.layout.xaxis.title.text


def test_a_dose_curve_has_shares_with_intervals_beside_surprise():
    figure = plots.dose(DOSE)
    share, surprise = figure.data[:2]
    assert list(share.y) == [0.1, 0.9]
    assert list(share.error_y.array) == pytest.approx([0.1, 0.1])
    assert list(surprise.y) == [1.0, 2.0]
    assert [trace.showlegend for trace in figure.data] == [None, False, None, False]


def test_recovered_concepts_are_ordered_by_the_first_kind_of_unit_and_their_names_have_room():
    table = pd.DataFrame({"concept": ["a", "b", "c"], "latents": [0.2, 0.9, 0.5], "neurons": [0.1, 0.2, 0.3]})
    figure = plots.recovered(table, {"latents": "latent", "neurons": "neuron"}, top=2)
    assert list(figure.data[0].y) == ["c", "b"]
    assert list(figure.data[1].x) == [0.3, 0.2]
    assert figure.layout.yaxis.automargin
