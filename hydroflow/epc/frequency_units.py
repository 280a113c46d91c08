"""Units of phonon frequencies, and how the comments of a table name them."""

from __future__ import annotations

import re

from hydroflow.units import K_PER_CM1, K_PER_HARTREE, K_PER_MEV, K_PER_RYDBERG, K_PER_THZ

UNITS = {"Ry": K_PER_RYDBERG, "Ha": K_PER_HARTREE, "THz": K_PER_THZ, "meV": K_PER_MEV, "cm-1": K_PER_CM1, "K": 1.0}
"""K per unit."""
_UNIT_WORDS = {"ry": "Ry", "rydberg": "Ry", "ha": "Ha", "hartree": "Ha", "thz": "THz", "mev": "meV", "cm-1": "cm-1",
               "cm^-1": "cm-1", "cm^{-1}": "cm-1", "cm⁻¹": "cm-1", "1/cm": "cm-1", "kelvin": "K", "k": "K"}
_FOREIGN_UNITS = ("eV", "µeV", "mRy", "mHa", "rad/ps", "rad/s", "rad", "Hz", "GHz", "a.u.")
"""Units of frequencies that are none of :data:`UNITS`: named in a comment they must not be read as another one."""

_SPELLINGS = "|".join(map(re.escape, sorted({*_UNIT_WORDS, *_FOREIGN_UNITS} - {"k"}, key=len, reverse=True)))
_WORD = rf"(?:{_SPELLINGS}|(?-i:K))(?![\w^/])"
_UNIT = rf"(?<![\w^/.]){_WORD}"
"""A unit by itself: that behind a slash (states/eV) is none, and k is a wave vector."""
_FREQUENCY = r"\b[ħh]?(?:omega|ω|w|nu|ν|f|E|freq|frequency|frequencies|energy|energies|wavenumbers?)(?:/\(?2 ?\\?(?:pi|π)\)?)?"
_OF_FREQUENCIES = re.compile(
    rf"{_FREQUENCY}(?:\s*[(\[](?P<brackets>[^()\[\]]*)[)\]](?!\s*[:=]|\s+[-+]?\d[\d.]*(?:\s|$))"
    rf"|\s*[/_](?P<slash>{_WORD})"
    rf"|(?:\s+(?:is|are|given|values?|axis))*\s+in(?:\s+units? of)?\s+[(\[]?(?P<word>{_UNIT}))", re.IGNORECASE)
"""``omega [meV]``, ``E/THz``, ``freq_THz``, ``frequencies are in Ry``, but not what a value follows: ``energy (Ry) = 80``."""
_NOT_OF_PHONONS = re.compile(r"\b(fermi|cut-?off|kinetic|total|free|smearing)\s*$", re.IGNORECASE)
"""Words that make the "energy" after them another one."""
_BEFORE_UNIT = {"unit", "units", "frequency", "frequencies", "energy", "omega", "of", "in"}
_NO_UNIT = re.compile(r"a?lpha.?2f|a2f|lam|λ|p?dos", re.IGNORECASE)
"""Columns beside the frequencies that have none."""


def names_a_unit(comment: str) -> bool:
    """Whether a comment holds any unit, of frequencies or of something else."""
    return re.search(_UNIT, comment, re.IGNORECASE) is not None


def units_of_frequencies(comments: list[str]) -> list[str]:
    """Units of the frequencies that comments name, also those that are not known.

    Comments name other units as well (smearings, cutoffs, temperatures): only a unit beside a word for the frequency counts, or
    one that stands alone. K is potassium as often as kelvin: alone it counts in brackets only.
    """
    known = {u.lower(): u for u in _FOREIGN_UNITS} | _UNIT_WORDS
    found = []
    for line in comments:
        line = " ".join(line.replace("$", "").split())
        parts = [m["brackets"] or m["slash"] or m["word"] or "" for m in _OF_FREQUENCIES.finditer(line)
                 if not _NOT_OF_PHONONS.search(line[:m.start()])]
        if not parts and _alone(line):
            parts = [line]
        found += [known[u.lower()] for part in parts for u in re.findall(rf"(?<!\d)(?<!\d )(?:{_UNIT})", part, re.IGNORECASE)]
    return list(dict.fromkeys(found))


def _alone(comment: str) -> bool:
    """Whether a comment is a unit and no more, or units and names of columns that have none: ``meV``, ``units: THz``,
    ``meV a2F``. K alone is potassium."""
    words = [w for w in re.split(r"[\s,;|:=]+", comment.strip("#!@. ")) if w]
    while words and words[0].lower() in _BEFORE_UNIT:
        words.pop(0)
    if not words or words[0] == "K" or not re.fullmatch(_WORD, words[0].strip("()[]"), re.IGNORECASE):
        return False
    return all(re.fullmatch(_WORD, w.strip("()[]"), re.IGNORECASE) or _NO_UNIT.match(w) or "2f" in w.lower() for w in words[1:])
