"""Adam in one pass over each weight, holding rows at unit norm where asked."""

from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Parameter

from .backends import backend_of
from .mesh import total


class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980) over named parameters.

    Rows of the parameters named in `unit` stay at norm 1: the part of the gradient along each row is removed before the
    step and the row is rescaled after it. Deterministic, whatever the number of threads. `lr` may be set between steps.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit: Iterable[str] = (),
    ):
        self.params, self.unit = dict(params), frozenset(unit)
        self.lr, self.betas, self.eps, self.steps = lr, betas, eps, 0
        unknown = self.unit - set(self.params)
        if unknown:
            raise ValueError(f"unit={sorted(unknown)} names no parameter. Parameters: {', '.join(self.params)}.")
        loose = [name for name, p in self.params.items() if not p.is_contiguous()]
        if loose:
            raise ValueError(f"Adam moves parameters in place; {', '.join(loose)} must be contiguous. Clone them so.")
        self.m = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.params.items()}
        self.v = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.params.items()}

    @torch.no_grad()
    def grad_norm(self, sliced: Iterable[str] = ()) -> float:
        """Euclidean norm of all gradients together; each row summed on its own, then the rows in order.

        Args:
            sliced: parameters of which other processes of the mesh have other rows.
        """
        rows = {n: _rows(p.grad).norm(dim=1).double().square() for n, p in self.params.items() if p.grad is not None}
        there = [row for name, row in rows.items() if name in sliced]
        here = [row for name, row in rows.items() if name not in sliced]
        squares = torch.cat(here).cumsum(0)[-1] if here else torch.zeros(())
        if there:
            squares = squares + total(torch.cat(there).sum(), "latents").to(squares)
        return squares.sqrt().item()

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One step along the gradients times `scale` (for clipping by `grad_norm`)."""
        self.steps += 1
        for name, p in self.params.items():
            if p.grad is None:
                continue
            backend_of(p).adam_rows(
                *map(_rows, (p, p.grad, self.m[name], self.v[name])),
                scale=scale,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                step=self.steps,
                unit=name in self.unit,
            )

    def zero_grad(self) -> None:
        """Forgets the gradients; autograd then hands over fresh ones without a copy."""
        for p in self.params.values():
            p.grad = None

    def reset_rows(self, name: str, rows: Tensor) -> None:
        """Forgets the moments of some rows of one parameter."""
        self.m[name][rows] = 0
        self.v[name][rows] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """All state as tensors: the moments by parameter, and the number of steps."""
        state = {f"m.{name}": t for name, t in self.m.items()} | {f"v.{name}": t for name, t in self.v.items()}
        return state | {"steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            ValueError: if it belongs to other parameters.
        """
        if set(state) != set(self.state_dict()):
            odd = sorted(set(state) ^ set(self.state_dict()))
            raise ValueError(f"This optimiser state is of other parameters: {', '.join(odd)}.")
        for name, t in chain(((f"m.{n}", t) for n, t in self.m.items()), ((f"v.{n}", t) for n, t in self.v.items())):
            t.copy_(state[name])
        self.steps = int(state["steps"])


def _rows(t: Tensor) -> Tensor:
    t = t.to_dense() if t.is_sparse else t  # AuxK alone gives rows
    return t.reshape(len(t), -1) if t.dim() else t.reshape(1, 1)
