"A grid holds each run once, under one control; what is measured is kept, and taken as done."
import json, shlex, shutil, signal
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from ccd import scaling as s
from ccd.audit import flat
from ccd.cli import AnySettings, main, starting_point, train as train_command
from ccd.core import RECIPES, UserError, World, override, plain, preset, read_json, run_settings, share_of, write_json
from ccd.emoji import scene, stock
from conftest import finish, signal_when, start, step_of

EMOJI = s.GRIDS["emoji"]
TINY = replace(s.GRIDS["smoke"], changes=s.GRIDS["smoke"].changes | {
    "control.batch_size": 8, "analysis.segmented": 24, "run.checkpoint_minutes": 0.0})

# --- the grid

def test_every_run_is_there_once():
    found = s.points(EMOJI)
    assert len(set(found)) == len(found) == len({p.name for p in found}) == len(s.runs(EMOJI))
    centre = [p for p in found if s._turn(EMOJI, p) == 0]
    assert [p.recipe for p in centre] == ["clip", "dino"]
    for c in centre: # an axis is the centre and what was declared, and nothing else moves
        for a, values in EMOJI.axes.items():
            assert {getattr(p, a) for p in found if replace(p, **{a: getattr(c, a)}) == c} == {*values, getattr(c, a)}

def test_one_control_but_for_the_axes():
    axes = {"control.vit.width", "control.vit.heads", "control.samples", "control.vit.image_size", "control.seed", "world.source",
            "dino.local_size"}
    first = flat(plain(s.runs(EMOJI)[0].settings))
    for r in s.runs(EMOJI):
        if r.point.recipe in ("clip", "dino"):
            own = flat(plain(r.settings))
            assert {k for k in first if own[k] != first[k]} <= axes, r.name
    for p in s.points(EMOJI): # and the two recipes of one place do not differ at all
        if p.recipe == "clip": assert s.settings_of(EMOJI, p) == s.settings_of(EMOJI, replace(p, recipe="dino"))

def test_centre_and_ends_come_first():
    order = [r.point for r in s.runs(EMOJI)]
    turn = [s._turn(EMOJI, p) for p in order]
    assert turn == sorted(turn) and {p.recipe for p in order[:2]} == {"clip", "dino"}
    assert all(a.recipe != b.recipe and replace(a, recipe="") == replace(b, recipe="") for a, b in zip(order[:10:2], order[1:10:2]))

def test_recipes_that_do_not_exist_are_not_in_it(monkeypatch):
    grid = replace(EMOJI, also=("not there yet",))
    before = s.points(grid)
    monkeypatch.setitem(RECIPES, "not there yet", replace(RECIPES["dino"], title="new"))
    assert [p.recipe for p in s.points(grid) if p not in before] == ["not there yet"]

def test_reckoned_flops_are_those_that_training_counts(results):
    for f in results.glob("*/probes/measured.json"):
        run = next(r for r in s.runs(TINY) if r.name == f.parent.parent.name)
        assert read_json(f)["run"]["flops"] == pytest.approx(run.flops, rel=0.1) # captions differ in length

def test_flops_grow_with_the_model_and_the_samples():
    cost = {r.point: r.flops for r in s.runs(EMOJI)}
    c = s.Point("clip", **EMOJI.centre)
    assert cost[replace(c, size=96)] < cost[c] < cost[replace(c, size=384)]
    assert cost[replace(c, samples=10_240)] == pytest.approx(cost[c] / 4) and cost[replace(c, drawings=0.25)] == cost[c]

# --- fewer drawings

def test_a_smaller_share_lies_in_a_larger_one():
    names = {(x, k): set(stock("train", World.held_out_style, x, k).table.drawing_id) for x in (0.125, 0.25, 0.5, 1.0) for k in (0, 1)}
    for k in (0, 1):
        assert names[0.125, k] < names[0.25, k] < names[0.5, k] < names[1.0, k]
        for x in (0.125, 0.25, 0.5): assert len(names[x, k]) == round(x * len(names[1.0, k]))
    both = len(names[0.25, 0] & names[0.25, 1]) / len(names[0.25, 0])
    assert 0.2 < both < 0.3 # another seed, another quarter

