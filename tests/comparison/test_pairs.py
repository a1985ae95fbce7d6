"The search over all pairs gives what brute force gives, in any precision and by any engine."
import subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from ccd.comparison import agreement, products, search
from ccd.files import UserError
from ccd.encoders.embeddings import Embeddings

pytestmark = pytest.mark.numeric

def vectors(n, d, seed, copies=0, shift=0.0, dtype=np.float32):
    "Random vectors; some rows are pictures that occur twice."
    x = np.random.default_rng(seed).normal(size=(n, d)) + shift
    hashes = [f"p{i % (n - copies)}" for i in range(n)]
    items = pd.DataFrame(dict(item_id=[f"i{k}" for k in range(n)], pixel_hash=hashes))
    return Embeddings(x.astype(dtype), items, {})

def cosines(e):
    x = e.vectors.astype(float)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T

def brute(a, b, sign, per_image, k):
    "(i, j) by their definition: standardize, sort all pairs, take greedily."
    n, hashes = len(a.items), a.items.pixel_hash.values
    upper = np.triu_indices(n, 1)
    def z(e):
        return (lambda s: (s - s.mean()) / s.std())(cosines(e)[upper])
    score, used, kept = sign * (z(a) - z(b)), {}, []
    for p in np.argsort(-score):
        i, j = upper[0][p], upper[1][p]
        x, y = hashes[i], hashes[j]
        if (len(kept) < k and score[p] > 0 and x != y
            and max(used.get(x, 0), used.get(y, 0)) < per_image):
            used[x], used[y] = used.get(x, 0) + 1, used.get(y, 0) + 1
            kept.append((i, j, score[p]))
    return kept

@pytest.fixture(params=["bf16", "fp32"])
def precision(request, monkeypatch):
    monkeypatch.setenv("CCD_PRECISION", request.param)
    return request.param

@pytest.mark.parametrize("per_image, k", [(1, 40), (3, 20), (99, 50)])
@pytest.mark.parametrize("n", [20, 63, 64, 65, 130, 300])
def test_mine_is_brute_force(monkeypatch, precision, n, per_image, k):
    monkeypatch.setattr(search, "_TILE", (32, 64))
    a, b = vectors(n, 8, 0, copies=6), vectors(n, 5, 1, copies=6, shift=1.0)
    t = search.mine_pairs(a, b, k, per_image)
    assert (t.i < t.j).all() and not t.duplicated(["similar_in", "i", "j"]).any()
    assert (a.items.pixel_hash.values[t.i] != a.items.pixel_hash.values[t.j]).all()
    for direction, sign in (("a", 1), ("b", -1)):
        p, want = t[t.similar_in == direction], brute(a, b, sign, per_image, k)
        assert list(zip(p.i, p.j)) == [(i, j) for i, j, _ in want]
        assert np.allclose(sign * p.score, [s for *_, s in want], atol=1e-9)
        assert p["rank"].tolist() == [*range(1, len(want) + 1)]

@pytest.mark.parametrize("shift", [0.0, 3.0]) # isotropic, and a narrow cone
def test_low_precision_changes_nothing(monkeypatch, shift):
    """The floor is reached, so that most pairs are dismissed unseen; what is left is the same to
    the last bit."""
    a, b = (vectors(2500, d, d, shift=shift, dtype=np.float16) for d in (96, 64))
    m, group = products.pair_moments(a, b), search._exact_duplicates(a.items)
    every = 2500 * 2499 // 2
    found = {}
    for dtype in (torch.int8, torch.bfloat16, torch.float32, torch.float64):
        best = search._search_exact(products._make_score_gemm(a, b, m, dtype, torch.device("cpu")),
                                    500, group)
        assert all(len(f.i) == 500 and f.scored < every / 20 for f in best)
        found[dtype] = [(f.i.tolist(), f.j.tolist(), f.score.tolist()) for f in best]
    assert (found[torch.int8] == found[torch.bfloat16] == found[torch.float32]
            == found[torch.float64])

@pytest.mark.parametrize("dtype, small",
                         [(torch.int8, 1.0), (torch.bfloat16, 0.1), (torch.float32, 1e-3)])
