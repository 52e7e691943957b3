"""Figures of what studies of trained SAEs found."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .look import COLOURS, MORE, TERMS, esc, style

KINDS = {"split": COLOURS[1], "match": COLOURS[0], "shared": COLOURS[0], "new": COLOURS[2], "no parent": COLOURS[2]}


def consistency(
    cosine: np.ndarray, floor: float, by_density: pd.DataFrame, unique: pd.DataFrame, law, trajectory: pd.DataFrame
) -> go.Figure:
    """Cosines of all matches, and what is known of: cosine by density, unique latents over seeds, over training.

    Dotted lines are what chance reaches. `law` is the curve through the unique shares, if there is one.
    """
    bins = by_density.apply(lambda row: f"{row['above']:g}-{row['up to']:g}" if row["up to"] else "silent", axis=1)
    lines = {
        "density (share of tokens)": (list(bins), by_density, "cosine", "mean cosine"),
        "SAEs": (unique["seeds"], unique, "share", "in no other SAE"),
        "tokens of training": (trajectory.get("tokens"), trajectory, "value", "mean cosine"),
    }
    lines = {title: line for title, line in lines.items() if len(line[1])}
    figure = make_subplots(1, 1 + len(lines), horizontal_spacing=0.08)
    known = cosine[np.isfinite(cosine)]
    counts, edges = np.histogram(known, np.linspace(known.min(initial=0.0), 1.0, 61))
    middle, look = (edges[:-1] + edges[1:]) / 2, {"marker": {"color": COLOURS[0]}, "showlegend": False}
    figure.add_trace(go.Bar(x=middle, y=counts, width=edges[1] - edges[0], **look), 1, 1)
    figure.add_vline(x=floor, line={"dash": "dot"}, row=1, col=1)
    figure.update_xaxes(title_text="cosine of a match", row=1, col=1)
    figure.update_yaxes(title_text="latents", row=1, col=1)
    for i, (title, (x, table, y, label)) in enumerate(lines.items(), 2):
        band = {"array": table["high"] - table[y], "arrayminus": table[y] - table["low"], "thickness": 1.2}
        dots = go.Scatter(x=x, y=table[y], error_y=band, mode="lines+markers", line={"color": COLOURS[0]})
        figure.add_trace(dots.update(showlegend=False), 1, i)
        figure.update_xaxes(title_text=title, row=1, col=i)
        figure.update_yaxes(title_text=label, range=[0, 1.04], row=1, col=i)
        if y != "share":
            figure.add_hline(y=floor, line={"dash": "dot"}, row=1, col=i)
        elif law is not None:
            fit = {"dash": "dash", "color": COLOURS[1]}
            figure.add_trace(go.Scatter(x=x, y=law(x), mode="lines", line=fit, showlegend=False), 1, i)
        if title.startswith("tokens"):
            figure.update_xaxes(type="log", row=1, col=i)
    return style(figure, 340)


def effects(table: pd.DataFrame, number: str) -> go.Figure:
    """Attribution: gradient x activation and ablation of each part, one under another."""
    places = [f" at {p} {t!r}" if pd.notna(p) else "" for p, t in zip(table["position"], table["token"])]
    names = [f"{latent}{at}" if at else node for latent, at, node in zip(table["latent"], places, table["node"])]
    figure = go.Figure()
    for i, column in enumerate(("gradient_x_activation", "ablation")):
        figure.add_bar(
            x=table[column], y=names, orientation="h", name=column.replace("_", " "), marker={"color": COLOURS[i]}
        )
    figure.update_yaxes(autorange="reversed", dtick=1)
    figure.update_xaxes(title_text=f"effect on the {number}")
    return style(figure, 120 + 24 * len(names))


def numbers(
    table: pd.DataFrame, x: str, titles: dict[str, str], edge: float | None = None, by: str | None = None
) -> go.Figure:
    """One panel per number of a long table (number, value, low, high) over x, with intervals; a colour per `by`.

    Where x is a scale, marks are joined and a line stands at `edge`; names of x are written at the left, one under
    another. Marks are open where a column `matched` says no; "chance" is dotted.
    """
    shown, scale = list(dict.fromkeys(table["number"])), pd.api.types.is_numeric_dtype(table[x])
    matched = table.get("matched", pd.Series(True, table.index))
    look = {"shared_yaxes": not scale, "horizontal_spacing": (0.32 if scale else 0.16) / (1 + len(shown))}
    figure = make_subplots(1, len(shown), subplot_titles=[TERMS.get(name, name) for name in shown], **look)
    along, across = ("x", "y") if scale else ("y", "x")
    for column, name in enumerate(shown, 1):
        rows = table[table["number"] == name]
        for i, (series, part) in enumerate(rows.groupby(by, sort=False) if by else [(name, rows)]):
            reach = {"array": part["high"] - part["value"], "arrayminus": part["value"] - part["low"], "thickness": 1.2}
            said = f"{titles.get(name, name)}<br>{series if by else ''} %{{{along}}}: %{{{across}:.4g}}<extra></extra>"
            figure.add_scatter(
                **{along: part[x], across: part["value"], f"error_{across}": reach},
                mode="lines+markers" if scale else "markers",
                name=str(series),
                legendgroup=str(series),
                showlegend=by is not None and column == 1,
                line={"color": (*COLOURS, *MORE)[i % 16], "dash": "dot" if series == "chance" else "solid"},
                marker={"symbol": np.where(matched[part.index], "circle", "circle-open")},
                hovertemplate=said,
                row=1,
                col=column,
            )
        if edge is not None:
            figure.add_vline(edge, line={"dash": "dot", "color": "#888"}, row=1, col=column)
    figure.update_annotations(font_size=13)
    if scale:
        figure.update_xaxes(title_text=titles.get(x, x))
        return style(figure, 300).update_layout(**{"legend_y": 1.12, "margin_t": 72} if by else {})
    figure.update_yaxes(range=[table[x].nunique() - 0.5, -0.5])
    height = 90 + 32 * table[x].nunique()
    return style(figure, height).update_layout(**{"legend_y": 1 + 40 / height, "margin_t": 72} if by else {})


def splitting(flows: pd.DataFrame, curves: pd.DataFrame, limit: float) -> go.Figure:
    """What became of latents (columns out of, into, latents), and shares by their best cosine (a column a curve).

    Nulls and chance are dotted; `limit` is the cosine from which on a latent can be a child.
    """
    figure = make_subplots(1, 2, specs=[[{"type": "domain"}, {"type": "xy"}]], column_widths=[0.55, 0.45])
    nodes = list(dict.fromkeys([*flows["out of"], *flows["into"]]))
    ends = {side: flows[side].map(nodes.index) for side in ("out of", "into")}
    hues = [next((c for kind, c in KINDS.items() if f": {kind}" in node), COLOURS[4]) for node in nodes]
    look = {"label": nodes, "pad": 12, "thickness": 12, "color": hues}
    link = {
        "source": ends["out of"],
        "target": ends["into"],
        "value": flows["latents"],
        "color": "rgba(128,128,128,0.25)",
    }
    figure.add_trace(go.Sankey(node=look, link=link, arrangement="fixed"), 1, 1)  # what can be dragged hears no click
    for i, name in enumerate(curves):
        line = {"shape": "hvh", "dash": "dot" if name.endswith(("(null)", "directions")) else "solid"}
        line |= {"color": COLOURS[i % len(COLOURS)], "width": 1.6}
        figure.add_trace(go.Scatter(x=curves.index, y=curves[name], name=name, mode="lines", line=line), 1, 2)
    line = {"x": [limit, limit], "y": [0, curves.to_numpy().max()], "mode": "lines", "name": "least of a child"}
    figure.add_trace(go.Scatter(**line, line={"dash": "dash", "width": 1, "color": COLOURS[4]}), 1, 2)
    figure.update_xaxes(title_text="largest cosine with a latent of the other", row=1, col=2)
    figure.update_yaxes(title_text="share of latents", rangemode="tozero", row=1, col=2)
    style(figure, 460)
    return figure.update_layout(legend={"x": 0.55})


def treemap(table: pd.DataFrame) -> go.Figure:
    """Boxes in boxes: columns id, within (the id of what it lies in), label and size of those that hold no others."""
    boxes = {"ids": table["id"], "parents": table["within"], "labels": table["label"], "values": table["size"]}
    figure = go.Figure(go.Treemap(**boxes, maxdepth=3, marker={"colorscale": "Blues"}))
    return style(figure, 480).update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8})


def scatter(table: pd.DataFrame, by: str, title: str) -> go.Figure:
    """Points (columns x, y and what a hover says), coloured by a column: numbers by a scale, names by a colour each."""
    figure, told = go.Figure(), [c for c in ("name", "latent", "concept", "density") if c in table]
    table = table.assign(said=[_hover(told, row) for row in table[told].itertuples(index=False)])
    numbers = pd.api.types.is_numeric_dtype(table[by])
    groups = [("", table)] if numbers else list(table.groupby(by, sort=False))
    for i, (name, rows) in enumerate(sorted(groups, key=lambda group: -len(group[1]))):
        colour = {"color": rows[by], "colorscale": "Viridis", "showscale": True, "colorbar": {"title": f"log10 {by}"}}
        plain = "rgba(128,128,128,0.35)" if name == "none" else (*COLOURS, *MORE)[i % 16]
        look = {"size": 4, "opacity": 0.75} | (colour if numbers else {"color": plain})
        place = {"x": rows["x"], "y": rows["y"], "text": rows["said"], "hoverinfo": "text"}
        figure.add_trace(go.Scattergl(**place, mode="markers", marker=look, name=str(name), showlegend=not numbers))
    figure.update_xaxes(showticklabels=False, title_text=title)
    figure.update_yaxes(showticklabels=False, scaleanchor="x")
    return style(figure, 560)


def _hover(names: Sequence[str], row: Sequence) -> str:
    """What is said of a point: one text a point takes a third of the room of several numbers."""
    return "<br>".join(f"{name} {esc(f'{of:.3g}' if isinstance(of, float) else of)}" for name, of in zip(names, row))


def cosines(curves: pd.DataFrame) -> go.Figure:
    """Shares of latents by the cosine of their nearest, a column a curve; random directions are dotted."""
    figure = go.Figure()
    for i, name in enumerate(curves):
        line = {"shape": "hvh", "color": COLOURS[i % len(COLOURS)], "width": 1.6}
        line["dash"] = "dot" if "random" in name else "solid"
        figure.add_trace(go.Scatter(x=curves.index, y=curves[name], name=name, mode="lines", line=line))
    figure.update_xaxes(title_text="largest cosine")
    figure.update_yaxes(title_text="share of latents", rangemode="tozero")
    return style(figure, 380)


def probed(table: pd.DataFrame, chance: float) -> go.Figure:
    """Mean F1 of probes against the number of units, a line per kind; all raw activations and chance as levels."""
    figure = go.Figure()
    for i, (units, rows) in enumerate(table.query("k != 'all'").groupby("units", sort=False)):
        band = {"array": rows["f1_high"] - rows["f1"], "arrayminus": rows["f1"] - rows["f1_low"], "thickness": 1.2}
        look = {"mode": "lines+markers", "line": {"color": COLOURS[i]}, "name": units}
        figure.add_scatter(x=rows["k"].astype(str), y=rows["f1"], error_y=band, **look)
    line, whole = {"line_dash": "dot", "line_color": "#888"}, table.query("k == 'all'")["f1"].max()
    figure.add_hline(whole, annotation_text="all raw activations", **line)
    figure.add_hline(chance, annotation_text="chance", annotation_position="bottom right", **line)
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
        figure.add_scatter(x=rows[column], y=rows["child"], **look)
    figure.update_xaxes(title_text="share of the tokens that the probe calls", range=[-0.02, 1.02])
    figure.update_yaxes(dtick=1)
    return style(figure, 120 + 18 * len(rows))


def spreads(numbers: pd.DataFrame, chance: dict[str, float]) -> go.Figure:
    """How each column's numbers spread, a violin each, with its chance level."""
    figure = go.Figure()
    for i, name in enumerate(numbers):
        look = {"name": name, "line_color": COLOURS[i % len(COLOURS)], "meanline_visible": True, "spanmode": "hard"}
        figure.add_trace(go.Violin(y=numbers[name], points="all", marker={"size": 3, "opacity": 0.5}, **look))
    levels = {"color": "#64748b", "symbol": "line-ew-open", "size": 40, "line": {"width": 1.5}}
    level = go.Scatter(x=list(numbers), y=[chance[n] for n in numbers], mode="markers", marker=levels, name="chance")
    figure.add_trace(level)
    figure.update_traces(showlegend=False, selector={"type": "violin"})
    figure.update_yaxes(title_text="score")
    return style(figure)


