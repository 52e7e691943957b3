"""A cloud of points on a plane, a hundred thousand and more: Python knows what they mean, cloud.js draws them."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as T
from jaxtyping import Int
from traitlets.utils.bunch import Bunch

from ...plots import COLOURS, MORE
from .. import look

MISSING = 255  # the code of a point without a colour
LONGEST = 400  # characters of a label
LARGEST = 31  # pixels


class PointCloud(anywidget.AnyWidget):
    """Points to pan, zoom, hover, click and lasso; drawn by WebGL2, or on a 2D canvas where there is none.

    Attributes:
        clicked: the point clicked last, -1 for the ground; observers hear of every click, of the same point too.
        selected: a bit per point, first point lowest, or no bytes; `chosen` has their numbers.
        height: pixels; it is as wide as there is room.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    _xy = T.Bytes().tag(sync=True)
    _codes = T.Bytes().tag(sync=True)
    _sizes = T.Bytes().tag(sync=True)
    _key = T.Dict().tag(sync=True)
    clicked = T.Int(-1).tag(sync=True)
    # A browser's bytes come as a memoryview, and need not go back to where they came from.
    selected = T.Bytes().tag(sync=True, echo_update=False, from_json=lambda value, _: bytes(value or b""))
    height = T.Int(480, min=100).tag(sync=True)

    def __init__(
        self,
        xy: Collection,
        values: Collection | None = None,
        *,
        names: Sequence[str] | None = None,
        title: str = "",
        unit: str = "",
        limits: tuple[float, float] | None = None,
        sizes: Collection | float = 3.0,
        label: Callable[[int], object] = str,
        height: int = 480,
    ):
        """
        Args:
            values, names, title, unit, limits: as in `recolour`; without values all points look the same.
            sizes: diameters in pixels, one or one per point.
            label: what is said of a point when a pointer is over it; plain text.

        Raises:
            ValueError: for what is not a finite pair of numbers per point, or does not fit their number.
        """
        self._label, self.n = label, len(xy)
        if values is None:
            values, names = np.zeros(self.n, int), ()
        codes, key = coloured(self.n, values, names, title, unit, limits)
        super().__init__(_xy=placed(xy), _sizes=measured(sizes, self.n), _codes=codes, _key=key, height=height)
        self.on_msg(self._heard)

    def recolour(
        self,
        values: Collection,
        names: Sequence[str] | None = None,
        title: str = "",
        unit: str = "",
        limits: tuple[float, float] | None = None,
    ) -> None:
        """Colours by numbers, or by category where `names` are given; the legend says which, positions stay.

        Args:
            values: a number per point, nan where there is none; or a category's place in `names`, -1 for none.
            limits: the ends of the scale of numbers; by default the smallest and the largest.

        Raises:
            ValueError: for another number of values than of points, or a category that has no name.
        """
        codes, key = coloured(self.n, values, names, title, unit, limits)
        with self.hold_sync():
            self._codes, self._key = codes, key

    def move(self, xy: Collection) -> None:
        """Puts the same points elsewhere.

        Raises:
            ValueError: for another number of points.
        """
        if len(xy) != self.n:
            raise ValueError(f"{len(xy)} places for {self.n} points: make another cloud for other points.")
        self._xy = placed(xy)

    @property
    def chosen(self) -> Int[np.ndarray, " chosen"]:
        """The numbers of the selected points, in order."""
        bits = np.unpackbits(np.frombuffer(self.selected, np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self.n])

    def choose(self, points: Collection) -> None:
        """Selects points by their numbers; none for no selection.

        Raises:
            IndexError: for a point that is not there.
        """
        mask = np.zeros(self.n, bool)
        mask[np.asarray(points, int)] = True
        self.selected = np.packbits(mask, bitorder="little").tobytes() if mask.any() else b""

    def _heard(self, _: Any, message: dict[str, Any], buffers: Sequence) -> None:
        """What the browser says: a point to tell the label of, a click, a selection."""
        if "ask" in message:
            self.send({"point": message["ask"], "label": self._said(message["ask"])})
        if "clicked" in message:
            before, self.clicked = self.clicked, message["clicked"]
            if before == self.clicked:
                self.notify_change(Bunch(name="clicked", old=before, new=before, owner=self, type="change"))
        if "selected" in message:
            self.set_state({"selected": buffers[0]})  # which sends nothing back

    def _said(self, point: int) -> str:
        try:
            return shortened(self._label(point))
        except Exception as error:  # ipywidgets would say it where nobody looks
            return shortened(f"{type(error).__name__}: {error}")

    def __repr__(self) -> str:
        return f"PointCloud of {self.n:,} points, {len(self.chosen):,} selected"


