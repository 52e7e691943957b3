"""A form is drawn from any variant's knobs: what is typed, what is wrong with it, and the code that says the same."""

import ast
import json
import shlex
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as W
import pytest

import sae_lab as sl
from sae_lab.cli import commands, main
from sae_lab.knobs import knob, knobs
from sae_lab.launcher import Job
from sae_lab.panels import look
from sae_lab.panels.forms import Form, Scale, TrainingForm, typed
from sae_lab.saes import REGISTRY, configured
from sae_lab.saes.topk import TopK
from sae_lab.sweeps.plan import Plan
from sae_lab.training import TrainConfig

HOSTILE = '<img src=x onerror="window.x=1"> </span><script>x</script> \'"`$(id)` \u202e\x1b[31m'
PANELS = sorted((Path(sl.__file__).parent / "panels").rglob("*.py"))
NAMES = sorted(REGISTRY)
rows_of_all = pytest.mark.parametrize("name", NAMES)


def other(row) -> str:
    """Something else than the default, as a user would type it."""
    if row.choices:
        return str(next(choice for choice in reversed(row.choices) if choice != row.default))
    if row.kind is bool:
        return str(not row.default)
    if row.kind is str:
        return "L1TC" if row.name == "site" else f"-{row.name} of 'mine'"
    if row.low is None:
        return "4_096"
    whole = row.kind is int
    return typed(round(row.low + (row.high - row.low) * 0.3) if whole else row.low + (row.high - row.low) * 0.3)


def filled(name: str) -> TrainingForm:
    """A form with something else in every row where that goes together with the rest."""
    form = TrainingForm(name)
    for row in form.rows.values():
        if row.name != "variant":
            form.set(row.name, other(row))
    for _ in form.rows:
        for row in form.errors:
            form.set(row, "")
    assert form.errors == {} and form.variant == name  # each names the row that puts it right
    return form


@pytest.fixture
def mine():
    """A variant from a notebook cell, whose every string is hostile."""

    class Mine(TopK, name="mine"):
        paper = HOSTILE

        @dataclass(frozen=True)
        class Config(TopK.Config):
            bold: float = knob(0.5, 0.0, 2.0, HOSTILE)
            sizes: tuple[int, ...] = knob((8, 16), help="some sizes")

    yield Mine
    del REGISTRY["mine"]


# What is behind the widgets


@rows_of_all
def test_a_form_has_every_knob_of_the_variant_once_and_begins_without_an_error(name):
    form = TrainingForm(name)
    own = {row.name for row in knobs(REGISTRY[name].Config)} - {"d_in"}
    loop = {f.name for f in fields(TrainConfig)} | {f.name for f in fields(Job)} - {"sae", "train"}
    shown = [row.name for row in form.usual + form.more]
    assert set(shown) == own | loop and len(shown) == len(set(shown))
    new = {f.name for f in fields(REGISTRY[name].Config)} - {f.name for f in fields(sl.saes.SAE.Config)}
    assert new <= {row.name for row in form.usual}
    assert form.errors == {}
    settings = configured(name, d_in=1024, d_sae=2048)
    assert all(form.values[key] == getattr(settings, key) for key in own - {"d_sae"})


