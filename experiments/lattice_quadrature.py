"""The normaliser of a scalar field on a small periodic lattice, by a transfer matrix.

The field has the action S = sum over sites x of [sum over directions (phi(x + e) - phi(x))^2 + m^2 phi^2 + g phi^4].
Its weight exp(-S) is a product of a weight of each site and of exp(2 phi phi') of each bond. On quadrature nodes, the
bond is a symmetric matrix with fast decaying eigenvalues; `rank` of them make the field of a bond a small index. The
partition function is then the trace of a power of the matrix that adds a row of sites.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

NODES, EDGE = 64, 2.4  # Gauss-Legendre nodes from -EDGE to EDGE, beyond which the fields below have no weight


def site_tensor(mass: float, coupling: float, rank: int) -> np.ndarray:
    """The weight of a site in terms of the indices of its four bonds, [rank, rank, rank, rank]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = EDGE * nodes, EDGE * weights
    site = weights * np.exp(-(4 + mass) * nodes**2 - coupling * nodes**4)
    quarter = site**0.25  # a site takes part in four bonds
    values, vectors = np.linalg.eigh(quarter[:, None] * np.exp(2 * np.outer(nodes, nodes)) * quarter)
    factors = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
    return np.einsum("xa,xb,xc,xd->abcd", factors, factors, factors, factors, optimize=True)


def add_row(tensor: np.ndarray, states: np.ndarray, size: int) -> np.ndarray:
    """Applies the matrix of a row of `size` sites on a ring to states [rank ** size, m]."""
    rank, m = len(tensor), states.shape[1]
    # first bond of the ring, bond reached so far, bonds of the row below, then those above, and the states
    partial = np.einsum("gh,am->gham", np.eye(rank), states).reshape(rank, rank, -1)
    by_bonds = tensor.transpose(1, 0, 2, 3).reshape(rank**2, rank**2)  # (left, below) to (above, right)
    for _ in range(size):
        rest = partial.reshape(rank, rank, rank, -1, m).transpose(0, 3, 4, 1, 2)
        after = (rest.reshape(-1, rank**2) @ by_bonds).reshape(rank, -1, m, rank, rank)
        partial = after.transpose(0, 4, 1, 3, 2).reshape(rank, rank, -1)
    return np.einsum("ggx->x", partial).reshape(-1, m)


def lattice_log_z(
    size: int, mass: float, coupling: float, *, rank: int = 5, eigenvalues: int = 60, dense: int = 2500
) -> float:
    """log of the integral of exp(-S) over the fields of a `size` x `size` lattice.

    Args:
      size: sites on a side, from 2; mass: m^2; coupling: g.
      rank: indices of a bond; eigenvalues: of the row matrix that are summed where it has more than `dense` rows, so
        that it is not stored.
    """
    tensor = site_tensor(mass, coupling, rank)
    states = rank**size
    if states <= dense:
        row = add_row(tensor, np.eye(states), size)
        half = np.linalg.matrix_power(row, size // 2)
        other = half if size % 2 == 0 else half @ row
        return float(np.log(np.sum(half * other.T)))
    operator = LinearOperator(
        (states, states), matvec=lambda v: add_row(tensor, v.reshape(-1, 1), size)[:, 0], dtype=np.float64
    )
    found = eigsh(operator, k=eigenvalues, which="LM", return_eigenvectors=False, tol=1e-8)
    largest = np.abs(found).max()
    return float(size * np.log(largest) + np.log(np.sum((found / largest) ** size)))


def brute_force_log_z(mass: float, coupling: float, nodes: int = 40) -> float:
    """The same of a 2 x 2 lattice, by quadrature over its four sites."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    a, b, c, d = np.meshgrid(*[EDGE * points] * 4, indexing="ij", sparse=True)
    action = sum((4 + mass) * site**2 + coupling * site**4 for site in (a, b, c, d))
    action = action - 4 * (a * b + c * d + a * c + b * d)  # each pair of neighbours is joined by two bonds
    w = EDGE * weights
    return float(np.log(np.einsum("abcd,a,b,c,d->", np.exp(-action), w, w, w, w, optimize=True)))
