"""Fit banks to the experts of a checkpoint; call it again to resume.

The output directory gets one artifact per family: meta.json, arrays.safetensors, run.json. The checkpoint is streamed,
its model never made. With --export a checkpoint with the reconstructed experts is written, as large as the original.
"""

import argparse
import time
from pathlib import Path

from eigenloom.errors import ConfigError
from eigenloom.experts.bank import save_bank
from eigenloom.experts.baselines import bank_parameters
from eigenloom.experts.checkpoint import SCOPES, ExpertCheckpoint
from eigenloom.experts.export import export_dense
from eigenloom.experts.settings import ACTIVATIONS, CODES, ROW_SELECTIONS, SeedingConfig, SeedingMethod
from eigenloom.experts.trainer import AlternatingBankTrainer
from eigenloom.progress import Console
from tool import run_tool


def main(arguments: argparse.Namespace) -> None:
    """Open, say what would be saved, fit family by family, write, export."""
    started, out = time.perf_counter(), arguments.out
    if any(out.glob("*/meta.json")) and not arguments.overwrite:
        raise ConfigError(f"{out}: holds banks already; name another directory, or add --overwrite")
    seeding = SeedingConfig(arguments.seeding_method, row_selection=arguments.row_selection, seed=arguments.seed)
    trainer = AlternatingBankTrainer(
        arguments.rank, arguments.num_bases, seeding_config=seeding, activation=arguments.activation,
        codes=arguments.codes, support=arguments.support, n_sweeps=arguments.steps,
        polish_evals=arguments.polish_evals, n_starts=arguments.starts, seed=arguments.seed,
        device=arguments.device, resume=out / ".resume.safetensors" if arguments.resume else None, progress=Console(),
    )  # fmt: skip
    checkpoint = ExpertCheckpoint.open(arguments.checkpoint)
    sources = checkpoint.sources(
        arguments.families, layers=arguments.layers, scope=arguments.scope, max_experts=arguments.max_experts
    )
    for family, source in sources.items():
        n, (p, d) = source.n_experts, source.shape
        share = bank_parameters(n, (p, d), arguments.rank, arguments.num_bases) / (n * p * d)
        warning = "" if share < 1 else "; nothing is saved: lower --rank or --num-bases"
        print(f"{family}: {n} experts of {p} x {d}, {share:.3f} of their parameters{warning}", flush=True)  # fmt: skip
    banks, _ = trainer.train(sources)
    spec = {key: str(v) if isinstance(v, Path) else v for key, v in vars(arguments).items() if key not in NOT_KEPT}
    for family, bank in banks.items():
        save_bank(bank, out / family, spec=spec, run={"seconds": round(time.perf_counter() - started, 3)})
        print(f"{out / family}: relative error {bank.metrics['relative_error']:.4f} ({bank.activation})")
    if arguments.export:
        print("\n".join([*export_dense(checkpoint, banks, arguments.export), f"{arguments.export}: exported"]))


NOT_KEPT = ("out", "export", "overwrite", "resume", "device", "threads")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and model.safetensors or its index")
    parser.add_argument("--out", required=True, type=Path, help="directory of the artifacts")
    parser.add_argument("--seeding-method", choices=[m.value for m in SeedingMethod], default="ts_pca")
    parser.add_argument("--rank", type=int, required=True, help="rows of a basis, at most min(p, d)")
    parser.add_argument("--num-bases", type=int, required=True, help="bases that all experts of a family share")
    parser.add_argument("--steps", type=int, default=20, help="alternating sweeps (default: 20)")
    parser.add_argument("--polish-evals", type=int, default=1500, help="evaluations of the descent after them")
    parser.add_argument("--starts", type=int, default=1, help="starts that are compared (default: 1)")
    parser.add_argument("--max-experts", type=int, help="take only so many experts of each family")
    parser.add_argument("--families", nargs="+", default=["gate", "up"], help="of gate, up, down (default: gate up)")
    parser.add_argument("--layers", nargs="+", type=int, help="layers to take (default: all with experts)")
    parser.add_argument("--scope", choices=SCOPES, default="global", help="one bank over all layers, or one per layer")
    parser.add_argument("--row-selection", choices=ROW_SELECTIONS, default="energy", help="rows that seed")
    parser.add_argument("--activation", choices=("auto", *ACTIVATIONS), default="auto")
    parser.add_argument("--codes", choices=CODES, default="signed")
    parser.add_argument("--support", type=int, help="nonzero codes per expert (--codes sparse)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="keep unfinished work")
    parser.add_argument("--export", type=Path, help="directory of a checkpoint with the reconstructed experts")
    parser.add_argument("--overwrite", action="store_true", help="replace banks that are there")
    run_tool(main, parser)
