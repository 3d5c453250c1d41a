"""Spectral optimizers: SpectraTEON, which also runs Spectra, TEON, Muon and AdamW, its router, its mathematics."""
