"""One look for notebook, report and panel: colours, quiet axes, and figures as HTML."""

import html

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

COLOURS = ("#0b6e99", "#d9730d", "#4d7c0f", "#ad1a72", "#64748b", "#b8860b")
MORE = ("#7c5cd6", "#1a9988", "#d1383d", "#8a6446", "#3b7ddd", "#9a8f1f", "#d9669c", "#5a9e62", "#b35c1e", "#7a8aa0")
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


def seen(text: object) -> str:
    """Text in which what cannot be seen or turns the line around is spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in str(text))


def esc(text: object) -> str:
    """Text that is only text in markup, plotly's too; all of it visible."""
    return html.escape(seen(text))


def script() -> str:
    """The plotly library as text, for pages that must work offline."""
    return get_plotlyjs()


def div(figure: go.Figure) -> str:
    """A figure as HTML that expects `script()` once on the page."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
