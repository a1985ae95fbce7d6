"""What files hold is read back only where every field is known: a name that was changed must never
read as its default."""
import json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from ccd.study.scaling import curves, grid, runs
from ccd.training import trainer
from ccd.vqa.llava import settings as llava_settings, training
from ccd.vqa.command import _load_cached_answers
from ccd.training.audit import _describe_run
from ccd.files import UserError, content_hash, read_json, renamed as new_names, to_plain_dict
from ccd.settings import (Analysis, Clip, Control, DataSettings, Dino, Settings, Siglip,
                          RuntimeSettings, Text, from_plain_dict, override,
                          rename_fields)
from ccd.presets import PRESETS, preset
from ccd.runs import _old_names, check_run, claim_folder, up_to_date, write_manifest
from ccd.encoders.embeddings import load_vectors
from ccd.encoders.trained import load_run_text_encoder
from ccd.encoders.loading import load
from ccd.study.scaling.grid import GRIDS, RunSpec, _points
from ccd.data.corpora import open_corpus
from ccd.training.loop import _init_from

RESULTS = Path(__file__).resolve().parents[1] / "results"
def stored(x):
    return json.loads(json.dumps(to_plain_dict(x)))
KINDS = {k: type(v) for k, v in vars(Settings()).items() if k != "preset"} | dict(
    # the last two: names of version 0.0.1
    point=RunSpec, vlm=llava_settings.VlmSettings, world=DataSettings, run=RuntimeSettings)

def read(settings, file): # names of dataclasses
    "Read whatever settings a manifest holds, wherever in them they stand."
    for k, v in settings.items():
        if not isinstance(v, dict): continue
        if k == "tuned": # changes of a grid, by recipe: dotted names of fields
            for changes in v.values(): override(Settings(), **changes)
            continue
        kind = KINDS.get(settings["objective"] if k == "own" else k)
        if k == "run" and "objective" in v: check_run(v, file)
        elif kind: from_plain_dict(kind, v, file); yield kind.__name__; continue
        yield from read(v, file)

@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_back(name):
    assert from_plain_dict(Settings, stored(preset(name))) == preset(name)

@pytest.mark.parametrize("name", llava_settings.VLM_PRESETS)
def test_every_language_model_is_read_back(name):
    assert (from_plain_dict(llava_settings.VlmSettings, stored(llava_settings.vlm_preset(name)))
            == llava_settings.vlm_preset(name))

@pytest.mark.parametrize("name", GRIDS)
def test_every_point_is_read_back(name):
    assert ([from_plain_dict(RunSpec, stored(p)) for p in _points(GRIDS[name])]
            == _points(GRIDS[name]))

def test_all_that_is_kept_is_readable():
    files = sorted(RESULTS.rglob("manifest.json"))
    seen = {k for f in files for k in read(read_json(f)["settings"], f)}
    for f in RESULTS.rglob("encoder.json"): from_plain_dict(Control, read_json(f)["control"], f)
    assert (len(files) > 150
            and seen >= {"DataSettings", "Control", "Clip", "Siglip", "Dino", "Dinov2",
                         "Supervised", "Analysis", "RuntimeSettings", "RunSpec", "VlmSettings"})

def test_what_older_versions_wrote_is_read():
    old = dict(embed_dim=32, text_width=32, text_depth=1, text_heads=2, context=16)
    assert (from_plain_dict(Clip, old) == Clip(32, Text(width=32, depth=1, heads=2, context=16))
            and from_plain_dict(Siglip, old).text.depth == 1)
    assert (from_plain_dict(Clip, old | dict(text=dict(depth=2))).text
            == Text(width=32, depth=2, heads=2, context=16))
    assert from_plain_dict(Analysis, dict(pairs=9, checkpoint_minutes=2.0)) == Analysis(pairs=9)

def test_what_has_a_new_name_has_it_once():
    for kind in (Settings, DataSettings, Analysis, Clip, llava_settings.VlmSettings):
        new, now = new_names("setting", kind.__name__), kind.__dataclass_fields__.keys()
        assert (new and not new.keys() & now
                and {n.partition(".")[0] for n in new.values() if n} <= now)

@pytest.mark.parametrize("name", ["mini", "emoji-small", "comparison", "vlm"])
def test_new_names_are_the_same_settings(name):
    made = read_json(RESULTS / name / "manifest.json")["settings"]
    old = made.get("settings", made)
    old = {k: v
           for k, v in old.items() if k in {**Settings.__dataclass_fields__, "world": 0, "run": 0}}
    s = from_plain_dict(Settings, old)
    assert (rename_fields(Settings, old).keys() <= Settings.__dataclass_fields__.keys()
            and "data" in rename_fields(Settings, old))
    again = json.loads(json.dumps(to_plain_dict(s, _old_names)))
    assert {k: again[k] for k in old} == old

