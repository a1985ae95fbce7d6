"""The room of probes: parents answer for robustness sets, differences are paired, floors come
along, a kill loses nothing."""
import json, math
import numpy as np, pandas as pd, pytest
from ccd.probing.tables import (_eval_val_splits, compare_arms, compare_probes, few_shot_rows,
                                knn_callback, predict_probes, score_probes, segmentation_splits,
                                tasks_where_better)
from ccd.encoders.inputs import display_names
from ccd.probing.command import _default_baselines, _group_by_source_dataset
from ccd.files import UserError, load_table, read_json
from ccd.presets import BASELINE_SPECS
from ccd.encoders.embeddings import Embeddings
from ccd.encoders.loading import load
from ccd.report.similarity import BASELINES
from ccd.stats import holm, paired_bootstrap, paired_test, sign_flip
from ccd.probing.tasks import _Fold, Task, _Subset
from conftest import OPTIONS, finish, signal_when, start

pytestmark = pytest.mark.numeric

LETTERS = np.array(list("abcd"))

def embedded(y, seed, gap=1.0, d=8, name="e"):
    "Features around one mean a class; the means are the same for every seed."
    means = np.random.default_rng(99).normal(size=(4, d)) * gap
    x = means[y] + np.random.default_rng(seed).normal(size=(len(y), d))
    items = pd.DataFrame(dict(item_id=[f"{name}-{k}" for k in range(len(y))], label=LETTERS[y],
                              family=np.arange(len(y)) // 3))
    return Embeddings(x.astype(np.float16), items, dict(name=name))

@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    y, other = rng.integers(0, 4, 600), rng.integers(0, 4, 200)
    vectors = dict(base=embedded(y, 1), shifted=embedded(other, 2, name="s"))
    def part(a, b):
        return _Subset("base", np.arange(a, b))
    tasks = [Task("far", "far", "robustness", "label", "item_id",
                  [_Fold(None, None, _Subset("shifted", np.arange(200)))], parent="near"),
             Task("near", "near", "general", "label", "family",
                  [_Fold(part(0, 300), part(300, 400), part(400, 600))])]
    return vectors, tasks

def test_the_probe_of_the_parent_answers_for_a_robustness_set(world):
    vectors, tasks = world
    answers, paths = predict_probes(vectors, tasks) # the parent comes second in the list
    assert set(paths.task) == {"near"} and (answers.groupby("task").size() == 200).all()
    far, near = (answers[answers.task == t] for t in ("far", "near"))
    assert (far.linear == far.label).mean() > 0.6 and (far.knn == far.label).mean() > 0.6
    swapped = dict(vectors, shifted=vectors["base"].rows(np.arange(400, 600)))
    again = predict_probes(swapped, tasks)[0].query("task == 'far'")
    assert ((again.linear.values == near.linear.values).all()
            and (again.knn.values == near.knn.values).all())

def test_other_cuts_hold_back_other_rows(world, monkeypatch):
    from ccd.probing import tables as probing_tables
    vectors, (far, near) = world
    fold, asked = near.folds[0], []
    def cut(name, items, seed=0):
        assert items.keys() == vectors.keys()
        mixed = np.random.default_rng(seed).permutation(400)
        f = _Fold(*(_Subset("base", np.sort(mixed[a:b])) for a, b in ((0, 40), (40, 400))),
                 fold.test)
        asked.append((name, seed))
        return [Task(**(vars(near) | dict(folds=[f])))] if name == "near" else [far]
    monkeypatch.setattr(probing_tables, "tasks", cut)
    t = _eval_val_splits(vectors, ["near", "far"], 3)
    assert asked == [(n, k) for k in range(3) for n in ("near", "far")]
    assert (t.val_split_seed.tolist() == [0, 0, 1, 1, 2, 2]
            and t.groupby("task").top1.nunique().max() > 1)
    answers, paths = predict_probes(vectors, cut("near", vectors, 2) + [far])
    last = t[t.val_split_seed == 2].set_index("task")
    for n, a in answers.groupby("task"): assert last.top1[n] == (a.linear == a.label).mean()
    assert (last.l2 == paths.l2[paths.chosen].iloc[0]).all()

def test_a_set_with_fewer_classes_is_answered_among_them(world):
    vectors, tasks = world
    tasks[0].classes = ["a", "b"]
    far = predict_probes(vectors, tasks)[0].query("task == 'far'")
    assert set(far.linear) | set(far.knn) == {"a", "b"}

def test_rows_of_the_table_are_what_the_answers_say(world):
    vectors, tasks = world
    answers, paths = predict_probes(vectors, tasks)
    t = score_probes(answers, paths, tasks, 200).set_index("task")
    near = answers[answers.task == "near"]
    within = [(g.linear == g.label).mean() for _, g in near.groupby("label")]
    assert t.linear["near"] == pytest.approx((near.linear == near.label).mean())
    assert (t.balanced["near"] == pytest.approx(np.mean(within)) and t.n_test["near"] == 200
            and t.n_groups["near"] == near.cluster.nunique())
    assert ((t.linear_ci_low <= t.linear) & (t.linear <= t.linear_ci_high) & (t.knn_ci_low <= t.knn)
            & (t.knn <= t.knn_ci_high)).all()
    commonest = vectors["base"].items.label[:300].mode()[0]
    assert t.majority["near"] == pytest.approx((near.label == commonest).mean())
    assert t.probe_from["far"] == "near" and t.l2["far"] == t.l2["near"]
    of = near.groupby("cluster").apply(lambda g: (g.linear == g.label).mean(), include_groups=False)
    assert (t.group_mean["near"] == pytest.approx(of.mean())
            and t.n_effective_groups["near"]
            == pytest.approx(200**2 / (near.groupby("cluster").size()**2).sum()))
    # each stands alone
    assert (t.group_mean["far"] == pytest.approx(t.linear["far"])
            and t.n_effective_groups["far"] == t.n_groups["far"] == 200)

def test_tasks_that_learn_the_same_are_fitted_once(world, monkeypatch):
    from ccd.probing import tables as probing_tables
    vectors, (_, near) = world
    fits, real = [], probing_tables._fit_probes
    monkeypatch.setattr(probing_tables, "_fit_probes", lambda *a: fits.append(1) or real(*a))
    f = near.folds[0]
    half = Task("near", "half", "general", "label", "family",
                [_Fold(f.train, f.val, _Subset("base", np.arange(400, 500)))])
    answers, _ = predict_probes(vectors, [near, half])
    assert len(fits) == 1
    one, two = (answers[answers.task == t].set_index("item_id") for t in ("near", "half"))
    assert (one.linear[two.index] == two.linear).all()

def test_no_test_row_is_learnt_from(world):
    vectors, tasks = world
    before = predict_probes(vectors, tasks)[0]
    e = vectors["base"]
    x = np.array(e.vectors)
    x[400:] = 0 # only test rows change
    after = predict_probes(dict(vectors, base=Embeddings(x, e.items, e.card)), tasks)[0]
    def far(a):
        return a[a.task == "far"][["linear", "knn"]].values
    assert (far(before) == far(after)).all()

def answered(name, right, cluster=None):
    n = np.arange(len(right))
    said = np.where(right, "yes", "no")
    return pd.DataFrame(dict(encoder=name, task="t", item_id=n,
                             cluster=n if cluster is None else cluster, label="yes", linear=said,
                             knn=said[::-1]))

def test_a_difference_is_paired_and_knows_its_clusters():
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.7, rng.random(400) < 0.6
    family = np.arange(400) // 4
    for cluster in (None, family):
        d = compare_probes(pd.concat([answered("a", a, cluster), answered("b", b, cluster)]), "a",
                           "b", 500).set_index("probe")
        own = np.arange(400) if cluster is None else cluster
        assert d.difference["linear"] == pytest.approx(a.mean() - b.mean())
        assert ((d.ci_low["linear"], d.ci_high["linear"])
                == pytest.approx(paired_bootstrap(a.astype(float), b.astype(float), own, 500)[1:]))
        assert d.p["linear"] == paired_test(a, b, own) == d.p_holm["linear"]
        assert (d.group_mean["linear"]
                == pytest.approx(np.mean([(a[own == c] * 1.0 - b[own == c]).mean()
                                          for c in np.unique(own)])))
    same = compare_probes(pd.concat([answered("a", a), answered("b", a)]), "a", "b", 100)
    assert (same.difference == 0).all() and (same.p == 1).all()

def test_encoders_that_answered_other_items_are_refused():
    a, b = answered("a", np.ones(5, bool)), answered("b", np.ones(5, bool))
    b["item_id"] += 1
    with pytest.raises(UserError, match="same items of t: probe them together"):
        compare_probes(pd.concat([a, b]), "a", "b")

def test_above_needs_every_interval_to_leave_out_zero():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.6, rng.random(200) < 0.3
    close = a.copy(); close[rng.integers(0, 200, 6)] ^= True
    t = pd.concat([answered("a", a), answered("b", b), answered("close", close)])
    d = pd.concat([compare_probes(t, x, y, 500) for x in "ab"
                   for y in ("a", "b", "close") if x != y])
    assert tasks_where_better(d, "a", ("b",)) == ["t"] == tasks_where_better(d, "a", ("b",), "knn")
    assert (tasks_where_better(d, "a", ("b", "close")) == [] == tasks_where_better(d, "b", ("a",))
            == tasks_where_better(d, "a", ("b", "nobody")))

def test_several_tests_are_corrected_as_holm_says():
    p = np.random.default_rng(0).random(12)
    order, out, most = np.argsort(p), np.empty(12), 0.0
    for k, i in enumerate(order): most = max(most, min(1, (12 - k) * p[i])); out[i] = most
    assert np.allclose(holm(p), out)
    assert np.isnan(holm([0.01, np.nan])[1]) and holm([0.01, np.nan])[0] == 0.01

def test_dealt_signs_are_uniform_where_nothing_differs_and_know_clusters():
    found = []
    for seed in range(200):
        rng, image = np.random.default_rng(seed), np.repeat(np.arange(40), 5)
        # five answers of an image are nearly one
        both = rng.normal(size=(2, 40))[:, image] + rng.normal(size=(2, 200)) * 0.1
        found.append((sign_flip(*both, image, 400), sign_flip(*both, np.arange(200), 400)))
    honest, naive = (np.array(found) < 0.1).mean(0)
    assert 0.04 < honest < 0.18 and naive > 0.3

def test_few_examples_are_of_train_and_the_same_for_every_encoder(world):
    vectors, tasks = world
    t = few_shot_rows(vectors, tasks, (1, 16), 3)
    assert set(t.task) == {"near"} and len(t) == 6
    assert t[t.shots == 16].top1.mean() > t[t.shots == 1].top1.mean()
    e = vectors["base"]
    worse = np.array(e.vectors); worse[300:400] = 0 # what validates is not learnt from
    assert few_shot_rows(dict(vectors, base=Embeddings(worse, e.items, e.card)), tasks, (1, 16),
                         3).equals(t)

def test_floors_come_along_once():
    handmade = list(BASELINE_SPECS.values())
    assert (_default_baselines(["hf:x"]) == ["random:0", *handmade]
            and _default_baselines(["pixels:8"]) == ["random:0", *handmade[1:]])
    assert _default_baselines(["random:3", *handmade]) == []

def test_baselines_have_the_names_of_the_figures():
    assert ("random ViT", *BASELINE_SPECS) == BASELINES
    assert display_names({spec: dict(name=load(spec).card.name, training="none")
                          for spec in list(BASELINE_SPECS.values())[:3]}) == {
        spec: title for title, spec in list(BASELINE_SPECS.items())[:3]}

def test_the_first_weights_of_a_run_are_its_floor(whole):
    spec = f"ccd:{whole}/train/clip-0"
    assert _default_baselines([spec]) == [f"first:{spec}", *BASELINE_SPECS.values()]

def test_robustness_sets_bring_their_parent():
    assert (_group_by_source_dataset(["cifar10.1", "emoji", "cifar10"])
            == {"cifar10": ["cifar10", "cifar10.1"], "emoji": ["emoji"]})
    with pytest.raises(UserError, match="unknown data set"): _group_by_source_dataset(["cifar11"])

def test_every_encoder_has_a_name_of_its_own():
    def card(name, training=""):
        return dict(name=name, training=training)
    names = display_names({"ccd:a": card("CLIP", "CLIP, 9 samples, seed 0"),
                           "ccd:b": card("CLIP", "CLIP, 9 samples, seed 1"),
                      "ccd:c": card("CLIP", "CLIP, 9 samples, seed 1"),
                           "pixels:16": card("pixels-16")})
    assert (names
            == {"ccd:a": "CLIP", "ccd:b": "CLIP seed 1 (ccd:b)", "ccd:c": "CLIP seed 1 (ccd:c)",
                "pixels:16": "raw pixels"})

# --- the command

def test_the_command_from_a_folder_of_classes(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    for name, color in dict(red=(220, 40, 40), blue=(40, 40, 220), green=(40, 200, 60)).items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(30):
            x = np.clip(np.array(color) + rng.normal(0, 25, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(x).save(tmp_path / "pictures" / name / f"{k}.png")
    said, code = finish(start("probe", "colors:3", f"folder:{tmp_path}/pictures", *OPTIONS, "--out",
                              tmp_path / "out",
                              "--save-tables", tmp_path / "results", "--val-splits", 2))
    assert code == 0, said
    cuts = pd.read_csv(tmp_path / "results/cuts.csv").pivot(index="encoder",
                                                            columns="val_split_seed",
                                                            values="top1")
    t = pd.read_csv(tmp_path / "results/accuracy.csv").set_index("encoder")
    assert np.allclose(cuts[0], t.linear[cuts.index]) and list(cuts) == [0, 1]
    assert (t.linear["colors-3"] > 0.95 and t.n_test.eq(90).all()
            and set(t.index) == {"colors-3", *BASELINES})
    assert "colors-3" in said and str(tmp_path / "out/report.html") in said
    m = read_json(tmp_path / "results/manifest.json")
    assert (m["command"].startswith("ccd probe colors:3 folder:")
            and set(m["outputs"])
            == {p.name for p in (tmp_path / "results").iterdir()} - {"manifest.json"})

def test_a_kill_loses_nothing(tmp_path):
    args = ("probe", "colors:3", "emoji", *OPTIONS)
    done, code = finish(start(*args, "--out", tmp_path / "whole"))
    assert code == 0, done
    answers = tmp_path / "killed" / "answers"
    signal_when(start(*args, "--out", tmp_path / "killed"),
                lambda: any(answers.rglob("manifest.json")), 9)
    first = {p: p.stat().st_mtime_ns for p in answers.rglob("answers.parquet")}
    said, code = finish(start(*args, "--out", tmp_path / "killed"))
    assert code == 0, said
    assert all(p.stat().st_mtime_ns == t for p, t in first.items())
    def tables(out):
        return {p.name: p.read_bytes() for p in (tmp_path / out / "tables").glob("*.csv")}
    assert ({"accuracy.csv", "differences.csv", "few_shot.csv"} <= set(tables("whole"))
            and tables("whole") == tables("killed"))

# --- while it trains

def test_watching_changes_nothing_and_sees_what_is_kept(tiny, corpus, tmp_path):
    from ccd.data.emoji import scenes
    from ccd.training.loop import train
    for objective in ("clip", "dino"):
        plain = train(objective, tiny, corpus, tmp_path / f"{objective}-plain")
        watch = knn_callback(tiny.control, scenes.single_drawings(tiny.data),
                             tmp_path / f"{objective}.jsonl", 3)
        watched = train(objective, tiny, corpus, tmp_path / f"{objective}-watched", watch)
        assert (read_json(plain / "manifest.json")["outputs"]
                == read_json(watched / "manifest.json")["outputs"])
        seen = pd.read_json(tmp_path / f"{objective}.jsonl", lines=True)
        assert seen.step.tolist() == [0, 13, 27, 40] and seen.knn.between(0, 1).all()

def test_what_was_watched_after_the_last_checkpoint_is_forgotten(tmp_path):
    from ccd.probing.tables import _note
    for step in (0, 5, 10, 15): _note(tmp_path / "w.jsonl", dict(step=step, knn=0.1))
    _note(tmp_path / "w.jsonl", dict(step=10, knn=0.2))
    assert [json.loads(l) for l in (tmp_path / "w.jsonl").read_text().splitlines()] == [
        dict(step=0, knn=0.1), dict(step=5, knn=0.1), dict(step=10, knn=0.2)]

# --- pixel by pixel

def test_masks_of_a_named_set_are_cut_for_validation(monkeypatch, tiny):
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as Picture
    from ccd.probing import tables as probing_tables
    rng = np.random.default_rng(0)
    columns = Features(item_id=Value("string"), image=Image(), annotation=Image(),
                       pixel_hash=Value("string"), split=Value("string"))
    def made(part, n):
        def picture(a):
            return Picture.fromarray(a.astype(np.uint8))
        return Dataset.from_list([dict(item_id=f"{part}-{k}",
                                       image=picture(rng.integers(0, 255, (20, 20, 3))),
                                       pixel_hash=str(k), split=part,
                                       annotation=picture(np.full((20, 20), k % 151)))
                                  for k in range(n)], features=columns)
    monkeypatch.setattr(probing_tables, "_open_dataset",
                        lambda name, settings: {f"{name}-{p}": made(p, n)
                                                for p, n in (("train", 40), ("test", 8))})
    train, val, test = segmentation_splits("ade20k", tiny)
    assert (len(train), len(val), len(test)) == (36, 4, 8) and len(train.classes) == 150
    # 1 is the first class
    assert (val.corpus["item_id"][:] == [f"train-{k}" for k in range(36, 40)]
            and (val.mask(1) == 36).all())
    assert (train.mask(0) == 255).all() and (test.mask(7) == 6).all() # 0 is not counted
    assert set(train.cluster).isdisjoint(val.cluster)

def test_heads_are_kept_as_they_were(tmp_path):
    from ccd.probing.tables import (read_segmentation, save_segmentation, segmentation_differences,
                                    segmentation_rows)
    from ccd.probing.segmentation import Segmentation, miou
    rng = np.random.default_rng(0)
    def head(luck):
        truth = rng.integers(0, 50, (30, 2)) + 1
        hit = (truth * luck).astype(int)
        return Segmentation(["ground", "thing"],
                            np.stack([hit, truth, hit + (truth - hit)[:, ::-1]], 1), np.eye(2),
                            np.arange(30) // 3,
                            path=pd.DataFrame(dict(l2=[1.0, 0.1], chosen=[False, True])))
    good, poor = head(0.9), head(0.4)
    poor.counts[:, 1] = good.counts[:, 1]
    for n, s in dict(good=good, poor=poor).items():
        (tmp_path / n).mkdir(); save_segmentation(s, tmp_path / n)
    found = {n: read_segmentation(tmp_path / n) for n in ("good", "poor")}
    assert all(np.array_equal(found[n].counts, s.counts)
               for n, s in dict(good=good, poor=poor).items())
    rows = segmentation_rows(found, found["poor"], "made", 100).set_index("encoder")
    assert (rows.linear["good"] == pytest.approx(miou(good.counts.sum(0)))
            and rows.l2["good"] == 0.1 and rows.n_groups["good"] == 10)
    d = segmentation_differences(found, [("good", "poor"), ("good", "nobody")], "made", 100)
    assert (len(d) == 1 and d.ci_low[0] > 0
            and d.difference[0] == pytest.approx(rows.linear["good"] - rows.linear["poor"]))

def test_an_encoder_with_text_names_and_finds(whole, tiny, tmp_path):
    from ccd.data.emoji import scenes
    from ccd.probing.zeroshot import _zero_shot_rows
    corpora = dict(gallery=scenes.single_drawings(tiny.data))
    named, found = _zero_shot_rows(f"ccd:{whole}/train/clip-0", "emoji", corpora, tiny, tmp_path)
    names = len({n
                 for n, s in zip(corpora["gallery"]["name"][:], corpora["gallery"]["split"][:])
                 if s == "test"})
    assert (named.k.tolist() == [k for k in (1, 5) if k <= names]
            and (named.n_classes == names).all()
            and named.accuracy.is_monotonic_increasing)
    assert (set(found.direction) == {"image to text", "text to image"}
            and found.recall.between(0, 1).all() and (found.without_caption == 0).all())
    stored = load_table(whole / "probes/tables/zero_shot.csv").query("encoder == 'CLIP'")
    assert stored.accuracy.tolist() == pytest.approx(named.accuracy.tolist())
    none, nothing = _zero_shot_rows("pixels:16", "emoji", corpora, tiny, tmp_path)
    assert not len(none) and not len(nothing)

def answers_of(seeds, n_items=600, n_clusters=60, seed=0):
    "Predictions of CLIP, DINO and HOG, whose accuracies differ by arm and by seed."
    rng, tables = np.random.default_rng(seed), []
    label, cluster = rng.integers(0, 5, n_items).astype(str), rng.integers(0, n_clusters, n_items)
    hard = rng.random(n_items)
    for name, level in seeds.items():
        right = hard < level + 0.05 * rng.standard_normal(n_items)
        said = np.where(right, label, "none")
        tables.append(pd.DataFrame(dict(task="t", item_id=np.arange(n_items), label=label,
                                        cluster=cluster, linear=said, knn=said, encoder=name)))
    return pd.concat(tables, ignore_index=True)

SEEDED = {"CLIP": 0.70, "CLIP seed 1": 0.64, "DINO": 0.52, "DINO seed 1": 0.50, "HOG": 0.4}

def test_intervals_over_seeds_are_those_of_the_formula():
    answers = answers_of(SEEDED)
    table = compare_arms(answers, 4_000).query("probe == 'linear'").set_index(["a", "b"])
    share = {name: (own.linear == own.label).groupby(own.cluster).agg(["sum", "size"])
             for name, own in answers.groupby("encoder")}
    level = {name: own["sum"].sum() / own["size"].sum() for name, own in share.items()}
    assert table.loc[("CLIP", ""), "value"] == pytest.approx(
        (level["CLIP"] + level["CLIP seed 1"]) / 2)
    apart = [(level[arm] - level[f"{arm} seed 1"]) ** 2 / 2 for arm in ("CLIP", "DINO")]
    variance = np.mean(apart) # pooled over two arms of two seeds
    rng, drawn = np.random.default_rng(1), []
    for _ in range(4_000): # families, resampled by a plain loop
        some = rng.integers(0, len(share["CLIP"]), len(share["CLIP"]))
        mean = {name: own["sum"].values[some].sum() / own["size"].values[some].sum()
                for name, own in share.items()}
        drawn.append((mean["CLIP"] + mean["CLIP seed 1"] - mean["DINO"] - mean["DINO seed 1"]) / 2)
    row = table.loc[("CLIP", "DINO")]
    assert row.se == pytest.approx(math.sqrt(np.var(drawn) + variance), rel=0.06)
    assert row.total_ci_low < row.ci_low and row.total_ci_high > row.ci_high
    hog = table.loc[("CLIP", "HOG")] # a baseline has no runs, so only CLIP's vary
    only_items = math.sqrt(max(0, hog.se**2 - variance / 2))
    assert hog.ci_high - hog.ci_low == pytest.approx(2 * 1.96 * only_items, rel=0.06)
    assert (table.n_seeds_a["CLIP"] == 2).all() and ("HOG", "CLIP") not in table.index

def test_without_a_second_seed_there_are_no_arms():
    assert compare_arms(answers_of({"CLIP": 0.7, "DINO": 0.5}), 50).empty
