"""Vectors on disk: what a kill, a broken image, another engine or another machine does to them,
which is nothing."""
import os, shutil, signal, subprocess, sys, threading, time, tracemalloc
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pandas as pd, psutil, pytest, torch
import embedding_job as job
from ccd.encoders import extraction
from ccd.files import UserError, file_hash
from ccd.settings import Control, ViT
from ccd.runs import read_manifest
from ccd.encoders.base import BackboneAdapter, _make_feature_fn
from ccd.encoders.embeddings import Embeddings, align, load_embeddings, load_vectors
from ccd.encoders.extraction import BATCH, _BATCH_PER_CORE, embed
from ccd.encoders.loading import load
from ccd.data.images import load_folder
from ccd.data.corpora import ImageDecoder
from ccd.data.augment import eval_view, to_float

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

@pytest.fixture(scope="module")
def scenes(): return job.images()

@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    "Embedded without any disturbance."
    return embed(job.encoder(), scenes, tmp_path_factory.mktemp("whole") / "e")

def same(a, b):
    return all(file_hash(a / f) == file_hash(b / f)
               for f in ("vectors.npy", "items.parquet", "card.json"))

# --- the vectors

def test_vectors_are_those_of_the_encoder(whole, scenes):
    e, found = job.encoder(), load_embeddings(whole)
    assert (found.vectors.dtype == np.float16
            and found.items.item_id.tolist() == scenes["item_id"][:])
    for a in range(0, len(scenes), _BATCH_PER_CORE):
        shown = np.stack([e.fit(im.convert("RGB"))
                          for im in scenes[a:a + _BATCH_PER_CORE]["image"]])
        want = e.vector(torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255)
        assert np.abs(found.vectors[a:a + _BATCH_PER_CORE] - want.numpy()).max() < 2e-3

def test_squares_are_embedded_as_they_always_were(corpus, tmp_path):
    e = load("random:0", Control(ViT(48, 12, 48, 2, 2)))
    found = load_embeddings(embed(e, corpus, tmp_path / "e", 64, "float32")).vectors
    pixels = ImageDecoder(corpus, 64)
    for a in range(0, len(corpus), BATCH):
        want = e.vector(eval_view(to_float(pixels[range(a, min(len(corpus), a + BATCH))]),
                                  48)).numpy()
        assert np.allclose(found[a:a + BATCH], want, rtol=1e-5, atol=1e-5)

def test_the_number_of_cores_changes_nothing(whole, scenes, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before % 2 + 1)
        assert same(embed(job.encoder(), scenes, tmp_path / "e"), whole)
        assert torch.get_num_threads() == before % 2 + 1
    finally: torch.set_num_threads(before)

def test_batches_of_two_threads_do_not_mix():
    meet = threading.Barrier(2, timeout=30) # both are in the same block at once
    class Block(torch.nn.Module):
        def forward(self, tokens):
            meet.wait()
            return tokens
    blocks = torch.nn.ModuleList([Block(), Block()])
    def run(pixels):
        tokens = pixels.flatten(2).transpose(1, 2)
        for block in blocks: tokens = block(tokens)
        return tokens, None
    read = _make_feature_fn(BackboneAdapter(run, blocks=blocks), 2, True, False, many=2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda value: read(torch.full((1, 3, 4, 4), value)).cls, (1.0, 2.0)))
    assert [cls.tolist() for cls in found] == [[[1.0] * 6], [[2.0] * 6]]

def test_unit_vectors_need_room_for_themselves_only():
    x = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float16)
    e = Embeddings(x, pd.DataFrame(dict(item_id=range(len(x)))), {})
    want = x.astype(np.float32) / np.linalg.norm(x.astype(np.float32), axis=1, keepdims=True)
    tracemalloc.start()
    u = e.unit()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * u.nbytes and np.allclose(u, want, rtol=1e-6)
    rows = np.array([5, 99_999, 5])
    assert (np.allclose(e.unit(rows), want[rows], rtol=1e-6)
            and e.unit(rows, np.float16).dtype == np.float16)

