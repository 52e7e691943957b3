"""Plotly figures that live in a notebook and share one copy of plotly's JavaScript: it has five megabytes."""

import os
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import anywidget
import plotly
import plotly.graph_objects as go
import traitlets as T

PLAIN = "SAE_LAB_PLAIN_FIGUREWIDGET"  # set, figures are plotly's own: each brings its copy


class Library(anywidget.AnyWidget):
    """Shows nothing; holds plotly's JavaScript for all figures of a kernel."""

    _esm = "export default { render() {} };"
    source = T.Unicode().tag(sync=True)

    _here: "Library | None" = None

    @classmethod
    def here(cls) -> "Library":
        """The one of this kernel; another if it was closed."""
        if cls._here is None or cls._here.comm is None:
            source = Path(plotly.__file__).parent / "package_data" / "widgetbundle.js"
            cls._here = cls(source=source.read_text(encoding="utf-8"))
        return cls._here


class LiveFigure(go.FigureWidget):
    """A figure to change while it is looked at: LiveFigure(plots.curves(log)). A zoom outlives changes of the data.

    Letters, ticks and grid follow JupyterLab's theme.
    """

    _css = """
    .sae-figure { min-width: 12rem; }
    .widget-hbox > .sae-figure { flex: 1 1 0; }
    .sae-figure .main-svg, .sae-figure .modebar { background: transparent !important; }
    .sae-figure [class*="tick"] text, .sae-figure text:is([class*="title"], .legendtext, .annotation-text, .node-label)
      { fill: var(--jp-ui-font-color1, #212121) !important; }
    .sae-figure path[class*="grid"] { stroke: var(--jp-border-color2, #e0e0e0) !important; }
    .sae-figure .modebar-btn path { fill: var(--jp-ui-font-color2, #616161) !important; }
    """
    _library = T.Unicode().tag(sync=True)
    _version = T.Unicode(plotly.__version__).tag(sync=True)

    def __init__(self, figure: go.Figure | None = None):
        clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        super().__init__(go.Figure(figure).update_layout(uirevision="kept", **clear))
        self._config = {"responsive": True, "displaylogo": False}
        self.add_class("sae-figure")

    @T.default("_library")
    def _where(self) -> str:
        return "" if os.environ.get(PLAIN) else Library.here().model_id

    @property
    def _esm(self) -> str:
        return str(go.FigureWidget._esm) if os.environ.get(PLAIN) else LOADER

    def get_state(self, key: str | Iterable[str] | None = None, drop_defaults: bool = False) -> dict[str, Any]:
        """The figure as it is now: plotly would give a page that is loaded anew what was shown first."""
        if key is None and self.comm is not None:
            self._widget_layout, self._widget_data = deepcopy(self._layout_obj._props), deepcopy(self._data)
        return super().get_state(key, drop_defaults)

    def __repr__(self) -> str:
        return f"LiveFigure of {len(self.data)} traces"


# A failed load is forgotten, so that the next figure tries again. Plotly's views listen on when they are gone, and then
# fail: what they listen to is kept in `heard`, to be taken from them. In a box a view is drawn before it has a place,
# and would be as wide as plotly thinks: it waits, and follows the width from then on.
LOADER = """
async function fetched(model) {
  const library = await model.widget_manager.get_model(model.get("_library"));
  const url = URL.createObjectURL(new Blob([library.get("source")], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}
function loaded(model) {
  const kept = (globalThis.__sae_lab_plotly__ ??= new Map());
  const version = model.get("_version");
  if (!kept.has(version)) {
    kept.set(version, fetched(model).catch((error) => { kept.delete(version); throw error; }));
  }
  return kept.get(version);
}
function placed(el) {
  return new Promise((resolve) => {
    const watched = new ResizeObserver(() => {
      if (el.clientWidth) resolve(watched);
      el._responsiveChartHandler?.();
    });
    watched.observe(el);
  });
}
export default () => {
  let figure, listened, heard = [];
  return {
    async initialize(context) {
      figure = (await loaded(context.model))();
      listened = { ...context.model, on(...what) { heard.push(what); context.model.on(...what); } };
      return figure.initialize({ ...context, model: listened });
    },
    async render(context) {
      const watched = await placed(context.el);
      const own = (heard = []);
      const leave = await figure.render(context);
      return () => { watched.disconnect(); own.forEach((what) => listened.off(...what)); leave(); };
    },
  };
};
"""
