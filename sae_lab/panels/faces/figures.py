"""A figure that is redrawn in place."""

from plotly.graph_objects import FigureWidget as LiveFigure
