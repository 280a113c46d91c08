"""Derives the Wyckoff positions of the 230 space groups from their symmetry operations alone, in exact arithmetic.

The result is shipped as ``wyckoff.npz`` and read by :mod:`hydroflow.structures.wyckoff`; run
``python -m hydroflow.structures.wyckoff_derivation`` to write it anew (10 s). Operations come from moyopy (standard
setting: unique axis b, hexagonal axes, origin choice 2), in the primitive cell.

Method. On the torus R³/Z³ the points that an operation (R, t) fixes are the solutions of (R − 1) x ≡ −t (mod 1): finitely
many affine subspaces, found exactly through the Smith normal form. Intersecting them until nothing new appears gives every
fixed subspace of every site-symmetry group; a Wyckoff position is one orbit of these subspaces under the group
(International Tables A, chapter 1.4). A subspace is written {x : N x ≡ c (mod 1)} with N an integer matrix in Hermite
normal form whose rows span all integer relations, which makes (N, c) a unique key.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

Matrix = list[list[int]]
Vector = list[Fraction]
Key = tuple[tuple[tuple[int, ...], ...], tuple[Fraction, ...]]

DENOMINATOR = 48
"""All translations and all fixed coordinates are multiples of 1/48 in the primitive basis (asserted)."""


@dataclass(frozen=True)
class Position:
    """One Wyckoff position in the primitive basis.

    Attributes
    ----------
    base : (3,) fractions
        A point of the representative subspace.
    directions : (3, d) integers
        Its d free directions: x = base + directions · u.
    operations
        Indices of the operations that make the orbit of a generic point, one per atom; the first is the identity.
    """

    base: tuple[Fraction, ...]
    directions: tuple[tuple[int, ...], ...]
    operations: tuple[int, ...]

    @property
    def freedom(self) -> int:
        return len(self.directions[0]) if self.directions[0] else 0


def _identity(n: int) -> Matrix:
    return [[int(i == j) for j in range(n)] for i in range(n)]


def smith(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """(U, D, V) with U·matrix·V = D diagonal, U and V unimodular (divisibility of the diagonal is not needed here)."""
    a = [row[:] for row in matrix]
    rows, cols = len(a), len(a[0])
    u, v = _identity(rows), _identity(cols)
    pivot = 0
    while pivot < min(rows, cols):
        entries = [(abs(a[i][j]), i, j) for i in range(pivot, rows) for j in range(pivot, cols) if a[i][j]]
        if not entries:
            break
        _, i, j = min(entries)
        a[pivot], a[i] = a[i], a[pivot]
        u[pivot], u[i] = u[i], u[pivot]
        for m in (a, v):
            for row in m:
                row[pivot], row[j] = row[j], row[pivot]
        clean = True
        for i in range(pivot + 1, rows):
            q = a[i][pivot] // a[pivot][pivot]
            a[i] = [x - q * y for x, y in zip(a[i], a[pivot], strict=True)]
            u[i] = [x - q * y for x, y in zip(u[i], u[pivot], strict=True)]
            clean &= a[i][pivot] == 0
        for j in range(pivot + 1, cols):
            q = a[pivot][j] // a[pivot][pivot]
            for m in (a, v):
                for row in m:
                    row[j] -= q * row[pivot]
            clean &= a[pivot][j] == 0
        if clean:
            pivot += 1
    return u, a, v


def hermite(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Row Hermite normal form H and unimodular T with T·matrix = H (positive pivots, entries above reduced)."""
    a = [row[:] for row in matrix]
    rows, cols = len(a), len(a[0]) if a else 0
    t = _identity(rows)
    top = 0
    for col in range(cols):
        while True:
            below = [i for i in range(top, rows) if a[i][col]]
            if not below:
                break
            i = min(below, key=lambda k: abs(a[k][col]))
            a[top], a[i] = a[i], a[top]
            t[top], t[i] = t[i], t[top]
            if a[top][col] < 0:
                a[top] = [-x for x in a[top]]
                t[top] = [-x for x in t[top]]
            for i in [*range(top), *range(top + 1, rows)]:
                q = a[i][col] // a[top][col]
                a[i] = [x - q * y for x, y in zip(a[i], a[top], strict=True)]
                t[i] = [x - q * y for x, y in zip(t[i], t[top], strict=True)]
            if not any(a[i][col] for i in range(top + 1, rows)):
                top += 1
                break
    return a, t


