"""Print the best results of an experiment beside their random floors: ``python examples/best_features.py [NAME]``."""

import sys

import pandas as pd

name = sys.argv[1] if len(sys.argv) > 1 else "default"

table = pd.read_csv(f"results/tables/{name}/table.csv")
best = table[table.chosen.astype(bool)].sort_values("probe_r", ascending=False)
print(best[["source", "layer", "basis", "coding", "nmse", "probe_r", "map"]].to_string(index=False))
