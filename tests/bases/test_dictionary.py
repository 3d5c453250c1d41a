"""External dictionaries: every naming and orientation read alike, moved between spaces, hostile files refused."""

import json
import pickle
import struct

import pytest
import torch
from problems import decaying_rows
from safetensors.torch import save_file

from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.dictionary import ExternalDictionary
from eigenloom.bases.sparse_code import random_code
from eigenloom.errors import ConfigError, MismatchError, StoreError
from eigenloom.moments import Standardization, StandardizedRows, moments_of_rows
from eigenloom.provenance import file_digest
from eigenloom.sources.arrays import ArrayRows

D, K = 6, 10


@pytest.fixture(scope="module")
def rows():
    return decaying_rows(500, D, mean=2.0) * torch.linspace(0.5, 3, D)


def arrays(seed=0, d=D, k=K):
    source = torch.Generator().manual_seed(seed)
    names = {"W_enc": (d, k), "b_enc": (k,), "W_dec": (k, d), "b_dec": (d,), "threshold": (k,)}
    drawn = {name: torch.randn(shape, generator=source) for name, shape in names.items()}
    return drawn | {"threshold": drawn["threshold"].abs()}


def written(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def by_hand(a, x, activation, n_active=0, subtract=True):
    """Codes and reconstructions the obvious way, in float64, in the space of the file."""
    a = {name: tensor.double() for name, tensor in a.items()}
    drive = (x.double() - a["b_dec"] * subtract) @ a["W_enc"] + a["b_enc"]
    codes = drive.clamp_min(0)
    if activation == "topk":
        codes = codes * (codes >= codes.topk(n_active).values[:, -1:])
    if activation == "jumprelu":
        codes = codes * (drive > a["threshold"])
    return codes, codes @ a["W_dec"] + a["b_dec"]


ACTIVATIONS = [("relu", {}), ("topk", {"n_active": 3}), ("jumprelu", {})]


@pytest.mark.parametrize(("activation", "more"), ACTIVATIONS)
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("standardize", ["standard", "center", "none"])
def test_codes_are_those_of_the_file_in_its_own_space(tmp_path, rows, activation, more, subtract, standardize):
    path = written(tmp_path / "d.safetensors", arrays())
    moments = moments_of_rows(ArrayRows(rows))
    seen = StandardizedRows(ArrayRows(rows), Standardization.from_moments(moments, standardize), moments)
    for space in ("raw", "standardized"):
        basis = ExternalDictionary.fit(
            seen, seed=0, path=path, activation=activation, rows=space, subtract_bias=subtract, **more
        )
        fitted = seen.standardization.apply(rows)
        own = rows if space == "raw" else fitted
        codes, back = by_hand(arrays(), own, activation, subtract=subtract, **more)
        found = basis.encode(fitted)
        torch.testing.assert_close(found.double(), codes, rtol=1e-4, atol=1e-4)
        again = basis.decode(found)
        again = seen.standardization.invert(again) if space == "raw" else again
        torch.testing.assert_close(again.double(), back, rtol=1e-4, atol=1e-3)
        assert (found >= 0).all()
        assert basis.code_energies(found) is None  # reconstruction goes through `decode`


def test_every_naming_and_orientation_is_read_alike(tmp_path, rows):
    a = arrays()
    ways = {
        "plain": a,
        "linear": {
            "encoder.weight": a["W_enc"].T, "encoder.bias": a["b_enc"], "decoder.weight": a["W_dec"].T,
            "decoder.bias": a["b_dec"],
        },
        "openai": {
            "encoder.weight": a["W_enc"].T, "latent_bias": a["b_enc"], "decoder.weight": a["W_dec"].T,
            "pre_bias": a["b_dec"],
        },
        "turned": {
            "encoder": a["W_enc"].T, "encoder_bias": a["b_enc"], "decoder": a["W_dec"].T, "decoder_bias": a["b_dec"],
        },
        "half": {name: tensor.half() for name, tensor in a.items()},
    }  # fmt: skip
    codes = {}
    for name, tensors in ways.items():
        path = written(tmp_path / f"{name}.safetensors", tensors)
        codes[name] = ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path).encode(rows)
    for name in ("linear", "openai", "turned"):
        assert torch.equal(codes[name], codes["plain"])
    torch.testing.assert_close(codes["half"], codes["plain"], rtol=0.01, atol=0.02)
    own = written(tmp_path / "own.safetensors", {"E": a["W_enc"], "D": a["W_dec"]})
    basis = ExternalDictionary.fit(ArrayRows(rows), seed=0, path=own, keys={"encoder": "E", "decoder": "D"})
    assert not basis.decoder_bias.any()
    assert basis.keys == {"encoder": "E", "decoder": "D"}
    without = {"decoder_bias": "none", "encoder_bias": "none"}
    path = tmp_path / "plain.safetensors"
    bare = ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path, keys=without)
    assert torch.equal(bare.encode(rows), basis.encode(rows))


