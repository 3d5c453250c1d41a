"""Print what the leading elements of a basis explain: ``python examples/spectrum_of_a_basis.py DIRECTORY``."""

import sys

import pandas as pd
from safetensors.numpy import load_file

directory = sys.argv[1] if len(sys.argv) > 1 else "artifacts/scenes/bases/pca/layer-03"

arrays = load_file(f"{directory}/arrays.safetensors")
variance = pd.Series(arrays["explained_variance"], name="explained_variance")
print(pd.DataFrame({"variance": variance, "share": variance / variance.sum()}).head(10).to_string())
