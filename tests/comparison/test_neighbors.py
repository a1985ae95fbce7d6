"Neighbours, overlap, hubs and CKA against their slow definitions."
import numpy as np, pandas as pd, pytest
from ccd.comparison import neighbors as nb
from ccd.files import UserError
from ccd.encoders.embeddings import Embeddings

pytestmark = pytest.mark.numeric

def toy(x, **more):
    return Embeddings(x.astype(np.float32),
                      pd.DataFrame(dict(item_id=[f"p{k}" for k in range(len(x))]) | more), {})

@pytest.fixture
def x(): return np.random.default_rng(0).normal(size=(200, 12))

def slow(x, k, group):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = u @ u.T
    s[group[:, None] == group[None]] = -9
    return np.argsort(-s, axis=1)[:, :k]

@pytest.mark.parametrize("groups", [200, 20])
# one group in the middle, with few rows before it
@pytest.mark.parametrize("tile", [nb._TILE_SHAPE, (3, 64)])
def test_neighbors_are_the_nearest_of_other_groups(x, groups, tile, monkeypatch):
    monkeypatch.setattr(nb, "_TILE_SHAPE", tile)
    group = np.arange(200) % groups
    assert (nb.nearest_neighbors(toy(x), 7, group) == slow(x, 7, group)).all()

@pytest.mark.parametrize("most", [3, 12, 60])
def test_what_is_known_changes_nothing(x, monkeypatch, most):
    monkeypatch.setattr(nb, "_TILE_SHAPE", (16, 64))
    group = np.arange(200) % 40
    assert (nb.nearest_neighbors(toy(x), 7, group,
                                 precomputed=nb.nearest_neighbors(toy(x), most))
            == slow(x, 7, group)).all()

@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_find_most(x, index):
    x = np.random.default_rng(0).normal(size=(2000, 12))
    exact, found = nb.nearest_neighbors(toy(x), 10), nb.nearest_neighbors(toy(x), 10, index=index)
    assert (0.7 < nb.mutual_knn(exact, found).mean() <= 1
            and (found != np.arange(2000)[:, None]).all())

def test_what_cannot_be_asked(x):
    with pytest.raises(UserError, match="200 neighbors requested for 200 items"):
        nb.nearest_neighbors(toy(x), 200)
    with pytest.raises(UserError, match="at most 100"):
        nb.nearest_neighbors(toy(x), 101, np.arange(200) % 2)
    with pytest.raises(UserError, match="unknown index"):
        nb.nearest_neighbors(toy(x), 3, index="tree")

def test_overlap_is_that_of_sets(x):
    a, b = (np.argsort(np.random.default_rng(s).random((50, 50)), axis=1)[:, :8] for s in (0, 1))
    assert np.allclose(nb.mutual_knn(a, b),
                       [len(set(p) & set(q)) / 8 for p, q in zip(a.tolist(), b.tolist())])

def test_the_null_of_overlap_has_its_expectation(x):
    a, b = (nb.nearest_neighbors(toy(np.random.default_rng(s).normal(size=(150, 6))), 20)
            for s in (0, 1))
    t = nb.overlap_curve(a, b, np.arange(150), ks=(5, 20), n_resamples=50, permutations=200)
    assert ((t.null_p95 > t.chance).all() and (t.overlap < 2 * t.null_p95).all()
            and (t.p > 0.005).all())
    kept = nb.overlap_curve(a, a, np.arange(150), ks=(5,), n_resamples=50, permutations=99).iloc[0]
    assert kept.overlap == 1 and kept.p == pytest.approx(0.01)

def test_the_null_of_some_rows_has_the_expectation_of_all():
    a, b = (nb.nearest_neighbors(toy(np.random.default_rng(s).normal(size=(90, 6))), 10)
            for s in (0, 1))
    orders = [np.random.default_rng(s).permutation(90) for s in range(3000)]
    every, some = (np.array([nb._under(a, b, o, most) for o in orders]) for most in (90, 20))
    assert (abs(every.mean() - 10 / 89) < 0.001 and abs(some.mean() - 10 / 89) < 0.001
            and some.std() > every.std())

