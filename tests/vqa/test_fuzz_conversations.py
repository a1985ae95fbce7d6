"""Files of LLaVA with anything in them: no traceback but `UserError`, and every conversation is
used or listed with a reason."""
import contextlib, io, json, tempfile
from pathlib import Path
import pytest
from hypothesis import example, given, strategies as st
from PIL import Image
from ccd.vqa.llava import conversations
from ccd.files import UserError

FILES = ("a.png", "b/c.png")

@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("images")
    for f in FILES:
        (home / f).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(home / f)
    return home

ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats()
                        | st.text(max_size=6),
                        lambda x: st.lists(x,
                                           max_size=3)
                        | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=5)
TEXT = (st.text(max_size=8)
        | st.sampled_from(["", "<image>", "<image>\nWhat?", "<image><image>", "\ud800", "a cat"]))
def or_anything(x, often=9): return st.integers(0, often).flatmap(lambda k: x if k else ANYTHING)
SPEAKER = or_anything(st.sampled_from(["human", "human", "human", "gpt", "gpt", "gpt", "system",
                                       "user", "assistant", "Human", ""]))
MESSAGE = or_anything(st.fixed_dictionaries({"from": SPEAKER, "value": or_anything(TEXT)}))
def talk(who, texts): return [{"from": w, "value": t} for w, t in zip(who, texts)]
TALK = st.builds(talk,
                 st.sampled_from([("human", "gpt") * 2, ("system", "human", "gpt"),
                                  ("gpt", "human", "gpt", "human"), ("human", "human", "gpt")]),
                 st.lists(TEXT, min_size=2, max_size=4))
# one that is not there stops all
IMAGE = or_anything(st.sampled_from(FILES) | st.lists(st.sampled_from(FILES), max_size=2), 30)
ROW = or_anything(st.fixed_dictionaries(dict(conversations=or_anything(TALK | st.lists(MESSAGE,
                                                                                       max_size=4))),
                                        optional=dict(id=ANYTHING, image=IMAGE, images=IMAGE,
                                                      video=ANYTHING)))
GOOD = st.builds(lambda image, q, a: dict(image=image,
                                          conversations=talk(("human", "gpt"), (q, a))),
                 st.sampled_from(FILES),
                 st.sampled_from(["<image>\nWhat?", "What?", ""]), st.text("ab ", min_size=1))
ROWS = st.lists(GOOD | ROW, max_size=5)

def read(data, images): # the talks, None where a `UserError` says what is wrong
    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stderr(io.StringIO()):
        file = Path(home) / "c.json"
        file.write_bytes(data)
        try: return conversations._load_llava_json(file, images)
        except UserError as e: assert str(e)

def left_out(talks):
    assert (talks.skipped.reason != "").all() and talks.skipped.row.is_monotonic_increasing
    return talks.skipped[talks.skipped.excluded == "conversation"].row.tolist()

def check(talks, rows): # against what is there, in words of its own
    out = left_out(talks)
    used = [r for k, r in enumerate(rows, 1) if k not in out]
    assert len(set(out)) == len(out) and len(talks.turns) == len(talks.picture) == len(used)
    messages = talks.skipped[talks.skipped.excluded != "conversation"]
    assert (sum(2 * len(t) for t in talks.turns) + len(messages)
            == sum(len(r["conversations"]) for r in used))
    for row, turns, picture in zip(used, talks.turns, talks.picture):
        said = {who: [m["value"].replace("<image>", "").strip()
                      for m in row["conversations"] if m["from"] in names]
                for who, names in dict(q=("human", "user"), a=("gpt", "assistant")).items()}
        assert turns and all(q in said["q"] and a in said["a"] for q, a in turns)
        assert ((picture < 0) == (row.get("image", row.get("images")) in (None, "", []))
                and picture < len(talks.corpus))

@given(ROWS, st.booleans())
@example([dict(image="a.png", conversations=talk(("human", "gpt"), ("x", "y"))), None, 3, [], {}],
         False)
@example([dict(image="\0", conversations=talk(("human", "gpt"), ("x", "y")))], True)
@example([dict(image="a" * 5000, conversations=talk(("human", "gpt"), ("x", "y")))], False)
def test_every_conversation_is_used_or_listed(images, rows, indent):
    whole = read(json.dumps(rows, indent=1 if indent else None).encode(), images)
    if whole: check(whole, rows)
    lines = (read("\n".join(map(json.dumps, rows)).encode(), images) if rows
             and isinstance(rows[0], dict) else None)
    if lines and whole: assert lines.turns == whole.turns and lines.skipped.equals(whole.skipped)

LINES = st.lists(st.builds(json.dumps,
                           GOOD) | st.builds(json.dumps,
                                             ROW) | st.text("{}[]\":,an\n", max_size=12),
                 max_size=5).map("\n".join)
FILE = st.builds(lambda text, code, end: text.encode(code, "replace")[:end],
                 LINES | st.builds(json.dumps, ROWS) | st.builds(json.dumps, ANYTHING),
                 st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
                 st.none() | st.integers(0, 200)) | st.binary(max_size=40)

@given(FILE)
@example(b"null")
@example(b"1" * 5000)
@example(b"[" * 100_000)
@example(b'{"a": NaN}')
def test_any_file_gives_talks_or_says_why_not(images, data):
    talks = read(data, images)
    if talks is None: return
    try: rows = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        rows = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    assert len(talks.turns) + len(left_out(talks)) == (1 if isinstance(rows, dict) else len(rows))
