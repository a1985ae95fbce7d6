"Probes against independent implementations."
import json, os, subprocess, sys
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from ccd.probing import linear, protocols
from ccd.files import UserError
from ccd.probing.linear import _L2_GRID, _per_class, accuracy, fit_logistic, linear_probe
from ccd.probing.protocols import PROTOCOLS, _lr_schedule, few_shot, knn_probe, sgd_probe

pytestmark = pytest.mark.numeric

def problem(n, d, classes, seed, gap=1.0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    return (rng.normal(size=(n, d)) + gap * rng.normal(size=(classes, d))[y]).astype(np.float32), y

def thirds(n): return [np.arange(n) % 3 == k for k in range(3)]

def chances(w, x):
    z = x @ w[:-1] + w[-1]
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)

def penalised(w, x, y, ridge):
    return -np.log(chances(w, x)[np.arange(len(y)), y]).mean() + ridge / 2 * (w[:-1]**2).sum()

def scikit(x, y, ridge):
    "Weights [d + 1, c] of scikit-learn's minimum. It penalises one column of two classes."
    from sklearn.linear_model import LogisticRegression
    two = y.max() == 1
    s = LogisticRegression(C=(2 if two else 1) / (len(x) * ridge), tol=1e-9,
                           solver="newton-cholesky").fit(x.astype(float), y)
    w = np.vstack([s.coef_.T, s.intercept_])
    return np.hstack([-w, w]) / 2 if two else w

# Linear

@pytest.mark.parametrize("n, d, classes, ridge",
                         [(80, 5, 2, 1e-1), (150, 20, 7, 1e-2), (60, 40, 3, 1e-3),
                                                  (400, 10, 5, 1e-4)])
def test_logistic_is_scikit_learns_to_the_third_digit(n, d, classes, ridge):
    x, y = problem(n, d, classes, n, gap=0.5)
    ours, theirs = fit_logistic(x, y, classes, ridge).astype(float), scikit(x, y, ridge)
    assert penalised(ours, x, y, ridge) == pytest.approx(penalised(theirs, x, y, ridge), rel=1e-4)
    # where ours stops, some steps before the minimum
    assert np.abs(chances(ours, x) - chances(theirs, x)).max() < 5e-3
    close = fit_logistic(x, y, classes, ridge, tol=1e-9)
    assert np.abs(close[:-1] - theirs[:-1]).max() < 1e-3 * np.abs(theirs[:-1]).max()

def test_the_gradient_vanishes_at_the_minimum():
    x, y = problem(300, 12, 4, 0, gap=0.4)
    w = fit_logistic(x, y, 4, 1e-2, tol=1e-9).astype(float)
    r = (chances(w, x) - np.eye(4)[y]) / len(x)
    assert np.abs(x.T @ r + 1e-2 * w[:-1]).max() < 2e-4 and np.abs(r.sum(0)).max() < 2e-4

def test_what_some_rows_say_of_the_curvature_changes_the_way_and_not_the_end(monkeypatch):
    rng, (low, y) = np.random.default_rng(0), problem(6_000, 8, 12, 3)
    x = np.tanh(low @ rng.normal(size=(8, 48)) / 3) @ rng.normal(size=(48, 24)) / 5 # a curved sheet
    x = np.float32((x - x.mean(0)) / x.std(0) + 0.3 * rng.normal(size=x.shape))
    monkeypatch.setattr(linear, "_BLOCK", 200)
    took, ends = {}, {}
    for many in (8, 10**9):
        monkeypatch.setattr(linear, "_HESSIAN_SUBSAMPLE_RATIO", many)
        rows = linear._StandardizedRows(x, np.arange(len(x)), np.zeros(24, np.float32),
                                        np.ones(24, np.float32))
        fit = linear._LogisticSolver(rows, y, 12)
        assert fit.many == (many == 8)
        took[many], ends[many] = fit.run(1e-3, 1e-6), fit.w.numpy().astype(float)
    least = penalised(scikit(x, y, 1e-3), x, y, 1e-3)
    for w in ends.values(): assert penalised(w, x, y, 1e-3) == pytest.approx(least, rel=1e-5)
    assert took[8] < 0.8 * took[10**9]

