"""What commonly goes wrong in training, each told from the log: a check returns (severity, evidence, remedy), or None.

The bounds lie between what healthy and really spoilt little runs show; tests/test_diagnosis.py trains both.
"""

import math
from collections.abc import Callable

from .case import FEW, Case, number, smooth

Complaint = tuple[str, str, str] | None  # severity, evidence, remedy
CHECKS: dict[str, Callable[[Case], Complaint]] = {}  # in the order in which they are made


def check(name: str) -> Callable:
    """Adds a check; `name` is what is wrong if it finds something."""

    def add(function: Callable[[Case], Complaint]) -> Callable[[Case], Complaint]:
        CHECKS[name] = function
        return function

    return add


@check("nothing is learned")
def learning(case: Case) -> Complaint:
    rows, late = case.course(0.25), case.late("fvu")
    first = rows[0]["fvu"]
    if late < 0.9 * min(1.0, first):
        return None
    travel, side = distance(case), 1 / math.sqrt(case.cfg["d_in"])
    told = (
        f"log.jsonl: FVU is {late:.3g} of late and was {first:.3g} at step {rows[0]['step']}; 1 is what the mean does. "
    )
    told += f"The learning rates of all steps so far add up to {travel:.2g}, about as far as Adam moves a weight"
    if travel < side:
        told += f"; a coordinate of a unit row is {side:.2g}"
        return "critical", told, f"Raise lr, which is {case.config['lr']:g}, or tokens, or lower batch: more steps."
    return (
        "critical",
        told,
        lower_lr(case) + " Look at the scale and at the price of sparsity first, if they are named.",
    )


@check("the error grows")
def diverging(case: Case) -> Complaint:
    rows = case.course(0.25)
    course = smooth([row["fvu"] for row in rows])
    best = min(range(len(course)), key=course.__getitem__)
    late, l0 = case.late("fvu"), case.late("l0")
    if late < 1.5 * course[best] + 0.01 or l0 < 0.8 * rows[best]["l0"] or late < 0.02:
        return None  # sparser than it was then: an error that was asked for
    told = f"log.jsonl: FVU was {course[best]:.3g} at step {rows[best]['step']:,} and is {late:.3g} of late, "
    return "critical", told + f"with L0 at {rows[best]['l0']:.3g} and {l0:.3g}", lower_lr(case)


@check("the loss jumps")
def spikes(case: Case) -> Complaint:
    rows = [row for row in case.course(0.25) if row["step"] > 0.2 * case.steps]
    loss = [number(row, "loss") for row in rows]
    usual = smooth(loss)
    high = [row["step"] for row, now, then in zip(rows, loss, usual) if now > 2 * then]
    if len(high) < max(2, 0.02 * len(rows)):
        return None
    worst = max(now / max(then, 1e-12) for now, then in zip(loss, usual))
    told = f"log.jsonl: at {len(high)} of {len(rows)} measured steps the loss is over twice its neighbours', "
    told += f"up to {worst:.3g} times, first at step {high[0]:,}"
    return "warning", told, lower_lr(case) + " If a few loud tokens are named as well, they are the cause."


@check("hardly anything fires")
def collapsed(case: Case) -> Complaint:
    rows, late = case.course(0.25), case.late("l0")
    if late >= 0.5 * min(1.0, case.budget or 1.0):
        return None
    told = f"log.jsonl: L0 is {late:.2g} of late and was {rows[0]['l0']:.3g} at step {rows[0]['step']}"
    price = penalty(case)
    return "critical", told, f"Lower {price}, which is {case.cfg[price]:g}, ten times." if price else lower_lr(case)


@check("the price of sparsity does nothing")
def unpriced(case: Case) -> Complaint:
    rows, price = case.course(0.25), penalty(case)
    if not price or case.cfg.get("target_l0"):
        return None
    late, first, d_in = case.late("l0"), rows[0]["l0"], case.cfg["d_in"]
    told = (
        f"config.json: {price} is {case.cfg[price]:g}; log.jsonl: L0 is {late:.3g} of late and was {first:.3g} at step "
    )
    told += f"{rows[0]['step']}, in {d_in} dimensions and {case.cfg['d_sae']} latents"
    if case.cfg[price] == 0:
        return "critical", told, f"Give {price} a value over 0; the variant's own is a start."
    learned = case.late("fvu") < 0.9 * rows[0]["fvu"]
    if late > d_in or (learned and late > max(0.9 * first, d_in / 4)):
        return (
            "warning",
            told,
            f"Raise {price} three times, and again until L0 falls; or give target_l0, if it has that.",
        )
    return None


@check("the L0 asked for is missed")
def off_budget(case: Case) -> Complaint:
    asked, target = case.budget, case.cfg.get("target_l0")
    if not asked:
        return None
    case.course(0.95 if target else 0.5)
    late, leeway = case.late("l0"), 0.05 if target else 0.1
    if abs(late / asked - 1) <= leeway:
        return None
    name = "target_l0" if target else "k"
    told = f"config.json: {name} is {asked:g}; log.jsonl: L0 is {late:.3g} of late"
    if target:
        return "warning", told, "Train for more tokens: the controller was still on its way; or start nearer to it."
    why = " Fewer latents than k are positive: the data has no use for more." if late < asked else ""
    return "warning", told, f"Set k to about {late:.0f}.{why}"