def test_a_stage_of_old_names_is_up_to_date(tmp_path):
    s = preset("smoke")
    for part in (s.analysis, s.data, dict(analysis=s.analysis, own=[1]),
                 dict(vlm=llava_settings.vlm_preset("smoke"))):
        write_manifest(tmp_path, to_plain_dict(part, _old_names), {}, [], 0)
        assert (up_to_date(tmp_path, part, {})
                and content_hash(part) != read_json(tmp_path / "manifest.json")["settings_hash"])
        write_manifest(tmp_path, part, {}, [], 0)
        assert up_to_date(tmp_path, part, {}) and not up_to_date(tmp_path, part, dict(more="x"))
    assert not up_to_date(tmp_path, replace(s.analysis, n_resamples=7), {})

def test_a_folder_of_old_names_is_resumed(tmp_path):
    s, new = preset("smoke"), lambda have: rename_fields(Settings, have)
    (tmp_path / "settings.json").write_text(json.dumps(to_plain_dict(s, _old_names)))
    claim_folder(tmp_path, s, rename=new)
    with pytest.raises(UserError, match="data.scenes was 512, is now 9"):
        claim_folder(tmp_path, replace(s, data=replace(s.data, scenes=9)), rename=new)

@pytest.mark.parametrize("kind, values, told", [
    (Control, dict(warm_up=0.1),
     "Control in a.json has fields .* not know: 'warm_up'; it knows vit, samples, .*Update ccd "
     ".*'warmup' for 'warm_up'"),
    (Control, dict(lr=0.1, a=1, b=2), "'a', 'b'"),
    (Control, dict(vit=dict(girth=1)), "ViT in a.json has fields .*'girth'"),
    (Control, dict(vit=[48]), r"ViT in a.json is \[48\]: expected fields by name"),
    (Control, None, "Control in a.json is None: expected fields"),
    (Control, dict(lr="0.1"), "lr of Control in a.json is '0.1': expected a number"),
    (Control, dict(samples=0.5), "samples of .*: expected a whole number"),
    (Control, dict(samples=True), "samples of .*: expected a whole number"),
    (Control, dict(samples=float("inf")), "samples of .*: expected a whole number"),
    (Control, dict(betas=[0.9]), r"betas of .* is \[0.9\]: expected tuple\[float, float\]"),
    (Control, dict(betas=0.9), "betas of .* is 0.9"),
    (Control, dict(clip_each=1), "clip_each of .*: expected true or false"),
    (Control, dict(lr=None), "lr of .* is None"),
    (DataSettings, dict(caption_policy="rhymes"),
     "caption_policy of .*: expected Literal.*'shuffled'"),
    (DataSettings, dict(source=["emoji"]), "source of .*: expected a text"),
    (Analysis, dict(variants=["siglip", 1]), "variants of"),
    (Clip, dict(text=5, text_depth=1), "Text in a.json is 5"),
    (RunSpec, dict(recipe="clip"), "RunSpec in a.json lacks size, drawings, samples, pixels")])
def test_what_is_not_known_is_refused(kind, values, told):
    with pytest.raises(UserError, match=told): from_plain_dict(kind, values, "a.json")

def test_what_fits_is_read():
    c = from_plain_dict(Control, dict(samples=1e3, lr=1, final_weight_decay=None, betas=[0, 0.5]))
    assert (c.samples, c.lr, c.final_weight_decay, c.betas) == (1000, 1, None, (0, 0.5))
    assert from_plain_dict(Dino, {}).head_init == "trunc_normal" # of before it was a setting

# --- the files, each with one name changed

def mended(file, change):
    x = read_json(file); change(x)
    file.write_text(json.dumps(x))

def renamed(*way):
    def change(x):
        for k in way[:-1]: x = x[k]
        x["renamed"] = x.pop(way[-1])
    return change

@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(RESULTS / "emoji-small/encoders/clip-0", tmp_path / "clip-0"))

def refused(call, *what):
    with pytest.raises(UserError, match="not know: 'renamed'") as e: call()
    for w in what: assert w in str(e.value)

@pytest.mark.parametrize("way", [("name",), ("control", "lr"), ("control", "vit", "depth")])
def test_an_encoder(run, way):
    mended(run / "encoder.json", renamed(*way))
    refused(lambda: load(f"ccd:{run}"), str(run / "encoder.json"), way[-1])

@pytest.mark.parametrize("way", [("size",), ("control", "lr"), ("own", "embed_dim")])
def test_a_run(run, way):
    mended(run / "manifest.json", renamed("settings", *way))
    ways = ([lambda: _describe_run(run), lambda: load_run_text_encoder(run)]
            + ([lambda: _init_from(run, "clip", preset("emoji-small"))] if way[0] != "own" else []))
    for w in ways: refused(w, str(run / "manifest.json"), way[-1])

