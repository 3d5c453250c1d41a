"""The protocol: golden bytes written by hand from its text, sizes, and what a writer refuses."""

import hashlib

import numpy as np
import pytest
from recordings import metadata_of, numbers, write_shards

from eigenloom.errors import ConfigError, DataError
from eigenloom.store.protocol import KEYS, Layout, Metadata, encode_data, metadata_bytes, metadata_hash, shards_bytes
from eigenloom.store.writer import write_labels, write_shard

# Three examples, two layers, P = 2 and CLS, D = 1, at most 14 (token, layer) vectors: S = 14 // 6 = 2, two shards.
LAYOUT = Layout(3, (0, 2), 2, True, 1, 14)
GOLDEN_METADATA = """{
  "family": "dinov2",
  "ckpt": "vit-ü",
  "layers": [
    0,
    2
  ],
  "content_tokens_per_example": 2,
  "cls_token": true,
  "d_model": 1,
  "n_examples": 3,
  "max_tokens_per_shard": 14,
  "data": "eyJhIjpbMSwiw6kiXSwiYiI6bnVsbH0=",
  "dataset": "images/train",
  "pixel_agg": "majority",
  "dtype": "float32",
  "protocol": "2.1"
}"""
GOLDEN_HASHED = (
    '{"family":"dinov2","ckpt":"vit-ü","layers":[0,2],"content_tokens_per_example":2,"cls_token":true,"d_model":1,'
    '"n_examples":3,"max_tokens_per_shard":14,"data":"eyJhIjpbMSwiw6kiXSwiYiI6bnVsbH0=","dataset":"images/train",'
    '"pixel_agg":"majority","dtype":"float32","protocol":"2.1"}'
)
GOLDEN_HASH = "0395a223"
GOLDEN_SHARDS = """[
  {
    "name": "acts000000.bin",
    "n_examples": 2
  },
  {
    "name": "acts000001.bin",
    "n_examples": 1
  }
]"""
# Examples 0 and 1, then 2 and a tail of zeros; within an example layer 0 then 2, within a layer CLS then two patches.
GOLDEN_ACTS = (
    "0000803f 00000040 00004040 00008040 0000a040 0000c040 0000e040 00000041 00001041 00002041 00003041 00004041",
    "00005041 00006041 00007041 00008041 00008841 00009041 00000000 00000000 00000000 00000000 00000000 00000000",
)


def golden():
    data = encode_data({"b": None, "a": [1, "é"]})
    return Metadata("dinov2", "vit-ü", (0, 2), 2, True, 1, 3, 14, data, "images/train")


def test_metadata_bytes_and_hash_are_golden():
    assert metadata_bytes(golden()).decode() == GOLDEN_METADATA
    assert hashlib.sha256(GOLDEN_HASHED.encode()).hexdigest()[:8] == GOLDEN_HASH
    assert metadata_hash(golden()) == GOLDEN_HASH
    assert shards_bytes(LAYOUT).decode() == GOLDEN_SHARDS


def test_shard_bytes_are_golden(tmp_path):
    acts = np.arange(1, 19, dtype=np.float32).reshape(3, 2, 3, 1)
    facts = write_shards(tmp_path, LAYOUT, acts)
    expected = [bytes.fromhex(text) for text in GOLDEN_ACTS]
    for fact, content in zip(facts, expected, strict=True):
        assert (tmp_path / fact["name"]).read_bytes() == content
        assert fact["sha256"] == hashlib.sha256(content).hexdigest()
        assert fact["bytes"] == len(content) == LAYOUT.shard_bytes
    assert [(fact["name"], fact["n_examples"]) for fact in facts] == [("acts000000.bin", 2), ("acts000001.bin", 1)]


def test_labels_bytes_are_golden(tmp_path):
    facts = write_labels(tmp_path, np.array([[0, 255], [1, 2], [7, 0]], np.uint8))
    assert (tmp_path / "labels.bin").read_bytes() == bytes([0, 255, 1, 2, 7, 0])
    assert facts == {
        "name": "labels.bin", "sha256": hashlib.sha256(bytes([0, 255, 1, 2, 7, 0])).hexdigest(),
        "bytes": 6, "n_examples": 3, "tokens_per_example": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match="a uint8 matrix is due"):
        write_labels(tmp_path, np.zeros((2, 2), np.int64))


