"""The verbs of faithfulness and meaning on the command line, on the embedded Llama and its chat sibling."""

import json

import pytest

import sae_lab as sl
from sae_lab.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A frozen dictionary at L1R, twice with two seeds, and one at L2R."""
    made = []
    for name, site, seed in (("a", "L1R", 0), ("b", "L1R", 1), ("c", "L2R", 0)):
        sae = sl.build("random", d_in=192, d_sae=256, k=16, seed=seed)
        sae.origin = {"site": site, "model": "tiny", "text": "world", "context": 128}
        made.append(str(sl.save_sae(sae, tmp_path_factory.mktemp("saes") / name)))
    return made


def printed(capsys, *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_by_position_reads_past_the_trained_context(capsys, folders):
    found = printed(capsys, "evaluate", folders[0], "--by", "position", "--tokens", "2000")
    assert found["trained"] == 128 and found["about"]["length"] == 400 and found["about"]["documents"] >= 5
    assert [row["first"] for row in found["bins"] if row["number"] == "fvu"] == [0, 64, 128, 192, 256, 320, 384]
    assert set(found["beyond"]) == {"fvu", "l0", "ce_increase", "ce_recovered"}


def test_evaluate_on_the_chat_sibling_shows_three_readers(capsys, folders):
    found = printed(capsys, "evaluate", folders[0], "--model", "tiny-chat", "--chat", "--tokens", "1500")
    ce = {on: of["ce_clean"]["value"] for on, of in found["numbers"].items()}
    assert ce["sibling, chat format"] < ce["sibling"]  # in its own format it predicts dialogues best
    assert found["about"]["tokens"]["base"] == found["about"]["tokens"]["sibling"] >= 1500
    assert set(found["changes"]) == {"sibling", "sibling, chat format"}


def test_evaluate_of_several_runs_splices_them_at_once(capsys, folders):
    found = printed(capsys, "evaluate", folders[0], folders[2], "--tokens", "1500")
    assert {"L1R", "L2R", "together", "beyond the sum"} <= set(found)
    assert main(["evaluate", folders[0], folders[2], "--tokens", "1500"]) == 0
    assert "together" in capsys.readouterr().out


def test_agree_compares_two_seeds(capsys, folders):
    found = printed(capsys, "agree", *folders[:2], "--tokens", "6000")
    assert set(found["spearman"]) == {"concept", "jaccard", "correlation"}
    assert found["about"]["matched"] == 256 and found["about"]["mcc"] == pytest.approx(
        found["about"]["chance floor"], abs=0.02
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "{a}", "--chat"], "--chat needs the chat model that was made of tiny"),
        (["evaluate", "{a}", "--chat", "--by", "position", "--model", "tiny-chat"], "Give one RUN"),
        (["evaluate", "{a}", "{c}", "--by", "position"], "Give one RUN"),
        (["evaluate", "{a}", "{b}"], "L1R, L1R: two write the same place"),
        (["evaluate", "{a}", "--by", "position", "--length", "600"], "length=600"),
        (["agree", "{a}", "{c}"], "give two of one place"),
    ],
)
def test_what_is_asked_wrongly_ends_in_one_line(capsys, folders, argv, said):
    filled = [word.format(**dict(zip("abc", folders))) for word in argv]
    assert main(filled) == 2
    err = capsys.readouterr().err
    assert err.startswith("sae-lab: ") and said in err and len(err.splitlines()) == 1
