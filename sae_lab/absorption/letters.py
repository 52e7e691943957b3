"""First-letter absorption, SAEBench's protocol (arXiv:2503.09532 after Chanin et al., arXiv:2409.14507).

Each word of one token, read behind up to ten lines such as "cat has the first letter: C" ("prompt", for models that
spell) or where it stands in text ("context"). Words fall into those to fit on and those to score on. Per letter: a
probe on raw activations; k latents by an L1 probe over all of them, as many as each raise the F1 of a logistic
regression by 0.03 (the "main" ones; F1 on the words scored on, as published); then, among words that the probe finds,
what share of the projection onto it other latents carry for the main ones ("fraction"), and how often they do so alone
while all main ones are silent ("full").

As published, a projection is that of x, as if b_dec were 0; the "counted" form takes that of x - b_dec, which is what
latents have to carry. Ours: the probe is fitted to its optimum by scikit-learn, positions are found by the tokenizer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import sparse

from .. import plots
from ..intervals import Estimate, draws, interval
from ..labelled import codes
from ..models import LM
from ..probes import Probe, f1_of, fit, tally
from ..reading import held_out, own_directions, own_text, walk
from ..saes import SAE
from ..sites import Site

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LEAST = 20  # letters that have to be usable
PROBED = 0.6  # F1 that a letter's probe has to reach on words it was not fitted to
WORDS = (8, 2)  # of a letter, to fit on and to score on
HELD = 0.2  # share of words scored on
EXAMPLES = 10  # lines before a prompt's own
K, JUMP = 10, 0.03  # main latents at most; F1 that one more has to add
CARRIED, ALIGNED, ALONE, ABSORBERS = 0.4, 0.1, 0.025, 3
OFTEN = 20  # places at which a word is read in text, at most
SCORES = ("fraction", "full", "fraction_counted", "full_counted")


@dataclass(frozen=True)
class FirstLetters:
    """Absorption per letter, over words that nothing was fitted to.

    Attributes:
        letters: letter, its probe's F1, its main latents.
        scores: `SCORES`, of each place the probe finds, and the letter (its row in `letters`) and the word of each.
    """

    letters: pd.DataFrame
    scores: Float[np.ndarray, "places 4"]
    letter: Int[np.ndarray, " places"]
    words: tuple[str, ...]
    about: dict[str, Any]

    def mean(self, score: str = "fraction") -> Estimate:
        """Mean over letters of a score, of `SCORES`; the interval is over words."""
        return interval(np.nanmean(self._by_letter(score), axis=1))

    def _by_letter(self, score: str) -> Float[np.ndarray, "draws letters"]:
        words = np.unique(self.words, return_inverse=True)[1]
        size = (words.max() + 1, len(self.letters))
        sums, places = np.zeros(size), np.zeros(size)
        np.add.at(sums, (words, self.letter), self.scores[:, SCORES.index(score)])
        np.add.at(places, (words, self.letter), 1)
        weights = draws(int(size[0]), 500)
        with np.errstate(invalid="ignore"):
            return (weights @ sums) / (weights @ places)

    @property
    def table(self) -> pd.DataFrame:
        """One row per letter."""
        columns = {score: self._by_letter(score)[0] for score in SCORES}
        found = np.bincount(self.letter, minlength=len(self.letters))
        splits = self.letters["main"].map(len) - 1
        return self.letters.assign(**columns, found=found, splits=splits)

    @property
    def figure(self):
        """Absorption fraction per letter (plotly)."""
        table = self.table
        return plots.ratios(table["letter"], table["fraction"], "absorption fraction, as published")

    def to_json(self) -> dict[str, Any]:
        means = {score: self.mean(score).to_json() for score in SCORES}
        return means | {"letters": self.table.to_dict("records"), "about": self.about}

    def __repr__(self) -> str:
        shown = ", ".join(f"{score} {self.mean(score)}" for score in SCORES)
        return f"First-letter absorption at {self.about['site']} over {len(self.letters)} letters: {shown}"


def first_letters(
    sae: SAE,
    lm: LM,
    mode: str = "prompt",
    *,
    words: Iterable[str] | None = None,
    site: str | Site | None = None,
    most: int = 10_000,
    text: Any = None,
    tokens: int = 200_000,
    seed: int = 0,
    **options: Any,
) -> FirstLetters:
    """How far latents that name a word's first letter are absorbed by latents of words.

    Args:
        mode: "prompt" or "context".
        words: default: the vocabulary's alphabetic tokens, or in context all words of one token; a space comes first.
        most: words at most, drawn at random.
        text, tokens: of mode "context", as in `evaluate`; its validation split.

    Raises:
        ValueError: where fewer than 20 letters have words enough and a probe of F1 0.6, saying how many there are.
    """
    site = own_directions(sae, site)
    if mode not in ("prompt", "context"):
        raise ValueError(f"mode={mode!r} is neither 'prompt' nor 'context'.")
    rng, asked = np.random.default_rng(seed), None if words is None else sorted({w.strip() for w in words})
    if mode == "prompt":
        found, said = _prompted(lm, site, [f" {w}" for w in asked] if asked else _vocabulary(lm), most, rng)
    else:
        text, options = own_text(sae, text, options)
        found, said = _in_text(lm, site, held_out(lm, text, "validation", seed, **options), tokens, asked, most, rng)
    x, spoken = found
    every, word = np.unique(spoken, return_inverse=True)
    scored_on = (rng.random(len(every)) < HELD)[word]
    letter = np.array([w[0] for w in spoken.tolist()], dtype="<U1")
    usable, best = _usable(x, letter, word, scored_on)
    if len(usable) < LEAST:
        raise ValueError(
            f"{lm.name} does not spell at {site}: {said}, {len(every)} different ones; {best[0]} of 26 letters have at "
            f"least {sum(WORDS)} of them, and {len(usable)} of these a probe of F1 {PROBED} on other words (the best "
            f"reaches {best[1]:.2f}); {LEAST} are needed. Take another site, more words or a model that spells."
        )
    rows, here, of, values = _measured(sae, x, letter, scored_on, usable, seed)
    about = {"site": str(site), "model": lm.name, "mode": mode, "words": len(every), "read": said, "seed": seed}
    return FirstLetters(rows, values, of, tuple(spoken[here].tolist()), about)


def _measured(
    sae: SAE,
    x: np.ndarray,
    letter: np.ndarray,
    scored_on: np.ndarray,
    usable: dict[str, tuple[Probe, float]],
    seed: int,
):
    """(letters with their main latents, places that the probes find, their letters, their scores)."""
    z = codes(sae, torch.from_numpy(x).to(sae.W_dec.device))
    weights = _l1_weights(z[~scored_on], letter[~scored_on], seed)
    rows, scores = [], []
    for at, (name, (probe, f1)) in enumerate(usable.items()):
        main = _main(z, letter == name, scored_on, weights[LETTERS.index(name)])
        rows.append({"letter": name, "probe_f1": f1, "main": main})
        here = np.flatnonzero(scored_on & (letter == name) & (probe(x) > 0))
        direction = probe.weight / np.linalg.norm(probe.weight)
        scores.append((here, np.full(len(here), at), score(sae, z[here], x[here] @ direction, direction, main)))
    return pd.DataFrame(rows), *(np.concatenate(parts) for parts in zip(*scores))


def score(
    sae: SAE, z: sparse.csr_array, total: Float[np.ndarray, " rows"], direction: np.ndarray, main: list[int]
) -> Float[np.ndarray, "rows 4"]:
    """`SCORES` of rows with latents z and projections `total` of x onto the unit vector `direction`."""
    W = sae.W_dec.detach().double().cpu().numpy()
    adds = W @ direction  # decoder rows need no unit norm: their length belongs to the latent
    cosine = adds / np.maximum(np.linalg.norm(W, axis=1), 1e-30)
    parts = (z @ sparse.diags_array(adds)).toarray()
    counted = total - sae.b_dec.detach().double().cpu().numpy() @ direction
    silent = (np.abs(z[:, main].toarray()) < 1e-8).all(1)
    return np.concatenate([_scores(parts, cosine, t, main, silent) for t in (total, counted)], axis=1)


def _scores(parts: np.ndarray, cosine: np.ndarray, total: np.ndarray, main: list[int], silent: np.ndarray):
    """(fraction, full) per row."""
    of_main, others = parts[:, main].sum(1), np.ones(parts.shape[1], bool)
    others[main] = False
    absorbing = np.where(others & (cosine >= ALIGNED), parts, 0).clip(min=0)
    absorbed = -np.sort(-absorbing, axis=1)[:, :ABSORBERS].sum(1)
    taken = np.minimum(absorbed, total - of_main)
    with np.errstate(invalid="ignore", divide="ignore"):
        partly = np.where(of_main <= 0, 1.0, (taken / (taken + of_main)).clip(0, 1))
        none = (of_main >= total) | (absorbed / total < CARRIED)
        top = parts.argmax(1)
        alone = np.take_along_axis(parts, top[:, None], 1)[:, 0] / total >= CARRIED
    full = silent & (cosine[top] >= ALONE) & (total >= 0) & alone
    return np.stack([np.where(none, 0.0, partly), full], axis=1)


def _usable(x: np.ndarray, letter: np.ndarray, word: np.ndarray, scored_on: np.ndarray):
    """({letter: (probe, F1)}, (letters with words enough, the best F1))."""
    found, best, many = {}, 0.0, 0
    for name in LETTERS:
        y = letter == name
        if any(len(np.unique(word[y & part])) < n for n, part in zip(WORDS, (~scored_on, scored_on))):
            continue
        many += 1
        probe = fit(x[~scored_on], y[~scored_on], rows=None)
        nowhere = np.zeros(scored_on.sum(), int)
        f1 = float(f1_of(tally(probe(x[scored_on]) > 0, y[scored_on], nowhere, 1)[0]))
        best = max(best, f1)
        if f1 >= PROBED:
            found[name] = probe, f1
    return found, (many, best)


def _main(z: sparse.csr_array, y: np.ndarray, scored_on: np.ndarray, weight: np.ndarray) -> list[int]:
    """The latents of a letter: the first by L1 weight, and each further one that raises F1 by enough."""
    order, kept, best = np.argsort(-weight, kind="stable"), [], -np.inf
    nowhere = np.zeros(scored_on.sum(), int)
    for k in range(1, K + 1):
        columns = z[:, order[:k]].toarray()
        called = fit(columns[~scored_on], y[~scored_on], rows=None)(columns[scored_on]) > 0
        f1 = float(f1_of(tally(called, y[scored_on], nowhere, 1)[0]))
        if f1 <= best + JUMP:
            break
        kept, best = order[:k].tolist(), f1
    return kept


def _l1_weights(z: sparse.csr_array, letter: np.ndarray, seed: int, epochs: int = 50) -> Float[np.ndarray, "26 d_sae"]:
    """Weights of the letters' L1 probes, all trained at once, as published: Adam, 50 epochs of batches of 4,096."""
    fires = np.unique(z.indices)
    x = torch.from_numpy(z[:, fires].toarray()).float()
    y = torch.from_numpy(np.stack([letter == name for name in LETTERS], 1)).float()
    rarity = (len(y) - y.sum(0)) / y.sum(0).clamp(min=1)
    weight, bias = torch.zeros(26, len(fires), requires_grad=True), torch.zeros(26, requires_grad=True)
    adam = torch.optim.Adam([weight, bias], lr=0.01, weight_decay=1e-6)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, (1e-5 / 0.01) ** (1 / epochs))
    dice = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=dice).split(4096):
                error = F.binary_cross_entropy_with_logits(x[rows] @ weight.T + bias, y[rows], pos_weight=rarity)
                adam.zero_grad()
                (error + 0.01 * weight.abs().sum(1).mean()).backward()
                adam.step()
            decay.step()
    found = np.full((26, z.shape[1]), -np.inf)
    found[:, fires] = weight.detach().numpy()
    return found


