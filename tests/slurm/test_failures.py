"""What a user gets when a job fails, runs out of time, is cancelled or preempted, and when Ctrl-C is pressed."""

import re
from pathlib import Path

import pytest
from checkout import TINY, copy_checkout, snakemake
from cluster_runs import ClusterRun, ask, edit, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

MODEL = "artifacts/tiny-scenes/model/meta.json"
SNAPSHOT = "artifacts/.resume/tiny-scenes/model/meta.safetensors"
FOREVER = 100_000


def edited(root: Path, name: str, steps: int, **bar: float) -> Path:
    """Make a checkout whose network trains for so many steps, and may have a bar that it misses."""
    change = {"steps": steps} | ({"bar": bar} if bar else {})
    return edit(copy_checkout(root / name), lambda config: config["sources"]["tiny-scenes"]["model"].update(change))


def training(checkout: Path, *words: str) -> ClusterRun:
    """Start a run that makes the network."""
    return ClusterRun(checkout).start(MODEL, "--configfile", TINY, *words)


def the_job_once_it_trains(run: ClusterRun) -> dict[str, str]:
    """Wait for the first steps of training and return the job that takes them."""
    history = run.checkout / "logs/train/tiny-scenes.jsonl"
    return until(lambda: history.exists() and run.job(), 900, "training")


def reported(run: ClusterRun) -> None:
    """Check that a run ended in an error that names the log of the job, and left nothing of it."""
    assert run.wait() == 1, run.said()
    said = run.said()
    assert "Error in rule train" in said
    assert re.search(r"log: logs/train/tiny-scenes\.log", said)
    slurm_logs = set(re.findall(r"\S+/slurm_logs/rule_train/tiny-scenes/\d+\.log", said))
    assert slurm_logs
    assert all(Path(log).is_file() for log in slurm_logs)
    assert (run.checkout / "logs/train/tiny-scenes.log").is_file()
    assert not list((run.checkout / "artifacts/tiny-scenes/model").glob("*"))


@pytest.fixture(scope="module")
def overlong(slurm, tmp_path_factory):
    """A job whose time is up after a minute. Looked at last, for that minute passes meanwhile."""
    with training(edited(tmp_path_factory.mktemp("overlong"), "checkout", FOREVER), "--retries", "0") as run:
        ask("scontrol", "update", f"JobId={the_job_once_it_trains(run)['JobId']}", "TimeLimit=1")
        yield run


def test_a_failed_job_is_tried_again_with_more_and_reported_with_its_log(overlong, tmp_path):
    with training(edited(tmp_path, "failing", steps=60, accuracy=0.999)) as run:
        reported(run)
        assert "error: " in (run.checkout / "logs/train/tiny-scenes.log").read_text()
        tries = [job for job in run.jobs() if "rule_train" in job["Comment"]]
        asked = [(job["MinMemoryNode"], job["TimeLimit"]) for job in tries]
        assert asked == [("4000M", "02:00:00"), ("8000M", "04:00:00")]
        assert {job["JobState"] for job in tries} == {"FAILED"}


def test_a_cancelled_job_is_reported_with_its_log(overlong, tmp_path):
    with training(edited(tmp_path, "cancelled", FOREVER), "--retries", "0") as run:
        ask("scancel", the_job_once_it_trains(run)["JobId"])
        reported(run)
        assert "CANCELLED" in run.said()


def test_ctrl_c_leaves_no_job_and_no_lock(overlong, tmp_path):
    with training(edited(tmp_path, "interrupted", FOREVER)) as run:
        job = the_job_once_it_trains(run)
        run.interrupt()
        assert run.wait(120) == 1, run.said()
        until(lambda: not ask("squeue", "--noheader", "--jobs", job["JobId"]), 60, "its end")
        assert not list((run.checkout / ".snakemake/locks").glob("*"))
        assert not (run.checkout / MODEL).exists()


def test_a_preempted_job_is_requeued_resumes_and_ends_equal(overlong, tmp_path):
    undisturbed = edited(tmp_path, "undisturbed", steps=2000)
    with training(edited(tmp_path, "preempted", steps=2000), "--config", "device=auto") as run:
        job = the_job_once_it_trains(run)
        assert job["Partition"] == "gpu"
        urgent = ("--partition", "high", "--gpus", "2", "--time", "1", "--output", str(tmp_path / "urgent.log"))
        ask("sbatch", *urgent, "--wrap", "sleep 1")
        until((run.checkout / SNAPSHOT).exists, 60, "the snapshot")
        snakemake(undisturbed, MODEL, "--configfile", TINY)
        assert run.wait() == 0, run.said()
        assert len([note for note in run.notes() if note["script"] == "train"]) == 2
        assert "resuming from" in (run.checkout / "logs/train/tiny-scenes.log").read_text()
        (record,) = [record for record in run.jobs() if record["JobId"] == job["JobId"]]
        assert (record["Restarts"], record["JobState"]) == ("1", "COMPLETED")
        for name in ("meta.json", "model.safetensors", "history.csv"):
            ours, theirs = ((root / MODEL).with_name(name).read_bytes() for root in (run.checkout, undisturbed))
            assert ours == theirs, name
        assert not (run.checkout / SNAPSHOT).exists()


def test_a_job_out_of_time_saves_what_it_has_and_is_reported_with_its_log(overlong):
    reported(overlong)
    assert "TIMEOUT" in overlong.said()
    assert (overlong.checkout / SNAPSHOT).is_file()
