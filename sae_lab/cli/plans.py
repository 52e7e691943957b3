"""The verbs that work out what a training would take."""

import json
from dataclasses import field
from pathlib import Path

import torch
import tyro

from ..knobs import knob
from ..planning import Machine, gauge, predict
from ..workload import KINDS, Mesh
from . import say
from .commands import options, parsed


def run_gauge(argv: list[str], as_json: bool) -> None:
    """`gauge machine.json`: what this machine takes for each unit of work, kept for `predict`, here or elsewhere."""
    more = {
        "file": (tyro.conf.Positional[str], field()),
        "seconds": (float, knob(10.0, 1.0, 3600.0, "how long; nothing else should run meanwhile")),
        "threads": (int | None, knob(None, 1, 4096, "of torch; None: as many as it takes by itself")),
    }
    given = parsed(options("GaugeOptions", doc="Gauge this machine.", **more), argv, "gauge")
    if given.threads:
        torch.set_num_threads(given.threads)
    found = gauge(given.seconds)
    found.save(given.file)
    say(found.to_json(), as_json, f"{found!r}\n{given.file}")


def run_predict(argv: list[str], as_json: bool) -> None:
    """`predict batchtopk --d-in 4096 --d-sae 32768 --machine machine.json`: time, memory and disk, worked out."""
    more = {
        "variant": (tyro.conf.Positional[str], knob("batchtopk", choices=tuple(KINDS), help="which SAE")),
        "d_in": (int, knob(512, 1, 2**20, "width of the activation")),
        "d_sae": (int, knob(8192, 1, 2**26, "latents")),
        "k": (float, knob(32.0, 1e-3, 2**20, "latents that fire per token: k, or L0")),
        "batch": (int, knob(4096, 1, 2**20, "tokens per step")),
        "tokens": (int, knob(1_000_000, 1, 10**13, "activations to train on")),
        "choose_in": (
            str,
            knob("auto", choices=("auto", "float32", "bfloat16", "int8"), help="precision of the choice"),
        ),
        "machine": (str | None, knob(None, help="a file that gauge wrote; None: this machine, gauged now")),
        "model": (str | None, knob(None, help="config.json of the Llama that reads text meanwhile; None: none does")),
        "layers": (int | None, knob(None, 1, 10_000, "how many of its layers; None: all")),
        "context": (int, knob(512, 1, 2**20, "tokens it reads at once")),
        "over_latents": (int, knob(1, 1, 2**16, "devices that share the latents")),
        "over_data": (int, knob(1, 1, 2**16, "devices that share the tokens")),
        "bandwidth": (float, knob(10.0, 1e-6, 1e6, "of the link of each device, GB a second")),
    }
    given = vars(parsed(options("PredictOptions", doc="What a training would take.", **more), argv, "predict"))
    machine, model = given.pop("machine"), given.pop("model")
    given["mesh"] = Mesh(given.pop("over_latents"), given.pop("over_data"))
    given["bandwidth"] *= 1e9
    given["machine"] = Machine.load(machine) if machine else None
    found = predict(**given, model=json.loads(Path(model).read_text()) if model else None)
    say(found.to_json(), as_json, f"{found!r}\n{found.table.to_string(index=False, float_format='{:.3g}'.format)}")
