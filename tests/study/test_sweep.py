"The search of recipes: equal numbers of trials, stages around the best, nothing made twice."
import json
import pandas as pd
import pytest
from ccd.files import UserError, read_json, to_plain_dict
from ccd.presets import apply_recipe, preset
from ccd.runs import read_manifest
from ccd.settings import override
from ccd.study.scaling import sweep as search
from ccd.study.scaling.grid import GRIDS
from schemas import RESULTS

def run(score):
    "Search with a function of the changes as score; return the trials of each recipe."
    made = {}
    for recipe in search._OWN_CHANGES:
        done = made[recipe] = []
        while stage := search._next_trials(recipe, done):
            done += [(changes, score(changes)) for changes in stage]
    return made

def test_each_recipe_has_the_same_number_of_trials_and_all_fit_the_budget():
    made = run(lambda changes: changes["control.lr"])
    assert {len(trials) for trials in made.values()} == {len(search._STAGES)}
    assert sum(map(len, made.values())) <= 40
    for trials in made.values():
        names = [search._format_changes(changes) for changes, _ in trials]
        assert len(set(names)) == len(names)

@pytest.mark.parametrize("rate", search._RATES)
@pytest.mark.parametrize("size", [None, *search._BATCH_SIZES])
def test_later_stages_start_from_the_best_trial(rate, size):
    def score(changes):
        return (changes["control.lr"] == rate) + (changes.get("control.batch_size") == size)
    for trials in run(score).values():
        later = [changes for changes, _ in trials[len(search._RATES):]]
        assert all(changes["control.lr"] == rate for changes in later)
        own = later[len(search._BATCH_SIZES):]
        assert all(changes.get("control.batch_size") == size for changes in own)

def test_the_search_leaves_the_shared_views_alone():
    shared = {"dino.global_scale", "dino.local_scale", "dino.jitter", "dino.flip"}
    assert not any(shared & own.keys() for changes in search._OWN_CHANGES.values()
                   for own in changes)

def test_a_search_is_stored_and_resumed(tmp_path, monkeypatch):
    from ccd.training import loop
    settings = override(preset("smoke"), **{"data.source": "emoji-2", "data.scenes": 256,
                                            "control.samples": 256})
    monkeypatch.setattr(search, "_STAGES", search._STAGES[:4])
    monkeypatch.setattr(search, "_BATCH_SIZES", (64,))
    table = search.sweep(settings, tmp_path / "runs", tmp_path / "results", ("infonce",))
    assert [*table.recipe] == ["untrained"] + ["infonce"] * 4
    winner = table[table.best].squeeze()
    trials = table[table.recipe == "infonce"]
    assert winner.recipe == "infonce" and winner.score >= trials.score.max()
    measured = table[[*search._MEASURED_TASKS]]
    assert ((measured >= 0) & (measured <= 1)).all(axis=None)
    scored = measured[["category", "subcategory", "style", "word in new fonts"]] # no colors
    assert (scored.mean(axis=1) - table.score).abs().max() < 1e-9
    def twice(*_, **__): raise AssertionError("trained again")
    monkeypatch.setattr(loop, "train", twice)
    again = search.sweep(settings, tmp_path / "runs", tmp_path / "results", ("infonce",))
    pd.testing.assert_frame_equal(again, table)
    trial = json.loads(next((tmp_path / "results/infonce").glob("*/trial.json")).read_text())
    assert trial["machine"]["torch"]

def test_the_grid_takes_what_the_stored_search_has_selected():
    table = search._sweep_table(RESULTS / "sweep")
    trials = table[table.recipe != "untrained"]
    assert set(trials.groupby("recipe").size()) == {len(search._STAGES)}
    grid = GRIDS["controlled"]
    center = preset(grid.base)
    assert {recipe for recipe in trials.recipe} < set(grid.tuned)
    for recipe, own in trials[trials.best].groupby("recipe"):
        trial = next(trial for path in (RESULTS / "sweep" / recipe).glob("*/trial.json")
                     if (trial := read_json(path))["number"] == own.number.item())
        wanted = override(apply_recipe(recipe, center), **trial["changes"])
        assert override(apply_recipe(recipe, center), **grid.tuned[recipe]) == wanted, recipe

def test_the_search_is_of_these_settings():
    stored = read_manifest(RESULTS / "sweep")["settings"]
    center = preset(GRIDS["controlled"].base)
    assert stored["control"] == to_plain_dict(override(
        center, **{"control.samples": 150_000}).control)
    assert stored["data"]["source"] == center.data.source

def test_bad_requests_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no search space for mae: expected some of dino"):
        search.sweep(preset("controlled"), tmp_path, tmp_path, ("mae",))
    with pytest.raises(UserError, match="--data.source emoji-2"):
        search.sweep(preset("mini"), tmp_path, tmp_path)
    with pytest.raises(UserError, match="no trials in"):
        search._sweep_table(tmp_path)
