"""One SAE on several devices: its latents in slices, a batch's tokens in parts, and the sums that cross between them.

Within `with mesh:` the functions of this kit compute, of one slice and one part, what one device would compute of all:
    decode        adds up what slices give                     one all-reduce of [tok, d_in], its gradient the identity
    encode        the gradients of x and of the centre         one all-reduce of d_in numbers over slices
    choose        the best of all candidates                   `together`: [tok, k] numbers over slices, or histograms
    losses, L0    means over all tokens                        one number
    Adam          gradients of parts are added                 one all-reduce of the weights' size over parts
Loss terms have the value of the whole batch on every rank and the gradient of the rank's own share.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_current: ContextVar["Mesh | None"] = ContextVar("mesh", default=None)
AXES = ("latents", "data", "all")


class Mesh:
    """All processes of the default group as a grid; rank = part * latents + slice.

    Attributes:
        latents: how many slices the dictionary is in.
        data: how many parts a batch is in.
        slice, part: which of them are this process's.
        first: whether it is the one that writes.
        rank, world: which process this is, of how many.
    """

    def __init__(self, latents: int | None = None):
        """
        Args:
            latents: of so many processes each holds a slice; the others repeat them for other tokens. None: all.

        Raises:
            ValueError: if the processes are no multiple of it.
            RuntimeError: without a process group (torch.distributed.init_process_group).
        """
        if not dist.is_initialized():
            raise RuntimeError("No processes to share an SAE: launch(..., gpus=2) starts some, or torchrun.")
        world, rank = dist.get_world_size(), dist.get_rank()
        latents = world if latents is None else latents
        if latents < 1 or world % latents:
            raise ValueError(f"latents={latents} slices do not divide {world} processes: take a divisor of {world}.")
        self.latents, self.data = latents, world // latents
        self.slice, self.part, self.first = rank % latents, rank // latents, rank == 0
        self.rank, self.world = rank, world
        slices = [list(range(p * latents, (p + 1) * latents)) for p in range(self.data)]
        parts = [list(range(s, world, latents)) for s in range(latents)]
        self._groups = {
            "latents": [dist.new_group(ranks) for ranks in slices][self.part],
            "data": [dist.new_group(ranks) for ranks in parts][self.slice],
            "all": dist.group.WORLD,
        }
        self._words = dist.new_group(backend="gloo")  # what is said in words does not wait for a device

    def __repr__(self) -> str:
        return f"Mesh(latents={self.latents}, data={self.data}; slice {self.slice}, part {self.part})"

    def __enter__(self) -> "Mesh":
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)

    @property
    def alike(self) -> "Mesh":
        """The same slices where every process sees the same tokens."""
        made = copy(self)
        made.data, made.part = 1, 0
        made._groups = {"latents": self._groups["latents"], "data": None, "all": self._groups["latents"]}
        return made

    def size(self, axis: str) -> int:
        return {"latents": self.latents, "data": self.data, "all": self.latents * self.data}[axis]

    def reduced(self, t: Tensor, axis: str, how: Any = dist.ReduceOp.SUM) -> Tensor:
        """The sum, or another reduction, of the processes along an axis; in place where t is contiguous."""
        if self.size(axis) > 1:
            t = t.contiguous()
            dist.all_reduce(t, how, self._groups[axis])
        return t

    def stacked(self, t: Tensor, axis: str) -> Tensor:
        """[processes along the axis, ...]: all of them, in order; the same shape everywhere."""
        if self.size(axis) == 1:
            return t[None]
        out = [torch.empty_like(t) for _ in range(self.size(axis))]
        dist.all_gather(out, t.contiguous(), self._groups[axis])
        return torch.stack(out)

    def joined(self, t: Tensor, axis: str) -> Tensor:
        """All of them one behind another along the first dimension, of any lengths."""
        if self.size(axis) == 1:
            return t
        counts = self.stacked(torch.tensor([len(t)], device=t.device), axis)[:, 0].tolist()
        padded = t.new_zeros(max(counts), *t.shape[1:])
        padded[: len(t)] = t
        return torch.cat([part[:n] for part, n in zip(self.stacked(padded, axis), counts)])

    def mine(self, tok: int) -> slice:
        """The part of `tok` tokens that is this process's."""
        return slice(tok * self.part // self.data, tok * (self.part + 1) // self.data)

    def local(self, bounds: list[int], d_sae: int) -> list[int]:
        """Where prefixes of the whole dictionary end in a slice of d_sae latents."""
        return [min(max(bound - self.slice * d_sae, 0), d_sae) for bound in bounds]

    def sent(self, t: Tensor, source: int) -> Tensor:
        """What one process has, for all; in place, contiguous, of the same shape everywhere."""
        group = self._words if t.device.type == "cpu" else self._groups["all"]
        if t.numel():
            dist.broadcast(t.view(torch.uint8), source, group)
        return t

    def told(self, what: Callable[[], Any]) -> Any:
        """What the first process finds, for all; what goes wrong there goes wrong everywhere.

        Raises:
            RuntimeError: elsewhere than in the first process, which raises what happened.
        """
        said: list[Any] = [None, ""]
        error: BaseException | None = None
        if self.first:
            try:
                said = [what(), ""]
            except Exception as failed:
                error, said = failed, [None, f"{type(failed).__name__}: {failed}"]
        dist.broadcast_object_list(said, 0, self._words)
        if error is not None:
            raise error
        if said[1]:
            raise RuntimeError(f"The first process failed: {said[1]}")
        return said[0]

    def all_told(self, what: Any) -> list[Any]:
        """What every process says, by rank."""
        out: list[Any] = [None] * dist.get_world_size(self._words)
        dist.all_gather_object(out, what, self._words)
        return out


def mesh() -> Mesh | None:
    """The mesh that is computed on; None on one device."""
    return _current.get()


@contextmanager
def alone() -> Iterator[None]:
    """Within, nothing is shared: every process has a whole SAE and all tokens."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def tokens(tok: int) -> int:
    """How many tokens a batch has in all, of which `tok` are here."""
    m = mesh()
    return tok if m is None else tok * m.data


def total(t: Tensor, axis: str) -> Tensor:
    """The sum over an axis of the mesh, for which each process has the gradient of its own share."""
    m = mesh()
    return t if m is None or m.size(axis) == 1 else _Total.apply(t, m, axis)


def token_mean(t: Tensor) -> Tensor:
    """The mean over a batch's tokens, which are the first axis."""
    return t.mean(0) if mesh() is None else total(t.sum(0), "data") / tokens(len(t))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, m, axis):
        return m.reduced(t.detach().clone(), axis)

    @staticmethod
    def backward(ctx, g):
        return g, None, None
