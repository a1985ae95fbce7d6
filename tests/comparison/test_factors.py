"""What explains similarity, what mined pairs share, and what a change does: against slow
definitions and constructed encoders."""
import itertools
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LinearRegression
from ccd.comparison import attributes, attribution, perturbations
from ccd.data.emoji import drawings, scenes as emoji_scenes
from ccd import stats
from ccd.files import UserError
from ccd.settings import DataSettings
from ccd.encoders.embeddings import Embeddings
from ccd.encoders.base import Encoder, EncoderCard, Features
from ccd.encoders.baselines import raw_pixels
from ccd.data.images import load_folder
from ccd.data.corpora import ImageDecoder
from ccd.data.augment import eval_view

pytestmark = pytest.mark.numeric

WORLD = DataSettings(test_scenes=240)

@pytest.fixture(scope="module")
def scenes(): return emoji_scenes.scenes(WORLD, "test")

@pytest.fixture(scope="module")
def pictures(scenes):
    return np.ascontiguousarray(ImageDecoder(scenes, 64)[range(240)].transpose(0, 2, 3, 1))

@pytest.fixture(scope="module")
def shown(scenes): return attributes.corpus_attributes(scenes)

@pytest.fixture(scope="module")
def items(scenes):
    return scenes.select_columns([c
                                  for c in scenes.column_names
                                  if c not in ("image", "captions")]).to_pandas()

def embeddings(x, items, name="made"):
    return Embeddings(np.asarray(x, np.float32), items, dict(name=name))

def one_hot(values):
    return np.eye(len(np.unique(values)))[np.unique(values, return_inverse=True)[1]]

# --- intervals over pairs

def test_node_sums_are_those_of_a_loop_over_copies():
    r = np.random.default_rng(0)
    i, j, v = r.integers(6, size=40), r.integers(6, size=40), r.normal(size=(40, 2))
    got, again = stats.node_bootstrap_sums(v, i, j, 25, seed=3), np.random.default_rng(3)
    for row in got:
        copies = np.bincount(again.integers(6, size=6), minlength=6)
        want = sum(v[p] * (copies[i[p]] if i[p] == j[p] else copies[i[p]] * copies[j[p]])
                   for p in range(40))
        assert np.allclose(row, want, atol=1e-4)
    assert np.array_equal(got, stats.node_bootstrap_sums(lambda s: v[s], i, j, 25, seed=3))

def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    r = np.random.default_rng(1) # so many nodes that draws come in parts
    i, j, v = r.integers(3_000_000, size=(2, 50)), None, r.normal(size=50)
    i, j = i
    few = stats.node_bootstrap_sums(v[:, None], i, j, 4)
    # a product of other shape is summed in another order
    assert np.allclose(few[:2], stats.node_bootstrap_sums(v[:, None], i, j, 2), rtol=1e-5)

def test_the_mean_keeps_its_place_within_families():
    "Pairs within a family would count twice by the product of multiplicities."
    i = np.repeat(np.arange(50), 4); within = np.tile([True, False, False, False], 50)
    j = np.where(within, i, (i + np.tile([0, 1, 2, 3], 50)) % 50)
    total = stats.node_bootstrap_sums(np.stack([within, np.ones(200)], 1), i, j, 4_000)
    assert np.mean(total[:, 0] / total[:, 1]) == pytest.approx(0.25, abs=0.01)

def test_node_bootstrap_refuses_values_without_nodes():
    with pytest.raises(ValueError, match="two nodes"):
        stats.node_bootstrap(np.ones(3), np.arange(2), np.arange(2))

def test_weights_move_the_mean():
    v, i, j = np.array([0.0, 1.0]), np.array([0, 1]), np.array([2, 3])
    assert stats.node_bootstrap(v, i, j, weight=np.array([1, 3]), n_resamples=50)[0] == 0.75

# --- attributes

@pytest.mark.parametrize("rgb, want",
                         [((255, 0, 0), (53.24, 80.09, 67.20)),
                          ((0, 255, 0), (87.74, -86.18, 83.18)),
    ((0, 0, 255), (32.30, 79.19, -107.86)), ((0, 0, 0), (0, 0, 0)),
                          ((119, 119, 119), (50.03, 0, 0))])
def test_lab_is_that_of_the_tables(rgb, want):
    assert np.allclose(attributes._rgb_to_lab(np.array(rgb, np.uint8)), want, atol=0.06)

