"""A stand-in for calypso.x that keeps its file protocol in split mode, for testing the driver; no structure prediction.

Reads ``input.dat`` (keys in any case, ``#`` comments, ``@DistanceOfIon`` block), the last generation's ``CONTCAR_n`` and
``OUTCAR_n``, writes ``POSCAR_n`` of the next, ``results/`` and the number of the generation after it to ``step``.
With SIMULATE=die it stops half-way through writing, as a killed run would; SIMULATE=fail ends with an error.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np


def read_input() -> tuple[dict[str, str], np.ndarray]:
    values, table, inside = {}, [], False
    for line in Path("input.dat").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.lower() == "@distanceofion":
            inside = True
        elif line.lower() == "@end":
            inside = False
        elif inside:
            table.append([float(x) for x in line.split()])
        elif "=" in line:
            key, value = line.split("=", 1)
            values[key.strip().lower()] = value.strip()
    return values, np.array(table)


def main() -> None:
    if os.environ.get("SIMULATE") == "fail":
        sys.exit("forrtl: severe (24): end-of-file during read")
    values, table = read_input()
    species = values["nameofatoms"].split()
    counts = [int(x) for x in values["numberofatoms"].split()]
    assert values["split"].upper() == "T" and table.shape == (len(species), len(species))
    assert int(values["numberofspecies"]) == len(species)
    population, volume = int(values["popsize"]), float(values["volume"])
    generation = int(Path("step").read_text()) if Path("step").exists() else 1
    rng = np.random.default_rng(generation)
    edge, best = volume ** (1 / 3), None
    if generation > 1:
        enthalpies = []
        for n in range(1, population + 1):
            text = Path(f"OUTCAR_{n}").read_text()
            enthalpies.append(float(re.search(r"enthalpy is  TOTEN    =\s*(\S+)", text).group(1)) / sum(counts))
        Path("results").mkdir(exist_ok=True)
        Path(f"results/pso_opt_{generation - 1}").write_text("".join(f"{e:.6f}\n" for e in enthalpies))
        lines = Path(f"CONTCAR_{int(np.argmin(enthalpies)) + 1}").read_text().splitlines()
        assert lines[5].split() == species and [int(x) for x in lines[6].split()] == counts
        best = np.array([[float(x) for x in row.split()] for row in lines[8:8 + sum(counts)]])
    for n in range(1, population + 1):
        points = rng.random((sum(counts), 3)) if best is None or n % 2 else (best + 0.02 * rng.normal(size=best.shape)) % 1
        head = [f"generation {generation}", "1.0", f"{edge} 0 0", f"0 {edge} 0", f"0 0 {edge}"]
        if n > 1:  # both spellings of the format are met
            head.append(" ".join(species))
        rows = [" ".join(f"{x:.10f}" for x in p) for p in points]
        Path(f"POSCAR_{n}").write_text("\n".join([*head, " ".join(map(str, counts)), "Direct", *rows]) + "\n")
        if os.environ.get("SIMULATE") == "die" and n == population // 2:
            os._exit(0 if os.environ.get("QUIETLY") else 137)
    Path("step").write_text(f"{generation + 1}\n")


if __name__ == "__main__":
    main()
