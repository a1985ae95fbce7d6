"The command line explains itself, fast."
import inspect, re, subprocess, sys
import pytest
from conftest import finish, start
from ccd.cli import COMMANDS, main
from ccd.core import PRESETS, preset

def test_help_imports_nothing_heavy():
    code = ("import sys; from ccd.cli import main; main(['--help']); "
            "print([m for m in ('torch', 'datasets', 'pandas', 'faiss', 'umap') if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]" and all(c in said for c in COMMANDS)

@pytest.mark.parametrize("args", [["-V"], ["--version"]])
def test_version(args, capsys):
    import ccd
    main(args)
    assert capsys.readouterr().out == f"ccd {ccd.__version__}\n"

@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_usage(args, capsys):
    assert main(args) is None
    assert "usage: ccd COMMAND" in capsys.readouterr().out

@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop: main([command, "--help"])
    said = capsys.readouterr()
    assert stop.value.code in (0, None)
    assert COMMANDS[command].__doc__.split(",")[0] in " ".join((said.out + said.err).split())

def test_help_says_what_each_argument_is(capsys):
    for command in ("audit", "train", "compare"):
        with pytest.raises(SystemExit): main([command, "--help"])
        said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
        for line in inspect.getsource(COMMANDS[command]).partition("\n):")[0].splitlines():
            assert "# " not in line or line.partition("# ")[2] in said, line

def test_help_shows_the_values_of_the_preset(capsys):
    for name in ("smoke", "mini"):
        with pytest.raises(SystemExit): main(["train", "--preset", name, "--help"])
        said = capsys.readouterr()
        assert f"(default: {preset(name).control.samples})" in " ".join((said.out + said.err).split())

def test_logs_are_averaged_and_compared(tmp_path):
    from ccd.vqa import VMCBENCH, made_answers
    made_answers({s: 20 for c in VMCBENCH.values() for s in c}, dict(one=0.6, two=0.4), benchmark="VMCBench").to_parquet(tmp_path / "answers.parquet")
    said, code = finish(start("vqa", tmp_path / "answers.parquet", "--out", tmp_path / "out", "--draws", 100))
    assert code == 0, said
    assert "VLMEvalKit" in said and "one and two, overall (macro): one leads" in said and list((tmp_path / "out").glob("summary*.csv"))
    said, code = finish(start("vqa"))
    assert code == 2 and "ENCODER@SEED=PATH" in said

def test_published_averages_are_recomputed():
    said, code = finish(start("published", "check"))
    assert code == 0 and "I-JEPA" in said and "44.30" in said
    said, code = finish(start("published", "check", "no-such.csv"))
    assert code == 2 and "no-such.csv" in said

def test_the_families_of_presets_are_written_once_and_none_is_lost():
    from ccd.cli import by_family
    def spelt(text): # as a shell would
        for part in re.split(r", ", text):
            stem, _, many = part.rstrip("}").partition("{")
            yield from (stem + x for x in many.split(",")) if many else [part]
    assert by_family(["a-1", "b", "a-2", "c-x", "a-3", "c-y"]) == "a-{1,2,3}, b, c-x, c-y"
    assert sorted(spelt(by_family(PRESETS))) == sorted(PRESETS)

def test_slow_work_says_how_long_one_item_takes(capsys, monkeypatch):
    from ccd import core
    now = [1000.0]
    monkeypatch.setattr(core.time, "time", lambda: now[0]) # a busy machine is no slower
    for seconds, pace in ((90, "30 s each"), (0.3, "/s")):
        with core.Progress("reading", total=3, every=1e9) as p:
            now[0] += seconds
            p.add(3)
        said = capsys.readouterr().err
        assert pace in said and " 0/s" not in said, said
        assert "to go" not in said # nothing is left to estimate
