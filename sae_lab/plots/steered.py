"""Figures of steering: the next token's logits, and the target effect against what it costs."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .look import COLOURS, MORE, style


def changes(table: pd.DataFrame) -> go.Figure:
    """How far the logits of the next token rise and fall (columns edit, token, change, p_before, p_after)."""
    figure = go.Figure()
    for i, (name, rows) in enumerate(table.groupby("edit", sort=False)):
        said = "%{y}: %{x:+.3g}, probability %{customdata[0]:.3g} to %{customdata[1]:.3g}"
        look = {"name": name, "marker": {"color": COLOURS[i % len(COLOURS)]}, "hovertemplate": said}
        words = [repr(word) for word in rows["token"]]
        figure.add_bar(x=rows["change"], y=words, orientation="h", customdata=rows[["p_before", "p_after"]], **look)
    order = [repr(word) for word in table.groupby("token")["change"].mean().sort_values(ascending=False).index]
    figure.update_yaxes(autorange="reversed", dtick=1, categoryorder="array", categoryarray=order)
    figure.update_xaxes(title_text="change of the logit")
    return style(figure, 120 + 22 * table["token"].nunique())


def frontier(table: pd.DataFrame) -> go.Figure:
    """Share of texts with the concept against KL, a line per intervention in the order of its strengths, with 95%
    intervals of both (columns intervention, strength, effect, kl and their _low and _high)."""
    figure = go.Figure()
    for i, (name, rows) in enumerate(table.groupby("intervention", sort=False)):
        reach = {
            f"error_{axis}": {
                "array": np.nan_to_num(rows[f"{of}_high"] - rows[of]),
                "arrayminus": np.nan_to_num(rows[of] - rows[f"{of}_low"]),
                "thickness": 1.2,
            }
            for axis, of in (("x", "kl"), ("y", "effect"))
        }
        look = {"mode": "lines+markers", "name": name, "line": {"color": (*COLOURS, *MORE)[i % 16]}}
        said = "x %{customdata:g}: %{y:.0%} at %{x:.3g} nats"
        figure.add_scatter(
            x=rows["kl"], y=rows["effect"], customdata=rows["strength"], hovertemplate=said, **look, **reach
        )
    figure.update_xaxes(title_text="KL to the clean model, nats per new token", rangemode="tozero")
    figure.update_yaxes(title_text="share of texts with the concept", range=[-0.04, 1.04])
    return style(figure, 380)
