"""Mutual Feature Regularization: TopK SAEs trained side by side, each drawn to the features that the others find."""

from dataclasses import dataclass, replace
from math import pi, sin, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..knobs import knob
from ..shapes import Acts, LatentInts, Rows, Scalar
from ..sparse import Latents, topk
from .base import SAE, Batch, Objective, Recipe
from .losses import dead_error, energy, geometric_median, power, ramp


class MutualFeature(SAE, name="mutual_feature"):
    """Of `train([a, b, ...], source)`, members with seeds of their own, the loss is the sum of their TopK losses plus
    weight * ramp * mean over pairs of (1 - mean cosine of decoder rows), rows matched one to one so that this mean is
    largest. A member's term is its share of that: its mean over peers, divided by the number of members. Gradients
    reach both SAEs of a pair, through the matched rows. SAEs of other methods take no part; one alone is `topk`.

    The authors also let a member whose densities are far from k / d_sae, by the mean over latents of
    (|density - k / d_sae| / (k / d_sae))^3, start anew: the whole SAE (but for b_dec) and its Adam moments. Here none
    does by default, since those of the embedded Llama are all beyond the authors' bound of 2.5: on its layer 3, with
    d_sae = 1,024 and k = 16, random weights have 7, and while TopK learns 150 to 500.

    Their code adds the mean over pairs to every member's loss, but each optimiser forgets what came before its own
    backward pass: a pair counts once, as here. Where they differ: their SAE is tied, without b_dec and AuxK, and keeps
    the k largest numbers even if negative (not the largest by absolute value), ours is `topk`, compared by decoder
    rows; their error is a mean over d_in, so their weights (0.005 to 3) are other numbers; they match at every step,
    ramp over 100 steps, draw orthogonal weights, start anew before the step, by a density of 0.0625 whatever k and
    d_sae, and give their i-th member i times k, which here is up to you.
    """

    paper = "Marks et al. 2024, arXiv:2411.01220"
    fires = "topk"
    recipe = Recipe(lr=lambda d_sae: 2e-4 / sqrt(d_sae / 2**14), eps=6.25e-10)
    needs = frozenset({"peers"})

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token")
        weight: float = knob(0.03, 0.0, 1e4, "weight of the penalty on members that differ; 0: independent SAEs")
        ramp_share: float = knob(0.05, 0.0, 1.0, "share of the run over which that weight rises, by a cosine")
        match_every: int = knob(50, 1, 10**6, "steps between matchings, which take time as d_sae^3 in the worst case")
        reinit_above: float | None = knob(
            None, 0.0, 1e30, "unevenness of the densities above which a member starts anew; None: never; authors: 2.5"
        )
        k_aux: int | None = knob(None, 1, 8192, "dead latents that explain the residual; by default d_in / 2")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the AuxK term")

    def build(self) -> None:
        self.register_buffer("steps", torch.tensor(0))  # since the weights were drawn
        self.register_buffer("births", torch.tensor(0))  # times it started anew
        self.register_buffer("uneven", torch.tensor(0.0))  # how far the last batch's densities were from all alike
        self.register_buffer("members", torch.empty(0).long())  # their seeds, in order
        self.register_buffer("partner", torch.empty(0, self.cfg.d_sae).long())  # by member: matched latents, -1: none
        self.register_buffer("matched", torch.empty(0).long())  # by member: the step of that
        self.register_load_state_dict_pre_hook(_make_room)

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(topk, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x, again=batch.dead)
        z = pre.keep(pre.choose(topk, self.cfg.k)).relu()
        x_hat = self.reconstruct(z, batch.x)
        self._observe(z)
        missed = batch.target - x_hat
        aux = dead_error(pre, self.W_dec, missed, batch.dead, self.cfg.k_aux or max(1, self.cfg.d_in // 2))
        aux = self.cfg.aux_weight * aux / power(missed).clamp(min=1e-12)
        terms = {"mse": energy(missed), "auxk": aux}
        peers = [peer for peer in batch.peers if peer.name == self.name]
        if peers and self.cfg.weight:
            weight = self.cfg.weight * sin(pi / 2 * ramp(batch.progress, self.cfg.ramp_share)) ** 2
            terms["mutual"] = weight / (1 + len(peers)) * self.disagreement(peers)
        return Objective(x_hat, z, terms)

    def disagreement(self, peers: list[SAE]) -> Scalar:
        """1 - cosine of matched decoder rows, averaged over them and over the peers.

        Raises:
            ValueError: if two members have the same seed.
        """
        team = sorted((self, *peers), key=lambda sae: sae.cfg.seed)
        seeds = [sae.cfg.seed for sae in team]
        if len(set(seeds)) < len(team):
            raise ValueError(f"Members of seeds {seeds}: alike from the start, two would stay so. Give each its own.")
        me, cosines = team.index(self), []
        for place, peer in enumerate(team):
            if peer is not self:  # the one of the lower seed keeps the matching of a pair
                (a, b), at = ((self, peer), place) if me < place else ((peer, self), me)
                mine, theirs = a._matching(b, at, seeds)
                rows = a.W_dec.index_select(0, mine), b.W_dec.index_select(0, theirs)
                cosines.append(cosine_similarity(*rows, dim=1).mean())
        return 1 - torch.stack(cosines).mean()

    @torch.no_grad()
    def after_step(self) -> LatentInts | None:
        """The latents that start anew: all or none."""
        self.steps += 1
        if self.cfg.reinit_above is None or not self.uneven > self.cfg.reinit_above:
            return None
        self.births += 1
        state = np.random.SeedSequence((self.cfg.seed, int(self.births))).generate_state(1)
        fresh = type(self)(replace(self.cfg, seed=int(state[0] % 2**31)))
        for name, p in self.named_parameters():
            if name != "b_dec":
                p.copy_(getattr(fresh, name))
        for buffer, value in ((self.steps, 0), (self.uneven, 0.0), (self.matched, -1)):
            buffer.fill_(value)
        return torch.arange(self.cfg.d_sae, device=self.W_dec.device)

    @torch.no_grad()
    def _observe(self, z: Latents) -> None:
        """Measures how uneven the densities of the batch are."""
        target = self.cfg.k / self.cfg.d_sae
        density = torch.bincount(z.support.latent[z.value != 0], minlength=self.cfg.d_sae) / max(1, z.support.tok)
        self.uneven.copy_(((density - target).abs() / target).pow(3).mean())

    @torch.no_grad()
    def _matching(self, other: "MutualFeature", at: int, seeds: list[int]) -> Int[Tensor, "2 matches"]:
        """Latents of this SAE, and those of the other that they were matched with at the last step that was due."""
        if self.members.tolist() != seeds:
            self.members = self.members.new_tensor(seeds)
            self.partner = self.partner.new_full((len(seeds), self.cfg.d_sae), -1)
            self.matched = self.matched.new_full((len(seeds),), -1)
        due = self.matched[at] < 0 or other.steps == 0 or self.steps % self.cfg.match_every == 0
        if due and self.matched[at] != self.steps:
            cosines = normalize(self.W_dec) @ normalize(other.W_dec).T
            mine, theirs = linear_sum_assignment(cosines.nan_to_num_().cpu(), maximize=True)  # a NaN is for the loss
            self.partner[at].fill_(-1)
            self.partner[at, torch.as_tensor(mine)] = torch.as_tensor(theirs).to(self.partner)
            self.matched[at] = self.steps
        mine = (self.partner[at] >= 0).nonzero()[:, 0]
        return torch.stack([mine, self.partner[at, mine]])


def _make_room(sae: MutualFeature, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """For the matchings of as many members as the loaded state is of."""
    for name in ("members", "partner", "matched"):
        if prefix + name in state:
            setattr(sae, name, getattr(sae, name).new_empty(state[prefix + name].shape))
