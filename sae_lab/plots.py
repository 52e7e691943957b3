"""Arrays and tables in, plotly figures out: one look for notebook, report and panel. Knows nothing else."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

COLOURS = ("#0b6e99", "#d9730d", "#4d7c0f", "#ad1a72", "#64748b", "#b8860b")
MORE = ("#7c5cd6", "#1a9988", "#d1383d", "#8a6446", "#3b7ddd", "#9a8f1f", "#d9669c", "#5a9e62", "#b35c1e", "#7a8aa0")
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
TERMS = {"fvu": "FVU", "l0": "L0 (latents per token)", "dead": "dead latents", "lr": "learning rate"}


def style(figure: go.Figure, height: int = 320) -> go.Figure:
    """Quiet axes on a transparent ground, so that a figure sits on a light page and on a dark one."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 16, "t": 40, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=COLOURS,
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#6e7781"},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
    )
    quiet = {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "linecolor": "rgba(128,128,128,0.5)"}
    figure.update_xaxes(**quiet)
    figure.update_yaxes(automargin=True, **quiet)
    return figure


def curves(log: pd.DataFrame, columns: tuple[str, ...] = ("fvu", "l0", "dead"), name: str = "") -> go.Figure:
    """Training curves over tokens seen, one small panel per column."""
    shown = [c for c in columns if c in log]
    figure = make_subplots(1, len(shown), subplot_titles=[TERMS.get(c, c) for c in shown], horizontal_spacing=0.08)
    for i, column in enumerate(shown):
        line = go.Scatter(
            x=log["tokens"], y=log[column], mode="lines", name=name, showlegend=False, line={"color": COLOURS[0]}
        )
        figure.add_trace(line, 1, i + 1)
        figure.update_xaxes(title_text="tokens", row=1, col=i + 1)
        if column == "fvu":
            figure.update_yaxes(type="log", dtick="D1", tickformat=".2g", minor={"showgrid": False}, row=1, col=i + 1)
        else:
            figure.update_yaxes(rangemode="tozero", row=1, col=i + 1)
    return style(figure, 280)


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


def pareto(kinds: pd.DataFrame, saes: pd.DataFrame, tolerance: float) -> go.Figure:
    """L0 against FVU and against CE recovered: a colour per variant, a mark and a dash per d_sae, a line over k.

    A mark is the mean over seeds with its interval, small dots are single SAEs, grey bands reach as far from each k as
    `tolerance` allows, and a mark is open unless every seed of it is inside.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    variants, widths = (list(dict.fromkeys(kinds[column])) for column in ("variant", "d_sae"))
    palette = (*COLOURS, *MORE)
    for (variant, d_sae), rows in kinds.dropna(subset="l0").groupby(["variant", "d_sae"], sort=False):
        place, colour = widths.index(d_sae), palette[variants.index(variant) % len(palette)]
        name = f"{variant} {d_sae:,}" if len(widths) > 1 else variant
        single = saes[(saes["variant"] == variant) & (saes["d_sae"] == d_sae)].dropna(subset="l0")
        for column, y in enumerate(("fvu", "ce_recovered"), 1):
            figure.add_trace(_front(rows.sort_values("l0"), y, name, colour, place, column == 1), 1, column)
            dots = {"color": colour, "size": 4, "opacity": 0.55}
            same = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=single["l0"], y=single[y], mode="markers", marker=dots, **same), 1, column)
    ks = sorted(set(kinds["k"]))
    for k in ks:
        band = {"x0": k * (1 - tolerance), "x1": k * (1 + tolerance), "fillcolor": "rgba(128,128,128,0.16)"}
        figure.add_vrect(**band, line_width=0, layer="below", row="all", col="all")
    low, high = (f([*ks, *saes["l0"].dropna()]) for f in (min, max))
    round_ones = [c * 10**n for n in range(-1, 5) for c in (1, 2, 5)]
    ticks = ks + [v for v in round_ones if low < v < min(ks) / 1.3 or max(ks) * 1.3 < v < high]
    figure.update_xaxes(type="log", range=[np.log10(low / 1.25), np.log10(high * 1.25)], minor={"showgrid": False})
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{v:g}" for v in ticks])
    figure.update_xaxes(title_text="L0: latents per token, measured (log scale)")
    figure.update_yaxes(title_text="FVU: variance unexplained (less is better)", row=1, col=1)
    figure.update_yaxes(title_text="CE recovered (1: splicing costs nothing)", row=1, col=2)
    return style(figure, 440)


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


def script() -> str:
    """The plotly library as text, for pages that must work offline."""
    return get_plotlyjs()


def div(figure: go.Figure) -> str:
    """A figure as HTML that expects `script()` once on the page."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


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


def probed(table: pd.DataFrame, chance: float) -> go.Figure:
    """Mean F1 of probes against the number of units, a line per kind; all raw activations and chance as levels."""
    figure = go.Figure()
    for i, (units, rows) in enumerate(table.query("k != 'all'").groupby("units", sort=False)):
        band = {"array": rows["f1_high"] - rows["f1"], "arrayminus": rows["f1"] - rows["f1_low"], "thickness": 1.2}
        look = {"mode": "lines+markers", "line": {"color": COLOURS[i]}, "name": units}
        figure.add_scatter(x=rows["k"].astype(str), y=rows["f1"], error_y=band, **look)
    for level, name in ((table.query("k == 'all'")["f1"].max(), "all raw activations"), (chance, "chance")):
        figure.add_hline(y=level, line_dash="dot", line_color="#64748b", annotation_text=name)
    figure.update_xaxes(title_text="units per probe", type="category")
    figure.update_yaxes(title_text="mean F1 on held-out text", range=[0, 1.04])
    return style(figure)


def reaching(table: pd.DataFrame, x: str, y: str, title: str) -> go.Figure:
    """A score against how many latents were ablated, with its interval."""
    band = {"array": table["high"] - table[y], "arrayminus": table[y] - table["low"], "thickness": 1.2}
    figure = go.Figure(go.Scatter(x=table[x].astype(str), y=table[y], error_y=band, mode="lines+markers"))
    figure.update_xaxes(title_text=f"{x} ablated", type="category")
    figure.update_yaxes(title_text=title, rangemode="tozero")
    return style(figure)


def absorbed(table: pd.DataFrame, top: int = 30) -> go.Figure:
    """Children on whose tokens a parent's latent is silent: by a child's latent that took its place, and anyway."""
    rows = table.head(top).iloc[::-1]
    names = {"absorbed": "absorbed by a latent of the child", "sibling_silent": "missed on siblings"}
    figure = go.Figure()
    for i, (column, label) in enumerate(names.items()):
        look = {"mode": "markers", "name": label, "marker": {"color": COLOURS[i], "size": 9 - 2 * i}}
        figure.add_scatter(x=rows[column], y=rows["child"] + " in " + rows["parent"], **look)
    figure.update_xaxes(title_text="share of the tokens that the probe calls", range=[-0.02, 1.02])
    figure.update_yaxes(dtick=1)
    return style(figure, 120 + 18 * len(rows))
