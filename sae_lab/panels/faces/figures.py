"""Plotly figures to redraw while they are looked at; all of a kernel's share one copy of plotly's five megabytes.

Plotly's own FigureWidget ships that copy with every figure, and loading it takes a kernel three seconds.
"""

from pathlib import Path

import anywidget
import plotly
import plotly.graph_objects as go
import traitlets as T

from ...plots import script


class Library(anywidget.AnyWidget):
    """Shows nothing; holds plotly's JavaScript for all figures of a kernel."""

    _esm = "export default { render() {} };"
    source = T.Unicode().tag(sync=True)

    _here: "Library | None" = None

    @classmethod
    def here(cls) -> "Library":
        """The one of this kernel; another if it was closed."""
        if cls._here is None or cls._here.comm is None:
            cls._here = cls(source=script())
        return cls._here


class LiveFigure(anywidget.AnyWidget):
    """A figure: LiveFigure(plots.curves(log)). What the eye has zoomed to stays when other data are shown.

    Attributes:
        clicked: (trace, point) that was clicked last; of flows (trace, place, "box" or "band").
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = """
    .sae-figure { min-width: 12rem; }
    .widget-hbox > .sae-figure { flex: 1 1 0; }
    .sae-figure .main-svg, .sae-figure .modebar { background: transparent !important; }
    .sae-figure [class*="tick"] text, .sae-figure text:is([class*="title"], .legendtext, .annotation-text, .node-label)
      { fill: var(--jp-ui-font-color1, #212121) !important; }
    .sae-figure path[class*="grid"] { stroke: var(--jp-border-color2, #e0e0e0) !important; }
    [data-jp-theme-light="false"] .sae-figure .node-label { text-shadow: none !important; }
    [data-jp-theme-light="false"] .sae-figure :is(.scatterlayer, .legendpoints, .legendlines, .sankey-node)
      { filter: brightness(1.5); }
    .sae-figure .modebar-btn path { fill: var(--jp-ui-font-color2, #616161) !important; }
    """
    _library = T.Unicode().tag(sync=True)
    _version = T.Unicode(plotly.__version__).tag(sync=True)
    _spec = T.Unicode().tag(sync=True)
    clicked = T.List().tag(sync=True)

    def __init__(self, figure: go.Figure | None = None):
        super().__init__(_library=Library.here().model_id)
        self.add_class("sae-figure")
        self.show(go.Figure() if figure is None else figure)

    def show(self, figure: go.Figure) -> None:
        """Draws another figure in its place."""
        clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        self.figure = go.Figure(figure).update_layout(uirevision="kept", **clear)
        self._spec = self.figure.to_json()

    def __repr__(self) -> str:
        return f"LiveFigure of {len(self.figure.data)} traces"
