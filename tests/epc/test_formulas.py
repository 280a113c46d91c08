"""Tc formulas against exact results and published moments."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.epc.coupling import Coupling
from hydroflow.epc.eliashberg import eliashberg_tc
from hydroflow.epc.formulas import allen_dynes, critical_temperatures, mcmillan, strong_coupling_factors
from hydroflow.errors import DataError


def einstein(lam: float, omega: float = 1000.0) -> Coupling:
    return Coupling.from_modes([omega], [lam])


def test_moments_of_an_einstein_spectrum():
    c = einstein(1.7, 850.0)
    assert c.lambda_ == pytest.approx(1.7)
    assert c.omega_log_k == pytest.approx(850.0)
    assert c.omega2_k == pytest.approx(850.0)


def test_moments_of_a_debye_spectrum():
    # α²F = c ω² up to ω_D: λ = c ω_D², ω_log = ω_D e^(-1/2), ω̄₂ = ω_D/√2
    w = np.linspace(0, 500, 20001)
    c = Coupling.from_spectrum(w, 4e-6 * w**2)
    assert c.lambda_ == pytest.approx(1.0, rel=1e-4)
    assert c.omega_log_k == pytest.approx(500 * np.exp(-0.5), rel=1e-4)
    assert c.omega2_k == pytest.approx(500 / np.sqrt(2), rel=1e-4)


def test_one_matsubara_frequency_has_a_closed_form():
    # l(1) = 1 at Tc: (2πTc)² = ω²(λ - 1)
    assert eliashberg_tc(einstein(2.5), 0.0, frequencies=1) == pytest.approx(1000 / (2 * np.pi) * np.sqrt(1.5), rel=1e-6)


@pytest.mark.parametrize(("lam", "expected"), [(1.0, 0.114620), (2.0, 0.211741)])
def test_einstein_spectrum_without_repulsion(lam, expected):
    assert eliashberg_tc(einstein(lam), 0.0) / 1000 == pytest.approx(expected, rel=1e-4)


def test_strong_coupling_asymptote():
    assert eliashberg_tc(einstein(1e6), 0.0) / 1000 / 1e3 == pytest.approx(0.182726, rel=1e-4)


# λ, ω_log, ω̄₂ in K and Tc at μ* = 0.1 of Song et al., arXiv:2012.04787, Table S6
@pytest.mark.parametrize(("lam", "log", "second", "tc"), [
    (2.82, 847, 1251, 203), (2.74, 964, 1525, 229), (2.68, 1046, 1437, 237), (2.41, 1011, 1312, 207), (3.87, 868, 1208, 266)])
def test_allen_dynes_from_published_moments(lam, log, second, tc):
    assert allen_dynes(lam, log, second, 0.1) == pytest.approx(tc, abs=1.0)


def test_allen_dynes_is_mcmillan_times_the_factors():
    f1, f2 = strong_coupling_factors(2.82, 847, 1251, 0.1)
    assert f1 > 1 and f2 > 1
    assert allen_dynes(2.82, 847, 1251, 0.1) == pytest.approx(f1 * f2 * mcmillan(2.82, 847, 0.1))
    assert mcmillan(2.82, 847, 0.1) == pytest.approx(148.2, abs=0.1)


@pytest.mark.parametrize(("lam", "rise"), [(1.0, 1.105), (2.0, 1.054)])
def test_unscaled_mu_star_raises_tc_by_as_much_wherever_the_sum_is_cut(lam, rise):
    # the same number at a cutoff of 10 ω_max is a weaker repulsion
    for n in (None, 60, 300):
        ratio = eliashberg_tc(einstein(lam), 0.1, scaled=False, frequencies=n) / eliashberg_tc(einstein(lam), 0.1, frequencies=n)
        assert ratio == pytest.approx(rise, abs=1e-3)


@pytest.mark.parametrize("lam", [0.6, 1.0, 2.0])
def test_scaled_mu_star_does_not_depend_on_the_cutoff(lam):
    few, many = (eliashberg_tc(einstein(lam), 0.13, frequencies=n) for n in (150, 600))
    assert few == pytest.approx(many, rel=4e-3)


@pytest.mark.parametrize("mu_star", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("lam", [1.0, 2.0, 4.0])
def test_tc_falls_smoothly_to_large_mu_star(lam, mu_star):
    # a sum cut where the repulsion is infinite would jump, up or down
    values = [eliashberg_tc(einstein(lam), mu_star + d) for d in (-0.01, 0.0, 0.01)]
    assert values[0] > values[1] > values[2] > 0
    assert values[0] - values[1] == pytest.approx(values[1] - values[2], rel=0.5)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("lam", [0.4, 2.0])
def test_tc_falls_from_zero_mu_star(lam, scaled):
    values = [eliashberg_tc(einstein(lam), mu, scaled=scaled) for mu in (0.0, *np.geomspace(1e-6, 0.2, 25))]
    assert all(a > b for a, b in pairwise(values))
    assert values[1] == pytest.approx(values[0], rel=1e-4)


@pytest.mark.parametrize(("lam", "mu_star"), [(0.35, 0.05), (0.6, 0.1), (2.0, 0.15)])
def test_tc_is_where_the_largest_eigenvalue_of_the_equation_is_zero(lam, mu_star):
    n, m = 400, np.arange(400)
    tc = eliashberg_tc(einstein(lam), mu_star, frequencies=n)
    kernel = lam * 1e6 / (1e6 + (2 * np.pi * tc * np.arange(2 * n)) ** 2)
    mu_c = 1 / (1 / mu_star + np.log(1000 / (2 * np.pi * tc * n)))
    k = kernel[abs(m[:, None] - m)] + kernel[m[:, None] + m + 1] - 2 * mu_c
    k[m, m] -= 2 * m + 1 + kernel[0] + 2 * np.concatenate([[0.0], np.cumsum(kernel[1:n])])
    assert np.linalg.eigvalsh(k)[-1] == pytest.approx(0, abs=1e-5)


def test_tc_just_above_the_lowest_is_found():
    # a sum over the few frequencies of a high Tc does not reach the phonons there
    assert eliashberg_tc(einstein(0.17), 0.0) == pytest.approx(0.74660, rel=1e-4)


def test_large_mu_star_is_that_of_a_sum_cut_at_half_the_frequencies():
    assert eliashberg_tc(einstein(2.0), 0.3) == pytest.approx(eliashberg_tc(einstein(2.0), 0.3, frequencies=17), rel=0.01)


@pytest.mark.parametrize(("lam", "mu_star"), [(2.0, 0.45), (1e6, 0.3)])
def test_mu_star_without_a_value_at_any_cutoff_is_refused(lam, mu_star):
    with pytest.raises(DataError, match="too large"):
        eliashberg_tc(einstein(lam), mu_star)


def test_no_superconductivity_without_attraction():
    values = critical_temperatures(einstein(0.05), 0.15)
    assert values == {"mcmillan": 0.0, "allen_dynes": 0.0, "eliashberg": 0.0}


def test_weak_coupling_agrees_with_allen_dynes():
    # both fit the same physics near λ = 0.6
    values = critical_temperatures(einstein(0.6), 0.1)
    assert values["eliashberg"] == pytest.approx(values["allen_dynes"], rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(50, 3000), st.floats(0.05, 2)), min_size=1, max_size=5), st.floats(0.5, 4))
def test_tc_scales_with_frequency_and_falls_with_repulsion(modes, factor):
    w, x = np.array(modes).T
    base = eliashberg_tc(Coupling.from_modes(w, x), 0.1)
    assert eliashberg_tc(Coupling.from_modes(factor * w, x), 0.1) == pytest.approx(factor * base, rel=1e-4, abs=1e-6)
    assert eliashberg_tc(Coupling.from_modes(w, x), 0.15) <= base


def test_negative_weight_is_left_out_and_counted():
    c = Coupling.from_modes([100.0, 200.0, 300.0], [0.5, -0.1, 0.5])
    assert c.lambda_ == pytest.approx(1.0)
    assert c.negative == pytest.approx(0.1)


@pytest.mark.parametrize("modes", [([100.0], [np.nan]), ([-5.0, 0.0], [1.0, 1.0]), ([100.0], [0.0])])
def test_unusable_couplings_are_refused(modes):
    with pytest.raises(DataError):
        Coupling.from_modes(*modes)


def test_unknown_method_and_bad_mu_star_are_refused():
    with pytest.raises(DataError, match="allen_dynes"):
        critical_temperatures(einstein(1.0), 0.1, ("allen",))
    with pytest.raises(DataError, match="mu"):
        critical_temperatures(einstein(1.0), 0.7)