@rows_of_all
def test_the_shell_line_and_the_call_ask_for_the_same_training(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    form, asked = filled(name), []
    assert len(form.asked) > 20
    monkeypatch.setattr(commands, "run_job", lambda job: asked.append(job) or iter(()))
    sae_lab, *argv = shlex.split(form.command)
    assert sae_lab == "sae-lab" and main(argv) == 0, capsys.readouterr().err
    launch = SimpleNamespace(launch=lambda **given: asked.append(Job.of(**given)))
    eval(form.call, {"sl": launch})
    shell, python = (job.to_json() for job in asked)
    ours = Job.of(**form.knobs).to_json()
    assert python == ours
    left_out = {key: default(name, key) for key in shell["sae"].keys() - ours["sae"].keys()}
    assert shell == ours | {"sae": ours["sae"] | left_out}  # the command line states defaults too


def default(name: str, key: str):
    return next(row.default for row in knobs(REGISTRY[name].Config) if row.name == key)


def test_texts_reach_a_shell_unharmed():
    for text in (HOSTILE, "a b\nc", "-rf", "ünïcödé \U0001f600", "back\\slash's", "--run=x"):
        form = TrainingForm(run="runs/x", text=text)
        printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {form.command}"], capture_output=True, check=True)
        words = printed.stdout.decode().split("\0")[:-1]
        assert (f"--text={text}" in words) if text.startswith("-") else words[words.index("--text") + 1] == text
        assert form.command.isprintable() and form.call.isprintable()
        assert eval(form.call, {"sl": SimpleNamespace(launch=dict)})["text"] == text


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("k", "abc", "k='abc' must be int. latents kept"),
        ("k", "1.5", "k=1.5 must be int"),
        ("k", "-4", r"k=-4 must lie in \[1, 1048576\]"),
        ("lr", "nan", r"lr=nan must lie in"),
        ("encoder_bias", "maybe", "encoder_bias='maybe' must be bool"),
        ("scaling", "big", "scaling='big' is not one of 'unit_ms'"),
        ("variant", "topkk", "variant='topkk' is not one of"),
        ("site", "L1Q", "No site named 'L1Q'"),
        ("d_sae", "8", "k=32 must be at most d_sae=8"),
        ("skip", "true", "skip=True is for transcoders"),
    ],
)
def test_what_is_wrong_is_said_at_its_row_in_the_knobs_own_words(name, given, said):
    form = TrainingForm("topk")
    form.set(name, given)
    ((row, message),) = form.errors.items()
    assert row == ("k" if name == "d_sae" else name)
    with pytest.raises(ValueError, match=said):
        raise ValueError(message)
    with pytest.raises(ValueError, match=said):
        form.knobs  # noqa: B018
    form.set(name, "")
    assert form.errors == {} and form.knobs == {"variant": form.variant, "d_sae": 2048}


def test_all_that_is_wrong_is_said_at_once():
    form = TrainingForm("topk", k="abc", lr=5, batch=0)
    assert list(form.errors) == ["k", "batch", "lr"]
    with pytest.raises(ValueError, match=r"(?s)k='abc'.*batch=0.*lr=5"):
        form.command  # noqa: B018


def test_a_knob_that_there_is_not_names_the_nearest():
    with pytest.raises(TypeError, match=r"no knob 'kk'\. Did you mean 'k'\? It has: variant, model"):
        TrainingForm("topk", kk=3)
    with pytest.raises(KeyError, match=r"No SAE named 'topkk'\. Did you mean 'topk'"):
        sl.panels.form("topkk", k=3)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("tokens", "1_000_000", 1_000_000),
        ("tokens", " 1e6 ", 1_000_000),
        ("tokens", 5e3, 5000),
        ("aux_weight", "1e-2", 0.01),
        ("lr", "None", None),
        ("lr", "", None),
        ("skip", "True", True),
        ("skip", "false", False),
        ("run", " runs/a ", "runs/a"),
    ],
)
def test_a_text_is_read_as_the_knobs_kind(name, given, value):
    found = TrainingForm("topk").rows[name].read(given)
    assert found == value and type(found) is type(value)


@rows_of_all
def test_what_a_row_shows_is_read_back_as_its_value(name):
    for row in TrainingForm(name).rows.values():
        assert row.read(typed(row.default)) == row.default or row.required


def test_none_may_be_meant_where_the_default_is_a_number():
    form = TrainingForm("llama_scope")
    form.set("init_norm", "None")
    assert form.knobs["init_norm"] is None and form.values["init_norm"] is None
    assert form.command.endswith("--init-norm None")
    form.set("variant", "relu")  # where it must be a number
    assert list(form.errors) == ["init_norm"]


def test_another_variant_keeps_what_both_have_and_forgets_nothing():
    form = TrainingForm("batchtopk", k=16, multi=0.5, site="L1R", encoder_bias=True)
    form.set("variant", "llama_scope")
    assert form.knobs == {"variant": "llama_scope", "site": "L1R", "d_sae": 2048, "k": 16, "encoder_bias": True}
    assert "multi" not in form.rows and form.values["init_norm"] == 0.5
    form.set("variant", "relu")
    assert "k" not in form.rows
    form.set("variant", "batchtopk")
    assert form.knobs["k"] == 16 and form.knobs["multi"] == 0.5
    assert TrainingForm("batchtopk").values["k"] == 32 and TrainingForm("llama_scope").values["k"] == 50


