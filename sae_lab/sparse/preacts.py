"""Pre-activations: dense numbers to choose from, one token chunk at a time, and exact ones where chosen."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..shapes import Acts, Direction, LatentMask, PerLatent, Rows, Values, Weights
from .backends import backend_of
from .choose import Above, Chunks, Rule, above
from .coarse import WIDEST, Coarse, Codes, Numbers, available, blurred
from .latents import Latents, Support, combined, dots, latent_sums, latent_totals, sums
from .look import Look, Score, ScoreAt
from .mesh import Mesh, mesh
from .scratch import scratch
from .together import choose_together

CHUNK_BYTES = 2**24  # of scores that exist at a time
FEWEST = 64  # tokens in a chunk at least: below, the weights are read too often
REMEMBERED = 2**27  # bytes of scores that are kept for a second choice, at most
EXACT_ABOVE = 0.2  # share that is chosen above which exact numbers for all cost less than for a generous choice

MANY = 0.1  # share of tokens whose own choice was too narrow above which all choose again


class _Keep(torch.autograd.Function):
    """Carries gradients only; the values were computed before. `centred` is x - centre, as numbers."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, centre, centred, support, value):
        ctx.save_for_backward(centred, W_enc)
        ctx.support, ctx.mesh = support, mesh()
        return value

    @staticmethod
    def backward(ctx, q):
        (centred, W), s, (x, W_enc, b_enc, centre, *_) = ctx.saved_tensors, ctx.support, ctx.needs_input_grad
        per_latent = latent_totals(s, q) if b_enc or centre else None
        whole = (lambda g: g) if ctx.mesh is None else (lambda g: ctx.mesh.reduced(g, "latents"))
        return (
            whole(sums(s, q, W)) if x else None,
            latent_sums(s, q, centred) if W_enc else None,
            per_latent if b_enc else None,
            whole(-combined(per_latent, W)) if centre else None,  # every token pays the same: d_sae numbers for all
            None,
            None,
            None,
        )


