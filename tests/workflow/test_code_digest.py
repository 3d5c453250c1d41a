"""The digest of code changes when the result can, and only then, whatever is remembered."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from code_digest import code_digest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "from pack.kind import f\nimport json\n\nf(1)\n"
KIND = '"""Doc."""\n\nfrom pack.deep import g\n\n\ndef f(x):\n    """Doc."""\n    return g(x) + 1\n'
DEEP = "def g(x):\n    return x\n"
OTHER = "def h(x):\n    return x\n"


@pytest.fixture
def project(tmp_path, request):
    """A script, the module it imports, the one that one imports, and one nobody imports."""
    package = tmp_path / "src" / "pack"
    package.mkdir(parents=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    for name, text in {"__init__": "", "kind": KIND, "deep": DEEP, "other": OTHER}.items():
        (package / f"{name}.py").write_text(text)
    return tmp_path


def digest(project, *modules):
    """Digest in a fresh interpreter: within one, files that were read are not read again."""
    code = (
        "import sys; from pathlib import Path; from code_digest import code_digest;"
        "print(code_digest(Path('script.py'), [Path('src')], sys.argv[1:], Path('.snakemake/digests.json')))"
    )
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "workflow"))
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=project, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("src/pack/kind.py", KIND.replace("Doc", "Other words"), False),
        ("src/pack/kind.py", KIND + "\n# a comment\n", False),
        ("src/pack/other.py", OTHER.replace("return x", "return -x"), False),
        ("src/pack/kind.py", KIND.replace("+ 1", "+ 2"), True),
        ("src/pack/deep.py", DEEP.replace("return x", "return -x"), True),
        ("src/pack/__init__.py", "state = 1\n", True),
        ("script.py", SCRIPT.replace("f(1)", "f(2)"), True),
    ],
)
def test_code_digest_follows_imports_and_ignores_words(project, file, text, changes):
    before = digest(project)
    (project / file).write_text(text)
    assert (digest(project) != before) == changes


def test_code_digest_takes_modules_reached_by_name(project):
    before = digest(project, "pack.other")
    assert before != digest(project)
    (project / "src/pack/other.py").write_text(OTHER.replace("return x", "return -x"))
    assert digest(project, "pack.other") != before


def test_code_digest_does_not_depend_on_where_the_checkout_is(project, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert digest(project) == digest(moved)


def test_code_digest_covers_what_a_real_script_reaches():
    plain = code_digest(ROOT / "scripts" / "job.py", [ROOT / "src", ROOT / "scripts"])
    assert plain != code_digest(ROOT / "scripts" / "job.py", [])


def test_what_is_remembered_changes_no_digest(project):
    (project / ".snakemake").mkdir()
    without = digest(project)
    kept = project / ".snakemake/digests.json"
    document = json.loads(kept.read_text())
    assert len(document["files"]) == 4
    assert digest(project) == without
    (project / "src/pack/deep.py").write_text(DEEP.replace("return x", "return -x"))
    changed = digest(project)
    assert changed != without
    for text in ("", "[]", '{"made_by": 1}', json.dumps(document | {"made_by": "another version"})):
        kept.write_text(text)
        assert digest(project) == changed
    (project / "src/pack/deep.py").write_text(DEEP)
    assert digest(project) == without


def test_what_is_remembered_is_used(project):
    """A digest that was forged comes back: nothing was parsed."""
    (project / ".snakemake").mkdir()
    before = digest(project)
    kept = project / ".snakemake/digests.json"
    document = json.loads(kept.read_text())
    for facts in document["files"].values():
        facts[0] = "0" * 64
    kept.write_text(json.dumps(document))
    assert digest(project) != before
