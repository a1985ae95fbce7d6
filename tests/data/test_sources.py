"""Data at scale: what is broken is listed and nothing else, and a batch is a function of corpus,
control and step."""
import gzip, io, json, multiprocessing, os, pickle, re, signal, tarfile, warnings
import numpy as np, pytest, torch
from PIL import Image, ImageFile
from ccd.data import corpora, images, shards as data_shards, streams
from ccd.files import UserError, content_hash
from ccd.settings import Control, DataSettings
from ccd.data.images import _pixel_hash, decode, load_folder, load_hf_dataset
from ccd.data.shards import load_shards
from ccd.data.corpora import drop_unreadable, fingerprint, open_corpus
from ccd.data.batches import BatchLoader, MIN_SAMPLES_FOR_LIMIT, _WINDOW, _shard_order, sample_rows
from ccd.data.streams import make_loader
from ccd.data.augment import _counter_uniform

pytestmark = pytest.mark.filterwarnings("ignore:.*set aside", "ignore:.*fork")
CONTROL = Control(samples=4000, batch_size=8, seed=5)
PER_TAR, TARS = 20, 5

def encoded(im, kind):
    out = io.BytesIO()
    im.save(out, kind)
    return out.getvalue()

def sample(row, i):
    "What img2dataset writes for one image: every third is a PNG."
    kind, said = ("png", "jpg")[i % 3 > 0], row["captions"][0]
    image = encoded(row["image"], kind.replace("jpg", "jpeg"))
    facts = dict(key=f"{i:09d}", caption=said, url="", width=64, height=64, status="success")
    return {kind: image, "txt": said.encode(), "json": json.dumps(facts).encode()}

def write_tar(path, samples):
    with tarfile.open(path, "w") as t:
        for key, parts in samples.items():
            for ext, data in parts.items():
                head = tarfile.TarInfo(f"{key}.{ext}"); head.size = len(data)
                t.addfile(head, io.BytesIO(data))

def write_shards(home, corpus, change=lambda samples: None):
    home.mkdir(parents=True, exist_ok=True)
    every = {f"{i:09d}": sample(corpus[i], i) for i in range(PER_TAR * TARS)}
    change(every)
    keys = list(every)
    for k in range(TARS):
        write_tar(home / f"{k:05d}.tar", {i: every[i] for i in keys[k * PER_TAR:(k + 1) * PER_TAR]})
        (home / f"{k:05d}.parquet").write_bytes(b"left by the download, not read")
        (home / f"{k:05d}_stats.json").write_text("{}")
    return home

@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    return write_shards(tmp_path_factory.mktemp("shards") / "whole", corpus)

def plant(samples):
    samples["000000001"]["jpg"] = samples["000000001"]["jpg"][:700] # cut
    samples["000000022"].pop("txt"); samples["000000022"].pop("json")
    samples["000000041"]["jpg"] = b"<html>404 not found</html>"
    samples["000000043"]["jpg"] = b""

