"The search over all pairs gives what brute force gives."
import numpy as np, pandas as pd, pytest
from ccd import pairs
from ccd.core import UserError
from ccd.embeddings import Embeddings

def vectors(n, d, seed, copies=0):
    "Random vectors; some rows are pictures that occur twice."
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    hashes = [f"p{i % (n - copies)}" for i in range(n)]
    items = pd.DataFrame(dict(item_id=[f"i{k}" for k in range(n)], pixel_hash=hashes))
    return Embeddings(x, items, {})

def brute(a, b, sign, per_image, k):
    "(i, j) by their definition: standardise, sort all pairs, take greedily."
    n, hashes = len(a.items), a.items.pixel_hash.values
    upper = np.triu_indices(n, 1)
    def z(e):
        x = e.vectors.astype(float); x /= np.linalg.norm(x, axis=1, keepdims=True)
        s = (x @ x.T)[upper]
        return (s - s.mean()) / s.std()
    score, used, kept = sign * (z(a) - z(b)), np.zeros(n, int), []
    for p in np.argsort(-score):
        i, j = upper[0][p], upper[1][p]
        if len(kept) < k and hashes[i] != hashes[j] and max(used[i], used[j]) < per_image:
            used[[i, j]] += 1; kept.append((i, j, score[p]))
    return kept

@pytest.mark.parametrize("per_image, k", [(1, 40), (3, 20), (99, 50)])
@pytest.mark.parametrize("n", [20, 63, 64, 65, 130])
def test_mine_is_brute_force(monkeypatch, n, per_image, k):
    monkeypatch.setattr(pairs, "TILE", 64)
    a, b = vectors(n, 8, 0, copies=6), vectors(n, 5, 1, copies=6)
    t = pairs.mine(a, b, k, per_image)
    assert (t.i < t.j).all() and not t.duplicated(["direction", "i", "j"]).any()
    assert (a.items.pixel_hash.values[t.i] != a.items.pixel_hash.values[t.j]).all()
    for direction, sign in (("a", 1), ("b", -1)):
        p, want = t[t.direction == direction], brute(a, b, sign, per_image, k)
        assert list(zip(p.i, p.j)) == [(i, j) for i, j, _ in want]
        assert np.allclose(sign * p.score, [s for *_, s in want], atol=1e-4)
        assert p["rank"].tolist() == [*range(1, len(want) + 1)]

def test_swapping_the_encoders_swaps_the_directions():
    a, b = vectors(50, 8, 2), vectors(50, 8, 3)
    one, two = pairs.mine(a, b, 15), pairs.mine(b, a, 15)
    pick = lambda t, d: t[t.direction == d][["item_id_i", "item_id_j"]].values.tolist()
    assert pick(one, "a") == pick(two, "b") and pick(one, "b") == pick(two, "a")
    assert pick(one, "a") != pick(one, "b")

def test_other_items_are_refused():
    a, b = vectors(10, 4, 0), vectors(10, 4, 1)
    b.items.loc[3, "item_id"] = "another"
    with pytest.raises(UserError, match="same items"): pairs.mine(a, b)

def test_moments_are_those_of_all_pairs():
    x = vectors(40, 6, 4).unit()
    s = (x.astype(float) @ x.T)[np.triu_indices(40, 1)]
    assert np.allclose(pairs.similarity_moments(x), (s.mean(), s.std()))

@pytest.mark.parametrize("classes", [1, 2, 7, 60])
def test_chance_is_the_share_of_all_pairs(classes):
    y = np.random.default_rng(classes).integers(0, classes, 60)
    same = [y[i] == y[j] for i in range(60) for j in range(60) if i != j]
    assert pairs.chance_agreement(y) == pytest.approx(np.mean(same))

def test_agreement_counts_pairs_where_both_are_known():
    items = pd.DataFrame(dict(item_id=list("abcd"), color=["red", "red", None, "blue"]))
    p = pd.DataFrame(dict(i=[0, 0, 0], j=[1, 2, 3], direction="a"))
    t = pairs.agreement(p, items, ["color"], draws=20).iloc[0]
    assert (t.share, t.pairs, t.chance) == (0.5, 2, pytest.approx(1 / 3))
