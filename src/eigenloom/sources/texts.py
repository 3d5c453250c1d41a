"""Texts as packed sequences of tokens: an example is ``n_tokens`` tokens in a row, without padding.

A text file has a JSON object a line: ``{"text": "..."}``, or ``{"tokens": ["a", "word", ...], "labels": [...]}`` with a
label for each token, null for none. A token that the tokenizer cuts hands its label to all pieces.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from eigenloom.errors import ConfigError, DataError, StoreError
from eigenloom.sources.model_files import INSTALL
from eigenloom.store.atomic import explained, read_json, write_bytes, write_json
from eigenloom.store.listing import file_problems

FORMAT = "eigenloom.texts"
VERSION = 1
KEYS = {"text", "tokens", "labels"}
MAX_LINE = 64 << 20


def open_tokenizer(directory: Path) -> Any:
    """Open the tokenizer of a model, from its folder alone.

    Raises:
        ConfigError: no tokenizer that works without code of its own, or no library.
    """
    try:
        library = import_module("transformers")
    except ImportError:
        raise ConfigError(f"a tokenizer needs the package transformers; {INSTALL}") from None
    try:
        return library.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many types
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{directory}: holds no tokenizer ({reason}); tokenizer.json is needed") from None


def first_token(tokenizer: Any) -> int:
    """Return the number of the token that begins a sequence: CLS or BOS.

    Raises:
        ConfigError: there is none.
    """
    for number in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if number is not None:
            return int(number)
    raise ConfigError("the tokenizer has no token that begins a sequence; set model.bos: false")


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Read a file of texts, a JSON object a line.

    Raises:
        StoreError: the file is missing.
        DataError: a line is no such object; the message has its number.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file; set texts.* to a file with a JSON object a line")
    documents = []
    with explained(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                documents.append(_document(line, f"{path}, line {number}"))
    return documents


def _document(line: str, at: str) -> dict[str, Any]:
    """Read one line."""
    try:
        document = json.loads(line) if len(line) <= MAX_LINE else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: is not JSON ({error})") from None
    if not isinstance(document, dict) or not document.keys() <= KEYS or ("text" in document) == ("tokens" in document):
        raise DataError(f'{at}: is neither {{"text": ...}} nor {{"tokens": [...], "labels": [...]}}')
    tokens, labels = document.get("tokens", []), document.get("labels")
    if not isinstance(document.get("text", ""), str) or not _is_list_of_texts(tokens):
        raise DataError(f"{at}: `text` must be text and `tokens` a list of texts")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(tokens)):
        raise DataError(f"{at}: {len(tokens)} tokens, but labels for {len(labels)}; every token needs one, or null")
    return document


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def prepare_texts(
    path: str | Path,
    texts: str | Path,
    tokenizer: Any,
    *,
    classes: Sequence[str] | None,
    n_tokens: int,
    bos: bool,
    seed: int,
    first: int,
    n_examples: int,
    spec: Any = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fix which tokens a split consists of, and publish the edge ``path`` with ``tokens.npy`` and ``labels.npy``.

    Documents follow each other in a seeded order without anything between them; the stream is cut into sequences, and a
    remainder is dropped.

    Args:
        path: the edge, ``meta.json``.
        texts: the file.
        tokenizer: of the transformers library.
        classes: names of labels, in the order of stored labels from 1; any other label, and none, is void. With None
            all are.
        n_tokens: content tokens per sequence.
        bos: whether each sequence begins with one more token, CLS or BOS.
        seed: of the order.
        first: sequences to leave out at the front.
        n_examples: sequences to take.
        spec: canonical parameters of the job.
        inputs: path of every input edge -> sha256 hex.

    Returns:
        The document of the edge.

    Raises:
        DataError: too few tokens, or a line that cannot be used.
        ConfigError: more than 255 classes; a tokenizer without the token that is to begin a sequence, or without ids.
        StoreError: the file is missing, or nothing can be written.
    """
    path, texts = Path(path), Path(texts)
    if classes is not None and len(classes) > 255:
        raise ConfigError(f"classes: {len(classes)}, but 255 fit a label of one byte")
    begin = first_token(tokenizer) if bos else None
    documents = read_documents(texts)
    order = np.random.default_rng([seed, len(documents)]).permutation(len(documents))
    needed = (first + n_examples) * n_tokens
    ids, labels = _stream((documents[i] for i in order), tokenizer, classes or (), needed)
    if len(ids) < needed:
        raise DataError(
            f"{texts}: holds {len(ids)} tokens, {len(ids) // n_tokens} sequences of {n_tokens}, but the configuration"
            f" takes {n_examples} from number {first} on; lower n_examples, first or n_tokens"
        )
    cut = slice(first * n_tokens, needed)
    arrays = {
        "tokens.npy": np.array(ids[cut], "<i4").reshape(n_examples, n_tokens),
        "labels.npy": np.array(labels[cut], np.uint8).reshape(n_examples, n_tokens),
    }
    with explained(path):
        path.unlink(missing_ok=True)
    document = {
        "format": FORMAT, "version": VERSION, "dataset": str(texts), "n_examples": n_examples, "n_tokens": n_tokens,
        "begin": begin, "classes": None if classes is None else ["void", *classes], "void": 0,
        "files": {name: _write_array(path.with_name(name), array) for name, array in arrays.items()},
        "spec": spec, "inputs": dict(inputs or {}),
    }  # fmt: skip
    write_json(path, document)
    return document