@dataclass(frozen=True, eq=False)
class PreActs:
    """What `encode` gives: nothing is computed until something is chosen.

    Attributes:
        inputs: x (flattened), W_enc, b_enc and centre, with their graph.
        centred: x - centre, as numbers.
        choose_in: the precision of the dense product; kept values always have that of x.
        lead: the leading axes of x.
        again: latents among which a second choice will be made; their numbers are kept from the first product.
    """

    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    centred: Rows
    choose_in: torch.dtype
    lead: tuple[int, ...]
    again: LatentMask | None = None
    found: dict[Support, Tensor] = field(default_factory=dict)
    seen: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def tok(self) -> int:
        return len(self.centred)

    @property
    def d_sae(self) -> int:
        return len(self.inputs[1])

    @property
    def numbers(self) -> torch.dtype:
        """What the dense numbers of a coarse choice come in."""
        return torch.bfloat16 if self.choose_in == torch.int8 else self.choose_in

    @torch.no_grad()
    def choose(
        self,
        rule: Rule,
        amount: Any,
        *,
        among: LatentMask | None = None,
        price: PerLatent | None = None,
        boost: "PreActs | None" = None,
        score: Score | None = None,
        score_at: ScoreAt | None = None,
        signed: bool = False,
    ) -> Support:
        """Where to be nonzero: `rule` applied to the pre-activations, or to a score of them.

        Args:
            among: the latents that may be chosen.
            price: what a latent's pre-activations are multiplied with, at least 0; the cheapest kind of score.
            boost: pre-activations of other rows with other weights, by whose size they are raised: z (1 + |boost|).
            score: from (numbers [chunk, d_sae], the chunk's tokens: a slice, or places) to scores of the same shape,
                each entry from its own number and what is known of its token and latent.
            score_at: the same for nonzeros, from (support, values); without, it is made from dense chunks.
            signed: choose by absolute value; `keep` returns the signed values.
        """
        index = None
        if among is not None and score is None:
            index = self._again if among is self.again else _places(among)
        look = Look(index, among, price, boost, score, score_at, signed)
        devices = mesh()
        if devices is not None and devices.size("all") > 1 and not isinstance(rule, Above):
            return self._choose_together(devices, rule, amount, look)
        return self._choose(rule, amount, look)

    def _choose_together(self, devices: Mesh, rule: Rule, amount: Any, look: Look) -> Support:
        def offer(n: int) -> tuple[Support, Values]:
            if look.index is not None and not len(look.index):  # none of the latents here may be chosen
                nowhere = self.centred.new_zeros(0)
                return Support(nowhere.int(), torch.zeros(self.tok + 1, dtype=torch.long), self.d_sae), nowhere
            s = self._choose(rule, n, look)
            return s, self._score_at(s, self.values(s), look)

        s, keep = choose_together(devices, rule, amount, offer)
        out = Support(s.latent, s.start, s.d_sae, score=self.values(s)).subset(keep)
        self.found[out] = out.score
        return out

    def _choose(self, rule: Rule, amount: Any, look: Look) -> Support:
        """The choice among the latents here, for the tokens here."""
        index = look.index
        part = amount if index is None else rule.within(amount, index)
        chunks = Chunks(
            self.tok,
            self.d_sae if index is None else len(index),
            lambda: self._scored(self.coarse, look, raised),
        )
        exact = rule.exact or self.choose_in == self.centred.dtype or rule.density(part, chunks) > EXACT_ABOVE
        floored = isinstance(rule, Above)
        exact = exact or (floored and not look.plain)  # no margin is known for a floor on a score
        raised = not exact and floored and self.coarse == torch.int8  # numbers come with their margin
        exact = exact or (raised and look.signed)  # it is one-sided
        if not exact:
            generous = part if raised else rule.generous(part, lambda floor: self._margin(floor, index))
            eight = self.coarse == torch.int8 and not self._known(torch.int8, index, raised)
            unmade = (lambda: self._unmade(look, raised)) if eight and look.known_to_tiles(rule) else None
            rough = rule.choose(replace(chunks, unmade=unmade), generous)
            found, narrow = self._cut(rule, rough, part, generous, look)
            share = float(torch.as_tensor(narrow).float().mean()) if self.tok else 0.0
            if share <= MANY:
                return self._made_exact(found, narrow, rule, part, look) if share else found
        return self._exactly(rule, part, look)

    def over(self, floor: Tensor | float) -> Support:
        """Everything over `floor`, one number or one per latent, exactly, however coarse the numbers to choose from."""
        return self.choose(above, torch.as_tensor(floor, dtype=self.centred.dtype, device=self.centred.device))

    def _margin(self, floor: Tensor, index: Tensor | None) -> Tensor:
        """By how much a pre-activation near `floor` may lie lower in bf16 than it is, for each latent.

        Rounding x and W moves <x, w> by at most 2^-7 |x| |w| (Cauchy-Schwarz), a float32 sum by 2^-24 of that per term;
        rounding the result moves it by 2^-8 of itself. What 8 bits hide besides is `Coarse`'s.
        """
        _, W, b, _ = self.inputs
        loudest = self.centred.norm(dim=1).max() if self.tok else 0.0
        reach = loudest * W.norm(dim=1) + (0 if b is None else b.abs())
        margin = 2.0**-7 * (1.01 + W.shape[1] * 2.0**-16) * reach
        if self.coarse == torch.int8:
            x, w = self._codes, Codes.of(W.detach())
            margin = margin + 2 * (x.lost.max() * w.norm + (x.norm + x.lost).max() * w.lost)
        return (margin if index is None else margin[index]) + 2.0**-7 * floor.abs()

    @torch.no_grad()
    def values(self, support: Support) -> Values:
        """The exact pre-activations at the nonzeros, as numbers."""
        if support in self.found:
            return self.found[support].to(self.centred.dtype)
        _, W, b, _ = self.inputs
        value = dots(support, self.centred, W.detach())
        return value if b is None else value.add_(b.detach()[support.latent])

    def keep(self, support: Support) -> Latents:
        """The chosen pre-activations, exact, with gradients to x, W_enc, b_enc and the centre."""
        value = _Keep.apply(*self.inputs, self.centred, support, self.values(support))
        return Latents(value, support, self.lead)

    def _wide(self, s: Support, index: Tensor | None) -> Support:
        return s if index is None else s.relabel(index, self.d_sae)

    def _cut(self, rule: Rule, s: Support, amount: Any, generous: Any, look: Look) -> tuple[Support, bool | Tensor]:
        """From a generous choice by rounded numbers to the exact one by exact numbers; whether rounding hid much."""
        full = self._wide(s, look.index)
        value = self.values(full)
        by = self._score_at(full, value, look)
        keep = rule.cut(s, by, amount)
        exact = Support(full.latent, full.start, full.d_sae, score=value).subset(keep)
        self.found[exact] = exact.score
        return exact, rule.too_narrow(s, by, keep, generous)

    def _made_exact(self, s: Support, narrow: Tensor, rule: Rule, amount: Any, look: Look) -> Support:
        """The same choice, made by exact numbers for some tokens."""
        tokens = _places(narrow)
        few = replace(self, centred=self.centred[tokens], choose_in=self.centred.dtype, again=None, found={}, seen={})
        chosen = few._exactly(rule, amount, replace(look, tokens=tokens))
        values = few.values(chosen)
        out = s.replaced(tokens, Support(chosen.latent, chosen.start, chosen.d_sae, score=values))
        self.found[out] = out.score
        return out

    def _exactly(self, rule: Rule, amount: Any, look: Look) -> Support:
        d_sae = self.d_sae if look.index is None else len(look.index)
        chunks = Chunks(self.tok, d_sae, lambda: self._scored(self.centred.dtype, look, False))
        s = self._wide(rule.choose(chunks, amount), look.index)
        if look.plain and not look.signed and s.score is not None:
            self.found[s] = s.score
        return s

    def _score_at(self, s: Support, value: Values, look: Look) -> Values:
        """The scores of exact values."""
        by = value if look.price is None else value * look.price[s.latent]
        if look.boost is not None:
            by = by * (1 + look.boost.values(s).abs())
        if look.score is not None:
            by = look.score_at(s, by) if look.score_at else self._by_chunks(s, by, look.score)
        return by.abs() if look.signed else by

    def _by_chunks(self, s: Support, value: Values, score: Score) -> Values:
        out, step = torch.empty_like(value), self._step(self.d_sae, value.dtype)
        for t in range(0, s.tok, step):
            tokens = slice(t, min(t + step, s.tok))
            at = slice(int(s.start[tokens.start]), int(s.start[tokens.stop]))
            place = (s.token[at] - t) * s.d_sae + s.latent[at]
            dense = scratch((tokens.stop - t, s.d_sae), value.dtype, value.device).zero_()
            dense.view(-1)[place] = value[at]
            out[at] = score(dense, tokens).reshape(-1)[place]
        return out

    def _step(self, d_sae: int, dtype: torch.dtype) -> int:
        return max(1, min(self.tok, max(FEWEST, CHUNK_BYTES // max(1, d_sae * dtype.itemsize))))

    def _scored(self, dtype: torch.dtype, look: Look, raised: bool) -> Iterator[tuple[slice, Tensor]]:
        for tokens, dense in self._dense(dtype, look.index, raised):
            yield tokens, look.scores(dense, tokens)

    def _dense(self, dtype: torch.dtype, index: Tensor | None, raised: bool) -> Iterator[tuple[slice, Tensor]]:
        """The one dense product of a step, chunk by chunk; what is asked for again is remembered."""
        if self._known(dtype, index, raised):
            yield slice(0, self.tok), self.seen[dtype]
            return
        keep = self._memory(dtype) if index is None and not raised else None
        eight = dtype == torch.int8 and (index is None or len(index) > 0)
        product = self._in_bytes(index, raised) if eight else self._in_floats(self._floats(dtype), index)
        for tokens, out in product:
            if keep is not None:
                backend_of(out).columns(out, self._again, keep[tokens])
            yield tokens, out
        if keep is not None:
            self.seen[dtype] = keep

    def _known(self, dtype: torch.dtype, index: Tensor | None, raised: bool) -> bool:
        """Whether the first product has given these numbers already."""
        return index is not None and index is self._again and dtype in self.seen and not raised

    def _unmade(self, look: Look, raised: bool) -> Iterator[tuple[slice, Numbers]]:
        """The same in 8 bits, for who chooses while it is being made."""
        index, price = look.index, look.latent_price
        keep = self._memory(torch.int8) if index is None and price is None and not raised else None
        again = (torch.empty(0).long(), torch.empty(self.tok, 0).bfloat16()) if keep is None else (self._again, keep)
        whole = slice(0, self.tok)
        product = self._product(index, raised)
        boost = None if look.boost is None else look.boost._coded
        yield whole, Numbers(product if price is None else product.times(price), whole, again, boost)
        if keep is not None:
            self.seen[torch.int8] = keep

    @torch.no_grad()
    def dense_among(self, among: LatentMask, index: Tensor) -> Tensor:
        """[tok, len(index)] numbers of a few latents, those that `among` marks, as the choice sees them."""
        if among is self.again and self.coarse in self.seen:
            return self.seen[self.coarse]
        out = scratch((self.tok, len(index)), self.numbers, self.centred.device)
        for tokens, part in self._in_floats(self.numbers, index):
            out[tokens] = part
        return out

    @torch.no_grad()
    def piece(self, tokens: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """[tokens, d_sae] numbers, for the score of another choice: as exact as `dtype`, or bf16 by way of 8 bits."""
        if dtype == torch.bfloat16 and self.coarse == torch.int8 and isinstance(tokens, slice):
            return backend_of(self.centred).coarse_dense(self._coded, tokens)
        rows, (W, b) = self.centred[tokens].to(dtype), self._halved if dtype == torch.bfloat16 else self._weights(None)
        return backend_of(rows).product(rows, W, b)

    @cached_property
    def _coded(self) -> Coarse:
        return self._product(None, False)

    @cached_property
    def _halved(self) -> tuple[Tensor, Tensor | None]:
        return tuple(None if t is None else t.bfloat16() for t in self._weights(None))

    def _in_floats(self, dtype: torch.dtype, index: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        W, b = self._weights(index)
        x, W, b = (None if t is None else t.to(dtype) for t in (self.centred, W, b))
        step = self._step(len(W), dtype)
        for t in range(0, max(1, self.tok), step):  # no tokens: one empty chunk
            rows = x[t : t + step]
            yield slice(t, t + len(rows)), backend_of(rows).product(rows, W, b)

    def _in_bytes(self, index: Tensor | None, raised: bool) -> Iterator[tuple[slice, Tensor]]:
        product = self._product(index, raised)
        step = self._step(product.d_sae, torch.bfloat16)
        for t in range(0, self.tok, step):
            tokens = slice(t, min(t + step, self.tok))
            yield tokens, backend_of(self.centred).coarse_dense(product, tokens)

    def _product(self, index: Tensor | None, raised: bool) -> Coarse:
        W, b = self._weights(index)
        return Coarse(self._codes, Codes.of(W), b, raised)

    def _weights(self, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encoder weights and bias as numbers, of all latents or of some."""
        _, W, b, _ = self.inputs
        return tuple(None if t is None else t.detach() if index is None else t.detach()[index] for t in (W, b))

    @cached_property
    def _codes(self) -> Codes:
        return Codes.of(self.centred)

    @cached_property
    def coarse(self) -> torch.dtype:
        """The precision the choice is really made in: bf16 where 8 bits would blur these activations."""
        eight = self.choose_in == torch.int8 and self.tok > 0 and not blurred(self.centred, self._codes)
        return self.choose_in if eight else self.numbers

    @cached_property
    def _again(self) -> Tensor | None:
        return None if self.again is None else _places(self.again)

    def _memory(self, dtype: torch.dtype) -> Tensor | None:
        """Room for the numbers of the latents that are asked for again, if they are few enough and not there yet."""
        n = 0 if self._again is None or dtype in self.seen else len(self._again)
        if not 0 < n * self.tok * max(2, dtype.itemsize) <= REMEMBERED:
            return None
        return scratch((self.tok, n), self._floats(dtype), self.centred.device)

    def _floats(self, dtype: torch.dtype) -> torch.dtype:
        return self.numbers if dtype == torch.int8 else dtype


def _places(mask: LatentMask) -> Tensor:
    return mask.nonzero()[:, 0]


def encode(
    x: Acts,
    W_enc: Weights,
    b_enc: PerLatent | None = None,
    *,
    centre: Direction | None = None,
    choose_in: torch.dtype | None = None,
    again: LatentMask | None = None,
) -> PreActs:
    """(x - centre) @ W_enc.T + b_enc, to choose latents from.

    Args:
        choose_in: `torch.bfloat16` or `torch.int8` makes the dense product up to 4x or 5x cheaper where the CPU can
            (int8 where it cannot: as x). The choice is made among a few more latents and then by exact values; tokens
            for which rounding was too coarse choose again exactly. Kept values are exact in any case. Where fewer are
            positive than may fire, one that rounding took to zero can be missed. None: as x.
        again: the `among` of a second choice, which then costs no second product.

    Raises:
        TypeError: x in half precision on the CPU.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.dtype in (torch.float16, torch.bfloat16) and backend_of(rows).__name__.endswith("native"):
        raise TypeError(f"x is {rows.dtype}: on the CPU an SAE computes in float32 or float64, as sae.float() does.")
    centred = rows.detach() if centre is None else (rows - centre).detach()
    coarse = choose_in if choose_in is not None and rows.dtype == torch.float32 else rows.dtype
    if coarse == torch.int8 and not (rows.device.type == "cpu" and 0 < rows.shape[1] <= WIDEST and available()):
        coarse = rows.dtype
    return PreActs((rows, W_enc, b_enc, centre), centred, coarse, tuple(x.shape[:-1]), again)