def test_a_row_that_follows_from_another_shows_what_it_comes_to():
    form = TrainingForm("topk", target_l0=24, site="L1TC")
    assert (form.values["k"], form.values["transcode"]) == (24, True)
    assert form.knobs.keys() == {"variant", "target_l0", "site", "d_sae"}
    form.set("k", 16)
    assert "k=16 and target_l0=24 differ" in form.errors["k"]
    assert form.values["k"] == 16


def test_what_is_the_variants_own_builds_it():
    form = TrainingForm("topk", k=3, d_sae="64", seed=5, tokens=10, site="L1TC")
    assert form.own == {"seed": 5, "transcode": True, "d_sae": 64, "k": 3}
    assert sl.build(form.variant, d_in=16, **form.own).cfg.seed == 5


def test_a_variant_of_a_notebook_is_there_at_once_and_runs_by_its_call(mine, tmp_path):
    form = TrainingForm("topk", d_sae=24, k=3, model="planted", site="L0R", tokens=640, batch=64)
    assert "mine" in form.rows["variant"].choices
    form.set("variant", "mine")
    form.set("sizes", "4, 8")
    form.set("run", str(tmp_path / "run"))
    assert [row.name for row in form.usual if row.name in ("bold", "sizes")] == ["bold", "sizes"]
    assert form.values["sizes"] == (4, 8) and form.command == ""
    namespace: dict = {}
    exec(form.call, namespace)
    assert namespace["step"].index == 10 and sl.Run(tmp_path / "run").sae.cfg.sizes == (4, 8)

    class Mine(TopK, name="mine"):  # the cell is run again
        __qualname__, __module__ = mine.__qualname__, mine.__module__
        paper = "another"

    assert "bold" not in form.rows and form.errors == {} and form.knobs["k"] == 3


def test_any_config_has_a_form():
    form = Form(TrainConfig, tokens="5_000")
    assert form.knobs == {"tokens": 5000} and form.values["batch"] == 4096
    plan = Form(Plan, variants="topk, batchtopk", k="8, 16")
    assert plan.knobs == {"variants": ("topk", "batchtopk"), "k": (8, 16)} and plan.errors == {}
    assert not {"own", "job"} & plan.rows.keys()
    both = Form(TopK.Config, TrainConfig)
    assert both.errors == {"d_in": "d_in is needed: width of the activation."}
    assert "d_in" in [row.name for row in both.usual] and "seed" in [row.name for row in both.more]


@rows_of_all
def test_the_notches_of_a_slider_are_round_numbers_in_the_range_and_in_order(name):
    scales = {row.name: (row, Scale.of(row)) for row in TrainingForm(name).rows.values()}
    assert scales["tokens"][1].log and scales["d_sae"][1] is None and scales["lr"][1] is None
    assert scales["seed"][1] is None
    for row, scale in (pair for pair in scales.values() if pair[1]):
        values = [scale.value(notch) for notch in range(scale.notches + 1)]
        assert values == sorted(values) and (values[0], values[-1]) == (row.low, row.high)
        assert {type(value) for value in values[1:-1]} == {row.kind}
        assert all(scale.value(scale.notch(value)) == pytest.approx(value, rel=0.05) for value in values)
        row.check(scale.value(scale.notch(row.default)))
        assert scale.log == (row.low >= 0 and row.high >= 100 * (row.low or 1))


def test_a_logarithmic_slider_has_its_range_evenly_by_decades():
    scale = Scale.of(TrainingForm("topk").rows["tokens"])
    assert [scale.notch(10**n) for n in range(14)] == [20 * n for n in range(14)]
    assert [scale.value(n) for n in (0, 20, 120, 126, 260)] == [1, 10, 1_000_000, 2_000_000, 10**13]


# The face


@pytest.fixture
def panel():
    made = sl.panels.form("batchtopk", k=16)
    made._more.selected_index = 0
    return made


