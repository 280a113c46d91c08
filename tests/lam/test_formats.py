"""Every format that labelled frames can be written in reads back to the same numbers."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam.formats import EXPORTS, element_order, export_frames, import_frames, write_training_systems
from tests.lam.labelled import frames as labelled


def _canonical(frames: StructureArrays) -> list[tuple]:
    """What must survive any order of frames and of atoms in a frame."""
    out = []
    for one in frames:
        order = np.lexsort((*np.round(one.fractional % 1 % 1, 6).T, one.numbers))
        forces = one.atom_columns["forces_ev_a"][order]
        out.append((round(float(one.columns["energy_ev"][0]), 5), one.numbers[order].tolist(), np.round(forces, 4).tolist(),
                    np.round(one.columns["virial_ev"][0], 4).tolist()))
    return sorted(out, key=lambda t: t[0])


@pytest.mark.parametrize("fmt", EXPORTS)
def test_round_trip(fmt: str, tmp_path: Path) -> None:
    frames = labelled()[:40]
    target = tmp_path / "out"
    export_frames(frames, target, fmt, element_order(frames))
    # extxyz names the label settings of each frame, the deepmd formats have no place for them
    back = import_frames(target, fmt, None if fmt == "extxyz" else "somewhere")
    for a, b in zip(_canonical(frames), _canonical(back), strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_allclose(a[2], b[2], atol=2e-4)
        np.testing.assert_allclose(a[3], b[3], atol=2e-4)
    settings = frames.columns["label_settings"] if fmt == "extxyz" else ["somewhere"]
    assert set(back.columns["label_settings"]) == set(settings)


def test_mixed_types_are_not_read_as_one_type(tmp_path: Path) -> None:
    """The type.raw of deepmd's mixed layout holds zeros: read as plain npy, every atom would be hydrogen."""
    frames = labelled()[:9]
    export_frames(frames, tmp_path / "mixed", "deepmd/npy/mixed", element_order(frames))
    with pytest.raises(DataError, match="import it as deepmd/npy/mixed"):
        import_frames(tmp_path / "mixed", "deepmd/npy", "somewhere")


def test_levels_of_theory_in_one_file_are_never_given_one_name(tmp_path: Path) -> None:
    frames = labelled()[:6]
    one = str(frames.columns["label_settings"][0])
    export_frames(frames, tmp_path / "one.xyz", "extxyz", element_order(frames))
    assert set(import_frames(tmp_path / "one.xyz", "extxyz", one).columns["label_settings"]) == {one}
    with pytest.raises(DataError, match="not with 'pbe'"):
        import_frames(tmp_path / "one.xyz", "extxyz", "pbe")
    frames.columns["label_settings"] = np.array([one] * 3 + ["VASP PBE 850 eV"] * 3)
    export_frames(frames, tmp_path / "two.xyz", "extxyz", element_order(frames))
    for told in (None, one):
        with pytest.raises(DataError, match="2 label settings are mixed"):
            import_frames(tmp_path / "two.xyz", "extxyz", told)
    del frames.columns["label_settings"]
    export_frames(frames, tmp_path / "none.xyz", "extxyz", element_order(frames))
    with pytest.raises(DataError, match="--label-settings"):
        import_frames(tmp_path / "none.xyz", "extxyz")


def test_a_vasp_outcar_is_read_with_its_virial() -> None:
    outcar = Path(ase.__file__).parent / "test" / "testdata" / "vasp" / "OUTCAR_example_1"
    if not outcar.exists():
        outcar = next(Path(ase.__file__).parent.rglob("OUTCAR_example_1"), outcar)
    frames = import_frames(outcar, "vasp/outcar", "vasp pbe")
    assert len(frames) >= 1
    assert np.isfinite(frames.columns["virial_ev"]).all() and np.isfinite(frames.atom_columns["forces_ev_a"]).all()


@pytest.mark.parametrize(("fmt", "content", "message"), [
    ("extxyz", "2\nLattice=\"1 0 0 0 1 0 0 0 1\" energy=1.0\nH 0 0 0\nH 0 0 0.5\n", "no forces, stress"),
    ("extxyz", "not a file of atoms", "cannot be read as extxyz"),
    ("deepmd/npy", None, "does not exist"),
    ("cif", "x", "unknown import format"),
])
def test_unusable_imports_say_why(fmt: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        import_frames(path, fmt, "somewhere")


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    frames = labelled()[:2]
    with pytest.raises(DataError, match="exists already"):
        export_frames(frames, tmp_path, "deepmd/npy", element_order(frames))


@pytest.mark.parametrize("fmt", EXPORTS)
def test_an_export_that_fails_leaves_nothing(fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: object, *args: object, **kwargs: object) -> None:
        Path(str(path)).write_text("half")
        raise OSError(28, "No space left on device")

    frames = labelled()[:2]
    monkeypatch.setattr("ase.io.write", full)
    monkeypatch.setattr("dpdata.MultiSystems.to_deepmd_npy", lambda self, path: full(path), raising=False)
    monkeypatch.setattr("dpdata.MultiSystems.to_deepmd_npy_mixed", lambda self, path: full(path), raising=False)
    with pytest.raises(OSError, match="No space left"):
        export_frames(frames, tmp_path / "out", fmt, element_order(frames))
    assert not list(tmp_path.iterdir())


def test_training_systems_pad_frames_with_virtual_atoms(tmp_path: Path) -> None:
    frames = labelled()
    folders = write_training_systems(frames, tmp_path / "train", ["H", "Mg", "Ca", "La"], pad=8)
    found = 0
    for folder in folders:
        types = np.concatenate([np.load(p) for p in sorted(Path(folder).glob("set.*/real_atom_types.npy"))])
        assert types.shape[1] in (8, 16)
        found += len(types)
        assert (types >= 0).sum(axis=1).max() <= types.shape[1]
    assert found == len(frames)


def test_an_element_outside_the_type_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks Ca"):
        write_training_systems(labelled(), tmp_path, ["H", "Mg"], pad=8)
