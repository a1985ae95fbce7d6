"Studies of your own images, suites, and any encoders by one suite."
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ccd.cli import main
from ccd.files import UserError, read_json
from ccd.presets import preset
from ccd.settings import override
from ccd.encoders.loading import load
from ccd.study import own as own_study
from ccd.study.suite import Suite, find_suite, _left_out

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder of classes: a shape of its own color on noise, hard enough for a network of a minute."
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / f"kind_{label}").mkdir()
        for number in range(40):
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            x, y = rng.integers(0, 20, 2)
            image[y:y + 12, x:x + 12] = 60 * label
            Image.fromarray(image).save(folder / f"kind_{label}" / f"{number}.png")
    return folder

OPTIONS = ["--preset", "smoke", "--control.samples", "256", "--analysis.perturbed-images", "20",
           "--analysis.few-shot-draws", "1", "--analysis.n-resamples", "100"]

def test_a_folder_of_classes_goes_through_a_study(photos, tmp_path, capsys):
    out = tmp_path / "study"
    command = ["study", "--data.source", f"folder:{photos}", "--data.caption-template",
               "a photo of a {label}", "--out", str(out), "--no-thumbnails", *OPTIONS]
    main(command)
    said = capsys.readouterr()
    assert "160 images in 160 groups" in said.err and "captions are made from labels" in said.err
    summary = (out / "summary.txt").read_text()
    assert summary.startswith(("Whether supervision by labels", "On these images supervision by"))
    runs = {path.name for path in (out / "train").iterdir()}
    assert runs == {"clip-dino-views-0", "clip-dino-views-1", "dino-0", "dino-1"}
    page = (out / "report.html").read_text()
    assert "probes/report.html" in page and "comparison/report.html" in page
    assert "show none of them" in " ".join((out / "comparison/report.html").read_text().split())
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("encoder.safetensors")}
    kept = tmp_path / "kept"
    main([*command, "--save-tables", str(kept), "--weights"]) # nothing is made again
    assert trained == {path: path.stat().st_mtime_ns for path in out.rglob("encoder.safetensors")}
    arms = pd.read_csv(out / "probes/tables/arms.csv")
    assert set(arms.n_seeds_a[arms.a.isin(["CLIP", "DINO"])]) == {2}
    table = pd.read_csv(out / "probes/tables/accuracy.csv")
    assert set(table.n_test) == {32} # a fifth of each class
    assert pd.read_csv(kept / "probes/tables/accuracy.csv").equals(table)
    manifest = read_json(kept / "manifest.json")
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert set(manifest["outputs"]) | {"manifest.json"} == files
    assert "train/dino-1/encoder/encoder.safetensors" in files
    assert not any(name.endswith((".png", ".jpg", ".html")) for name in files)
    assert load(f"ccd:{kept / 'train/dino-0/encoder'}").card.name == "DINO"

def test_encoders_are_judged_without_training(photos, tmp_path, capsys):
    out = tmp_path / "evaluation"
    main(["evaluate", "random:0", "pixels:8", "--data.source", f"folder:{photos}", "--out",
          str(out), *OPTIONS])
    assert "Paired tests of the linear probe" in capsys.readouterr().out
    table = pd.read_csv(out / "probes/tables/accuracy.csv")
    assert {"random ViT", "raw pixels", "HOG"} <= set(table.encoder)

def test_arms_follow_from_what_there_is():
    def recipes(captions, classes): return own_study._recipes_of(dict(captions=captions,
                                                                      classes=classes))
    assert recipes("texts", 0) == recipes("labels", 5) == ("clip-dino-views", "dino")
    assert recipes("none", 5) == ("supervised-dino-views", "dino")
    assert recipes("none", 0) == ("dino",)
    many = own_study._recipes_of(dict(captions="labels", classes=5), ("supervised-dino-views",))
    assert many == ("clip-dino-views", "dino", "supervised-dino-views")
    runs = own_study._runs_of(preset("smoke"), dict(captions="texts", classes=0))
    assert [(run.recipe, run.settings.control.seed) for run in runs] == [
        ("clip-dino-views", 0), ("dino", 0), ("clip-dino-views", 1), ("dino", 1)]

