"How alike many encoders are: measures against references, nulls, trees, consistency."
import re
from itertools import combinations
import numpy as np, pandas as pd, pytest
from scipy import stats
from ccd.cli import main
from ccd.comparison.many import similarity, tree
from ccd.comparison.neighbors import cka, mutual_knn, nearest_neighbors
from ccd.encoders.embeddings import Embeddings
from ccd.files import UserError

N, FAMILY = 240, np.arange(240) // 4

def encoder(vectors):
    items = pd.DataFrame(dict(item_id=[f"image {row}" for row in range(len(vectors))]))
    return Embeddings(vectors.astype(np.float32), items, {"name": "made up"})

def encoders(seed=0, n=N, noise=0.5):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, 12))
    return {"root": encoder(root), "near": encoder(root + noise * rng.normal(size=root.shape)),
            "far": encoder(np.tanh(root[:, :6]) + 2 * noise * rng.normal(size=(n, 6))),
            "apart": encoder(rng.normal(size=(n, 20)))}

def matrix(vectors, family=FAMILY, **more):
    near = {name: nearest_neighbors(own, 10) for name, own in vectors.items()}
    return similarity.similarity_matrix(vectors, family, near, **more), near

@pytest.fixture(scope="module")
def found(): return matrix(encoders())[0]

def test_the_measures_are_those_of_two_encoders(found):
    vectors = encoders()
    near = {name: nearest_neighbors(own, 10) for name, own in vectors.items()}
    table = found.table.set_index(["measure", "a", "b"])
    upper = np.triu_indices(N, 1)
    for a, b in combinations(vectors, 2):
        value, low, high = cka(vectors[a], vectors[b], FAMILY)
        row = table.loc["CKA", a, b]
        assert row.value == pytest.approx(value, abs=1e-9)
        assert row.ci_low == pytest.approx(low, abs=1e-9)
        assert table.loc["mutual kNN", a, b].value == pytest.approx(
            mutual_knn(near[a], near[b]).mean())
        cosines = [own.unit() @ own.unit().T for own in (vectors[a], vectors[b])]
        expected = stats.spearmanr(*(cosine[upper] for cosine in cosines)).statistic
        assert table.loc["rank correlation", a, b].value == pytest.approx(expected, abs=1e-4)

def test_a_group_that_is_left_out_is_left_out(found):
    "Each left-out value is that of the matrix of the images that are left."
    vectors = encoders()
    part = similarity._jackknife_groups(FAMILY)
    keep, square = part != 3, found.left_out["rank correlation"][3]
    upper = np.triu_indices(keep.sum(), 1)
    full = [own.unit() @ own.unit().T for own in (vectors["root"], vectors["near"])]
    ranks = []
    for cosine in full: # ranks are those of all images
        every = np.triu_indices(N, 1)
        own = np.zeros((N, N)); own[every] = stats.rankdata(cosine[every])
        ranks.append((own + own.T)[np.ix_(keep, keep)][upper])
    assert square[0, 1] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    near = [nearest_neighbors(own, 10) for own in (vectors["root"], vectors["near"])]
    assert found.left_out["mutual kNN"][3][0, 1] == pytest.approx(
        mutual_knn(*near)[keep].mean())

def test_permuted_images_are_unrelated_and_related_ones_are_not(found):
    table = found.table.set_index(["measure", "a", "b"])
    for measure in similarity._MEASURES:
        close, unrelated = table.loc[measure, "root", "near"], table.loc[measure, "root", "apart"]
        assert close.value > close.null_p95 and close.p == pytest.approx(1 / 51)
        assert unrelated.p > 1 / 51
        assert unrelated.value < close.value
    chance = 10 / (N - 1)
    assert 0.5 * chance < table.loc["mutual kNN", "root", "apart"].null_p95 < 2 * chance

def test_an_interval_of_unrelated_encoders_covers_chance():
    covered = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        two = {name: encoder(rng.normal(size=(N, 8))) for name in "ab"}
        table = matrix(two)[0].table.set_index("measure")
        covered += [row.ci_low <= (10 / (N - 1) if measure == "mutual kNN" else 0) <= row.ci_high
                    for measure, row in table.iterrows()]
    assert np.mean(covered) > 0.85

