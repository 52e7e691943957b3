"""The best one-to-one assignment of rows to columns: shortest augmenting paths after bidding (Jonker & Volgenant 1987).

Every column has a price, 0 to begin with. A row wants the column where gain - price is highest; prices rise until no
two rows want the same one. They prove the result: see `matching.Pairs.slack`. As in `kernels`, loops for numba.
"""

import numpy as np

from .kernels import jit

PATIENCE = 20  # bids per row before the last rows are placed by shortest paths


@jit(reordered=False)
def assign(gain):
    """(column of each row, price of each column) for the highest sum of gain; at least as many columns as rows.

    No price is below 0, and that of a column left over is 0.
    """
    rows, columns = gain.shape
    price, owner, partner = np.zeros(columns), np.full(columns, -1), np.full(rows, -1)
    for row in bid(gain, price, owner, partner):
        augment(gain, price, owner, partner, row)
    return partner, price


@jit(reordered=False)
def bid(gain, price, owner, partner):
    """Rows take the column they want from whoever has it, and raise its price to where their second choice is as good.

    Returns the rows that are without one after two rounds; one that no bid could help waits for the next round.
    """
    rows, columns = gain.shape
    queue, waiting, patience = np.arange(rows), rows, PATIENCE * rows
    for _ in range(2):
        at = left = 0
        while at < waiting:
            row = queue[at]
            at += 1
            best = second = -np.inf
            wanted = other = -1
            for column in range(columns):
                worth = gain[row, column] - price[column]
                if worth > best:
                    best, second, wanted, other = worth, best, column, wanted
                elif worth > second:
                    second, other = worth, column
            clear = best > second > -np.inf
            if clear:
                price[wanted] += best - second
            elif other >= 0 and owner[wanted] >= 0:
                wanted = other
            ousted, owner[wanted], partner[row] = owner[wanted], row, wanted
            if ousted >= 0:
                patience -= 1
                if clear and patience > 0:
                    at -= 1
                    queue[at] = ousted
                else:
                    queue[left] = ousted
                    left += 1
        waiting = left
    return queue[:waiting]


@jit(reordered=False)
def augment(gain, price, owner, partner, start):
    """Gives row `start` a column along the path that costs the others least (Dijkstra), and raises prices to match."""
    columns = gain.shape[1]
    far, known, before = np.full(columns, np.inf), price.copy(), np.full(columns, start)
    settled, when, n = np.empty(columns, np.int64), np.empty(columns), 0
    row, here, best = start, 0.0, 0.0
    while True:
        of, ahead = gain[row], here - best
        for column in range(columns):
            way = ahead + (known[column] - of[column])
            closer = way < far[column]
            far[column] = way if closer else far[column]
            before[column] = row if closer else before[column]
        here, nearest = np.inf, -1
        for column in range(columns):
            if far[column] < here or (far[column] == here and owner[column] < 0):
                here, nearest = far[column], column
        if owner[nearest] < 0:
            break
        settled[n], when[n], n = nearest, here, n + 1
        row = owner[nearest]
        best = price[nearest] - gain[row, nearest]
        known[nearest] = far[nearest] = np.inf  # settled: not to be reached again
    for i in range(n):
        price[settled[i]] += here - when[i]
    column = nearest
    while True:
        row = before[column]
        owner[column] = row
        column, partner[row] = partner[row], column
        if row == start:
            break