def _vocabulary(lm: LM) -> list[str]:
    """The alphabetic tokens as text, with the space before them where they have one."""
    texts = (lm.tokenizer.convert_tokens_to_string([token]) for token in sorted(lm.tokenizer.get_vocab()))
    return sorted({text for text in texts if re.fullmatch(" ?[A-Za-z]+", text)})


def _prompted(lm: LM, site: Site, words: list[str], most: int, rng: np.random.Generator):
    """((activations at each word, the words in small letters), what was read)."""
    plain = [w.strip() for w in words]
    picked = rng.permutation(len(words))[:most]
    ids, at, spoken, seen = [], [], [], set()
    for i in picked.tolist():
        others = [plain[j] for j in rng.integers(len(plain), size=EXAMPLES) if plain[j] != plain[i]]
        lines = [f"{w} has the first letter: {w[0].upper()}" for w in others]
        before = "\n".join(["", *lines, ""])
        row, place = _up_to(lm, before + words[i], " has the first letter:", len(before))
        if place is not None and row[place] not in seen:
            seen.add(row[place])
            ids.append(row)
            at.append(place)
            spoken.append(plain[i].lower())
    said = f"{len(spoken)} of {len(picked)} words are single tokens"
    acts = [_at(lm, site, ids[i : i + 64], at[i : i + 64]) for i in range(0, len(ids), 64)]
    return (np.concatenate(acts) if acts else np.zeros((0, lm.d_in(site)), np.float32), np.array(spoken, str)), said


