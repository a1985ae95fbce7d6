"The command line explains itself, fast."
import errno, inspect, os, re, subprocess, sys
import pytest
from conftest import finish, start
from ccd.cli import _COMMANDS, _HELP, main
from ccd.files import UserError
from ccd.presets import PRESETS, preset

def test_help_imports_nothing_heavy():
    code = ("import sys; from ccd.cli import main; main(['--help']); "
            "print([m for m in ('torch', 'datasets', 'pandas', 'faiss', 'umap') if m in "
            "sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout
    assert said.splitlines()[-1] == "[]" and all(c in said for c in _COMMANDS)

@pytest.mark.parametrize("args", [["-V"], ["--version"]])
def test_version(args, capsys):
    import ccd
    main(args)
    assert capsys.readouterr().out == f"ccd {ccd.__version__}\n"

@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_usage(args, capsys):
    assert main(args) is None
    assert "usage: ccd COMMAND" in capsys.readouterr().out

@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop: main([command, "--help"])
    said = capsys.readouterr()
    assert stop.value.code in (0, None)
    assert _COMMANDS[command].__doc__.split(",")[0] in " ".join((said.out + said.err).split())

def test_help_says_what_each_argument_is(capsys):
    for command in ("audit", "train", "compare"):
        with pytest.raises(SystemExit): main([command, "--help"])
        said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
        for line in inspect.getsource(_COMMANDS[command]).partition("\n):")[0].splitlines():
            assert "# " not in line or line.partition("# ")[2] in said, line

def test_help_shows_the_values_of_the_preset(capsys):
    for name in ("smoke", "mini"):
        with pytest.raises(SystemExit): main(["train", "--preset", name, "--help-all"])
        said = capsys.readouterr()
        assert f"(default: {preset(name).control.samples})" in " ".join((said.out
                                                                         + said.err).split())

def test_logs_are_averaged_and_compared(tmp_path):
    from ccd.vqa.benchmarks.questions import VMCBENCH
    from ccd.vqa.statistics.aggregation import _simulate_answers
    _simulate_answers({s: 20 for c in VMCBENCH.values() for s in c}, dict(one=0.6, two=0.4),
                      benchmark="VMCBench").to_parquet(tmp_path / "answers.parquet")
    said, code = finish(start("vqa", tmp_path / "answers.parquet", "--out", tmp_path / "out",
                              "--n-resamples", 100))
    assert code == 0, said
    assert ("VLMEvalKit" in said and "one and two, overall (macro): one leads" in said
            and list((tmp_path / "out").glob("summary*.csv")))
    said, code = finish(start("vqa"))
    assert code == 2 and "ENCODER@SEED=PATH" in said

def test_published_averages_are_recomputed():
    said, code = finish(start("published", "check"))
    assert code == 0 and "I-JEPA" in said and "44.30" in said
    said, code = finish(start("published", "check", "no-such.csv"))
    assert code == 2 and "no-such.csv" in said

def test_the_families_of_presets_are_written_once_and_none_is_lost():
    from ccd.cli import _by_family
    def spelt(text): # as a shell would
        for part in re.split(r", ", text):
            stem, _, many = part.rstrip("}").partition("{")
            yield from (stem + x for x in many.split(",")) if many else [part]
    assert _by_family(["a-1", "b", "a-2", "c-x", "a-3", "c-y"]) == "a-{1,2,3}, b, c-x, c-y"
    assert sorted(spelt(_by_family(PRESETS))) == sorted(PRESETS)

def test_slow_work_says_how_long_one_item_takes(capsys, monkeypatch):
    from ccd import files, runs
    now = [1000.0]
    monkeypatch.setattr(files.time, "time", lambda: now[0]) # a busy machine is no slower
    for seconds, pace in ((90, "30 s each"), (0.3, "/s")):
        with runs.Progress("reading", total=3, every=1e9) as p:
            now[0] += seconds
            p.add(3)
        said = capsys.readouterr().err
        assert pace in said and " 0/s" not in said, said
        assert "to go" not in said # nothing is left to estimate

# a name, a file, a folder
ODD = ["<b>x</b>", "two\nlines", "x" * 300, "é ü", "-x", "/proc/x", "file.txt", "empty", "nope",
       "\udcff"]
PLACES = dict( # command lines in which X is one of them; all stop before any work
    study=["study --preset X", "study --preset smoke --data.source X",
           "study --preset smoke --data.source folder:x --out X",
           "study --preset smoke --data.source folder:nope --budget X"],
    train=["train X", "train clip --preset smoke --data.source folder:X",
           "train clip --preset smoke --data.source filter:light:X",
           "train clip --preset smoke --data.source folder:nope --out X",
           "train clip --preset smoke --data.source X"],
    export=["export X --to timm --out o", "export nope --to X --out o",
            "export nope --to timm --out X"],
    filter=["filter X", "filter folder:nope --preset smoke --scorer X",
            "filter folder:nope --preset smoke --scorer python:X",
            "filter folder:nope --scorer python:os.nope --out X"],
    audit=["audit X nope", "audit nope X"],
    embed=["embed X --preset smoke", "embed ccd:X --preset smoke",
           "embed pixels:4 --preset smoke --images folder:X",
           "embed pixels:4 --preset smoke --images nope --out X", "embed pixels:X --preset smoke",
           "embed pixels:4 --preset smoke --max-faults X"],
    probe=["probe pixels:4 X --preset smoke", "probe pixels:4 folder:X --preset smoke",
           "probe pixels:4 folder:nope --preset smoke --out X",
           "probe pixels:4 folder:nope --preset smoke --save-tables X"],
    layers=["layers X --preset smoke", "layers pixels:4 --preset smoke --datasets X",
            "layers random:0 --preset smoke --datasets folder:nope --out X",
            "layers random:0 --preset smoke --datasets folder:nope --save-tables X"],
    compare=["compare npy:X npy:nope.npy", "compare npy:nope.npy npy:X",
             "compare npy:nope.npy npy:nope.npy --out X",
             "compare npy:nope.npy npy:nope.npy --save-tables X",
             "compare npy:nope.npy npy:nope.npy --skip X"],
    neighbors=["neighbors X pixels:4 --preset smoke", "neighbors nope X --preset smoke",
               "neighbors nope pixels:4 --preset smoke --images X",
               "neighbors nope pixels:4 --preset smoke --images folder:nope --out X"],
    evaluate=["evaluate X --preset smoke", "evaluate pixels:4 --preset smoke --suite X",
              "evaluate pixels:4 --preset smoke --data.source folder:X",
              "evaluate pixels:4 --preset smoke --suite own --out X"],
    vlm=["vlm pixels:4 --preset smoke --model X", "vlm pixels:4 --preset smoke --override X",
         "vlm pixels:4 --preset smoke --captions nope --out X",
         "vlm pixels:4 --preset smoke --captions X --instructions X --images X",
         "vlm pixels:4 --preset smoke --benchmark X"],
    vqa=["vqa X", "vqa nope --out X", "vqa MODEL@0=X", "vqa nope --n-resamples X"],
    scale=["scale X", "scale smoke --dry-run --only X", "scale smoke --only zzz --out X",
           "scale smoke --only zzz --measurements X", "scale smoke --commands X"],
    sweep=["sweep --preset X", "sweep --preset smoke --recipes X",
           "sweep --preset smoke --data.source X", "sweep --preset smoke --recipes dino --out X"],
    published=["published X", "published check X", "published check file.txt --suite X"])

def stopped(args, capsys): # its message; a mistake and no traceback
    with pytest.raises(SystemExit) as stop: main(args)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in said.err + said.out, args
    return said.err + said.out

@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine", encoding="utf-8"); (tmp_path / "empty").mkdir()
    return tmp_path

@pytest.mark.parametrize("command", _COMMANDS)
def test_whatever_is_named_is_used_or_refused_in_words(command, room, capsys):
    assert set(PLACES) == set(_COMMANDS)
    # each line with one of them, or this takes minutes
    for k, line in enumerate(PLACES[command], list(_COMMANDS).index(command)):
        odd = ODD[3 * k % len(ODD)]
        assert stopped([a.replace("X", odd) if a != "X" else odd for a in line.split()],
                       capsys), (line, odd)
    assert (sorted(p.name for p in room.iterdir()) == ["empty", "file.txt"]
            and not any((room / "empty").iterdir()))
    assert (room / "file.txt").read_text(encoding="utf-8") == "mine"

@pytest.mark.parametrize("command", _COMMANDS)
def test_options_that_are_unknown_or_empty(command, room, capsys):
    assert stopped([command, "--no-such", "1"], capsys)
    for empty in (["--out", ""], ["--out="], ["--images", " "], [""]):
        assert "is empty: leave it out" in stopped([command, *empty], capsys)

def test_a_field_of_the_settings_may_be_empty():
    from ccd.cli import _check_none_is_empty
    for fine in (["study", "--analysis.vlm", ""], ["study", "--analysis.vlm="],
                 ["compare", "npy:a.npy", "--beside"]):
        _check_none_is_empty(fine)
    with pytest.raises(UserError): _check_none_is_empty(["compare", "npy:a.npy", ""])

def test_a_name_that_the_terminal_cannot_show(monkeypatch, capsys, room):
    import io
    for encoding in ("ascii", "utf-8"):
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding))
        with pytest.raises(SystemExit): main(["audit", "é\udcff", "x"])

