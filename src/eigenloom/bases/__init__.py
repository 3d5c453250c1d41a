"""The spectral bases, behind one contract."""
