"""Reconstruction and utilisation of a basis."""
