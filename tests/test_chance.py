"""What every table calls chance, or a baseline without images, against answers, neighbors and pairs
that are drawn at random."""
import re
from pathlib import Path
import numpy as np, pandas as pd, pytest
from ccd.comparison import agreement, attributes, attribution, neighbors as nb
from ccd.probing import tables, zeroshot
from ccd.encoders.embeddings import Embeddings
from ccd.files import load_table
from conftest import ROOT

CHECKED = { # column of a published table -> the test that draws at random what it is chance of
    ("purity", "chance"): "test_neighbors.py::test_chance_of_purity_is_that_of_random_neighbors",
    ("overlap", "chance"): "test_chance.py::test_overlap_of_random_neighbors",
    ("overlap", "null_p95"): "test_neighbors.py::test_the_null_of_overlap_has_its_expectation",
    ("agreement", "chance"): "test_chance.py::test_agreement_of_random_pairs",
    ("agreement", "null_p95"): "test_pairs.py::test_p_values_are_uniform_without_an_effect",
    ("verified", "chance"): "test_chance.py::test_agreement_of_random_pairs",
    ("verified", "chance_2"): "test_chance.py::test_agreement_of_random_pairs",
    ("verified", "null_p95"): "test_pairs.py::test_p_values_are_uniform_without_an_effect",
    ("verified", "null_p95_2"): "test_pairs.py::test_p_values_are_uniform_without_an_effect",
    ("lift", "baseline_value"): "test_chance.py::test_random_pairs_are_like_random_pairs",
    ("zero_shot", "chance"): "test_chance.py::test_names_of_random_vectors",
    ("retrieval", "chance"): "test_chance.py::test_retrieval_by_random_vectors",
    ("probes", "majority"): "test_chance.py::test_the_commonest_class_is_one_that_may_be_answered",
    ("accuracy",
     "majority"): "test_chance.py::test_the_commonest_class_is_one_that_may_be_answered",
}

def test_every_published_chance_is_checked():
    stated = {(p.stem, c) for p in (ROOT / "results").rglob("*.csv")
              for c in load_table( p)
              if re.fullmatch(r"(chance|majority|baseline_value|null_p95)(_2)?", c)}
    assert stated <= set(CHECKED)
    for where in set(CHECKED.values()):
        file, test = where.split("::")
        assert f"def {test}(" in next(
            Path(__file__).parent.rglob(file)).read_text(encoding="utf-8"), where

def close(values, chance, axis=0): # each within the error of the draws
    values = np.asarray(values, float)
    error = values.std(axis, ddof=1) / values.shape[axis]**0.5
    assert (np.abs(values.mean(axis) - chance)
            <= 4.5 * error + 1e-12).all(), (values.mean(axis), chance, error)

def items_of(n, **more): return pd.DataFrame(dict(item_id=[f"p{k}" for k in range(n)]) | more)

def random_lists(rng, n, k): # neighbors of each row, never itself
    order = rng.random((n, n)); np.fill_diagonal(order, 2)
    return order.argsort(1)[:, :k]

def test_overlap_of_random_neighbors():
    rng, n, k = np.random.default_rng(0), 60, 7
    found = [(random_lists(rng, n, k), random_lists(rng, n, k)) for _ in range(200)]
    chance = nb.overlap_curve(*found[0], np.arange(n), (k,), n_resamples=2,
                              permutations=2).chance[0]
    close([nb.mutual_knn(a, b).mean() for a, b in found], chance)
    # of 4,000 scenes, by whatever stage made it
    for file in (ROOT / "results").rglob("overlap.csv"):
        t = load_table(file)
        assert np.allclose(t.chance, t.get("k", 10) / 3999)

@pytest.mark.parametrize("copies", [False, True])
def test_agreement_of_random_pairs(copies):
    """Pairs drawn at random among those that may be mined: of different images, copies of one image
    left out."""
    rng, n = np.random.default_rng(1), 80
    label = rng.choice(["cat", "dog", "bird", None], n, p=[0.5, 0.2, 0.05, 0.25])
    group = np.arange(n)
    if copies: group[20:50] = group[:30]; label[20:50] = label[:30] # these always agree
    items = items_of(n, category=label, pixel_hash=[f"h{g}" for g in group])
    i, j = np.triu_indices(n, 1)
    may = np.flatnonzero(group[i] != group[j])
    def share(given): # of 300 pairs
        at = rng.choice(may, 300, replace=False)
        t = agreement.factor_agreement(pd.DataFrame(dict(i=i[at], j=j[at], similar_in="a")), items,
                                       ["category"], 2, given)
        return t.share[0], t.chance[0]
    # equal pixels are copies by themselves
    drawn = np.array([share(group if k % 2 else None) for k in range(120)])
    assert np.ptp(drawn[:, 1]) < 1e-12
    close(drawn[:, 0], drawn[0, 1])

