"""EmojiVMC: what is painted makes one option true, what is held out stays out, the text tells
nothing."""
import hashlib, json, subprocess, sys
from collections import Counter
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from scipy.stats import binomtest
from ccd.data.emoji import checks, drawings, lettering, materials, questions, scenes
from ccd.files import UserError
from ccd.settings import DataSettings
from ccd.stats import holm

WORLD, N = DataSettings(), 32

@pytest.fixture(scope="module")
def test(): return questions.emoji_questions(WORLD, per_subset=N)

@pytest.fixture(scope="module")
def lessons(): return questions.instructions(WORLD, 800)

def facts(rows): return [json.loads(f) for f in rows["facts"]]

# --- the contract

def test_the_columns_of_the_contract(test):
    assert set(test.column_names) == {"index", "question", *"ABCD", "answer", "category", "image",
                                      "item_id", "cluster", "pair_id",
                                      "split", "facts"}
    assert (len(set(test["index"])) == len(set(test["item_id"])) == len(test)
            == len(materials.SUBSETS) * N)
    assert set(test["split"]) == {"test"} and set(test["pair_id"]) == {""}
    assert {im.size for im in test["image"]} == {(WORLD.size, WORLD.size)}
    assert all(test["cluster"])

def test_categories_are_vmcbenchs(test):
    assert list(materials.CATEGORIES) == ["general", "reason", "ocr", "doc"]
    assert (sorted(s for c in materials.CATEGORIES.values() for s in c)
            == sorted(set(test["category"])) == sorted(materials.SUBSETS))
    assert {materials.SUBSETS[s].category for s in materials.CATEGORIES["doc"]} == {"doc"}

def test_four_different_options_and_balanced_letters(test):
    options = list(zip(*(test[o] for o in "ABCD")))
    assert all(len({o.lower() for o in four}) == 4 and all(four) for four in options)
    for s in materials.SUBSETS:
        letters = [a for a, c in zip(test["answer"], test["category"]) if c == s]
        assert all(sorted(letters[i:i + 4]) == list("ABCD") for i in range(0, N, 4))

def test_clusters(test):
    rows = pd.DataFrame({c: test[c] for c in ("category", "cluster", "item_id", "answer", *"ABCD")})
    def of(c):
        return rows[rows.category.isin(materials.CATEGORIES[c])]
    assert (of("doc").cluster == of("doc").item_id).all()
    # a word, or its first letter
    assert all(r.cluster.startswith(r[r.answer]) for _, r in of("ocr").iterrows())
    families = set(drawings.drawings()[0].family)
    assert set(of("general").cluster) | set(of("reason").cluster) <= families

# --- an independent witness: what is pasted and written

class Painted:
    "Records every drawing and text that reaches a canvas."
    def __init__(self, monkeypatch):
        self.table, pixels = drawings.drawings()
        self.known = {hashlib.sha1(p.tobytes()).hexdigest()[:16]: i for i, p in enumerate(pixels)}
        self.paste, self.write = scenes.paste, lettering.draw_text
        monkeypatch.setattr(materials, "paste", self._paste)
        monkeypatch.setattr(materials, "draw_text", self._write)

    def _paste(self, canvas, drawing, size, x, y):
        row = self.known[hashlib.sha1(np.ascontiguousarray(drawing).tobytes()).hexdigest()[:16]]
        before = canvas.copy()
        self.paste(canvas, drawing, size, x, y)
        changed = (np.abs(canvas - before).max(-1) > 25).mean()
        self.things.append(self.table.iloc[row].to_dict()
                           | dict(x=x + size / 2, y=y + size / 2,
                                  changed=changed * canvas[..., 0].size / size**2))

    def _write(self, canvas, text, name, box, *more):
        before = canvas.copy()
        self.write(canvas, text, name, box, *more)
        ys, xs = np.nonzero(np.abs(canvas - before).max(-1) > 1)
        self.texts.append(dict(text=text, font=name, x=xs.mean(), y=ys.mean(),
                               box=(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)))

    def ask(self, subset, i, split="test"):
        self.things, self.texts = [], []
        image, row = questions.question(WORLD, subset, i, split)
        return image, row, row[row["answer"]]

@pytest.fixture
def painted(monkeypatch): return Painted(monkeypatch)

ASK = range(40)
KIND = {s: k for k, v in materials._OBJECT_CLASSES.items() for s in v.split()}
HALF = WORLD.size / 2

