"Whatever is wrong with the input: one clear message, no traceback, exit code not 0, nothing lost."
import errno, re, shutil, signal, subprocess
import numpy as np, pandas as pd, pytest
from PIL import Image
from ccd import files
from ccd.cli import main
from ccd.files import UserError, file_hash, slug, write_json
from ccd.runs import cached_stage
from conftest import OPTIONS, finish, outputs, signal_when, start, step_of

def one_message(said, code):
    assert code not in (0, None) and "Traceback" not in said, said
    # tyro ends its own so
    assert len(re.findall(r"^ccd: |For full helptext", said, re.M)) == 1, said
    return " ".join(re.sub("[│|]", " ", said).split())

@pytest.fixture
def refused(capsys):
    "The message of a command that must not succeed."
    def call(*args):
        with pytest.raises(SystemExit) as stop: main([str(a) for a in args])
        return one_message(capsys.readouterr().err, stop.value.code)
    return call

SMOKE = ["--preset", "smoke"]

@pytest.mark.parametrize("args, says", [
    (["study", "--preset", "nope"], "unknown preset 'nope': expected one of smoke, mini"),
    (["study", "--preset=nope"], "unknown preset 'nope'"),
    (["study", *SMOKE, "--control.nope", "3"], "--control.nope"),
    (["train", "clip", *SMOKE, "--control.samples", "many"], "--control.samples"),
    (["nope"], "unknown command 'nope': expected one of study, train"),
    (["train", "nope", *SMOKE], "unknown recipe 'nope': expected one of clip"),
    (["train", "clip", "--control.vit.image-size", "50"],
     "50 is not a multiple of 8; resize to 48 or 56"),
    (["train", "dino", *SMOKE, "--dino.local-size", "20"],
     "20 is not a multiple of 12; resize to 12 or 24"),
    (["train", "clip", *SMOKE, "--control.vit.heads", "5"], "width"),
    (["train", "clip", *SMOKE, "--control.samples", "1"], "1 samples in batches of 32"),
    (["study", *SMOKE, "--data.source", "nope"], "unknown data source 'nope': expected `emoji`"),
    (["study", *SMOKE, "--data.source", "folder:x"], "x is not a folder"),
    (["embed", "nope:3", *SMOKE], "unknown encoder 'nope:3': expected ccd:FOLDER"),
    (["embed", "random:x", *SMOKE], "random:"),
    (["embed", "pixels:0x", *SMOKE], "pixels:"),
    (["embed", "pixels:-3", *SMOKE], "pixels:"),
    (["embed", "ccd:nowhere", *SMOKE], "nowhere holds no finished encoder"),
    (["embed", "pixels:8", *SMOKE, "--images", "nowhere"], "nowhere is not a folder"),
    (["probe", *SMOKE], "Missing from ccd probe"),
    (["audit", "nowhere", "nowhere"], "nowhere is not a finished run"),
    (["audit", "nowhere"], "RUN-B")])
def test_says_what_is_wrong(refused, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*args)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))

@pytest.fixture
def pictures(tmp_path):
    "Seven files that look like pictures; two are none."
    rng, home = np.random.default_rng(0), tmp_path / "pictures"
    home.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(home / f"good{i}.png")
    (home / "cut.png").write_bytes((home / "good0.png").read_bytes()[:2000])
    (home / "text.jpg").write_text("not a picture")
    return home

def test_broken_images_are_counted_and_listed(pictures, tmp_path):
    said, code = finish(start("compare", "pixels:16", "random:0", *OPTIONS, "--images", pictures,
                              "--out", tmp_path / "out"))
    assert code == 0 and (tmp_path / "out/report.html").exists() and "On 5 images" in said, said
    assert set(pd.read_csv(tmp_path / "out/left_out.csv").item_id) == {"cut.png", "text.jpg"}
    listed = said + "".join(p.read_text() for p in tmp_path.glob("out/**/skipped.csv"))
    assert "2 of 7" in said and "cut.png" in listed and "text.jpg" in listed

