"""python -m sae_lab.tiny.make tokenizer | train | export | chat | check

tokenizer  learns the byte-level BPE from world text and writes it into sae_lab/tiny/model
train      trains or continues the run in --run; at its end exports the weights and checks them
export     exports the newest state of the run, finished or not
chat       fine-tunes the chat sibling from the exported weights and writes what differs
check      measures the exported weights against the generator's own log-probability

A run ends after --tokens, or --minutes from now, or at once with --decay-now; its learning rate falls before it does.
SIGTERM saves it, to be continued by the same command.
--smoke is a tiny run of the same code on one thread, in a folder of its own, that writes nothing into the package.
"""

import argparse
import json
import signal
import tempfile
import time
from pathlib import Path

import torch

from sae_lab import tiny

from . import bpe
from .answers import NEEDED, obedience
from .chat import chat
from .export import export, measure, report
from .run import End, Plan, Run, training
from .stream import training_documents, world_documents

SMOKE = Plan(d_model=64, layers=2, heads=2, kv_heads=1, mlp=128, rows=2, warmup=10)


def arguments(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sae_lab.tiny.make", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("verb", choices=["tokenizer", "train", "export", "chat", "check"])
    parser.add_argument("--run", type=Path, default=Path.home() / ".cache/sae_lab/tiny-run", help="the run's folder")
    parser.add_argument("--out", type=Path, help="where the result goes; in the package unless given")
    parser.add_argument("--tokens", type=int, help="train: end after so many; chat, check: use so many")
    parser.add_argument("--before", type=Path, help="chat: the folder of a sibling to train on")
    parser.add_argument("--minutes", type=float, help="train: end so many minutes from now")
    parser.add_argument("--decay-now", action="store_true", help="train: begin the end of the run at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--replicas", type=int, default=2, help="processes of one thread that share a step; 0: none")
    parser.add_argument("--producers", type=int, default=1, help="processes that make text; a GPU wants 8")
    parser.add_argument("--eager", action="store_true", help="train without compiling (no C compiler needed)")
    parser.add_argument("--smoke", action="store_true", help="a minute's run of the same code")
    return parser.parse_args(argv)


def tokenizer(args) -> None:
    """Learns the tokenizer from the first texts of the train stream, languages and kinds as they come."""
    blocks = range(4 if args.smoke else 60)
    texts = [text for i in blocks for text, _ in world_documents(i, 500, 0, "train")]
    print(bpe.save(texts, args.out or tiny.FOLDERS["tiny"]))


def train(args) -> None:
    """Trains, exports and checks."""
    words = (args.out if args.smoke else tiny.FOLDERS["tiny"]) / "tokenizer.json"
    run = Run(SMOKE if args.smoke else Plan(), args.run, words, training_documents, args.device)
    end = End(args.tokens, args.minutes, args.decay_now)
    signal.signal(signal.SIGTERM, lambda *_: setattr(end, "stop", True))
    for loss, pace in training(run, end, args.replicas, not args.eager, args.producers):
        place = run.place
        print(
            f"step {place.step} of {place.last or '?'}  {place.tokens / 1e6:.2f}M tokens  loss {loss:.4f}  "
            f"lr x {run.factor():.2f}  {pace:.0f} tokens/s  {place.seconds / 60:.1f} min  {time.strftime('%H:%M:%S')}",
            flush=True,
        )
    if not end.stop:
        export(run, args.out or tiny.FOLDERS["tiny"], 20_000 if args.smoke else 400_000)


def main(argv=None) -> None:
    """Runs one verb."""
    args = arguments(argv)
    if args.smoke:
        torch.set_num_threads(1)
        args.run = Path(tempfile.mkdtemp(prefix="tiny-smoke-")) if args.run == arguments(["train"]).run else args.run
        args.out, args.eager, args.replicas = args.out or args.run, True, 0
        args.tokens = args.tokens or 200_000
        if args.verb == "train" and not (args.out / "tokenizer.json").exists():
            tokenizer(args)
    if args.device != "cpu":
        args.replicas = 0
    if args.replicas:
        torch.set_num_threads(1)  # this process only steps: the replicas have the cores
    if args.verb == "tokenizer":
        tokenizer(args)
    elif args.verb == "train":
        train(args)
    elif args.verb == "export":
        run = Run(Plan(), args.run, tiny.FOLDERS["tiny"] / "tokenizer.json", training_documents)
        if not run.states():
            raise SystemExit(f"{args.run} holds no state of a run: nothing to export. Give its folder with --run.")
        export(run, args.out or tiny.FOLDERS["tiny"], args.tokens or 100_000)
    elif args.verb == "chat":
        folder = args.out or tiny.FOLDERS["tiny-chat"]
        chat(args.tokens, folder, args.replicas, not args.eager, args.device, args.before)
        if not args.out:
            obey(folder / "training.json")
    else:
        print(report(measure(args.out or tiny.FOLDERS["tiny"], args.tokens or 400_000)))
        if not args.out and (tiny.FOLDERS["tiny-chat"] / "config.json").exists():
            obey(None)


def obey(record: Path | None) -> None:
    """Prints how often the sibling does as asked, and writes it into its record."""
    found = obedience()
    for group, one in found.items():
        print(f"chat: {group} as asked in {one['share']:.1%} of {one['n']} (wanted {NEEDED[group]:.0%})", flush=True)
    if record:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"as_asked": found}) + "\n")


if __name__ == "__main__":
    main()
