"""A controller that moves the price of sparsity until L0 is what was asked for."""

import torch
from torch import nn

from ..shapes import Scalar

PROPORTIONAL = 4.0  # the price answers a factor in L0 by its fourth power at once
INTEGRAL = 40.0  # and by a factor of exp(40) in a run through all of which L0 stays e times too large
LONGEST = 0.01  # share of the run that one step counts as at most: with fewer than 100 steps a full step would be rash
FAINTEST = 1e-9  # least multiplier


class L0Controller(nn.Module):
    """Proportional and integral control of logarithms: with e = log(L0 / target), each step

        log multiplier += PROPORTIONAL * (change of e) + INTEGRAL * (share of the run passed) * (e, at most 1 in size)

    Time is counted in shares of the run, so that every run has as long to settle. Two things keep the integral from
    winding up: while the price warms up it can only fall, and the penalty may at most be what an SAE without latents
    would pay in error (above, no latents at all are cheapest). All state is in buffers, and so in checkpoints.
    """

    def __init__(self, target: float):
        super().__init__()
        self.target = target
        for name, start in (("multiplier", 1.0), ("error", torch.nan), ("progress", 0.0), ("lasting", 0.0)):
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, l0: Scalar, most: Scalar, progress: float, warm: bool) -> Scalar:
        """What multiplies the penalty in the step that has this L0; `most` is its limit.

        `lasting` is what the integral added to the logarithm, `error` is e, both of the last step.
        """
        error = (l0.double() / self.target).clamp(min=1e-2).log()
        passed = (progress - self.progress).clamp(0.0, LONGEST)  # a second training starts at 0 again
        self.lasting.copy_(INTEGRAL * passed * error.clamp(-1.0, 1.0 if warm else 0.0))
        change = PROPORTIONAL * (error - self.error).nan_to_num(0.0)  # at the first step there is no change
        moved = self.multiplier * (change + self.lasting).exp()
        self.multiplier.copy_(moved.clamp(min=FAINTEST).minimum(most.clamp(min=FAINTEST)))
        self.error.copy_(error)
        self.progress.fill_(progress)
        return self.multiplier.to(l0.dtype)