def test_attributes_by_their_definitions(pictures, shown):
    grey = pictures @ np.array([0.299, 0.587, 0.114]) / 255
    for k in range(0, 240, 40):
        g, a = grey[k], shown.iloc[k]
        inner = (slice(1, -1),) * 2
        assert (a.sharpness
                == pytest.approx(np.log(ndimage.laplace(g)[inner].var() + 255.0**-2), abs=1e-3))
        slope = np.hypot(ndimage.sobel(g, 0), ndimage.sobel(g, 1))[inner] / 8
        assert a.edge_density == pytest.approx((slope > attributes._EDGE).mean(), abs=2e-3)
        assert a.contrast == pytest.approx(g.std(), abs=1e-5)
        assert (a.saturation
                == pytest.approx(np.mean(Image.fromarray(pictures[k]).convert("HSV"),
                                         (0, 1))[1] / 255, abs=0.01))
        cells = g.reshape(4, 16, 4, 16).mean((1, 3)).ravel() - g.mean()
        assert np.allclose(a[[f"grey_{c}" for c in range(16)]].astype(float),
                           cells / np.linalg.norm(cells), atol=1e-4)
        hist = np.histogramdd(pictures[k].reshape(-1, 3),
                              bins=[[0, 64, 128, 192, 256]] * 3)[0].ravel() / 4096
        assert np.allclose(a[[f"hist_{c}" for c in range(64)]].astype(float), hist)

def test_distances_by_their_definitions(shown):
    d = attributes.attribute_distances(shown, np.array([3, 5]), np.array([7, 5]))
    a, b = shown.iloc[3], shown.iloc[7]
    assert (d["mean"][0]
            == pytest.approx(sum((a[f"mean_{c}"] - b[f"mean_{c}"]) ** 2 for c in "Lab") ** 0.5,
                             rel=1e-4))
    overlap = sum(min(a[f"hist_{k}"], b[f"hist_{k}"]) for k in range(64))
    assert d["histogram"][0] == pytest.approx(1 - overlap, abs=1e-5)
    assert (d.iloc[1] == 0).all()

