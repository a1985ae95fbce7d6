"The planned contrasts of the grid `controlled`: intervals over seeds, baselines, verdicts."
import json
import numpy as np, pandas as pd, pytest
from scipy import stats
from ccd.files import UserError
from ccd.presets import RECIPES
from ccd.study.scaling import contrasts
from ccd.study.scaling.grid import GRIDS

CENTER = dict(size=1, drawings=1.0, samples=8, pixels=1)
ITEMS = np.random.default_rng(0).normal(scale=0.01, size=200)

def arm(recipe, estimates, metric="category", items=ITEMS):
    return [dict(recipe=recipe, metric=metric, seed=seed, estimate=value, draws=value + items,
                 flops=1.0) | CENTER for seed, value in enumerate(estimates)]

def hog(value, metric="category", items=ITEMS):
    return pd.DataFrame([dict(baseline="hog:8", metric=metric, estimate=value,
                              draws=value + items)])

def contrast(rows, baselines, metrics=("category",)):
    return contrasts._contrast_table(pd.DataFrame(rows), baselines, CENTER, metrics)

def test_a_contrast_is_that_of_two_means_by_a_pooled_t_test():
    # the same items move both sides and the baseline, so that seeds alone are left
    first, second = [0.50, 0.53, 0.55], [0.40, 0.41, 0.45]
    row = contrast(arm("infonce", first) + arm("dino", second), hog(0.3)).iloc[0]
    reference = stats.ttest_ind(first, second)
    low, high = reference.confidence_interval(0.95)
    assert row.value == pytest.approx(np.mean(first) - np.mean(second))
    assert (row.total_ci_low, row.total_ci_high) == pytest.approx((low, high))
    assert row.p_holm == pytest.approx(reference.pvalue) and row.df == pytest.approx(4)
    assert row.verdict == "InfoNCE is ahead"

def test_the_variance_of_seeds_is_pooled_over_all_arms():
    rows = arm("infonce", [0.5, 0.6]) + arm("dino", [0.4, 0.4]) + arm("clip", [0.5, 0.5, 0.5])
    pooled = contrasts._pooled_variance(pd.DataFrame(rows))
    assert pooled == {"category": (pytest.approx(0.1**2 / 2 / 4), 4)}

def test_there_is_no_verdict_by_one_seed_or_below_the_best_baseline():
    one = contrast(arm("infonce", [0.5]) + arm("dino", [0.4]), hog(0.3)).iloc[0]
    assert one.verdict == "none yet: one seed" and one.learned
    rows = arm("infonce", [0.5, 0.51]) + arm("dino", [0.4, 0.41])
    assert contrast(rows, hog(0.7)).verdict[0] == "none: no side is above the best baseline"
    best = pd.concat([hog(0.7).assign(baseline="patches:400"), hog(0.3)])
    assert contrast(rows, best).verdict[0] == "none: no side is above the best baseline"
    assert contrast(rows, hog(0.3)).verdict[0] == "InfoNCE is ahead"

def test_an_equal_contrast_cannot_be_told():
    rows = arm("infonce", [0.5, 0.52]) + arm("dino", [0.52, 0.5])
    assert contrast(rows, hog(0.3)).verdict[0] == "cannot be told"

def test_the_measures_of_a_contrast_are_corrected_together_and_contrasts_apart():
    metrics, rng = ("category", "style"), np.random.default_rng(1)
    rows = [row for metric in metrics for recipe, low in (("infonce", 0.5), ("dino", 0.47),
                                                          ("clip-dino-views", 0.6))
            for row in arm(recipe, low + rng.normal(scale=0.01, size=3), metric)]
    both = pd.concat([hog(0.1), hog(0.1, "style")])
    table = contrast(rows, both, metrics)
    assert set(zip(table["first"], table.second)) == {("clip-dino-views", "infonce"),
        ("infonce", "dino"), ("clip-dino-views", "dino")} # whose two sides are measured
    for _, own in table.groupby(["first", "second"]):
        single = [contrasts.t_test(row) for row in own.to_dict("records")]
        assert sorted(own.p_holm)[0] == pytest.approx(min(1, 2 * min(single)))

def test_words_from_patch_tokens_are_compared_with_the_vector_of_a_baseline():
    rows = arm("dino", [0.5, 0.5], "word, patches")
    table = contrasts._arms_table(pd.DataFrame(rows), hog(0.3, "word"), CENTER, ("word, patches",))
    assert table.baseline[0] == "hog:8" and table.above[0] == pytest.approx(0.2)
    bare = contrasts._arms_table(pd.DataFrame(rows), hog(0.3, "style"), CENTER, ("word, patches",))
    assert not bare.learned[0] and bare.baseline[0] == ""

def test_the_contrasts_are_those_of_the_grid():
    grid = GRIDS["controlled"]
    named = {recipe for contrast in contrasts._CONTRASTS for recipe in contrast[:2]}
    assert named == {*grid.recipes, *grid.center_recipes} <= set(RECIPES)

def test_baselines_are_read_and_a_damaged_one_is_named(tmp_path):
    assert contrasts._read_baselines(tmp_path).empty
    file = tmp_path / "baselines/hog-8/tasks/measured.json"
    file.parent.mkdir(parents=True)
    entry = dict(estimate=0.5, draws=[0.4, 0.6], tests=3, clusters=2)
    file.write_text(json.dumps(dict(baseline="hog:8", metrics=dict(category=entry))))
    row = contrasts._read_baselines(tmp_path).iloc[0]
    assert (row.baseline, row.metric) == ("hog:8", "category") and len(row.draws) == 2
    file.write_text(json.dumps(dict(baseline="hog:8")))
    with pytest.raises(UserError, match="metrics"): contrasts._read_baselines(tmp_path)
