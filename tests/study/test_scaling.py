"A grid holds each run once, under one control; what is measured is kept, and taken as done."
import contextlib, math, shlex, shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file
from ccd import stats
from ccd.study.scaling import (curves as scaling_curves, grid as scaling_grid, measures, published,
                               runs as scaling_runs)
from ccd.training.audit import _flatten_dict
from ccd.cli import _starting_point, main
from ccd.commands import _AnySettings, _train as train_command
from ccd.files import UserError, load_table, read_json, slug, to_plain_dict, write_json
from ccd.settings import DataSettings, data_fraction, override
from ccd.presets import RECIPES, preset
from ccd.runs import read_manifest, run_settings
from ccd.data.emoji.scenes import asset_pool, scene, scenes
from ccd.encoders.loading import load
from ccd.probing import captions
from conftest import slow_cell
from schemas import RESULTS, differences

pytestmark = pytest.mark.numeric

EMOJI = scaling_grid.GRIDS["emoji"]
METRICS = {*measures._PROBE_TASKS.values(), "masks",
           *(f"asked: {c}" for c in ("general", "reason", "ocr", "doc"))}
TINY = replace(scaling_grid.GRIDS["smoke"], changes=scaling_grid.GRIDS["smoke"].changes | {
    "control.batch_size": 8, "analysis.segmentation_images": 24, "runtime.checkpoint_minutes": 0.0})

# --- the grid

def test_every_run_is_there_once():
    found = scaling_grid._points(EMOJI)
    assert (len(set(found)) == len(found) == len({p.name for p in found})
            == len(scaling_grid._grid_runs(EMOJI)))
    centre = [p for p in found if scaling_grid._turn(EMOJI, p) == 0]
    assert [p.recipe for p in centre] == ["clip", "dino"]
    for c in centre: # an axis is the centre and what was declared, and nothing else moves
        for a, values in EMOJI.axes.items():
            assert ({getattr(p, a) for p in found if replace(p, **{a: getattr(c, a)}) == c}
                    == {*values, getattr(c, a)})

def test_one_control_but_for_the_axes():
    axes = {"control.vit.width", "control.vit.heads", "control.samples", "control.vit.image_size",
            "control.seed", "data.source",
            "dino.local_size"}
    first = _flatten_dict(to_plain_dict(scaling_grid._grid_runs(EMOJI)[0].settings))
    for r in scaling_grid._grid_runs(EMOJI):
        if r.point.recipe in ("clip", "dino"):
            own = _flatten_dict(to_plain_dict(r.settings))
            assert {k for k in first if own[k] != first[k]} <= axes, r.name
    for p in scaling_grid._points(EMOJI): # and the two recipes of one place do not differ at all
        if p.recipe == "clip":
            assert (scaling_grid._settings_of(EMOJI, p)
                    == scaling_grid._settings_of(EMOJI, replace(p, recipe="dino")))

def test_centre_and_ends_come_first():
    order = [r.point for r in scaling_grid._grid_runs(EMOJI)]
    turn = [scaling_grid._turn(EMOJI, p) for p in order]
    assert turn == sorted(turn) and {p.recipe for p in order[:2]} == {"clip", "dino"}
    assert all(a.recipe != b.recipe and replace(a, recipe="") == replace(b, recipe="")
               for a, b in zip(order[:10:2], order[1:10:2]))

def test_arms_stand_at_the_centre_and_at_the_lowest_value():
    found, low = scaling_grid._points(EMOJI), min(EMOJI.axes["drawings"])
    for arm in EMOJI.extra_recipes["drawings"]:
        own = {(p.drawings, p.seed) for p in found if p.recipe == arm}
        assert own == {(x, k) for x in (1.0, low) for k in range(EMOJI.seeds)}
        for p in found: # what the arm changes, and nothing else
            if p.recipe == arm:
                a, b = (_flatten_dict(to_plain_dict(scaling_grid._settings_of(EMOJI,
                                                                              replace(p,
                                                                                      recipe=r))))
                        for r in ("clip", arm))
                assert ({k for k in a if a[k] != b[k]}
                        == (set() if arm == "supervised" else {"data.caption_policy"}))

def test_recipes_that_do_not_exist_are_not_in_it(monkeypatch):
    grid = replace(EMOJI, center_recipes=("not there yet",))
    before = scaling_grid._points(grid)
    monkeypatch.setitem(RECIPES, "not there yet", replace(RECIPES["dino"], title="new"))
    assert [p.recipe for p in scaling_grid._points(grid) if p not in before] == ["not there yet"]

def test_settings_of_a_search_reach_their_recipe_alone():
    tuned = replace(EMOJI, tuned={"dino": {"dino.momentum": 0.9}})
    for point in scaling_grid._points(EMOJI)[:40]:
        before, now = (scaling_grid._settings_of(grid, point) for grid in (EMOJI, tuned))
        assert (now.dino.momentum == pytest.approx(0.9)) == (point.recipe == "dino")
        assert replace(now, dino=before.dino) == before

# --- Web-SSL's grid

WEB = scaling_grid.GRIDS["web"]

def test_each_run_of_web_ssl_has_the_preset_of_its_size_and_its_data():
    points = scaling_grid._points(WEB)
    names = {(p.recipe, p.size): scaling_grid._settings_of(WEB, p).preset for p in points}
    assert names["dinov2", 4096] == "web-ssl-7b" and names["clip", 1024] == "web-clip-300m"
    assert names["mae", 1280] == "web-mae-700m" and ("mae", 4096) not in names
    for point in points:
        settings = scaling_grid._settings_of(WEB, point)
        assert settings.control.vit.width == point.size
        assert settings.data.source == {"": "shards:metaclip-2b", **WEB.sources}[point.data]
        assert settings.control.vit.image_size == point.pixels <= settings.data.size
        if point.recipe == "dinov2":
            assert settings.dinov2.local_size % settings.control.vit.patch_size == 0
    assert {p.samples for p in points} == {1e9, 2e9, 4e9, 8e9}
    assert {p.data for p in points} == {"", "light", "heavy", "imagenet"}