def test_a_file_that_may_not_be_read(monkeypatch, capsys):
    from ccd.training import audit
    for number, says in ((errno.EACCES, "permission denied"), (errno.EROFS, "read-only"),
                         (errno.ENOTDIR, "not a directory")):
        def barred(*_, **__): raise OSError(number, os.strerror(number), "some/file")
        monkeypatch.setattr(audit, "audit", barred)
        assert f"some/file: {says}" in stopped(["audit", "a", "b"], capsys)
    def bug(*_, **__): raise ValueError("a mistake of ours")
    monkeypatch.setattr(audit, "audit", bug)
    with pytest.raises(ValueError): main(["audit", "a", "b"])

@pytest.mark.parametrize("command, encoding",
                         [*((c, "utf-8") for c in _COMMANDS), ("compare", "ascii")])
def test_help_is_a_screen_and_a_half_with_examples(command, encoding):
    p = subprocess.run([sys.executable, "-m", "ccd.cli", command, "--help"], capture_output=True,
                       env=os.environ | {"PYTHONIOENCODING": encoding})
    said = p.stdout.decode()
    assert p.returncode == 0 and len(said.splitlines()) <= 70
    assert (said.count(f"\n  ccd {command}") + said.count(f"-m ccd.cli {command}") == 2
            and "positional" in said or command in ("study", "sweep"))
    assert (("--help-all" in said)
            == (command in ("study", "train", "filter", "embed", "probe", "compare", "vlm",
                            "sweep", "evaluate", "layers", "neighbors")))