@pytest.mark.parametrize("shift, scale", [(0, 1), (5, 1), (0, 1e4)])
def test_no_score_is_further_off_than_its_bound(dtype, small, shift, scale):
    a, b = vectors(400, 40, 0, shift=shift), vectors(400, 70, 1)
    a.vectors *= scale
    p = products._make_score_gemm(a, b, products.pair_moments(a, b), dtype, torch.device("cpu"))
    s = p.unit * p.tile(p.left(slice(None)), slice(None)).double().numpy()
    i, j = np.triu_indices(400, 1)
    exact, rounding = p.exact(i, j), 0 if dtype == torch.int8 else torch.finfo(dtype).eps / 2
    assert (abs(s[i, j] - exact) <= p.error + abs(s[i, j]) * rounding).all()
    assert p.error < small # and the bound says something

@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_eight_bits_find_what_brute_force_finds(monkeypatch, shared):
    "Also where encoders say nearly the same."
    monkeypatch.setattr(search, "_has_fast_int8", lambda: True)
    a, b = vectors(600, 8, 0, copies=6), vectors(600, 8, 1, copies=6)
    b.vectors[:] = shared * a.vectors + (1 - shared) * b.vectors
    m = products.pair_moments(a, b)
    assert (products._make_score_gemm(a, b, m, torch.int8, torch.device("cpu")).right.dtype
            == torch.int8)
    monkeypatch.setattr(search, "_MAX_ERROR_SD", np.inf)
    assert search._cheapest_score_gemm(a, b, m).right.dtype == torch.int8
    t = search.mine_pairs(a, b, 30, 2)
    for direction, sign in (("a", 1), ("b", -1)):
        p = t[t.similar_in == direction]
        assert list(zip(p.i, p.j)) == [(i, j) for i, j, _ in brute(a, b, sign, 2, 30)]

def test_short_axes_give_the_same_scores_from_shorter_rows():
    a, b = vectors(500, 12, 0), vectors(500, 9, 1)
    b.vectors[:] += a.vectors[:, :9]
    p = products._make_score_gemm(a, b, products.pair_moments(a, b), torch.float64,
                                  torch.device("cpu"))
    u, _ = p.rows(slice(None))
    turn, sign = products._min_norm_basis(p.m, p.weights)
    v, scores = u @ turn, (u * p.sign) @ u.T
    assert torch.allclose((v * sign) @ v.T, scores, atol=1e-9)
    nuclear = float(torch.linalg.svdvals(scores).sum())
    assert abs(float(v.square().sum()) / nuclear - 1) < 1e-4 < float(u.square().sum()) / nuclear - 1

def test_a_wrong_bound_is_noticed():
    a, b = vectors(200, 8, 0), vectors(200, 8, 1)
    p = products._make_score_gemm(a, b, products.pair_moments(a, b), torch.bfloat16,
                                  torch.device("cpu"))
    p.error = 1e-6
    with pytest.raises(RuntimeError, match="further off than its bound"):
        search._search_exact(p, 50, search._exact_duplicates(a.items))

def test_swapping_the_encoders_swaps_the_directions(precision):
    a, b = vectors(50, 8, 2), vectors(50, 8, 3)
    one, two = search.mine_pairs(a, b, 15), search.mine_pairs(b, a, 15)
    def pick(t, d):
        return t[t.similar_in == d][["item_id_i", "item_id_j"]].values.tolist()
    assert pick(one, "a") == pick(two, "b") and pick(one, "b") == pick(two, "a")
    assert pick(one, "a") != pick(one, "b")

@pytest.mark.parametrize("scale", [1, 7.5])
def test_an_encoder_agrees_with_itself(scale):
    a, b = vectors(60, 8, 0), vectors(60, 8, 0)
    b.vectors *= np.float32(scale) # the same directions
    assert (len(search.mine_pairs(a, b)) == 0
            and products.pair_moments(a, b).score_std < search._SAME_TOLERANCE)

def test_almost_the_same_encoder_needs_more_precision(precision):
    """Rounded to half precision an encoder still differs from itself a little, far less than bf16
    can see."""
    a = vectors(300, 16, 0)
    b = Embeddings(a.vectors.astype(np.float16), a.items, {})
    t, want = search.mine_pairs(a, b, 20, 99), brute(a, b, 1, 99, 20)
    assert list(zip(t.i[:20], t.j[:20])) == [(i, j) for i, j, _ in want]

