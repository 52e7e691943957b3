"""Arrays and tables in, plotly figures out: one look for notebook, report and panel. Knows nothing else."""

from .look import COLOURS, MORE, TERMS, div, esc, script, seen, style
from .steered import changes, frontier
from .studies import (
    absorbed,
    consistency,
    cosines,
    effects,
    numbers,
    probed,
    ranked,
    reaching,
    readings,
    scatter,
    splitting,
    spreads,
    treemap,
)
from .training import activations, curves, densities, dose, front, overlaid, pareto, ratios, recovered, series