def test_more_pixels_continue_the_run_with_fewer(monkeypatch):
    monkeypatch.setattr(scaling_grid, "_sample_flops", lambda *_: 1.0) # of 7 billion weights
    for point in scaling_grid._points(WEB):
        settings, start = (scaling_grid._settings_of(WEB, point),
                           scaling_grid._start_of(WEB, point))
        if point.pixels == 224: assert start is None
        else:
            assert start == replace(point, pixels=224)
            assert settings.control.samples == 20_000 * 2048
    script = scaling_runs.commands("web", "torchrun", "/runs", only="clip-*px518*")
    assert "--init-from /runs/clip-w4096-d1-n2000000000-px224-s0" in script

def test_a_grid_continues_a_run_at_more_pixels(tmp_path):
    tiny = replace(TINY, axes=dict(pixels=(72,)), recipes=("clip",), center_recipes=(),
                   measures=("probes",), tune={"control.samples": 64})
    scaling_runs.scale(tiny, tmp_path / "out", tmp_path / "results")
    started, = (read_manifest(folder)["settings"] for folder in (tmp_path / "out").glob("*px72*"))
    assert started["start"] and started["control"]["samples"] == 64
    table = scaling_runs.dry_run(tiny, tmp_path / "results")
    assert table.done.all() and sorted(table.samples) == [64, tiny.center["samples"]]

def test_a_grid_of_other_images_is_measured_on_photographs_at_other_places(tmp_path):
    from rehearse import IMAGENET, ade20k, folders
    folders(tmp_path / "imagenet", IMAGENET, (("train", 8), ("validation", 4)))
    at = (f"imagenet={tmp_path / 'imagenet'}", f"ade20k={ade20k(tmp_path / 'ade20k')}")
    tiny = replace(TINY, axes={}, recipes=("clip",), center_recipes=(),
                   sources=dict(half="emoji:0.5"), more=(dict(data="half"),),
                   measures=("imagenet", "ade20k"))
    with pytest.raises(UserError, match="--at cars: expected one of imagenet, ade20k"):
        scaling_runs.scale(tiny, tmp_path / "out", at=("cars=/data",))
    results = scaling_runs.scale(tiny, tmp_path / "out", at=at)
    found = {file.parts[-3]: read_json(file)["metrics"]
             for file in results.glob("*/*/measured.json")}
    assert len(found) == 2 and sum(name.endswith("-half") for name in found) == 1
    for run in found:
        metrics = {name: value for measure in ("imagenet", "ade20k") for name, value in
                   read_json(results / run / measure / "measured.json")["metrics"].items()}
        assert set(metrics) == {"imagenet", "imagenet, kNN", "ade20k"}
        assert all(0 <= value["estimate"] <= 1 for value in metrics.values())
    sources = {read_manifest(folder)["inputs"]["corpus"] for folder in
               (tmp_path / "out").glob("clip-*")}
    assert len(sources) == 2

def test_cambrians_benchmarks_are_measured_when_their_files_are_given(tmp_path, capsys,
                                                                      monkeypatch):
    from rehearse import cambrian, language_models, llava_files
    from ccd.vqa.benchmarks.questions import CAMBRIAN
    from ccd.vqa.llava.settings import vlm_preset
    small = replace(vlm_preset("cambrian"), tokens=4, context=300) # in place of 576 tokens
    small = override(small, **{"align.batch_size": 64, "tune.batch_size": 64})
    monkeypatch.setattr(measures, "_vlm_preset", lambda name: small)
    tiny = replace(TINY, axes={}, recipes=("clip",), center_recipes=(), measures=("cambrian",))
    scaling_runs.scale(tiny, tmp_path / "out") # trains, and says what is left out
    said = capsys.readouterr().err
    assert "cambrian is left out: it needs --at captions=PLACE" in said
    corpus = scenes(preset("smoke").data)
    texts = [caption for captions in corpus["captions"] for caption in captions]
    places = cambrian(tmp_path / "benchmarks") | llava_files(tmp_path / "llava", corpus)
    places["language"] = language_models(tmp_path / "models", texts)["language"]
    results = scaling_runs.scale(tiny, tmp_path / "out",
                                 at=tuple(f"{name}={place}" for name, place in places.items()))
    file, = results.glob("*/cambrian/measured.json")
    metrics, every = read_json(file)["metrics"], sum(CAMBRIAN.values(), [])
    named = {name.removeprefix("Cambrian-1: ") for name in metrics}
    assert named == {*every, *CAMBRIAN, "overall"} and len(metrics) == 16 + 4 + 1
    mean = np.mean([metrics[f"Cambrian-1: {name}"]["estimate"] for name in CAMBRIAN["General"]])
    assert metrics["Cambrian-1: General"]["estimate"] == pytest.approx(mean, abs=1e-4)
    assert metrics["Cambrian-1: overall"]["tests"] == 16 * 4
    assert all(0 <= value["estimate"] <= 1 for value in metrics.values())

def test_reckoned_flops_are_those_that_training_counts(results):
    for f in results.glob("*/probes/measured.json"):
        run = next(r for r in scaling_grid._grid_runs(TINY) if r.name == f.parent.parent.name)
        # captions differ in length
        assert read_json(f)["run"]["flops"] == pytest.approx(run.flops, rel=0.1)

def test_flops_grow_with_the_model_and_the_samples():
    cost = {r.point: r.flops for r in scaling_grid._grid_runs(EMOJI)}
    c = scaling_grid.RunSpec("clip", **EMOJI.center)
    assert cost[replace(c, size=96)] < cost[c] < cost[replace(c, size=384)]
    assert (cost[replace(c, samples=10_240)] == pytest.approx(cost[c] / 4)
            and cost[replace(c, drawings=0.25)] == cost[c])

# --- fewer drawings

