"""The command line: `sae-lab <verb> ...`. Verbs load on use; mistakes end in one clear line, never a traceback."""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

VERBS = {
    "quickstart": "train an SAE on the embedded Llama, measure it, steer with it, write report.html",
    "train": "train one SAE: sae-lab train VARIANT [options]",
    "sweep": "train variants x k x d_sae x seeds on one stream and compare them at equal L0",
    "suite": "what a suite file says: suite plan|run|show FILE; or a sweep and its studies: suite --variants ...",
    "cache": "keep activations on a disk, for train --cache: sae-lab cache FOLDER --sites L2R --tokens 1000000",
    "evaluate": "measure a trained SAE on held-out text, several at once, by position, on a chat model: evaluate RUN",
    "agree": "whether matched latents of two seeds mean the same: sae-lab agree RUN RUN",
    "split": "what a narrow SAE's latents became in a wider one: sae-lab split RUN RUN [--null RUN RUN]",
    "geometry": "map the directions of several SAEs: sae-lab geometry RUN ...",
    "compare": "what SAEs of one site have in common: sae-lab compare RUN RUN ...",
    "contexts": "what each latent fires on, kept in the run: sae-lab contexts RUN --latents 12 40",
    "explain": "what latents fire on, in words, and how good those are: sae-lab explain RUN --latents 12 40",
    "validity": "what scores of latents are worth against true concepts: sae-lab validity RUN [--peers RUN RUN]",
    "attribute": "what each latent does to a prompt's next token: sae-lab attribute RUN PROMPT --of A B",
    "steer": "push latents while the model writes: sae-lab steer RUN PROMPT --latent 12 --mode add --strength 4",
    "absorption": "how often a child's latent silences its parent's: sae-lab absorption RUN [--letters prompt]",
    "probe": "how well a few latents tell labels: sae-lab probe RUN [--labels FILE.csv]",
    "verify": "whether a loaded SAE does what its checkpoint says: sae-lab verify FOLDER --model MODEL",
    "convert": "write an SAE in another tool's format: sae-lab convert RUN FOLDER --format saelens",
    "push": "put an SAE on the Hugging Face hub, with a card: sae-lab push RUN ORG/NAME",
    "doctor": "what went wrong in a run, by its record, and what to do about it: sae-lab doctor RUN",
    "cite": "BibTeX of what a run used: sae-lab cite RUN",
    "runs": "list the runs of a folder",
    "gauge": "what this machine takes for small things, for predict: sae-lab gauge machine.json",
    "predict": "time, memory and disk of a training, worked out: sae-lab predict topk --d-in 4096 --d-sae 32768",
    "bench": "time this machine: sae-lab bench step|scaling|harvest|training",
    "variants": "list the variants with their papers",
    "ps": "list the runs with their processes",
    "pause": "pause a detached run",
    "resume": "let a paused run go on, or start a stopped or killed one again from its last checkpoint",
    "stop": "checkpoint a run and end its process",
}
STUDIES = ("evaluate", "agree", "split", "geometry", "compare", "contexts", "attribute", "steer", "absorption", "probe")
# which file a verb is in; the others are in `commands`
ROOM = dict.fromkeys((*STUDIES, "doctor"), "studies") | dict.fromkeys(("explain", "validity"), "words")
ROOM |= dict.fromkeys(("verify", "convert", "push"), "shelf") | {"cache": "caches", "suite": "suites"}
ROOM |= dict.fromkeys(("gauge", "predict"), "plans")
USAGE = "usage: sae-lab VERB [options]; sae-lab VERB --help says more\n\n" + "\n".join(
    f"  {verb:<12}{what}" for verb, what in VERBS.items()
)
USAGE += "\n\nBegin with: sae-lab quickstart. Every verb takes --json."


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] == "--version":
        print(metadata.version("sae-lab"))
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        print(f"sae-lab: no verb {verb!r}. Known: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    as_json, room = "--json" in rest, ROOM.get(verb, "commands")
    return guarded(
        lambda: getattr(import_module(f"{__name__}.{room}"), f"run_{verb}")([a for a in rest if a != "--json"], as_json)
    )


def guarded(command: Callable[[], Any]) -> int:
    """A command's exit status; what a user can cause is said in one line on stderr.

    SAE_LAB_DEBUG=1 shows the traceback as well.
    """
    try:
        command()
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("SAE_LAB_DEBUG"):
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"sae-lab: {said}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | KeyError | TypeError | FileNotFoundError) else 1
    return 0


def say(result: dict[str, Any] | list, as_json: bool, shown: str) -> None:
    """Prints one JSON object for machines, or the text for people."""
    print(json.dumps(result, ensure_ascii=False) if as_json else shown)