# --- stopped

def test_killed_and_started_again(whole, scenes, tmp_path):
    out = tmp_path / "e"
    p = subprocess.Popen([sys.executable, job.__file__, str(out)], stderr=subprocess.DEVNULL,
                         env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    while len(list(out.glob(".parts-*/*.npz"))) < 2: assert p.poll() is None; time.sleep(0.005)
    p.send_signal(signal.SIGKILL); p.wait()
    kept = sum(b - a for a, b in (map(int, p.stem.split("-")) for p in out.glob(".parts-*/*.npz")))
    assert not (out / "manifest.json").exists()
    seen = []
    embed(job.encoder(seen=seen), scenes, out)
    assert same(out, whole) and sum(seen) == len(scenes) - kept < len(scenes)
    assert not list(out.glob(".*"))

def test_other_settings_begin_anew(whole, scenes, tmp_path):
    out = tmp_path / "e"
    old = out / ".parts-0123456789abcdef"
    old.mkdir(parents=True)
    (old / f"{0:010d}-{_BATCH_PER_CORE:010d}.npz").write_bytes(b"of something else")
    assert same(embed(job.encoder(), scenes, out), whole) and not old.exists()

def is_worker(process):
    try: title = " ".join(process.cmdline())
    except psutil.Error: return False # it ended just now
    return title.startswith("ray::") and "_Worker" in title

def ray_job(scenes, out, kill_after=None):
    "Embed on two local workers; one of them is killed once there are so many parts."
    killed = []
    def kill():
        while len(list(out.glob(".parts-*/*.npz"))) < kill_after: time.sleep(0.01)
        worker = next(c for c in psutil.Process().children(recursive=True) if is_worker(c))
        worker.kill(); killed.append(len(list(out.glob(".parts-*/*.npz"))))
    thread = threading.Thread(target=kill, daemon=True)
    if kill_after: thread.start()
    embed(job.slow, job.images, out, engine="ray", workers=2)
    if kill_after: thread.join(10)
    return killed

def test_ray_with_a_killed_worker_makes_the_same_file(whole, scenes, tmp_path, local_ray,
                                                      monkeypatch):
    monkeypatch.setattr(extraction, "_ROWS_PER_PART", _BATCH_PER_CORE)
    out = tmp_path / "e"
    (parts_then,) = ray_job(scenes, out, kill_after=2)
    assert parts_then < len(scenes) // _BATCH_PER_CORE and same(out, whole)

def test_ray_finishes_what_was_begun_here(whole, scenes, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(extraction, "_ROWS_PER_PART", 4 * _BATCH_PER_CORE)
    class Stop(Exception): pass
    def stop(v):
        seen.append(len(v))
        if len(seen) == 5: raise Stop
        return v
    seen, out = [], tmp_path / "e"
    with pytest.raises(Stop): embed(job.encoder(change=stop), scenes, out, flush=0)
    before = {p.name: p.stat().st_ino for p in out.glob(".parts-*/*.npz")}
    assert before
    after = {}
    monkeypatch.setattr(extraction, "_seal", lambda *a, seal=extraction._seal: (
        after.update({p.name: p.stat().st_ino for p in out.glob(".parts-*/*.npz")}), seal(*a))[1])
    ray_job(scenes, out)
    assert same(out, whole) and before.items() <= after.items()

def test_ray_needs_a_name(scenes, tmp_path):
    with pytest.raises(UserError, match="load the encoder themselves"):
        embed(job.encoder(), scenes, tmp_path / "e", engine="ray")

# --- what is wrong

@pytest.mark.parametrize("vectors, items, says", [
    (np.zeros((5, 2)), pd.DataFrame(dict(item_id=list("abcd"))), r"shape \(5, 2\) for 4 items"),
    (np.zeros(4), pd.DataFrame(dict(item_id=list("abcd"))), "expected"),
    (np.zeros((4, 2)), pd.DataFrame(dict(name=list("abcd"))), "column item_id"),
    (np.zeros((4, 2)), list("abcd"), "column item_id")])
def test_rows_and_items_must_agree(vectors, items, says):
    with pytest.raises(UserError, match=says): Embeddings(vectors, items, {})

@pytest.fixture
def pictures(scenes, tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    for i in range(40): scenes[i]["image"].save(home / f"{i:02d}.png")
    return home, load_folder(home).corpus

@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("bad", [{0}, {7, 31}, set(range(16, 32))]) # the last: a whole batch
def test_broken_images_leave_no_trace_but_the_list(pictures, tmp_path, bad):
    home, c = pictures
    good = [i for i in range(40) if i not in bad]
    want = load_embeddings(embed(job.encoder(), c, tmp_path / "want", dtype="float32"))
    for i in bad: (home / f"{i:02d}.png").write_bytes(b"no picture")
    out = embed(job.encoder(), c, tmp_path / "e", dtype="float32", max_faults=0.06)
    got, skipped = load_embeddings(out), pd.read_csv(out / "skipped.csv")
    assert np.allclose(got.vectors, want.vectors[good], atol=1e-5)
    assert got.items.item_id.tolist() == [f"{i:02d}.png" for i in good]
    assert (skipped.item_id.tolist() == [f"{i:02d}.png" for i in sorted(bad)]
            and "no image" in skipped.reason[0])
    assert (read_manifest(out)["skipped"] == len(bad)
            and "skipped.csv" in read_manifest(out)["outputs"])

@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_too_many_broken_images(pictures, tmp_path):
    home, c = pictures
    for i in (3, 5, 20, 39): (home / f"{i:02d}.png").rename(home / f"{i:02d}.hidden")
    with pytest.raises(UserError, match="4 of the first 40 images cannot be decoded.*03.png"):
        embed(job.encoder(), c, tmp_path / "e", flush=0)
    with pytest.raises(UserError, match="none of 4 images"):
        embed(job.encoder(), c.select([3, 5, 20, 39]), tmp_path / "none", max_faults=1)
    for p in home.glob("*.hidden"): p.rename(p.with_suffix(".png"))
    embed(job.encoder(), c, tmp_path / "e") # what was mended is tried again
    assert len(load_embeddings(tmp_path / "e").items) == 40

@pytest.mark.parametrize("change, says", [
    (lambda v: v.index_fill(0, torch.tensor([2]), float("nan")), "'scene.*NaN or infinity"),
    (lambda v: v / 0, "NaN or infinity"),
    (lambda v: v * 0 + 7e4, "7e\\+04.*float16 ends at 65504.*dtype float32")])
def test_vectors_that_cannot_be_stored(scenes, tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        embed(job.encoder(change=change), scenes, tmp_path / "e")
    assert not (tmp_path / "e/vectors.npy").exists()

def test_large_values_fit_in_float32(scenes, tmp_path):
    out = embed(job.encoder(change=lambda v: v * 0 + 7e4), scenes, tmp_path / "e", dtype="float32")
    assert (load_embeddings(out).vectors == 7e4).all()

def test_zero_vectors_are_counted(scenes, tmp_path):
    with pytest.warns(UserWarning, match="192 of 192 vectors are all zeros"):
        out = embed(job.encoder(change=lambda v: v * 0), scenes, tmp_path / "e")
    e = load_embeddings(out)
    assert e.zeros().all() and not e.unit().any() and read_manifest(out)["zero_vectors"] == 192

@pytest.mark.parametrize("more, says",
                         [(dict(dtype="int8"), "float16 or float32"),
                          (dict(engine="mpi"), "local or ray")])
def test_unknown_ways(scenes, tmp_path, more, says):
    with pytest.raises(UserError, match=says): embed(job.encoder(), scenes, tmp_path / "e", **more)

# --- from elsewhere

def given(home, x, t, kind="csv"):
    np.save(home / "x.npy", x)
    t = pd.DataFrame(t)
    t.to_csv(home / "x.csv", index=False) if kind == "csv" else t.to_parquet(home / "x.parquet")
    return home / "x.npy"

GOOD = np.eye(3, 4, dtype=np.float32)

@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_vectors_from_elsewhere(tmp_path, kind):
    table = dict(item_id=["007", "08", "9"], pixel_hash=["00", "01", "1e5"],
                 concept=["a", None, "b"])
    e = load_vectors(given(tmp_path, GOOD, table, kind))
    assert isinstance(e.vectors, np.memmap) and np.array_equal(e.vectors, GOOD)
    assert (e.items.item_id.tolist() == table["item_id"]
            and e.items.pixel_hash.tolist() == table["pixel_hash"])

IDS = dict(item_id=list("abc"))

@pytest.mark.parametrize("x, table, says", [
    (GOOD[0], IDS, "shape \\(4,\\)"), (GOOD[:0], IDS, "one row or more"),
    (GOOD[None], IDS, "shape \\(1, 3, 4\\)"),
    (GOOD.astype(int), IDS, "holds int64"), (GOOD.astype(object), IDS, "no readable .npy"),
    (GOOD[:2], IDS, "has 2 rows and its table 3"),
    (GOOD * np.nan, IDS, "no vector that can be used, of 3: a \\(NaN or infinity"),
    (np.float32(1), IDS, "shape \\(\\)"),
    (GOOD.astype(complex), IDS, "holds complex128.*save them as numpy.float32"),
    (GOOD, dict(name=list("abc")), "no column item_id; its columns are name"),
    (GOOD, dict(item_id=list("aba")), "first 'a'"),
    (GOOD, dict(item_id=["a", None, "c"]), "no item_id in row 1")])
def test_unusable_vectors_from_elsewhere(tmp_path, x, table, says):
    with pytest.raises(UserError, match=says): load_vectors(given(tmp_path, x, table))

@pytest.mark.parametrize("kind", ["<f2", ">f2", ">f4", ">f8", "<f8", "g"])
def test_floats_of_any_width_and_byte_order(tmp_path, kind):
    # every kind holds these exactly
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    e = load_vectors(given(tmp_path, x.astype(kind), IDS))
    assert (e.vectors.dtype.isnative and e.vectors.dtype.itemsize <= 8
            and np.array_equal(e.vectors, x))
    assert torch.from_numpy(np.array(e.vectors)).shape == (3, 4)

def test_rows_that_cannot_be_compared_are_listed_and_the_others_used(tmp_path):
    x = np.float64([[1, 2], [np.nan, 1], [3, 4], [-np.inf, 0], [1e200, 0], [1e-200, 0], [0, 0]])
    with pytest.warns(UserWarning,
                      match="4 of 7 vectors .* are left out: b \\(NaN or infinity in its "
                            "vector\\)"):
        e = load_vectors(given(tmp_path, x, dict(item_id=list("abcdefg"))))
    assert e.items.item_id.tolist() == list("acg") and e.skipped.item_id.tolist() == list("bdef")
    assert e.skipped.reason.str.contains("NaN or infinity|too large or too small for "
                                         "float32").all() and np.isfinite(e.unit()).all()

@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_names_stay_what_they_are(tmp_path, kind):
    names = ["NA", "None", "nan", "null", "01", "1", "1.0", "1e3", "True", "a#b~c"]
    t = pd.DataFrame(dict(item_id=names, category=names[::-1]))
    np.save(tmp_path / "x.npy", np.eye(len(names)))
    getattr(t,
            "to_parquet" if kind == "parquet"
            else "to_csv")(tmp_path / f"x.{kind}", index=False,
                           **(dict(sep="\t") if kind == "tsv" else {}))
    e = load_vectors(tmp_path / "x.npy")
    assert e.items.item_id.tolist() == names and e.items.category.tolist() == names[::-1]

def test_labels_that_are_lists_are_one_value_each(tmp_path):
    lists = [["a"], ["a", "b"], []]
    with pytest.warns(UserWarning, match="column 'category' holds lists"):
        e = load_vectors(given(tmp_path, GOOD, dict(IDS, category=lists), "parquet"))
    assert e.items.category.fillna("").tolist() == ["a", "a; b", ""]

def test_a_row_longer_than_the_head_moves_no_name(tmp_path):
    np.save(tmp_path / "x.npy", GOOD)
    (tmp_path / "x.csv").write_text("item_id,word\na,b,c\nd,e,f\ng,h,i\n")
    with pytest.raises(UserError, match="no readable table"): load_vectors(tmp_path / "x.npy")

def test_what_embed_wrote_is_read_as_vectors(whole, tmp_path, monkeypatch):
    e, own = load_vectors(whole), load_embeddings(whole)
    assert (np.array_equal(e.vectors, own.vectors) and e.items.equals(own.items)
            and e.card == own.card)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(whole, tmp_path / "a#b~1,c=d")
    assert load_vectors("~/a#b~1,c=d").items.equals(own.items)
    (tmp_path / "begun").mkdir()
    with pytest.raises(UserError, match="holds no vectors.npy"): load_vectors(tmp_path / "begun")

def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no readable .npy"): load_vectors(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(UserError, match="has no table: expected .*x.parquet or .*x.csv"):
        load_vectors(tmp_path / "x.npy")

def test_zero_vectors_from_elsewhere_are_said(tmp_path):
    with pytest.warns(UserWarning, match="1 of 3 vectors .* are zeros"):
        load_vectors(given(tmp_path, GOOD * [1, 0, 1, 1], IDS))

# --- two on common items

def named(ids, hashes=None, d=5):
    x = np.array([[len(i), *map(ord, i.ljust(d - 1))] for i in ids], np.float32)
    return Embeddings(x,
                      pd.DataFrame(dict(item_id=ids) | (dict(pixel_hash=hashes) if hashes else {})),
                      {})

def test_common_items_in_the_order_of_the_first():
    rng = np.random.default_rng(0)
    every = [f"i{k}" for k in range(60)]
    a, b = (named(rng.permutation(every)[:40].tolist()) for _ in range(2))
    got = align(a, b)
    assert got.a.items.item_id.tolist() == [i for i in a.items.item_id if i in set(b.items.item_id)]
    assert np.array_equal(got.a.vectors, got.b.vectors) and got.a.items.equals(got.b.items)
    assert (set(got.only_a) == set(a.items.item_id) - set(b.items.item_id)
            and len(got.only_b) == 40 - len(got.a.items))
    assert align(a, a).a is a # no copy where nothing moves

@pytest.mark.parametrize("a, b, says", [
    (named(["x", "y"]), named(["p", "q"]), "no item is in both: x, y .* p, q"),
    (named(["x", "y"], ["1", "2"]), named(["y", "x"], ["3", "1"]),
     "'y' is not the same image.* 2 in one and 3"),
    (named(["x", "x"]), named(["x"]), "first embeddings have 'x' more than once"),
    (named(["x"]), named(["x", "z", "z"]), "second embeddings have 'z'")])
def test_what_cannot_be_aligned(a, b, says):
    with pytest.raises(UserError, match=says): align(a, b)

def test_unknown_pixels_are_no_other_pixels():
    got = align(named(["x", "y"], ["1", None]), named(["x", "y"], ["1", "2"]))
    assert len(got.a.items) == 2 and not got.only_a
    assert len(align(named(["x"]), named(["x"], ["2"])).b.items) == 1