def test_square_matrices_follow_their_names(tmp_path, rows):
    a = arrays(k=D)
    one = written(tmp_path / "a.safetensors", a)
    two = written(
        tmp_path / "b.safetensors",
        {
            "encoder.weight": a["W_enc"].T,
            "encoder.bias": a["b_enc"],
            "decoder.weight": a["W_dec"].T,
            "b_dec": a["b_dec"],
        },
    )
    first, second = (ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path) for path in (one, two))
    torch.testing.assert_close(first.encode(rows).double(), by_hand(a, rows, "relu")[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(first.encode(rows), second.encode(rows))
    assert torch.equal(first.decoder, second.decoder)


def test_it_is_saved_with_the_digest_of_its_file(tmp_path, rows):
    path = written(tmp_path / "d.safetensors", arrays())
    basis = ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path, activation="topk", n_active=2)
    save_basis(basis, tmp_path / "saved")
    again = load_basis(tmp_path / "saved", verify=True)
    assert again.sha256 == file_digest(path)
    assert again.rows == "raw"
    assert torch.equal(again.encode(rows), basis.encode(rows))


@pytest.mark.parametrize(("activation", "more"), ACTIVATIONS)
def test_the_floor_is_as_sparse_and_knows_nothing_of_the_file(tmp_path, rows, activation, more):
    a = arrays()
    path = written(tmp_path / "d.safetensors", a if activation == "topk" else {**a, "b_enc": a["b_enc"] - 15})
    basis, floor, other = (
        ExternalDictionary.fit(ArrayRows(rows), seed=seed, path=path, activation=activation, random=random, **more)
        for seed, random in ((0, False), (0, True), (1, True))
    )
    density = [(b.encode(rows) > 0).float().mean().item() for b in (basis, floor)]
    assert density[1] == pytest.approx(density[0], rel=0.1)
    torch.testing.assert_close(floor.decoder.norm(dim=1), torch.ones(K))
    assert not torch.equal(floor.decoder, other.decoder)
    error = (floor.decode(floor.encode(rows)) - rows).square().sum()
    assert error < (rows - rows.mean(0)).square().sum()
    assert (floor.random, basis.random) == (True, False)
    save_basis(floor, tmp_path / "floor")
    assert torch.equal(load_basis(tmp_path / "floor").encode(rows), floor.encode(rows))


def test_random_elements_leave_constant_features_alone():
    sample = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    varying = torch.tensor([True, True, False, True])
    drawn = random_code(sample * varying, varying, 7, seed=0, n_active=2)
    assert not drawn["decoder"][:, 2].any()
    assert not drawn["encoder"][:, 2].any()


def changed(**changes):
    return {name: tensor for name, tensor in (arrays() | changes).items() if tensor is not None}


WRONG = {
    "width": (
        changed(W_enc=torch.randn(7, K), W_dec=torch.randn(K, 7)), {}, MismatchError,
        r"W_enc has the shape \(7, 10\), but rows have 6",
    ),
    "elements": (changed(W_dec=torch.randn(11, D)), {}, StoreError, "W_enc has 10 elements, but W_dec 11"),
    "asked": (arrays(), {"n_components": 12}, MismatchError, "has 10 elements, but n_components is 12; set it to 10"),
    "active": (arrays(), {"activation": "topk", "n_active": 11}, ConfigError, "n_active: 11, but .* has 10 elements"),
    "no active": (arrays(), {"activation": "topk"}, ConfigError, "n_active: None, but it goes with `activation: topk`"),
    "activation": (arrays(), {"activation": "gelu"}, ConfigError, "'gelu' is unknown; use relu or topk or jumprelu"),
    "space": (arrays(), {"rows": "whitened"}, ConfigError, "'whitened' is unknown; use raw or standardized"),
    "bias": (changed(b_enc=torch.randn(9)), {}, StoreError, r"b_enc has the shape \(9,\), but 10 numbers are due"),
    "no encoder": (changed(W_enc=None), {}, ConfigError, r"no encoder was found; looked for W_enc, .*; it holds W_dec"),
    "key": (arrays(), {"keys": {"decoder": "D"}}, ConfigError, r"has no array 'D' \(keys.decoder\); it holds W_dec"),
    "part": (arrays(), {"keys": {"decodr": "D"}}, ConfigError, "'decodr' is no part of a dictionary; known: encoder"),
    "no threshold": (changed(threshold=None), {"activation": "jumprelu"}, ConfigError, "has no threshold"),
    "threshold": (changed(threshold=-torch.ones(K)), {"activation": "jumprelu"}, StoreError, "goes down to -1"),
    "integers": (changed(W_dec=torch.ones(K, D, dtype=torch.int64)), {}, StoreError, "holds torch.int64, no floating"),
    "nan": (changed(b_dec=torch.full((D,), torch.nan)), {}, StoreError, "b_dec holds NaN or Inf"),
    "cube": (changed(W_enc=torch.randn(D, K, 1)), {}, MismatchError, r"W_enc has the shape \(6, 10, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path, rows, case):
    tensors, parameters, kind, words = WRONG[case]
    path = written(tmp_path / "d.safetensors", tensors)
    with pytest.raises(kind, match=words):
        ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path, **parameters)


def test_hostile_files_are_refused_and_nothing_runs(tmp_path, rows):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    huge = json.dumps({"W_enc": {"dtype": "F32", "shape": [D, 1 << 40], "data_offsets": [0, D << 42]}}).encode()
    contents = {
        "pickle": pickle.dumps(Bomb()),
        "huge": struct.pack("<Q", len(huge)) + huge + bytes(64),
        "header": struct.pack("<Q", 1 << 62),
        "empty": b"",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(StoreError, match=f"{name}.safetensors: is damaged or not a safetensors file .*pickles are"):
            ExternalDictionary.fit(ArrayRows(rows), seed=0, path=path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(StoreError, match="no such file"):
        ExternalDictionary.fit(ArrayRows(rows), seed=0, path=tmp_path / "gone.safetensors")
