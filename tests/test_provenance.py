"""Digests change when the result can, and only then."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenloom.provenance import canonical_json, code_digest, file_digest, text_digest

SCRIPT = "from pack.kind import f\nimport json\n\nf(1)\n"
KIND = '"""Doc."""\n\nfrom pack.deep import g\n\n\ndef f(x):\n    """Doc."""\n    return g(x) + 1\n'
DEEP = "def g(x):\n    return x\n"
OTHER = "def h(x):\n    return x\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_ignores_key_order_and_parses_back(value):
    reordered = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(reordered)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf]])
def test_canonical_json_refuses_what_json_lacks(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_digests_are_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == text_digest("abc")
    assert text_digest("abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")


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
    """Digest in a fresh interpreter: within one, parsed files are cached."""
    code = (
        "import sys; from pathlib import Path; from eigenloom.provenance import code_digest;"
        "print(code_digest(Path('script.py'), [Path('src')], sys.argv[1:]))"
    )
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=project, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True,
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
    root = Path(__file__).parents[1]
    plain = code_digest(root / "scripts" / "job.py", [root / "src", root / "scripts"])
    assert plain != code_digest(root / "scripts" / "job.py", [])