@pytest.fixture
def faulty(tmp_path, corpus):
    """100 samples of which one image is cut, one is text, one empty, one has no caption; a tar cut
    short, an empty one, no tar."""
    home = write_shards(tmp_path / "faulty", corpus, plant)
    data = (home / "00004.tar").read_bytes()
    (home / "00004.tar").write_bytes(data[:len(data) // 2])
    (home / "00005.tar").write_bytes(b"")
    (home / "00006.tar").write_text("no tar, but longer than one header of 512 bytes. " * 20)
    return home

def same(a, b):
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y
               for x, y in zip(a, b, strict=True))

def joined(parts):
    return [torch.cat(p) if torch.is_tensor(p[0]) else sum(p, []) for p in zip(*parts)]

# --- what is wrong

def test_exactly_the_planted_faults_are_listed(faulty, tmp_path):
    opened = load_shards(faulty)
    skipped = dict(zip(opened.skipped.file, opened.skipped.reason))
    cut = skipped.pop("00004.tar")
    assert cut.startswith("cut short inside 0000000"), cut
    assert skipped == {"00002.tar/000000043.jpg": "empty: 0 bytes", "00005.tar": "empty: 0 bytes",
                       "00006.tar": "this is no tar"}
    good = 4 * PER_TAR - 1 + sum(i.startswith("00004") for i in opened.corpus["item_id"][:])
    assert len(opened.corpus) == good > 4 * PER_TAR
    assert "without a caption: 1;" in opened.corpus.info.description
    feed = BatchLoader(opened.corpus, CONTROL, 64, require_captions=True, max_faults=0.2,
                       folder=tmp_path)
    for _ in feed.batches(0, 3 * good // 8): pass
    listed = {k: f["reason"] for k, f in feed.faults.items.items()}
    assert {k: why.split(":")[0] for k, why in listed.items()} == {
        "00000/000000001": "OSError", "00001/000000022": "no caption, which this objective needs",
        "00002/000000041": "no image"}
    assert ([json.loads(l) for l in open(tmp_path / "faults.jsonl")]
            == list(feed.faults.items.values()))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES

def test_no_caption_is_no_fault_where_none_is_needed(whole, tmp_path, corpus):
    def mute(samples):
        for s in samples.values(): s.pop("txt"), s.pop("json")
    mutes = load_shards(write_shards(tmp_path, corpus, mute)).corpus
    assert "".join(BatchLoader(mutes, CONTROL, 64)(0).captions) == ""
    with pytest.raises(UserError, match="no caption"):
        BatchLoader(mutes, CONTROL, 64, require_captions=True)(0)

def test_a_caption_may_lie_in_the_json_only(tmp_path, corpus):
    home = write_shards(tmp_path, corpus, lambda samples: [s.pop("txt") for s in samples.values()])
    assert load_shards(home, "train").corpus[0]["captions"] == corpus[0]["captions"][:1]

def test_too_many_faults_stop_the_run_and_lose_nothing(faulty, tmp_path):
    c = load_shards(faulty).corpus
    with pytest.raises(UserError,
                       match=r"unusable items were "
                             r"met(.|\n)*faults.jsonl(.|\n)*--runtime.max-faults") as e:
        for n, _ in enumerate(BatchLoader(c, CONTROL, 64, folder=tmp_path / "run").batches(0, 500)):
            pass
    assert (n + 1 >= MIN_SAMPLES_FOR_LIMIT // 8
            and ("00000/000000001" in str(e.value) or "00002/000000041" in str(e.value)))
    more = BatchLoader(c, CONTROL, 64, folder=tmp_path / "run", max_faults=0.5)
    assert same(more(n + 2), BatchLoader(c, CONTROL, 64, max_faults=0.5)(n + 2))
    assert len((tmp_path / "run/faults.jsonl").read_text().splitlines()) == 2

def test_faults_are_listed_once_after_kills(faulty, tmp_path):
    c, log = load_shards(faulty).corpus, tmp_path / "faults.jsonl"
    for start in (0, 9, 4, 7, 0):
        for _ in BatchLoader(c, CONTROL, 64, max_faults=0.5,
                             folder=tmp_path).batches(start, start + 25):
            pass
        with open(log, "a") as f: f.write('{"step": 3, "item') # killed within a line
    known = [json.loads(l)["item_id"] for l in log.read_text().splitlines() if l.endswith("}")]
    assert sorted(known) == ["00000/000000001", "00002/000000041"]

@pytest.mark.parametrize("change", ["nothing", "no_images", "none"])
def test_shards_without_an_image(tmp_path, change):
    if change == "no_images": write_tar(tmp_path / "0.tar", {"a": {"txt": b"said"}})
    if change == "none": (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(UserError,
                       match="holds no tar" if change == "nothing" else "none of the 1 tars"):
        load_shards(tmp_path)

def test_a_whole_bad_batch_stops_at_once(tmp_path, corpus):
    def ruin(samples):
        for k, s in samples.items(): s.update({e: b"nothing" for e in ("jpg", "png") if e in s})
    c = load_shards(write_shards(tmp_path, corpus, ruin)).corpus
    with pytest.raises(UserError, match="no image: its 7 bytes begin"):
        BatchLoader(c, CONTROL, 64, max_faults=0.9)(0)
    with pytest.raises(UserError, match="none of 100 images"): drop_unreadable(c)

def test_readable_keeps_what_decodes(faulty):
    c = load_shards(faulty).corpus
    good = drop_unreadable(c)
    assert (set(good.skipped.file) == {"00000/000000001", "00002/000000041"}
            and len(good.corpus) == len(c) - 2)
    with pytest.raises(UserError, match="00000/000000001"):
        corpora.ImageDecoder(c, 64)[range(len(c))]
    assert (corpora.ImageDecoder(good.corpus, 32)[range(len(good.corpus))].shape
            == (len(c) - 2, 3, 32, 32))

def test_names_of_any_length(tmp_path, corpus):
    "Long, deep and foreign names, in each format that Python writes, as Python reads them."
    names = ["x" * 150, "ß" * 80, "a/b", "deep/" * 40 + "é"]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path := tmp_path / f"{form}.tar", "w", format=form) as t:
            t.addfile(tarfile.TarInfo("folder"))
            for n in names[(form == tarfile.USTAR_FORMAT) * 2:]:
                head = tarfile.TarInfo(n); head.size = 5
                t.addfile(head, io.BytesIO(b"12345"))
        with tarfile.open(path) as t: want = [(m.name, m.offset_data, m.size) for m in t]
        with open(path, "rb") as f:
            assert list(data_shards.tar_members(f, path.stat().st_size)) == want

# --- the corpus

def test_shards_are_the_images(whole, corpus):
    opened = load_shards(whole)
    c = opened.corpus
    assert (not len(opened.skipped)
            and len(c) == PER_TAR * TARS == len(set(c["item_id"][:]))
            == len(set(c["pixel_hash"][:])))
    for row in c:
        k = int(row["item_id"].split("/")[1])
        near = np.abs(np.asarray(row["image"], int) - np.asarray(corpus[k]["image"])).mean()
        assert (row["captions"] == corpus[k]["captions"][:1]
                and (near == 0 if k % 3 == 0 else near < 12))
    train, test = (open_corpus(DataSettings(source=f"shards:{whole}"), s).corpus
                   for s in ("train", "test"))
    assert set(train["split"][:]) == {"train"} and set(test["split"][:]) == {"test"}
    assert train["item_id"][:] + test["item_id"][:] == c["item_id"][:]
    assert all(images._split(i) == "test" for i in test["item_id"][:])
    some = load_shards(str(whole / "0000[13].tar"), "train").corpus
    assert some["item_id"][:] == [i for i in train["item_id"][:] if i[4] in "13"]

def test_fingerprints_do_not_depend_on_how_they_are_read(whole, corpus, monkeypatch):
    for c in (corpus, load_shards(whole).corpus, load_shards(whole).corpus.select([5, 2, 9])):
        columns = [c[k][:] for k in ("item_id", "pixel_hash", "captions")]
        assert fingerprint(c) == content_hash(columns)

def test_interrupted_indexing_goes_on(tmp_path, corpus, monkeypatch):
    home, real, walked = write_shards(tmp_path / "home", corpus), data_shards._samples, []
    def counted(path, tar):
        if len(walked) == 3: raise KeyboardInterrupt
        walked.append(tar)
        return real(path, tar)
    monkeypatch.setattr(data_shards, "_samples", counted)
    monkeypatch.setattr(data_shards, "ThreadPoolExecutor", lambda n: real_pool(1))
    with pytest.raises(KeyboardInterrupt): load_shards(home)
    done = list(walked); walked.clear()
    assert len(done) == 3
    monkeypatch.setattr(data_shards, "_samples", lambda p, t: (walked.append(t), real(p, t))[1])
    c = load_shards(home).corpus
    assert (sorted(done + walked) == [f"{k:05d}.tar" for k in range(TARS)]
            and len(c) == PER_TAR * TARS)
    walked.clear(); load_shards(home); assert not walked # nothing has changed
    before = fingerprint(c)
    write_tar(home / "00002.tar", {"000000040": sample(corpus[99], 99)})
    after = load_shards(home).corpus
    assert (walked == ["00002.tar"] and fingerprint(after) != before
            and len(after) == PER_TAR * (TARS - 1) + 1)
    row = after[after["item_id"][:].index("00002/000000040")]
    assert row["captions"] == corpus[99]["captions"][:1] and row["image"].size == (64, 64)
real_pool = data_shards.ThreadPoolExecutor

def test_draft_leaves_png_and_small_jpeg_alone(corpus):
    im = corpus[0]["image"]
    assert _pixel_hash(decode(encoded(im, "png"), 8)) == _pixel_hash(im)
    assert _pixel_hash(decode(encoded(im, "jpeg"), 48)) == _pixel_hash(decode(encoded(im, "jpeg")))
    big = encoded(im.resize((768, 768)), "jpeg")
    assert decode(big, 64).size == (192, 192) and decode(big).size == (768, 768)

def test_hub_sets_broken_images_aside(tmp_path, corpus, monkeypatch):
    from datasets import Dataset, Features, Image as ImageFeature, Value
    data = [encoded(corpus[i]["image"], "png") for i in range(4)]
    rows = [dict(jpg=dict(bytes=b, path=None), caption=f"number {i}")
            for i, b in enumerate(data[:3] + [data[3][:900]])]
    Dataset.from_list(rows,
                      Features(jpg=ImageFeature(),
                               caption=Value("string"))).save_to_disk(tmp_path / "d")
    opened = load_hf_dataset(str(tmp_path / "d"))
    assert (opened.corpus["captions"][:] == [["number 0"], ["number 1"], ["number 2"]]
            and len(opened.skipped) == 1)
    assert opened.corpus["pixel_hash"][:] == [_pixel_hash(corpus[i]["image"]) for i in range(3)]
    monkeypatch.setattr(images, "MAX_ROWS_TO_VERIFY", 2) # now no image is opened
    monkeypatch.setattr(images, "decode", None)
    many = load_hf_dataset(str(tmp_path / "d")).corpus
    assert (len(set(many["pixel_hash"][:])) == len(many) == 4
            and fingerprint(many) == fingerprint(load_hf_dataset(str(tmp_path / "d")).corpus))

# --- every image: used, or listed with the reason

GOOD = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)

def picture(kind="png", x=GOOD, **how):
    out = io.BytesIO()
    Image.fromarray(x).save(out, kind, **how)
    return out.getvalue()

def tar(path, files, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as t:
        for name, data in files:
            head = tarfile.TarInfo(name); head.size = len(data)
            t.addfile(head, io.BytesIO(data))
    return path

def listed(skipped):
    "How many files the rows of `skipped` stand for."
    counts = [re.search(r", ([\d,]+) files?$", why) for why in skipped.reason]
    return sum(int(c[1].replace(",", "")) if c else 1 for c in counts)

def reasons(opened): return dict(zip(opened.skipped.file, opened.skipped.reason))

@pytest.mark.parametrize("x, kind", [
    (GOOD.astype(np.uint16) * 257, "png"), (GOOD.astype(np.uint16) * 257, "tiff"),
    (GOOD.astype(np.int32) * 257, "tiff"),
    (GOOD.astype(np.float32) / np.float32(255), "tiff"), (GOOD.astype(np.uint16) * 257, "jpeg2000"),
    (GOOD.astype(np.uint16) * 257, "ppm")],
    ids=["png16", "tiff16", "tiff32", "float", "jpeg2000", "pgm16"])
def test_deep_grey_is_the_eight_bit_image(x, kind):
    assert (np.asarray(decode(picture(kind, x, **(dict(irreversible=False) if kind == "jpeg2000"
                                                  else {})))) == GOOD[..., None]).all()

def tiff(x, bits, signed): # by hand: Pillow writes no such TIFF
    import struct
    data = x.tobytes()
    tags = [(256, x.shape[1]), (257, x.shape[0]), (258, bits), (259, 1), (262, 1),
            (273, 8 + 2 + 10 * 12 + 4), (277, 1), (278, x.shape[0]), (279, len(data)),
            (339, 1 + signed)]
    return (b"II*\0" + struct.pack("<IH", 8, len(tags))
            + b"".join(struct.pack("<HHII", t, 4 if t in (273, 279) else 3, 1, v)
                       for t, v in tags) + b"\0" * 4 + data)

def test_signed_and_wide_grey():
    x = np.linspace(0, 32767, 2400).reshape(40, 60).astype(np.int16)
    seen = np.asarray(decode(tiff(x, 16, True)))[..., 0]
    assert seen.min() == 0 and seen.max() == 255
    wide = (GOOD.astype(np.int64) * (2 ** 31 - 1) // 255).astype(np.int32)
    assert (np.asarray(decode(tiff(wide, 32, True)))[..., 0] == GOOD).all()

@pytest.mark.parametrize("x",
                         [GOOD.astype(np.int32) * 1000, -GOOD.astype(np.int32),
                          GOOD.astype(np.float32),
                               np.where(GOOD > 3, GOOD, np.nan).astype(np.float32) / 255,
                          -GOOD.astype(np.float32) / 255])
def test_grey_of_unknown_scale_is_a_fault(x):
    with pytest.raises(ValueError, match="the value of white is unknown"):
        decode(picture("tiff", x))

def test_a_clear_value_of_deep_grey_is_white():
    x = np.array([[0, 514], [1028, 65535]], np.uint16)
    assert (np.asarray(decode(picture("png", x, transparency=514)))[..., 0].tolist()
            == [[0, 255], [4, 255]])

def test_suffixes_are_those_that_pillow_opens():
    Image.init()
    # opened by another program, or not at all
    stubs = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}
    assert (images._IMAGE_SUFFIXES
            == {s
                for s, kind in Image.registered_extensions().items() if kind in Image.OPEN
                and kind not in stubs} | {".mpo"})

@pytest.mark.parametrize("kind, suffix",
                         [("jpeg", "jfif"), ("jpeg", "JPE"), ("avif", "avif"), ("jpeg2000", "jp2"),
                          ("ppm", "ppm"), ("tga", "tga"), ("qoi", "qoi")])
def test_every_suffix_is_used(tmp_path, kind, suffix):
    if kind.upper() not in Image.SAVE and not Image.init() and kind.upper() not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    (tmp_path / f"a.{suffix}").write_bytes(picture(kind, np.repeat(GOOD[..., None], 3, 2)))
    tar(tmp_path / "s/0.tar", [(f"a.{suffix}", (tmp_path / f"a.{suffix}").read_bytes())])
    assert (load_folder(tmp_path).corpus["item_id"][:] == [f"a.{suffix}"]
            and load_shards(tmp_path / "s").corpus[0]["image"].size == (60, 40))

@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_broken_note_leaves_the_image(kind):
    exif = Image.Exif(); exif[274] = 6; whole = exif.tobytes()
    same = decode(picture(kind, np.repeat(GOOD[..., None], 3, 2)))
    for note in (whole[:12], whole[:-5] + b"\xff" * 9, b"Exif\0\0II*\0" + b"\xff" * 40,
                 b"Exif\0\0junk"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            im = decode(picture(kind, np.repeat(GOOD[..., None], 3, 2), exif=note))
        assert sorted(im.size) == sorted(same.size)
    assert decode(picture(kind, exif=whole)).size == (40, 60)

def test_the_middle_of_a_long_thin_image():
    "Encoders cut such an image by themselves; here, nothing as long as it is resized."
    x = np.zeros((60_000, 1), np.uint8); x[29_950:30_050] = 200
    assert all((corpora._seen(picture("png", y), 8, False) == 200).all() for y in (x, x.T.copy()))
    # whole, so that two that differ at an end are two
    assert decode(picture("png", x)).size == (1, 60_000)

def test_a_bomb_is_listed_and_large_images_are_quiet(tmp_path, monkeypatch, recwarn):
    for n, side in dict(fine=60, large=80, bomb=120).items():
        (tmp_path / f"{n}.png").write_bytes(picture("png", np.zeros((side, 60), np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 59)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning) # pytest forgets it
    opened = load_folder(tmp_path)
    assert (opened.corpus["item_id"][:] == ["fine.png", "large.png"]
            and "too many to open" in reasons(opened)["bomb.png"])

# --- folders

def test_folders_of_a_system_are_counted(tmp_path):
    for n in ("a.png", "._a.png", "Thumbs.db", ".ipynb_checkpoints/a-checkpoint.png",
              ".Trash-1000/x/y.png", "__MACOSX/._a.png", "@eaDir/a.png/b.png",
              "b/.thumbnails/a.png", "b/@eaDir/c.png", "notes.md", "b/more.md", "README",
              "b/alone.txt", "a.txt", "a.json"):
        (tmp_path / n).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / n).write_bytes(picture() if n.endswith("png") else b"{}")
    with pytest.warns(UserWarning,
                      match="skipped in .*beside the images: .*md .no image by its suffix, 2 "
                            "files"):
        opened = load_folder(tmp_path)
    assert opened.corpus["item_id"][:] == ["a.png"]
    assert {f: why.rpartition(", ")[2] for f, why in reasons(opened).items()} == {
        ".*": "2 files", ".ipynb_checkpoints/": "1 file", ".Trash-1000/": "1 file",
        "__MACOSX/": "1 file", "@eaDir/": "2 files", ".thumbnails/": "1 file",
        "*.md": "2 files", "*": "1 file", "*.txt": "1 file"}
    # an image and its two captions
    assert listed(opened.skipped) + 1 + 2 == 15 and not len(images._broken(opened.skipped))

def test_links_are_followed_and_loops_are_told(tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True); (tmp_path / "in").mkdir()
    for n in ("x.png", "deep/y.png"): (tmp_path / "elsewhere" / n).write_bytes(picture())
    for name, to in dict(dogs="../elsewhere", again="../elsewhere", self="self",
                         gone="nowhere").items():
        (tmp_path / "in" / name).symlink_to(to)
    (tmp_path / "in/one.png").symlink_to(tmp_path / "elsewhere/x.png")
    (tmp_path / "in/lost.png").symlink_to("nowhere.png")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "in/pipe.png")
    opened = load_folder(tmp_path / "in")
    assert (opened.corpus["item_id"][:]
            == ["again/deep/y.png", "again/x.png", "dogs/deep/y.png", "dogs/x.png", "one.png"])
    found = reasons(opened)
    assert all("a link back to a folder" in found[f"{d}/deep/up"] for d in ("again", "dogs"))
    assert (all("no regular file" in found[n] for n in ("self", "gone", "lost.png", "pipe.png"))
            and len(found) == 6)

def test_names_that_are_no_utf8(tmp_path):
    for n in (b"caf\xe9.png", b"d\xfcr/x.png"):
        os.makedirs(os.path.dirname(os.path.join(os.fsencode(tmp_path), n)), exist_ok=True)
        try: open(os.path.join(os.fsencode(tmp_path), n), "wb").write(picture())
        except OSError: pytest.skip("this file system takes UTF-8 only")
    open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "w").write("a cup")
    open(os.path.join(os.fsencode(tmp_path), b"\xff.md"), "w").close()
    open(os.path.join(os.fsencode(tmp_path), b"\xff.jpg"), "w").write("broken")
    opened = load_folder(tmp_path)
    assert (opened.corpus["item_id"][:] == [r"caf\udce9.png", r"d\udcfcr/x.png"]
            and opened.corpus["captions"][:] == [["a cup"], []])
    assert ({im.size for im in opened.corpus["image"][:]} == {(60, 40)}
            and corpora.ImageDecoder(opened.corpus, 8)[[0, 1]].shape == (2, 3, 8, 8))
    assert r"\udcff.jpg" in reasons(opened)
    opened.skipped.to_csv(tmp_path / "skipped.csv")

@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_this_folder(name):
    for kind in ("folder", "shards", "hf", "stream"):
        with pytest.raises(UserError, match="is no path: expected"):
            open_corpus(DataSettings(source=f"{kind}:{name}"))

def test_images_shown_are_the_images_embedded(tmp_path):
    (tmp_path / "deep.png").write_bytes(picture("png", GOOD.astype(np.uint16) * 257))
    c = load_folder(tmp_path).corpus
    assert (np.asarray(c[0]["image"]) == GOOD[..., None]).all() and c[0]["image"].mode == "RGB"

# --- captions

SAID = "a café, “naïve”"

@pytest.mark.parametrize("code",
                         ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
                          "cp1252"])
