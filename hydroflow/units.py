"""The one table of units and constants (CODATA 2018). Lengths in Å, energies in eV, pressures in GPa unless named."""

from __future__ import annotations

GPA_A3_EV = 6.241509074e-3
"""1 GPa·Å³ in eV."""
EV_A3_GPA = 1.0 / GPA_A3_EV
"""1 eV/Å³ in GPa."""
RYDBERG_EV = 13.605693122994
HARTREE_EV = 27.211386245988
BOHR_A = 0.529177210903
KBAR_GPA = 0.1
RYDBERG_BOHR3_GPA = 14710.507848
"""1 Ry/bohr³ in GPa."""

K_PER_THZ = 47.992430733
K_PER_MEV = 11.604518122
K_PER_RYDBERG = 157887.5124
K_PER_HARTREE = 2 * K_PER_RYDBERG
K_PER_CM1 = 1.4387768775
THZ_PER_CM1 = 0.0299792458
