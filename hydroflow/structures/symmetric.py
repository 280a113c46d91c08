"""The compiled generator of random symmetric structures: from Wyckoff tables to coordinates, one structure at a time.

For one structure: a space group from those that can host the composition; fixed Wyckoff positions handed to the species
so that what remains can always be seated on free positions; a random lattice of the target volume within the crystal
system; then the orbits one after another, each checked before it is kept. Only the orbit's first atom is checked
against all atoms placed so far and all images within reach, which is exact because the group maps everything placed onto
itself. All work is bounded. Every structure has its own random stream, so that results do not depend on batching.
"""

from __future__ import annotations

import math

import numpy as np

from hydroflow.structures.compiled import compiled
from hydroflow.structures.wyckoff import WyckoffTables

MAX_ASSIGNMENTS = 1024
"""Assignments of fixed positions kept per (composition, space group); beyond it a random subset (reservoir)."""
GROUP_DRAWS = 30
"""Space groups tried per structure before it is given up."""
ATTEMPTS = 6
"""Lattices and assignments tried per space group."""
POINT_TRIES = 10
"""Random points tried per free orbit before another position is chosen."""
POSITION_TRIES = 4
"""Free positions tried per orbit before the attempt is dropped."""


@compiled
def next_random(state: np.ndarray) -> float:
    """Uniform number in [0, 1) from a counter-based stream (SplitMix64, Steele et al. 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def next_normal(state: np.ndarray) -> float:
    """Standard normal number (Box–Muller)."""
    u = 1.0 - next_random(state)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * next_random(state))


@compiled
def assignments(
    t: WyckoffTables, group: int, counts: np.ndarray, species: int, most: int, kept: np.ndarray, state: np.ndarray,
) -> int:
    """Assignments of fixed positions (per class and species: how many) that leave a remainder free positions can seat.

    Fills ``kept`` (MAX_ASSIGNMENTS, classes·species) with up to `most` of them and returns how many were found (at most
    `most` are looked for when ``most`` is 1: a feasibility test).
    """
    c0 = t.class_start[group]
    classes = t.class_start[group + 1] - c0
    n = classes * species
    digits = np.zeros(max(n, 1), np.int64)
    left = np.empty(species, np.int64)
    free = np.empty(max(classes, 1), np.int64)
    for s in range(species):
        left[s] = counts[s]
    for c in range(classes):
        free[c] = t.class_size[c0 + c]
    found = 0
    while True:
        good = True
        for s in range(species):
            if not t.reachable[group, left[s]]:
                good = False
                break
        if good:
            slot = found
            if found >= kept.shape[0]:
                slot = int(next_random(state) * (found + 1))
            if slot < kept.shape[0]:
                for i in range(n):
                    kept[slot, i] = digits[i]
            found += 1
            if most == 1:
                return found
        # next assignment, as an odometer whose digits are limited by what is left
        i = 0
        while i < n:
            c, s = i // species, i % species
            m = t.class_multiplicity[c0 + c]
            if free[c] > 0 and left[s] >= m:
                digits[i] += 1
                free[c] -= 1
                left[s] -= m
                break
            free[c] += digits[i]
            left[s] += digits[i] * m
            digits[i] = 0
            i += 1
        if i == n:
            return found


@compiled
def feasible_groups(t: WyckoffTables, counts: np.ndarray, low: int, high: int) -> np.ndarray:
    """(231,) bool: which space groups from low to high can host these atoms per primitive cell (species,)."""
    out = np.zeros(231, np.bool_)
    kept = np.empty((1, 64 * max(len(counts), 1)), np.int64)
    state = np.zeros(1, np.uint64)
    for g in range(low, high + 1):
        out[g] = assignments(t, g, counts, len(counts), 1, kept, state) > 0
    return out


@compiled
def reduce_cell(cell: np.ndarray, transform: np.ndarray) -> None:
    """Replace a cell (3, 3; rows) by a short, right-handed basis of its lattice; ``transform`` gets T, new = T · old.

    Pairwise reduction and then the eight sums of all three vectors: a Minkowski-reduced basis in three dimensions.
    """
    for i in range(3):
        for j in range(3):
            transform[i, j] = 1.0 if i == j else 0.0
    for _ in range(100):
        changed = False
        for i in range(3):
            for j in range(3):
                if i == j:
                    continue
                ij = cell[i, 0] * cell[j, 0] + cell[i, 1] * cell[j, 1] + cell[i, 2] * cell[j, 2]
                jj = cell[j, 0] ** 2 + cell[j, 1] ** 2 + cell[j, 2] ** 2
                # the small margin keeps exact ties (cos = 1/2) from going back and forth
                if abs(ij) > (0.5 + 1e-9) * jj:
                    q = np.round(ij / jj)
                    for k in range(3):
                        cell[i, k] -= q * cell[j, k]
                        transform[i, k] -= q * transform[j, k]
                    changed = True
        if changed:
            continue
        longest = 0
        length = 0.0
        for i in range(3):
            ii = cell[i, 0] ** 2 + cell[i, 1] ** 2 + cell[i, 2] ** 2
            if ii > length:
                length, longest = ii, i
        a, b = (longest + 1) % 3, (longest + 2) % 3
        for p in (-1.0, 1.0):
            for q in (-1.0, 1.0):
                if changed:
                    continue
                total = 0.0
                for k in range(3):
                    total += (cell[longest, k] + p * cell[a, k] + q * cell[b, k]) ** 2
                if total < length * (1.0 - 1e-9):
                    for k in range(3):
                        cell[longest, k] += p * cell[a, k] + q * cell[b, k]
                        transform[longest, k] += p * transform[a, k] + q * transform[b, k]
                    changed = True
        if not changed:
            break
    if determinant(cell) < 0:
        for k in range(3):
            cell[2, k] = -cell[2, k]
            transform[2, k] = -transform[2, k]


@compiled
def determinant(a: np.ndarray) -> float:
    return (a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1]) - a[0, 1] * (a[1, 0] * a[2, 2] - a[1, 2] * a[2, 0])
            + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0]))


@compiled
def invert(a: np.ndarray, out: np.ndarray) -> None:
    """Inverse of a 3 × 3 matrix."""
    d = determinant(a)
    for i in range(3):
        for j in range(3):
            r, s, u, v = (j + 1) % 3, (j + 2) % 3, (i + 1) % 3, (i + 2) % 3
            out[i, j] = (a[r, u] * a[s, v] - a[r, v] * a[s, u]) / d


@compiled
def random_lattice(t: WyckoffTables, group: int, volume: float, state: np.ndarray, cell: np.ndarray) -> None:
    """A random primitive cell (3, 3) of the group's crystal system with the given volume in Å³."""
    a = b = c = 1.0
    cos_a = cos_b = cos_g = 0.0
    if group >= 195:
        pass
    elif group >= 75:
        # from flat to long: layered and chain-like cells are common among hydrides
        c = math.exp(math.log(0.5) + next_random(state) * math.log(6.0))
        if group >= 143:
            cos_g = -0.5
    else:
        a, b, c = math.exp(0.3 * next_normal(state)), math.exp(0.3 * next_normal(state)), math.exp(0.3 * next_normal(state))
        if group < 16:
            cos_b = next_random(state) - 0.5
        if group < 3:
            cos_a = 0.8 * (next_random(state) - 0.5)
            cos_b *= 0.8
            cos_g = 0.8 * (next_random(state) - 0.5)
    sin_g = math.sqrt(1.0 - cos_g * cos_g)
    y = (cos_a - cos_b * cos_g) / sin_g
    z = math.sqrt(max(1.0 - cos_b * cos_b - y * y, 1e-3))
    conventional = np.zeros((3, 3))
    conventional[0, 0] = a
    conventional[1, 0], conventional[1, 1] = b * cos_g, b * sin_g
    conventional[2, 0], conventional[2, 1], conventional[2, 2] = c * cos_b, c * y, c * z
    p = t.primitive[group]
    for i in range(3):
        for j in range(3):
            cell[i, j] = p[i, 0] * conventional[0, j] + p[i, 1] * conventional[1, j] + p[i, 2] * conventional[2, j]
    scale = (volume / abs(determinant(cell))) ** (1.0 / 3.0)
    for i in range(3):
        for j in range(3):
            cell[i, j] *= scale


