"""One step of L-BFGS or FIRE for every structure of a batch, each with its own history and counters.

The degrees of freedom are those of ASE's ``FrechetCellFilter``: atoms in the undeformed cell (x), and the logarithm A of the
deformation gradient times the number of atoms, with cell = cell₀·exp(A)ᵀ. L-BFGS and FIRE are ASE's, with its defaults, so that
a structure follows the same path as in a sequential ASE run with the same model.
"""

from __future__ import annotations

import math

import numba
import numpy as np

MEMORY = 100
"""Steps that L-BFGS remembers; ASE's default, or the path would leave ASE's after so many steps."""
_CURVATURE = 70.0
_MAX_STEP_A = 0.2


@numba.njit(cache=True)
def _exponential(a):
    """exp of a small square matrix: scaling and squaring of the Taylor series, to rounding."""
    n = a.shape[0]
    norm = np.abs(a).sum(axis=1).max()
    halvings = max(0, math.ceil(math.log2(norm / 0.25))) if norm > 0.25 else 0
    a = a / 2.0**halvings
    out = np.eye(n)
    term = np.eye(n)
    for k in range(1, 14):
        term = term @ a / k
        out = out + term
    for _ in range(halvings):
        out = out @ out
    return out


@numba.njit(cache=True)
def geometry(slots, counts, x, cells0, inverse0, offsets, fractional, cells, deformations):
    """Fractional coordinates and cells of the structures in `slots` from their degrees of freedom `x` (B, D)."""
    for q in range(len(slots)):
        b = slots[q]
        n = counts[b]
        log = np.ascontiguousarray(x[b, 3 * n:3 * n + 9]).reshape(3, 3) / n
        f = _exponential(log)
        deformations[b] = f
        cells[q] = cells0[b] @ f.T
        for i in range(n):
            for k in range(3):
                fractional[offsets[q] + i, k] = (x[b, 3 * i] * inverse0[b, 0, k] + x[b, 3 * i + 1] * inverse0[b, 1, k]
                                                 + x[b, 3 * i + 2] * inverse0[b, 2, k])


@numba.njit(cache=True)
def generalised_forces(slots, counts, x, offsets, forces, virials, volumes, pressures, deformations, g, fmax):
    """Forces on the degrees of freedom, (B, D), and the largest norm among atoms and cell rows (B,)."""
    for q in range(len(slots)):
        b = slots[q]
        n = counts[b]
        f = deformations[b]
        worst = 0.0
        for i in range(n):
            norm = 0.0
            for k in range(3):
                a = offsets[q] + i
                v = forces[a, 0] * f[0, k] + forces[a, 1] * f[1, k] + forces[a, 2] * f[2, k]
                g[b, 3 * i + k] = v
                norm += v * v
            worst = max(worst, norm)
        virial = (virials[q] + virials[q].T) / 2
        for k in range(3):
            virial[k, k] -= volumes[q] * pressures[b]
        # Adjoint of the Fréchet derivative of exp at A, applied to dE/dF: the upper right block of a block exponential.
        block = np.zeros((6, 6))
        log = np.ascontiguousarray(x[b, 3 * n:3 * n + 9]).reshape(3, 3) / n
        block[:3, :3] = log.T
        block[3:, 3:] = log.T
        block[:3, 3:] = virial @ np.linalg.inv(f.T)
        cell_force = _exponential(block)[:3, 3:] / n
        for r in range(3):
            norm = 0.0
            for k in range(3):
                g[b, 3 * n + 3 * r + k] = cell_force[r, k]
                norm += cell_force[r, k] ** 2
            worst = max(worst, norm)
        fmax[b] = math.sqrt(worst)


@numba.njit(cache=True, inline="always")
def _longest_row(step, d):
    longest = 0.0
    for i in range(d // 3):
        longest = max(longest, step[3 * i] ** 2 + step[3 * i + 1] ** 2 + step[3 * i + 2] ** 2)
    return math.sqrt(longest)


@numba.njit(cache=True)
def lbfgs(slots, counts, x, g, x_old, g_old, steps, s_history, y_history, rho):
    """One L-BFGS step (two-loop recursion, no line search, longest move 0.2 Å). `steps` (B,) counts evaluations of each."""
    memory = s_history.shape[1]
    for q in range(len(slots)):
        b = slots[q]
        d = 3 * counts[b] + 9
        k = steps[b]
        if k > 0:
            slot = (k - 1) % memory
            sy = 0.0
            for c in range(d):
                s_history[b, slot, c] = x[b, c] - x_old[b, c]
                y_history[b, slot, c] = g_old[b, c] - g[b, c]
                sy += s_history[b, slot, c] * y_history[b, slot, c]
            rho[b, slot] = 1.0 / sy if sy != 0.0 else 0.0
        kept = min(k, memory)
        alpha = np.empty(kept)
        p = -g[b, :d].copy()
        for m in range(kept):
            slot = (k - 1 - m) % memory
            alpha[m] = rho[b, slot] * np.dot(s_history[b, slot, :d], p)
            p -= alpha[m] * y_history[b, slot, :d]
        p /= _CURVATURE
        for m in range(kept - 1, -1, -1):
            slot = (k - 1 - m) % memory
            beta = rho[b, slot] * np.dot(y_history[b, slot, :d], p)
            p += s_history[b, slot, :d] * (alpha[m] - beta)
        longest = _longest_row(p, d)
        scale = _MAX_STEP_A / longest if longest >= _MAX_STEP_A else 1.0
        for c in range(d):
            x_old[b, c] = x[b, c]
            g_old[b, c] = g[b, c]
            x[b, c] -= p[c] * scale


@numba.njit(cache=True)
def fire(slots, counts, x, g, velocity, steps, fire_state):
    """One FIRE step. `fire_state` (B, 3): time step, mixing, steps since the power was negative."""
    for q in range(len(slots)):
        b = slots[q]
        d = 3 * counts[b] + 9
        dt, mixing, good = fire_state[b]
        if steps[b] == 0:
            dt, mixing, good = 0.1, 0.1, 0.0
            velocity[b, :d] = 0.0
        else:
            power = np.dot(g[b, :d], velocity[b, :d])
            if power > 0:
                vv = math.sqrt(np.dot(velocity[b, :d], velocity[b, :d]))
                gg = math.sqrt(np.dot(g[b, :d], g[b, :d]))
                velocity[b, :d] = (1 - mixing) * velocity[b, :d] + mixing * g[b, :d] / gg * vv
                if good > 5:
                    dt = min(dt * 1.1, 1.0)
                    mixing *= 0.99
                good += 1
            else:
                velocity[b, :d] = 0.0
                mixing = 0.1
                dt *= 0.5
                good = 0.0
        velocity[b, :d] += dt * g[b, :d]
        step = dt * velocity[b, :d]
        norm = math.sqrt(np.dot(step, step))
        scale = _MAX_STEP_A / norm if norm > _MAX_STEP_A else 1.0
        x[b, :d] += step * scale
        fire_state[b, 0] = dt
        fire_state[b, 1] = mixing
        fire_state[b, 2] = good
