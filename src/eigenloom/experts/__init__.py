"""Weights of mixture-of-experts layers as few shared matrices, mixed and adapted for each expert."""