@compiled
def too_close(
    dx: float, dy: float, dz: float, cell: np.ndarray, inverse_heights: np.ndarray, limit: float,
) -> bool:
    """Whether two atoms at this fractional difference have any images closer than `limit` Å.

    The images looked at are all those within ``limit`` of each other along every cell height: exact for any cell.
    """
    rx, ry, rz = limit * inverse_heights[0], limit * inverse_heights[1], limit * inverse_heights[2]
    dx -= np.round(dx)
    dy -= np.round(dy)
    dz -= np.round(dz)
    limit2 = limit * limit
    for i in range(math.ceil(-rx - dx), math.floor(rx - dx) + 1):
        fx = dx + i
        for j in range(math.ceil(-ry - dy), math.floor(ry - dy) + 1):
            fy = dy + j
            for k in range(math.ceil(-rz - dz), math.floor(rz - dz) + 1):
                fz = dz + k
                x = fx * cell[0, 0] + fy * cell[1, 0] + fz * cell[2, 0]
                y = fx * cell[0, 1] + fy * cell[1, 1] + fz * cell[2, 1]
                z = fx * cell[0, 2] + fy * cell[1, 2] + fz * cell[2, 2]
                if x * x + y * y + z * z < limit2:
                    return True
    return False


@compiled
def place(
    t: WyckoffTables, p: int, s: int, state: np.ndarray, cell: np.ndarray, inverse_heights: np.ndarray,
    back: np.ndarray, distances: np.ndarray, points: np.ndarray, kinds: np.ndarray, placed: int,
) -> bool:
    """Draw a point of position p, write its orbit behind the placed atoms; False when any distance is too short.

    ``back`` takes fractional rows of the primitive basis to those of the reduced cell.
    """
    x = np.empty(3)
    for i in range(3):
        x[i] = t.base[p, i]
    for d in range(t.freedom[p]):
        u = next_random(state)
        for i in range(3):
            x[i] += t.directions[p, i, d] * u
    first = t.orbit_start[p]
    size = t.multiplicity[p]
    for k in range(size):
        op = t.orbit[first + k]
        y0 = t.translations[op, 0]
        y1 = t.translations[op, 1]
        y2 = t.translations[op, 2]
        for j in range(3):
            y0 += t.rotations[op, 0, j] * x[j]
            y1 += t.rotations[op, 1, j] * x[j]
            y2 += t.rotations[op, 2, j] * x[j]
        for j in range(3):
            f = y0 * back[0, j] + y1 * back[1, j] + y2 * back[2, j]
            points[placed + k, j] = f - math.floor(f)
        if k > 0 and too_close(points[placed, 0] - points[placed + k, 0], points[placed, 1] - points[placed + k, 1],
                               points[placed, 2] - points[placed + k, 2], cell, inverse_heights, distances[s, s]):
            return False
    for j in range(placed):
        if too_close(points[placed, 0] - points[j, 0], points[placed, 1] - points[j, 1], points[placed, 2] - points[j, 2],
                     cell, inverse_heights, distances[s, kinds[j]]):
            return False
    for k in range(size):
        kinds[placed + k] = s
    return True