def test_random_pairs_are_like_random_pairs():
    "Pairs that were mined for nothing have the share and the distance of the random baseline."
    rng, n = np.random.default_rng(2), 120
    items = items_of(n, style=rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1]))
    made = Embeddings(rng.normal(size=(n, 6)).astype(np.float32), items, dict(name="made"))
    look = pd.DataFrame(dict(item_id=items.item_id)
                        | {f"mean_{c}": rng.normal(size=n) for c in "Lab"})
    i, j = np.triu_indices(n, 1)
    far = attributes.attribute_distances(look, i, j, ("mean",))["mean"].values
    same = items["style"].values[i] == items["style"].values[j]
    t = attribution.enrichment(pd.DataFrame(dict(i=i[:40], j=j[:40], z_a=0.0, z_b=0.0,
                                                 similar_in="a")), made, made, look, ("style",),
                               ("mean",), n_resamples=2)
    base = t[t.baseline == "random"].set_index("factor").baseline_value
    def drawn(): at = rng.choice(len(i), 200); return same[at].mean(), far[at].mean()
    close([drawn() for _ in range(200)], [base["style"], base["mean"]])

def test_names_of_random_vectors():
    rng, names = np.random.default_rng(3), [f"n{k}" for k in range(12)]
    def right(k):
        y = rng.choice(names, 100, p=np.arange(1, 13) / 78) # names of unequal frequency
        said = zeroshot._zero_shot_predict(rng.normal(size=(100, 9)), rng.normal(size=(12, 9)),
                                           names, 5)
        return zeroshot._topk_accuracy(y, said, ks=(1, 5), n_resamples=2).accuracy
    close([right(k) for k in range(200)], [1 / len(names), 5 / len(names)])

def test_retrieval_by_random_vectors():
    rng = np.random.default_rng(4)
    owner, said = np.repeat(np.arange(30), rng.integers(1, 4, 30)), None
    # some say the same of several images
    said = rng.choice([f"c{k}" for k in range(40)], len(owner)).tolist()
    def make():
        return zeroshot.retrieval(rng.normal(size=(30, 8)), rng.normal(size=(len(owner), 8)), owner,
                                  said, ks=(1, 5), n_resamples=2)
    drawn = [make() for _ in range(60)]
    close([t.recall for t in drawn], drawn[0].chance.values)

def test_the_commonest_class_is_one_that_may_be_answered():
    """Where only some classes may be answered, a class that is none of them is no baseline: it
    would never be right."""
    y = np.array(["cat"] * 6 + ["dog"] * 4 + ["bird"] * 3)
    learnt = tables._FittedProbes(None, np.eye(13), y, 1, "cat")
    assert tables._among(learnt, ["dog", "bird"], None).commonest == "dog"

def test_another_image_at_random_moves_by_one():
    "`shift_rel` is in mean distances: an image that becomes another, taken at random, moves by 1."
    from ccd.comparison.perturbations import sensitivity
    from ccd.encoders.baselines import raw_pixels
    from datasets import Dataset, Features as Columns, Image, Value
    from PIL import Image as Picture
    rng, n = np.random.default_rng(5), 40
    images = rng.integers(0, 256, (n, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    corpus = Dataset.from_dict(dict(item_id=[f"p{k}" for k in range(n)],
                                    image=[Picture.fromarray(x) for x in images]),
                               Columns(dict(item_id=Value("string"), image=Image())))
    def another(image, strength, lot): # never itself
        own = int((images == image).all((1, 2, 3)).argmax())
        return images[(own + 1 + lot.integers(n - 1)) % n]
    moved = [sensitivity({"raw": raw_pixels(4)}, corpus, n, 2, seed, 64,
                         {"other": (another, (1,))}).shift_rel[0] for seed in range(20)]
    close(moved, 1)