def _up_to(lm: LM, text: str, after: str, start: int) -> tuple[list[int], int | None]:
    """Tokens up to the word that begins at `start` and ends the text, and its place; None where it has several."""
    found = lm.tokenizer(text + after, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    touching = [i for i, (a, b) in enumerate(found["offset_mapping"]) if b > start and a < len(text)]
    bos = [lm.tokenizer.bos_token_id] if lm.tokenizer.bos_token_id is not None else []
    whole = len(touching) == 1 and found["offset_mapping"][touching[0]][1] == len(text)
    if not whole or touching[0] + 1 + len(bos) > lm.context:
        return [], None
    return bos + found["input_ids"][: touching[0] + 1], touching[0] + len(bos)


def _at(lm: LM, site: Site, rows: list[list[int]], at: list[int]) -> np.ndarray:
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return lm.read(ids, site, mask=mask)[site][torch.arange(len(at)), torch.tensor(at)].float().cpu().numpy()


def _in_text(lm: LM, site: Site, blocks: Any, tokens: int, asked: list[str] | None, most: int, rng):
    """As `_prompted`, at the places of text where a word is one token."""
    wanted, acts, spoken, often = None if asked is None else {w.lower() for w in asked}, [], [], {}
    for page in walk(lm, blocks, [site], tokens):
        of, start, end = (t[page.keep].tolist() for t in (page.block.doc, page.block.start, page.block.end))
        kept = []
        for i, (doc, a, b) in enumerate(zip(of, start, end)):
            text = page.block.text(doc)
            word = text[a:b].strip().lower()
            whole = re.fullmatch("[a-z]+", word) and not text[b : b + 1].isalpha()
            if whole and (text[a] == " " or not text[max(a - 1, 0) : a].isalpha()) and (not wanted or word in wanted):
                often[word] = often.get(word, 0) + 1
                if often[word] <= OFTEN:
                    kept.append(i)
                    spoken.append(word)
        acts.append(page.acts[site][kept].cpu().numpy())
    chosen = rng.permutation(sorted(often))[:most]
    rows = np.isin(spoken, chosen)
    asked_for = f" of {len(wanted)}" if wanted else ""
    return (
        np.concatenate(acts)[rows],
        np.array(spoken, str)[rows],
    ), f"{len(often)}{asked_for} words of one token stand in the text"