def test_folders_without_a_good_image(refused, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for p in pictures.glob("good*"): p.unlink()
    for command in (["compare", "pixels:16", "random:0", "--images"],
                    ["train", "dino", "--data.source"]):
        def at(p):
            return p if command[0] == "compare" else f"folder:{p}"
        def args(p):
            return [*command, at(p), *OPTIONS, "--out", tmp_path / "out"]
        assert "holds no image: expected files ending in" in refused(*args(tmp_path / "empty"))
        assert "none of the 2 images" in refused(*args(pictures))
    assert not (tmp_path / "out").exists()

def test_clip_without_captions(refused, pictures, tmp_path):
    args = ["train", "clip", *OPTIONS, "--control.samples", 16, "--data.source",
            f"folder:{pictures}", "--out", tmp_path / "run"]
    assert "no caption, which this objective needs" in refused(*args)
    for p in pictures.glob("*.png"): p.with_suffix(".txt").write_text(f"a picture called {p.stem}")
    main([str(a) for a in args]) # it was told to do this
    assert "encoder.safetensors" in outputs(tmp_path / "run")

def contents(folder): return {p: file_hash(p) for p in folder.rglob("*") if p.is_file()}

@pytest.mark.parametrize("command, run, says",
                         [(["study"], "", "control.lr"),
                          (["train", "dino"], "train/dino-0", "control.lr"),
                                                (["train", "clip"], "train/dino-0",
                                                 "objective was dino, is now clip")])
def test_a_folder_with_other_settings_is_left_alone(refused, tiny, whole, command, run, says):
    before = contents(whole)
    said = refused(*command, *OPTIONS, "--control.lr", tiny.control.lr / 2, "--out", whole / run)
    assert "holds a run with other settings" in said and says in said
    assert contents(whole) == before

def test_a_folder_of_the_user_is_never_replaced(refused, whole, tmp_path):
    own = tmp_path / "thesis.txt"
    own.write_text("three years of work")
    refused("study", *OPTIONS, "--out", whole, "--save-tables", tmp_path)
    assert own.exists()
    with pytest.raises(UserError):
        cached_stage(tmp_path, {}, {}, lambda tmp: write_json(tmp / "one.json", 1))
    assert own.exists()

def test_an_unfinished_run_is_not_audited(refused, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "train/clip-0", run)
    (run / "manifest.json").unlink()
    assert f"{run} is not a finished run" in refused("audit", run, whole / "train/dino-0")

@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number):
    def full(*_): raise OSError(number, "no room")
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="no space left while writing .*a.json; nothing was lost"):
        write_json(tmp_path / "a.json", 2)
    assert ([p.name for p in tmp_path.iterdir()] == ["a.json"]
            and files.read_json(tmp_path / "a.json") == 1)

@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere_else(refused, monkeypatch, number):
    from ccd.training import audit
    def full(*_, **__): raise OSError(number, "no room")
    monkeypatch.setattr(audit, "audit", full)
    assert "no space left" in refused("audit", "a", "b")

@pytest.fixture
def small_disk(tmp_path):
    "A disk of 300 kB, and a way to make it larger."
    disk = tmp_path / "disk"
    disk.mkdir()
    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk],
                              capture_output=True).returncode
    if not shutil.which("mount") or mount("size=300k"):
        pytest.skip("a small disk needs the right to mount")
    yield disk, lambda: mount("remount,size=64m")
    subprocess.run(["umount", "-l", disk], check=True)

@pytest.mark.parametrize("command, out",
                         [(["train", "clip"], "train/clip-0"),
                          (["embed", "pixels:16", "--images", "gallery"],
                           f"probes/vectors/{slug('pixels:16')}/gallery")])
def test_a_disk_that_is_really_full(small_disk, whole, command, out):
    disk, enlarge = small_disk
    args = [*command, *OPTIONS, "--out", disk / "out"]
    assert "no space left" in one_message(*finish(start(*args)))
    assert not [*disk.rglob("*.tmp-*"), *disk.rglob("manifest.json")]
    enlarge()
    said, code = finish(start(*args))
    assert code == 0, said
    assert outputs(disk / "out") == outputs(whole / out)

def test_control_c_in_training(whole, tmp_path):
    run = tmp_path / "run"
    args = ["train", "dino", *OPTIONS, "--runtime.checkpoint-minutes", 9, "--out", run]
    def logged():
        return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text()
    said, code = signal_when(start(*args), logged, signal.SIGINT)
    assert "nothing is lost: the same command resumes from here" in one_message(said, code)
    assert not (run / "manifest.json").exists() and step_of(run) >= 10
    said, code = finish(start(*args))
    assert code == 0 and outputs(run) == outputs(whole / "train/dino-0"), said

def test_control_c_while_composing(cache, tmp_path):
    own, out = tmp_path / "cache", tmp_path / "out"
    own.mkdir(); (own / "emoji").symlink_to((cache / "emoji").resolve())
    p = start("study", *OPTIONS, "--data.scenes", 4000, "--out", out, CCD_CACHE=own)
    def seen():
        return any(own.glob("corpora/*"))
    assert "the same command resumes from here" in one_message(*signal_when(p, seen, signal.SIGINT,
                                                                            group=True))
    assert not [*own.rglob("*.tmp-*"), *out.rglob("*.tmp-*")] and not (out / "world").exists()

def test_control_c_while_probing(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for stage in ("probes", "comparison", "report"): shutil.rmtree(out / stage)
    before = contents(out / "train")
    def seen():
        return any(out.glob("probes/answers/*/.*.tmp-*"))
    p = start("study", *OPTIONS, "--out", out)
    assert "the same command resumes from here" in one_message(*signal_when(p, seen, signal.SIGINT,
                                                                            group=True))
    assert contents(out / "train") == before
    assert not [*out.rglob("*.tmp-*")] and not (out / "comparison").exists()

def test_a_study_in_place_of_a_run_is_told_its_runs(tmp_path):
    from ccd.training.audit import audit
    for run in ("clip-0", "dino-0"):
        (tmp_path / "train" / run).mkdir(parents=True)
        (tmp_path / "train" / run / "manifest.json").write_text("{}")
    with pytest.raises(UserError,
                       match=r"is a study: name one of its runs, .*train/clip-0 or .*train/dino-0"):
        audit(tmp_path, tmp_path)