@pytest.mark.parametrize("text, minutes", [("30min", 30), ("2h", 120), ("90s", 1.5),
                                           ("1.5h", 90)])
def test_durations(text, minutes): assert own_study._minutes(text) == pytest.approx(minutes)

@pytest.mark.parametrize("text", ["30", "min", "-3min", "half an hour", "infh", "0s"])
def test_what_is_no_duration(text):
    with pytest.raises(UserError, match="is no duration: expected such as 30min"):
        own_study._minutes(text)

@pytest.mark.parametrize("minutes, expected", [(0.01, 10_000), (20, 720_000), (1e9, 30_000_000)])
def test_a_budget_is_spent_on_training(minutes, expected, monkeypatch):
    from ccd.training import loop
    class Images:
        facts = dict(captions="texts", classes=3)
        def part(self, *_): return range(100_000)
    monkeypatch.setattr(loop, "estimate_seconds", lambda *_: 2.5) # of 10,000 samples, one run
    fitted = own_study._fit_budget(preset("mini"), Images(), minutes)
    assert fitted.control.samples == expected and fitted.control.vit.stem == "conv"

def test_a_study_with_a_budget_goes_on_with_what_it_had_measured(tmp_path, monkeypatch):
    from ccd.training import loop
    class Images:
        facts = dict(captions="texts", classes=3)
        def part(self, *_): return range(100_000)
    def fitted(budget, seconds):
        monkeypatch.setattr(loop, "estimate_seconds", lambda *_: seconds)
        return own_study._budgeted(preset("mini"), Images(), budget, tmp_path).control.samples
    assert fitted("20min", 2.5) == fitted("20min", 9.0) == 720_000 # a busier machine
    assert fitted("20h", 9.0) != 720_000

def differences(clip, dino, baseline, half):
    "Differences as `compare_arms` returns them."
    def row(a, b, value):
        return dict(a=a, b=b, value=value, total_ci_low=value - half, total_ci_high=value + half)
    return pd.DataFrame([row("CLIP", "", clip), row("DINO", "", dino), row("HOG", "", baseline),
                         row("raw pixels", "", 0.1), row("CLIP", "DINO", clip - dino),
                         *(row(arm, name, value - level)
                           for arm, value in (("CLIP", clip), ("DINO", dino))
                           for name, level in (("HOG", baseline), ("raw pixels", 0.1)))])

@pytest.mark.parametrize("clip, dino, baseline, half, says", [
    (0.7, 0.5, 0.3, 0.03, "On these images X helps: CLIP minus DINO is +20.0 points"),
    (0.5, 0.7, 0.3, 0.03, "On these images X does not help, it costs accuracy"),
    (0.7, 0.5, 0.6, 0.03, "cannot be told from 900 images: DINO is not above HOG (60.0 %)"),
    (0.7, 0.7, 0.8, 0.03, "CLIP and DINO are not above HOG"),
    (0.52, 0.5, 0.3, 0.04, "about 4,000 images might tell it"),
    (0.7, 0.5, 0.3, 0.5, "are not above"),
    (0.50001, 0.5, 0.3, 0.03, "not even a hundred times as many")])
def test_the_answer_claims_no_more_than_it_can(clip, dino, baseline, half, says):
    found = differences(clip, dino, baseline, half)
    assert says in own_study._verdict(found, ("CLIP", "DINO"), ["raw pixels", "HOG"], "X", 900)

def test_suites_say_what_they_leave_out():
    suite = find_suite("emoji", preset("mini"))
    assert suite.images == "scenes" and suite.model == "mini" and not _left_out(suite, 2)
    silent = find_suite("", override(preset("mini"), **{"analysis.vlm": ""}))
    assert _left_out(silent, 1) == ["comparison: left out, it needs two encoders",
                                   "questions: left out, no benchmark"]
    assert len(_left_out(Suite("nothing"), 2)) == 3
    paper = find_suite("paper", preset("paper"))
    assert "imagenet" in paper.datasets and paper.benchmarks == ("VMCBench",)
    assert paper.images == "held-out" and not find_suite("paper", preset("mini")).images
    with pytest.raises(UserError, match="unknown suite 'own2': expected one of emoji, paper, own"):
        find_suite("own2", preset("mini"))
