"""The compiled transform: equal bits to a plain butterfly, used only where it was built and checked, never required."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from eigenloom.linalg import fwht_compiled
from eigenloom.linalg.fwht import fwht, fwht_by_products
from eigenloom.linalg.fwht_compiled import butterfly

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def rows(b, n):
    return torch.randn(b, n, generator=torch.Generator().manual_seed(0))


@needs_compiler
@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 7, 11, 12, 13, 16, 18, 20])
def test_the_bits_are_those_of_a_butterfly(bits):
    x = rows(2, 1 << bits)
    expected, found = butterfly(x), torch.empty_like(x)
    assert fwht_compiled.compiled()(x, found) is found
    assert torch.equal(found, expected)
    assert torch.equal(fwht_compiled.compiled()(x, x), expected)


@needs_compiler
def test_rows_are_shared_between_threads():
    x = rows(5, 1 << 12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = fwht_compiled.compiled()(x, torch.empty_like(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, butterfly(x))


@pytest.mark.parametrize(("n_rows", "bits"), [(1, 20), (3, 19), (1 << 12, 8)])
def test_all_paths_agree(n_rows, bits):
    x = rows(n_rows, 1 << bits)
    found, products, plain = fwht(x), fwht_by_products(x, torch.empty_like(x)), butterfly(x)
    scale = x.norm(dim=1).max()
    assert (found - plain).abs().max() < 1e-5 * scale
    assert (products - plain).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("no-such-compiler -O9", "no C compiler (no-such-compiler -O9); the plain path is used"),
        ("false", "the C compiler failed"),
        ("true", "the C compiler failed"),  # says it went well, and leaves no library
        ("", "no C compiler"),
    ],
)
def test_without_a_working_compiler_the_plain_path_is_used(compiler, line, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("CC", compiler)
    fwht_compiled.compiled.cache_clear()
    try:
        x = rows(1, 1 << 20)
        assert torch.equal(fwht(x), fwht_by_products(x, torch.empty_like(x)))
        assert fwht_compiled.compiled() is None
        assert line in caplog.text
    finally:
        fwht_compiled.compiled.cache_clear()


@needs_compiler
def test_a_transform_that_is_wrong_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(fwht_compiled, "butterfly", lambda x: butterfly(x) + 1e-6)
    assert fwht_compiled._build() is None
    assert "the compiled transform is wrong on this machine; the plain path is used" in caplog.text


def test_small_work_and_a_word_against_it_compile_nothing():
    code = (
        "import torch; from eigenloom.linalg.fwht import fwht; from eigenloom.linalg.fwht_compiled import compiled\n"
        "fwht(torch.ones(4, 1 << 17)); print(compiled.cache_info().currsize)\n"
        "fwht(torch.ones(8, 1 << 17)); print(compiled())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EIGENLOOM_COMPILE": "0"}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert found.stdout.split() == ["0", "None"]
