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
KINDS = {"split": COLOURS[1], "match": COLOURS[0], "shared": COLOURS[0], "new": COLOURS[2], "no parent": COLOURS[2]}
TERMS = {"fvu": "FVU", "l0": "L0 (latents per token)", "dead": "dead latents", "lr": "learning rate"}
TERMS |= {"ce_increase": "CE increase (nats/token)", "ce_recovered": "CE recovered", "length": "activation length"}
TERMS |= {"kl": "KL (nats/token)", "kl_score": "KL score"}


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
            figure.update_yaxes(type="log", dtick="D2", tickformat=".2g", minor={"showgrid": False}, row=1, col=i + 1)
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
    figure.add_trace(go.Histogram(x=cosine, nbinsx=60, marker={"color": COLOURS[0]}, showlegend=False), 1, 1)
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
    """What became of latents (columns from, to, latents), and shares of them by their best cosine (a column a curve).

    Nulls and chance are dotted; `limit` is the cosine from which on a latent can be a child.
    """
    figure = make_subplots(1, 2, specs=[[{"type": "domain"}, {"type": "xy"}]], column_widths=[0.55, 0.45])
    nodes = list(dict.fromkeys([*flows["from"], *flows["to"]]))
    ends = {side: flows[side].map(nodes.index) for side in ("from", "to")}
    hues = [next((c for kind, c in KINDS.items() if f": {kind}" in node), COLOURS[4]) for node in nodes]
    look = {"label": nodes, "pad": 12, "thickness": 12, "color": hues}
    link = {"source": ends["from"], "target": ends["to"], "value": flows["latents"], "color": "rgba(128,128,128,0.25)"}
    figure.add_trace(go.Sankey(node=look, link=link), 1, 1)
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
    hover = "<br>".join(f"{c} %{{customdata[{i}]}}" for i, c in enumerate(told)) + "<extra></extra>"
    numbers = pd.api.types.is_numeric_dtype(table[by])
    groups = [("", table)] if numbers else list(table.groupby(by, sort=False))
    for i, (name, rows) in enumerate(sorted(groups, key=lambda group: -len(group[1]))):
        colour = {"color": rows[by], "colorscale": "Viridis", "showscale": True, "colorbar": {"title": f"log10 {by}"}}
        plain = "rgba(128,128,128,0.35)" if name == "none" else (*COLOURS, *MORE)[i % 16]
        look = {"size": 4, "opacity": 0.75} | (colour if numbers else {"color": plain})
        place = {"x": rows["x"], "y": rows["y"], "customdata": rows[told], "hovertemplate": hover}
        figure.add_trace(go.Scattergl(**place, mode="markers", marker=look, name=str(name), showlegend=not numbers))
    figure.update_xaxes(showticklabels=False, title_text=title)
    figure.update_yaxes(showticklabels=False, scaleanchor="x")
    return style(figure, 560)


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