def test_a_start_changes_the_way_and_not_the_end():
    x, y = problem(200, 10, 4, 1, gap=0.5)
    a = fit_logistic(x, y, 4, 1e-2, tol=1e-8)
    b = fit_logistic(x, y, 4, 1e-2, init=np.random.default_rng(0).normal(size=(11, 4)) * 0.3,
                     tol=1e-8)
    assert np.abs(chances(a, x) - chances(b, x)).max() < 2e-3

def test_the_path_ends_where_a_lone_fit_does():
    x, y = problem(900, 16, 5, 2, gap=0.4)
    train, val, _ = thirds(900)
    p = linear_probe(x, y, train, val)
    z = (x - p.mean) / p.std
    alone = scikit(z[train], y[train], p.ridge)
    assert (penalised(p.weights.astype(float), z[train], y[train], p.ridge)
            == pytest.approx(penalised(alone, z[train], y[train], p.ridge), rel=1e-4))
    assert list(p.path.l2) == sorted(_L2_GRID, reverse=True) and p.path.chosen.sum() == 1

def test_the_path_goes_on_while_the_weakest_is_best(monkeypatch):
    x, y = problem(400, 6, 3, 17, gap=0.2)
    y = (x[:, 0] > 0.02) * 1 + (x[:, 1] > 0.5) # no noise: the weaker the better
    monkeypatch.setattr(linear, "_L2_GRID", (1.0, 0.3))
    p = linear_probe(x, y, np.arange(200), np.arange(200, 400))
    assert len(p.path) > 3 and np.allclose(p.path.l2[2:] / p.path.l2[1:-1].values, 0.1)
    assert p.path.val_top1.iloc[-2] == p.path.val_top1.max() >= p.path.val_top1.iloc[-1]
    with pytest.warns(UserWarning, match="0.3 is the weakest of the path"):
        assert (len(linear_probe(x, y, np.arange(200), np.arange(200, 400), ridges=(1.0, 0.3)).path)
                == 2)

@pytest.mark.parametrize("choose", ["top1", "balanced"])
def test_the_ridge_is_the_best_on_val(choose):
    chosen = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, y = problem(240, 20, 3, seed, gap=(0.15, 1.5)[seed % 2])
        keep = (y > 0) | (rng.random(240) < 0.3) # a rare class, where both scores part
        x, y = x[keep], y[keep]
        train, val, _ = thirds(len(x))
        p = linear_probe(x, y, train, val, (1.0, 1e-2, 1e-4), choose)
        z, score = (x - p.mean) / p.std, {}
        for r in p.path.l2:
            right = chances(scikit(z[train], y[train], r), z[val]).argmax(1) == y[val]
            score[r] = (right.mean() if choose == "top1"
                        else np.mean([right[y[val] == c].mean() for c in np.unique(y[val])]))
        assert score[p.ridge] > max(score.values()) - 0.03 # an answer or two on the edge
        chosen.add(p.ridge)
    assert len(chosen) > 1

def test_both_scores_of_the_path_are_of_val():
    x, y = problem(240, 12, 4, 3, gap=0.4)
    train, val, test = thirds(240)
    p = linear_probe(x, y, train, val, ridges=(1e-2,))
    said = accuracy(y[val], p.predict(x[val]), n_resamples=10)
    assert p.path.val_top1[0] == pytest.approx(said["top1"], abs=0.03)
    assert p.path.val_balanced[0] == pytest.approx(said["balanced"], abs=0.03)
    assert (p.logits(x).argmax(1) == np.searchsorted(p.classes, p.predict(x))).all()

def test_a_probe_learns_on_train_alone():
    x, y = problem(300, 8, 3, 2)
    train, val, test = thirds(300)
    other = x.copy(); other[test] = 1e3
    a, b = (linear_probe(v, np.where(test, k, y), train, val)
            for v, k in ((x, y), (other, (y + 1) % 3)))
    assert np.array_equal(a.weights, b.weights) and (a.predict(x[test]) == y[test]).mean() > 0.8