def labelled(seed, n=240, families=30):
    """Labels that most rows lack and families share, one class of few rows, and families of unequal
    size."""
    rng = np.random.default_rng(seed)
    family = np.sort(rng.choice(families, n,
                                p=np.arange(1, families + 1) / (families * (families + 1) / 2)))
    of_family = rng.choice(["cat", "dog", None], families, p=[0.4, 0.2, 0.4])
    label = np.where(rng.random(n) < 0.7, of_family[family], rng.choice(["cat", "dog", None], n))
    label[rng.choice(n, 3, replace=False)] = "rare"
    return label, family

def random_neighbors(rng, family, k): # as the statistic may find them: not the row itself, not of its family, each once  # noqa: E501
    order = rng.random((len(family), len(family)))
    order[family[:, None] == family] = 2
    return np.argsort(order, axis=1)[:, :k]

@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("own", [False, True]) # nothing is kept apart but the row itself
def test_chance_of_purity_is_that_of_random_neighbors(seed, own):
    label, family = labelled(seed)
    if own: family = np.arange(len(label))
    rng = np.random.default_rng(seed)
    drawn = np.array([nb.label_agreement(random_neighbors(rng, family, 20), label)
                      for _ in range(60)])
    chance = nb._chance_purity(label, family)
    assert (np.isnan(chance) == pd.isna(label)).all()
    # each class, since an error of a small one does not show in the mean of all
    for name in ("cat", "dog", "rare"):
        of = drawn[:, label == name].mean(1)
        assert abs(of.mean() - chance[label == name].mean()) < 4 * of.std(ddof=1) / len(of)**0.5

@pytest.mark.parametrize("seed", range(5))
def test_chance_of_purity_is_its_definition(seed):
    label, family = labelled(seed, 60, 8)
    allowed = family[:, None] != family
    want = ((label[:, None] == label) & allowed).sum(1) / allowed.sum(1)
    assert np.allclose(nb._chance_purity(label, family), np.where(pd.isna(label), np.nan, want),
                       equal_nan=True)

def test_strangers_have_the_purity_of_chance(x):
    label, family = labelled(3, 1500, 300)
    e = toy(np.random.default_rng(1).normal(size=(1500, 24)), label=label,
            family=[f"f{k}" for k in family])
    t = nb.neighbor_table(dict(a=e), ["label"], n_resamples=200).iloc[0]
    assert t.ci_low < t.chance < t.ci_high

def test_what_no_neighbor_can_share_has_no_row(x):
    family = [f"f{k % 20}" for k in range(200)]
    e = toy(x, family=family, thing=family, half=["cat", "dog"] * 100, none=[None] * 200)
    t = nb.neighbor_table(dict(a=e), ["thing", "half", "none"], n_resamples=10)
    # families are of one half: 9 others of it
    assert t.label.tolist() == ["half"] and t.chance.iloc[0] == pytest.approx(90 / 190)
    assert nb.neighbor_table(dict(a=e), ["thing"]).columns.tolist() == t.columns.tolist()

def hsic(x, y):
    K, L, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(K, 0); np.fill_diagonal(L, 0)
    one = np.ones(n)
    return (np.trace(K @ L) + one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))

@pytest.mark.parametrize("shift", [0, 4])
def test_cka_is_its_definition(x, shift):
    a, b = toy(x + shift), toy(x[:, :5] ** 2)
    u, v = (e.unit().astype(float) for e in (a, b))
    want = hsic(u, v) / (hsic(u, u) * hsic(v, v)) ** 0.5
    value, lo, hi = nb.cka(a, b, np.arange(200))
    assert value == pytest.approx(want, abs=1e-9) and lo < value < hi

