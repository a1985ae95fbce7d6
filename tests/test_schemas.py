"""What lies in results/ is what the code writes today: each command and slow cell, at a small size,
writes the same columns.

`ccd study`, `ccd compare` and the cell that scales are tried where their outputs are: test_asking,
test_comparison, test_scaling."""
import importlib.metadata, json, sys, types
import numpy as np, pandas as pd, pytest
from ccd.data import filters
from ccd.data.emoji import checks, questions
from ccd.cli import main
from ccd.settings import DataSettings, override
from ccd.runs import read_manifest
from ccd.vqa import command
from conftest import FEW, OPTIONS, ROOT, slow_cell
from schemas import RESULTS, differences, schema

def test_a_difference_is_seen(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, table in ((a, dict(x=[1], y=["u"])), (b, dict(x=["1 %"], y=["v"]))):
        folder.mkdir(); pd.DataFrame(table).to_csv(folder / "t.csv", index=False)
    assert (list(differences(a, a)) == []
            and list(differences(a, b)) == ["t.csv: x is now number, in results text"])
    pd.DataFrame(dict(y=["v"])).to_csv(b / "t.csv", index=False)
    (b / "more.csv").write_text("x\n1\n")
    assert [d.partition(":")[0] for d in differences(a, b)] == ["more.csv", "t.csv"]

# --- commands

def test_probes(published, tmp_path):
    # without their text towers
    clip, dino = (f"ccd:{published / 'results/smoke/encoders' / r}" for r in ("clip-0", "dino-0"))
    main(["probe", clip, "emoji", "emoji-masks", "--compare-to", dino, "--protocols", *OPTIONS,
          "--out", str(tmp_path / "out"), "--save-tables", str(tmp_path / "results")])
    assert list(differences(tmp_path / "results", RESULTS / "accuracy")) == []

def test_questions_to_language_models(tmp_path, monkeypatch):
    def said(out):
        return ["vlm", "random:0", "pixels:16", "--preset", "smoke", "--analysis.vqa_questions",
                "4", "--oracle", "--out", str(tmp_path / out),
                            "--save-tables", str(tmp_path / "results"), "--override", *FEW]
    main(said("out"))
    assert list(differences(tmp_path / "results", RESULTS / "vlm")) == []
    for name in ("train_oracle", "train_vlm"):
        monkeypatch.setattr(command, name, lambda *_: pytest.fail("it was trained again"))
    before = read_manifest(tmp_path / "results")["outputs"]
    main(said("elsewhere")) # the ceiling, too, has answered before
    assert read_manifest(tmp_path / "results")["outputs"] == before

def test_the_larger_study_has_the_tables_of_the_smaller():
    "That the smaller one has those of today is tried in test_asking."
    def tables(study):
        return {f: list(c)
                for f, c in schema(RESULTS / study).items() if "/" not in f
                and not f.startswith("vlm-") and not f.endswith(".jsonl")}
    assert tables("emoji-small") == tables("mini")

# --- slow cells

class Reader:
    "Stands for the optional OCR reader: sees one line, whatever it is shown."
    def __init__(self, **_): pass
    def __call__(self, x, **_):
        h, w = x.shape[:2]
        return types.SimpleNamespace(boxes=[[(0, 0), (w, 0), (w, h), (0, h)]], txts=["stop"],
                                     scores=[0.9])

@pytest.fixture
def reader(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", types.SimpleNamespace(RapidOCR=Reader))
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace())
    real = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version",
                        lambda name: "3.10.0" if name == "rapidocr" else real(name))

@pytest.fixture
def room(tmp_path, monkeypatch):
    "A folder for the results that the cell is to write, and where it runs."
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"

def test_every_slow_cell_is_run():
    marked = {p.relative_to(ROOT / "nbs").as_posix()
              for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
              and any("".join(c["source"]).startswith("#| slow")
                      for c in json.loads(p.read_text())["cells"])}
    assert (marked
            == {"findings/scaling.ipynb", "library/data/emoji/06_checks.ipynb",
                "library/data/07_filters.ipynb"})

def test_the_cell_that_reads_questions(reader, room):
    world = override(DataSettings(), scenes=200, test_scenes=40)
    test = questions.emoji_questions(world, per_subset=2)
    slow_cell("library/data/emoji/06_checks.ipynb", world=world, test=test,
              **vars(checks) | dict(np=np, pd=pd))
    assert list(differences(room / "questions", RESULTS / "questions")) == []

def test_the_cell_that_reads_scenes(reader, room, tiny):
    slow_cell("library/data/07_filters.ipynb", smoke=tiny.data, home=room.parent / "home",
              **vars(filters))
    assert list(differences(room / "filters", RESULTS / "filters")) == []

def test_the_command_that_reads_scenes(reader, room):
    main(["filter", "emoji", "--preset", "smoke", "--scorer", "ocr", "--split", "test", "--out",
          str(room / "made")])
    assert list(differences(room / "made/test", RESULTS / "filters-test")) == []