def test_scenes_show_only_their_share():
    quarter = World(source="emoji:0.25")
    allowed = set(stock("train", quarter.held_out_style, 0.25).table.drawing_id)
    seen = [scene(quarter, "train", k)[1].get("drawing_id") for k in range(60)]
    assert {x for x in seen if x} <= allowed
    assert any(scene(World(), "train", k)[1].get("drawing_id") not in allowed | {None} for k in range(60))
    assert all((scene(quarter, "test", k)[0] == scene(World(), "test", k)[0]).all() for k in range(5))

def test_the_whole_is_a_share_too():
    a, b = (scene(World(source=x), "train", 3)[0] for x in ("emoji", "emoji:1"))
    assert (a == b).all() and share_of("emoji:0.5:3") == (0.5, 3)

@pytest.mark.parametrize("source", ["emoji:0", "emoji:1.5", "emoji:half", "emoji:0.5:x", "emoji:0.5:-1", "emoji:0.5:1:2", "emoji:"])
def test_what_is_no_share_is_refused(source):
    with pytest.raises(UserError, match="emoji:SHARE"): World(source=source)

def test_too_few_drawings_are_refused():
    with pytest.raises(UserError, match="larger share"): stock("train", World.held_out_style, 0.001)

# --- running

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "The measurements of a tiny grid that nothing disturbed."
    home = tmp_path_factory.mktemp("scale")
    return s.scale(TINY, home / "runs", home / "results")

def test_measurements_are_small_sealed_and_whole(results):
    runs = s.runs(TINY)
    assert {p.name for p in results.iterdir()} == {r.name for r in runs}
    for r in runs:
        found = {m for k in s.MEASURES for m in read_json(results / r.name / k / "measured.json")["metrics"]}
        assert found == {*s.PROBED.values(), "masks"}
        for k in s.MEASURES:
            for m in read_json(results / r.name / k / "measured.json")["metrics"].values():
                assert len(m["draws"]) == s.DRAWS and min(m["draws"]) <= m["estimate"] <= max(m["draws"]) and m["clusters"] <= m["tests"]
    assert sum(f.stat().st_size for f in results.rglob("*") if f.is_file()) < 30_000 * len(runs)
    assert not any(str(results.parent) in f.read_text() for f in results.rglob("*.json"))

def test_what_is_measured_is_not_run_again(results, tmp_path, monkeypatch):
    monkeypatch.setattr("ccd.training.train", lambda *_, **__: pytest.fail("trained again"))
    before = {f: f.stat().st_mtime_ns for f in results.rglob("*")}
    s.scale(TINY, tmp_path / "another machine", results)
    assert {f: f.stat().st_mtime_ns for f in results.rglob("*")} == before and s.dry(TINY, results).done.all()

def test_only_what_is_missing_is_run(results, tmp_path):
    some = shutil.copytree(results, tmp_path / "results")
    lost = s.runs(TINY)[0]
    shutil.rmtree(some / lost.name)
    assert list(s.dry(TINY, some).done) == [False, True, True]
    s.scale(TINY, tmp_path / "runs", some, only="clip-*")
    assert [p.name for p in (tmp_path / "runs").glob("clip*")] == [lost.name]
    for k in s.MEASURES: # and comes to the same
        a, b = (read_json(x / lost.name / k / "measured.json") for x in (some, results))
        assert a["metrics"] == b["metrics"]

def test_another_experiment_is_refused(results, tmp_path, monkeypatch):
    for change in (dict(changes=TINY.changes | {"control.lr": 1e-4}), dict(changes=TINY.changes | {"world.test_scenes": 100})):
        with pytest.raises(UserError, match="is of another experiment: .* was .*--results"): s.scale(replace(TINY, **change), tmp_path, results)
    monkeypatch.setitem(s.MEASURES, "probes", replace(s.MEASURES["probes"], version=2))
    with pytest.raises(UserError, match="version was 1, is now 2"): s.scale(TINY, tmp_path, results)
    assert not any(tmp_path.iterdir())

