"Probes against independent implementations."
import numpy as np, pandas as pd, pytest
from ccd.probes import RIDGES, above, compare_probes, emoji_tasks, fit_logistic, knn_probe, linear_probe, predict
from ccd.stats import cluster_bootstrap

def problem(n, d, classes, seed, gap=1.0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    return (rng.normal(size=(n, d)) + gap * rng.normal(size=(classes, d))[y]).astype(np.float32), y

def penalised(w, b, x, y, ridge):
    z = x @ w + b
    z = z - z.max(1, keepdims=True)
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean() + ridge / 2 * (w**2).sum()

@pytest.mark.parametrize("n, d, classes, ridge", [(80, 5, 2, 1e-1), (150, 20, 7, 1e-2), (60, 40, 3, 1e-3)])
def test_logistic_reaches_the_minimum_of_scikit_learn(n, d, classes, ridge):
    from sklearn.linear_model import LogisticRegression
    x, y = problem(n, d, classes, n)
    w = fit_logistic(x, y, classes, ridge)
    fair = 2 if classes == 2 else 1 # scikit-learn penalises one column of two
    s = LogisticRegression(C=fair / (n * ridge), tol=1e-8, max_iter=10_000).fit(x.astype(float), y)
    half = lambda v: np.stack([-v[0], v[0]], -1) / 2
    theirs = (s.coef_.T, s.intercept_) if classes > 2 else (half(s.coef_), half(s.intercept_))
    assert penalised(w[:-1], w[-1], x, y, ridge) == pytest.approx(penalised(*theirs, x, y, ridge), rel=1e-3)

@pytest.mark.parametrize("k", [1, 5, 500])
def test_knn_is_brute_force(k):
    x, y = problem(120, 6, 4, 1)
    label = np.array(list("abcd"))[y]
    train = np.arange(120) < 90
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = []
    for q, own in zip(unit[~train], label[~train]):
        cos = unit[train] @ q
        votes = {}
        for i in np.argsort(-cos)[:k]:
            votes[label[train][i]] = votes.get(label[train][i], 0) + np.exp(cos[i] / 0.07)
        want.append(max(votes, key=votes.get) == own)
    got = knn_probe(x, label, train, ~train, k)
    assert got.tolist() == want and 0.3 < got.mean() < 1

def test_probe_learns_on_train_alone():
    x, y = problem(300, 8, 3, 2)
    parts = [np.arange(300) % 3 == k for k in range(3)]
    right, _ = linear_probe(x, y, *parts)
    wrong = np.where(parts[2], (y + 1) % 3, y) # only the test labels change
    assert right.mean() > 0.8 and linear_probe(x, wrong, *parts)[0].mean() < 0.2

def test_the_ridge_is_the_best_on_val():
    chosen = set()
    for seed in range(6):
        x, y = problem(90, 10, 3, seed, gap=0.5)
        train, val, test = (np.arange(90) % 3 == k for k in range(3))
        z = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
        score = {r: (predict(fit_logistic(z[train], y[train], 3, r), z[val]) == y[val]).mean() for r in RIDGES}
        ridge = linear_probe(x, y, train, val, test)[1]
        assert score[ridge] == max(score.values())
        chosen.add(ridge)
    assert len(chosen) > 1

def test_a_label_never_seen_in_training_counts_as_wrong():
    x, y = problem(120, 8, 3, 3)
    y = np.array(["a", "b", "c"])[y]
    test = np.arange(120) % 2 == 0
    train, val = ~test & (y != "c") & (np.arange(120) % 4 == 1), ~test & (np.arange(120) % 4 == 3)
    assert not linear_probe(x, y, train, val, test)[0][y[test] == "c"].any()
    assert not knn_probe(x, y, train, test)[y[test] == "c"].any()

def width(v, c): return np.subtract(*cluster_bootstrap(v, c, 2000)[:0:-1])

def test_intervals_know_that_siblings_are_alike():
    rng, family = np.random.default_rng(0), np.arange(400) // 8
    alike, apart = rng.random(50)[family], rng.random(400)
    one = np.arange(400)
    assert width(alike, family) > 2 * width(alike, one) # eight copies are one answer
    assert width(apart, family) == pytest.approx(width(apart, one), rel=0.35)

@pytest.fixture(scope="module")
def items(tiny):
    from ccd import emoji
    return [c(tiny.world).remove_columns(["image"]).to_pandas() for c in (emoji.gallery, emoji.signs)]

def test_concepts_are_read_in_the_drawings_of_a_team_not_learnt_from(items):
    g, task = items[0], next(t for t in emoji_tasks(*items) if t.name == "concept across styles")
    team = lambda rows: set(g.style_family[rows])
    assert len(task.folds) > 3 and np.sum([test for *_, test in task.folds], 0).max() == 1
    for train, val, test in task.folds:
        assert len(team(test)) == len(team(val)) == 1 and not team(train) & (team(val) | team(test))
        assert team(val) != team(test) and set(g.split[train | val | test]) == {"test"}
        assert set(g.concept[test | val]) <= set(g.concept[train])

def test_nothing_that_is_tested_has_kin_among_what_was_learnt(items):
    g, s = items
    for t in emoji_tasks(*items):
        if t.name == "concept across styles": continue
        kin = g.family if t.corpus == "gallery" else s.font
        for parts in t.folds:
            seen = [set(kin[m]) for m in parts]
            assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2]), t.name

def answered(name, right): # fifty families of four
    n = np.arange(200)
    return pd.DataFrame(dict(encoder=name, task="t", item_id=n, cluster=n // 4, linear=right, knn=right[::-1]))

def test_above_needs_every_interval_to_leave_out_zero():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.6, rng.random(200) < 0.3
    close = a.copy(); close[rng.integers(0, 200, 6)] ^= True
    t = pd.concat([answered("a", a), answered("b", b), answered("close", close)])
    d = pd.concat([compare_probes(t, x, y, 500) for x in "ab" for y in ("a", "b", "close") if x != y])
    assert above(d, "a", ("b",)) == ["t"] == above(d, "a", ("b",), "knn")
    assert above(d, "a", ("b", "close")) == [] == above(d, "b", ("a",)) == above(d, "a", ("b", "nobody"))
