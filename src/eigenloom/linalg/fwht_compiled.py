"""The transform in C, built once per process by the machine's own compiler where there is one; never required.

The library is built into a private folder, loaded, and deleted: nothing is kept that another machine, with another
instruction set, could load. It is used only after it has reproduced a plain butterfly to the last bit.
"""

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("eigenloom")
Kernel = Callable[[Tensor, Tensor], Tensor]
FLAGS = ("-O3", "-march=native", "-fno-fast-math", "-shared", "-fPIC")
_SECONDS = 60


@cache
def compiled() -> Kernel | None:
    """Return ``transform(x, out) -> out`` of contiguous float32 rows ``[b, n]``, None where it is not to be had.

    The first call takes half a second. The environment variable ``EIGENLOOM_COMPILE=0`` forbids it.
    """
    return None if os.environ.get("EIGENLOOM_COMPILE", "1") == "0" else _build()


def _build() -> Kernel | None:
    """Compile, load and check; say in one line why not, if not."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        logger.info("fwht: no C compiler (%s); the plain path is used", " ".join(command))
        return None
    source = Path(__file__).with_name("fwht.c")
    try:
        with tempfile.TemporaryDirectory(prefix="eigenloom-") as folder:
            library = Path(folder, "fwht.so")
            call = [*command, *FLAGS, "-o", str(library), str(source)]
            subprocess.run(call, check=True, capture_output=True, timeout=_SECONDS)
            function = ctypes.CDLL(str(library)).fwht_rows
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("fwht: the C compiler failed (%s); the plain path is used", error)
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    function.restype = None
    kernel = _threaded(function)
    if not _reproduces_the_butterfly(kernel):
        logger.warning("fwht: the compiled transform is wrong on this machine; the plain path is used")
        return None
    return kernel


def _threaded(function: Callable[[int, int, int, int], None]) -> Kernel:
    """Share rows between as many threads as torch uses; the interpreter's lock is released meanwhile."""

    def part(x: Tensor, out: Tensor) -> None:
        """Transform some rows."""
        function(x.data_ptr(), out.data_ptr(), len(x), x.shape[1])

    def transform(x: Tensor, out: Tensor) -> Tensor:
        """Transform ``[b, n]`` into ``out``, which may be ``x``."""
        n_threads = min(torch.get_num_threads(), len(x))
        if n_threads < 2:
            part(x, out)
            return out
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(part, x.tensor_split(n_threads), out.tensor_split(n_threads)))
        return out

    return transform


def _reproduces_the_butterfly(kernel: Kernel) -> bool:
    """Compare all lengths up to 2^15 with a plain butterfly, bit by bit."""
    source = torch.Generator().manual_seed(0)
    for bits in range(16):
        x = torch.randn(3, 1 << bits, generator=source)
        if not torch.equal(kernel(x, torch.empty_like(x)), butterfly(x)):
            return False
    return True


def butterfly(x: Tensor) -> Tensor:
    """Return the transform of rows ``[b, n]`` by the textbook's steps, a copy of the whole array each."""
    apart = 1
    while apart < x.shape[1]:
        pairs = x.reshape(len(x), -1, 2, apart)
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2)
        x, apart = x.reshape(len(pairs), -1), 2 * apart
    return x
