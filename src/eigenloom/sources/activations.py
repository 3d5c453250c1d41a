"""Rows of one layer of a recording, in stored order, block-shuffled, or sampled."""

from collections.abc import Sequence

from eigenloom.sources.block_rows import BlockRows
from eigenloom.store.reading import LayerReader
from eigenloom.store.recording import ActivationStore


class ActivationRows(BlockRows):
    """The content tokens (``patch``) or CLS tokens (``cls``) of one layer as ``Batches``: float32 ``[b, D]``.

    Stored order is ascending example, then token. A block of the shuffled order is the least number of whole
    examples that have ``block_bytes``; the cut into shards does not matter to it.
    """

    def __init__(
        self,
        store: ActivationStore,
        layer: int,
        tokens: str = "patch",
        shards: Sequence[int] | None = None,
        batch_size: int = 8192,
        block_bytes: int = 4 << 20,
        pool_bytes: int = 256 << 20,
    ) -> None:
        """Choose layer and tokens, and the shards to be restricted to (all); rows are numbered over those.

        Raises:
            ConfigError: the layer or the tokens are not stored, a shard does not exist, a size is not positive.
        """
        self.store, self.layer, self.tokens, self.shards = store, layer, tokens, shards
        reader = self._reader()
        per_example = reader.rows_per_example
        block_rows = -(-block_bytes // (per_example * reader.row_bytes)) * per_example
        super().__init__(
            reader.n_rows, reader.n_features, batch_size=batch_size, block_rows=block_rows, pool_bytes=pool_bytes
        )

    def locate(self, row: int, feature: int) -> str:
        """Say where a number lies, for a message: shard, example, token, layer, feature."""
        shard, example, token = self._reader().position(row)
        name = self.store.shards[shard].name
        if self.tokens == "cls":
            return f"shard {name}, example {example}, CLS token, layer {self.layer}, feature {feature}"
        row_id = example * self.store.tokens_per_example + token
        return f"shard {name}, example {example}, token {token} (row {row_id}), layer {self.layer}, feature {feature}"

    def _reader(self) -> LayerReader:
        """Return a new reader; nothing is open before the first read."""
        return LayerReader(self.store, self.layer, self.tokens, self.shards)
