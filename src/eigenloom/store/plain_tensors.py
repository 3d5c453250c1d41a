"""Torch files of other programs, read without ever running what a pickle may ask for."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from eigenloom.errors import StoreError
from eigenloom.store.atomic import explained


def load_plain_tensors(path: str | Path) -> Any:
    """Load a ``.pt`` file of tensors, numbers, texts, lists and dictionaries, on the CPU; large tensors stay on disk.

    Tensors of a zip file, which is what ``torch.save`` writes, are mapped copy-on-write and read when they are used.

    Raises:
        StoreError: the file is missing, damaged, or a pickle of anything else.
    """
    path = Path(path)
    with explained(path), path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path}: is a pickle that is not plain tensors and numbers ({refused(error)}); it was not run. Save the "
            "tensors alone, as safetensors or .npy"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{path}: is damaged or no torch file ({reason}); copy or save it again") from None


def refused(error: pickle.UnpicklingError) -> str:
    """Say what a pickle asked for; torch's own text goes on to advise loading it all the same."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {name[1]}" if name else "it asks for more than torch allows"
