"""A small molecule whose density and samples are exact: a chain with side atoms, in vacuum.

    python experiments/chain_potential.py chain.npz        # 100,000 conformations, in angstrom

Four residues of three atoms, of three kinds: backbone atoms A and B, and a side atom S that is bound to B. Bonds and
angles are harmonic, and torsions have cosines; there is no other interaction. Every atom is placed by a bond, an angle
and a torsion relative to three others, so that all of these are independent, and the normaliser is a product of
integrals of one number each. The centre of mass is normal and the orientation uniform.

The file is also the target of `starflow draw-target`: `log_density` is normalised, so that log Z is 0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.atomic_writing import replacing

RESIDUES = 4
# Residue by residue: A, B, S.
KINDS = (0, 1, 2) * RESIDUES
ATOMS = len(KINDS)
BACKBONE = tuple(atom for atom in range(ATOMS) if KINDS[atom] != 2)
SIDE = tuple(atom for atom in range(ATOMS) if KINDS[atom] == 2)

# By the kind of the atom that is placed: length and angle at its neighbour (angstrom, radian), and the torsion's
# energy -strength cos(fold phi) in units of kT.
LENGTHS, ANGLES = (1.33, 1.46, 1.53), (2.03, 2.12, 1.92)
LENGTH_DEVIATION, ANGLE_DEVIATION, CENTRE_DEVIATION = 0.06, 0.1, 0.5
FOLDS, STRENGTHS = (2, 2, 1), (1.5, 0.7, -2.0)


class Placement(NamedTuple):
    """An atom, the one that it is bound to, the next one of its angle, and the last one of its torsion."""

    atom: int
    parent: int
    second: int
    third: int


def _placements() -> list[Placement]:
    """Those of all atoms but the first three of the backbone, in an order in which each finds its references."""
    chain = [Placement(*(BACKBONE[i - k] for k in range(4))) for i in range(3, len(BACKBONE))]
    sides = []
    for atom in SIDE:
        following = atom + 1 if atom + 1 < ATOMS else atom - 4  # A of the next residue; at the end, B of the one before
        sides.append(Placement(atom, atom - 1, atom - 2, following))
    return chain + sides


PLACEMENTS = _placements()


def _bond(r: np.ndarray, kind: int) -> np.ndarray:
    """The density of a bond's length, up to a constant; r^2 is the volume element of spherical coordinates."""
    return r**2 * np.exp(-0.5 * ((r - LENGTHS[kind]) / LENGTH_DEVIATION) ** 2)


def _angle(theta: np.ndarray, kind: int) -> np.ndarray:
    return np.sin(theta) * np.exp(-0.5 * ((theta - ANGLES[kind]) / ANGLE_DEVIATION) ** 2)


def _torsion(phi: np.ndarray, kind: int) -> np.ndarray:
    return np.exp(STRENGTHS[kind] * np.cos(FOLDS[kind] * phi))


GRIDS: dict[Callable[[np.ndarray, int], np.ndarray], np.ndarray] = {
    _bond: np.linspace(0.5, 2.5, 20_001),
    _angle: np.linspace(0.0, math.pi, 20_001),
    _torsion: np.linspace(-math.pi, math.pi, 20_001),
}


def _log_normaliser() -> float:
    """The logarithm of the integral of exp(-energy) over all coordinates but the centre of mass."""

    def log_integral(density: Callable[[np.ndarray, int], np.ndarray], atom: int) -> float:
        grid = GRIDS[density]
        return math.log(np.trapezoid(density(grid, KINDS[atom]), grid))

    _, second, third = BACKBONE[:3]
    total = math.log(4 * math.pi) + log_integral(_bond, second)  # the direction of the first bond
    total += math.log(2 * math.pi) + log_integral(_bond, third) + log_integral(_angle, third)
    return total + sum(log_integral(density, place.atom) for place in PLACEMENTS for density in GRIDS)


LOG_NORMALISER = _log_normaliser()


def log_density(x: jax.Array) -> jax.Array:
    """The normalised log-density of conformations [n, 12, 3], [n], in nats."""
    centre = jnp.mean(x, axis=1)
    total = -0.5 * jnp.sum((centre / CENTRE_DEVIATION) ** 2, axis=1)
    total = total - 3 * math.log(CENTRE_DEVIATION * math.sqrt(2 * math.pi)) - LOG_NORMALISER
    # The volume element of moving the centre of mass instead of the first atom is 1.
    first, second, third = BACKBONE[:3]
    bonds = [(second, first), (third, second), *((place.atom, place.parent) for place in PLACEMENTS)]
    angles = [(third, second, first), *(place[:3] for place in PLACEMENTS)]
    total = total + _harmonic(jnp.stack([_norm(x[:, a] - x[:, b]) for a, b in bonds], 1), bonds, LENGTHS)
    total = total + _harmonic(jnp.stack([_angle_of(x, *atoms) for atoms in angles], 1), angles, ANGLES)
    for place in PLACEMENTS:
        kind, cosine = KINDS[place.atom], _torsion_cosine(x, place)
        total = total + STRENGTHS[kind] * (cosine if FOLDS[kind] == 1 else 2 * cosine**2 - 1)
    return total