@pytest.mark.parametrize("calibration", ["linear", "rank"])
def test_no_pair_is_listed_that_the_other_encoder_joins(calibration):
    "All that a few pictures have is not what one encoder joins and the other parts."
    t = search.mine_pairs(vectors(12, 8, 0), vectors(12, 5, 1), 200, 99, calibration=calibration)
    assert (20 < len(t) <= 66 and (t.score[t.similar_in == "a"] > 0).all()
            and (t.score[t.similar_in == "b"] < 0).all())

@pytest.mark.parametrize("wrong, says",
                         [(dict(k=0), "k = 0"), (dict(per_image=0), "per_image = 0"),
                          (dict(calibration="ranks"), "'ranks'")])
def test_what_cannot_be_mined(wrong, says):
    with pytest.raises(UserError, match=says):
        search.mine_pairs(vectors(12, 8, 0), vectors(12, 5, 1), **wrong)

def test_other_items_are_refused():
    a, b = vectors(10, 4, 0), vectors(10, 4, 1)
    b.items.loc[3, "item_id"] = "another"
    with pytest.raises(UserError, match="same items"): search.mine_pairs(a, b)

@pytest.mark.parametrize("bad, says", [(np.nan, "not finite"), (np.inf, "not finite")])
def test_vectors_that_are_no_numbers(bad, says):
    a, b = vectors(10, 4, 0), vectors(10, 4, 1)
    b.vectors[7, 2] = bad
    with pytest.raises(UserError, match=f"'i7'.*{says}"): search.mine_pairs(a, b)

def test_items_without_a_hash_are_no_copies():
    a, b = vectors(30, 6, 0), vectors(30, 6, 1)
    want = len(search.mine_pairs(a, b, 500, 99))
    for e in (a, b): e.items["pixel_hash"] = None
    # each pair is one encoder's
    assert len(search.mine_pairs(a, b, 500, 99)) == want == 30 * 29 // 2
    for e in (a, b): del e.items["pixel_hash"]
    assert len(search.mine_pairs(a, b, 500, 99)) == want

def test_few_images_and_one_vector_for_all():
    for n in (1, 2):
        with pytest.raises(UserError, match="three or more"):
            search.mine_pairs(vectors(n, 4, 0), vectors(n, 4, 1))
    flat = vectors(10, 4, 0); flat.vectors[:] = 1
    with pytest.raises(UserError, match="same vector"): search.mine_pairs(flat, vectors(10, 4, 1))
    assert len(search.mine_pairs(vectors(3, 4, 0), vectors(3, 4, 1), per_image=9)) == 3

# corners of a simplex
@pytest.mark.parametrize("x",
                         [np.eye(6), 1e-200 * np.eye(6), np.eye(6) - 1 / 6, np.eye(40)[:30] + 3])
def test_different_vectors_that_are_equally_alike_are_not_called_the_same(x):
    e = Embeddings(x, vectors(len(x), 4, 1).items, dict(name="mine"))
    for do in (search.mine_pairs, agreement._near_duplicates):
        args = (5,) if do is search.mine_pairs else ()
        with pytest.raises(UserError,
                           match=f"to mine all pairs of the {len(x)} items are equally alike"):
            do(e, vectors(len(x), 4, 1), *args)

def test_vectors_of_any_length_give_the_same_pairs():
    a, b = vectors(40, 6, 0, dtype=np.float64), vectors(40, 6, 1)
    want = search.mine_pairs(a, b, 10)
    for scale in (1e-200, 1e200):
        got = search.mine_pairs(Embeddings(a.vectors * scale, a.items, a.card), b, 10)
        assert ((got[["i", "j"]] == want[["i", "j"]]).all(axis=None)
                and np.allclose(got.score, want.score, atol=1e-9))

def test_a_zero_vector_is_like_nothing():
    a, b = vectors(40, 6, 0), vectors(40, 6, 1)
    a.vectors[5] = 0
    t = search.mine_pairs(a, b, 2000, 99)
    assert (t[(t.i == 5) | (t.j == 5)].sim_a == 0).all() and np.isfinite(t.score).all()