def test_rows_that_are_folded_away_are_made_when_they_are_looked_at():
    folded = sl.panels.form("batchtopk", k=16)
    assert list(shown(folded)) == [row.name for row in folded.form.usual]
    folded._more.selected_index = 0
    assert set(shown(folded)) == set(folded.form.rows)
    folded._more.selected_index = None
    assert set(shown(folded)) == set(folded.form.rows)


def shown(panel) -> dict[str, SimpleNamespace]:
    """The controls by name, found in the tree of widgets as a user finds them."""
    found, queue = {}, [panel]
    while queue:
        widget = queue.pop(0)
        assert not isinstance(widget, W.Output)
        queue += getattr(widget, "children", ())
        if "sae-row" in widget._dom_classes:
            control, *slider, said = widget.children
            found[control.description] = SimpleNamespace(
                control=control, slider=slider[0] if slider else None, said=said
            )
    return found


def touch(widget, value, trait: str = "value") -> None:
    """As the browser says that a user changed it."""
    data = {"method": "update", "state": {trait: value}, "buffer_paths": []}
    widget._handle_msg({"content": {"data": data}, "buffers": []})


def test_every_knob_is_drawn_by_its_kind(panel):
    rows, drawn = panel.form.rows, shown(panel)
    assert list(rows) != list(drawn) and set(rows) == set(drawn)
    for name, row in rows.items():
        kind = W.Dropdown if row.choices else W.Checkbox if row.kind is bool else W.Text
        assert isinstance(drawn[name].control, kind), name
        assert (drawn[name].slider is None) == (Scale.of(row) is None)
        assert look.esc(row.help) in drawn[name].said.value and drawn[name].control.tooltip == row.help
    assert drawn["k"].control.value == "16" and drawn["k"].slider.value == Scale.of(rows["k"]).notch(16)
    assert drawn["variant"].control.options == tuple((name, name) for name in sorted(REGISTRY))
    assert drawn["scaling"].control.value is None and drawn["run"].control.value == ""


def test_what_a_user_does_reaches_the_code_underneath(panel):
    drawn = shown(panel)
    touch(drawn["k"].control, "24")
    assert panel.knobs == {"variant": "batchtopk", "d_sae": 2048, "k": 24} and panel.own == {"d_sae": 2048, "k": 24}
    touch(drawn["tokens"].slider, 126)
    touch(drawn["skip"].control, True)
    assert "To mend: skip" in panel._foot.value and drawn["tokens"].control.value == "2_000_000"
    touch(drawn["skip"].control, False)
    assert "sae-lab train batchtopk --d-sae 2048 --no-skip --k 24 --tokens 2000000" in panel._foot.value
    assert look.esc("sl.launch(variant='batchtopk', d_sae=2048, skip=False, k=24, tokens=2000000)") in panel._foot.value
    touch(drawn["k"].control, "")
    assert drawn["k"].control.value == "32" and "k" not in panel.knobs


def test_a_wrong_value_is_said_beside_its_control_and_the_code_gives_way(panel):
    drawn = shown(panel)
    touch(drawn["k"].control, HOSTILE)
    touch(drawn["batch"].control, "0")
    assert "must be int" in drawn["k"].said.value and 'role="alert"' in drawn["k"].said.value
    assert panel._more.titles[0] == f"More knobs ({len(panel.form.more)}, 1 to mend)"
    assert "To mend: k, batch." in panel._foot.value and "launch" not in panel._foot.value
    assert repr(panel) == "<form: to mend: k, batch>"
    touch(drawn["batch"].control, "64")
    touch(drawn["k"].control, "16")
    assert 'role="alert"' not in drawn["k"].said.value and "--k 16 --batch 64" in panel._foot.value


def test_a_browser_that_repeats_what_it_was_told_changes_nothing(panel):
    before = panel.knobs
    for field in shown(panel).values():
        for widget in (field.control, field.slider):
            if widget is not None:
                trait = "index" if isinstance(widget, W.Dropdown) else "value"
                touch(widget, widget.get_state([trait])[trait], trait)
    assert panel.knobs == before
    assert all(isinstance(f.slider, W.IntSlider) for f in shown(panel).values() if f.slider)  # it snaps floats to steps


