"""What a cloud of points and a live figure send to a browser and take from it, without a browser."""

import json

import comm
import numpy as np
import pandas as pd
import pytest
from comm.base_comm import BaseComm

from sae_lab.panels.faces import cloud as clouds
from sae_lab.panels.faces import figures
from sae_lab.panels.faces.cloud import PointCloud
from sae_lab.plots import style

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> \u202e\x1b[31m \U0001f600'
MANY = 131_072


@pytest.fixture
def sent(monkeypatch):
    """The messages to the browser: their kind, their data, the sizes of their buffers."""
    found = []

    class Recorded(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            found.append((msg_type, data, [len(bytes(buffer)) for buffer in buffers or []]))

    monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Recorded(*args, **keys))
    return found


def size(messages) -> int:
    """Bytes on the wire."""
    return sum(len(json.dumps(data)) + sum(buffers) for _, data, buffers in messages)


def random(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2))


def touched(widget, **state) -> None:
    """As the browser says that something changed."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    widget._handle_msg({"content": {"data": data}, "buffers": []})


def said(widget, *buffers: bytes, **content) -> None:
    """As the browser says something."""
    data = {"method": "custom", "content": content}
    widget._handle_msg({"content": {"data": data}, "buffers": [memoryview(b) for b in buffers]})


def test_a_cloud_of_131072_points_is_under_2_mb_and_its_colours_alone_are_resent(sent):
    cloud = PointCloud(random(MANY), random(MANY)[:, 0], title="density", sizes=np.full(MANY, 3.0))
    assert 1_000_000 < size(sent) <= 2_000_000
    sent.clear()
    cloud.recolour(np.arange(MANY) % 3, names=["a", "b", "c"])
    ((_, data, buffers),) = sent
    assert buffers == [MANY] and size(sent) < 140_000 and data["state"]["_key"]["names"] == ["a", "b", "c"]
    sent.clear()
    cloud.move(random(MANY, 1))
    assert [buffers for _, _, buffers in sent] == [[8 * MANY]]


def test_places_fill_the_square_and_keep_their_proportions():
    xy = np.array([[10.0, 5.0], [30.0, 5.0], [20.0, 15.0]])
    assert np.frombuffer(clouds.placed(xy), "<f4").reshape(-1, 2).tolist() == [[-1, -0.5], [1, -0.5], [0, 0.5]]
    assert np.frombuffer(clouds.placed([[7, 7], [7, 7]]), "<f4").tolist() == [0, 0, 0, 0]
    assert PointCloud([]).n == 0


def test_numbers_are_places_on_a_scale():
    cloud = PointCloud(random(6), [2.0, 4.0, 3.0, np.nan, -np.inf, np.inf], title="t", unit="nats")
    assert list(cloud._codes) == [0, 254, 127, 255, 0, 254]
    expected = {"names": None, "low": 2.0, "high": 4.0, "title": "t", "unit": "nats"}
    assert {name: cloud._key[name] for name in expected} == expected
    cloud.recolour([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], limits=(1.0, 3.0))
    assert list(cloud._codes) == [0, 0, 127, 254, 254, 254]
    cloud.recolour([np.nan] * 6)
    assert list(cloud._codes) == [255] * 6
    cloud.recolour(pd.Series([3] * 6))
    assert list(cloud._codes) == [0] * 6 and cloud._key["low"] == cloud._key["high"] == 3.0


def test_categories_are_places_among_names():
    cloud = PointCloud(random(4), [0, 2, -1, 1], names=["a", "b", HOSTILE])
    assert list(cloud._codes) == [0, 2, 255, 1]
    assert not set("\u202e\x1b") & set(cloud._key["names"][2]) and "\U0001f600" in cloud._key["names"][2]


def test_a_click_is_heard_every_time(sent):
    cloud, heard = PointCloud(random(9)), []
    cloud.observe(lambda change: heard.append(change["new"]), "clicked")
    for point in (7, 7, -1, 3):
        said(cloud, clicked=point)
    assert heard == [7, 7, -1, 3] and cloud.clicked == 3


def test_a_selection_comes_as_bits_and_is_not_sent_back(sent):
    cloud, heard = PointCloud(random(20)), []
    cloud.observe(lambda change: heard.append(cloud.chosen.tolist()), "selected")
    sent.clear()
    said(cloud, bytes([0b10000010, 0, 0b1000]), selected=True)
    assert heard == [[1, 7, 19]] and sent == []
    said(cloud, b"", selected=True)
    assert heard == [[1, 7, 19], []]
    cloud.choose([0, 9])
    assert cloud.selected == bytes([1, 2, 0]) and repr(cloud) == "PointCloud of 20 points, 2 selected"
    cloud.choose([])
    assert cloud.selected == b""


def test_a_label_is_asked_for_one_point_and_is_short_visible_text(sent):
    labels = {0: HOSTILE, 1: "x" * 100_000, 2: None}
    cloud = PointCloud(random(4), label=lambda i: labels[i])
    sent.clear()
    for point in range(4):
        said(cloud, ask=point)
    answers = [data["content"] for _, data, _ in sent]
    assert [answer["point"] for answer in answers] == [0, 1, 2, 3]
    assert "\\u202e" in answers[0]["label"] and "\u202e" not in answers[0]["label"]
    assert answers[1]["label"] == "x" * 400 + " ..." and answers[2]["label"] == "None"
    assert answers[3]["label"] == "KeyError: 3"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (lambda: PointCloud(np.zeros((4, 3))), r"shape \(4, 3\)"),
        (lambda: PointCloud([[0, 0], [0, np.nan]]), "1 of 2 points have no finite place: leave them out"),
        (lambda: PointCloud(random(4), [1.0]), "1 values for 4 points"),
        (lambda: PointCloud(random(4), sizes=np.ones(2)), "2 sizes for 4 points"),
        (lambda: PointCloud(random(4), sizes=40.0), "up to 31 pixels"),
        (lambda: PointCloud(random(4), sizes=np.nan), "up to 31 pixels"),
        (lambda: PointCloud(random(2), [0, 2], names=["a", "b"]), r"a place in them, 0 to 1, or -1"),
        (lambda: PointCloud(random(2), [0, -2], names=["a", "b"]), r"a place in them, 0 to 1, or -1"),
        (lambda: PointCloud(random(2), [0.5, 0.1], names=["a"]), "for numbers leave names out"),
        (lambda: PointCloud(random(2), [0, 1], names=["x"] * 256), "256 names: there is room for 255"),
        (lambda: PointCloud(random(4)).move(random(5)), "5 places for 4 points: make another cloud"),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(asked, told):
    with pytest.raises(ValueError, match=told):
        asked()


def test_a_point_that_is_not_there_cannot_be_chosen():
    with pytest.raises(IndexError):
        PointCloud(random(4)).choose([4])


# Figures


def drawn(n: int = 100):
    return style(figures.go.Figure(figures.go.Scatter(x=np.arange(n), y=random(n)[:, 0])))


def test_the_first_figure_brings_plotly_and_no_other_does(sent, monkeypatch):
    monkeypatch.setattr(figures.Library, "_here", None)
    first = figures.LiveFigure(drawn())
    assert 4_000_000 < size(sent) < 6_000_000
    for _ in range(2):
        sent.clear()
        other = figures.LiveFigure(drawn())
        assert size(sent) <= 20_000
    assert first._library == other._library == figures.Library.here().model_id


def test_a_library_that_was_closed_is_sent_anew(sent, monkeypatch):
    monkeypatch.setattr(figures.Library, "_here", None)
    before = figures.LiveFigure()._library
    figures.Library.here().close()
    assert figures.LiveFigure()._library != before


def test_a_live_figure_is_the_figure_on_clear_ground_and_leaves_the_original_alone(sent):
    original = drawn()
    before = original.to_dict()
    figure = figures.LiveFigure(original)
    assert figure.figure.layout.uirevision and figure.figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert (
        figure.figure.layout.xaxis.gridcolor == original.layout.xaxis.gridcolor and len(figure.figure.data[0].x) == 100
    )
    assert original.to_dict() == before and original.layout.uirevision is None
    assert repr(figure) == "LiveFigure of 1 traces"


def test_a_page_that_is_loaded_anew_is_told_what_is_there_now():
    figure = figures.LiveFigure(drawn())
    figure.show(drawn(3).update_layout(title_text="new"))
    spec = json.loads(figure.get_state()["_spec"])
    assert len(spec["data"]) == 1 and spec["layout"]["title"]["text"] == "new"


def test_a_change_sends_the_new_figure_and_the_same_one_nothing(sent):
    figure = figures.LiveFigure(drawn())
    sent.clear()
    figure.show(drawn().update_traces(y=np.ones(100)))
    assert 800 < size(sent) < 6_000
    same = drawn()
    figure.show(same)
    sent.clear()
    figure.show(same)
    assert sent == []
