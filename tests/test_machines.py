"""tools/machines.py knows what a machine lacks, and reads what failed and why; the order of tests
is that of a seed."""
import itertools
from pathlib import Path
from types import SimpleNamespace
import pytest
import machines as m # of tools/
from conftest import LONG, shuffled

ZEN5 = m.AVX2 | m.AVX512

@pytest.mark.parametrize("change, flags, env, says", [
    ({}, set(), {}, ""), (dict(OPENBLAS_CORETYPE=None), None, dict(OPENBLAS_CORETYPE="Zen"), ""),
    (dict(OPENBLAS_CORETYPE=None), ZEN5, {}, "the plain run has it"),
    (dict(OPENBLAS_CORETYPE="Zen"), ZEN5, dict(OPENBLAS_CORETYPE="Zen"), "plain"),
    (dict(OPENBLAS_CORETYPE="SkylakeX"), m.AVX2, {}, "lacks avx512bw, avx512cd"),
    (dict(OPENBLAS_CORETYPE="SkylakeX"), ZEN5, {}, ""),
    (dict(ATEN_CPU_CAPABILITY="avx2"), {"sse4_2"}, {}, "lacks avx2, fma"),
    (dict(ATEN_CPU_CAPABILITY="default"), set(), {}, ""),
    (dict(ATEN_CPU_CAPABILITY="avx512"), None, {}, "not known"),
    (dict(TZ="Nowhere/Land"), set(), {}, "Nowhere/Land is not installed")])
def test_what_is_left_out_is_named(change, flags, env, says):
    why = m.lacking(change, flags, env)
    assert says in why and bool(why) == bool(says)

def test_every_setting_changes_something_and_one_at_a_time():
    found = m.settings()
    assert (found.pop("plain") == {}
            and len({tuple(sorted(c.items(), key=str)) for c in found.values()}) == len(found) > 10)
    for name, change in found.items():
        env = m.changed(dict(OPENBLAS_CORETYPE="Haswell", HOME="/x"), change)
        assert change and env["HOME"] == "/x" and None not in env.values()
        assert ("OPENBLAS_CORETYPE" in env) == (name != "OPENBLAS_CORETYPE unset")

def test_what_failed_is_read_with_its_first_lines():
    said = ("ok   nbs/a.ipynb  3 s\nDIFF nbs/b.ipynb  4 s\n    cell 3: show(x)\n    - 1.20\n    + "
            "1.31\nFAIL nbs/c.ipynb  1 s\nok   nbs/d.ipynb  2 s\n")
    assert (m.notebooks_of(said)
            == ({"nbs/b.ipynb": "    cell 3: show(x)\n    - 1.20\n    + 1.31", "nbs/c.ipynb": ""},
                2))
    said = ("FAILED tests/test_a.py::test_x[1-b c] - assert 1.0 == 1.5\nFAILED "
            "tests/test_a.py::test_y\nERROR tests/test_b.py - KeyError: 'a'\n2 failed, 41 passed, "
            "1 error in 3.0s\n")
    assert (m.tests_of(said)
            == ({"tests/test_a.py::test_x[1-b c]": "assert 1.0 == 1.5",
                 "tests/test_a.py::test_y": "", "tests/test_b.py": "KeyError: 'a'"}, 41))

def test_a_difference_names_every_setting_that_has_it():
    rows = [dict(name="plain", left_out="", bad={}, good=9, seconds=60, as_="Zen"),
            dict(name="one", left_out="the processor lacks avx2"),
            dict(name="two", left_out="", bad={"nbs/b.ipynb": "    - 1\n    + 2"}, good=8,
                 seconds=60, as_="SkylakeX"),
            dict(name="three", left_out="", bad={"nbs/b.ipynb": "    - 1\n    + 3"}, good=8,
                 seconds=60, as_="Haswell")]
    assert list(m.differences(rows)) == ["nbs/b.ipynb: two, three", "    - 1", "    + 2"]
    words = [line.split()[0] for line in m.table(rows)]
    assert words == ["ok", "-", "FAIL", "FAIL"] and "lacks avx2" in list(m.table(rows))[1]

def test_a_seed_has_one_order_and_files_stay_whole():
    items = [SimpleNamespace(path=Path(f"tests/{f}.py"), name=k)
             for f in ("test_a", "test_b", LONG[1], "test_c", LONG[0]) for k in range(6)]
    found = shuffled(items, "7")
    assert found == shuffled(items, "7") and any(found != shuffled(items, str(k)) for k in range(3))
    assert sorted(map(id, found)) == sorted(map(id, items))
    files = [f.stem for f, _ in itertools.groupby(found, lambda i: i.path)]
    assert (files[:2] == list(LONG[:2]) and set(files[2:]) == {"test_a", "test_b", "test_c"}
            and len(files) == 5)