def test_another_measure_asks_only_for_itself(results, monkeypatch):
    monkeypatch.setitem(s.MEASURES, "new", s.Measure(1, None))
    assert all([m for m in s.MEASURES if not s.kept(results, r, m)] == ["new"] for r in s.runs(TINY))

def test_foreign_files_are_not_touched(tmp_path):
    home = tmp_path / s.runs(TINY)[0].name / "probes"
    home.mkdir(parents=True); (home / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="files that ccd did not make"): s.scale(TINY, tmp_path / "runs", tmp_path)

def test_unknown_names_are_refused(capsys):
    with pytest.raises(UserError, match="unknown grid 'imagenet': expected one of"): s.find_grid("imagenet")
    with pytest.raises(UserError, match="no run matches 'siglip'"): s.chosen(TINY, "siglip")
    with pytest.raises(UserError, match="expected one of torchrun, slurm"): s.commands("smoke", "kubernetes", "out")
    with pytest.raises(SystemExit): main(["scale", "imagenet", "--dry"])
    assert "unknown grid" in capsys.readouterr().err

def test_killed_while_it_trains_it_goes_on(tmp_path, cache):
    command = ["scale", "smoke", "--only", "clip-w48-d1", "--out", tmp_path / "runs", "--results", tmp_path / "results"]
    run = tmp_path / "runs" / "clip-w48-d1-n256-px48-s0"
    code = signal_when(start(*command), lambda: (run / "timing.jsonl").exists(), signal.SIGTERM)[1]
    assert code == 2 and step_of(run) and not (tmp_path / "results").exists()
    done = step_of(run)
    said, code = finish(start(*command))
    assert code == 0, said
    started = [t["started_at"] for t in map(json.loads, (run / "timing.jsonl").read_text().splitlines()) if "started_at" in t]
    assert started == [0, done] and (tmp_path / "results" / run.name / "masks" / "measured.json").exists()

# --- commands

def test_dry_runs_nothing(tmp_path, capsys):
    main(["scale", "emoji", "--dry", "--out", str(tmp_path / "runs"), "--only", "clip"])
    said = capsys.readouterr().out
    assert f"to do: {sum(p.recipe == 'clip' for p in s.points(EMOJI))} runs" in said and "TFLOP" in said and not any(tmp_path.iterdir())

def settings_said(line): # what `ccd train` makes of its options
    import tyro
    args = shlex.split(line)[shlex.split(line).index("train") + 1:]
    seen = {}
    def train(recipe: tyro.conf.Positional[str], settings: AnySettings, out: str = ""): seen.update(recipe=recipe, settings=settings, out=out)
    from functools import partial
    tyro.cli(partial(train, settings=starting_point(train_command, args)), args=args)
    return seen

@pytest.mark.parametrize("grid", s.GRIDS)
def test_commands_train_the_runs_of_the_grid(grid):
    lines = s.commands(grid, "torchrun", "runs/x", "results/x").splitlines()
    every = s.runs(s.GRIDS[grid])
    assert len(lines) == len(every)
    for line, r in zip(lines, every):
        said = settings_said(line.partition(" && ")[0])
        objective = RECIPES[r.point.recipe].objective
        assert said["recipe"] == r.point.recipe and said["out"] == f"runs/x/{r.name}"
        assert run_settings(objective, said["settings"]) == run_settings(objective, r.settings) and said["settings"].world == r.settings.world
        assert f"--only {r.name} " in line and "--results results/x" in line

def test_slurm_gets_one_job_a_run():
    said = s.commands("smoke", "slurm", "runs/x")
    assert "--array=0-2" in said and said.count("torchrun") == 3
    import subprocess
    body = "\n".join(l for l in said.splitlines() if not l.startswith("eval")) + '\necho "${#runs[@]}"; echo "${runs[1]}"'
    lines = subprocess.run(["bash", "-c", body], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["3", s.commands("smoke", "torchrun", "runs/x").splitlines()[1]]