def test_labels_are_strings_or_numbers_and_rows_are_masks_or_numbers():
    x, y = problem(300, 8, 3, 2)
    train, val, test = thirds(300)
    name = np.array(["cat", "dog", "owl"])[y]
    a = linear_probe(x, y * 7 - 3, train, val).predict(x[test])
    b = linear_probe(x, name.astype(object), np.flatnonzero(train)[::-1],
                     np.flatnonzero(val)).predict(x[test])
    c = linear_probe(x, pd.Series(name), train, val).predict(x[test])
    assert np.array_equal(np.array(["cat", "dog", "owl"])[(a + 3) // 7], b) and np.array_equal(b, c)
    assert set(knn_probe(x[train], pd.Series(name[train]), x[test])[10]) <= {"cat", "dog", "owl"}

def test_a_class_that_train_has_not_is_wrong_and_is_counted():
    x, y = problem(300, 8, 4, 3)
    y = np.array(["a", "b", "c", "zebra"])[y]
    train, val, test = thirds(300)
    train = train & (y != "zebra")
    p = linear_probe(x, y, train, val) # val has it still
    said = p.predict(x[test])
    per = _per_class(y[test], said).set_index("label")
    assert ("zebra" not in said and per.accuracy["zebra"] == 0
            and per.n["zebra"] == (y[test] == "zebra").sum())
    assert p.path.val_top1.max() <= (y[val] != "zebra").mean()
    assert "zebra" not in knn_probe(x[train], y[train], x[test])[10]

def test_val_may_lack_a_class():
    x, y = problem(300, 8, 3, 3)
    train, val, test = thirds(300)
    p = linear_probe(x, y, train, val & (y != 2), select="balanced")
    assert (p.predict(x[test]) == y[test]).mean() > 0.8

def test_more_classes_than_samples_of_each_and_more_dimensions_than_rows():
    x, y = problem(150, 200, 50, 5, gap=2)
    p = linear_probe(x, y, np.arange(75), np.arange(75, 100))
    assert p.weights.shape == (201, 50) and np.isfinite(p.weights).all()
    assert (p.predict(x[100:]) == y[100:]).mean() > 0.2 # chance is 0.02
    once = linear_probe(x[:50], y[:50], np.arange(50), np.arange(50)) # one row a class
    assert (once.predict(x[:50]) == y[:50]).all()

def test_constant_columns_change_nothing():
    x, y = problem(300, 8, 3, 6, gap=0.5)
    train, val, test = thirds(300)
    wide = np.hstack([x, np.full((300, 2), 1e4, np.float32) + 0.1])
    a, b = linear_probe(x, y, train, val), linear_probe(wide, y, train, val)
    assert np.isinf(b.std[-2:]).all() and np.allclose(a.logits(x), b.logits(wide), atol=2e-3)
    wide[test, -1] = -5 # only now it varies
    assert np.allclose(a.logits(x), b.logits(wide), atol=2e-3)

def test_all_columns_constant_is_the_prior():
    x, y = np.ones((60, 4), np.float32), np.arange(60) % 3 % 2 # twice as many of 0
    p = linear_probe(x, y, np.arange(30), np.arange(30, 60))
    assert ((p.predict(x) == 0).all()
            and np.allclose(chances(p.weights, np.zeros((1, 4))), [[2 / 3, 1 / 3]], atol=1e-3))

def test_half_precision_and_scale_do_not_matter():
    x, y = problem(300, 8, 3, 7, gap=0.5)
    x = x.astype(np.float16)
    train, val, _ = thirds(300)
    a = linear_probe(x, y, train, val)
    b = linear_probe(x.astype(np.float32) * 1e-3 + 5, y, train, val)
    assert np.allclose(a.weights, b.weights, atol=2e-2)

def test_only_some_classes_may_be_answered():
    x, y = problem(300, 8, 5, 8)
    p = linear_probe(x, y, *thirds(300)[:2])
    some, z = p.predict(x, among=[1, 3, 99]), p.logits(x)
    assert np.array_equal(some, np.where(z[:, 1] >= z[:, 3], 1, 3))
    with pytest.raises(UserError, match="none of the 1 candidate classes"): p.predict(x, among=[99])

@pytest.mark.parametrize("spoil, says", [
    (dict(train=[]), "train has no rows"), (dict(val=np.zeros(90, bool)), "val has no rows"),
    (dict(y=np.zeros(90)), "one class only"), (dict(y=np.zeros(89)), "89 labels for 90 rows"),
    (dict(train=np.ones(7, bool)), "a mask of 7 for 90"),
    (dict(x=np.zeros((90, 3), int)), "floating-point"),
    (dict(x=np.zeros(90)), "expected \\[n, d\\]")])
def test_what_cannot_be_probed_is_said(spoil, says):
    x, y = problem(90, 4, 3, 9)
    train, val, _ = thirds(90)
    with pytest.raises(UserError, match=says):
        linear_probe(**dict(x=x, y=y, train=train, val=val) | spoil)

@pytest.mark.parametrize("row, part", [(33, "train"), (34, "val"), (35, "test")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_name_their_row(row, part, value):
    x, y = problem(90, 4, 3, 9)
    train, val, test = thirds(90)
    x[row, 2] = value
    with pytest.raises(UserError,
                       match="features of row " + str(11 if part == "test" else row) + " are not"):
        linear_probe(x, y, train, val).predict(x[test])
    with pytest.raises(UserError, match="are not finite"): knn_probe(x, y, x)

BOUNDED = """
import json, resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from ccd.probing import linear as P
from ccd.probing.protocols import knn_probe
P._CACHE_BYTES = 0
x, y = np.load(sys.argv[1], mmap_mode="r"), np.load(sys.argv[2])
n, fit = len(x), lambda rows: P.linear_probe(x, y, rows, np.arange(1, len(x), 20), ridges=(1e-2,))
few = np.arange(0, n, 50)
fit(few); knn_probe(x[:500], y[:500], x[:500], (5,)) # libraries are loaded by now
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[3]),) * 2)
p = fit(np.arange(n) % 20 != 1)
try: np.array(x) + 0; copied = True
except MemoryError: copied = False
print(json.dumps(dict(copied=copied, weights=p.weights.tolist(), said=p.predict(x[:2000]).tolist())))
"""  # noqa: E501

@pytest.mark.skipif(sys.platform != "linux", reason="the limit on private memory is Linux's")
def test_a_memory_map_is_probed_in_less_memory_than_one_copy(tmp_path):
    x, y = problem(64_000, 256, 4, 10, gap=0.1)
    x = x.astype(np.float16) # 33 MB; as floats 66 MB
    np.save(tmp_path / "x.npy", x); np.save(tmp_path / "y.npy", y)
    room = 30 << 20
    done = subprocess.run([sys.executable, "-c", BOUNDED, tmp_path / "x.npy", tmp_path / "y.npy",
                           str(room)],
                          # freed is free
                          capture_output=True, text=True,
                          env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"})
    assert done.returncode == 0, done.stderr
    got, n = json.loads(done.stdout), len(x)
    held = linear_probe(x, y, np.arange(n) % 20 != 1, np.arange(1, n, 20), ridges=(1e-2,))
    assert not got["copied"] and room < x.nbytes
    assert np.abs(np.array(got["weights"]) - held.weights).max() < 1e-2 * np.abs(held.weights).max()
    assert (held.predict(x[:2000]) == got["said"]).mean() > 0.99

def test_bf16_chooses_and_float32_answers(monkeypatch):
    x, y = problem(900, 16, 5, 2, gap=0.4)
    exact = linear_probe(x, y, *thirds(900)[:2], ridges=(1e-2,))
    monkeypatch.setattr(linear, "_BF16_MIN_COST", 1); monkeypatch.setenv("CCD_PRECISION", "bf16")
    quick = linear_probe(x, y, *thirds(900)[:2], ridges=(1e-2,))
    assert quick.path.train_loss[0] != exact.path.train_loss[0] # another way
    assert np.abs(quick.weights - exact.weights).max() < 1e-2 * np.abs(exact.weights).max()
    assert quick.path.train_loss[0] == pytest.approx(exact.path.train_loss[0], rel=1e-2)

# Neighbours

def brute(x, y, q, k, T):
    def unit(v):
        return v.astype(float) / np.linalg.norm(v.astype(float), axis=-1, keepdims=True)
    out = []
    for v in unit(q):
        cos, votes = unit(x) @ v, {}
        for i in np.argsort(-cos)[:k]: votes[y[i]] = votes.get(y[i], 0) + np.exp(cos[i] / T)
        out.append(max(votes, key=votes.get))
    return out

@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("block", [4096, 7]) # one block, or many that are smaller than k
def test_knn_is_brute_force_for_every_k(monkeypatch, dtype, block):
    x, y = problem(150, 6, 4, 1, gap=0.7)
    x, y = x.astype(dtype), np.array(list("abcd"))[y]
    monkeypatch.setattr(protocols._nearest, "__defaults__", (block,))
    monkeypatch.setattr(linear, "_BLOCK", 5)
    got = knn_probe(x[:120], y[:120], x[120:], ks=(1, 5, 20, 500))
    for k, said in got.items():
        assert said.tolist() == brute(x[:120], y[:120], x[120:], k, 0.07)
    assert len({tuple(v) for v in got.values()}) > 1

def test_temperature_weighs_the_near():
    x = np.array([[1, 0], [0.9, 0.1], [0, 1.0], [0.1, 1], [0.05, 1]], np.float32)
    y, q = np.array(["near", "near", "far", "far", "far"]), np.array([[1, 0.02]], np.float32)
    assert (knn_probe(x, y, q, (5,))[5][0] == "near"
            and knn_probe(x, y, q, (5,), temperature=100.0)[5][0] == "far")

def test_knn_wants_labels():
    with pytest.raises(UserError, match="2 labels for 3 rows"):
        knn_probe(np.ones((3, 2)), np.arange(2), np.ones((1, 2)))

# A few examples

def test_few_shot_draws_the_same_number_of_each_class_and_more_is_better():
    x, y = problem(600, 10, 4, 11, gap=0.7)
    y[:300][y[:300] == 3] = 2
    y[:3] = 3 # three rows of the last class to learn from
    train = np.arange(600) < 300
    t = few_shot(x, y, train, x[300:], y[300:], shots=(1, 4, 16), seeds=4)
    assert t.groupby("shots").n_train.unique().map(list).to_dict() == {1: [4], 4: [15], 16: [51]}
    assert t.groupby("shots").n_classes_below_shots.max().to_dict() == {1: 0, 4: 1, 16: 1}
    top1 = t.groupby("shots").top1
    assert top1.mean()[16] > top1.mean()[1] and top1.nunique()[1] > 1
    assert t.equals(few_shot(x, y, train, x[300:], y[300:], shots=(1, 4, 16), seeds=4))

def test_few_shot_is_a_fit_of_those_rows():
    x, y = problem(40, 6, 4, 12)
    train = np.arange(40) < 20
    t = few_shot(x, y, train, x[20:], y[20:], shots=(20,), seeds=1) # all there are
    z = (x - x[:20].mean(0)) / x[:20].std(0)
    right = chances(scikit(z[:20], y[:20], 0.1), z[20:]).argmax(1) == y[20:]
    assert (t.n_train[0] == 20 and t.n_classes_below_shots[0] == 4
            and abs(t.top1[0] - right.mean()) <= 0.05)

# Accuracy

def slow(y, p, cluster, draws, seed):
    rng, names, out = np.random.default_rng(seed), np.unique(cluster), []
    member = {c: np.flatnonzero(cluster == c) for c in names}
    for _ in range(draws):
        rows = np.concatenate([member[names[g]] for g in rng.integers(0, len(names), len(names))])
        r = y[rows] == p[rows]
        out.append((r.mean(), np.mean([r[y[rows] == c].mean() for c in np.unique(y[rows])])))
    return np.quantile(out, (0.025, 0.975), axis=0)

def test_accuracy_is_the_slow_way():
    rng = np.random.default_rng(0)
    y, cluster = (np.array(list("abcde"))[rng.integers(0, 5, 300) * rng.integers(0, 2, 300)],
                  rng.integers(0, 40, 300))
    p = np.where(rng.random(300) < 0.6, y, "a")
    got = accuracy(y, p, cluster, n_resamples=70, seed=3)
    lo, hi = slow(y, p, cluster, 70, 3)
    assert ((got["ci_low"], got["ci_high"], got["balanced_ci_low"], got["balanced_ci_high"])
            == pytest.approx((lo[0], hi[0], lo[1], hi[1])))
    assert got["top1"] == pytest.approx((y == p).mean())
    assert got["balanced"] == pytest.approx(np.mean([(p[y == c] == c).mean() for c in "abcde"]))
    assert (got["n"], got["n_classes"], got["n_groups"]) == (300, 5, len(set(cluster)))
    assert (got["group_mean"]
            == pytest.approx(np.mean([(y == p)[cluster == c].mean() for c in np.unique(cluster)])))
    assert (got["group_mean_ci_low"] < got["group_mean"] < got["group_mean_ci_high"]
            and 30 < got["n_effective_groups"] < got["n_groups"])

def test_intervals_know_that_siblings_are_alike():
    rng, family = np.random.default_rng(0), np.arange(400) // 8
    def width(p, c):
        return (lambda a: a["ci_high"]
                - a["ci_low"])(accuracy(np.ones(400), p, c, n_resamples=2000))
    alike, apart = (rng.random(50) < 0.5)[family] * 1.0, (rng.random(400) < 0.5) * 1.0
    assert width(alike, family) > 2 * width(alike, None) # eight copies are one answer
    assert width(apart, family) == pytest.approx(width(apart, None), rel=0.35)

def test_an_interval_is_binomial_where_items_are_alone():
    p = (np.arange(2000) % 10 < 7) * 1
    a = accuracy(np.ones(2000, int), p, n_resamples=4000)
    assert a["ci_high"] - a["ci_low"] == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 2000)**0.5, rel=0.08)

def test_per_class_counts_and_names_the_errors():
    y, p = np.array(list("aaabbc")), np.array(list("abbbbx"))
    t = _per_class(y, p).set_index("label")
    assert t.n.to_dict() == dict(a=3, b=2, c=1) and t.n_correct.to_dict() == dict(a=1, b=2, c=0)
    assert t.most_confused_with.to_dict() == dict(a="b", b="", c="x")
    assert t.accuracy.mean() == pytest.approx(accuracy(y, p, n_resamples=5)["balanced"])

@pytest.mark.parametrize("y, p", [([], []), ([1, 2], [1])])
def test_no_answers_is_said(y, p):
    for f in (accuracy, _per_class):
        with pytest.raises(UserError, match="expected one answer each"): f(np.array(y), np.array(p))

# Protocols

def test_the_schedule_as_written_never_passes_a_tenth():
    s = _lr_schedule(PROTOCOLS["as written"], 98).reshape(50, 98)
    assert ((s[:, 0] == 0).all() and s.max() == pytest.approx(0.1 * 97 / 98)
            and (np.diff(s, axis=1) > 0).all())

def test_the_schedule_as_meant_warms_up_and_falls_as_a_cosine():
    s = _lr_schedule(PROTOCOLS["corrected"], 49)
    assert (s[0] == 0 and s.argmax() == 490 and s[490] == 1 and s[490 + 980] == pytest.approx(0.5)
            and s[-1] < 1e-4)
    d = _lr_schedule(PROTOCOLS["dino"], 7).reshape(100, 7)
    assert (d == d[:, :1]).all() and d[0, 0] == 1 and d[50, 0] == pytest.approx(0.5)

def test_only_the_protocol_as_written_looks_at_the_test_labels():
    x, y = problem(240, 6, 3, 13, gap=0.6)
    train, val, test = thirds(240)
    def short(n):
        return replace(PROTOCOLS[n], epochs=3, trial_epochs=1, warmup_epochs=1)
    for name, looks in (("as written", True), ("corrected", False), ("dino", False)):
        a, b = (sgd_probe(x, np.where(test, (y + k) % 3, y), train, val, test, short(name))
                for k in (0, 1))
        assert (not a.path.equals(b.path)) == looks
        right = a.predict(x[test if looks else val]) == y[test if looks else val]
        # the bias of its own epoch
        assert a.path.score[a.path.chosen].iloc[0] == pytest.approx(right.mean(), abs=0.02)

def test_the_grid_is_tried_and_the_best_of_it_trained():
    x, y = problem(240, 6, 3, 13, gap=0.6)
    p = sgd_probe(x, y, *thirds(240),
                  replace(PROTOCOLS["corrected"], batch_size=16, epochs=4, trial_epochs=2,
                          warmup_epochs=1)).path
    tries, run = p[:12], p[12:]
    assert (set(zip(tries.rate, tries.decay))
            == {(r, d) for r in (1e-6, 1e-5, 1e-4, 1e-3) for d in (0, 1e-6, 1e-3)})
    assert ((run.rate.iloc[0], run.decay.iloc[0])
            == tuple(tries.loc[tries.score.idxmax(), ["rate", "decay"]]))
    assert (run.epoch.tolist() == [1, 2, 3, 4] and p.chosen.sum() == 1
            and run.score[run.chosen].iloc[0] == run.score.max())

def test_one_step_of_dinos_protocol_is_written_out():
    x, y = problem(30, 4, 3, 14)
    rows = np.arange(30)
    # a batch holds all: the order does not matter
    one = replace(PROTOCOLS["dino"], epochs=1, batch_size=64)
    got = sgd_probe(x, y, rows, rows, rows, one).weights
    w = np.vstack([0.01 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).numpy(),
                   np.zeros((1, 3))])
    r = (chances(w, x) - np.eye(3)[y]) / 30
    assert np.allclose(got, w - one.lrs[0] * np.vstack([x.T @ r, r.sum(0)]), atol=1e-6)