def test_moments_are_those_of_all_pairs():
    a, b = vectors(40, 6, 4), vectors(40, 9, 5, shift=1)
    upper = np.triu_indices(40, 1)
    x, y, m = cosines(a)[upper], cosines(b)[upper], products.pair_moments(a, b)
    assert np.allclose((*m.mean, *m.std, m.correlation),
                       (x.mean(), y.mean(), x.std(), y.std(), np.corrcoef(x, y)[0, 1]))
    assert m.score_std == pytest.approx(((x - x.mean()) / x.std() - (y - y.mean()) / y.std()).std())

def test_ranks_are_brute_force(monkeypatch):
    monkeypatch.setattr(search, "_TILE", (32, 64))
    a, b = vectors(150, 8, 0, copies=5), vectors(150, 5, 1, shift=2.0, copies=5)
    i, j = np.triu_indices(150, 1)
    f = [(c[:, None] > c).mean(1) + 0.5 / len(c) for c in (cosines(e)[i, j] for e in (a, b))]
    score, apart = f[0] - f[1], a.items.pixel_hash.values[i] != a.items.pixel_hash.values[j]
    t = search.mine_pairs(a, b, 30, 999, calibration="rank")
    for d, sign in (("a", 1), ("b", -1)):
        assert np.allclose(sign * t[t.similar_in == d].score,
                           np.sort(sign * score[apart])[::-1][:30], atol=1e-9)

def test_rules_count_every_pair_once():
    a, b = vectors(90, 4, 0), vectors(90, 4, 1)
    i, j = np.triu_indices(90, 1)
    sa, sb = cosines(a)[i, j], cosines(b)[i, j]
    t = agreement._count_threshold_pairs(a, b, {"r": ((0.5, 0.1), (0.4, 0.2))})
    assert t.pairs.tolist() == [((sa > 0.5) & (sb < 0.1)).sum(), ((sb > 0.4) & (sa < 0.2)).sum()]

def test_copies_are_connected_by_nearness_in_both(monkeypatch, precision):
    monkeypatch.setattr(search, "_TILE", (32, 64))
    rng = np.random.default_rng(0)
    a, b = vectors(120, 12, 0), vectors(120, 12, 1)
    for k in range(5): # a chain of three copies each; near in both
        for e in (a, b):
            e.vectors[100 + k] = e.vectors[k] + 0.03 * rng.normal(size=12)
            e.vectors[110 + k] = e.vectors[100 + k]
    a.vectors[99] = a.vectors[98] # a copy to one encoder only
    g = agreement._near_duplicates(a, b, tolerance=0.02)
    assert all(g[k] == g[100 + k] == g[110 + k] for k in range(5)) and g[98] != g[99]
    assert len(set(g.tolist())) == 110
    t = search.mine_pairs(a, b, 60, per_image=1, group=g)
    for d in "ab":
        used = np.concatenate([g[t[t.similar_in == d].i], g[t[t.similar_in == d].j]])
        assert len(set(used.tolist())) == len(used)

@pytest.mark.parametrize("classes", [1, 2, 7, 60])
def test_chance_is_the_share_of_all_pairs(classes):
    y = np.random.default_rng(classes).integers(0, classes, 60)
    same = [y[i] == y[j] for i in range(60) for j in range(60) if i != j]
    assert agreement._chance_agreement(y) == pytest.approx(np.mean(same))

def test_agreement_counts_pairs_where_both_are_known():
    items = pd.DataFrame(dict(item_id=list("abcd"), color=["red", "red", None, "blue"]))
    p = pd.DataFrame(dict(i=[0, 0, 0], j=[1, 2, 3], similar_in="a"))
    t = agreement.factor_agreement(p, items, ["color"], n_resamples=20).iloc[0]
    assert (t.share, t.pairs, t.chance) == (0.5, 2, pytest.approx(1 / 3))

def test_deals_keep_families_together():
    family = np.random.default_rng(0).choice(list("abcdefg"), 200)
    deals = agreement._group_permutations(family, 50)
    assert (np.sort(deals, axis=1) == np.arange(200)).all() and len({tuple(d) for d in deals}) == 50
    runs = [(np.diff(np.argsort(np.argsort(family,
                                           kind="stable"))[d[np.argsort(family, kind="stable")]])
             == 1).sum() for d in deals]
    assert min(runs) >= 200 - 2 * 7 # every family's rows still follow one another

