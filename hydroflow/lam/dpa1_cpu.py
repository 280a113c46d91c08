"""DPA-1 without attention layers, evaluated on a CPU by fused kernels: no framework, no start-up, no padding.

Formulas as deepmd-kit's ``se_atten`` with stripped one-sided type embedding: for centre i and neighbour j at distance r,
s = w(r)/r (w the switching polynomial), environment row q = (s, s·x/r, s·y/r, s·z/r)/σ_type(i); the radial network G(q₀) of
width n is gated by the neighbour type's network T, g = G·(1 + w·T_type(j)); the moment M = Σ_j q ⊗ g / sel gives the descriptor
Mᵀ·M[:, :axis]. The radial network, a function of one number, is tabulated once per model (cubic Hermite); forces and virial are
the analytic derivative. Agreement with deepmd-kit is tested in tests/engines/test_lam_model.py.

All arithmetic is in double precision, whatever the model was trained in: rounding in single precision sends long relaxations into
other minima and keeps the last steps from converging, which costs as much as it saves (docs/lam.md, "Relaxation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

_TABLE_POINTS = 2048
_CLOSEST_A = 0.4
"""The table reaches down to this distance; below it the radial network is held constant."""


def supports(params: Mapping[str, Any]) -> bool:
    """Whether a model (deepmd-kit's ``model_params``) is of the kind these kernels compute."""
    d, fit = params.get("descriptor", {}), params.get("fitting_net", {})
    return (d.get("type") in ("dpa1", "se_atten") and d.get("attn_layer") == 0 and d.get("tebd_input_mode") == "strip"
            and bool(d.get("type_one_side")) and bool(d.get("smooth_type_embedding")) and d.get("activation_function") == "tanh"
            and not d.get("resnet_dt") and not d.get("exclude_types") and not d.get("use_econf_tebd")
            and bool(d.get("concat_output_tebd"))
            and not d.get("use_tebd_bias") and not d.get("env_protection") and d.get("lmax") in (None, 1)
            and fit.get("type", "ener") == "ener" and fit.get("activation_function") == "tanh" and not fit.get("numb_fparam")
            and not fit.get("numb_aparam") and not fit.get("dim_case_embd") and not params.get("pair_exclude_types")
            and not params.get("atom_exclude_types") and isinstance(d.get("sel"), int)
            and params.get("bridging_method") in (None, "None"))


@numba.njit(cache=True, fastmath=True, inline="always")
def _switch(r, inner, outer):
    """Switching polynomial and its derivative: 1 below `inner`, 0 beyond `outer`."""
    if r <= inner:
        return 1.0, 0.0
    if r >= outer:
        return 0.0, 0.0
    u = (r - inner) / (outer - inner)
    return u * u * u * (-6 * u * u + 15 * u - 10) + 1, (-30 * u * u * (u - 1) * (u - 1)) / (outer - inner)


@numba.njit(cache=True, fastmath=True, parallel=True)
def _moments(offsets, pointers, neighbour, vector, types, mean, inverse_std, table, start, spacing, gate, inner, outer, moments):
    """Add up M (N, 4, n) of every atom."""
    width = moments.shape[2]
    last = table.shape[0] - 2
    for s in numba.prange(len(offsets) - 1):
        for i in range(offsets[s], offsets[s + 1]):
            t = types[i]
            m0 = moments[i, 0]
            m1 = moments[i, 1]
            m2 = moments[i, 2]
            m3 = moments[i, 3]
            for e in range(pointers[i], pointers[i + 1]):
                x = vector[e, 0]
                y = vector[e, 1]
                z = vector[e, 2]
                r = math.sqrt(x * x + y * y + z * z)
                w, _ = _switch(r, inner, outer)
                q0 = (w / r - mean[t]) * inverse_std[t, 0]
                f = w / (r * r) * inverse_std[t, 1]
                p = (q0 - start) / spacing
                k = min(max(int(p), 0), last)
                u = min(max(p - k, 0.0), 1.0)
                h0 = (2 * u - 3) * u * u + 1
                h1 = ((u - 2) * u + 1) * u * spacing
                h2 = (3 - 2 * u) * u * u
                h3 = (u - 1) * u * u * spacing
                q1 = x * f
                q2 = y * f
                q3 = z * f
                g = gate[types[neighbour[e]]]
                a = table[k]
                b = table[k + 1]
                for c in range(width):
                    v = (h0 * a[0, c] + h1 * a[1, c] + h2 * b[0, c] + h3 * b[1, c]) * (1 + w * g[c])
                    m0[c] += q0 * v
                    m1[c] += q1 * v
                    m2[c] += q2 * v
                    m3[c] += q3 * v


@numba.njit(cache=True, fastmath=True, parallel=True)
def _forces(offsets, pointers, neighbour, vector, types, mean, inverse_std, table, start, spacing, gate, inner, outer, d_moments,
            forces, virial):
    """Forces (N, 3) and virial (n, 3, 3) from dE/dM (N, 4, n)."""
    width = d_moments.shape[2]
    last = table.shape[0] - 2
    for s in numba.prange(len(offsets) - 1):
        for i in range(offsets[s], offsets[s + 1]):
            t = types[i]
            d0 = d_moments[i, 0]
            d1 = d_moments[i, 1]
            d2 = d_moments[i, 2]
            d3 = d_moments[i, 3]
            for e in range(pointers[i], pointers[i + 1]):
                x = vector[e, 0]
                y = vector[e, 1]
                z = vector[e, 2]
                r = math.sqrt(x * x + y * y + z * z)
                w, dw = _switch(r, inner, outer)
                q0 = (w / r - mean[t]) * inverse_std[t, 0]
                f = w / (r * r) * inverse_std[t, 1]
                p = (q0 - start) / spacing
                k = min(max(int(p), 0), last)
                u = min(max(p - k, 0.0), 1.0)
                h0 = (2 * u - 3) * u * u + 1
                h1 = ((u - 2) * u + 1) * u * spacing
                h2 = (3 - 2 * u) * u * u
                h3 = (u - 1) * u * u * spacing
                # derivative of the interpolation; zero where the argument is held at an end of the table
                inside = 1.0 if 0 <= p <= last + 1 else 0.0
                e0 = inside * 6 * (u - 1) * u / spacing
                e1 = inside * ((3 * u - 4) * u + 1)
                e3 = inside * (3 * u - 2) * u
                q1 = x * f
                q2 = y * f
                q3 = z * f
                j = neighbour[e]
                g = gate[types[j]]
                a = table[k]
                b = table[k + 1]
                s0 = 0.0
                s1 = 0.0
                s2 = 0.0
                s3 = 0.0
                sg = 0.0
                sw = 0.0
                for c in range(width):
                    radial = h0 * a[0, c] + h1 * a[1, c] + h2 * b[0, c] + h3 * b[1, c]
                    slope = e0 * (a[0, c] - b[0, c]) + e1 * a[1, c] + e3 * b[1, c]
                    gated = 1 + w * g[c]
                    v = radial * gated
                    s0 += d0[c] * v
                    s1 += d1[c] * v
                    s2 += d2[c] * v
                    s3 += d3[c] * v
                    dv = d0[c] * q0 + d1[c] * q1 + d2[c] * q2 + d3[c] * q3
                    sg += dv * slope * gated
                    sw += dv * radial * g[c]
                along = (s0 + sg) * inverse_std[t, 0] * (dw / r - w / (r * r)) + sw * dw \
                    + (s1 * x + s2 * y + s3 * z) * inverse_std[t, 1] * (dw / (r * r) - 2 * w / (r * r * r))
                fx = along * x / r + s1 * f
                fy = along * y / r + s2 * f
                fz = along * z / r + s3 * f
                forces[i, 0] += fx
                forces[i, 1] += fy
                forces[i, 2] += fz
                forces[j, 0] -= fx
                forces[j, 1] -= fy
                forces[j, 2] -= fz
                virial[s, 0, 0] -= fx * x
                virial[s, 0, 1] -= fx * y
                virial[s, 0, 2] -= fx * z
                virial[s, 1, 0] -= fy * x
                virial[s, 1, 1] -= fy * y
                virial[s, 1, 2] -= fy * z
                virial[s, 2, 0] -= fz * x
                virial[s, 2, 1] -= fz * y
                virial[s, 2, 2] -= fz * z


def _residual_layer(x: np.ndarray, layer: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One layer of an embedding network and its activation's derivative: tanh(xW + b), plus x where the width is kept or
    doubled."""
    y = np.tanh(x @ layer["matrix"] + layer["bias"])
    slope = 1 - y * y
    if y.shape[1] == x.shape[1]:
        y = y + x
    elif y.shape[1] == 2 * x.shape[1]:
        y = y + np.concatenate([x, x], 1)
    return y, slope


def _embedding(x: np.ndarray, layers: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Embedding network of a column x (m, k) and, for k = 1, its derivative (m, width)."""
    derivative = np.ones_like(x)
    for layer in layers:
        y, slope = _residual_layer(x, layer)
        d = slope * (derivative @ layer["matrix"])
        if y.shape[1] == x.shape[1]:
            d = d + derivative
        elif y.shape[1] == 2 * x.shape[1]:
            d = d + np.concatenate([derivative, derivative], 1)
        x, derivative = y, d
    return x, derivative


class Dpa1Cpu:
    """One DPA-1 checkpoint ready for evaluation on this machine's CPU.

    Parameters
    ----------
    params : mapping
        deepmd-kit's ``model_params``; :func:`supports` must hold.
    state : mapping
        Name → array of the model's parameters, the prefix up to ``atomic_model.`` removed.
    """

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
        d = params["descriptor"]
        self.cutoff_a = float(d["rcut"])
        self.inner = float(d["rcut_smth"])
        self.sel = int(d["sel"])
        self.axis = int(d["axis_neuron"])
        se = "descriptor.se_atten."
        mean, std = (state[f"{se}{k}"][:, 0].astype(float) for k in ("mean", "stddev"))
        self.mean = np.ascontiguousarray(mean[:, 0])
        self.inverse_std = 1 / std[:, :2]
        radial = _layers(state, f"{se}filter_layers.networks.0.layers.")
        observed = [params["type_map"].index(s) for s in params.get("info", {}).get("observed_type", params["type_map"])]
        low = ((0 - self.mean) * self.inverse_std[:, 0])[observed].min()
        high = ((1 / _CLOSEST_A - self.mean) * self.inverse_std[:, 0])[observed].max()
        self.start = float(low)
        self.spacing = float((high - low) / (_TABLE_POINTS - 1))
        grid = low + self.spacing * np.arange(_TABLE_POINTS)
        value, slope = _embedding(grid[:, None], radial)
        self.table = np.ascontiguousarray(np.stack([value, slope], 1))
        self.types_table = _type_embedding(state)
        gate, _ = _embedding(self.types_table, _layers(state, f"{se}filter_layers_strip.networks.0.layers."))
        self.gate = np.ascontiguousarray(gate)
        self.width = self.table.shape[2]
        self.fitting = _layers(state, "fitting_net.filter_layers.networks.0.layers.")
        self.bias = (state["out_bias"][0, :, 0] + state["fitting_net.bias_atom_e"][:, 0]).astype(float)

    def __call__(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies (n,) in eV, forces (N, 3) in eV/Å and virials (n, 3, 3) in eV of structures given as edges."""
        n_atoms = len(types)
        fixed = (offsets, pointers, neighbour, vector, types, self.mean, self.inverse_std, self.table, self.start, self.spacing,
                 self.gate, self.inner, self.cutoff_a)
        moments = np.zeros((n_atoms, 4, self.width))
        _moments(*fixed, moments)
        moments /= self.sel
        energy_atom, d_moments = self._fit(moments, types)
        forces = np.zeros((n_atoms, 3))
        virial = np.zeros((len(offsets) - 1, 3, 3))
        _forces(*fixed, d_moments, forces, virial)
        energy = np.add.reduceat(energy_atom, offsets[:-1]) if n_atoms else np.zeros(0)
        return energy, forces, virial

    def _fit(self, moments: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fitting network: energy of every atom (N,) in eV and dE/dM·1/sel (N, 4, n)."""
        n, axis = len(types), self.axis
        transposed = moments.transpose(0, 2, 1)
        descriptor = np.matmul(transposed, moments[:, :, :axis])
        x = np.concatenate([descriptor.reshape(n, -1), self.types_table[types]], 1)
        slopes = []
        for layer in self.fitting[:-1]:
            y = np.tanh(x @ layer["matrix"] + layer["bias"])
            slope = 1 - y * y
            if "idt" in layer:
                y = y * layer["idt"]
                slope = slope * layer["idt"]
            kept = y.shape[1] == x.shape[1]
            slopes.append((slope, kept))
            x = y + x if kept else y
        final = self.fitting[-1]
        energy = (x @ final["matrix"] + final["bias"])[:, 0].astype(float) + self.bias[types]
        grad = np.broadcast_to(final["matrix"][:, 0], x.shape)
        for layer, (slope, kept) in zip(reversed(self.fitting[:-1]), reversed(slopes), strict=True):
            back = (grad * slope) @ layer["matrix"].T
            grad = back + grad if kept else back
        d_descriptor = grad[:, : self.width * axis].reshape(n, self.width, axis)
        d_moments = np.matmul(moments[:, :, :axis], d_descriptor.transpose(0, 2, 1))
        d_moments[:, :, :axis] += np.matmul(moments, d_descriptor)
        return energy, d_moments / self.sel


def _type_embedding(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """(types, k) embedding of the one-hot types: a linear layer, plus its input where the width is kept or doubled."""
    matrix = state["descriptor.type_embedding.embedding.embedding_net.layers.0.matrix"].astype(float)
    types, width = matrix.shape
    hot = np.eye(types)
    return matrix + (hot if width == types else np.concatenate([hot, hot], 1) if width == 2 * types else 0.0)


def _layers(state: Mapping[str, np.ndarray], prefix: str) -> list[dict[str, np.ndarray]]:
    """Layers of one network in order: name (matrix, bias, idt) → float64 array."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        if key.startswith(prefix):
            index, name = key[len(prefix):].split(".")
            found.setdefault(int(index), {})[name] = np.asarray(value, float)
    return [found[i] for i in sorted(found)]
