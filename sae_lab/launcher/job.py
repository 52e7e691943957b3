"""What a training of its own is asked to do, and the doing of it."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..knobs import Checked, knob
from ..runs import Run, fresh
from ..saes import REGISTRY, build, configured, variant
from ..sites import Site
from ..training import Step, TrainConfig, train
from ..training.loop import SAMPLE

BUFFER = 65_536  # tokens in the ring of a stream
LATER = ("buffer", "remote", "deadline", "gpus", "slices", "nodes", "rendezvous")  # said only where it is not as usual
GLANCE = 2048  # tokens on which a snapshot is spliced in
REMOTE = "a server that has the model: ndif, or an address; None: it is loaded here"


@dataclass(frozen=True)
class Job(Checked):
    """What to train on what: all that a detached process needs to know."""

    variant: str = knob("batchtopk", help="which SAE")
    model: str = knob("tiny", help="the model: tiny, a folder or a hub name; planted: made-up activations, no model")
    remote: str | None = knob(None, help=REMOTE)
    site: str = knob("L2R", help="where in it: L2R is the residual stream after layer 2, counted from 0: the third")
    text: str = knob("world", help="what it reads: world, a file, or a dataset's name")
    column: str | None = knob(None, help="the field of the text that is read; None: found where only one holds strings")
    device: str | None = knob(None, help="where to compute; None: a GPU if there is one")
    dtype: str | None = knob(None, help="precision of the model; None: as it is stored, float32 on a CPU")
    deadline: float = knob(300.0, 1.0, 1e6, "seconds that a server has for one request, before it is tried again")
    gpus: int = knob(1, 1, 4096, "devices of this machine that share one SAE; with device=cpu, processes")
    slices: int | None = knob(
        None, 1, 4096, "how many of them share its latents, the rest its tokens; None: all of them"
    )
    nodes: int = knob(1, 1, 4096, "machines that share it: the same job is started on each, with run= where all see it")
    rendezvous: str | None = knob(None, help="HOST:PORT of the first machine, where there are several")
    context: int | None = knob(None, 8, 2**20, "tokens the model reads at once; None: what suits it")
    buffer: int = knob(BUFFER, 2, 2**26, "tokens that the stream shuffles over, and holds")
    seed: int = knob(0, 0, 2**31 - 1, "seed of the SAE")
    text_seed: int = knob(0, 0, 2**31 - 1, "seed of the stream of text")
    cache: str | None = knob(None, help="a cache of activations to train on, so that the model reads no text again")
    run: str | None = knob(None, help="run folder; None: a free name in runs/")
    evaluation: int = knob(200_000, 0, 10**10, "held-out tokens to measure the SAE on at the end; 0: none")
    sae: dict = field(default_factory=dict, metadata={"help": "the variant's own knobs: d_sae, k ..."})
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"help": "the knobs of the training"})

    @classmethod
    def of(cls, **knobs: Any) -> "Job":
        """A job from knobs of its own, of TrainConfig and of the variant, told apart by their names."""
        return cls().but(**knobs)

    def but(self, **knobs: Any) -> "Job":
        """This job with other values of some knobs, as `of` takes them."""
        own, loop = {f.name for f in fields(Job)} - {"sae", "train"}, {f.name for f in fields(TrainConfig)}
        mine = {n: str(value) if isinstance(value, Path) else value for n, value in knobs.items() if n in own}
        train = {name: value for name, value in knobs.items() if name in loop}
        sae = {name: value for name, value in knobs.items() if name not in own | loop}
        return replace(self, **mine, train=replace(self.train, **train), sae=self.sae | sae)

    @property
    def own(self) -> dict[str, Any]:
        """The variant's own knobs; at a site that is read but not written, it transcodes."""
        return ({"transcode": True} if Site(self.site).target != self.site else {}) | self.sae

    def to_json(self) -> dict[str, Any]:
        return {n: v for n, v in asdict(self).items() if n not in LATER or v != getattr(type(self), n)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Job":
        return cls(**{**saved, "train": TrainConfig(**saved["train"])})


def run_job(job: Job) -> Iterator[Step]:
    """Trains what a job describes, step by step, and measures it at the end: into eval.json of its run.

    A run that was cut short goes on where its newest checkpoint stands.

    Raises:
        ValueError, KeyError, TypeError, FileNotFoundError: for what a job can ask wrongly; the message says what.
    """
    from ..reading import held_out

    run = Run(job.run or fresh(f"runs/{job.variant}-{job.site}"))
    lm = reader(job)
    if lm and job.evaluation:
        held_out(lm, job.text, "test", 0, column=job.column).block(0)  # a text too short for it fails now
    if job.gpus * job.nodes > 1:
        from .elastic import shared

        steps = shared(replace(job, run=str(run.folder.absolute())))
    else:
        source = stream(job, lm, variant(job.variant).needs)
        sae = build(job.variant, d_in=source.d_in(job.site), seed=job.seed, **job.own)
        steps = train(sae.to(place(job, lm)) if lm else sae, source, run=run.folder, config=job.train)
    for step in steps:
        yield step
        if lm and job.evaluation:
            _recover(run, lm, job)
    if lm and job.evaluation and run.trained and not run.eval:
        from ..evaluation import evaluate

        run.mark("evaluating")
        try:
            run.write_eval(evaluate(run.sae.to(place(job, lm)), lm, tokens=job.evaluation).to_json())
        finally:
            run.mark("done")


def _recover(run: Run, lm: Any, job: Job) -> None:
    """Measures CE recovered of snapshots that are new, on a little text of the validation split."""
    from ..evaluation import evaluate

    for step in (step for step in run.snapshots if 16 * step >= job.train.steps):
        run.study(
            f"recovered/{step:08d}",
            lambda step=step: {
                "step": step,
                "tokens": step * job.train.batch,
                "ce_recovered": evaluate(
                    run.snapshot(step).to(place(job, lm)), lm, split="validation", tokens=GLANCE, spliced=GLANCE
                ).ce_recovered.value,
            },
        )


def devices() -> list[str]:
    """Where this machine can train."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def reader(job: Job) -> Any:
    """The model of a job; none for planted activations."""
    if job.model == "planted":
        return None
    from ..models import Server, load_model

    remote = Server(job.remote, job.deadline) if job.remote else False
    return load_model(job.model, device=None if remote else job.device, dtype=job.dtype, remote=remote)


def place(job: Job, lm: Any) -> torch.device:
    """Where a job's SAE is: beside its model, if that is here."""
    if lm and not lm.remote:
        return lm.device
    usual = "cuda" if lm and torch.cuda.is_available() else "cpu"
    return torch.device(job.device or usual)


def stream(job: Job, lm: Any, needs: Set[str], sites: Sequence[str] = ()) -> Any:
    """The source of a job's activations, at its site or those named, from its beginning, with what SAEs need."""
    sites = list(sites or [job.site])
    if job.model == "planted":
        from ..toys import Planted

        return Planted(site=job.site, seed=job.text_seed)
    reading = {"text": job.text, "column": job.column, "seed": job.text_seed, "context": job.context}
    if job.cache:
        from ..caching import Cached, fill

        tokens = _served(job)
        if job.remote and tokens is None:
            tokens = job.train.tokens + job.train.calibration_tokens + max(job.train.sample or 0, SAMPLE) + job.buffer
            fill(lm, sites, tokens, job.cache, Run(job.run) if job.run else None, needs=needs & {"grad"}, **reading)
        return Cached(job.cache, sites, tokens=tokens, buffer=job.buffer, device=place(job, lm))
    from ..harvest import GIVEN, activations

    return activations(lm, sites, needs=needs & GIVEN, buffer=job.buffer, **reading)


def _served(job: Job) -> int | None:
    """How many tokens of its cache a job was trained on before it was cut short: the cache may have grown since."""
    if job.run is None or not Run(job.run).exists:
        return None
    about = Run(job.run).config.get("source", {})
    return about.get("tokens") if about.get("cache") else None


def checked(job: Job, detached: bool = True) -> Any:
    """The settings of the job's SAE, with a d_in that is made up: the model will say it.

    Raises:
        ValueError, TypeError, KeyError: for what a job can ask wrongly; for a variant that only this process knows.
    """
    if "d_in" in job.sae:
        raise TypeError("d_in is the model's to say: leave it out.")
    if job.cache and "patched_kl" in variant(job.variant).needs:
        raise ValueError(f"cache={job.cache!r} has no model, which {job.variant!r} needs at every step: leave it out.")
    if job.remote and not job.cache:
        raise ValueError(
            f"remote={job.remote!r}: what a server reads is kept, so that no token is paid for twice. Give a folder "
            "for it, cache=..."
        )
    _check_devices(job)
    settings = configured(job.variant, **{"d_in": (job.sae.get("d_sae") or 2**20) // 2 or 1, **job.own})
    if detached and variant(job.variant).__module__ == "__main__":
        raise ValueError(
            f"{job.variant!r} is defined in this notebook, which a process of its own does not see: use train()."
        )
    return settings


def _check_devices(job: Job) -> None:
    """Raises:
    ValueError: for devices that there are not, or among which the SAE or a batch cannot be shared out.
    """
    world = job.gpus * job.nodes
    if world == 1:
        return
    many = f"gpus={job.gpus}" if job.gpus > 1 else f"nodes={job.nodes}"
    if job.device != "cpu" and job.gpus >= len(devices()):
        raise ValueError(
            f'gpus={job.gpus}, but this machine has {len(devices()) - 1}. device="cpu" makes them processes of the CPU.'
        )
    if job.nodes > 1 and not job.rendezvous:
        raise ValueError(f"nodes={job.nodes} have to find each other: rendezvous='HOST:PORT' of the first of them.")
    if job.remote:
        raise ValueError(f"{many} read a cache that is there: fill it first, `sae-lab cache --remote`.")
    slices = job.slices or world
    if world % slices:
        raise ValueError(f"slices={slices} does not divide {world} devices: take a divisor of {world}.")
    if not variant(job.variant).in_slices:
        known = ", ".join(sorted(name for name, made in REGISTRY.items() if made.in_slices))
        raise ValueError(f"{many}: {job.variant!r} is trained on one device. On several: {known}.")
    if job.train.batch % (world // slices):
        raise ValueError(f"batch={job.train.batch} cannot be shared out among {world // slices}: take a multiple.")
