"""With slurmdbd: states come from `sacct`, and a wrong account is a sentence."""

import pytest
from checkout import TINY, copy_checkout
from cluster_runs import SOON, ClusterRun, ask

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LABELS = "artifacts/tiny-scenes/saev/shards/fit_val/labels.json"
SACCT = SOON[:2] + SOON[4:]


def test_states_come_from_sacct(accounting, tmp_path):
    with ClusterRun(copy_checkout(tmp_path / "checkout")) as run:
        account = ("--default-resources", "slurm_account=project", "turn=1")
        run.start(LABELS, "--configfile", TINY, *account, soon=SACCT)
        assert run.wait() == 0, run.said()
        assert (run.checkout / LABELS).is_file()
        listed = ask("sacct", "--allusers", "--allocations", "--noheader", "--parsable2", "--format=account,state")
        assert listed.split() == ["project|COMPLETED"] * 2


def test_a_wrong_account_is_a_sentence(accounting, tmp_path):
    with ClusterRun(copy_checkout(tmp_path / "checkout")) as run:
        run.start(LABELS, "--configfile", TINY, "--default-resources", "slurm_account=nobodys", "turn=1", soon=SACCT)
        assert run.wait() == 1
        assert "nobodys" in run.said()
        assert "Traceback" not in run.said()
        assert run.notes() == []