def test_a_smaller_share_lies_in_a_larger_one():
    names = {(x, k): set(asset_pool("train", DataSettings.held_out_style, x, k).table.drawing_id)
             for x in (0.125, 0.25, 0.5, 1.0) for k in (0, 1)}
    for k in (0, 1):
        assert names[0.125, k] < names[0.25, k] < names[0.5, k] < names[1.0, k]
        for x in (0.125, 0.25, 0.5): assert len(names[x, k]) == round(x * len(names[1.0, k]))
    both = len(names[0.25, 0] & names[0.25, 1]) / len(names[0.25, 0])
    assert 0.2 < both < 0.3 # another seed, another quarter

def test_scenes_show_only_their_share():
    quarter = DataSettings(source="emoji:0.25")
    allowed = set(asset_pool("train", quarter.held_out_style, 0.25).table.drawing_id)
    seen = [scene(quarter, "train", k)[1].get("drawing_id") for k in range(60)]
    assert {x for x in seen if x} <= allowed
    assert any(scene(DataSettings(), "train", k)[1].get("drawing_id") not in allowed | {None}
               for k in range(60))
    assert all((scene(quarter, "test", k)[0] == scene(DataSettings(), "test", k)[0]).all()
               for k in range(5))

def test_the_whole_is_a_share_too():
    a, b = (scene(DataSettings(source=x), "train", 3)[0] for x in ("emoji", "emoji:1"))
    assert (a == b).all() and data_fraction("emoji:0.5:3") == (0.5, 3)

@pytest.mark.parametrize("source",
                         ["emoji:0", "emoji:1.5", "emoji:half", "emoji:0.5:x", "emoji:0.5:-1",
                          "emoji:0.5:1:2", "emoji:"])
def test_what_is_no_share_is_refused(source):
    with pytest.raises(UserError, match="emoji:FRACTION"): DataSettings(source=source)

def test_too_few_drawings_are_refused():
    with pytest.raises(UserError, match="larger fraction"):
        asset_pool("train", DataSettings.held_out_style, 0.001)