def test_p_values_are_uniform_without_an_effect():
    """Labels that mean nothing, but go by families that come together in pairs: the deal of
    families knows."""
    rng, p = np.random.default_rng(0), []
    family = np.repeat(np.arange(60), 5)
    pair = pd.DataFrame(dict(i=rng.integers(0, 300, 150), similar_in="a"))
    # often the same family
    pair["j"] = np.where(rng.random(150) < 0.4, pair.i // 5 * 5 + rng.integers(0, 5, 150),
                         rng.integers(0, 300, 150))
    for _ in range(120):
        label = np.where(rng.random(60) < 0.5, "x",
                         "y")[rng.permutation(60)][rng.permutation(300) // 5]
        items = pd.DataFrame(dict(item_id=np.arange(300).astype(str), family=family.astype(str),
                                  label=label))
        p.append(agreement.factor_agreement(pair[pair.i != pair.j], items, ["label"], 99).p[0])
    assert 0.01 <= np.mean(np.array(p) <= 0.1) <= 0.22 and 0.35 < np.mean(p) < 0.65

@pytest.mark.parametrize("probes, least", [(40, 1.0), (6, 0.5)])
def test_faiss_finds_most(probes, least):
    a, b = vectors(800, 16, 0), vectors(800, 16, 1)
    exact = search.mine_pairs(a, b, 50)
    found = search.mine_pairs(a, b, 50,
                              engine=lambda *x, **k: search.search_faiss(*x, cells=40,
                                                                         probes=probes,
                                                                         partners=128, **k))
    def ids(t):
        return set(zip(t.similar_in, t.i, t.j))
    assert len(ids(exact) & ids(found)) >= least * 100

@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray_finds_the_same(local_ray):
    a, b = vectors(2500, 16, 0), vectors(2500, 16, 1)
    m, group = products.pair_moments(a, b), search._exact_duplicates(a.items)
    p = search._cheapest_score_gemm(a, b, m)
    here, there = search._search_exact(p, 300, group), search._search_ray(p, 300, group, tasks=3)
    for x, y in zip(here, there):
        assert ((x.i.tolist(), x.j.tolist(), x.score.tolist())
                == (y.i.tolist(), y.j.tolist(), y.score.tolist()))

def test_memory_stays_bounded(tmp_path):
    "Neither the n x n matrices (7 GB each here) nor the candidates are ever held."
    code = f"""
import resource, numpy as np, pandas as pd
from ccd.comparison import search
from ccd.encoders.embeddings import Embeddings
n, peak = 60_000, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 # MB
items = pd.DataFrame(dict(item_id=np.arange(n).astype(str)))
def some(d, seed):
    np.save(r'{
        tmp_path}' + f'/{{seed}}.npy', np.random.default_rng(seed).normal(size=(n, d)).astype(np.float16))
    return Embeddings(np.load(r'{tmp_path}' + f'/{{seed}}.npy', mmap_mode='r'), items, {{}})
a, b = some(24, 0), some(24, 1)
before = peak()
t = search.mine_pairs(a, b, 20)
assert len(t) == 40
print(peak() - before)
"""  # noqa: E501
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) < 300, said.stdout

def test_scores_beside_two_seeds_are_named_by_the_encoder_they_are_of():
    def mined(a, b):
        return pd.DataFrame(dict(similar_in=["a"] * 2 + ["b"] * 2, rank=[1, 2, 1, 2],
                                 score=[*a, *b]))
    t = agreement.compare_to_seed_noise(mined([5, 4], [-6, -3]),
                                        dict(CLIP=mined([2, 1], [-3, -0.5]),
                                             DINO=mined([1.5, 1.2], [-1, -1])), ("CLIP", "DINO"))
    assert (list(t)
            == ["similar_in", "rank", "score", "score of two seeds of CLIP",
                "score of two seeds of DINO"])
    assert (t.values.tolist()
            == [["CLIP", 1, 5, 3, 1.5], ["CLIP", 2, 4, 1, 1.2], ["DINO", 1, 6, 3, 1.5],
                ["DINO", 2, 3, 1, 1.2]])
    assert (list(agreement.compare_to_seed_noise(mined([5, 4], [-6, -3]), {}))
            == ["similar_in", "rank", "score"])
