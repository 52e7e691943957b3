"""Figures of a training, its latents, and trainings beside one another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .look import COLOURS, MORE, TERMS, esc, style

ACROSS = 4  # small panels in a row
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


def curves(log: pd.DataFrame, columns: tuple[str, ...] = ("fvu", "l0", "dead"), name: str = "") -> go.Figure:
    """Training curves over tokens seen, one small panel per column, at most four in a row."""
    shown = [c for c in columns if c in log]
    down, across = -(-len(shown) // ACROSS), min(len(shown), ACROSS)
    titles = [TERMS.get(c, c.removeprefix("terms.") + (" (loss)" if c.startswith("terms.") else "")) for c in shown]
    figure = make_subplots(down, across, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.4 / down)
    for i, column in enumerate(shown):
        known, place = log[["tokens", column]].dropna(), {"row": i // ACROSS + 1, "col": i % ACROSS + 1}
        mode = "lines" if len(known) > 1 else "markers"
        look = {"mode": mode, "name": name, "showlegend": False, "line": {"color": COLOURS[0]}}
        figure.add_trace(go.Scatter(x=known["tokens"], y=known[column], **look), **place)
        figure.update_xaxes(title_text="tokens", tickformat="~s", nticks=5, **place)
        if column == "fvu":
            figure.update_yaxes(**_logarithmic(known[column]), **place)
        else:
            figure.update_yaxes(rangemode="tozero", **place)
    return style(figure, 40 + 250 * down)


def overlaid(logs: dict[str, pd.DataFrame], number: str) -> go.Figure:
    """One measured number of several trainings over tokens, a line each."""
    figure, palette = go.Figure(), (*COLOURS, *MORE)
    for i, (name, log) in enumerate(logs.items()):
        if number in log:
            line = {"color": palette[i % len(palette)], "dash": ("solid", "dash", "dot")[i // len(palette) % 3]}
            figure.add_scatter(x=log["tokens"], y=log[number], mode="lines", name=esc(name), line=line)
    figure.update_xaxes(title_text="tokens")
    seen = pd.Series([value for log in logs.values() if number in log for value in log[number]], dtype=float)
    scale = _logarithmic(seen) if number == "fvu" else {"minor": {"showgrid": False}}
    title = TERMS.get(number, number.removeprefix("terms."))
    figure.update_yaxes(title_text=title, **scale)
    return style(figure, 340)


def _logarithmic(values: pd.Series) -> dict[str, Any]:
    """A logarithmic axis whose labels do not run into one another."""
    wide = values.max() > 4 * values.min()
    return {"type": "log", "tickformat": ".2g", "dtick": "D2" if wide else "D1", "minor": {"showgrid": False}}


def front(runs: pd.DataFrame, chosen: Sequence[str] = ()) -> go.Figure:
    """L0 against FVU of runs, a colour per variant; the front of the best is joined, chosen ones ringed."""
    figure, palette = go.Figure(), (*COLOURS, *MORE)
    for i, (variant, rows) in enumerate(runs.groupby("variant", sort=False)):
        ring = [2.5 if label in chosen else 0.0 for label in rows.index]
        mark = {"size": 9, "color": palette[i % len(palette)], "line": {"width": ring, "color": "#888"}}
        names = [esc(name) for name in rows["run"]]
        said = "%{text}<br>L0 %{x:.2f}, FVU %{y:.4f}<extra></extra>"
        kept = {"mode": "markers", "name": esc(str(variant)), "marker": mark, "text": names, "hovertemplate": said}
        figure.add_scatter(x=rows["L0"], y=rows["FVU"], **kept)
    best = runs.sort_values(["L0", "FVU"])
    best = best[best["FVU"] < best["FVU"].cummin().shift(fill_value=np.inf)]
    line = {"color": "rgba(128,128,128,0.6)", "width": 1, "shape": "hv"}
    figure.add_scatter(x=best["L0"], y=best["FVU"], mode="lines", name="best", line=line, hoverinfo="skip")
    figure.update_xaxes(type="log", title_text="L0: latents per token (log scale)", minor={"showgrid": False})
    figure.update_yaxes(title_text="FVU: variance unexplained")
    return style(figure, 360)


def densities(density: np.ndarray) -> go.Figure:
    """Histogram of log10 of the share of tokens on which each latent fires; silent latents are left out and counted."""
    alive = density[density > 0]
    figure = go.Figure(go.Histogram(x=np.log10(alive), nbinsx=60, marker={"color": COLOURS[0]}))
    figure.update_layout(bargap=0.05)
    figure.update_xaxes(
        title_text=f"log10 share of tokens ({len(alive):,} latents; {len(density) - len(alive):,} silent)"
    )
    figure.update_yaxes(title_text="latents")
    return style(figure)


def activations(edges: np.ndarray, tokens: np.ndarray, name: str = "") -> go.Figure:
    """Histogram of one latent's activations on a log scale; what is beyond the edges is in the outer bins."""
    shown = np.flatnonzero(tokens)
    part = slice(shown[0], shown[-1] + 1) if len(shown) else slice(0, 0)
    middle = np.log10(np.sqrt(edges[:-1] * edges[1:]))[part]
    figure = go.Figure(go.Bar(x=middle, y=tokens[part], name=name, marker={"color": COLOURS[0]}))
    figure.update_layout(bargap=0.05)
    figure.update_xaxes(title_text=f"log10 activation of {name}" if name else "log10 activation")
    figure.update_yaxes(title_text="tokens")
    return style(figure)


