"""Curves with few points that keep what one would see: the heights and the depths."""

import pandas as pd

MOST = 500  # points of a curve


def thinned(rows: pd.DataFrame, most: int = MOST) -> pd.DataFrame:
    """At most about `most` rows: of each stretch of steps those that hold the least and the most of each number."""
    stretch = -(-len(rows) // max(1, most // 2))
    if stretch <= 2:
        return rows
    kept = {0, len(rows) - 1}
    number = rows.select_dtypes("number")
    for name in number.columns.intersection(["fvu"]).union([c for c in number if c.startswith("terms.")]):
        groups = number[name].dropna().groupby(lambda i: i // stretch)
        kept |= {*groups.idxmin(), *groups.idxmax()}
    if "ce_recovered" in rows:
        kept |= set(rows.index[rows["ce_recovered"].notna()])
    return rows.loc[sorted(kept)]
