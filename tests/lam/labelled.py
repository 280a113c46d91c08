"""130 real labelled frames of Mg–Ca–H near 200 GPa: random crystals of 2 to 12 atoms, pw.x 6.7, PBE."""

from __future__ import annotations

from pathlib import Path

from hydroflow.arrays import StructureArrays


def frames() -> StructureArrays:
    return StructureArrays.from_parquet((Path(__file__).parent / "data" / "mg_ca_h.parquet").read_bytes())