def placed(xy: Collection) -> bytes:
    """Positions as float32 in [-1, 1], the longer side from end to end.

    Raises:
        ValueError: for what is not a finite pair of numbers per point.
    """
    xy = np.asarray(xy, float) if len(xy) else np.zeros((0, 2))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"xy of shape {xy.shape}: a point is a row of two numbers.")
    lost = int((~np.isfinite(xy)).any(1).sum())
    if lost:
        raise ValueError(f"{lost} of {len(xy)} points have no finite place: leave them out.")
    if not len(xy):
        return b""
    low, high = xy.min(0), xy.max(0)
    half = (high - low).max() / 2 or 1.0
    return ((xy - (low + high) / 2) / half).astype("<f4").tobytes()


def measured(sizes: Collection | float, n: int) -> bytes:
    """Diameters in eighths of a pixel, one for all or one per point.

    Raises:
        ValueError: for sizes that are not over 0 and up to 31 pixels, or another number of them than of points.
    """
    sizes = np.atleast_1d(np.asarray(sizes, float))
    if sizes.shape not in ((1,), (n,)):
        raise ValueError(f"{len(sizes)} sizes for {n} points: give one for all, or one per point.")
    if not ((sizes > 0) & (sizes <= LARGEST)).all():
        raise ValueError(f"Sizes must be over 0 and up to {LARGEST} pixels.")
    return np.maximum(np.round(8 * sizes), 1).astype(np.uint8).tobytes()


def coloured(
    n: int,
    values: Collection,
    names: Sequence[str] | None,
    title: str,
    unit: str,
    limits: tuple[float, float] | None,
) -> tuple[bytes, dict[str, Any]]:
    """A code per point, and what the legend needs to know of the codes; colours repeat after the sixteenth name."""
    if len(values) != n:
        raise ValueError(f"{len(values)} values for {n} points: give one per point.")
    key: dict[str, Any] = {"title": shortened(title), "unit": shortened(unit), "colours": COLOURS + MORE}
    if names is None:
        codes, low, high = shaded(values, limits)
        return codes.tobytes(), key | {"names": None, "low": low, "high": high}
    if len(names) > MISSING:
        raise ValueError(f"{len(names)} names: there is room for {MISSING}; put the rare ones together.")
    values = np.asarray(values)
    whole, last = values.dtype.kind in "iu", max(len(names) - 1, 0)
    if not whole or (n and not -1 <= values.min() <= values.max() <= last):
        raise ValueError(f"With names, a value is a place in them, 0 to {last}, or -1; for numbers leave names out.")
    codes = np.where(values < 0, MISSING, values).astype(np.uint8)
    return codes.tobytes(), key | {"names": [shortened(name) for name in names]}


def shaded(values: Collection, limits: tuple[float, float] | None) -> tuple[np.ndarray, float, float]:
    """Numbers as places on a scale of 255, what is beyond it at its ends, nan apart; and the scale's ends."""
    values = np.asarray(values, float)
    finite = values[np.isfinite(values)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0))
    share = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.where(np.isnan(share), MISSING, np.round(share * (MISSING - 1))).astype(np.uint8), low, high


def shortened(text: object) -> str:
    """A text for the map: as long as one reads, with what cannot be seen spelt out."""
    text = str(text)
    return look.seen(text[:LONGEST] + (" ..." if len(text) > LONGEST else ""))