def ranked(kinds: dict[str, pd.DataFrame], name: str, title: str) -> go.Figure:
    """A row per name, its value and its interval in each of several tables, beside zero."""
    figure = go.Figure()
    for i, (kind, table) in enumerate(kinds.items()):
        reach = {"array": table["high"] - table["value"], "arrayminus": table["value"] - table["low"], "thickness": 1.4}
        marks = {"color": COLOURS[i], "size": 9, "symbol": ("circle", "circle-open")[i % 2]}
        figure.add_scatter(x=table["value"], y=table[name], error_x=reach, mode="markers", marker=marks, name=kind)
    rows = len(next(iter(kinds.values())))
    figure.add_vline(0, line={"dash": "dot", "color": "#64748b"})
    figure.update_yaxes(range=[rows - 0.5, -0.5], dtick=1)
    figure.update_xaxes(title_text=title, range=[-1, 1])
    return style(figure, 140 + 28 * rows)


def readings(table: pd.DataFrame, stated: float | None) -> go.Figure:
    """FVU of each way to read an SAE, the best at the top, its L0 beside it; the one that was loaded stands out."""
    rows = table.iloc[::-1]
    colours = [COLOURS[1] if name == "as loaded" else COLOURS[0] for name in rows.reading]
    text = [f"L0 {l0:,.1f}" for l0 in rows.l0]
    bars = go.Bar(x=rows.fvu.clip(upper=2), y=rows.reading, orientation="h", marker_color=colours, text=text)
    said = "" if stated is None else f"; stated L0: {stated:,.0f}"
    figure = style(go.Figure(bars), 120 + 24 * len(rows))
    return figure.update_layout(xaxis_title=f"FVU, cut at 2 (lower is better{said})", yaxis_automargin=True)
