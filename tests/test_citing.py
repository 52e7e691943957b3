"""Citations: whatever a run used has an entry that BibTeX can read, and what it did not use has none."""

import json
import re

import pytest
from streams import Stream

from sae_lab.citing import MEASURED, MODELS, TEXTS, cite, known, papers
from sae_lab.cli import main
from sae_lab.runs import Run
from sae_lab.saes import REGISTRY, build
from sae_lab.toys import Planted
from sae_lab.training import train


def entries(text: str) -> dict[str, dict[str, str]]:
    """Key -> fields. A small reader of BibTeX: what stands outside of entries is a comment."""
    found, at = {}, 0
    while (at := text.find("@", at)) >= 0:
        head = re.compile(r"@(\w+)\{([^\s,{}]+),").match(text, at)
        assert head, text[at : at + 40]
        at, fields = head.end(), {"kind": head[1]}
        while text[at:].lstrip()[0] != "}":
            name = re.compile(r"\s*(\w+) = \{").match(text, at)
            assert name and name[1] not in fields, text[at : at + 40]
            at = start = name.end()
            depth = 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
                at += 1
            fields[name[1]] = " ".join(text[start : at - 1].split())
            at = re.compile(r",?\s*").match(text, at).end()
        assert head[2] not in found, head[2]
        found[head[2]] = fields
    return found


def little(folder, name="topk", source=None, **config):
    sae = build(name, **({"d_in": 16, "d_sae": 32, "k": 3} | config))
    list(train(sae, source or Stream(), 256, run=folder, batch=64, calibration_tokens=512))
    return folder


def keys(folder):
    return {key for key, *_ in cite(folder).entries}


def test_the_file_of_papers_reads_as_bibtex():
    read = entries("\n".join(papers().values()))
    assert read.keys() == papers().keys()
    for key, fields in read.items():
        assert {"title", "author", "year"} <= fields.keys(), key
        assert re.fullmatch(r"\d{4}", fields["year"]) and fields["year"] in key
        assert all("," in name or name == "others" for name in fields["author"].split(" and ")), key
        assert {"eprint", "journal", "howpublished"} & fields.keys(), key
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
            assert int(fields["eprint"][:2]) == int(fields["year"]) % 100


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_paper_that_a_variant_names_has_an_entry(name):
    paper = REGISTRY[name].paper
    cited = {re.search(r"eprint = \{(.+)\}", papers()[key])[1] for key in known(paper) if "eprint" in papers()[key]}
    assert cited == set(re.findall(r"arXiv:([\d.]+\d)", paper))
    surnames = {entries(papers()[key])[key]["author"].split(",")[0] for key in known(paper)}
    named = set(re.findall(r"(\w+)(?: et al\.| & \w+)? (?:19|20)\d\d", paper)) - {"April"}
    assert named <= surnames, f"{named - surnames} have no entry"


def test_every_table_leads_to_one_entry():
    for name in [*MODELS.values(), *TEXTS.values(), *(paper for paper, _ in MEASURED.values())]:
        assert len(known(name)) == 1, name


def test_a_run_cites_its_variant_its_optimiser_and_this_package(tmp_path):
    found = cite(little(tmp_path / "run", aux_weight=0.0))
    assert {key for key, *_ in found.entries} == {"gao2024scaling", "kingma2014adam", "sae_lab"}
    assert entries(repr(found)).keys() == {"gao2024scaling", "kingma2014adam", "sae_lab"}
    assert [tuple(row.values()) for row in found.to_json()["entries"]] == list(found.entries)
    assert list(found.table["key"]) == ["gao2024scaling", "kingma2014adam", "sae_lab"]


def test_what_the_config_switched_on_is_cited_and_what_it_switched_off_is_not(tmp_path):
    assert "gao2024scaling" in keys(little(tmp_path / "on", "batchtopk"))
    assert "gao2024scaling" not in keys(little(tmp_path / "off", "batchtopk", aux_weight=0.0))
    assert "gao2024scaling" not in keys(little(tmp_path / "zipf", "mutual_choice"))  # has an auxiliary term of its own


def test_a_baseline_has_no_optimiser(tmp_path):
    assert keys(little(tmp_path / "run", "random")) == {"heap2025sparse", "sae_lab"}


def test_a_model_brings_nnsight_and_its_paper_and_planted_activations_neither(tmp_path):
    class Llamas(Stream):
        def describe(self):
            return {"model": "meta-llama/Llama-3.1-8B", "text": "roneneldan/TinyStories"}

    class Tiny(Stream):
        def describe(self):
            return {"model": "tiny", "text": "world"}

    theirs = {"fiottokaufman2024nnsight", "grattafiori2024llama3", "eldan2023tinystories"}
    assert theirs <= keys(little(tmp_path / "llama", source=Llamas()))
    assert keys(little(tmp_path / "tiny", source=Tiny())) & theirs == {"fiottokaufman2024nnsight"}
    planted = keys(little(tmp_path / "planted", source=Planted(site="L1R")))
    assert not planted & theirs and "song2025position" in planted


def test_what_has_no_entry_is_named(tmp_path):
    class Other(Stream):
        def describe(self):
            return {"model": "someone/new-model", "text": "notes.txt"}

    found = cite(little(tmp_path / "run", source=Other()))
    assert found.missing == ("the model (someone/new-model)", "the text (notes.txt)")
    assert "% no entry here, cite it yourself: the model (someone/new-model)" in repr(found)


def test_an_evaluation_brings_its_methods(tmp_path):
    run = Run(little(tmp_path / "run"))
    before = keys(run)
    run.write_eval({"ce_recovered": {"value": 0.9, "low": 0.8, "high": 1.0}, "about": {"tokens": 9}})
    assert keys(run) - before == {"bricken2023monosemanticity", "efron1979bootstrap"}


def test_a_reason_is_given_once_for_each_use(tmp_path):
    (why,) = (why for key, why, _ in cite(little(tmp_path / "run")).entries if key == "gao2024scaling")
    assert why == "the variant, topk; AuxK against dead latents"


def test_the_command_line_says_the_same(tmp_path, capsys):
    little(tmp_path / "run")
    assert main(["cite", str(tmp_path / "run")]) == 0
    assert entries(capsys.readouterr().out).keys() == keys(tmp_path / "run")
    assert main(["cite", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cite(tmp_path / "run").to_json()
    assert main(["cite", str(tmp_path / "none")]) == 2
    assert "No run in" in capsys.readouterr().err
