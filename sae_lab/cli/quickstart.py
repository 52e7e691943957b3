"""The first two minutes: an SAE of the embedded Llama, its numbers, what its latents mean, and one steered text."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..concepts import Concepts, recover
from ..evaluation import Evaluation, evaluate
from ..harvest import activations
from ..knobs import Checked, knob
from ..models import LM, load_model
from ..plots import curves
from ..report import Section, Tokens, write_page
from ..runs import Run, fresh
from ..saes import SAE, build
from ..steering import SteeringExperiment, experiment, target
from ..training import train
from ..windows import Contexts, contexts
from .progress import note, watched

SHOWN = 8  # concepts whose contexts the report shows


@dataclass(frozen=True)
class Quickstart(Checked):
    """The knobs of the first run."""

    model: str = knob("tiny", help="the model: tiny, a folder or a hub name; it reads the labelled world")
    site: str = knob("L1R", help="where in it: L1R is the residual stream after layer 1, the second")
    tokens: int = knob(1_000_000, 10_000, 10**10, "tokens to train on")
    d_sae: int = knob(2048, 16, 2**20, "latents")
    k: int = knob(32, 1, 512, "latents per token, on average")
    batch: int = knob(1024, 16, 2**20, "tokens per step: small, so that a short run has steps enough")
    lr: float | None = knob(2e-3, 1e-7, 1.0, "peak learning rate; None: the paper's, which is for long runs")
    context: int = knob(256, 16, 2**20, "tokens in a row: short ones are read quicker")
    held_out: int = knob(200_000, 2_000, 10**9, "test tokens to measure on")
    folder: str = knob("runs/quickstart", help="run folder; a number is added where it is taken")
    seed: int = knob(0, 0, 2**31 - 1, "seed of weights, training text and training")


@dataclass(frozen=True)
class Findings:
    """What the first run found."""

    run: Run
    sae: SAE
    evaluation: Evaluation
    concepts: Concepts
    steering: SteeringExperiment
    contexts: Contexts
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        c = self.sae.cfg
        return {
            "run": str(self.run.folder),
            "report": str(self.run.folder / "report.html"),
            "sae": {"variant": self.sae.name, "k": c.k, "d_sae": c.d_sae, "d_in": c.d_in} | self.evaluation.about,
            "evaluation": self.evaluation.to_json(),
            "concepts": self.concepts.to_json(),
            "steering": self.steering.to_json(),
            "seconds": self.seconds,
        }


def quickstart(options: Quickstart) -> Findings:
    """Trains, measures, steers and writes the report."""
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        lm = load_model(options.model)
        source = activations(lm, options.site, text="world", seed=options.seed, context=options.context)
        sae = build("batchtopk", d_in=lm.d_in(options.site), d_sae=options.d_sae, k=options.k, seed=options.seed)
        sae.to(lm.device)
    run = Run(options.folder)
    if run.trained or run.alive:
        run = Run(fresh(options.folder))
    with timed(seconds, "train"):
        knobs = {"tokens": options.tokens, "batch": options.batch, "lr": options.lr, "seed": options.seed}
        for _ in watched(train(sae, source, run=run.folder, about={"model": options.model}, **knobs), "train"):
            pass
    with timed(seconds, "evaluate"):
        evaluation = evaluate(sae, lm, tokens=options.held_out, spliced=min(16_384, options.held_out))
        run.write_eval(evaluation.to_json())
        note(repr(evaluation))
    with timed(seconds, "concepts"):
        concepts = recover(sae, lm, tokens=min(65_536, options.held_out), context=options.context)
        note(repr(concepts))
        best = concepts.named.head(SHOWN)
        shown = contexts(sae, lm, list(dict.fromkeys(best.latent)), n=3, tokens=32_768)
    with timed(seconds, "steer"):
        aim = target(sae, lm, concepts.table)
        steering = experiment(sae, lm, int(aim.latent), aim.concept)
        note(repr(steering))
    found = Findings(run, sae, evaluation, concepts, steering, shown, seconds)
    with timed(seconds, "report"):
        write_page(run.folder / "report.html", "A first sparse autoencoder", subtitle(found, lm), sections(found))
    note(f"{run.folder / 'report.html'} after {sum(seconds.values()):.0f} s")
    return found


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 2)


def subtitle(found: Findings, lm: LM) -> str:
    c, a = found.sae.cfg, found.evaluation.about
    return (
        f"{found.sae.name}, {c.d_sae:,} latents, k {c.k}, trained at {a['site']} of {lm.name} "
        f"(d_model {lm.d_model}) in {found.seconds['train']:.0f} s; measured on {a['tokens']:,} test tokens."
    )


def sections(found: Findings) -> list[Section]:
    """The report, from training curves to steered texts."""
    best, steering = found.concepts.named.head(SHOWN), found.steering
    about = f"{steering.concept}, latent {steering.latent}, strength x{steering.strength:g} of its typical activation"
    return [
        Section("Numbers", "Held-out text; intervals are 95%, over documents.", (found.evaluation.table,)),
        Section(
            "Training",
            "Fraction of variance unexplained, latents per token and dead latents.",
            (curves(found.run.log),),
        ),
        Section(
            "What latents mean",
            "The best latent per concept, chosen with its threshold on other text; mean F1 and the best concepts.",
            (found.concepts.means, found.concepts.figure),
        ),
        *(
            Section(row.concept, f"latent {row.latent}, F1 {row.latents:.2f}", marked(found.contexts, int(row.latent)))
            for row in best.itertuples()
        ),
        Section("How often latents fire", "Density of each latent on test text.", (found.evaluation.figure,)),
        Section(
            "Steering",
            f"{about}: share of {steering.about['prompts']} texts in which the concept is recognised.",
            (steering.table, steering.figure, *written(steering)),
        ),
    ]


def marked(shown: Contexts, latent: int) -> tuple[Tokens, ...]:
    top = max((max(c.values) for c in shown[latent]), default=1.0)
    return tuple(Tokens((f"… {c.tokens[0].lstrip()}", *c.tokens[1:]), c.values, top) for c in shown[latent])


def written(steering: SteeringExperiment, n: int = 2) -> Iterator[Tokens]:
    """The first texts of each edit at the chosen strength; what the model wrote is shaded, the prompt is not."""
    for (edit, strength), rows in steering.texts.items():
        if strength in (0.0, steering.strength):
            for prompt, new in rows[:n]:
                yield Tokens((prompt, new), (0.0, 0.25), 1.0, label=edit)
