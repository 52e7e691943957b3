"""What commonly goes wrong in training, each told from the log: a check returns (severity, evidence, remedy), or None.

The bounds lie between what healthy and really spoilt little runs show; tests/test_diagnosis.py trains both.
"""

import math
from collections.abc import Callable

from .case import FEW, Case, Unchecked, number, smooth

Complaint = tuple[str, str, str] | None  # severity, evidence, remedy
CHECKS: dict[str, Callable[[Case], Complaint]] = {}  # what is looked for -> who looks
PENALTIES = ("l1_weight", "l0_weight", "sparsity_weight")  # knobs that price sparsity, where no k decides


def check(name: str) -> Callable:
    """Adds a check; `name` is what it looks for."""

    def add(function: Callable[[Case], Complaint]) -> Callable[[Case], Complaint]:
        CHECKS[name] = function
        return function

    return add


@check("no learning")
def unlearned(case: Case) -> Complaint:
    rows, error = case.course(0.25), case.error
    if case.learned:
        return None
    travel, way = distance(case), math.sqrt(max(1.0, case.late("vitals.power", 1.0)) / case.cfg["d_in"])
    told = f"log.jsonl: {error} is {case.late(error):.3g} of late and was {number(rows[0], error):.3g} at step "
    told += f"{rows[0]['step']:,}; the mean alone gives an fvu of 1. The learning rates of all steps so far add up to "
    told += (
        f"{travel:.2g}, as far as Adam can move a weight; a coordinate of an activation or of a unit row is {way:.2g}"
    )
    first = "But mend input scale and collapse first, if they are found too."
    if travel < way:
        return "critical", told, f"Raise lr from {case.config['lr']:g}, or tokens, or lower batch: more steps. {first}"
    return "critical", told, f"{lower_lr(case)} {first}"


@check("divergence")
def diverging(case: Case) -> Complaint:
    rows = case.course(0.25)
    if case.error != "fvu":
        raise Unchecked(
            "no term of its loss is the reconstruction's error, and the whole loss also grows with its penalty"
        )
    course = smooth([row["fvu"] for row in rows])
    best = min(range(len(course)), key=course.__getitem__)
    late, l0 = case.late("fvu"), case.late("l0")
    sparser = l0 < 0.8 * rows[best]["l0"]  # an error that was asked for
    if sparser or late < 0.02 or late < 1.5 * course[best]:
        return None
    told = f"log.jsonl: fvu was {course[best]:.3g} at step {rows[best]['step']:,} and is {late:.3g} of late, "
    return "critical", f"{told}with L0 {rows[best]['l0']:.3g} then and {l0:.3g} now", lower_lr(case)


@check("loss spikes")
def spikes(case: Case) -> Complaint:
    rows = [row for row in case.course(0.25) if row["step"] > 0.2 * case.steps]
    loss = [number(row, "loss") for row in rows]
    usual = smooth(loss)
    high = [row["step"] for row, now, then in zip(rows, loss, usual) if now > 2 * then]
    if len(high) < max(2, 0.02 * len(rows)):
        return None
    worst = max(now / max(then, 1e-12) for now, then in zip(loss, usual))
    told = f"log.jsonl: at {len(high)} of {len(rows)} measured steps the loss is over twice its neighbours', up to "
    told += f"{worst:.3g} times, first at step {high[0]:,}"
    return "warning", told, f"{lower_lr(case)} But if loud tokens are found too, they are the cause."


@check("collapse")
def collapsed(case: Case) -> Complaint:
    rows, late = case.course(0.25), case.late("l0")
    if late >= 0.5 * min(1.0, case.budget or 1.0):
        return None
    told = f"log.jsonl: hardly anything fires: L0 is {late:.2g} of late and was {rows[0]['l0']:.3g} at step "
    cheaper = f"Lower {price}, which is {case.cfg[price]}, ten times. " if (price := penalty(case)) else ""
    return "critical", f"{told}{rows[0]['step']}", cheaper + ("" if cheaper and not case.hasty else lower_lr(case))


@check("idle penalty")
def idle(case: Case) -> Complaint:
    rows, price = case.course(0.25), penalty(case)
    if not price or case.cfg.get("target_l0"):
        return None
    late, first, d_in = case.late("l0"), rows[0]["l0"], case.cfg["d_in"]
    told = (
        f"config.json: {price} is {case.cfg[price]}; log.jsonl: L0 is {late:.3g} of late and was {first:.3g} at step "
    )
    told += f"{rows[0]['step']}, in {d_in} dimensions and {case.cfg['d_sae']:,} latents"
    if case.cfg[price] == 0:
        return "critical", told, f"Raise {price} from 0: the variant's default is a start."
    falling = case.done < 0.95 and late < 0.95 * rows[int(0.7 * len(rows))]["l0"]
    if case.learned and not falling and late > min(d_in, max(0.9 * first, d_in / 4)):
        return "warning", told, f"Raise {price} three times, and again until L0 falls; or give a target_l0."
    return None


@check("missed L0")
def off_budget(case: Case) -> Complaint:
    asked, target = case.budget, case.cfg.get("target_l0")
    if not asked:
        case.course()
        return None
    case.course(0.5)
    late, leeway, where = case.late("l0"), 0.05 if target else 0.1, "log.jsonl: L0 is {:.3g} of late"
    if target and "l0" in case.run.eval:  # a variant may switch latents off in training alone
        late, where = case.run.eval["l0"]["value"], "eval.json: L0 is {:.3g}"
    early = case.done < 0.95 and (target or late > asked)  # a controller or an annealing is still at it
    if early or abs(late / asked - 1) <= leeway or not case.learned:
        return None
    told = f"config.json: {'target_l0' if target else 'k'} is {asked:g}; {where.format(late)}"
    if target:
        return "warning", told, "Train for more tokens, or begin nearer to it: the penalty was still on its way."
    why = "; no more latents than that are positive" if late < asked else ""
    return "warning", told + why, f"{'Lower' if late < asked else 'Raise'} k to about {max(late, 1):.0f}."