def _harmonic(values: jax.Array, atoms: list[tuple[int, ...]], centres: tuple[float, ...]) -> jax.Array:
    deviation = LENGTH_DEVIATION if centres is LENGTHS else ANGLE_DEVIATION
    expected = jnp.asarray([centres[KINDS[group[0]]] for group in atoms])
    return -0.5 * jnp.sum(((values - expected) / deviation) ** 2, axis=1)


def _norm(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(v * v, axis=-1))


def _angle_of(x: jax.Array, atom: int, parent: int, second: int) -> jax.Array:
    u, v = x[:, atom] - x[:, parent], x[:, second] - x[:, parent]
    return jnp.arctan2(_norm(jnp.cross(u, v)), jnp.sum(u * v, axis=1))


def _torsion_cosine(x: jax.Array, place: Placement) -> jax.Array:
    """The cosine of the torsion around the bond of an atom's parent and its second neighbour."""
    axis = x[:, place.parent] - x[:, place.second]
    axis = axis / _norm(axis)[:, None]

    def across(v: jax.Array) -> jax.Array:
        v = v - jnp.sum(v * axis, axis=1, keepdims=True) * axis
        return v / _norm(v)[:, None]

    near, far = x[:, place.atom] - x[:, place.parent], x[:, place.third] - x[:, place.second]
    return jnp.sum(across(near) * across(far), axis=1)


def conformations(num: int, seed: int = 0) -> np.ndarray:
    """Independent conformations, float32 [num, 12, 3], in angstrom."""
    rng = np.random.default_rng(seed)

    def drawn(density: Callable[[np.ndarray, int], np.ndarray], atom: int) -> np.ndarray:
        grid = GRIDS[density]
        steps = density(grid, KINDS[atom])
        share = np.concatenate([[0.0], np.cumsum(0.5 * (steps[1:] + steps[:-1]))])
        return np.interp(rng.uniform(size=num), share / share[-1], grid)[:, None]

    x = np.zeros((num, ATOMS, 3))
    _, second, third = BACKBONE[:3]
    along, across = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    x[:, second] = drawn(_bond, second) * along
    r, theta = drawn(_bond, third), drawn(_angle, third)
    x[:, third] = x[:, second] + r * (np.sin(theta) * across - np.cos(theta) * along)
    for place in PLACEMENTS:
        atom, parent, second, third = place
        r, theta, phi = (drawn(density, atom) for density in GRIDS)
        axis = _unit(x[:, parent] - x[:, second])
        normal = _unit(np.cross(x[:, second] - x[:, third], axis))
        plane = np.cross(normal, axis)
        turned = np.cos(phi) * plane + np.sin(phi) * normal
        x[:, atom] = x[:, parent] + r * (np.sin(theta) * turned - np.cos(theta) * axis)
    x = np.einsum("nij,naj->nai", _rotations(rng, num), x - x.mean(axis=1, keepdims=True))
    return (x + CENTRE_DEVIATION * rng.normal(size=(num, 1, 3))).astype(np.float32)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def _rotations(rng: np.random.Generator, num: int) -> np.ndarray:
    """Uniform rotations [num, 3, 3], from normal quaternions."""
    w, x, y, z = np.moveaxis(_unit(rng.normal(size=(num, 4))), 1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.moveaxis(np.asarray(rows), 2, 0)


def normal_log_density(x: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """The log-density [n] of x [n, 12, 3] by the normal density with the mean and covariance of `fitted` [m, 12, 3]."""
    rows, others = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (x, fitted))
    root = np.linalg.cholesky(np.cov(others, rowvar=False))
    white = np.linalg.solve(root, (rows - others.mean(axis=0)).T)
    return -0.5 * (white**2).sum(axis=0) - np.log(np.diag(root)).sum() - 0.5 * rows.shape[1] * math.log(2 * math.pi)


def main() -> None:
    """Writes conformations, and prints the mean log-density of a tenth, the most of any model, and a normal one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .npz file, which holds x [num, 12, 3]")
    parser.add_argument("--num", type=int, default=100_000, help="at least 100")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.num < 100:
        parser.error(f"--num must be at least 100, got {args.num}")
    x = conformations(args.num, args.seed)
    with replacing(args.out) as temporary:
        np.savez(temporary, x=x)
    held_out, others = x[9::10], np.delete(x, np.s_[9::10], axis=0)
    print(f"{args.out}: {args.num} conformations")
    for name, values in (
        ("mean log-density of every tenth", np.asarray(jax.jit(log_density)(held_out), np.float64)),
        ("that of a normal density with the mean and covariance of the others", normal_log_density(held_out, others)),
    ):
        print(f"{name}: {values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f} nats")


if __name__ == "__main__":
    main()
