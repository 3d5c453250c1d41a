"""Record the artifacts with DVC and stage what Git keeps: ``python scripts/keep.py [--config CONFIG] [STAGE ...]``.

Nothing is run or remade. Without stages, everything that the configuration asks for must be there and current; stages,
such as ``bases@scenes-pca``, record those alone. Afterwards ``git commit`` and ``dvc push`` are yours.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))

from eigenloom.errors import ConfigError, EigenloomError, StoreError
from eigenloom.store.atomic import write_text
from experiments import clashes, config_files, load
from versions import KEPT, stages_text


def told(*command: str) -> str:
    """Run a program and return what it printed; raise its last words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout + done.stderr


def check_current(config: Path) -> None:
    """Refuse to record what Snakemake would run again, and what another experiment would rebuild."""
    if lines := clashes({str(path): load(path) for path in sorted({config, *config_files()})}):
        raise ConfigError("\n".join(lines))
    plan = told(sys.executable, "-m", "snakemake", "-n", "--cores", "1", "all", "--configfile", str(config))
    if "Nothing to be done" not in plan:
        jobs = next((line.split()[-1] for line in plan.splitlines() if line.startswith("total ")), "some")
        raise StoreError(f"{config} asks for {jobs} jobs that are not done; run `snakemake all` first, then record")


def main() -> None:
    """Check, record, stage, say what to do next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help="stages of dvc.yaml to record; all when left out")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="the experiment's configuration")
    arguments = parser.parse_args()
    stages_file = arguments.config.with_name("dvc.yaml")
    if not arguments.stages:
        check_current(arguments.config)
        write_text(stages_file, stages_text(Path(), arguments.config, load(arguments.config)))
    targets = [f"{stages_file}:{stage}" for stage in arguments.stages] or [str(stages_file)]
    told(sys.executable, "-m", "dvc", "commit", "--force", *targets)
    kept = [*KEPT, str(arguments.config), str(stages_file), str(stages_file.with_name("dvc.lock"))]
    told("git", "add", "--all", "--", *(path for path in kept if Path(path).exists()))
    staged = told("git", "diff", "--cached", "--name-only").splitlines()
    print(f"recorded; {len(staged)} files are staged: `git commit`, then `dvc push && git push` to share them")


if __name__ == "__main__":
    try:
        main()
    except EigenloomError as error:
        sys.exit(f"error: {error}")