@compiled
def attempt(
    t: WyckoffTables, group: int, counts: np.ndarray, species: int, volume: float, distances: np.ndarray,
    kept: np.ndarray, found: int, state: np.ndarray, cell: np.ndarray, points: np.ndarray, kinds: np.ndarray,
) -> bool:
    """One structure of one space group from one random assignment and lattice; False when an orbit finds no place."""
    transform, back, inverse = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    random_lattice(t, group, volume, state, cell)
    reduce_cell(cell, transform)
    for s in range(species):
        for i in range(3):
            if cell[i, 0] ** 2 + cell[i, 1] ** 2 + cell[i, 2] ** 2 < distances[s, s] ** 2:
                return False
    invert(transform, back)
    invert(cell, inverse)
    inverse_heights = np.empty(3)
    for i in range(3):
        inverse_heights[i] = math.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2)
    chosen = kept[int(next_random(state) * min(found, kept.shape[0]))]
    placed = 0
    left = np.empty(species, np.int64)
    for s in range(species):
        left[s] = counts[s]
    c0 = t.class_start[group]
    for c in range(t.class_start[group + 1] - c0):
        size = t.class_size[c0 + c]
        taken = np.zeros(size, np.bool_)
        for s in range(species):
            for _ in range(chosen[c * species + s]):
                # a position of the class that is still free
                free = 0
                for q in range(size):
                    free += not taken[q]
                pick = int(next_random(state) * free)
                for q in range(size):
                    if not taken[q]:
                        if pick == 0:
                            break
                        pick -= 1
                taken[q] = True
                p = t.class_first[c0 + c] + q
                if not place(t, p, s, state, cell, inverse_heights, back, distances, points, kinds, placed):
                    return False
                placed += t.multiplicity[p]
                left[s] -= t.multiplicity[p]
    first, last = t.free_start[group], t.position_start[group + 1]
    for s in range(species):
        while left[s] > 0:
            done = False
            for _ in range(POSITION_TRIES):
                # positions after which the rest can still be seated, large orbits preferred
                total = 0
                for p in range(first, last):
                    m = t.multiplicity[p]
                    if m <= left[s] and t.reachable[group, left[s] - m]:
                        total += m
                r = next_random(state) * total
                chosen_position = -1
                for p in range(first, last):
                    m = t.multiplicity[p]
                    if m <= left[s] and t.reachable[group, left[s] - m]:
                        chosen_position = p
                        r -= m
                        if r < 0:
                            break
                for _ in range(POINT_TRIES):
                    if place(t, chosen_position, s, state, cell, inverse_heights, back, distances, points, kinds, placed):
                        done = True
                        break
                if done:
                    break
            if not done:
                return False
            placed += t.multiplicity[chosen_position]
            left[s] -= t.multiplicity[chosen_position]
    return True