def kind(t): return KIND.get(t["subcategory"])
def cell(t): return f"{'top' if t['y'] < HALF else 'bottom'} {'left' if t['x'] < HALF else 'right'}"

@pytest.mark.parametrize("subset", ["thing", "close thing"])
def test_the_name_is_of_the_thing_shown_alone(painted, subset):
    names = drawings.drawings()[0].drop_duplicates("name").set_index("name")
    for i in ASK:
        _, row, answer = painted.ask(subset, i)
        shown, = painted.things
        assert shown["name"] == answer and shown["style"] == WORLD.held_out_style
        options = names.loc[[row[o] for o in "ABCD"]]
        assert options.family.nunique() == 4
        if subset == "close thing": assert options.subcategory.nunique() == 1
        said = [set(n.lower().replace(":", "").split()) for n in options.index]
        assert not any(x <= y for k, x in enumerate(said) for y in said[:k] + said[k + 1:])

def test_the_category_is_of_the_thing_shown_alone(painted):
    for i in ASK:
        _, row, answer = painted.ask("category", i)
        shown, = painted.things
        assert [o for o in "ABCD" if row[o] == kind(shown)] == [row["answer"]]
        assert shown["concept"] not in materials._AMBIGUOUS

def test_the_color_is_of_the_ground_alone(painted):
    for i in ASK:
        image, row, answer = painted.ask("color", i)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        bare = np.median(corners, 0)[None] # a drawing may reach into one corner
        away = {c: np.abs(bare - np.array(drawings.PALETTE[c])).max()
                for c in (row[o] for o in "ABCD")}
        assert min(away, key=away.get) == answer and away[answer] <= 15

def test_as_many_things_as_the_answer_says(painted):
    for i in ASK:
        _, row, answer = painted.ask("count", i)
        assert len(painted.things) == ["", "one", "two", "three", "four"].index(answer)
        assert len({t["drawing_id"] for t in painted.things}) == 1
        assert len({cell(t) for t in painted.things}) == len(painted.things)

def test_the_relation_holds_alone(painted):
    for i in ASK:
        _, row, answer = painted.ask("relation", i)
        asked = row["question"].removeprefix("Where is the ").rstrip("?")
        one, = [t for t in painted.things if kind(t) == asked]
        other, = [t for t in painted.things if kind(t) != asked]
        dx, dy = one["x"] - other["x"], one["y"] - other["y"]
        far = "left of" if dx < 0 else "right of"
        if abs(dy) > abs(dx): far = "above" if dy < 0 else "below"
        assert answer == f"{far} the {kind(other)}"

def test_the_place_is_of_the_only_one_of_its_kind(painted):
    for i in ASK:
        _, row, answer = painted.ask("place", i)
        asked = row["question"].removeprefix("Where is the ").rstrip("?")
        assert [cell(t) for t in painted.things if kind(t) == asked] == [answer]
        assert len({t["style"] for t in painted.things}) == 1 and len(painted.things) == 4

@pytest.mark.parametrize("subset, of",
                         [("odd thing", lambda t: t["drawing_id"]), ("odd category", kind)])
def test_only_one_is_odd(painted, subset, of):
    for i in ASK:
        _, row, answer = painted.ask(subset, i)
        often = Counter(map(of, painted.things))
        assert sorted(often.values()) == [1, 3]
        odd, = [t for t in painted.things if often[of(t)] == 1]
        assert cell(odd) == answer and row["cluster"] == odd["family"]
        assert len({t["style"] for t in painted.things}) == 1

@pytest.mark.parametrize("subset", materials.CATEGORIES["ocr"])
def test_the_word_is_written(painted, subset):
    for i in ASK:
        image, row, answer = painted.ask(subset, i)
        said, = painted.texts
        assert (said["text"][:1 if subset == "initial" else None] == answer
                and len(said["text"]) <= 5)
        told = json.loads(row["facts"])
        # with the room beside a letter
        assert told["written"][0][1] == pytest.approx(said["box"], abs=max(3, told["px"] / 4))
        assert 0 <= min(said["box"]) and max(said["box"]) <= WORLD.size

def test_close_words_are_close():
    def letters(a, b):
        return sum(x == y for x, y in zip(a, b))
    share = {}
    for subset in ("font", "close word"):
        rows = [questions.question(WORLD, subset, i)[1] for i in ASK]
        fours = [[r[o] for o in "ABCD"] for r in rows]
        share[subset] = np.mean([letters(a, b) for f in fours for a in f for b in f if a != b])
        if subset == "close word": assert all(len({len(w) for w in f}) == 1 for f in fours)
    assert share["close word"] > 3 * share["font"]