def test_captions_in_any_encoding(tmp_path, code):
    text, facts = (f"{SAID}\r\nand more \r\n".encode(code),
                   json.dumps(dict(caption=SAID), ensure_ascii=False).encode(code))
    for n, data in {"a.png": picture(), "a.txt": text, "b.png": picture(), "b.json": facts}.items():
        (tmp_path / n).write_bytes(data)
    tar(tmp_path / "s/0.tar", [(p.name, p.read_bytes()) for p in sorted(tmp_path.glob("?.*"))])
    for opened in (load_folder(tmp_path), load_shards(tmp_path / "s")):
        assert sorted(opened.corpus["captions"][:]) == sorted([[f"{SAID}\nand more"], [SAID]])

def test_a_zero_byte_makes_no_utf16():
    assert images._text_of("café\0".encode()) == "café" == images._text_of(b"caf\xc3\xa9\0\0")

@pytest.mark.parametrize("value, said",
                         [(["one", "two"], ["one", "two"]), (7, ["7"]), (0.5, ["0.5"]),
                          (float("nan"), []), (None, []), (True, []), ({"a": 1}, []),
                                         ("", []), (["x", None, [3]], ["x", "3"]),
                          ("\ud800x", ["?x"]), ([], [])])
def test_captions_in_json(tmp_path, value, said):
    facts = json.dumps(dict(caption=value, sha256=5)).encode()
    (tmp_path / "0.png").write_bytes(picture()); (tmp_path / "0.json").write_bytes(facts)
    tar(tmp_path / "s/0.tar", [("0.png", picture()), ("0.json", facts)])
    for opened in (load_folder(tmp_path), load_shards(tmp_path / "s")):
        assert opened.corpus["captions"][:] == [said]