def test_the_interval_of_cka_covers():
    "Of pictures drawn again from the same world, most intervals hold the value of a large sample."
    rng, view, hits = np.random.default_rng(0), np.random.default_rng(1).normal(size=(8, 8)), 0
    def sample(n):
        z = rng.normal(size=(n, 8))
        return toy(z + 0.5 * rng.normal(size=z.shape)), toy(z @ view + rng.normal(size=z.shape))
    truth = nb.cka(*sample(20_000), np.arange(20_000))[0]
    for _ in range(60):
        _, lo, hi = nb.cka(*sample(120), np.arange(120))
        hits += lo <= truth <= hi
    assert 50 <= hits <= 60

@pytest.mark.parametrize("family", [np.zeros(200), np.arange(200) % 19, np.arange(5)])
def test_few_families_have_no_cka(x, family):
    with pytest.raises(UserError, match="20 families or more"):
        nb.cka(*2 * [toy(x[:len(family)])], family)

@pytest.mark.parametrize("far", [1, 30, 300]) # all vectors near one, in float32
def test_cka_of_vectors_that_are_nearly_one(x, far):
    """The mean is taken off exactly: what float32 has kept is compared, and no digits are lost on
    the way."""
    a, b = toy(x + far), toy(x[:, ::-1] + far)
    u, v = (y - y.mean(0) for y in (e.unit().astype(float) for e in (a, b)))
    assert (nb.cka(a, b, np.arange(200))[0]
            == pytest.approx(hsic(u, v) / (hsic(u, u) * hsic(v, v)) ** 0.5, abs=1e-6))

@pytest.mark.parametrize("seed", range(8))
def test_cka_stays_within_its_bounds(seed):
    """Whatever the vectors: finite, at most 1, and below 0 only as far as the interval goes; or
    NaN, where too few differ."""
    rng = np.random.default_rng(seed)
    n, d = rng.integers(20, 60), rng.integers(1, 40)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-8, 8)
    x[: int(n * rng.choice([0, 0.5, 0.88]))] = x[0] # copies
    if seed % 2: x = np.sign(x)
    for y in (rng.normal(size=(n, 3)), x, np.eye(n), rng.normal(size=(n, 1))):
        value, lo, hi = nb.cka(toy(x), toy(y), np.arange(n))
        assert (np.isnan(lo)
                or (-1 <= lo <= value <= 1 + 1e-9 and max(value, 0) <= hi + 1e-9 and hi <= 1))

DTYPES = np.float16, np.float32, np.float64

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 200.0])
def test_nearly_one_vector_is_refused_by_its_relative_spread(dtype, length):
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=16), rng.normal(size=(100, 16))
    def made(x): return Embeddings((length * x).astype(dtype), toy(noise).items, dict(name="mine"))
    for x in (np.tile(one, (100, 1)), one * (1 + np.finfo(dtype).eps * noise),
              np.vstack([noise[:5], np.tile(one, (95, 1))])):
        with pytest.raises(UserError,
                           match="mine gives nine in ten of 100 items or more the same vector"):
            nb._expect_spread(made(x))
    for x in (noise, one + 0.1 * noise, np.vstack([noise[:50], np.tile(one, (50, 1))])):
        nb._expect_spread(made(x))

def test_small_and_large_vectors_are_as_good_as_others(x):
    for scale in (1e-200, 1e-30, 1e30, 1e200):
        e = Embeddings(x * scale, toy(x).items, {})
        assert np.allclose(e.unit(), toy(x).unit(), atol=1e-6)
        nb._expect_spread(e)

def test_hubs():
    star = np.array([[1, 2]] + [[0, 1 + k % 3] for k in range(1, 60)])
    h = nb.hubness(star)
    assert (h["max_k_occurrence"] == 59 and h["skewness"] > 5
            and nb.hubness(np.roll(np.arange(60), 1)[:, None])["skewness"] == 0)

def test_maps_start_from_one_another(x):
    a, b = toy(x), toy(x @ np.random.default_rng(3).normal(size=(12, 12)))
    first = nb.umap_2d(a, n_neighbors=5)
    second = nb.umap_2d(b, n_neighbors=5, init=first)
    assert first.shape == second.shape == (200, 2) and np.isfinite(second).all()
    with pytest.raises(UserError, match="five or more"): nb.umap_2d(toy(x[:4]))
