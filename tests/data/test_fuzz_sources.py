"Folders and tars of anything: no traceback but `UserError`, and every file is used or listed."
import io, json, os, re, tarfile, tempfile, warnings
from contextlib import contextmanager
from pathlib import Path
import pytest
from hypothesis import example, given, strategies as st
from PIL import Image
from ccd.data import corpora, images, shards
from ccd.files import UserError

def picture(kind, mode="RGB", size=(6, 4)):
    out = io.BytesIO()
    Image.new(mode, size, 1).save(out, kind)
    return out.getvalue()

PICTURES = [picture("png"), picture("jpeg"), picture("png", "I;16"), picture("tiff", "F"),
            picture("tiff", "I"), picture("gif", "P"), picture("ppm"),
            picture("webp", "RGBA"), picture("png", size=(1, 500)), picture("bmp", "1")]
JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda x: st.lists(x,
                                       max_size=3)
                    | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=4)
FACTS = st.builds(lambda **x: json.dumps(x).encode(), caption=JUNK, sha256=JUNK)
TEXT = st.builds(lambda text, code: text.encode(code, "replace"), st.text(max_size=8),
                 st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]))

@st.composite
def broken(draw): # a picture cut short, or with some bytes changed
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[:draw(st.integers(0, len(data)))])

CONTENT = st.one_of(st.sampled_from(PICTURES), broken(), FACTS, TEXT, st.binary(max_size=30))
FOLDERS = ["", "", "a/", "b.c/", "a/a/", ".git/", "@eaDir/", "é/"]
SUFFIXES = [".png", ".jpg", ".JPG", ".txt", ".TXT", ".json", ".md", "", ".seg.png", ".tif", ".tar"]
NAMES = st.builds("{}{}{}".format, st.sampled_from(FOLDERS),
                  st.text("aab.é~#[*\udcff", min_size=1, max_size=3), st.sampled_from(SUFFIXES))
FILES = st.lists(st.tuples(NAMES, CONTENT), max_size=8)

@contextmanager
def room(): # with a cache of its own
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as m, warnings.catch_warnings():  # noqa: E501
        warnings.simplefilter("ignore")
        m.setattr(shards, "cache_dir", lambda *parts: Path(home, "cache", *parts))
        (Path(home) / "in").mkdir()
        yield Path(home) / "in"

def listed(skipped): # files that the rows stand for
    counts = [re.search(r", ([\d,]+) files?$", why) for why in skipped.reason]
    return sum(int(c[1].replace(",", "")) if c else 1 for c in counts)

def stem(path): return os.path.splitext(path)[0]
def suffix(path): return os.path.splitext(path)[1].lower()

def present(folder, above=()): # files below it through links, and captions beside an image, as a reference  # noqa: E501
    files = []
    for e in sorted(os.scandir(folder), key=lambda e: e.name):
        hidden = e.name.startswith(".") or e.name == "@eaDir"
        if e.is_dir() and hidden: files += [None for _, _, names in os.walk(e.path) for _ in names]
        elif e.is_dir() and os.path.realpath(e.path) not in above:
            files += present(e.path, (*above, os.path.realpath(e.path)))
        elif not e.is_dir(): files.append(None if hidden else e.path)
    return files

def captions(files): # those that belong to an image
    own = {stem(f) for f in files if f and suffix(f) in images._IMAGE_SUFFIXES}
    return {(stem(f), suffix(f))
            for f in files if f and suffix(f) in (".txt", ".json") and stem(f) in own}

def check(corpus): # what is used can be used
    assert len(set(corpus["item_id"][:])) == len(corpus)
    for row in corpus.remove_columns("image"):
        assert all(isinstance(c, str) and c.strip() for c in row["captions"])
    json.dumps(corpus["captions"][:], ensure_ascii=False).encode()

@given(files=FILES,
       links=st.lists(st.tuples(NAMES, st.sampled_from(["", "a", "a/a", "é", "a.png", "nowhere"])),
                      max_size=2))
@example(files=[("a.png", PICTURES[0]), ("a/b.png", PICTURES[0])], links=[("a/up", "")])
def test_folders(files, links):
    with room() as home:
        for name, data in files:
            try:
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_bytes(data)
            except OSError: pass # a folder of that name
        for name, to in links:
            try:
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).symlink_to(home / to)
            except OSError: pass
        try: opened = images.load_folder(home)
        except UserError: return
        found, back = (present(home, (os.path.realpath(home),)),
                       sum("a link back" in why for why in opened.skipped.reason))
        said = len(captions(found)) - sum("cannot be read" in why for why in opened.skipped.reason)
        assert len(opened.corpus) + said + listed(opened.skipped) - back == len(found)
        check(opened.corpus)
        read = corpora.ImageDecoder(opened.corpus, 8).read(range(len(opened.corpus)))
        assert not [r["fault"] for r in read if r["fault"]]
        opened.skipped.to_csv(io.StringIO())

def write(path, files):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as t:
        for name, data in files:
            head = tarfile.TarInfo(name); head.size = len(data)
            t.addfile(head, io.BytesIO(data))

@given(tars=st.lists(FILES, min_size=1, max_size=3))
@example(tars=[[("a.png", PICTURES[0]), ("a.seg.png", PICTURES[0]), ("a.b.txt", b"said")],
               [("a.png", PICTURES[1]), ("a.png", PICTURES[1])]])
def test_tars(tars):
    with room() as home:
        for k, files in enumerate(tars): write(home / f"{k}.tar", files)
        try: opened = shards.load_shards(home)
        except UserError: return
        check(opened.corpus)
        skipped, files = opened.skipped, [f for files in tars for f, _ in files]
        texts = sum(suffix(f) in (".txt", ".json") and not any(map(images._is_hidden, f.split("/")))
                    for f in files)
        alone = skipped[skipped.reason.str.contains(images._ALONE)
                        | skipped.file.str.lower().str.contains(r"/.*\.(?:txt|json)$")]
        assert len(opened.corpus) + texts - listed(alone) + listed(skipped) == len(files)
        for r in corpora.ImageDecoder(opened.corpus, 8).read(range(len(opened.corpus))):
            assert "has changed" not in (r["fault"] or "")

@given(files=FILES,
       changes=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=9)),
                        max_size=3), end=st.integers(0, 20_000))
def test_broken_tars(files, changes, end):
    with room() as home:
        write(home / "0.tar", [("a.png", PICTURES[0]), *files])
        data = bytearray((home / "0.tar").read_bytes())
        for at, new in changes: data[at:at + len(new)] = new
        (home / "0.tar").write_bytes(data[:end] if end % 2 else data)
        try: check(shards.load_shards(home).corpus)
        except UserError: pass

@given(st.binary(max_size=60) | TEXT
       | st.builds(lambda x: (x * 30)[:61], st.binary(min_size=1, max_size=2)))
def test_any_bytes_are_a_text(data):
    text = images._text_of(data)
    assert (text.encode().decode() == text == text.strip(" \n") and "\r" not in text
            and "\0" not in text)

@given(st.text(st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"])),
       st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_was_written_is_read(text, code):
    text = "é" + text.strip() + "é"
    assert (images._text_of(text.encode(code)) == text
            == images._text_of(text.replace("\n", "\r\n").encode(code)))

@given(JUNK, FACTS | TEXT | st.binary(max_size=40))
def test_any_value_has_captions(value, data):
    for said in (images._captions_of(value), _caption_in(data)):
        assert all(isinstance(c, str) and c.encode() for c in said)

def _caption_in(data):
    try: return images._read_caption(".json", data)[0]
    except ValueError: return []