@pytest.mark.parametrize("subset", ["largest bar", "smallest bar"])
def test_the_bar_is_the_longest_or_shortest_in_the_pixels(painted, subset):
    for i in ASK:
        image, row, answer = painted.ask(subset, i)
        length = {}
        for t in painted.texts:
            line = image[round(t["y"] // (WORLD.size // 3) * (WORLD.size // 3) + WORLD.size // 6),
                         40:]
            end = image[0, -1] # the ground, which no bar and no label reaches
            length[t["text"]] = int((np.abs(line.astype(int) - end).max(-1) > 8).sum())
        assert (len(length) == 3 and {answer} < {row[o] for o in "ABCD"}
                and len({row[o] for o in "ABCD"} & set(length)) == 3)
        order = sorted(length, key=length.get, reverse=subset == "largest bar")
        assert order[0] == answer and abs(length[order[0]] - length[order[1]]) >= 4

@pytest.mark.parametrize("subset", ["value", "label"])
def test_the_table_says_so(painted, subset):
    for i in ASK:
        _, row, answer = painted.ask(subset, i)
        lines = sorted(painted.texts, key=lambda t: (round(t["y"] // (WORLD.size // 3)), t["x"]))
        says = {a["text"]: b["text"] for a, b in zip(lines[::2], lines[1::2])}
        assert len(says) == 3 and len(set(says.values())) == 3
        asked = row["question"].rstrip("?").split()[-1]
        found = says if subset == "value" else {v: k for k, v in says.items()}
        assert found[asked] == answer and len({row[o] for o in "ABCD"} & set(found.values())) == 3

@pytest.mark.parametrize("subset",
                         [s
                          for s in materials.SUBSETS
                          if materials.SUBSETS[s].category in ("general", "reason")])
def test_everything_stands_out(painted, subset):
    for i in ASK:
        painted.ask(subset, i)
        assert all(t["changed"] > 0.02 for t in painted.things)

# --- what could also be true

def test_what_is_told_apart():
    m = materials._question_assets("train", (), "openmoji")
    at = {(c, s): i for i, (c, s) in enumerate(zip(m.table["concept"], m.table["style"]))}
    def told(*concepts):
        return materials._distinguishable(m, [at[c, "noto"] for c in concepts])
    assert (told("rocket", "doughnut")
            and told("doughnut", "airplane-departure", "scorpion", "telescope"))
    assert not told("man-pilot", "woman-pilot") # one family
    assert not told("cat", "cat-face") # words of one in the other
    # a plural, a keyword
    assert not told("musical-note", "musical-notes") and not told("sunglasses", "glasses")
    assert not told("doughnut", "doughnut")

def test_kinds_do_not_overlap():
    subs = [s for v in materials._OBJECT_CLASSES.values() for s in v.split()]
    table = drawings.drawings()[0]
    assert len(subs) == len(set(subs)) and set(subs) <= set(table.subcategory)
    assert materials._AMBIGUOUS <= set(drawings._concepts().concept)
    got = materials.object_class(table.subcategory, table.concept)
    assert not got[table.concept.isin(materials._AMBIGUOUS)].notna().any()
    assert (got.dropna() == table.subcategory[got.notna()].map(KIND)).all()

# --- what is held out

def everything(rows): # axis -> what occurs in pictures or options
    f = facts(rows)
    read = ({w for x in f for w in x.get("words", ())}
            | {x[0] for y in f for x in y.get("written", ())})
    return dict(style={x["style"] for x in f if "style" in x},
                fonts={x["font"] for x in f if "font" in x},
                families={y for x in f for y in x.get("families", ())},
                ground={x["ground"] for x in f},
                words={w for w in read if w[1:] and not w.isdigit()}) # no letters, no numbers

def test_what_is_held_out_is_in_no_training_question(test, lessons):
    known = everything(lessons)
    held, trained = set(lettering.words()[1]), set(lettering.words()[0])
    assert known["style"] == set(drawings._STYLES) - {WORLD.held_out_style}
    assert (known["fonts"] == set(lettering._TRAIN_FONTS)
            and known["ground"] == {"plain", "gradient", "texture"})
    assert ({drawings._assign_split(f) for f in known["families"]} == {"train"}
            and known["words"] <= trained)
    for name, s in materials.SUBSETS.items():
        new = everything(test.select(np.flatnonzero(np.array(test["category"]) == name)))
        assert s.held_out
        for axis in s.held_out: assert new[axis] and not new[axis] & known[axis], (name, axis)
        for axis in {"fonts", "style", "words"} - set(s.held_out):
            allowed = dict(fonts=set(lettering._TRAIN_FONTS),
                           style=set(drawings._STYLES) - {WORLD.held_out_style},
                           words=trained)[axis]
            assert new[axis] <= allowed, (name, axis) # one thing at a time
        if "words" in s.held_out: assert new["words"] <= held
        if name in materials.CATEGORIES["general"][2:] + materials.CATEGORIES["reason"]:
            assert {drawings._assign_split(f) for f in new["families"]} == {"test"}

def test_named_concepts_were_seen_in_another_style():
    table = drawings.drawings()[0]
    seen = set(table.concept[(table.split == "train") & (table["style"] != WORLD.held_out_style)])
    shown = {json.loads(questions.question(WORLD, s, i)[1]["facts"])["concept"]
             for s in ("thing", "close thing") for i in ASK}
    assert len(shown) > 50 and shown <= seen

def test_training_shares_no_picture_with_the_benchmark(test, lessons):
    def pixels(rows):
        return {hashlib.sha1(np.asarray(im).tobytes()).hexdigest() for im in rows["image"]}
    assert not pixels(test) & pixels(lessons)
    own = questions.emoji_questions(WORLD, "train", 8)
    assert not pixels(own) & pixels(lessons) and set(own["category"]) == set(materials.SUBSETS)

def test_instructions_cover_every_subset_with_the_answers_text(lessons):
    often = Counter(lessons["category"])
    assert set(often) == set(materials.SUBSETS) and max(often.values()) - min(often.values()) <= 1
    assert all(row[row["answer"]] == row["answer_text"] for row in lessons.remove_columns("image"))
    assert set(lessons["split"]) == {"train"}
    assert len(set(lessons["item_id"])) == len(set(lessons["index"])) == len(lessons)

def test_more_instructions_begin_with_the_same_ones(lessons):
    fewer, other = questions.instructions(WORLD, 64), questions.instructions(WORLD, 64, seed=1)
    columns = [c for c in lessons.column_names if c != "image"]
    assert ([{c: r[c] for c in columns} for r in fewer]
            == [{c: r[c] for c in columns} for r in lessons.select(range(64))])
    assert sum(a == b for a, b in zip(fewer["question"], other["question"])) < 64
    assert not set(fewer["item_id"]) & set(other["item_id"])

# --- the text tells nothing

def test_the_text_alone_is_at_chance(test):
    known = questions.emoji_questions(replace(WORLD, seed=1), per_subset=N)
    floor = checks.text_only_baseline(test, known)
    p = [binomtest(round(r * n), n, 0.25).pvalue for c in ("most frequent", "text model")
         for r, n in zip(floor[c], floor.n)]
    pooled = [binomtest(round(floor[c].mean() * len(test)), len(test), 0.25).pvalue
              for c in ("most frequent", "text model")]
    assert holm(np.array(p + pooled)).min() > 0.05

@pytest.mark.parametrize("how", ["longest", "same word", "always B"])
def test_the_readers_find_what_text_would_tell(test, how):
    def leak(rows, n=200):
        out, rng = [], np.random.default_rng(0)
        for r in (dict(zip("ABCD", f), question="What is it?", category="thing") for f in rows[:n]):
            right = max("ABCD", key=lambda o: len(r[o])) if how == "longest" else "B"
            if how == "same word": right = str(rng.choice(list("ABCD"))); r[right] = "apple"
            out.append(r | dict(answer=right))
        return {c: [r[c] for r in out] for c in ("question", *"ABCD", "answer", "category")}
    words = lettering.words()[0]
    rng = np.random.default_rng(1)
    fours = [[words[i] for i in rng.permutation(len(words))[:4]] for _ in range(400)]
    found = checks.text_only_baseline(leak(fours), leak(fours[200:])).loc["thing"]
    assert found["text model"] > 0.6

@pytest.mark.parametrize("subset", materials.SUBSETS)
def test_the_right_option_is_drawn_after_the_options(subset, monkeypatch):
    "The same stream asked for another answer offers the same options, in the same order."
    s = materials.SUBSETS[subset]
    m = materials._question_assets("test", s.held_out, WORLD.held_out_style)
    for i in range(8):
        offered = [questions._TASKS[s.task](np.random.default_rng(i), m, 64, k)[2]
                   for k in range(4)]
        said = set(map(json.dumps, offered))
        assert len(said) == 1

# --- one question depends on its number alone

def test_a_question_depends_on_its_number_alone():
    ask = [("label", 3), ("thing", 9), ("odd category", 2), ("thing", 1)]
    code = ("import hashlib, json; from ccd.data.emoji import questions as q; from ccd.settings "
            "import DataSettings\n"
            f"for s, i in {ask[::-1]!r}:\n"
            "    x, r = q.question(DataSettings(), s, i)\n"
            "    print(json.dumps([hashlib.sha1(x.tobytes()).hexdigest(), r]))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout
    here = [questions.question(WORLD, s, i) for s, i in ask]
    assert ([json.loads(l) for l in said.splitlines()]
            == [[hashlib.sha1(x.tobytes()).hexdigest(), r] for x, r in here[::-1]])

def test_the_benchmark_holds_its_questions(test):
    for row in (test[5], test[16 * N - 1]):
        image, made = questions.question(WORLD, row["category"], row["index"] % 1_000_000)
        assert (np.asarray(row["image"]) == image).all() and {k: row[k] for k in made} == made

@pytest.mark.parametrize("size", [48, 96, 224])
def test_other_sizes(size):
    for s in materials.SUBSETS:
        image, row = questions.question(DataSettings(size=size), s, 0)
        assert image.shape == (size, size, 3) and image.std() > 1
        assert all(0 <= v <= size for _, box in json.loads(row["facts"]).get("written", ())
                   for v in box)

@pytest.mark.parametrize("style", drawings._STYLES)
def test_any_style_can_be_held_out(style):
    for s in ("thing", "close thing", "odd category"):
        shown = json.loads(questions.question(DataSettings(held_out_style=style), s,
                                              0)[1]["facts"])["style"]
        assert (shown == style) == (materials.SUBSETS[s].held_out == ("style",))

# --- legibility

@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_crop_holds_the_letters(size):
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:30, 10:40] = 255
    inside, beside = (checks._text_crop(image, [10, 20, 40, 30], size),
                      checks._text_crop(image, [10, 45, 40, 55], size))
    # with its margin
    assert inside.shape[0] == 48 and inside.mean() > 100 and inside[[0, -1]].mean() < 60
    assert beside.max() == 0

def test_every_sign_is_read(test):
    make = pytest.importorskip("rapidocr",
                               reason="the reader is optional: pip install -e '.[ocr]'").RapidOCR
    ocr = make(params={"EngineConfig.onnxruntime.intra_op_num_threads": 1})
    def read(crop):
        return ocr(np.ascontiguousarray(crop[..., ::-1]), use_det=False, use_cls=False).txts[0]
    category = np.array(test["category"])
    rows = [test[int(i)] for c, n in (("ocr", 20), ("doc", 7)) for s in materials.CATEGORIES[c]
            for i in np.flatnonzero(category == s)[:n]]
    share = checks.legibility(rows, read, 48).groupby("subset").legible.mean()
    assert (len(share) == len(materials.CATEGORIES["ocr"] + materials.CATEGORIES["doc"])
            and (share >= 0.9).all())
    # the reader reads, it does not guess
    assert checks.legibility(rows, read, 16).legible.mean() < 0.5

# --- mistakes

def test_mistakes_are_explained():
    for wrong, match in ((lambda: questions.question(WORLD, "colour", 0),
                          "unknown subset 'colour'.*thing"),
                         (lambda: questions.question(WORLD, "thing", 0, "val"),
                          "'val'.*train or test"),
                         (lambda: questions.emoji_questions(WORLD, "val"), "'val'.*train or test"),
                         (lambda: questions.emoji_questions(WORLD, per_subset=0),
                          "0 questions.*one or more"),
                         (lambda: questions.instructions(WORLD, 0), "0 instructions.*one or more"),
                         (lambda: questions.question(DataSettings(held_out_style="comic"), "thing",
                                                     0), "unknown style 'comic'.*openmoji"),
                         (lambda: questions.emoji_questions(DataSettings(source="folder:x"),
                                                            per_subset=4),
                          "folder:x.*--data.source emoji`")):
        with pytest.raises(UserError, match=match): wrong()