def test_only_a_hash_names_an_image(tmp_path):
    values = [5, None, "", "same", "é" * 20, "0123456789abcdef" * 4]
    tar(tmp_path / "0.tar",
        [x for k, v in enumerate(values)
         for x in ((f"{k}.png", picture()), (f"{k}.json", json.dumps(dict(sha256=v)).encode()))])
    got = dict(zip(*(load_shards(tmp_path).corpus[c][:] for c in ("item_id", "pixel_hash"))))
    assert got.pop("0/5") == "0123456789abcdef" and len(set(got.values())) == 5

@pytest.mark.parametrize("data",
                         [b"[" * 100_000, b'{"caption": ', b"[1, 2]", b"",
                          b'{"caption": "' + b"x" * (1 << 20) + b'"}'])
def test_a_broken_caption_is_listed_and_its_image_is_used(tmp_path, data):
    (tmp_path / "0.png").write_bytes(picture()); (tmp_path / "0.json").write_bytes(data)
    tar(tmp_path / "s/0.tar", [("0.png", picture()), ("0.json", data)])
    for opened, name in ((load_folder(tmp_path), "0.json"),
                         (load_shards(tmp_path / "s"), "0.tar/0.json")):
        assert (opened.corpus["captions"][:] == [[]]
                and "a caption that cannot be read" in reasons(opened)[name]
                and not len(images._broken(opened.skipped)))