@pytest.mark.parametrize("command", _COMMANDS)
def test_examples_of_the_help_name_options_that_are_there(command):
    p = subprocess.run([sys.executable, "-m", "ccd.cli", command, "--help-all"],
                       capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    said = p.stdout.decode()
    for example in _HELP[command][1]:
        assert [o
                for o in re.findall(r"--[\w.-]+", example.partition(f" {command} ")[2])
                if not re.search(rf"{re.escape(o)}[ ,\n]", said)] == [], example

def test_all_of_the_help_is_there_where_it_is_asked_for():
    p = subprocess.run([sys.executable, "-m", "ccd.cli", "compare", "--help-all"],
                       capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert all(option in p.stdout.decode()
               for option in ("--control.vit.width", "--dino.out-dim", "--analysis.pairs",
                              "--images"))

@pytest.mark.parametrize("command, old, new", [
    ("study", "--world.max_drawings=320", "--data.max-emoji-images=320"),
    ("train", "--run.micro-batch", "--runtime.micro-batch"),
    ("compare", "--beside", "--baselines"), ("probe", "--beside", "--compare-to"),
    ("scale", "--no-dry", "--no-dry-run"),
    ("vlm", "--analysis.asked=8", "--analysis.vqa-questions=8")])
def test_an_old_option_works_and_names_the_new_one(command, old, new, capsys):
    from ccd.cli import _current_options
    assert _current_options(command, [old]) == [new]
    said = capsys.readouterr().err
    assert old.partition("=")[0] in said and f"is {new.partition('=')[0]} now" in said
    assert (_current_options(command, [new, "--no-such.option", "value", "--beside_me"])
            == [new, "--no-such.option", "value", "--beside_me"])
    assert not capsys.readouterr().err

def test_every_new_option_is_one():
    from ccd.files import renamed
    for command in _COMMANDS:
        p = subprocess.run([sys.executable, "-m", "ccd.cli", command, "--help-all"],
                           capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
        for old, new in renamed("option", command).items():
            assert re.search(rf"{new}[ ,\n]",
                             p.stdout.decode()) and not re.search(rf"{old}[ ,\n]",
                                                                  p.stdout.decode()), (command, old)

def test_a_study_starts_without_torch(): # so that a finished one returns at once
    code = "import sys, ccd.study.command; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