def test_layout_knows_neither_brightness_nor_contrast(pictures):
    half = (pictures[:20] // 2 + 40).astype(np.uint8)
    both = attributes.attributes(np.concatenate([pictures[:20], half]))
    far = attributes.attribute_distances(both, np.arange(20), np.arange(20, 40),
                                         ("layout", "edges"))
    other = attributes.attribute_distances(both, np.arange(20), np.roll(np.arange(20), 1),
                                           ("layout",))
    assert far.layout.max() < 0.1 < other.layout.median() and far.edges.max() < 0.1

def test_flat_pictures_have_attributes():
    flat = attributes.attributes(np.full((2, 16, 16, 3), 90, np.uint8))
    assert np.isfinite(flat.values).all()
    assert np.allclose(flat[["object_L", "object_a", "object_b"]],
                       flat[["ground_L", "ground_a", "ground_b"]])

@pytest.mark.parametrize("bad",
                         [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 16, 16, 3)),
                          np.zeros((2, 3, 16, 16), np.uint8)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(UserError, match="uint8"): attributes.attributes(bad)

# --- the sample

def toy_items(n, seed=0):
    r = np.random.default_rng(seed)
    def pick(k, known):
        return [f"v{v}" if u < known else None for v, u in zip(r.integers(k, size=n), r.random(n))]
    return pd.DataFrame(dict(item_id=[f"i{k}" for k in range(n)], a=pick(9, 0.8), b=pick(4, 1.0),
                             c=pick(6, 0.3)))

def stratum_of(items, i, j):
    def known(f):
        return items[f].iat[i] == items[f].iat[j] and pd.notna(items[f].iat[i])
    return next((f for f in "abc" if known(f)), "none of these")

@pytest.mark.parametrize("listed", [0, 3_000_000])
@pytest.mark.parametrize("pairs", [60, 800, 10**6])
def test_strata_are_exclusive_whole_and_of_known_size(monkeypatch, listed, pairs):
    monkeypatch.setattr(attribution, "_ENUMERATE", listed)
    t = toy_items(80)
    s = attribution._stratified_pairs(t, pairs, ("a", "b", "c"))
    size = pd.Series([stratum_of(t, i, j)
                      for i, j in itertools.combinations(range(80), 2)]).value_counts()
    assert (s.i < s.j).all() and not s.duplicated(["i", "j"]).any()
    assert [stratum_of(t, i, j) for i, j in zip(s.i, s.j)] == s.stratum.tolist()
    assert s.groupby("stratum").weight.sum().to_dict() == pytest.approx(size.to_dict())
    assert len(s) == min(pairs, 80 * 79 // 2)

@pytest.mark.parametrize("listed", [0, 3_000_000])
def test_every_pair_of_a_stratum_is_as_likely(monkeypatch, listed):
    monkeypatch.setattr(attribution, "_ENUMERATE", listed)
    t, seen = toy_items(14), {}
    for seed in range(1500):
        s = attribution._stratified_pairs(t, 24, ("a", "b"), seed)
        for i, j, k, w in zip(s.i, s.j, s.stratum, s.weight):
            seen.setdefault((k, round(w, 6)), []).append((i, j))
    for (_, w), got in seen.items():
        counts = pd.Series(got).value_counts()
        assert abs(counts - 1500 / w).max() < 5 * np.sqrt(1500 / w * (1 - 1 / w)) + 1e-9

def test_copies_of_a_picture_make_no_pairs():
    t = toy_items(10).assign(pixel_hash=["x", "x"] + [f"h{k}" for k in range(8)])
    s = attribution._stratified_pairs(t, 1000, ())
    assert len(s) == 9 * 8 // 2 and 1 not in {*s.i, *s.j}

# --- regression

def test_regression_is_that_of_scikit_learn():
    r = np.random.default_rng(0)
    x = r.normal(size=(400, 5)); x[:, 4] += x[:, 0]; x[:, 1] = x[:, 1] > 1
    y = np.stack([x @ r.normal(size=5) + r.normal(size=400), r.normal(size=400)], 1) + 30
    w, groups = r.random(400) + 0.1, dict(p=[0, 4], q=[1], r=[2, 3], s=[0, 1])
    fit, drawn = attribution._weighted_ols(x, y, groups, r.integers(20, size=400),
                                           r.integers(20, size=400), w, n_resamples=300)
    model = LinearRegression().fit(x, y, w)
    assert np.allclose(fit["slope"], model.coef_.T, atol=1e-6)
    def score(keep, e):
        return LinearRegression().fit(x[:, keep], y[:, e], w).score(x[:, keep], y[:, e], w)
    for e in (0, 1):
        assert fit["r2"][e] == pytest.approx(score(range(5), e), abs=1e-6)
        for g, (_, terms) in enumerate(groups.items()):
            rest = [k for k in range(5) if k not in terms]
            assert fit["unique"][g, e] == pytest.approx(fit["r2"][e] - score(rest, e), abs=1e-6)
    assert drawn["slope"].shape == (300, 5, 2)
    assert (np.abs(drawn["slope"].mean(0) - fit["slope"]) < 4 * drawn["slope"].std(0)).all()

def test_collinearity_is_that_of_regressions():
    r = np.random.default_rng(0)
    x, w = r.normal(size=(300, 5)) @ r.normal(size=(5, 5)), r.random(300) + 0.1
    for weight in (None, w):
        strongest, vif = attribution._collinearity(x, weight)
        for k in range(5):
            rest = np.delete(x, k, 1)
            assert (vif[k]
                    == pytest.approx(1 / (1
                                          - LinearRegression().fit(rest, x[:, k],
                                                                   weight).score(rest, x[:, k],
                                                                                 weight)),
                                     rel=1e-4))
        corr = np.cov(x.T, aweights=weight)
        corr = corr / np.sqrt(np.outer(np.diag(corr), np.diag(corr))) - np.eye(5)
        assert np.allclose(np.abs(strongest), np.abs(corr).max(1))
    # linked one by one, the ends by less
    chain = np.cumsum(r.normal(size=(3000, 4)) * [1, 0.8, 0.8, 9], axis=1)
    assert (attribution._collinear_sets(chain) == [[0, 1, 2]]
            and attribution._collinear_sets(chain, least=0.99) == [])
    assert (attribution._collinear_sets(x[:, :0]) == []
            and attribution._collinear_sets(x[:, [0, 1, 0]])[0][:1] == [0])

@pytest.mark.parametrize("sign", [1, -1])
def test_a_swap_between_collinear_terms_is_no_finding(sign):
    """Two encoders that follow the sum of two collinear terms alike, one by the first, one by the
    second: no slope tells them apart."""
    r = np.random.default_rng(0)
    x = r.normal(size=(3000, 3)); x[:, 1] = sign * (x[:, 0] + 0.3 * x[:, 1])
    y = np.stack([x[:, 0], sign * x[:, 1]], 1) + 0.5 * r.normal(size=(3000, 2))
    names, p = ["near ground", "near mean", "near layout"], attribution._collinear_sets(x)[0]
    name, signs = attribution._together(names, p, attribution._correlation(x))
    assert p == [0, 1] and name == f"near ground {'-' if sign < 0 else '+'} near mean"
    own = np.arange(3000)
    fit, drawn = attribution._weighted_ols(x, y, {name: p}, own, own, n_resamples=200)
    t = attribution._with_differences(["a", "b"],
                                      *attribution._summed(names, [name], {name: (p, signs)}, fit,
                                                           drawn)).set_index(["encoder", "quantity",
                                                                              "term"]).sort_index()
    gap, single = t.loc[("a − b", "slope", name)], t.loc[("a − b", "collinear")]
    assert gap.ci_low < 0 < gap.ci_high and abs(gap.value) < 0.05 # as a whole they are alike
    # one by one they would be opposites
    assert single.ci_low["near ground"] > 0.8 and sign * single.value["near mean"] < -0.8
    assert t.loc[("a", "unique", name)].value > 0.6 and ("a", "slope", "near ground") not in t.index

def only(table, encoder, quantity):
    return table[(table.encoder == encoder) & (table.quantity == quantity)].set_index("term")

def test_an_encoder_of_concepts_is_explained_by_concepts_alone(items, shown):
    keep = items.concept.notna().values
    own, look = items[keep].reset_index(drop=True), shown[keep].reset_index(drop=True)
    t = attribution.similarity_regression({"it": embeddings(one_hot(own.concept), own)}, look,
                                          pairs=8_000, n_resamples=60)
    unique, slope = only(t, "it", "unique"), only(t, "it", "slope")
    assert only(t, "it", "r2").value["all"] == pytest.approx(1, abs=1e-5)
    assert unique.value["concept"] > 0.95 # in this sample other terms stand in for a little of it
    rest = unique.drop("concept")
    assert (rest.value.abs() < 1e-6).all() and (rest.ci_high < 1e-3).all()
    assert slope.value["same concept"] > 3 and (slope.drop("same concept").value.abs() < 1e-5).all()

def test_an_encoder_of_the_ground_is_explained_by_the_ground_alone(items, shown):
    "exp(-t d) is a kernel for any t; for a small t it is 1 - t d, so cosine is linear in distance."
    far = np.linalg.norm(shown[["ground_L", "ground_a", "ground_b"]].values[:, None].astype(float)
                         - shown[["ground_L", "ground_a", "ground_b"]].values[None], axis=-1)
    value, vector = np.linalg.eigh(np.exp(-far * 2e-4))
    made = embeddings(vector * np.sqrt(value.clip(0)), items)
    t = attribution.similarity_regression({"it": made}, shown, pairs=8_000, n_resamples=60)
    unique, slope = only(t, "it", "unique"), only(t, "it", "slope")
    assert only(t, "it", "r2").value["all"] > 0.999
    both = "near ground + near mean" # collinear in these scenes
    # mean colour says part of it again
    assert unique.value["near ground"] > 0.1 and unique.value["colour"] > 0.8
    assert ((unique.drop(["near ground", "colour", both]).value < 1e-3).all()
            and unique.value[both] > 0.8)
    assert slope.value[both] == pytest.approx(1, abs=0.05)
    assert (slope.drop(both).value.abs() < 0.02).all()
    one = only(t, "it", "collinear")
    assert (one.index.tolist() == both.split(" + ")
            and one.value.tolist() == pytest.approx([1, 0], abs=0.05))
    assert ((one.r.abs() > attribution._COLLINEAR).all() and (one.vif > 1 / (1 - one.r**2)).all()
            and slope.vif.max() < one.vif.min())

def test_shares_differences_and_readings(items, shown):
    encoders = {n: embeddings(np.random.default_rng(k).normal(size=(len(items), 6))
                              + one_hot(items.ground_color)[:, :6] * k, items)
                for k, n in enumerate("ab")}
    whole = {r: attribution.similarity_regression(encoders, shown, pairs=10**6, n_resamples=80,
                                                  weighting=r)
             for r in ("stratified", "population")}
    assert np.allclose(whole["stratified"].value, whole["population"].value) # every pair, each once
    t = whole["stratified"]
    assert t.pairs[0] == len(items) * (len(items) - 1) // 2
    for e in "ab":
        single = only(t, e, "unique").drop("colour").value.filter(regex=r"^[^+]*$")
        assert (single > -1e-9).all() and single.sum() <= only(t, e, "r2").value["all"] + 1e-9
    gap = only(t, "a − b",
               "slope").value - (only(t, "a", "slope").value - only(t, "b", "slope").value)
    assert gap.abs().max() < 1e-12
    twin = attribution.similarity_regression(dict(a=encoders["a"], b=encoders["a"]), shown,
                                             pairs=3_000, n_resamples=20)
    assert (only(twin, "a − b", "slope")[["value", "ci_low", "ci_high"]] == 0).all(axis=None)

def test_population_weights_recover_all_pairs(items, shown):
    made = {"it": embeddings(one_hot(items.ground_color)
                             + 0.3
                             * np.random.default_rng(0).normal(size=(len(items),
                                                                     items.ground_color.nunique())),
                             items)}
    all_pairs = only(attribution.similarity_regression(made, shown, pairs=10**6, n_resamples=2),
                     "it", "r2").value["all"]
    def read(r):
        return only(attribution.similarity_regression(made, shown, pairs=6_000, n_resamples=2,
                                                      weighting=r), "it", "r2").value["all"]
    assert abs(read("population") - all_pairs) < 0.05 < abs(read("stratified") - all_pairs)

def test_without_labels_attributes_alone(items, shown):
    bare = embeddings(np.random.default_rng(0).normal(size=(len(items), 4)), items[["item_id"]])
    with pytest.warns(UserWarning, match="attributes alone"):
        t = attribution.similarity_regression({"it": bare}, shown, pairs=2_000, n_resamples=20)
    alone, one = (set(t[t.quantity == q].term) for q in ("slope", "collinear"))
    assert ({part for term in alone for part in term.split(" + ")}
            == {f"near {n}" for n in attribution._DISTANCE_TERMS} and not alone & one)
    assert t.n_groups[0] == len(items)

@pytest.mark.filterwarnings("ignore:the items have no")
def test_what_cannot_be_attributed_is_refused(items, shown):
    made = embeddings(np.random.default_rng(0).normal(size=(len(items), 4)), items)
    with pytest.raises(UserError, match="3 or more"):
        attribution.similarity_regression({"it": made.where(np.arange(len(items)) < 1)}, shown[:1])
    with pytest.raises(UserError, match="other items"):
        attribution.similarity_regression({"it": made}, shown[:-1])
    with pytest.raises(UserError, match="other items"):
        attribution.similarity_regression({"it": made, "no": made.where(np.arange(len(items)) > 0)},
                                          shown)
    with pytest.raises(UserError, match="unknown weighting"):
        attribution.similarity_regression({"it": made}, shown, weighting="none")
    broken = embeddings(np.full((len(items), 4), np.nan), items)
    with pytest.raises(UserError, match="not finite"):
        attribution.similarity_regression({"it": broken}, shown)

# --- lift

def test_random_pairs_have_no_lift_and_chosen_pairs_have(items, shown):
    made = embeddings(np.random.default_rng(0).normal(size=(len(items), 6)), items)
    p = attribution._stratified_pairs(items, 400, (), seed=5)
    z = attribution._standard(made, p.i.values, p.j.values)
    def of(q, z):
        return attribution.enrichment(q.assign(similar_in="a", z_a=z, z_b=0.0), made, made, shown,
                                      n_resamples=200)
    t = of(p, z)
    assert set(t.baseline) == {"random", "equal similarity"} and (t.n_unmatched < 5).all()
    inside = (t.ci_low <= 0) & (t.ci_high >= 0)
    assert inside.mean() > 0.8 # of some thirty intervals at 95 %
    common = t[t.baseline_value > 0.2]
    assert (common.enrichment > 0.7).all() and (common.enrichment < 1.4).all()
    same = attribution._stratified_pairs(items, 4_000, ("category",)).query("stratum == 'category'")
    c = of(same, attribution._standard(made, same.i.values, same.j.values))
    c = c[(c.factor == "category") & (c.baseline == "random")].iloc[0]
    chance = items.category.value_counts()
    assert c.mined_value == 1 and c.ci_low > 0.5
    both = of(p, z).set_index(["factor", "baseline"]).loc[("both have a concept", "random")]
    known = items.concept.notna().sum()
    assert (both.baseline_value == pytest.approx(known * (known - 1) / (240 * 239), abs=0.02)
            and both.pairs == 400)
    assert (c.baseline_value
            == pytest.approx((chance * (chance - 1)).sum() / (chance.sum() * (chance.sum() - 1)),
                             abs=0.01))

def test_equal_similarity_has_the_similarity_of_the_mined(items):
    made = embeddings(np.random.default_rng(2).normal(size=(len(items), 6)), items)
    z = np.array([-1.0, 0.31, 0.33, 2.0])
    e = attribution._similarity_matched_pairs(made, z, anchors=100)
    got = np.floor(attribution._standard(made, e.i.values,
                                         e.j.values) / attribution._SIMILARITY_BIN).astype(int)
    # a last digit at an edge
    assert (np.abs(got - e.bin) <= 1).all() and (got == e.bin).mean() > 0.999
    assert set(e.bin) == set(np.floor(z / attribution._SIMILARITY_BIN).astype(int))
    unordered = np.sort(e[["i", "j"]].values, 1)
    assert len(np.unique(unordered, axis=0)) == len(e) and (e.i != e.j).all()
    assert e.groupby("bin").size().max() <= attribution._PER_BIN

def test_a_pair_keeps_its_place_in_the_lot():
    i, j = np.array([3, 7, 2]), np.array([9, 1, 5])
    h = attribution._pair_hash(i, j, 10, 0)
    assert (np.array_equal(h, attribution._pair_hash(j, i, 10, 0))
            and (h != attribution._pair_hash(i, j, 10, 1)).all())
    many = attribution._pair_hash(*np.triu_indices(400, 1), 400, 0)
    assert len(np.unique(many)) == len(many) and abs((many / 2.0**64).mean() - 0.5) < 0.01

def test_pairs_beyond_all_similarities_are_counted(items, shown):
    made = embeddings(np.random.default_rng(0).normal(size=(len(items), 6)), items)
    p = attribution._stratified_pairs(items, 50, ()).assign(similar_in="a", z_b=0.0)
    z = attribution._standard(made, p.i.values, p.j.values); z[:7] = 90
    t = attribution.enrichment(p.assign(z_a=z), made, made, shown, ("style",), ("mean",),
                               n_resamples=20)
    t = t.set_index(["factor", "baseline"])
    assert (t.n_unmatched["mean", "equal similarity"] == 7
            and t.pairs["mean", "equal similarity"] == 43)
    assert t.n_unmatched["mean", "random"] == 0 and t.pairs["mean", "random"] == 50

def test_no_pairs_are_refused(items, shown):
    made = embeddings(np.ones((len(items), 2)), items)
    with pytest.raises(UserError, match="no pairs"):
        attribution.enrichment(pd.DataFrame(columns=["i", "j"]), made, made, shown)

# --- perturbations

def strengths(): return [(n, s) for n, (_, ss) in perturbations._PERTURBATIONS.items() for s in ss]

@pytest.mark.parametrize("name, strength", strengths())
def test_every_intervention_is_a_function_of_picture_seed_and_item(pictures, name, strength):
    for k in (0, 1, 2, 5):
        x = pictures[k].copy()
        once, twice = (perturbations.apply_perturbation(x, name, strength, f"item {k}", 3)
                       for _ in range(2))
        assert np.array_equal(x, pictures[k]) # the picture itself stays
        if once is None: assert name == "ground" and twice is None
        else:
            assert once.shape == x.shape and once.dtype == np.uint8
            assert np.array_equal(once, twice)

@pytest.mark.parametrize("name", ["texture", "shuffle", "word", "ground"])
def test_chance_differs_between_items_and_seeds(pictures, name):
    s = perturbations._PERTURBATIONS[name][1][-1]
    x = next(p for p in pictures if perturbations.background_mask(p) is not None)
    seen = {perturbations.apply_perturbation(x, name, s, i, seed).tobytes() for i in "abcdef"
            for seed in (0, 1)}
    assert len(seen) > 4

def test_neutral_strengths_leave_a_picture_alone(pictures):
    for x in pictures[:20]:
        assert np.abs(perturbations.apply_perturbation(x, "hue", 360).astype(int) - x).max() <= 1
        for name, s in (("hue", 0), ("rotation", 0), ("rotation", 360), ("grey", 0),
                        ("brightness", 1), ("blur", 0), ("texture", 0)):
            assert np.array_equal(perturbations.apply_perturbation(x, name, s), x), name

def test_grey_is_idempotent_blur_keeps_the_mean_shuffle_keeps_the_pixels(pictures):
    for x in pictures[:20]:
        g = perturbations.apply_perturbation(x, "grey", 1.0)
        assert (np.array_equal(perturbations.apply_perturbation(g, "grey", 1.0), g)
                and (g[..., :1] == g).all())
        assert np.array_equal(perturbations.apply_perturbation(g, "hue", 90), g)
        b = perturbations.apply_perturbation(x, "blur", 1/16)
        assert np.allclose(b.mean((0, 1)), x.mean((0, 1)), atol=0.2) and b.std() < x.std()
        s = perturbations.apply_perturbation(x, "shuffle", 8)
        def count(p):
            return np.sort(p.reshape(-1, 3).astype(int) @ [1, 256, 65536])
        assert np.array_equal(count(s), count(x))
        w = perturbations.apply_perturbation(x, "word", 1/4)
        assert np.array_equal(w[:48], x[:48]) and not np.array_equal(w[48:], x[48:])

def test_stronger_moves_pixels_further(pictures):
    for name in ("brightness", "blur", "texture", "grey"):
        strengths = dict(grey=(0.3, 0.6, 1.0)).get(name, perturbations._PERTURBATIONS[name][1])
        gap = [np.mean([np.abs(perturbations.apply_perturbation(x, name, s).astype(int) - x).mean()
                        for x in pictures[:10]]) for s in strengths]
        assert gap[0] < gap[1] < gap[2], name

def test_ground_changes_and_the_object_stays():
    "The alpha of the drawing says which pixels are ground, edge and object."
    table, pixels = drawings.drawings()
    rng, _whole, leaked, opaque = np.random.default_rng(0), 0, 0, 0
    for k in rng.choice(len(table), 40):
        canvas, _ = emoji_scenes.draw_background(rng, 64, "plain")
        x, alpha = canvas.copy(), np.zeros((64, 64, 3))
        emoji_scenes.paste(x, pixels[k], 44, 10, 10)
        shape = pixels[k].copy(); shape[..., :3] = 255
        emoji_scenes.paste(alpha, shape, 44, 10, 10)
        x = np.clip(np.rint(x), 0, 255).astype(np.uint8)
        y = perturbations.apply_perturbation(x, "ground", 40, str(k))
        assert y is not None
        moved, bare, thing = (x != y).any(-1), alpha[..., 0] == 0, alpha[..., 0] > 254.5
        ring = np.ones((64, 64), bool); ring[10:54, 10:54] = False
        assert moved[ring].all()
        assert moved[bare].mean() > 0.5 # what an object encloses is not connected with the border
        unlike = np.linalg.norm(attributes._rgb_to_lab(x)
                                - np.median(attributes._rgb_to_lab(x)[ring], 0),
                                axis=-1) >= perturbations._BACKGROUND_DELTA_E
        assert not moved[thing & unlike].any()
        leaked += moved[thing].sum(); opaque += thing.sum()
    assert leaked / opaque < 0.1 # an object's edge in the colour of its ground

def test_no_uniform_ground_is_skipped():
    r = np.random.default_rng(0)
    noise = r.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert perturbations.apply_perturbation(noise, "ground", 40) is None
    framed = noise.copy(); framed[[0, -1]] = 200; framed[:, [0, -1]] = 200 # a hairline is no ground
    assert perturbations.background_mask(framed) is None

def test_unknown_perturbations_are_refused(pictures):
    with pytest.raises(UserError, match="expected one of hue"):
        perturbations.apply_perturbation(pictures[0], "melt", 1)

def test_scenes_are_composed_again_with_one_thing_different():
    again = perturbations._counterfactual_scenes(WORLD, 12, seed=1)
    assert (set(again)
            == {"style", "concept, same category", "concept, other category", "ground, exactly",
                "word on a sign"})
    for name, c in again.items():
        assert c.before.shape == c.after.shape == (12, 64, 64, 3) and len(c.items) == 12
        moved = (c.before != c.after).any(-1)
        assert moved.any((1, 2)).all()
        if name == "ground, exactly":
            assert moved[:, 0].any(1).all() and (~moved).any((1, 2)).mean() > 0.5
        else: assert (~moved).mean() > 0.05 # the same ground around it
    for f in again["style"].items.family: assert drawings._assign_split(f) == "test"
    same = perturbations._counterfactual_scenes(WORLD, 12, seed=1)
    assert all(np.array_equal(again[k].after, same[k].after) for k in again)
    # the first do not depend on the number
    more = perturbations._counterfactual_scenes(WORLD, 14, seed=1)["style"]
    assert np.array_equal(more.after[:12], again["style"].after)

def test_partners_share_what_they_should():
    t = emoji_scenes.asset_pool("test", WORLD.held_out_style).table
    for k, (style, near, far) in itertools.islice(perturbations._partners(t).items(), 0, None, 200):
        me = t.iloc[k]
        assert ((t.concept.iloc[style] == me.concept).all()
                and (t.style_family.iloc[style] != me.style_family).all())
        assert ((t["style"].iloc[near] == me["style"]).all()
                and (t.category.iloc[near] == me.category).all())
        assert (t.family.iloc[near] != me.family).all()
        assert ((t["style"].iloc[far] == me["style"]).all()
                and (t.category.iloc[far] != me.category).all())

# --- sensitivity

def made(name, f, size=16):
    return Encoder(EncoderCard(name, "made", "none", name, size=size, mean=(0, 0, 0),
                               std=(1, 1, 1)), lambda x: Features(cls=f(x)))

def test_encoders_are_moved_by_what_they_see_and_by_nothing_else(scenes):
    luma = torch.tensor([0.299, 0.587, 0.114])
    encoders = {"colour": made("colour", lambda x: x.mean((2, 3)) - 0.5, 64),
                "form": made("form",
                             lambda x: (luma @ x.flatten(2)
                                        - (luma @ x.flatten(2)).mean(1, keepdim=True)), 64)}
    t = perturbations.sensitivity(encoders, scenes, n=30,
                                  n_resamples=50).set_index(["encoder", "perturbation", "strength"])
    assert t["shift_sd"]["colour", "shuffle", 8] == pytest.approx(0, abs=1e-5)
    assert (abs(t["shift_sd"]["colour", "rotation", 90]) < 1e-4
            < t["shift_sd"]["form", "rotation", 90])
    assert t["shift_sd"]["form", "grey", 1] < 0.01 < t["shift_sd"]["colour", "grey", 1]
    assert t["shift_sd"]["form", "brightness", 0.6] < 0.01
    for s in (2, 4, 8):
        assert (t["shift_sd"]["colour − form", "shuffle", s]
                == pytest.approx(t["shift_sd"]["colour", "shuffle",
                                           s] - t["shift_sd"]["form", "shuffle", s]))
    assert t.shift_sd_ci_high["colour − form", "shuffle", 8] < 0
    g = t.loc["form", "ground", 40]
    assert g.n + g.skipped == 30 and g.skipped > 0

def test_sensitivity_is_the_mean_drop_in_both_units(scenes, pictures):
    e = raw_pixels(16)
    t = perturbations.sensitivity({"raw": e}, scenes, n=240, n_resamples=100,
                                  perturbations=dict(grey=perturbations._PERTURBATIONS["grey"]))
    def see(p):
        return torch.nn.functional.normalize(e.vector(eval_view(torch.from_numpy(p.transpose(0, 3,
                                                                                             1,
                                                                                             2)).float() / 255, 16)), dim=1)  # noqa: E501
    before, after = (see(pictures),
                     see(np.stack([perturbations.apply_perturbation(p, "grey", 1.0)
                                   for p in pictures])))
    drop = (1 - (before * after).sum(1)).numpy()
    pairs = (before @ before.T).numpy()[np.triu_indices(240, 1)]
    row = t.iloc[0]
    assert row["shift_sd"] == pytest.approx(drop.mean() / pairs.std(), rel=1e-3)
    assert row.shift_rel == pytest.approx(drop.mean() / (1 - pairs.mean()), rel=1e-3)
    assert row.shift_sd_ci_low < row.shift_sd < row.shift_sd_ci_high and row.n == 240

def test_an_encoder_may_fit_pictures_itself(scenes):
    e, seen = raw_pixels(8), []
    def fit(im):
        seen.append(im.size)
        return np.asarray(im.resize((8, 8)))
    e.fit = fit
    t = perturbations.sensitivity({"own": e}, scenes, n=5, n_resamples=5,
                                  perturbations=dict(grey=perturbations._PERTURBATIONS["grey"]))
    assert set(seen) == {(64, 64)} and len(seen) == 10 and np.isfinite(t["shift_sd"]).all()

def test_a_world_adds_scenes_composed_again():
    t = perturbations.sensitivity({"raw": raw_pixels(16)}, WORLD, n=8, n_resamples=10,
                                  perturbations={})
    assert (t.perturbation.tolist()
            == ["style", "concept, same category", "concept, other category", "ground, exactly",
                "word on a sign"])
    assert (t["shift_sd"] > 0).all() and (t.n == 8).all()

def test_a_folder_needs_no_labels(tmp_path):
    r = np.random.default_rng(0)
    for k in range(12):
        side = 40 + 5 * k
        small = Image.fromarray(r.integers(0, 256, (4, 4, 3)).astype(np.uint8))
        small.resize((side, side + 7), Image.Resampling.NEAREST).save(tmp_path / f"{k:02d}.png")
    corpus = load_folder(tmp_path).corpus
    look = attributes.corpus_attributes(corpus, 32)
    own = corpus.select_columns(["item_id", "pixel_hash"]).to_pandas()
    made = embeddings(look[["mean_L", "mean_a", "mean_b"]].values - [50, 0, 0], own)
    with pytest.warns(UserWarning, match="attributes alone"):
        t = attribution.similarity_regression({"it": made}, look, n_resamples=20)
    slope = only(t, "it", "slope").value
    assert "near mean" in slope.idxmax() and t.pairs[0] == 66 and t.n_groups[0] == 12
    pairs = attribution._stratified_pairs(own, 30, ()).assign(similar_in="b", z_b=0.0)
    with pytest.warns(UserWarning, match="attributes alone"):
        l = attribution.enrichment(pairs, made, made, look, n_resamples=20)
    assert set(l.measure) == {"distance"}
    s = perturbations.sensitivity({"raw": raw_pixels(8)}, corpus, n=12, n_resamples=20)
    assert set(s.perturbation) == set(perturbations._PERTURBATIONS)
    assert (s.n + s.skipped == 12).all()
    assert s[s.n > 0].n_groups.le(12).all() and s[s.n == 0]["shift_sd"].isna().all()

def test_figures_show_the_numbers_of_the_tables(scenes, items, shown):
    from ccd.report.style import styled_pyplot
    from ccd.report.similarity import attribution_plot, sensitivity_plot
    s = perturbations.sensitivity({"DINO": raw_pixels(16), "raw pixels": raw_pixels(8)}, scenes,
                                  n=10, n_resamples=10)
    ax = sensitivity_plot(s).axes[0]
    for name in ("DINO", "raw pixels"):
        want = [g["shift_sd"].iloc[len(g) // 2]
                for _, g in s[s.encoder == name].groupby("perturbation", sort=False)]
        got = next(c for c in ax.collections if c.get_label() == name).get_offsets()
        assert np.allclose(got[:, 0], want) and (np.diff(got[:, 1]) < 0).all()
    made = embeddings(np.random.default_rng(0).normal(size=(len(items), 4)), items)
    t = attribution.similarity_regression(dict(a=made, b=made), shown, pairs=2_000, n_resamples=10)
    for q in ("slope", "unique"):
        ax = attribution_plot(t, ["a", "a − b"], q).axes[0]
        dots = {c.get_label(): c.get_offsets()[:, 0]
                for c in ax.collections if c.get_label() in ("a", "a − b")}
        assert np.allclose(dots["a"], only(t, "a", q).value) and (dots["a − b"] == 0).all()
    styled_pyplot().close("all")

def test_one_picture_has_no_sensitivity(scenes):
    with pytest.raises(UserError, match="3 or more"):
        perturbations.sensitivity({"raw": raw_pixels(16)}, scenes.select([0]))
