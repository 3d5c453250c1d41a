"""Texts become packed sequences of tokens with labels, and a text transformer is recorded on them."""

import json

import numpy as np
import pytest
import torch
from tiny_transformers import VOCABULARY, save_tiny, save_tiny_bert, write_sentences

from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.sources.model_files import read_text_facts
from eigenloom.sources.pretrained_text import TokenRecorder, extract_tokens, open_text_model, pin_text_model
from eigenloom.sources.texts import TextSet, open_tokenizer, prepare_texts

CPU = torch.device("cpu")
CLASSES = ["noun", "verb", "stop"]
PIECES = {"cats": ["cat", "##s"], "running": ["[UNK]"], "dog": ["dog"], "sat": ["sat"], "the": ["the"], ".": ["."]}
"""What the tokenizer makes of each word; it has no piece that begins `running`."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a model and a tokenizer, and the model. Do not change them."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    return folder, save_tiny_bert(folder)


@pytest.fixture
def texts(tmp_path):
    """A file of 40 sentences, and what is in it."""
    path = tmp_path / "texts.jsonl"
    return path, write_sentences(path, 40)


def prepare(texts, bert, name="out", **changes):
    options = {"classes": CLASSES, "n_tokens": 8, "bos": True, "seed": 0, "first": 0, "n_examples": 10, **changes}
    edge = texts[0].parent / name / "meta.json"
    prepare_texts(edge, texts[0], open_tokenizer(bert[0]), **options)
    return TextSet(edge)


def planned(folder, **changes):
    keys = {"revision": None, "blocks": None, "n_tokens": 8, "bos": True, **changes}
    return {"path": str(folder), **keys, "shape": read_text_facts(folder).shape()}


def by_hand(lines):
    """Tokens and labels of the documents in the seeded order, word by word."""
    tokens, labels = [], []
    for i in np.random.default_rng([0, len(lines)]).permutation(len(lines)):
        words = lines[i].get("tokens") or lines[i]["text"].split()
        for word, label in zip(words, lines[i].get("labels") or [None] * len(words), strict=True):
            tokens += [VOCABULARY.index(piece) for piece in PIECES[word]]
            labels += [CLASSES.index(label) + 1 if label else 0] * len(PIECES[word])
    return tokens, labels


def test_sequences_are_packed_without_padding_and_pieces_share_a_label(texts, bert):
    got = prepare(texts, bert)
    tokens, labels = by_hand(texts[1])
    assert got.tokens.shape == (10, 9)
    assert (got.tokens[:, 0] == VOCABULARY.index("[CLS]")).all()
    assert got.tokens[:, 1:].ravel().tolist() == tokens[:80]
    assert got.labels.ravel().tolist() == labels[:80]
    assert set(labels[:80]) == {0, 1, 2, 3}
    assert (got.classes, got.has_bos) == (["void", *CLASSES], True)
    plain = prepare(texts, bert, "plain", bos=False, classes=None)
    assert plain.labels is None
    assert np.array_equal(plain.tokens, got.tokens[:, 1:])


def test_a_subset_is_a_prefix_and_cuts_do_not_overlap(texts, bert):
    whole, prefix, rest = (
        prepare(texts, bert, name, n_examples=n, first=first).tokens
        for name, n, first in (("whole", 10, 0), ("prefix", 6, 0), ("rest", 4, 6))
    )
    assert np.array_equal(np.concatenate([prefix, rest]), whole)
    assert not np.array_equal(prepare(texts, bert, "other", seed=1).tokens, whole)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "texts.jsonl, line 2: is not JSON"),
        ('{"words": []}', "line 2: is neither"),
        ('{"text": "a", "tokens": []}', "line 2: is neither"),
        ('{"text": 3}', "line 2: `text` must be text and `tokens` a list of texts"),
        ('{"tokens": ["a", 1]}', "line 2: `text` must be text"),
        ('{"tokens": ["a", "cat"], "labels": ["x"]}', "line 2: 2 tokens, but labels for 1; every token needs one"),
    ],
)
def test_lines_that_cannot_be_used_are_named(texts, bert, line, words):
    texts[0].write_text('{"text": "a cat"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        prepare(texts, bert)
    assert not (texts[0].parent / "out/meta.json").exists()


def test_too_few_tokens_says_both_numbers(texts, bert):
    with pytest.raises(DataError, match=r"holds \d+ tokens, \d+ sequences of 8, but the configuration takes 999"):
        prepare(texts, bert, n_examples=999)
    texts[0].unlink()
    with pytest.raises(StoreError, match="no such file; set texts"):
        prepare(texts, bert)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    save_tiny(tmp_path / "model")
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        open_tokenizer(tmp_path / "model")


def test_a_damaged_edge_is_refused(texts, bert):
    prepare(texts, bert)
    (texts[0].parent / "out/tokens.npy").unlink()
    with pytest.raises(StoreError, match=r"tokens\.npy: missing"):
        TextSet(texts[0].parent / "out/meta.json")


@pytest.mark.parametrize("bos", [True, False])
def test_block_outputs_are_the_models_own(texts, bert, bos):
    folder, model = bert
    edge = pin_text_model(planned(folder, bos=bos))
    assert edge["architecture"] == "transformers.BertModel"
    recorder = TokenRecorder(open_text_model("meta.json", edge), [0, 2], CPU)
    sequences = prepare(texts, bert, bos=bos)
    got = np.concatenate(list(extract_tokens(recorder, sequences.tokens, bos, 4)))
    assert (got.shape, got.dtype) == ((10, 2, 8 + bos, 32), np.float32)
    with torch.inference_mode():
        own = model(torch.from_numpy(sequences.tokens).long(), output_hidden_states=True).hidden_states
    for position, layer in enumerate((0, 2)):
        np.testing.assert_allclose(got[:, position], own[layer + 1].numpy(), rtol=0, atol=1e-5)


def test_other_weights_sizes_and_lengths_are_refused(bert, tmp_path):
    folder = tmp_path / "model"
    save_tiny_bert(folder)
    edge = pin_text_model(planned(folder))
    with pytest.raises(ConfigError, match="takes 32 tokens, not 33; lower model.n_tokens"):
        pin_text_model(planned(folder, n_tokens=32))
    wrong = planned(folder)
    wrong["shape"]["width"] = 768
    with pytest.raises(ConfigError, match="correct or remove shape"):
        pin_text_model(wrong)
    save_tiny_bert(folder, num_hidden_layers=2)
    with pytest.raises(MismatchError, match="config.json, model.safetensors changed since meta.json was made"):
        open_text_model("meta.json", edge)


def test_sizes_under_other_names(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_positions": 9})
    )
    facts = read_text_facts(tmp_path)
    assert (facts.width, facts.depth, facts.max_tokens) == (8, 2, 9)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd"}))
    with pytest.raises(ConfigError, match="odd states neither width nor depth"):
        read_text_facts(tmp_path)