def test_ranks_use_a_sample_and_say_its_size(monkeypatch):
    monkeypatch.setattr(similarity, "_MAX_SAMPLE", 100)
    table = matrix(encoders())[0].table.set_index("measure")
    assert set(table.n["rank correlation"]) == {100} and set(table.n["CKA"]) == {N}
    whole = matrix(encoders(), seed=1)[0].table
    assert len(whole) == 18

def test_the_order_of_encoders_changes_nothing():
    vectors = encoders()
    one, other = matrix(vectors)[0], matrix(dict(reversed(vectors.items())))[0]
    back = [other.names.index(name) for name in one.names]
    for measure in similarity._MEASURES:
        assert np.allclose(one.square(measure), other.square(measure)[np.ix_(back, back)])

def test_what_cannot_be_compared_is_told():
    vectors = encoders()
    with pytest.raises(UserError, match="expected 20 families"): matrix(vectors, FAMILY % 7)
    flat = vectors | {"flat": encoder(np.ones((N, 4)))}
    with pytest.raises(UserError, match="there is nothing to compare"):
        similarity.similarity_matrix(flat, FAMILY, {})

def test_a_matrix_is_read_as_it_was_written(found, tmp_path):
    found.table.to_csv(tmp_path / "matrix.csv", index=False)
    again = similarity._read_matrix(tmp_path / "matrix.csv")
    assert again.names == found.names
    for measure in similarity._MEASURES:
        assert np.allclose(again.square(measure), found.square(measure))

# --- trees

def test_a_tree_joins_the_most_similar_first_and_knows_its_support(found):
    joins = tree.encoder_tree(found)
    assert joins.members[0] == "root; near" and joins.support[0] == pytest.approx(1)
    assert joins.similarity.is_monotonic_decreasing
    assert joins.members.iloc[-1] == "; ".join(found.names)
    assert ((0 <= joins.support) & (joins.support <= 1)).all()

def test_a_branch_without_evidence_has_little_support():
    rng = np.random.default_rng(5)
    joins = tree.encoder_tree(matrix({name: encoder(rng.normal(size=(N, 8)))
                                      for name in "abcdef"})[0])
    assert joins.support.iloc[:-1].mean() < 0.9

def test_a_tree_is_that_of_scipy_by_hand():
    square = np.array([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]])
    names = ["a", "b", "c"]
    rows = [dict(a=names[i], b=names[j], measure="CKA", value=square[i, j])
            for i, j in combinations(range(3), 2)]
    made = similarity.SimilarityMatrix(names, pd.DataFrame(rows), {"CKA": square[None]})
    joins = tree.encoder_tree(made)
    assert joins.similarity.tolist() == pytest.approx([0.9, 0.3]) # the mean of 0.2 and 0.4
    assert joins.members.tolist() == ["a; b", "a; b; c"]
    two = similarity.SimilarityMatrix(names[:2], pd.DataFrame(rows[:1]), {"CKA": square[None]})
    with pytest.raises(UserError, match="three or more"): tree.encoder_tree(two)

# --- consistency

def test_equal_sets_are_consistent_and_shuffled_ones_are_not(found):
    same = tree.consistency_table({"one": found, "again": found})
    assert same.correlation.tolist() == pytest.approx([1, 1, 1])
    table = found.table.assign(value=found.table.groupby("measure").value.transform(
        lambda values: values.values[::-1]))
    turned = similarity.SimilarityMatrix(found.names, table, {})
    assert (tree.consistency_table({"one": found, "turned": turned}).correlation < 0.9).all()

def test_pairs_of_one_objective_and_of_two_stand_apart(found):
    objectives = dict(root="clip", near="clip", far="dino", apart="dino")
    table = tree.consistency_table({"one": found, "two": found}, objectives)
    pairs = table.set_index("pairs").n_pairs.groupby(level=0).first()
    assert pairs.to_dict() == {"all": 6, "different objectives": 4, "same objective": 2}
    alone = table[table.pairs == "same objective"]
    assert alone.correlation.isna().all() # two pairs make no correlation