@check("dead latents")
def dead(case: Case) -> Complaint:
    last, train, d_sae = case.course(need=1)[-1], case.config["train"], case.cfg["d_sae"]
    silence = train["dead_after"] or max(1, min(10_000_000, train["tokens"] // 10))
    share = last["dead"] / d_sae
    told = (
        f"log.jsonl: {last['dead']:,} of {d_sae:,} latents were silent for {silence:,} tokens at step {last['step']:,}"
    )
    measured, tokens = case.run.eval.get("dead", {}).get("value", 0.0), case.run.eval.get("about", {}).get("tokens", 0)
    if tokens >= 200_000 and measured > share:  # on fewer tokens rare latents look dead
        share, told = measured, f"eval.json: {measured:.1%} of the latents never fire on {tokens:,} held-out tokens"
    if share <= 0.1:
        return None
    return "critical" if share > 0.5 else "warning", told, revive(case)


@check("input scale")
def scale(case: Case) -> Complaint:
    wanted, _ = case.variant.recipe.scaling, case.course(need=1)
    if wanted == "none":
        return None
    power, due = case.late("vitals.power"), float(case.cfg["d_in"]) if wanted == "sqrt_d" else 1.0
    if 0.1 < power / due < 10:
        return None
    asked = case.config["train"]["scaling"] or wanted
    told = f"log.jsonl: the mean squared norm of the scaled activations is {power:.3g}, not {due:g} as the recipe's "
    told += f"{wanted} makes it; config.json: scaling is {asked!r}, scale {case.config['scale']:.3g}"
    remedy = "The scale was measured on the first tokens, which are not like these: shuffle the text, or clean it."
    if asked != wanted:
        remedy = f"Leave scaling unset, which means {wanted!r}: penalties, thresholds and rates are meant for that."
    return "warning" if 0.01 < power / due < 100 else "critical", told, remedy


@check("loud tokens")
def loud(case: Case) -> Complaint:
    case.course(need=1)
    share = case.late("vitals.loudest")
    if share <= 0.5:
        return None
    told = f"log.jsonl: one token in a hundred holds {share:.0%} of the activations' variance, as a BOS or another "
    remedy = (
        "Find them by the norms of lm.read(...). Tokens that the tokenizer calls special are left out already: make "
    )
    return (
        "warning",
        told + "attention sink does",
        remedy + "these special too, clean the text, or choose another layer.",
    )


@check("dominant latents")
def dominant(case: Case) -> Complaint:
    case.course(0.25)
    names, l0, d_sae = ("strongest", "densest", "dense"), case.late("l0"), case.cfg["d_sae"]
    strongest, densest, dense = (case.late(f"vitals.{name}") for name in names)
    told = f"log.jsonl: one latent holds {strongest:.0%} of the latents' energy; the densest fires on {densest:.0%} of "
    told += f"tokens, where the mean is {l0 / d_sae:.1%}; those on more than half of the tokens have {dense:.0%} of L0"
    aside = "The activations have a large part that they all share, and b_dec holds but a constant: "
    if (strongest > 0.3 and l0 >= 2) or (dense > 0.5 and l0 < 0.25 * d_sae):
        faster = f" {lower_lr(case)}" if case.hasty else ""
        return "warning", told, f"{aside}look at what these fire on, and take it out of text or layer.{faster}"
    if densest > 0.95 and l0 < 0.02 * d_sae:
        return "note", told, f"{aside}leave that latent out of what you say about features."
    return None


@check("slowdown")
def slower(case: Case) -> Complaint:
    rows = case.course(need=3 * FEW)
    rates = [row["rate"] for row in rows]
    usual, late = sorted(rates)[len(rates) // 2], sorted(rates[-5:])[2]
    seconds = sum((b["tokens"] - a["tokens"]) / b["rate"] for a, b in zip(rows[-6:], rows[-5:]))
    if late > usual / 3 or seconds < 60:
        return None
    told = f"log.jsonl: {late:,.0f} tokens a second over the last five rows, {usual:,.0f} usually"
    return "warning", told, "Look for other processes, for swapping, for a slow disk or network: no knob does this."


def distance(case: Case) -> float:
    """The learning rates of all steps so far, summed: between two measured steps they are taken as the later's."""
    steps = [0, *(row["step"] for row in case.rows)]
    return sum((after - before) * row["lr"] for before, after, row in zip(steps, steps[1:], case.rows))


def penalty(case: Case) -> str | None:
    """The knob that prices sparsity, where no k decides."""
    return None if "k" in case.cfg else next((name for name in PENALTIES if name in case.cfg), None)


def lower_lr(case: Case) -> str:
    peak, own = case.config["lr"], case.own_lr
    return f"Lower lr from {peak:g}" + (
        f": the recipe's is {own:.2g}." if own and own < peak else f" to {peak / 3:.2g}."
    )


def revive(case: Case) -> str:
    """What keeps latents alive, in the order in which to try it."""
    said, price = [], penalty(case)
    if case.cfg.get("aux_weight") == 0 and "k" in case.cfg:
        said.append("Raise aux_weight from 0 to 0.03.")
    if case.hasty:
        said.append(lower_lr(case))
    if price and not case.cfg.get("target_l0") and case.late("l0") < case.cfg["d_in"] / 2:
        said.append(f"Lower {price} from {case.cfg[price]}.")
    return " ".join([*said, "Raise tokens, or lower d_sae."])