def dose(table: pd.DataFrame, x: str = "strength", y: str = "found", by: str = "edit") -> go.Figure:
    """Steering: how often texts show the concept, and how surprised the model is by them, against the strength."""
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for i, (name, rows) in enumerate(table.groupby(by, sort=False)):
        band = {"array": rows["high"] - rows[y], "arrayminus": rows[y] - rows["low"], "thickness": 1.2}
        look = {"name": name, "mode": "lines+markers", "line": {"color": COLOURS[i]}, "legendgroup": name}
        figure.add_trace(go.Scatter(x=rows[x], y=rows[y], error_y=band, **look), 1, 1)
        figure.add_trace(go.Scatter(x=rows[x], y=rows["surprise"], showlegend=False, **look), 1, 2)
    figure.update_xaxes(title_text="strength, in typical activations", tickvals=sorted(table[x].unique()))
    figure.update_yaxes(title_text="share of texts with the concept", range=[0, 1.04], row=1, col=1)
    figure.update_yaxes(title_text="surprise, nats per token", rangemode="tozero", row=1, col=2)
    return style(figure)


def pareto(kinds: pd.DataFrame, saes: pd.DataFrame, tolerance: float, over: Sequence[str] = ()) -> go.Figure:
    """L0 against FVU and against CE recovered: a colour per variant, a mark and a dash per d_sae, a line over k.

    Variants that differ in a knob of `over` have a colour per value of it.

    A mark is the mean over seeds with its interval, small dots are single SAEs, grey bands reach as far from each k as
    `tolerance` allows, and a mark is open unless every seed of it is inside.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    kinds, saes = (rows.assign(series=series(rows, over)) for rows in (kinds, saes))
    names, widths = (list(dict.fromkeys(kinds[column])) for column in ("series", "d_sae"))
    palette = (*COLOURS, *MORE)
    for (one, d_sae), rows in kinds.dropna(subset="l0").groupby(["series", "d_sae"], sort=False):
        place, colour = widths.index(d_sae), palette[names.index(one) % len(palette)]
        name = f"{one} {d_sae:,}" if len(widths) > 1 else one
        single = saes[(saes["series"] == one) & (saes["d_sae"] == d_sae)].dropna(subset="l0")
        for column, y in enumerate(("fvu", "ce_recovered"), 1):
            figure.add_trace(_front(rows.sort_values("l0"), y, name, colour, place, column == 1), 1, column)
            dots = {"color": colour, "size": 4, "opacity": 0.55}
            same = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=single["l0"], y=single[y], mode="markers", marker=dots, **same), 1, column)
    ks = sorted(set(kinds["k"].dropna()))
    for k in ks:
        band = {"x0": k * (1 - tolerance), "x1": k * (1 + tolerance), "fillcolor": "rgba(128,128,128,0.16)"}
        figure.add_vrect(**band, line_width=0, layer="below", row="all", col="all")
    shown = [*ks, *saes["l0"].dropna()] or [1]
    low, high, first, last = min(shown), max(shown), min(ks, default=np.inf), max(ks, default=0)
    round_ones = [c * 10**n for n in range(-1, 5) for c in (1, 2, 5)]
    ticks = ks + [v for v in round_ones if low < v < first / 1.3 or last * 1.3 < v < high]
    figure.update_xaxes(type="log", range=[np.log10(low / 1.25), np.log10(high * 1.25)], minor={"showgrid": False})
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{v:g}" for v in ticks])
    figure.update_xaxes(title_text="L0: latents per token, measured (log scale)")
    figure.update_yaxes(title_text="FVU: variance unexplained (less is better)", row=1, col=1)
    figure.update_yaxes(title_text="CE recovered (1: splicing costs nothing)", row=1, col=2)
    return style(figure, 440)


def series(rows: pd.DataFrame, over: Sequence[str]) -> list[str]:
    """The variant of each row, with its values of the knobs in `over`."""
    return [", ".join([row["variant"], *(f"{name} {row[name]}" for name in over)]) for row in rows.to_dict("records")]


def _front(rows: pd.DataFrame, y: str, name: str, colour: str, place: int, legend: bool) -> go.Scatter:
    """The means of one variant at one width, joined over k."""
    mark, dash = MARKS[place % len(MARKS)], ("solid", "dash", "dot", "dashdot")[place % 4]
    marks = [mark if whole else f"{mark}-open" for whole in rows["matched"] == rows["total"]]
    reach = {
        "array": rows[f"{y}_high"] - rows[y],
        "arrayminus": rows[y] - rows[f"{y}_low"],
        "thickness": 1.4,
        "width": 5,
    }
    return go.Scatter(
        x=rows["l0"],
        y=rows[y],
        error_y=reach,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": colour, "width": 1.4, "dash": dash},
        marker={"size": 8, "color": colour, "symbol": marks, "line": {"width": 1.6, "color": colour}},
        customdata=rows[["k", "alive", "seeds", "matched", f"{y}_low", f"{y}_high"]],
        hovertemplate=f"{name}, k %{{customdata[0]}}: L0 %{{x:.2f}}, %{{y:.4f}} "
        "[%{customdata[4]:.4f}, %{customdata[5]:.4f}]<br>alive %{customdata[1]:.1%}, "
        "%{customdata[3]} of %{customdata[2]} seeds at this L0<extra></extra>",
    )


def recovered(table: pd.DataFrame, names: dict[str, str], top: int = 30) -> go.Figure:
    """Best F1 per concept, one dot per kind of unit; concepts ordered by the first kind."""
    first = next(iter(names))
    rows = table.sort_values(first, ascending=False).head(top).iloc[::-1]
    figure = go.Figure()
    for i, (column, label) in enumerate(names.items()):
        figure.add_scatter(
            x=rows[column],
            y=rows["concept"],
            mode="markers",
            name=label,
            marker={"color": COLOURS[i] if i < 2 else COLOURS[4], "size": 9 if not i else 7},
        )
    figure.update_xaxes(title_text="F1 on held-out text", range=[0, 1.02])
    figure.update_yaxes(dtick=1)
    return style(figure, 120 + 18 * len(rows))


def ratios(names: Sequence[str], values: Sequence[float], title: str) -> go.Figure:
    """One bar a name, the first on top, with its number."""
    figure = go.Figure(
        go.Bar(
            x=list(values),
            y=list(names),
            orientation="h",
            text=[f"{v:.2f}" for v in values],
            textposition="outside",
            marker={"color": COLOURS[0]},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text=title)
    return style(figure, 80 + 24 * len(names))
