"""Runs a Python file of the user's: a mechanism, an experiment."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from transformer_jax.errors import BadInput


def load_module(name: str, path: Path) -> ModuleType:
    """Runs a user's Python file, which may import what lies beside it, as the module `name`.

    Raises BadInput where it cannot be run, with what it raised and where.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is not a Python file: give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except BadInput:
        del sys.modules[name]  # a half-made module must not be found by anyone
        raise
    except Exception as error:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        what = " ".join(str(error).split())
        raise BadInput(
            f"{path}{line} cannot be run ({type(error).__name__}: {what}): mend the file."
        ) from error
    return module