def test_a_measurement(tmp_path):
    name = "clip-w192-d1-n40960-px48-s0"
    shutil.copytree(RESULTS / "scaling" / name / "probes", tmp_path / name / "probes")
    one = next(grid._GridRun(p, grid._settings_of(GRIDS["emoji"], p), 0.0)
               for p in _points(GRIDS["emoji"]) if p.name == name)
    assert runs._is_measured(tmp_path, one, "probes") and len(curves._read_results(tmp_path))
    for way in (("draws",), ("world", "seed"), ("run", "size"), ("run", "own", "embed_dim"),
                ("run", "control", "lr")):
        mended(tmp_path / name / "probes/manifest.json", renamed("settings", *way))
        refused(lambda: runs._is_measured(tmp_path, one, "probes"), "manifest.json", way[-1])
        shutil.copy(RESULTS / "scaling" / name / "probes/manifest.json", tmp_path / name / "probes")
    mended(tmp_path / name / "probes/manifest.json", renamed("settings", "point", "pixels"))
    refused(lambda: curves._read_results(tmp_path), "RunSpec", "pixels")
    mended(tmp_path / name / "probes/measured.json", renamed("metrics"))
    refused(lambda: curves._read_results(tmp_path), "measured.json", "metrics")

def test_a_card(tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(3, dtype=np.float32))
    pd.DataFrame(dict(item_id=list("abc"))).to_parquet(tmp_path / "items.parquet")
    (tmp_path / "card.json").write_text(json.dumps(dict(name="x", size=48)))
    assert load_vectors(tmp_path).card["size"] == 48
    mended(tmp_path / "card.json", renamed("size"))
    refused(lambda: load_vectors(tmp_path), "card.json", "revision")

def test_a_language_model(tmp_path):
    v = llava_settings.vlm_preset("smoke")
    (tmp_path / "tune").mkdir()
    write_manifest(tmp_path / "tune", {}, {}, [], 0)
    encoder = load("random:0")
    whole = dict(settings=stored(v), encoder="", card=stored(encoder.card))
    for way in (("encoder",), ("settings", "depth"), ("settings", "tune", "lr")):
        (tmp_path / "settings.json").write_text(json.dumps(whole))
        mended(tmp_path / "settings.json", renamed(*way))
        refused(lambda: training.load_vlm(tmp_path, encoder), str(tmp_path / "settings.json"),
                way[-1])

def test_scores(tmp_path):
    (tmp_path / "train").mkdir()
    pd.DataFrame(dict(item_id=[], light=[], heavy=[],
                      fault=[])).to_parquet(tmp_path / "train/scores.parquet")
    write_manifest(tmp_path / "train", dict(source="emoji", split="train", renamed={}), {},
                   ["scores.parquet"], 0)
    refused(lambda: open_corpus(DataSettings(source=f"filter:light:{tmp_path}")),
            "train/manifest.json", "scorer")

def test_answers_of_another_day(tmp_path):
    made = read_json(RESULTS / "vlm/manifest.json")
    s = made["settings"]
    settings, v = (from_plain_dict(Settings, {k: x for k, x in s.items() if k != "vlm"}),
                   from_plain_dict(llava_settings.VlmSettings, s["vlm"]))
    (tmp_path / "manifest.json").write_text(json.dumps(made
                                                       | dict(settings=s
                                                              | dict(renamed="letters"))))
    refused(lambda: _load_cached_answers(tmp_path, settings, v, None, v.forms[0]), "manifest.json",
            "form")
    # they are not used
    assert _load_cached_answers(tmp_path, replace(settings, data=DataSettings(scenes=1)), v, None,
                                v.forms[0]) == []

def test_a_checkpoint(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    (step := tmp_path / "step-00000001").mkdir()
    for f in ("model", "optimizer"): save_file({}, step / f"{f}.safetensors")
    (step / "state.json").write_text(json.dumps(dict(step=1, renamed={})))
    monkeypatch.setattr(trainer, "_load_state", lambda *_: None)
    refused(lambda: trainer.load_checkpoint(tmp_path, None), "state.json", "feed")

def test_weights_of_another_network(run):
    from safetensors.torch import load_file, save_file
    w = load_file(run / "encoder.safetensors")
    save_file({"renamed" if k == "cls_token" else k: x for k, x in w.items()},
              run / "encoder.safetensors")
    with pytest.raises(UserError,
                       match="encoder.safetensors is not of the network .*encoder.json describes: "
                             "Missing .*cls_token"):
        load(f"ccd:{run}")
    shutil.copy(RESULTS / "emoji-small/encoders/clip-coarse-0/encoder.safetensors", run)
    with pytest.raises(UserError, match="is not of the network .*: size mismatch"):
        load(f"ccd:{run}")
