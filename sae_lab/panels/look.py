"""How panels look, and the one place where text becomes markup."""

import html
from collections.abc import Iterable

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
  line-height: 1.45; font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 13px);
  color: var(--jp-content-font-color1, #111); background: var(--jp-layout-color2, #eee); user-select: all; }
</style>"""


def seen(text: object) -> str:
    """Text in which what cannot be seen or turns the line around is spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in str(text))


def esc(text: object) -> str:
    """Text that is only text in markup, all of it visible."""
    return html.escape(seen(text))


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
