"""Everything that yields rows: images, recordings, arrays."""
