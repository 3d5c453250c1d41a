"""Print what the best feature of every class knows: ``python examples/classes.py DIRECTORY`` of one result."""

import sys

import pandas as pd

directory = sys.argv[1] if len(sys.argv) > 1 else "results/scenes/layer-03/pca/dense"

classes = pd.read_csv(f"{directory}/per_class.csv")
print(classes[["class", "n_train", "best_feature", "ap", "ap_floor"]].to_string(index=False))
