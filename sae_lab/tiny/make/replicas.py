"""A step's rows shared among processes of one thread each, which meet once a step: on a busy CPU threads that meet at
every product wait for each other most of the time.

The parameters of all processes are views of one shared vector, which the parent's optimisers change in place; each
replica writes its gradients into its own row of a second one.
"""

import math

import numpy as np
import torch
from torch import nn

from .net import Net


def views(flat: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    """A vector as tensors shaped like a model's parameters, in their order."""
    sizes = [p.numel() for p in model.parameters()]
    return [v.view(p.shape) for v, p in zip(flat.split(sizes), model.parameters(), strict=True)]


def _work(pipe, build, arguments, compiled: bool, weights: torch.Tensor, gradients: torch.Tensor) -> None:
    torch.set_num_threads(1)
    model = build(*arguments)
    for parameter, value, gradient in zip(model.parameters(), views(weights, model), views(gradients, model)):
        parameter.data, parameter.grad = value, gradient
    net = Net(model, compiled)
    while True:
        try:
            parts = pipe.recv()
        except EOFError:  # the trainer has ended
            return
        gradients.zero_()
        loss = net.loss(*tensors(parts))
        loss.backward()
        pipe.send((loss.item(), int((parts[1] >= 0).sum())))


def tensors(parts, device="cpu") -> list[torch.Tensor]:
    """Rows, targets and emphasis as the net takes them."""
    return [torch.from_numpy(p if p.dtype != np.uint16 else p.astype(np.int64)).to(device) for p in parts]


class Alone:
    """The same work in this process, on any device."""

    def __init__(self, model: nn.Module, device: str, compiled: bool):
        self.net, self.device = Net(model, compiled), device

    def learn(self, rows: np.ndarray, target: np.ndarray, *emphasis: np.ndarray) -> tuple[float, int]:
        """(mean loss, how many targets) of packed rows; leaves the mean loss's gradient in the model."""
        loss = self.net.loss(*tensors((rows, target, *emphasis), self.device))
        loss.backward()
        return loss.item(), int((target >= 0).sum())

    def close(self) -> None:
        """Nothing to end."""


class Replicas:
    """`n` processes that each take a share of a step's rows. `build(*arguments)` makes their model."""

    def __init__(self, model: nn.Module, build, arguments: tuple, n: int, compiled: bool):
        context = torch.multiprocessing.get_context("spawn")
        size = sum(p.numel() for p in model.parameters())
        self.model, self.weights = model, torch.zeros(size).share_memory_()
        self.gradients = torch.zeros(n, size).share_memory_()
        for parameter, view in zip(model.parameters(), views(self.weights, model)):
            view.copy_(parameter.data)
            parameter.data = view
        self.pipes, self.processes = [], []
        for i in range(n):
            ours, theirs = context.Pipe()
            shared = (theirs, build, arguments, compiled, self.weights, self.gradients[i])
            self.processes.append(context.Process(target=_work, args=shared, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(ours)

    def learn(self, rows: np.ndarray, target: np.ndarray, *emphasis: np.ndarray) -> tuple[float, int]:
        """(mean loss, how many targets) of packed rows; leaves the mean loss's gradient in the model."""
        n = len(self.pipes)
        for pipe, *parts in zip(self.pipes, *(np.array_split(a, n) for a in (rows, target, *emphasis))):
            pipe.send(parts)
        found = [pipe.recv() for pipe in self.pipes]
        total = sum(count for _, count in found)
        share = torch.tensor([count / total for _, count in found])
        for parameter, gradient in zip(self.model.parameters(), views(share @ self.gradients, self.model)):
            parameter.grad = gradient
        return math.fsum(loss * count for loss, count in found) / total, total

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self.pipes, self.processes):
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.terminate()