@check("dead latents")
def dead(case: Case) -> Complaint:
    rows = case.course(0.0, need=1)
    d_sae, silence = case.cfg["d_sae"], case.config["train"]["dead_after"]
    share, where = rows[-1]["dead"] / d_sae, f"log.jsonl: {rows[-1]['dead']:,} of {d_sae:,} latents are dead at step "
    where += f"{rows[-1]['step']:,}, silent for {silence or 'a tenth of the run or 10 million'} tokens"
    measured = case.run.eval.get("dead", {}).get("value", 0.0)
    tokens = case.run.eval.get("about", {}).get("tokens", 0)
    if tokens >= 200_000 and measured > share:  # fewer tokens make rare latents look dead
        share, where = measured, f"eval.json: {measured:.1%} of the latents never fire on {tokens:,} held-out tokens"
    if share <= 0.1:
        return None
    return "critical" if share > 0.5 else "warning", where, " ".join(revive(case))


@check("the input's scale is off")
def scale(case: Case) -> Complaint:
    wanted = case.recipe.scaling
    case.course(0.0, need=1)
    if wanted == "none":
        return None
    power, due = case.late("vitals.power"), float(case.cfg["d_in"]) if wanted == "sqrt_d" else 1.0
    if 0.1 < power / due < 10:
        return None
    told = (
        f"log.jsonl: the scaled activations have mean square {power:.3g}, and the recipe's {wanted} makes it {due:g}; "
    )
    asked = case.config["train"]["scaling"]
    told += f"config.json: scaling is {asked or wanted!r}, scale {case.config['scale']:.3g}"
    remedy = "Leave scaling unset: prices, thresholds and rates are meant for the recipe's."
    if asked in (None, wanted):
        remedy = "The scale was measured on the first tokens, which are not like these: shuffle the text, or clean it."
    return "warning" if 0.01 < power / due < 100 else "critical", told, remedy


@check("a few tokens drown the others")
def loud(case: Case) -> Complaint:
    case.course(0.0, need=1)
    share = case.late("vitals.loudest")
    if share <= 0.5:
        return None
    told = f"log.jsonl: one token in a hundred holds {share:.0%} of the activations' variance: as a BOS or another "
    remedy = (
        "Find them by the norms of lm.read(...). What the tokenizer calls special is left out already: name them as "
    )
    return "warning", told + "attention sink does", remedy + "its special tokens, or choose another layer."


@check("one latent does most of the work")
def dominated(case: Case) -> Complaint:
    case.course(0.25)
    share, dense = case.late("vitals.strongest"), case.late("vitals.densest")
    if share <= 0.3 or case.late("l0") < 2:
        return None
    told = f"log.jsonl: one latent holds {share:.0%} of the latents' energy, and the densest fires on {dense:.0%} of tokens"
    remedy = (
        "The activations have one large direction. " + lower_lr(case) + " Or take out that direction: b_dec holds a "
    )
    return "warning", told, remedy + "constant, but not one that varies."


@check("it has become slow")
def slower(case: Case) -> Complaint:
    rows = case.course(0.0, need=3 * FEW)
    rates = [row["rate"] for row in rows]
    usual, late = sorted(rates)[len(rates) // 2], sorted(rates[-5:])[2]
    seconds = sum((b["tokens"] - a["tokens"]) / b["rate"] for a, b in zip(rows[-6:], rows[-5:]))
    if late > usual / 3 or seconds < 60:
        return None
    told = f"log.jsonl: {late:,.0f} tokens a second over the last five rows, {usual:,.0f} usually"
    return "warning", told, "Look for other processes, for swapping, for a disk that is full; no knob does this."


def distance(case: Case) -> float:
    """The learning rates of all steps so far, summed: between two measured steps they are taken as the later's."""
    steps = [0, *(row["step"] for row in case.rows)]
    return sum((after - before) * row["lr"] for before, after, row in zip(steps, steps[1:], case.rows))


def penalty(case: Case) -> str | None:
    """The knob that prices sparsity, where no k decides."""
    if "k" in case.cfg:
        return None
    return next((name for name in case.cfg if name in ("l1_weight", "l0_weight", "sparsity_weight")), None)


def lower_lr(case: Case) -> str:
    peak, own = case.config["lr"], case.recipe.lr_for(case.cfg["d_sae"])
    return f"Lower lr: it is {peak:g}" + (
        f", the recipe's is {own:.2g}." if peak > 1.5 * own else f"; try {peak / 3:.2g}."
    )


def revive(case: Case) -> list[str]:
    """What keeps latents alive, in the order in which to try it."""
    said, price = [], penalty(case)
    if case.cfg.get("aux_weight") == 0 and "k" in case.cfg:
        said.append("Turn the auxiliary term on: aux_weight 0.03.")
    if case.config["lr"] > 3 * case.recipe.lr_for(case.cfg["d_sae"]):
        said.append(lower_lr(case))
    if price and not case.cfg.get("target_l0"):
        said.append(f"Lower {price}, which is {case.cfg[price]:g}.")
    return [*said, "Train for more tokens, or with a smaller d_sae."]