def test_captions_of_a_dataset_are_texts(tmp_path):
    from datasets import Dataset, Features, Image as ImageFeature, List, Value
    d = dict(image=[dict(bytes=picture(), path=None)] * 4,
             caption=[["a", None], None, [" "], ["b", "c"]])
    d = Dataset.from_dict(d, Features(image=ImageFeature(), caption=List(Value("string"))))
    assert images.as_corpus(d, "d").corpus["captions"][:] == [["a"], [], [], ["b", "c"]]

# --- tars

def members(path):
    return dict(zip(*(load_shards(path).corpus[c][:] for c in ("item_id", "captions"))))

def test_dots_in_keys(tmp_path):
    tar(tmp_path / "s/0.tar", [(n, picture() if n.endswith("png") else n.encode()) for n in
        ("img.v1.png", "img.v1.txt", "img.v2.png", "22.05.png", "a.png", "s0.input.png",
         "s0.outputs.txt", "s1.input.png", "d.x/b.png", "d.x/b.txt", "c.png.txt", "c.png")])
    assert members(tmp_path / "s") == {"0/img.v1": ["img.v1.txt"], "0/img.v2": [], "0/22.05": [],
                                       "0/a": [], "0/s0.input": ["s0.outputs.txt"],
                                       "0/s1.input": [],
                                       "0/d.x/b": ["d.x/b.txt"], "0/c": ["c.png.txt"]}

