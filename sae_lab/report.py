"""A self-contained HTML page: tables, figures, highlighted contexts. Works offline; every string is escaped here."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from . import plots

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Tokens:
    """A piece of text whose tokens are shaded by how strongly a latent fires; `label` stands above it."""

    tokens: Sequence[str]
    values: Sequence[float]
    top: float
    label: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and what stands under it: tables, figures, `Tokens` and plain strings."""

    title: str
    prose: str
    items: tuple


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page as text, plotly included once."""
    body = "".join(
        f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.prose)}</p>{''.join(_item(i) for i in s.items)}"
        for s in sections
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{CSS}</style><script>{plots.script()}</script>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>{body}</html>"
    )


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    return _write(path, page(title, subtitle, sections))


def write_markup(path: Path, title: str, body: str) -> Path:
    """A page, without plotly, of markup in which all text is escaped already."""
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    head += f"<title>{html.escape(title)}</title><style>{CSS}</style>"
    return _write(path, f"{head}{body}</html>")


def _write(path: Path, text: str) -> Path:
    """Writes beside the final name first, so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    return draft.replace(path)


def tokens_html(text: Tokens) -> str:
    """Shaded tokens; the number is in the tooltip."""
    spans = "".join(
        f"<span style='background:rgba(var(--hot),{0.75 * max(0.0, v) / text.top if text.top else 0:.2f})' "
        f"title='{v:.3g}'>{html.escape(t)}</span>"
        for t, v in zip(text.tokens, text.values)
    )
    label = f"<div class='label'>{html.escape(text.label)}</div>" if text.label else ""
    return f"<div class='text'>{label}{spans}</div>"


def _item(item) -> str:
    if isinstance(item, Tokens):
        return tokens_html(item)
    if isinstance(item, pd.DataFrame):
        table = item.to_html(
            index=False,
            border=0,
            float_format=lambda v: f"{v:#.4g}".rstrip("."),
            na_rep="–",
            classes="said" if len(item.columns) and item.dtypes.iloc[-1].kind in "OT" else None,
        )
        return f"<div class='wide'>{table}</div>"
    if isinstance(item, str):
        return f"<div class='text'>{html.escape(item)}</div>"
    return plots.div(item)