def test_a_slider_that_means_the_value_already_stays_where_the_hand_has_it(panel):
    slider = shown(panel)["k"].slider
    touch(slider, 1)
    assert (slider.value, panel.knobs["k"]) == (1, 1)
    touch(slider, 6)
    assert (slider.value, panel.knobs["k"]) == (6, 2)


def test_another_variant_draws_other_rows_and_keeps_the_widgets_of_those_that_stay(panel):
    before = shown(panel)
    touch(before["variant"].control, NAMES.index("llama_scope"), "index")
    after = shown(panel)
    assert panel.knobs == {"variant": "llama_scope", "d_sae": 2048, "k": 16}
    assert set(after) == set(panel.form.rows) and "init_norm" in after and "multi" not in after
    assert after["variant"].control is before["variant"].control and after["k"].control is before["k"].control
    assert "He et al. 2024" in after["variant"].said.value
    assert before["multi"].control.comm is None and after["k"].control.comm is not None  # one is closed
    panel.set("variant", "relu")
    assert "l1_weight" in shown(panel)


def test_a_variant_that_came_later_is_in_the_dropdown_when_the_form_is_shown_again(panel, mine):
    assert "mine" not in dict(shown(panel)["variant"].control.options)
    panel._repr_mimebundle_()
    assert "mine" in dict(shown(panel)["variant"].control.options)
    panel.set("variant", "mine")
    drawn = shown(panel)
    touch(drawn["sizes"].control, "1, 2, 3")
    assert panel.knobs["sizes"] == (1, 2, 3) and "run_job" in panel._foot.value


def test_nothing_hostile_is_markup(panel, mine):
    for name in ("run", "text", "lr", "column"):
        panel.set(name, HOSTILE)
    panel.set("variant", "mine")
    texts = [panel._foot.value, panel.snapshot(), *(field.said.value for field in shown(panel).values())]
    panel.set("lr", "")
    texts += [panel._foot.value, panel.snapshot()]
    assert look.esc(HOSTILE)[:20] in "".join(texts)
    for text in texts:
        assert "<img" not in text and "<script" not in text and "</span></span>" not in text
        assert not set("\u202e\x1b") & set(text)


def test_what_is_very_long_is_cut(panel):
    panel.set("lr", "9" * 100_000)
    assert len(shown(panel)["lr"].said.value) < 1000


def test_where_no_widget_runs_there_is_a_table(panel):
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert all(f'<td style="text-align:left">{row.name}</td>' in bundle["text/html"] for row in panel.form.usual)
    assert "sae-lab train batchtopk" in bundle["text/html"] and "http" not in bundle["text/html"]
    assert repr(panel) == "<form: variant='batchtopk', d_sae=2048, k=16>"


def test_a_fault_in_a_callback_is_shown(panel, monkeypatch):
    monkeypatch.setattr(panel.form, "set", lambda *_: 1 / 0)
    touch(shown(panel)["k"].control, "4")
    assert "ZeroDivisionError: division by zero" in panel._fault.value


# The house rules


def words(path: Path) -> list[str]:
    return [
        n.value
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def test_a_saved_notebook_holds_no_widget_that_would_be_missed():
    for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"):
        saved = json.loads(path.read_text())
        outputs = [out for cell in saved["cells"] for out in cell.get("outputs", ())]
        assert "widgets" not in saved["metadata"], path.name
        assert not [out for out in outputs if "widget-view" in " ".join(out.get("data", ()))], path.name


def test_no_panel_names_a_variant():
    assert [word for path in PANELS for word in words(path) if word in REGISTRY] == []
    assert "abstopk" not in "".join(path.read_text() for path in PANELS)


def test_markup_is_written_in_one_file():
    assert [p.name for p in PANELS if any("</" in word for word in words(p))] == ["look.py"]


def test_the_controller_knows_no_widgets():
    tree = ast.parse((Path(sl.__file__).parent / "panels" / "forms.py").read_text())
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [name for name in names if "widget" in name or name in ("faces", "look", "keys")]