def test_a_hash_names_its_own_image(tmp_path):
    tar(tmp_path / "0.tar",
        [("s.a.png", picture()), ("s.b.png", picture()),
         ("s.json", json.dumps(dict(caption="both", sha256="0" * 64)).encode())])
    c = load_shards(tmp_path).corpus
    assert len(set(c["pixel_hash"][:])) == 2 and c["captions"][:] == [["both"]] * 2

def test_masks_beside_an_image_are_counted(tmp_path):
    tar(tmp_path / "0.tar",
        [(f"{k}{s}", picture()) for k in range(3) for s in (".png", ".seg.png", ".depth.png")])
    opened = load_shards(tmp_path)
    assert (opened.corpus["item_id"][:] == ["0/0", "0/1", "0/2"] and listed(opened.skipped) == 6
            and set(opened.skipped.file) == {"*.seg.png", "*.depth.png"})

def test_double_members_and_keys_are_listed(tmp_path):
    tar(tmp_path / "0.tar",
        [("a.png", picture()), ("a.txt", b"old"), ("a.txt", b"new"), ("b.png", picture()),
         ("b.jpg", picture("jpeg")), ("c.png", b"x"), ("c.png", picture())])
    tar(tmp_path / "1.tar", [("a.png", picture())])
    opened = load_shards(tmp_path)
    assert (dict(zip(opened.corpus["item_id"][:], opened.corpus["captions"][:]))
            == {"0/a": ["new"], "0/b": [], "0/c": [], "1/a": []})
    assert ({f: why[10:15] for f, why in reasons(opened).items()}
            == {"0.tar/a.txt": "twice", "0.tar/c.png": "twice", "0.tar/b.jpg": "one m"})
    assert ("keys that another tar has too: 1" in opened.corpus.info.description
            and opened.corpus[2]["image"].size == (60, 40))
    assert "too:" not in load_shards(tmp_path / "0.tar").corpus.info.description

def test_linked_and_packed_tars(tmp_path):
    tar(tmp_path / "far/deep/0.tar", [("a.png", picture())]); (tmp_path / "in").mkdir()
    (tmp_path / "in/far").symlink_to(tmp_path / "far")
    (tmp_path / "in/1.tar").symlink_to(tmp_path / "far/deep/0.tar")
    (tmp_path / "in/2.tar").symlink_to("nowhere"); (tmp_path / "in/3.tar").mkdir()
    (tmp_path / "far/back").symlink_to(tmp_path / "in")
    for n in ("4.tar.gz", "5.tgz"):
        (tmp_path / "in" / n).write_bytes(gzip.compress((tmp_path / "far/deep/0.tar").read_bytes()))
    (tmp_path / "in/6.tar").write_bytes((tmp_path / "in/5.tgz").read_bytes())
    opened = load_shards(tmp_path / "in")
    assert sorted(opened.corpus["item_id"][:]) == ["1/a", "far/deep/0/a"]
    found = reasons(opened)
    assert (all("unpack it" in found[n] for n in ("4.tar.gz", "5.tgz", "6.tar"))
            and "no regular file" in found["2.tar"] and "a link back" in found["far/back"])
    for n in ("4.tar.gz", "5.tgz"):
        with pytest.raises(UserError, match="holds no tar: .*unpack it"):
            load_shards(tmp_path / "in" / n)