def test_other_encoders_are_refused(found):
    fewer = matrix({name: own for name, own in encoders().items() if name != "far"})[0]
    with pytest.raises(UserError, match="the encoders of two are root, near, apart"):
        tree.consistency_table({"one": found, "two": fewer})
    with pytest.raises(UserError, match="four or more"): tree.consistency_table({"a": fewer})

# --- the command

@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "Vectors of four encoders on two sets of images, as files."
    room = tmp_path_factory.mktemp("stored")
    for place, seed in (("one", 0), ("two", 1)):
        (room / place).mkdir()
        for name, own in encoders(seed).items():
            np.save(room / place / f"{name}.npy", own.vectors)
            own.items.to_csv(room / place / f"{name}.csv", index=False)
    return room

def npy(room, *names): return [f"npy:{room}/{name}.npy" for name in names]

PARTS = ["--skip", "attributes", "perturbations", "maps"]

def test_many_encoders_are_compared_and_each_two_have_a_report(stored, tmp_path, capsys):
    out = tmp_path / "out"
    names = npy(stored / "one", "root", "near", "far", "apart")
    main(["compare", *names, "--out", str(out), "--every-pair", *PARTS])
    table = pd.read_csv(out / "neighbors/matrix.csv")
    assert table.groupby("measure").size().to_dict() == dict.fromkeys(similarity._MEASURES, 6)
    assert len(pd.read_csv(out / "neighbors/tree.csv")) == 9
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="(every-pair/[^"]+)"', page)
    assert len(links) == 5 and all((out / link).exists() for link in links)
    one = (out / links[0]).parent
    pairs = pd.read_csv(one / "pairs/pairs.csv")
    main(["compare", names[0], names[2], "--out", str(tmp_path / "two"), *PARTS])
    alone = pd.read_csv(tmp_path / "two/pairs/pairs.csv")
    pd.testing.assert_frame_equal(pairs, alone) # the same pair as when it is asked alone
    assert "How alike are the encoders?" in page
    assert "How alike" not in (tmp_path / "two/report.html").read_text(encoding="utf-8")

def test_a_second_call_makes_nothing_again(stored, tmp_path, monkeypatch):
    names, out = npy(stored / "one", "root", "near", "far"), str(tmp_path / "out")
    main(["compare", *names, "--out", out, *PARTS])
    monkeypatch.setattr(similarity, "similarity_matrix", lambda *_: pytest.fail("made again"))
    main(["compare", *names, "--out", out, *PARTS])

def test_order_differs_and_nothing_is_lost(stored, tmp_path):
    "Vectors in another order are matched by id; without ids they are refused."
    room = tmp_path / "turned"
    room.mkdir()
    own = encoders()["near"]
    order = np.random.default_rng(0).permutation(N)
    np.save(room / "near.npy", own.vectors[order])
    own.items.iloc[order].to_csv(room / "near.csv", index=False)
    root, near, far = npy(stored / "one", "root", "near", "far")
    for second, out in ((near, "plain"), (f"npy:{room}/near.npy", "turned")):
        main(["compare", root, second, far, "--out", str(tmp_path / out / "made"), *PARTS])
    tables = [pd.read_csv(tmp_path / out / "made/neighbors/matrix.csv")
              for out in ("plain", "turned")]
    assert np.allclose(tables[0].value, tables[1].value, atol=1e-6)
    own.items.assign(item_id=own.items.item_id + " again").to_csv(room / "near.csv", index=False)
    with pytest.raises(SystemExit):
        main(["compare", root, f"npy:{room}/near.npy", "--out", str(tmp_path / "no"),
              *PARTS])

def test_one_encoder_is_too_few(tmp_path, capsys):
    with pytest.raises(SystemExit): main(["compare", "npy:a.npy", "--out", str(tmp_path / "x")])
    assert "name two or more" in capsys.readouterr().err
