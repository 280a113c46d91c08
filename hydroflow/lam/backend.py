"""deepmd-kit, made importable: the one door through which hydroflow enters it.

The wheel of deepmd-kit carries compiled PyTorch operators for one PyTorch version and refuses to be imported with any
other. The models used here need none of them, so where they do not fit the installed PyTorch they are left out.
``python -m hydroflow.lam.backend …`` is ``dp …`` with the same care.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from hydroflow.errors import SettingsError


def engine_version() -> str:
    """``deepmd-kit X.Y.Z``, without importing it.

    Raises
    ------
    SettingsError
        when deepmd-kit is not installed.
    """
    try:
        return f"deepmd-kit {version('deepmd-kit')}"
    except PackageNotFoundError as error:
        raise SettingsError("deepmd-kit is not installed; install hydroflow with its dependencies (pip install .)") from error


def import_deepmd(module: str = "deepmd.pt") -> ModuleType:
    """Import a module of deepmd-kit's PyTorch backend.

    Raises
    ------
    SettingsError
        when it cannot be imported, with the reason.
    """
    engine_version()
    os.environ.setdefault("DP_INTRA_OP_PARALLELISM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    os.environ.setdefault("DP_INTER_OP_PARALLELISM_THREADS", "1")
    try:
        import deepmd.env as environment
        import torch

        compiled_for = str(environment.GLOBAL_CONFIG.get("pt_version", ""))
        if "deepmd.pt" not in sys.modules and compiled_for != torch.__version__.split("+")[0]:
            # Without the library file deepmd-kit runs on plain PyTorch, and needs no MPI library either.
            environment.SHARED_LIB_DIR = Path(tempfile.gettempdir()) / "hydroflow-no-deepmd-operators"
            environment.GLOBAL_CONFIG["cibuildwheel"] = "0"
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(f"deepmd-kit cannot be imported: {error}; install hydroflow with its dependencies") from error


def main() -> None:
    """``dp`` with the operators handled."""
    import_deepmd("deepmd.pt")
    importlib.import_module("deepmd.main").main()


if __name__ == "__main__":
    main()
