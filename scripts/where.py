"""Say where the report of a configuration is: ``python scripts/where.py [CONFIG]``."""

import sys
from pathlib import Path

import yaml

if __name__ == "__main__":
    config = Path(sys.argv[1] if len(sys.argv) > 1 else "config.yaml")
    name = yaml.safe_load(config.read_text(encoding="utf-8"))["name"]
    print(f"report: {Path('results', 'reports', name, 'index.html').resolve().as_uri()}")
