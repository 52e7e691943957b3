"""How panels look, and the one place where text becomes markup."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ..plots import esc, seen  # noqa: F401  (for those who draw text themselves)

STYLE = """<style>
.sae-panel { max-width: 76rem; color: var(--jp-ui-font-color1, #212121); }
.sae-panel .sae-row { display: grid; grid-template-columns: minmax(16rem, 25rem) 8.5rem minmax(9rem, 1fr);
  column-gap: 0.75rem; align-items: center; overflow: visible; }
.sae-panel .sae-row > .sae-control { grid-column: 1; width: auto; }
.sae-panel .sae-row > .widget-slider { grid-column: 2; width: auto; }
.sae-panel .sae-row > .sae-said { grid-column: 3; width: auto; height: auto; }
.sae-panel .sae-said .widget-html-content { line-height: 1.35; font-size: var(--jp-ui-font-size1, 13px); }
.sae-panel select { appearance: auto; background-image: none; }
.sae-panel .sae-help { color: var(--jp-ui-font-color2, #616161); }
.sae-panel .sae-wrong { color: var(--jp-ui-font-color1, #212121); font-weight: 600;
  border-left: 3px solid var(--jp-error-color1, #d32f2f); padding-left: 0.4rem; overflow-wrap: anywhere; }
.sae-panel .sae-code { margin: 0.25rem 0; padding: 0.4rem 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere;
  word-break: normal; line-height: 1.45;
  font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 13px);
  color: var(--jp-content-font-color1, #111); background: var(--jp-layout-color2, #eee); user-select: all; }
.sae-panel .sae-buttons { flex-flow: row wrap; align-items: center; gap: 0.25rem; }
.sae-headline { font-size: var(--jp-ui-font-size1, 13px); line-height: 1.5; overflow-wrap: anywhere; }
.sae-figures { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; font-variant-numeric: tabular-nums; }
.sae-figures b { font-weight: 600; }
.sae-spark { vector-effect: non-scaling-stroke; }
.sae-panel .widget-html-content td { padding: 0 0.75rem 0 0; line-height: 1.6; }
.sae-notes { margin: 0.25rem 0; padding-left: 1.1rem; }
.sae-tokens { font: 13px/1.9 var(--jp-code-font-family, ui-monospace, monospace); white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--jp-content-font-color1, inherit); margin: 0.1rem 0; }
.sae-tokens span { border-radius: 2px; padding: 1px 0; }
.sae-tokens .sae-peak { font-weight: 700; outline: 1px solid currentColor; }
.sae-columns { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; align-items: flex-start; }
.sae-halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0.5rem 2rem; }
.sae-bars rect { fill: currentColor; opacity: 0.55; }
</style>"""
DOTS = {"running": "#0072b2", "starting": "#0072b2", "evaluating": "#0072b2", "done": "#009e73", "paused": "#b8860b"}
DOTS |= {"stuck": "#d55e00", "failed": "#d55e00", "lost": "#d55e00"}
SPARK = (180, 44)  # pixels
HOT = "217,115,14"  # of tokens on which a latent fires
SEEN = {" ": " ", "\n": "\u21b5\n", "\t": "\u21e5\t"}  # white space that a latent may fire on
MOST = 400  # characters of a token that are shown


def told(text: str, wrong: bool = False) -> str:
    """A sentence beside a control, or as much of it as one reads."""
    text = text if len(text) <= 500 else f"{text[:500]} ..."
    if wrong:
        return f'<span class="sae-wrong" role="alert">{esc(text)}</span>'
    return f'<span class="sae-help">{esc(text)}</span>'


def code(text: object) -> str:
    """Code that a click selects."""
    return f'<pre class="sae-code" tabindex="0">{esc(text)}</pre>' if text else ""


def table(rows: Iterable[tuple[object, ...]]) -> str:
    """Rows of cells."""
    cells = ("".join(f'<td style="text-align:left">{esc(cell)}</td>' for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def headline(state: str, said: str) -> str:
    """A run's state as a dot and as words."""
    dot = f'<span style="color:{DOTS.get(state, "#888888")}" aria-hidden="true">&#9679;</span>'
    return f'<div class="sae-headline" role="status">{dot} {esc(said)}</div>'


def figures(shown: Iterable[tuple[str, str]]) -> str:
    """Names with their numbers, side by side."""
    cells = "".join(f"<span>{esc(name)} <b>{esc(number)}</b></span> " for name, number in shown)
    return f'<div class="sae-figures">{cells}</div>' if cells else ""


def listed(lines: Iterable[str]) -> str:
    """Sentences, one under the other."""
    items = "".join(f"<li>{esc(line)}</li>" for line in lines)
    return f'<ul class="sae-notes sae-help">{items}</ul>' if items else ""


def sparkline(name: str, x: Sequence[float], y: Sequence[float]) -> str:
    """A small curve with its name and its last value, for where no figure is drawn."""
    (width, height), pad = SPARK, 3
    low, high, first, last = min(y), max(y), min(x), max(x)
    across = [pad + (width - 2 * pad) * ((v - first) / ((last - first) or 1)) for v in x]
    down = [height - pad - (height - 2 * pad) * ((v - low) / ((high - low) or 1)) for v in y]
    points = " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(across, down))
    said = f"{esc(name)}: {y[-1]:.4g}, from {y[0]:.4g}, between {low:.4g} and {high:.4g}"
    size = f'width="{width}" height="{height}" role="img" aria-label="{said}"'
    ink = 'fill="none" stroke="currentColor" stroke-width="1.5"'  # here, where style sheets are taken away
    line = f'<svg class="sae-spark" {size}><polyline {ink} points="{points}"/></svg>'
    return f'<figure style="margin:0"><figcaption>{esc(name)} {y[-1]:.4g}</figcaption>{line}</figure>'


def download(said: str, name: str, content: str) -> str:
    """A link that saves a file; its content in base64."""
    return f'<a download="{esc(name)}" href="data:text/csv;base64,{esc(content)}">{esc(said)}</a>'


def tokens(words: Sequence[str], values: Sequence[float], top: float, peak: int = -1) -> str:
    """A text, shaded and underlined where a latent fires, the more strongly the more; the tooltip has the number.

    Args:
        top: the activation that is shaded most.
    """
    parts = []
    for i, (word, value) in enumerate(zip(words, values)):
        said = esc("".join(SEEN.get(c, c) for c in word[:MOST]) + ("..." if len(word) > MOST else ""))
        share = min(1.0, max(0.0, value / top)) if top > 0 and value == value else 0.0
        if not share:
            parts.append(said)
            continue
        ink = f"background:rgba({HOT},{0.7 * share:.2f});border-bottom:{1 + 2 * share:.1f}px solid rgb({HOT})"
        kind = ' class="sae-peak"' if i == peak else ""
        parts.append(f'<span{kind} style="{ink}" title="{value:.3g}">{said}</span>')
    return f'<div class="sae-tokens">{"".join(parts)}</div>'


def bars(counts: Sequence[float], said: str) -> str:
    """A small histogram; high bars are drawn by their square root, so that low ones are seen."""
    (width, height), top = SPARK, max([*counts, 1]) ** 0.5
    step = width / max(1, len(counts))
    drawn = "".join(
        f'<rect x="{i * step:.1f}" y="{height * (1 - n**0.5 / top):.1f}" width="{max(step - 1, 1):.1f}" '
        f'height="{height * n**0.5 / top:.1f}"/>'
        for i, n in enumerate(counts)
    )
    chart = f'<svg class="sae-bars" width="{width}" height="{height}" role="img" aria-label="{esc(said)}">{drawn}</svg>'
    return f'<figure style="margin:0">{chart}<figcaption class="sae-help">{esc(said)}</figcaption></figure>'


def columns(*parts: str) -> str:
    """Pieces of markup side by side."""
    return f'<div class="sae-columns">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def halves(*parts: str) -> str:
    """Pieces of text side by side, as wide as one another; one under another where there is no room."""
    return f'<div class="sae-halves">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def heading(text: str, level: int = 4) -> str:
    return f'<h{level} style="margin:0.4rem 0 0.2rem">{esc(text)}</h{level}>'


def text(prompt: str, written: str) -> str:
    """What a model wrote, behind the prompt it was given."""
    return f'<div class="sae-tokens"><span class="sae-help">{esc(prompt)}</span>{esc(written)}</div>'


def frame(rows: pd.DataFrame) -> str:
    """A small table with its heads; empty cells where nothing is known."""
    shown = rows.map(lambda value: "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else value)
    return table([tuple(shown.columns), *shown.itertuples(index=False, name=None)])