@compiled
def generate_batch(
    t: WyckoffTables, request: np.ndarray, seeds: np.ndarray, counts: np.ndarray, species: np.ndarray,
    volumes: np.ndarray, volume_spread: float, distances: np.ndarray, group_start: np.ndarray, groups: np.ndarray,
    cumulative: np.ndarray, give_up: int, offsets: np.ndarray, kinds_out: np.ndarray, fractional: np.ndarray,
    cells: np.ndarray, spacegroup: np.ndarray,
) -> None:
    """Fill a batch of T structures of R requests.

    Parameters
    ----------
    request, seeds : (T,)
        Which request each structure answers, and its random stream.
    counts : (R, S), species : (R,)
        Atoms per species in the cell, in placing order, and the number of species.
    volumes : (R,), volume_spread
        Target volume in Å³; each structure draws from 1 ± spread of it.
    distances : (R, S, S)
        Minimum distances in Å.
    group_start : (R + 1,), groups, cumulative
        Space groups that can host each request and their cumulative weights (last one 1).
    give_up
        After so many failures without one success, the rest of a request is skipped.
    offsets : (T + 1,), kinds_out : (N,), fractional : (N, 3), cells : (T, 3, 3), spacegroup : (T,)
        Output; ``spacegroup`` stays 0 for structures that could not be made.
    """
    most = 1
    for i in range(len(request)):
        most = max(most, offsets[i + 1] - offsets[i])
    points = np.empty((most + 48, 3))
    kinds = np.empty(most + 48, np.int64)
    kept = np.empty((MAX_ASSIGNMENTS, 8 * counts.shape[1]), np.int64)
    failures = np.zeros(len(volumes), np.int64)
    successes = np.zeros(len(volumes), np.int64)
    state = np.empty(1, np.uint64)
    cell = np.empty((3, 3))
    for i in range(len(request)):
        r = request[i]
        n = offsets[i + 1] - offsets[i]
        if successes[r] == 0 and failures[r] >= give_up:
            continue
        state[0] = seeds[i]
        made = False
        for _ in range(GROUP_DRAWS):
            u = next_random(state)
            g = group_start[r]
            while g < group_start[r + 1] - 1 and cumulative[g] <= u:
                g += 1
            group = groups[g]
            found = assignments(t, group, counts[r], species[r], MAX_ASSIGNMENTS, kept, state)
            for _ in range(ATTEMPTS):
                volume = volumes[r] * (1.0 + volume_spread * (2.0 * next_random(state) - 1.0))
                if attempt(t, group, counts[r], species[r], volume, distances[r], kept, found, state, cell, points, kinds):
                    made = True
                    break
            if made:
                break
        if not made:
            failures[r] += 1
            continue
        successes[r] += 1
        spacegroup[i] = group
        cells[i] = cell
        # atoms of one species together, in the order of the request
        at = offsets[i]
        for s in range(species[r]):
            for j in range(n):
                if kinds[j] == s:
                    kinds_out[at] = s
                    for k in range(3):
                        fractional[at, k] = points[j, k]
                    at += 1