def test_sizes():
    layout = Layout(2000, [1, 3], 64, True, 96, 65_000)
    assert layout.layers == (1, 3)
    assert (layout.examples_per_shard, layout.n_shards, layout.tokens_per_example) == (500, 4, 65)
    assert layout.shard_bytes == 24_960_000
    assert layout.shard_range(3) == (1500, 2000)
    assert Layout(401, (1, 3), 64, True, 96, 26_000).shard_range(2) == (400, 401)
    for shard in (-1, 4):
        with pytest.raises(ConfigError, match=f"shard {shard} does not exist; the recording has 4"):
            layout.shard_range(shard)


def test_batch_cut_does_not_change_the_bytes_and_big_endian_is_converted(tmp_path):
    layout = Layout(5, (0,), 3, False, 2, 15)
    acts = numbers(layout)
    whole = write_shard(tmp_path / "a", layout, 0, [acts])
    assert write_shard(tmp_path / "b", layout, 0, [acts[:1], acts[1:1], acts[1:]]) == whole
    assert write_shard(tmp_path / "c", layout, 0, [acts.astype(">f4")]) == whole
    assert write_shard(tmp_path / "d", layout, 0, [np.asfortranarray(acts)]) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda acts: [acts[:1]], r"acts000000\.bin: 1 examples were recorded, but 2 \(0 to 1\) are due"),
        (lambda acts: [acts], r"more than the 2 examples \(0 to 1\)"),
        (lambda acts: [acts[:2].astype("f8")], r"float64 \[2, 2, 3, 1\], where float32 \[b, 2, 3, 1\] is due"),
        (lambda acts: [acts[:2, :1]], r"float32 \[2, 1, 3, 1\]"),
        (lambda acts: [acts[0]], r"float32 \[2, 3, 1\]"),
    ],
)
def test_wrong_batches_leave_nothing(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        write_shard(tmp_path, LAYOUT, 0, change(numbers(LAYOUT)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_examples": 0}, "n_examples must be an integer from 1"),
        ({"n_examples": True}, "n_examples must be an integer from 1"),
        ({"d_model": 1 << 60}, "d_model must be an integer from 1"),
        ({"layers": ()}, "layers must be"),
        ({"layers": (2, 0)}, "layers must be"),
        ({"layers": (1, 1)}, "layers must be"),
        ({"layers": (-1,)}, "layers must be"),
        ({"cls_token": 1}, "cls_token must be true or false"),
        ({"max_tokens_per_shard": 5}, r"5 is less than the 6 \(token, layer\) vectors of one example"),
        ({"n_examples": 3_000_000}, "more than 1,000,000 shards"),
        ({"n_examples": 0, "layers": ()}, "n_examples must be .*; layers must be"),
    ],
)
def test_impossible_layouts_are_refused(changes, words):
    facts = {"n_examples": 3, "layers": (0, 2), "content_tokens_per_example": 2, "cls_token": True, "d_model": 1}
    with pytest.raises(ConfigError, match=words):
        Layout(**{**facts, "max_tokens_per_shard": 6, **changes})


@pytest.mark.parametrize(
    "changes", [{"family": "vit"}, {"dtype": "float16"}, {"protocol": "1.1"}, {"pixel_agg": "mean"}, {"ckpt": 3}]
)
def test_what_saev_refuses_is_not_written(changes):
    ((key, _),) = changes.items()
    with pytest.raises(ConfigError, match=key):
        metadata_of(LAYOUT, **changes)


def test_keys_are_in_the_protocols_order():
    assert KEYS[:4] == ("family", "ckpt", "layers", "content_tokens_per_example")
    assert KEYS[-4:] == ("dataset", "pixel_agg", "dtype", "protocol")
    assert len(KEYS) == 13