def _apply(matrix: Matrix, vector: Vector) -> Vector:
    return [sum((Fraction(m) * x for m, x in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def _key(relations: Matrix, values: Vector) -> Key:
    h, t = hermite(relations)
    return tuple(map(tuple, h)), tuple(x % 1 for x in _apply(t, values))


def _subspace(key: Key) -> tuple[Vector, Matrix]:
    """A point and the direction matrix (3, d) of the subspace {x : N x ≡ c}."""
    relations, values = [list(r) for r in key[0]], list(key[1])
    if not relations:
        return [Fraction(0)] * 3, _identity(3)
    u, d, v = smith(relations)
    rank = len(relations)
    right = _apply(u, values)
    y = [right[i] / d[i][i] for i in range(rank)] + [Fraction(0)] * (3 - rank)
    return [x % 1 for x in _apply(v, y)], [row[rank:] for row in v]


def _key_of(point: Vector, directions: Matrix) -> Key:
    """The unique key of the subspace point + directions·u: its integer relations are the left null space."""
    if not directions[0]:
        return _key(_identity(3), point)
    u, d, _ = smith(directions)
    rank = sum(1 for i in range(min(3, len(d[0]))) if d[i][i])
    relations = u[rank:]
    return ((), ()) if not relations else _key(relations, _apply(relations, point))


def _fixed_within(point: Vector, directions: Matrix, rotation: Matrix, translation: Vector) -> list[tuple[Vector, Matrix]]:
    """The components of the subspace that an operation fixes (modulo the lattice); [] when none."""
    minus = [[rotation[i][j] - int(i == j) for j in range(3)] for i in range(3)]
    right = [-t - x for t, x in zip(translation, _apply(minus, point), strict=True)]
    if not directions[0]:
        return [(point, directions)] if all(x.denominator == 1 for x in right) else []
    a = [[sum(minus[i][k] * directions[k][j] for k in range(3)) for j in range(len(directions[0]))] for i in range(3)]
    u, d, v = smith(a)
    b = _apply(u, right)
    freedom = len(v)
    choices: list[list[Fraction]] = [[]]
    for i in range(3):
        pivot = d[i][i] if i < freedom else 0
        if pivot == 0:
            if b[i].denominator != 1:
                return []
            continue
        choices = [[*c, (b[i] + k) / pivot] for c in choices for k in range(abs(pivot))]
    rank = len(choices[0])
    out = []
    for c in choices:
        w = _apply(v, [*c, *[Fraction(0)] * (freedom - rank)])
        p = [x + y for x, y in zip(point, _apply(directions, w), strict=True)]
        kept = range(rank, freedom)
        out.append((p, [[sum(directions[i][k] * v[k][j] for k in range(freedom)) for j in kept] for i in range(3)]))
    return out


def _transformed(key: Key, inverse: Matrix, translation: Vector) -> Key:
    """The key of R·F + t for the subspace F: N x ≡ c becomes N R⁻¹ x' ≡ c + N R⁻¹ t."""
    if not key[0]:
        return key
    relations = [[sum(row[k] * inverse[k][j] for k in range(3)) for j in range(3)] for row in key[0]]
    shift = _apply(relations, translation)
    return _key(relations, [c + s for c, s in zip(key[1], shift, strict=True)])


def positions(rotations: list[Matrix], translations: list[Vector]) -> list[Position]:
    """Wyckoff positions of a group given by its operations in a primitive basis, most special first."""
    inverses = [np.rint(np.linalg.inv(np.array(r))).astype(int).tolist() for r in rotations]
    operations = list(zip(rotations, translations, strict=True))
    classes: dict[Key, Key] = {}
    found: list[Key] = []
    queue: deque[Key] = deque([((), ())])
    while queue:
        key = queue.popleft()
        if key in classes:
            continue
        found.append(key)
        for inverse, t in zip(inverses, translations, strict=True):
            classes[_transformed(key, inverse, t)] = key
        point, directions = _subspace(key)
        for rotation, t in operations:
            for p, d in _fixed_within(point, directions, rotation, t):
                smaller = _key_of(p, d)
                if smaller not in classes:
                    queue.append(smaller)
    # An irrational-looking point of a subspace lies on no smaller one, so its images tell the orbit.
    generic = [Fraction(1009, 10007), Fraction(2711, 10009), Fraction(4591, 10037)]
    out = []
    for key in found:
        point, directions = _subspace(key)
        x = point if not directions[0] else [
            p + s for p, s in zip(point, _apply(directions, generic[:len(directions[0])]), strict=True)]
        images: dict[tuple[Fraction, ...], int] = {}
        for i, (rotation, t) in enumerate(operations):
            image = tuple((y + s) % 1 for y, s in zip(_apply(rotation, x), t, strict=True))
            images.setdefault(image, i)
        out.append(Position(tuple(point), tuple(map(tuple, directions)), tuple(images.values())))
    out.sort(key=lambda p: (p.freedom, len(p.operations), p.base))
    return out


def operations_of(number: int) -> tuple[list[Matrix], list[Vector]]:
    """Rotations and translations of a space group in the primitive basis of its standard setting, identity first."""
    import moyopy

    ops = moyopy.operations_from_number(number, setting=moyopy.Setting.standard(), primitive=True)
    rotations = [[[int(x) for x in row] for row in r] for r in ops.rotations]
    translations = [[Fraction(round(x * DENOMINATOR), DENOMINATOR) % 1 for x in t] for t in ops.translations]
    first = rotations.index(_identity(3))
    order = [first, *[i for i in range(len(rotations)) if i != first]]
    return [rotations[i] for i in order], [translations[i] for i in order]


def _standard_halls() -> list[int]:
    """Hall number of the standard setting, per space group 1 to 230."""
    import moyopy

    out = []
    for number in range(1, 231):
        reference = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
        for hall in range(1, 531):
            if moyopy.HallSymbolEntry(hall).number != number:
                continue
            ops = moyopy.operations_from_number(number, setting=moyopy.Setting.hall_number(hall))
            if ops.rotations == reference.rotations and np.allclose(ops.translations, reference.translations):
                out.append(hall)
                break
    return out


def derive(path: Path) -> None:
    """Derive all groups and write the tables (see :class:`hydroflow.structures.wyckoff.WyckoffTables`)."""
    halls = _standard_halls()
    import moyopy

    rotations, translations, base, directions, freedom = [], [], [], [], []
    orbit: list[int] = []
    operation_start, position_start, orbit_start, primitive = [0, 0], [0, 0], [0], [np.eye(3)]
    for number in range(1, 231):
        r, t = operations_of(number)
        for p in positions(r, t):
            scaled = [x * DENOMINATOR for x in p.base]
            assert all(x.denominator == 1 for x in scaled), (number, p)
            base.append([int(x) for x in scaled])
            padded = np.zeros((3, 3), int)
            padded[:, :p.freedom] = np.array(p.directions).reshape(3, p.freedom)
            directions.append(padded)
            freedom.append(p.freedom)
            orbit.extend(operation_start[-1] + i for i in p.operations)
            orbit_start.append(len(orbit))
        rotations.extend(r)
        translations.extend([[int(x * DENOMINATOR) for x in row] for row in t])
        operation_start.append(len(rotations))
        position_start.append(len(base))
        # moyopy's matrix takes primitive to conventional column vectors; ours primitive rows = M · conventional rows.
        linear = np.array(moyopy.HallSymbolEntry(halls[number - 1]).centering.linear, float)
        primitive.append(np.linalg.inv(linear).T)
    np.savez_compressed(
        path, rotations=np.array(rotations, np.int8), translations=np.array(translations, np.int8),
        base=np.array(base, np.int8), directions=np.array(directions, np.int8), freedom=np.array(freedom, np.int8),
        orbit=np.array(orbit, np.int16), operation_start=np.array(operation_start, np.int16),
        position_start=np.array(position_start, np.int16), orbit_start=np.array(orbit_start, np.int32),
        primitive=np.array(primitive),
    )


if __name__ == "__main__":
    derive(Path(__file__).with_name("wyckoff.npz"))
