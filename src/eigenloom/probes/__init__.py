"""One-dimensional logistic probes and what they say."""
