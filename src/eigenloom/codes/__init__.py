"""Codings of rows and the shards that hold them."""
