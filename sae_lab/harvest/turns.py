"""Text that the processes of a mesh read in turn: each block once, by one of them, for all."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..sparse import Mesh

Block = dict[str, Tensor]


class Turns:
    """Blocks by number; every process asks for the same ones in the same order.

    Block n is read by process n modulo their number, as many at a time as there are processes.
    """

    def __init__(self, mesh: Mesh, read: Callable[[int], Block], like: Callable[[int], Block]):
        """
        Args:
            read: a whole block, on this process.
            like: empty tensors for a block of so many rows.
        """
        self.mesh, self._read, self._like = mesh, read, like
        self._counts: dict[int, int] = {}  # rows of the blocks of this round
        self._mine: Block = {}

    def __call__(self, number: int) -> Block:
        """Raises:
        Exception: in every process what went wrong in one of them.
        """
        if number not in self._counts:
            self._read_on(number)
        world, owner = self.mesh.world, number % self.mesh.world
        mine = owner == self.mesh.rank
        block = self._mine if mine else self._like(self._counts[number])
        return {name: self.mesh.sent(block[name], owner) for name in sorted(block)} if world > 1 else block

    def _read_on(self, first: int) -> None:
        """Everyone reads a block: `first` and those behind it."""
        numbers, failed = range(first, first + self.mesh.world), None
        self._counts, self._mine = {}, {}
        try:
            self._mine = self._read(next(n for n in numbers if n % self.mesh.world == self.mesh.rank))
        except Exception as error:
            failed = error if type(error).__module__ == "builtins" else RuntimeError(f"{type(error).__name__}: {error}")
        said = self.mesh.all_told((len(next(iter(self._mine.values()), ())), failed))
        if wrong := next((error for _, error in said if error), None):
            raise wrong
        self._counts = {n: said[n % self.mesh.world][0] for n in numbers}


def joined(pieces: list[Block]) -> Block:
    """The pieces of a block as one."""
    return {name: torch.cat([piece[name] for piece in pieces]).contiguous() for name in pieces[0]}