def test_a_tar_written_anew_at_its_size_and_time(tmp_path):
    path = tar(tmp_path / "0.tar", [("a.png", picture("png", GOOD)), ("a.txt", b"old")])
    c, state = load_shards(tmp_path).corpus, path.stat()
    other = picture("png", GOOD[::-1].copy())
    data = [("b.png", other), ("b.txt", b"new")]
    tar(path, data + [("fill.bin", b"")])
    path.write_bytes(path.read_bytes()[:state.st_size].ljust(state.st_size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size and path.stat().st_mtime_ns == state.st_mtime_ns
    assert members(tmp_path) == {"0/b": ["new"]}
    path.write_bytes(b"\0" * state.st_size) # while it is open
    images._open_tar.cache_clear()
    assert "has changed since" in corpora.ImageDecoder(c, 8).read([0])[0]["fault"]

@pytest.mark.parametrize("name", [b"a\xff.png", "é.png".encode("latin-1")])
def test_names_in_a_tar_that_are_no_utf8(tmp_path, name):
    with tarfile.open(tmp_path / "0.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as t:
        head = tarfile.TarInfo(name.decode("latin-1")); head.size = len(picture())
        t.addfile(head, io.BytesIO(picture()))
    assert len(members(tmp_path)) == 1 and "\\x" in next(iter(members(tmp_path)))

def test_links_and_hidden_files_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as t:
        for n in ("./a.png", "./._a.png", "__MACOSX/a.png", "notes.md"):
            head = tarfile.TarInfo(n); head.size = len(picture())
            t.addfile(head, io.BytesIO(picture()))
        head = tarfile.TarInfo("b.png"); head.type, head.linkname = tarfile.SYMTYPE, "./a.png"
        t.addfile(head)
        head = tarfile.TarInfo("folder"); head.type = tarfile.DIRTYPE; t.addfile(head)
    opened = load_shards(tmp_path)
    assert (opened.corpus["item_id"][:] == ["0/./a"] and listed(opened.skipped) == 4
            and set(opened.skipped.file) == {".*", "*.md", "links"})

# --- the hub

@pytest.mark.parametrize("saved", ["parquet", "file", "disk", "splits"])
def test_datasets_in_a_folder(tmp_path, saved):
    from datasets import Dataset, DatasetDict, Features, Image as ImageFeature, Value
    d = Dataset.from_dict(dict(image=[dict(bytes=picture(), path=None)] * 3, text=list("abc")),
                          Features(image=ImageFeature(), text=Value("string")))
    home = tmp_path / "set"
    if saved == "disk": d.save_to_disk(home)
    elif saved == "splits": DatasetDict(train=d).save_to_disk(home)
    else:
        (home / "data").mkdir(parents=True)
        d.to_parquet(home / "data/train-00000-of-00001.parquet")
    c = load_hf_dataset(str(home / "data/train-00000-of-00001.parquet" if saved == "file"
                            else home)).corpus
    assert c["captions"][:] == [["a"], ["b"], ["c"]] and c[0]["image"].size == (60, 40)
    if saved in ("parquet", "splits"):
        with pytest.raises(UserError, match="no split 'test': its splits are train"):
            load_hf_dataset(str(home), "test")

def test_a_folder_of_no_dataset_says_what_is_expected(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(UserError, match="holds no dataset: expected Parquet files.*folder:"):
        load_hf_dataset(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="could not open the dataset"):
        load_hf_dataset(str(tmp_path))

# --- order

@pytest.mark.parametrize("tars", [(7,) * 40, (3, 9, 1, 20, 5) * 9, (40,)])
def test_two_level_order(tars):
    n, of = sum(tars), np.repeat(np.arange(len(tars)), tars)
    epochs = np.stack([_shard_order(tars, s, e) for s in (1, 2) for e in (0, 1, 2)])
    assert (np.sort(epochs, 1) == np.arange(n)).all() and len(np.unique(epochs, axis=0)) == 6
    for order in epochs:
        last = {t: k for k, t in enumerate(of[order])} # a tar is done before the next window begins
        first = {t: n - 1 - k for k, t in enumerate(of[order][::-1])}
        at_once = max(sum(first[t] <= k <= last[t] for t in first) for k in range(n))
        assert at_once <= _WINDOW
    rows = np.concatenate([sample_rows(n, 1, s, 8, tars) for s in range(0, 3 * n, 8)])[:3 * n]
    assert (rows.reshape(3, n) == epochs[:3]).all()

def test_each_good_row_once_an_epoch(whole):
    c = open_corpus(DataSettings(source=f"shards:{whole}")).corpus
    n = len(c)
    control = Control(samples=4 * n, batch_size=n, seed=3)
    feed = BatchLoader(c, control, 32)
    assert sum(feed.tars) == n and len(feed.tars) == TARS
    for step in range(2):
        assert sorted(feed(step).captions) == sorted(s[0] for s in c["captions"][:])
    assert (feed.rows(0) != feed.rows(1)).any()

def test_emoji_batches_are_what_they_were(corpus, tiny):
    "Rows, captions and mirrors by the rules that the first study was made with."
    from ccd.data.batches import _DIRECTION, _epoch_order
    feed, n, c = BatchLoader(corpus, tiny.control, 64), len(corpus), tiny.control
    for step in (0, 7, n // c.batch_size): # the last crosses into the second epoch
        shown, s = feed(step), torch.arange(step * c.batch_size, (step + 1) * c.batch_size)
        rows = [_epoch_order(n, c.seed, int(k) // n)[int(k) % n] for k in s]
        assert feed.rows(step).tolist() == rows and torch.equal(shown.sample, s)
        for k, r in enumerate(rows):
            row, u = corpus[int(r)], _counter_uniform(c.seed, s[k:k + 1], 8, 1).item()
            assert shown.captions[k] == row["captions"][int(u * len(row["captions"]))]
            assert (shown.images[k].permute(1, 2, 0).numpy() == np.asarray(row["image"])).all()
            told = " ".join(filter(None, [row["name"], row["other_name"], *row["captions"]]))
            assert (shown.may_flip[k]
                    == (not (row["word"] or row["relation"] or row["chart"])
                        and not _DIRECTION.search(told)))

# --- batches

@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(faulty, tmp_path, workers):
    c = load_shards(faulty).corpus
    def feed(w):
        return BatchLoader(c, CONTROL, 48, workers=w, require_captions=True, max_faults=0.5,
                           folder=tmp_path / str(w))
    rng, alone, many = torch.get_rng_state(), feed(0), feed(workers)
    for a, b in zip(alone.batches(0, 30), many.batches(0, 30), strict=True): assert same(a, b)
    assert ((tmp_path / "0/faults.jsonl").read_text()
            == (tmp_path / f"{workers}/faults.jsonl").read_text())
    assert (all(alone.clock.values()) and all(many.clock.values())
            and torch.equal(rng, torch.get_rng_state()))
    # threads before a fork
    assert same(many(4), alone(4)) and [s.sample[0] for s in many.batches(6, 8)] == [48, 56]

def test_resume_at_any_step(faulty):
    c = load_shards(faulty).corpus
    def make():
        return BatchLoader(c, CONTROL, 32, require_captions=True, max_faults=0.5)
    undisturbed = list(make().batches(0, 24))
    for start in range(24): assert same(next(make().batches(start, 24)), undisturbed[start]), start
    feed = make()
    feed.restore(feed.state())
    assert feed.exact and all(map(same, feed.batches(5, 24), undisturbed[5:]))
    assert same(pickle.loads(pickle.dumps(feed))(3), undisturbed[3])

@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_batch(faulty, processes):
    c = load_shards(faulty).corpus
    def make(**how):
        return BatchLoader(c, CONTROL, 32, require_captions=True, max_faults=0.5, **how)
    one, each = make(), [make(rank=r, processes=processes) for r in range(processes)]
    for step in (0, 5, 11, 12, 40): assert same(joined([f(step) for f in each]), one(step)), step
    with pytest.raises(UserError, match="--control.batch-size to 6 or 9"): make(processes=3)

def test_labels(corpus):
    feed = BatchLoader(corpus, CONTROL, 32, label="concept")
    known = sorted(set(corpus["concept"][:]) - {None})
    want = [known.index(x) if (x := corpus[int(r)]["concept"]) is not None else -100
            for r in feed.rows(2)]
    assert feed(2).labels.tolist() == want and feed.n_labels == len(known)
    assert (BatchLoader(corpus, CONTROL, 32)(2).labels == -100).all()
    with pytest.raises(UserError, match="no column 'colour'"):
        BatchLoader(corpus, CONTROL, 32, label="colour")

def test_a_killed_worker_is_a_message(whole):
    batches = BatchLoader(load_shards(whole).corpus, CONTROL, 32, workers=1).batches(0, 400)
    next(batches)
    for child in multiprocessing.active_children(): os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="--runtime.workers"): list(batches)

# --- streams

@pytest.fixture(scope="module")
def river(tmp_path_factory, corpus):
    "A stream of five Parquet files, each of twenty images with their number for a caption."
    from datasets import Dataset, Features, Image as ImageFeature, Value
    import datasets.config
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0 # 5 s after each epoch, for slow connections
    home = tmp_path_factory.mktemp("river")
    for k in range(TARS):
        rows = [dict(picture=dict(bytes=encoded(corpus[i]["image"], "png"), path=None), text=str(i),
                     key=f"item {i}")
                for i in range(k * PER_TAR, (k + 1) * PER_TAR)]
        d = Dataset.from_list(rows,
                              Features(picture=ImageFeature(), text=Value("string"),
                                       key=Value("string")))
        d.to_parquet(home / f"{k}.parquet")
    return home

def flow(river, **how):
    return make_loader(open_corpus(DataSettings(source=f"stream:{river}")).corpus, CONTROL, 64,
                       **how)

def test_a_stream_shows_each_sample_once_an_epoch(river, corpus):
    f = flow(river)
    shown = [joined(list(f.batches(a, a + 25))) for a in (0, 25)] # two epochs of 200
    for s in shown: assert sorted(map(int, s[2])) == sorted(2 * list(range(100)))
    assert shown[0][2][:100] != shown[0][2][100:] and shown[0][2] != shown[1][2]
    for x, k in zip(shown[0][0], shown[0][2]):
        assert (x.permute(1, 2, 0).numpy() == np.asarray(corpus[int(k)]["image"])).all()
    assert shown[1][1].tolist() == list(range(200, 400)) and not f.exact
    assert same(next(flow(river).batches(0, 1)), next(flow(river).batches(0, 1)))
    g = flow(river)
    assert same(g(0), next(g.batches(0, 1))) # a look does not move it
    assert same(pickle.loads(pickle.dumps(g))(1), g(1))

@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_near_where_it_was(river, workers, monkeypatch):
    monkeypatch.setattr(streams, "_SHUFFLE_BUFFER", 10)
    a = flow(river, workers=workers)
    before = joined(list(a.batches(0, 6)))[2] # 48 of 100
    b = flow(river, workers=workers)
    b.restore(json.loads(json.dumps(a.state())))
    after = list(b.batches(6, 9))
    said = joined(after)[2]
    assert len(set(before) & set(said)) <= 8 and after[0].sample.tolist() == list(range(48, 56))
    with pytest.raises(UserError, match="cannot resume with"):
        flow(river, workers=workers + 2).restore(a.state())

def test_processes_of_a_stream_share_its_files(river):
    parts = [joined(list(flow(river, rank=r, processes=2).batches(0, 10)))[2] for r in (0, 1)]
    assert not set(parts[0]) & set(parts[1]) and len(set(parts[0])) == 40 # a batch of 4 each
    shared = joined(list(flow(river, workers=2).batches(0, 10)))
    assert len(set(shared[2])) == 80 and shared[1].tolist() == list(range(80))

def test_a_broken_file_ends_a_stream(tmp_path, corpus):
    def no_png(samples):
        for s in samples.values(): s.update(jpg=s.pop("png", None) or s["jpg"])
    cut = write_shards(tmp_path, corpus, no_png) / "00003.tar"
    with tarfile.open(cut) as t: at = t.getmembers()[18].offset_data
    cut.write_bytes(cut.read_bytes()[:at + 10])
    with pytest.raises(UserError, match="the stream .*Error"): list(flow(tmp_path).batches(0, 40))

def test_too_few_files_to_stream(river):
    with pytest.raises(UserError,
                       match="need 6 files to stream, and there are 5: set --runtime.workers to 2 "
                             "or less"):
        flow(river, processes=2, workers=3)

def test_faults_of_a_stream(tmp_path, corpus):
    def ruin(samples):
        for s in samples.values():
            if "png" in s: s["jpg"] = s.pop("png")
        plant(samples)
    home = write_shards(tmp_path / "s", corpus, ruin)
    f = flow(home, require_captions=True, max_faults=0.5, folder=tmp_path)
    list(f.batches(0, 24))
    assert (set(f.faults.items)
            == {"00000/000000001", "00001/000000022", "00002/000000041", "00002/000000043"})
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) == 4
    with pytest.raises(UserError, match="--runtime.max-faults"):
        list(flow(home, require_captions=True).batches(0, 200))

def test_nothing_to_stream(tmp_path):
    with pytest.raises(UserError, match="holds nothing to stream"): flow(tmp_path)