# --- running

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The measurements of a tiny grid that nothing disturbed, by the cell that makes those of the
    findings."""
    home = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as m, contextlib.chdir(home):
        m.setitem(scaling_grid.GRIDS, "emoji", TINY)
        slow_cell("findings/scaling.ipynb", home=home / "results")
    return home / "results"

def test_what_is_kept_has_these_columns(results):
    assert list(differences(results, RESULTS / "scaling")) == []

def test_measurements_are_small_sealed_and_whole(results):
    runs = scaling_grid._grid_runs(TINY)
    assert {p.name for p in results.iterdir() if p.is_dir()} == {r.name for r in runs} | {"reader"}
    for r in runs:
        found = {m for k in TINY.measures
                 for m in read_json(results / r.name / k / "measured.json")["metrics"]}
        assert found == METRICS
        for k in TINY.measures:
            for m in read_json(results / r.name / k / "measured.json")["metrics"].values():
                assert (len(m["draws"]) == measures._DRAWS
                        and min(m["draws"]) <= m["estimate"] <= max(m["draws"])
                        and m["clusters"] <= m["tests"])
    assert sum(f.stat().st_size for f in results.rglob("*/measured.json")) < 40_000 * len(runs)
    assert ({f.relative_to(results).as_posix() for f in results.rglob("*") if f.is_file()}
            == {*read_manifest(results)["outputs"], "manifest.json"})
    assert not any(str(results.parent) in f.read_text() for f in results.rglob("*.json"))

def test_what_is_measured_is_not_run_again(results, tmp_path, monkeypatch):
    monkeypatch.setattr("ccd.training.loop.train", lambda *_, **__: pytest.fail("trained again"))
    before = {f: f.stat().st_mtime_ns for f in results.rglob("*")}
    scaling_runs.scale(TINY, tmp_path / "another machine", results)
    assert ({f: f.stat().st_mtime_ns for f in results.rglob("*")} == before
            and scaling_runs.dry_run(TINY, results).done.all())

def test_only_what_is_missing_is_run(results, tmp_path):
    some = shutil.copytree(results, tmp_path / "results")
    lost = scaling_grid._grid_runs(TINY)[0]
    shutil.rmtree(some / lost.name)
    assert list(scaling_runs.dry_run(TINY, some).done) == [False, True, True]
    scaling_runs.scale(TINY, tmp_path / "runs", some, only="clip-*")
    assert [p.name for p in (tmp_path / "runs").glob("clip*")] == [lost.name]
    for k in TINY.measures: # and comes to the same
        a, b = (read_json(x / lost.name / k / "measured.json") for x in (some, results))
        assert a["metrics"] == b["metrics"]

def test_another_experiment_is_refused(results, tmp_path, monkeypatch):
    for change in (dict(changes=TINY.changes | {"control.lr": 1e-4}),
                   dict(changes=TINY.changes | {"data.test_scenes": 100})):
        with pytest.raises(UserError, match="is of another experiment: .* was .*--measurements"):
            scaling_runs.scale(replace(TINY, **change), tmp_path, results)
    monkeypatch.setitem(measures._EVALUATIONS, "probes",
                        replace(measures._EVALUATIONS["probes"], version=2))
    with pytest.raises(UserError, match="version was 1, is now 2"):
        scaling_runs.scale(TINY, tmp_path, results)
    assert not any(tmp_path.iterdir())

def test_another_measure_asks_only_for_itself(results, monkeypatch):
    monkeypatch.setitem(measures._EVALUATIONS, "new", measures._Evaluation(1, None))
    assert all([m for m in (*TINY.measures, "new") if not scaling_runs._is_measured(results, r, m)]
               == ["new"] for r in scaling_grid._grid_runs(TINY))

CONTROLLED = replace(scaling_grid.GRIDS["controlled"], base="smoke",
    center=dict(size=48, drawings=1.0, samples=256, pixels=48), axes=dict(drawings=(0.5,)),
    recipes=("clip-dino-views",), center_recipes=("infonce",), seeds=1, center_seeds=1,
    measures=("tasks", "neighbors", "attributes", "perturbations", "captions", "answers"),
    reader="smoke",
    projector_seeds=2, baselines=("hog:8",),
    changes={"data.source": "emoji-2", "data.max_emoji_images": 320, "analysis.knn_checks": 0})

def admit(*names): # in place of a language model that is trained for long enough
    return lambda *_: pd.DataFrame(dict(subset=names, oracle=0.9, no_image=0.2, admitted=True))

def test_the_controlled_grid_keeps_measures_baselines_and_encoders(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "_admission_table", admit("count", "color", "font"))
    monkeypatch.setattr(captions, "language_probe", partial(captions.language_probe, counts=(64,)))
    results = scaling_runs.scale(CONTROLLED, tmp_path / "runs", tmp_path / "results")
    names = {run.name for run in scaling_grid._grid_runs(CONTROLLED)}
    assert {path.name for path in results.iterdir() if path.is_dir()} == {*names, "baselines",
                                                                          "reader"}
    def read(folder, measure): return read_json(results / folder / measure / "measured.json")
    baseline = read("baselines/" + slug("hog:8"), "tasks")["metrics"]
    for name in names:
        found = read(name, "tasks")["metrics"]
        assert set(baseline) <= set(found) and "word, patches" in found
        assert {"category", "style", "word", "held-out word", "object color", "position",
                "number of objects, kNN"} <= set(found)
        assert set(read(name, "neighbors")["metrics"]) >= {"neighbors: style", "neighbors: word"}
        explained, moved = (read(name, measure)["metrics"]
                            for measure in ("attributes", "perturbations"))
        assert {"similarity: slope of same style", "similarity: unique of style"} <= set(explained)
        assert {"shift: style", "shift: word on a sign", "shift: ground, exactly"} <= set(moved)
        for entry in (*explained.values(), *moved.values()):
            assert min(entry["draws"]) <= entry["estimate"] <= max(entry["draws"])
        assert set(read(name, "answers")["metrics"]) == {"asked: general", "asked: reason",
                                                         "asked: ocr"}
        kept, trained = results / name / "encoder", tmp_path / "runs" / name
        half, whole = (load_file(folder / "encoder.safetensors") for folder in (kept, trained))
        assert all(torch.allclose(half[key].float(), whole[key], atol=1e-2) for key in whole)
        assert load(f"ccd:{kept}").card.architecture == load(f"ccd:{trained}").card.architecture
    asked = {"image to text", "text to image", "word", "name"}
    said = {name: set(read(name, "captions")["metrics"]) for name in (*names, "baselines/"
                                                                      + slug("hog:8"))}
    for name, metrics in said.items():
        own = ({f"own text tower: {task}" for task in asked} if name.startswith("clip")
               else set())
        assert metrics == {f"LiT, 64 captions: {task}" for task in asked} | own
    before = {path: path.stat().st_mtime_ns for path in results.rglob("measured.json")}
    scaling_runs.scale(CONTROLLED, tmp_path / "elsewhere", results) # nothing is made again
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("measured.json")}
    assert not list((tmp_path / "elsewhere").glob("*/checkpoints"))
    assert scaling_runs.dry_run(CONTROLLED, results).done.all()
    a_kept_encoder_is_measured_where_its_run_is_gone(results, tmp_path, monkeypatch, names.pop())

def a_kept_encoder_is_measured_where_its_run_is_gone(results, tmp_path, monkeypatch, name):
    file = results / name / "neighbors/measured.json"
    before = read_json(file)
    shutil.rmtree(file.parent)
    monkeypatch.setattr("ccd.training.loop.train", lambda *_, **__: pytest.fail("trained again"))
    scaling_runs.scale(CONTROLLED, tmp_path / "new machine", results, only=name)
    after = read_json(file)
    assert after["run"] == before["run"] # its cost and its hash are those of the whole run
    for metric, entry in after["metrics"].items(): # in half precision
        assert abs(entry["estimate"] - before["metrics"][metric]["estimate"]) < 0.02

def test_a_subset_is_admitted_if_the_oracle_answers_it_and_no_image_does_not(monkeypatch):
    from ccd.vqa.llava import answering
    share = dict(own=dict(seen=0.9, guessed=0.9, hard=0.5),
                 none=dict(seen=0.3, guessed=0.9, hard=0.2))
    def answers(model, questions, image):
        return pd.DataFrame([dict(subset=subset, score=float(index < 10 * part))
                             for subset, part in share[image].items() for index in range(10)])
    monkeypatch.setattr(answering, "answer_questions", answers)
    monkeypatch.setattr(measures, "_questions_of", lambda *_: None)
    table = measures._admission_table(None, None, 0.8).set_index("subset")
    assert table.admitted.to_dict() == dict(seen=True, guessed=False, hard=False)
    assert table.oracle.to_dict() == pytest.approx(share["own"])

@pytest.mark.parametrize("names", [("count", "color"), ("count", "color", "word")])
def test_fewer_than_three_subsets_are_no_benchmark(tmp_path, names):
    admit(*names)().to_csv(tmp_path / "admission.csv", index=False)
    assert measures._admitted_subsets(tmp_path) == (names if len(names) > 2 else ())
    if len(names) < 3:
        assert measures._eval_vqa("clip", None, tmp_path, tmp_path).empty

def test_the_first_runs_of_the_controlled_grid_are_all_arms_with_one_seed():
    grid = scaling_grid.GRIDS["controlled"]
    runs = scaling_grid._grid_runs(grid)
    arms = len(grid.recipes) + len(grid.center_recipes)
    assert {(run.point.seed, run.point.drawings, run.point.samples) for run in runs[:arms]} == {
        (0, 1.0, 600_000)}
    assert {run.point.recipe for run in runs[:arms]} == {*grid.recipes, *grid.center_recipes}
    assert all(run.settings.data.version == 2 and run.settings.control.vit.stem == "conv"
               for run in runs)
    assert {run.settings.data.source for run in runs} == {"emoji-2", "emoji-2:0.5", "emoji-2:0.25",
            *(f"emoji-2:{part}:{seed}" for part in (0.25,) for seed in (1, 2))}

def test_foreign_files_are_not_touched(tmp_path):
    home = tmp_path / scaling_grid._grid_runs(TINY)[0].name / "probes"
    home.mkdir(parents=True); (home / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="files that ccd did not make"):
        scaling_runs.scale(TINY, tmp_path / "runs", tmp_path)

def test_unknown_names_are_refused(capsys):
    with pytest.raises(UserError, match="unknown grid 'imagenet': expected one of"):
        scaling_grid.find_grid("imagenet")
    with pytest.raises(UserError, match="no run matches 'siglip'"):
        scaling_runs._select_runs(TINY, "siglip")
    with pytest.raises(UserError, match="expected one of torchrun, slurm"):
        scaling_runs.commands("smoke", "kubernetes", "out")
    with pytest.raises(SystemExit): main(["scale", "imagenet", "--dry-run"])
    assert "unknown grid" in capsys.readouterr().err

class Killed(BaseException): pass

def test_killed_it_loses_nothing_that_was_saved(results, tmp_path, monkeypatch):
    from ccd.training.trainer import Trainer
    run, steps, step, masks = (scaling_grid._grid_runs(TINY)[0], [], Trainer.step,
                               measures._EVALUATIONS["masks"])
    def counted(self, k, shown):
        steps.append(k)
        if len(steps) == 20: raise Killed
        return step(self, k, shown)
    def killed(*_): raise Killed
    shutil.copytree(results / "reader", tmp_path / "results" / "reader")
    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setitem(measures._EVALUATIONS, "masks", replace(masks, of=killed))
    def again():
        return scaling_runs.scale(TINY, tmp_path / "runs", tmp_path / "results", run.name)
    with pytest.raises(Killed): again() # in the twentieth step: a checkpoint is written after each
    with pytest.raises(Killed): again() # in the second measure
    # the last ones of the encoder; a projector's are of its own loop
    assert steps == [*range(20), *range(19, 32)]
    kept = (tmp_path / "results" / run.name / "probes" / "manifest.json").read_bytes()
    monkeypatch.setitem(measures._EVALUATIONS, "masks", masks)
    again()
    assert (len(steps) == 33
            and (tmp_path / "results" / run.name / "probes" / "manifest.json").read_bytes() == kept)
    for k in TINY.measures:
        a, b = (read_json(x / run.name / k / "measured.json")
                for x in (tmp_path / "results", results))
        assert a["metrics"] == b["metrics"] and a["run"]["encoder"] == b["run"]["encoder"]

def test_a_field_that_is_newer_than_a_measurement_had_its_default(results, tmp_path):
    some = shutil.copytree(results, tmp_path / "results")
    run = scaling_grid._grid_runs(TINY)[0]
    at = some / run.name / "probes" / "manifest.json"
    m = read_json(at)
    del m[
        "settings"][
            "run"][
                "control"][
                    "clip_each"], m["settings"]["run"]["own"]["ema"], m["settings"]["data"]["seed"]
    write_json(at, m)
    assert scaling_runs._is_measured(some, run, "probes")
    with pytest.raises(UserError, match="clip_each was False, is now True"):
        scaling_runs._is_measured(some,
                                  run._replace(settings=override(run.settings,
                                                                 **{"control.clip_each": True})),
                                  "probes")

def test_many_processes_are_sent_to_the_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--commands torchrun"): scaling_runs.scale(TINY, tmp_path)

# --- the language model that all share

def test_what_can_be_told_apart_was_measured():
    t = load_table(Path(__file__).parents[2] / "results" / "vlm" / "informative.csv")
    assert set(t.subset[t.informative]) == set(measures._INFORMATIVE_SUBSETS)

def test_blind_the_shared_model_says_the_same_around_any_encoder(results, tmp_path):
    "It is frozen, so its floor is one for all; with pictures it is not."
    from ccd.vqa.llava import answering, settings as llava_settings, training
    settings, asked = (scaling_runs._full_data_settings(scaling_grid._grid_runs(TINY)[0].settings),
                       measures._questions_of(measures._INFORMATIVE_SUBSETS,
                                              scaling_grid._grid_runs(TINY)[0].settings))
    said = {}
    for spec in ("random:0", "pixels:16"):
        measures._eval_vqa(spec, settings, tmp_path / spec[0], results / "reader")
        from ccd.vqa.command import encoder_for_vlm
        e = encoder_for_vlm(spec, settings, llava_settings.vlm_preset("smoke"))
        model = training.load_vlm(tmp_path / spec[0] / "projector-0", e)
        said[spec] = [np.array(list(answering.answer_questions(model, asked, image=i,
                                                               cache=tmp_path).p_options))
                      for i in ("none", "own")]
    a, b = said.values()
    assert np.allclose(a[0], b[0], atol=1e-5) and not np.allclose(a[1], b[1], atol=1e-3)
    assert not (tmp_path / "r" / "tokens").exists() # hundreds of megabytes each, at full size

def test_the_reader_is_made_once(results, monkeypatch):
    monkeypatch.setattr("ccd.vqa.ceiling.train_oracle", lambda *_: pytest.fail("trained again"))
    assert (measures._shared_language_model("smoke", results.parent / "elsewhere", results)
            == results / "reader")

# --- encoders that were released

def found_in(run, corpus): # no run, and no encoder of one, but the releases
    return scaling_runs._find_trained(run, corpus, Path("no run"), Path("no measurements"))

def test_a_release_of_the_same_settings_is_taken(monkeypatch):
    from ccd.encoders.trained import list_releases
    monkeypatch.setattr("ccd.data.corpora.fingerprint", lambda x: x)
    run = next(r
               for r in scaling_grid._grid_runs(EMOJI)
               if r.point
               == scaling_grid.RunSpec("dino", **EMOJI.center | dict(samples=300_000), seed=1))
    corpus = read_manifest(next(p
                                for p in list_releases() if p.name == "dino-1"))["inputs"]["corpus"]
    assert found_in(run, corpus) is None # its last layer started otherwise
    run = run._replace(settings=override(run.settings, **{"dino.head_init": "trunc_normal"}))
    found = found_in(run, corpus)
    assert found in list_releases() and found.name == "dino-1"
    assert found_in(run, "another corpus") is None
    for setting in ({"control.seed": 7}, {"dino.momentum": 0.9}):
        assert found_in(run._replace(settings=override(run.settings, **setting)), corpus) is None

# --- commands

def test_dry_runs_nothing(tmp_path, capsys):
    main(["scale", "emoji", "--dry-run", "--out", str(tmp_path / "runs"), "--only", "clip"])
    said = capsys.readouterr().out
    assert (f"to do: {sum('clip' in p.recipe for p in scaling_grid._points(EMOJI))} runs" in said
            and "TFLOP" in said and not any(tmp_path.iterdir()))

def settings_said(line): # what `ccd train` makes of its options
    import tyro
    args = shlex.split(line)[shlex.split(line).index("train") + 1:]
    seen = {}
    def train(recipe: tyro.conf.Positional[str], settings: _AnySettings, out: str = "",
              init_from: str = ""):
        seen.update(recipe=recipe, settings=settings, out=out, init_from=init_from)
    from functools import partial
    tyro.cli(partial(train, settings=_starting_point(train_command, args)), args=args)
    return seen

@pytest.mark.parametrize("grid", scaling_grid.GRIDS)
def test_commands_train_the_runs_of_the_grid(grid, monkeypatch):
    if grid == "web": monkeypatch.setattr(scaling_grid, "_sample_flops", lambda *_: 1.0)
    lines = scaling_runs.commands(grid, "torchrun", "runs/x", "results/x").splitlines()
    every = scaling_grid._grid_runs(scaling_grid.GRIDS[grid])
    assert len(lines) == len(every)
    for line, r in zip(lines, every):
        said = settings_said(line.partition(" && ")[0])
        objective = RECIPES[r.point.recipe].objective
        start = scaling_grid._start_of(scaling_grid.GRIDS[grid], r.point)
        assert said["recipe"] == r.point.recipe and said["out"] == f"runs/x/{r.name}"
        assert said["init_from"] == (f"runs/x/{start.name}" if start else "")
        assert (run_settings(objective, said["settings"]) == run_settings(objective, r.settings)
                and said["settings"].data == r.settings.data)
        assert f"--only {r.name} " in line and "--measurements results/x" in line

def test_slurm_gets_one_job_a_run():
    said = scaling_runs.commands("smoke", "slurm", "runs/x")
    assert "--array=0-2" in said and said.count("torchrun") == 3
    import subprocess
    body = ("\n".join(l for l in said.splitlines() if not l.startswith("eval"))
            + '\necho "${#runs[@]}"; echo "${runs[1]}"')
    lines = subprocess.run(["bash", "-c", body], capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert lines == ["3", scaling_runs.commands("smoke", "torchrun", "runs/x").splitlines()[1]]

# --- curves of which the truth is known

def made_up(truth, seed_sd=0.004, sampling=0.01, rng=None, grid=EMOJI, only=lambda p: True,
            metrics=("category",)):
    """A table as `read_results` makes it: truth plus what other seeds and other test items would
    change."""
    rng, rows = rng or np.random.default_rng(0), []
    items = {m: rng.normal() for m in metrics} # the same test items for all
    drawn = {m: rng.normal(size=measures._DRAWS) for m in metrics}
    for p in filter(only, scaling_grid._points(grid)):
        for m in metrics:
            own = sampling * (0.6 * items[m] + 0.8 * rng.normal())
            y = truth(p) + seed_sd * rng.normal() + own
            rows.append(vars(p) | dict(metric=m, estimate=y,
                                       draws=y
                                       + sampling
                                       * (0.6 * drawn[m] + 0.8 * rng.normal(size=measures._DRAWS)),
                                       n_test=1, n_groups=1, parameters=p.size**2,
                                       flops=p.samples * p.size**2
                                       * (3 if p.recipe == "dino" else 1)))
    return pd.DataFrame(rows)

C = EMOJI.center
def by(p, a):
    return math.log2(getattr(p, a) / C[a])

def one(t, axis, recipe="clip", stretch="last"):
    return t[(t.axis == axis) & (t.recipe == recipe) & (t.stretch == stretch)].iloc[0]

def test_growth_is_told_from_a_plateau_and_from_noise():
    quiet = dict(seed_sd=0.0005, sampling=0.0005)
    t = scaling_curves._gain_per_doubling(made_up(lambda p: 0.5 + 0.04 * by(p, "samples")
                                                  - 0.04 * by(p, "drawings"), **quiet), C)
    assert (one(t, "samples").plateau == "no, it grows"
            and one(t, "drawings").plateau == "no, it falls")
    assert one(t, "size").plateau == "yes, it is level"
    loud = scaling_curves._gain_per_doubling(made_up(lambda p: 0.5, seed_sd=0.02, sampling=0.02), C)
    assert one(loud, "samples").plateau == one(loud, "drawings").plateau == "cannot be told"
    assert one(loud, "samples").min_detectable_diff > 5 * one(t, "samples").min_detectable_diff

def test_a_gain_is_that_of_a_doubling():
    t = scaling_curves._gain_per_doubling(made_up(lambda p: 0.5 + 0.01 * 2 * by(p, "size")
                                                  + 0.03 * by(p, "samples")
                                                  - 0.02 * by(p, "pixels"), 0, 1e-9), C)
    for stretch in ("whole", "last"): # a width twice as large has four times the parameters
        assert one(t, "size", stretch=stretch).value == pytest.approx(0.01, abs=1e-6)
        assert one(t, "samples", stretch=stretch).value == pytest.approx(0.03, abs=1e-6)
    assert one(t, "pixels").value == pytest.approx(-0.02, abs=1e-6)
    assert (one(t, "samples").low == C["samples"]
            and one(t, "samples", stretch="whole").low == 10_240)

def test_one_seed_says_so():
    t = scaling_curves._gain_per_doubling(made_up(lambda p: 0.5 + 0.04 * by(p, "samples"),
                                                  only=lambda p: not p.seed, sampling=0.001), C)
    r = one(t, "samples")
    assert (r.plateau == "no, it grows, by one seed" and not r.seed_variance_known
            and np.isnan(r.seed_ci_low))

def last_step(gain, rng, seeds=0.01, sampling=0.01):
    t = made_up(lambda p: 0.5 + gain * by(p, "samples"), seeds, sampling, rng,
                only=lambda p: p.recipe == "clip")
    cells = scaling_curves._curve_points(t, "samples", C, "clip", "category")[-2:]
    d = scaling_curves._log2_ratio(*cells)
    return scaling_curves.linear_contrast(cells, [-1 / d, 1 / d],
                                          scaling_curves.seed_variance(t)).row()

def test_intervals_cover_the_truth_as_often_as_they_say():
    hits, rng, gain = [], np.random.default_rng(1), 0.02
    for _ in range(150):
        r = last_step(gain, rng)
        hits.append((r["total_ci_low"] <= gain <= r["total_ci_high"],
                     r["ci_low"] <= gain <= r["ci_high"]))
    both, sampling = np.mean(hits, 0)
    # without the seeds an interval promises too much
    assert 0.89 < both < 0.995 and sampling < both - 0.1

def test_what_could_be_shown_is_shown_four_times_in_five():
    rng = np.random.default_rng(2)
    shows = float(np.median([stats.could_show(last_step(0.0, rng)) for _ in range(30)]))
    assert 0.68 < np.mean([last_step(shows, rng)["total_ci_low"] > 0 for _ in range(120)]) < 0.92

def test_seeds_are_pooled_over_places():
    t = made_up(lambda p: 0.5, seed_sd=0.05, sampling=1e-9)
    for (recipe, _), (v, df) in scaling_curves.seed_variance(t).items():
        runs = t[t.recipe == recipe].groupby(list(scaling_grid._AXES)).estimate.agg(["var", "size"])
        twice = runs[runs["size"] > 1]
        assert (df == (6 if recipe in EMOJI.recipes else 0 if recipe in EMOJI.center_recipes else 2)
                and (df == 0 or v == pytest.approx(twice["var"].mean())))

def test_shared_test_items_cancel():
    t = made_up(lambda p: 0.5, seed_sd=0, sampling=0.01)
    cells = scaling_curves._curve_points(t, "samples", C, "clip", "category")
    low, high, apart = (np.std(scaling_curves.linear_contrast(c, w,
                                                              scaling_curves.seed_variance(t)).draws) for c, w in (([cells[0]], [1]), ([cells[-1]], [1]), ([cells[0], cells[-1]], [1, -1])))  # noqa: E501
    assert apart < 0.85 * math.hypot(low, high) # as if they had been asked other items

def test_dino_catches_up_where_it_does():
    quiet = dict(seed_sd=0.001, sampling=0.001)
    def truth(p):
        return (0.5
                + (0.02 * by(p, "samples") if p.recipe == "dino" else 0.03 * by(p, "drawings")
                   if p.recipe == "clip" else 0))
    each, trend = scaling_curves._difference_curves(made_up(truth, **quiet), C)
    said = trend.set_index("axis").verdict
    assert said["samples"] == "DINO gains on it" and said["drawings"] == "CLIP pulls away"
    assert trend.set_index("axis").value["samples"] == pytest.approx(-0.02, abs=0.003)
    centre = each[(each.axis == "samples") & (each["at"] == C["samples"])]
    assert abs(centre.value.iloc[0]) < 0.005
    assert (set(scaling_curves._difference_curves(made_up(lambda p: 0.5, 0.02, 0.02), C)[1].verdict)
            == {"cannot be told"})

def test_fits_want_more_points_than_parameters():
    x = 2.0 ** np.arange(7)
    line, power = 0.3 + 0.05 * np.log2(x), 0.9 - 0.4 * x**-0.5
    def near(y):
        return y + 1e-5 * np.random.default_rng(0).normal(size=(100, len(y)))
    for n in range(2, 8):
        t = scaling_curves._fit_power_law(x[:n], line[:n], near(line[:n]))
        assert set(t.curve) == ({"line"} if n > 3 else set()) | ({"power law"} if n > 4 else set())
    assert (scaling_curves._fit_power_law(x, line, near(line)).value[0]
            == pytest.approx(0.05, abs=1e-3))
    t = scaling_curves._fit_power_law(x, power, near(power)).set_index("quantity")
    assert (t.value["plateau"] == pytest.approx(0.9, abs=0.01)
            and t.value["exponent"] == pytest.approx(0.5, rel=0.1) and t.found.all())
    assert not scaling_curves._fit_power_law(x, line,
                                             line
                                             + 0.002
                                             * np.random.default_rng(0).normal(size=(100,
                                                                                     7))).set_index(
                                                                                         "quantity").found["plateau"]

def test_the_best_within_a_budget():
    t = scaling_curves._compute_frontier(made_up(lambda p: 0.5 + 0.05 * by(p, "samples"), 0, 1e-9))
    for _, g in t.groupby("recipe"):
        best = g[g.best]
        assert (best.value.is_monotonic_increasing
                and all(r.value >= g[g.flops <= r.flops].value.max() for r in best.itertuples()))

@pytest.mark.parametrize("only",
                         [lambda p: p.recipe == "clip", lambda p: p.name.endswith("s0"),
                          lambda p: scaling_grid._turn(EMOJI, p) == 0,
                                  lambda p: p.recipe == "dino" and p.samples < 40_960])
def test_any_part_of_a_grid_will_do(only):
    t = made_up(lambda p: 0.5 + 0.01 * by(p, "size"), only=only)
    gains, _curves, (each, trend) = (scaling_curves._gain_per_doubling(t, C),
                                     scaling_curves._curves(t, C),
                                     scaling_curves._difference_curves(t, C))
    assert (len(scaling_curves._compute_frontier(t))
            == len(t.groupby(["recipe", *scaling_grid._AXES])) and len(each) >= len(trend))
    for r in (gains.itertuples() if len(gains) else ()): assert r.low < r.high

# --- effects

def test_an_effect_is_the_weighted_sum_with_its_interval():
    arms = {"clip": 0.3, "dino": 0.1, "clip-shuffled": 0.05}
    def truth(p):
        return arms.get(p.recipe, 0.0) + (0.02 * by(p, "drawings") if p.recipe == "dino" else 0)
    t, few = made_up(truth, 0.002, 0.002), dict(drawings=0.125)
    def at(*parts):
        return scaling_curves._linear_effect(t, C, "category", list(parts))
    lead, here = at((1, "clip", {}), (-1, "dino", {})), at((1, "clip", few), (-1, "dino", few))
    more = at((1, "clip", {}), (-1, "dino", {}), (-1, "clip", few), (1, "dino", few))
    assert (lead["value"] == pytest.approx(0.2, abs=0.01)
            and here["value"] == pytest.approx(0.26, abs=0.01))
    assert (more["value"] == pytest.approx(lead["value"] - here["value"])
            and more["total_ci_high"] < 0
            and lead["p"] < 1e-4)
    assert at((1, "clip", {}), (-1, "clip", dict(drawings=0.3))) is None
    none = [scaling_curves._linear_effect(made_up(lambda p: 0.5, 0.01, 0.01,
                                                  np.random.default_rng(k)), C, "category",
                                          [(1, "clip", {}), (-1, "dino", {})])["p"]
            for k in range(200)]
    assert 0.01 < np.mean(np.array(none) < 0.05) < 0.09 # as often as it says

def test_how_many_more_samples():
    def late(f):
        return lambda p: 0.5 + 0.03 * (by(p,
                                          "samples") - (math.log2(f) if p.recipe == "dino" else 0))
    t = scaling_curves.sample_efficiency_ratio(made_up(late(4), 0, 1e-7), C,
                                               "category").set_index("samples")
    assert (t.times[10_240] == pytest.approx(4, rel=0.01) and t.times[300_000] == math.inf
            and t.most[10_240] == pytest.approx(300_000 / 10_240))
    early = scaling_curves.sample_efficiency_ratio(made_up(late(1 / 8), 0, 1e-7), C,
                                                   "category").set_index("samples")
    assert (early.times[10_240] == pytest.approx(1) == early.least[10_240]
            and early.times[300_000] == pytest.approx(1 / 8, rel=0.01))
    loud = scaling_curves.sample_efficiency_ratio(made_up(late(2), 0.02, 0.02), C,
                                                  "category").set_index("samples")
    assert ((loud.ci_low <= loud.times).all() and (loud.times <= loud.ci_high).all()
            and loud.ci_high[300_000] == math.inf)
    assert not len(scaling_curves.sample_efficiency_ratio(made_up(late(2), only=lambda p: p.samples
                                                                  == C["samples"]), C, "category"))

# --- what is there

def test_results_are_read_with_what_is_missing(results, tmp_path):
    m = scaling_curves.analyze_grid(TINY, results)
    assert m.done == 3 and not m.missing and set(m.table.metric) == METRICS
    assert (set(m.curves.axis) == {"drawings"} and (m.curves["at"].unique() == [0.5, 1.0]).all()
            and "machine" not in m.table)
    assert scaling_curves.machines_used(results).endswith(")")
    none = scaling_curves.analyze_grid(TINY, tmp_path / "nothing")
    assert (none.done == 0 and len(none.missing) == 3 and not len(none.curves)
            and scaling_curves.machines_used(tmp_path / "nothing") == "")
    with pytest.raises(UserError, match="no measurements in"):
        scaling_curves._read_results(tmp_path)

def test_runs_of_another_grid_are_left_out(results):
    m = scaling_curves.analyze_grid(replace(TINY, recipes=("dino",), center_recipes=()), results)
    assert set(m.table.recipe) == {"dino"} and len(m.missing) == 1

# --- published

def test_published_curves_are_the_tables():
    from ccd.vqa.published.tables import load_published_table
    c = published.published_curves()
    a = c[c["quantity"] == "average"].set_index(["axis", "name", "x"])
    assert (a.value["size", "CLIP", 6.450] == pytest.approx(52.97, abs=0.02)
            and a.value["samples", "Web-DINO", 1.0] == pytest.approx(51.02, abs=0.02))
    assert (a.value["samples", "Web-DINO", 2.0]
            == pytest.approx(a.value["size", "Web-DINO", 6.450], rel=1e-9))
    assert (a.value["samples", "Web-DINO", 8.0]
            == pytest.approx(a.value["pixels", "Web-DINO", 224.0], rel=1e-9))
    assert (len(a)
            == sum((load_published_table("webssl_vqa").table == t).sum()
                   for t in (6, 8, 10, 11, 12, 15))
            and (c.groupby(["axis", "name", "quantity"]).x.is_monotonic_increasing).all())
    assert c.se.between(0.3, 1.5).all()

def test_published_verdicts():
    g = published.published_gains().set_index(["axis", "name", "quantity", "stretch"])
    def at(*k):
        return g.loc[k]
    assert (at("size", "Web-DINO", "average", "whole").plateau.startswith("no, it grows")
            and at("samples", "Web-DINO", "OCR & Chart", "last").plateau.startswith("no, it grows"))
    assert (at("size", "CLIP", "average", "last").plateau == "cannot be told"
            and at("size", "CLIP", "average", "last").tie.startswith("tie"))
    assert at("size", "Web-DINO", "average", "whole").difference == pytest.approx(4.86, abs=0.02)
    assert (at("size", "Web-DINO", "average", "whole").gain
            == pytest.approx(4.86 / math.log2(6.45 / 1.135), abs=0.02))
    assert at("samples", "Web-DINO", "average", "last").tie.startswith("tie")

def test_what_the_average_hides():
    c = published.published_tradeoffs().set_index("quantity")
    assert (c.low["ADE20K"] == 49.08 and c.high["ADE20K"] == 42.14 and not c.better["ADE20K"]
            and not c.better["NYUd_lin1"] and c.better["average"])
    assert c.verdict["ADE20K"] == "its standard error is unknown" and c.verdict["average"] == "real"
    o = published.above_text_only().set_index("model")
    assert (o.over.min() == 0 and o.index[0] == "I-JEPA H 224"
            and o.over["CLIP 7B"] > o.over["Web-DINO 7B"] > o.over["Web-DINO 1B"] > 0)
    with pytest.raises(UserError, match="no published curve"): published.published_fits("SigLIP")
