"""Vectors with their tables, and folders of labelled images, of anything: no traceback but
`UserError`, and every item is used or listed."""
import tempfile, warnings
from contextlib import contextmanager
from pathlib import Path
import datasets, numpy as np, pandas as pd, pytest
from hypothesis import example, given, strategies as st
from ccd.files import UserError
from ccd.encoders.embeddings import load_vectors
from ccd.probing.datasets import _open_dataset
from ccd.probing.tasks import tasks
from test_fuzz_sources import broken, captions, listed, picture, present

@contextmanager
def room():
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(home)

# --- vectors

KINDS = ["<f2", ">f2", "<f4", "<f4", ">f4", "<f8", ">f8", "g", "i4", "u1", "?", "c8", "O", "U3",
         "M8[s]", [("a", "f4"), ("b", "i2")]]
VALUES = st.lists(st.sampled_from([0.0, 0.0, 1.0, -2.5, 3e4, 1e-30, 1e30, 1e300, np.nan, np.inf]),
                  min_size=6, max_size=6)
IDS = ["NA", "None", "nan", "1", "01", "1.0", "a#b", "~", "é", "a", "b c", "x,y", '"']
CELLS = st.one_of(st.sampled_from(IDS), st.none(), st.integers(0, 3), st.floats(),
                  st.lists(st.text(max_size=2), max_size=3),
                  st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
                  st.binary(max_size=2))
COLUMN = st.lists(CELLS, min_size=4, max_size=4)

def array(shape, kind, values):
    "Of any shape and kind, filled in turn with the values."
    x = np.resize(np.array(values), shape)
    with np.errstate(all="ignore"):
        if isinstance(kind, list): return np.zeros(shape, kind)
        return np.nan_to_num(x).astype(kind) if np.dtype(kind).kind in "iuM" else x.astype(kind)

def written(home, table, kind, raw):
    path = home / f"x.{kind}"
    if raw is not None: path.write_bytes(raw); return
    try:
        table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False,
                                                                      sep="\t" if kind == "tsv"
                                                                      else ",", encoding="utf-8")
    except Exception: path.write_bytes(b"") # what pandas does not write nobody has

def tried(load):
    try: return load()
    except UserError as e:
        assert str(e) and "\n\n" not in str(e)

@given(st.sampled_from([(4, 3), (4, 3), (4, 1), (3, 3), (4,), (), (4, 0), (0, 3), (2, 2, 1)]),
       st.sampled_from(KINDS), VALUES,
       st.lists(st.sampled_from(IDS), min_size=4, max_size=4, unique=True) | COLUMN, COLUMN,
       st.sampled_from(["csv", "tsv", "parquet"]),
       st.none() | st.none() | st.binary(max_size=40) | st.text(max_size=40).map(str.encode),
       st.integers(0, 400) | st.none(), st.booleans())
@example((4, 3), ">f4", [1.0, np.nan, 2.0] * 2, IDS[:4], [["a"], ["b", "c"], [], None], "parquet",
         None, None, False)
def test_every_vector_is_used_or_listed(shape, kind, values, ids, labels, table, raw, cut, fortran):
    x = array(shape, kind, values)
    if fortran and x.ndim > 1: x = np.asfortranarray(x)
    with room() as home:
        np.save(home / "x.npy", x, allow_pickle=True)
        if cut is not None: (home / "x.npy").write_bytes((home / "x.npy").read_bytes()[:cut])
        written(home,
                pd.DataFrame(dict(item_id=pd.Series(ids, dtype=object),
                                  category=pd.Series(labels, dtype=object))), table, raw)
        e = tried(lambda: load_vectors(home / "x.npy"))
        if e is None: return
        kept = (np.isfinite(x.astype(np.float64)).all(1)
                & (abs(x.astype(np.float64)).max(1) <= 1e15)
                & ~((x != 0).any(1) & (abs(x.astype(np.float64)).max(1) < 1e-12)))
        assert len(e.items) + len(e.skipped) == len(x) and len(e.items) == kept.sum()
        assert (np.array_equal(e.vectors, x[kept].astype(e.vectors.dtype))
                and np.isfinite(e.unit()).all())
        assert (set(map(type, [*e.items.item_id, *e.skipped.item_id])) == {str}
                and not set(e.items.item_id) & set(e.skipped.item_id))
        if raw is None and all(isinstance(i, str) for i in ids):
            assert set(e.items.item_id) | set(e.skipped.item_id) == set(ids)
        # every value can be a label
        assert all(e.skipped.reason) and [e.items[c].nunique() for c in e.items]

# --- folders of labelled images

@pytest.fixture(scope="module", autouse=True)
def no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()

PARTS = ["train", "Train", "TEST", "Testing", "val", "Validation", "cat", "dog", "NA", "None", "01",
         "1", "1.0", ".git", "@eaDir", "é", "b\udcff", "a.b"]
COLORS = [picture("png", size=(3, k)) for k in range(1, 9)] # each differs
CONTENT = st.one_of(st.sampled_from(COLORS), st.sampled_from(COLORS), broken(),
                    st.binary(max_size=9))
PATHS = st.tuples(st.lists(st.sampled_from(PARTS), max_size=3), st.sampled_from(["1", "2", "NA"]),
                  st.sampled_from([".png", ".png", ".JPG", ".txt", ".md"])).map(
    lambda p: "/".join([*p[0], p[1] + p[2]]))
TREE = st.dictionaries(PATHS, CONTENT, max_size=9)
GRID = st.lists(st.lists(st.sampled_from(PARTS[:7] + PARTS[8:12]), min_size=1, max_size=3,
                         unique=True), min_size=2, max_size=2).map(
    lambda g: {f"{s}/{c}/{k}.png": COLORS[(3 * a + 2 * b + k) % 8] for a, s in enumerate(g[0])
               for b, c in enumerate(g[1]) for k in range(3)})

def filled(home, files):
    for name, content in files.items():
        try:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError): # a file where a folder should be  # noqa: E501
            pass

@given(st.builds(lambda a, b: a | b, GRID | st.just({}), TREE))
@example({f"{s}/{c}/{k}.png": COLORS[k + 4 * (s == "Test")] for s in ("Train", "Test")
          for c in ("NA", "01") for k in range(4)})
def test_every_labelled_image_is_used_or_listed(files):
    with room() as home:
        filled(home / "in", files)
        (home / "in").mkdir(exist_ok=True)
        name = f"folder:{home / 'in'}"
        found = tried(lambda: _open_dataset(name))
        if found is None: return
        used, there = [i for c in found.values() for i in c["item_id"]], present(home / "in")
        skipped = pd.DataFrame(found.skipped, columns=["item_id", "reason"])
        assert (len(set(used)) == len(used) and not set(used) & set(skipped.item_id)
                and skipped.reason.map(bool).all())
        assert len(used) + listed(skipped) == len(there) - len(captions(there))
        rows = [(i.split("/"), label) for c in found.values()
                for i, label in zip(c["item_id"], c["label"])]
        # the class is a folder, the same for all
        assert any(all(path[at] == label for path, label in rows) for at in (0, 1))
        items = {k: c.remove_columns("image").to_pandas() for k, c in found.items()}
        made = tried(lambda: tasks(name, items))
        for t in made or ():
            for f in t.folds:
                assert (not {(r.corpus, i) for r in (f.train, f.val) for i in r.rows}
                        & {(f.test.corpus, i) for i in f.test.rows})