def _stream(
    documents: Iterator[dict[str, Any]], tokenizer: Any, classes: Sequence[str], needed: int
) -> tuple[list[int], list[int]]:
    """Return token numbers and stored labels of one document after the other, until there are enough."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        if len(ids) >= needed:
            break
        if "text" in document:
            own = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
            labels += [0] * len(own)
        else:
            own, words = _pieces(document["tokens"], tokenizer)
            stated = document.get("labels") or [None] * len(document["tokens"])
            labels += [0 if word is None else numbers.get(str(stated[word]), 0) for word in words]
        ids += own
    return ids, labels


def _pieces(words: list[str], tokenizer: Any) -> tuple[list[int], list[int | None]]:
    """Return the token numbers of words, and which word each is a piece of."""
    try:
        encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
        return encoded["input_ids"], encoded.word_ids()
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the tokenizer cannot take words one by one ({reason}); give `text`, without labels"
        ) from None


class TextSet:
    """Sequences of one split: ``tokens`` int32 ``[n, T]``, the beginning token included; ``labels`` uint8 or None."""

    def __init__(self, path: str | Path):
        """Open them by their edge.

        Raises:
            StoreError: the edge or a sibling is missing, damaged or of another version.
        """
        path = Path(path)
        edge = read_json(path)
        if not isinstance(edge, dict) or edge.get("format") != FORMAT or edge.get("version") != VERSION:
            raise StoreError(f"{path}: is no edge of format {FORMAT!r} version {VERSION}; run the rule that makes it")
        if problems := file_problems(path.parent, edge["files"], verify=False):
            raise StoreError("; ".join(problems) + "; delete the edge and run the rule that makes it")
        tokens = np.load(path.with_name("tokens.npy"), allow_pickle=False)
        self.has_bos = edge["begin"] is not None
        self.classes: list[str] | None = edge["classes"]
        begin = np.full((len(tokens), int(self.has_bos)), edge["begin"] or 0, tokens.dtype)
        self.tokens = np.concatenate([begin, tokens], axis=1)
        labels = np.load(path.with_name("labels.npy"), allow_pickle=False)
        self.labels = None if self.classes is None else labels

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.tokens)


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Publish an array as ``.npy``; return its size and digest."""
    memory = io.BytesIO()
    np.save(memory, array, allow_pickle=False)
    return {"sha256": write_bytes(path, memory.getvalue()), "bytes": path.stat().st_size}
