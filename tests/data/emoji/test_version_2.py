"Version 2 of the emoji data: what may be learned, what is held out, and captions that are true."
import json, re
import numpy as np
import pytest
from ccd.data.emoji import drawings, lettering, scenes
from ccd.data.emoji.questions import question
from ccd.files import UserError, to_plain_dict
from ccd.settings import DataSettings, data_fraction
from ccd.probing.tasks import tasks

DATA = DataSettings(source="emoji-2", scenes=40, test_scenes=30, max_emoji_images=320)

def many(data, split, count=150):
    return [scenes.scene(data, split, index)[1] for index in range(count)]

def test_words_and_families_of_fonts_are_in_one_split_each():
    trained, held_out = map(set, lettering.reading_words())
    assert not trained & held_out and (len(trained), len(held_out)) == (100, 100)
    assert all(re.fullmatch("[a-z]{3,7}", word) for word in trained | held_out)
    families = list(lettering._FONT_FAMILIES.values())
    assert len(sum(families, [])) == len(set(sum(families, []))) == 56
    for split, allowed in (("train", trained), ("val", held_out), ("test", held_out)):
        found = [facts for facts in many(DATA, split) if facts.get("word")]
        assert {facts["word"] for facts in found} <= allowed
        assert ({facts["font"].split()[0] for facts in found}
                <= set(lettering._FONT_FAMILIES[split]))

@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_fraction_of_images_with_text_is_a_setting(fraction):
    from dataclasses import replace
    found = [facts["kind"] == "word"
             for facts in many(replace(DATA, text_fraction=fraction), "train", 300)]
    assert abs(np.mean(found) - fraction) < 0.1

def test_no_family_has_more_than_one_percent_of_the_test():
    for split in ("val", "test"):
        table = scenes.asset_pool(split, "openmoji", version=2).table
        counts = table.family.value_counts()
        assert counts.max() <= max(1, 0.01 * len(table))
        whole = drawings.drawings()[0].query("split == @split").family
        assert set(counts.index) == set(whole) # every family keeps a drawing

def test_fractions_are_of_whole_families_and_nested():
    parts = [scenes.asset_pool("train", "openmoji", fraction, 0, 2).table
             for fraction in (1.0, 0.5, 0.25)]
    for larger, smaller in zip(parts, parts[1:]):
        families = set(smaller.family)
        assert families < set(larger.family)
        assert set(smaller.drawing_id) == set(larger.drawing_id[larger.family.isin(families)])
        assert abs(len(families) / larger.family.nunique() - 0.5) < 0.02
    assert data_fraction("emoji-2:0.25:3") == (0.25, 3)

def test_captions_are_true_and_may_omit_the_word():
    for facts in many(DATA, "train"):
        word, name = facts.get("word"), facts.get("name")
        for caption in scenes._captions(facts):
            assert word is None or f'"{word}"' in caption
            assert name is None or name in caption
        for caption in scenes._captions(facts, "omits-word"):
            assert word is None or not re.search(rf'"|\b{word}\b', caption.replace(name or " ", ""))
            assert name is None or name in caption
        if word and name:
            row, side, x, y = scenes._composed(DATA, "train", int(facts["item_id"][-7:]))[2][0]
            above = y == 0
            assert ("above the word" in scenes._captions(facts)[0]) == above

def test_an_object_and_a_word_do_not_overlap():
    with_object = [facts for facts in many(DATA, "train")
                   if facts.get("word") and facts.get("name")]
    assert len(with_object) > 20
    for facts in with_object[:10]:
        index = int(facts["item_id"][-7:])
        _, side, x, y = scenes._composed(DATA, "train", index)[2][0]
        assert side <= DATA.size // 2 and y in (0, DATA.size - side)

@pytest.mark.parametrize("box", [(2, 2, 62, 62), (2, 34, 62, 62)])
def test_a_word_is_written_inside_its_box_at_every_place(box):
    rng, seen = np.random.default_rng(0), np.zeros((64, 64), bool)
    for index in range(120):
        canvas = np.full((64, 64, 3), 128.0)
        face = str(rng.choice(lettering._FACES["train"]))
        (x0, y0, x1, y1), _ = lettering.place_word(rng, canvas, "plum", face, box)
        written = np.abs(canvas - 128).max(2) > 20
        assert written.any()
        rows, columns = np.nonzero(written)
        assert (x0 - 1 <= columns.min() and columns.max() <= x1
                and y0 - 1 <= rows.min() and rows.max() <= y1)
        assert box[0] <= x0 and x1 <= box[2] and box[1] <= y0 and y1 <= box[3]
        seen |= written
    assert seen[box[1]:box[3], box[0]:box[2]].mean() > 0.6

def test_layouts_are_what_their_labels_say():
    corpus = scenes.layout_images(DATA)
    items = corpus.remove_columns(["image", "captions"]).to_pandas()
    assert set(items["count"]) == {1, 2, 3, 4} and set(items.split) == {"train", "val", "test"}
    single = items[items["count"] == 1]
    assert set(single.relation) == set(scenes._QUADRANTS)
    assert items.relation[items["count"] > 1].isna().all()
    table = drawings.drawings()[0].set_index("drawing_id").split
    assert (table[items.drawing_id].values == items.split.values).all()
    for row in single.index[:8]: # the quadrant differs from the others
        image = np.asarray(corpus[int(row)]["image"].convert("RGB"), float)
        column, line = scenes._QUADRANTS[items.relation[row]]
        quarters = {(c, l): image[32 * l:32 * l + 32, 32 * c:32 * c + 32].reshape(-1, 3)
                    for c in (0, 1) for l in (0, 1)}
        spread = {place: pixels.std(0).sum() for place, pixels in quarters.items()}
        assert spread[column, line] >= np.median(list(spread.values()))

def test_probes_of_reading_hold_out_fonts_and_words():
    parts = dict(gallery=scenes.single_drawings(DATA), signs=scenes.word_images(DATA),
                 layouts=scenes.layout_images(DATA))
    items = {key: corpus.remove_columns(["image", "captions"]).to_pandas()
             for key, corpus in parts.items()}
    found = {task.name: task for task in tasks("emoji", items)}
    assert {"word in new fonts", "held-out word in new fonts", "object color", "background color",
            "number of objects", "position"} <= set(found)
    signs, (trained, held_out) = items["signs"], lettering.reading_words()
    for name, words in (("word in new fonts", trained), ("held-out word in new fonts", held_out)):
        fold = found[name].folds[0]
        fonts = [{font.split()[0] for font in signs.font[part.rows]}
                 for part in (fold.train, fold.val, fold.test)]
        assert set(signs.word[fold.train.rows]) == set(signs.word[fold.test.rows]) <= set(words)
        assert not fonts[0] & fonts[1] and not fonts[0] & fonts[2] and not fonts[1] & fonts[2]

def test_version_1_is_read_by_its_name_and_unchanged():
    first = DataSettings()
    assert first.version == 1 and DATA.version == 2
    assert "text_fraction" not in to_plain_dict(first)
    assert scenes._scene_types(first) == scenes._SCENE_TYPES
    assert {facts["kind"] for facts in many(first, "train", 60)} <= set(scenes._SCENE_TYPES)

def test_missing_fonts_say_what_to_install(monkeypatch):
    monkeypatch.setattr(lettering, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[fonts\]'"):
        lettering._font_file.__wrapped__("lora", False)

def test_a_fraction_of_text_is_checked():
    with pytest.raises(UserError, match="text_fraction 1.5 is no fraction"):
        DataSettings(source="emoji-2", text_fraction=1.5)

def asked(subset, split="test", count=12):
    "The facts of several questions of one subset."
    found = [question(DATA, subset, index, split)[1] for index in range(count)]
    return [json.loads(row["facts"]) | {"text": row[row["answer"]]} for row in found]

@pytest.mark.parametrize("subset, held_out_words, split_of_fonts", [
    ("font", False, "test"), ("word", True, "train"), ("ground", False, "train"),
    ("close word", False, "test")])
def test_questions_hold_out_what_their_subset_says(subset, held_out_words, split_of_fonts):
    vocabulary = lettering.reading_words()[held_out_words]
    for facts in asked(subset):
        assert facts["text"] in vocabulary and set(facts["words"]) <= set(vocabulary)
        assert facts["font"] in lettering._FACES[split_of_fonts]

def test_words_are_as_large_in_questions_as_in_training():
    wide = [(x1 - x0) / DATA.size for facts in asked("font", count=60)
            for _, (x0, _, x1, _) in facts["written"]]
    trained = []
    for index in range(200):
        _, facts = scenes.scene(DATA, "train", index)
        if facts.get("word") and not facts.get("name"):
            rng = np.random.default_rng(index)
            canvas = np.zeros((DATA.size, DATA.size, 3))
            (x0, _, x1, _), _ = lettering.place_word(rng, canvas, facts["word"], facts["font"],
                                                      (2, 2, 62, 62))
            trained.append((x1 - x0) / DATA.size)
    assert abs(np.median(wide) - np.median(trained)) < 0.08
    assert min(wide) > 0.4 and max(wide) < 1

def test_questions_of_the_two_versions_are_stored_apart():
    first = DataSettings(size=DATA.size)
    for subset in ("category", "count"): # nothing is written: the same images
        assert (question(first, subset, 3)[0] == question(DATA, subset, 3)[0]).all()
    assert (question(first, "font", 3)[0] != question(DATA, "font", 3)[0]).any()

@pytest.mark.parametrize("subset", ["letter", "initial", "value", "rows", "largest bar"])
def test_every_face_fits_into_a_question(subset): # some are low and wide, some have small letters
    seen = set()
    for index in range(250):
        facts = json.loads(question(DATA, subset, index, "train")[1]["facts"])
        seen.add(facts["font"])
        for text, (x0, y0, x1, y1) in facts["written"]:
            assert 0 <= x0 < x1 <= DATA.size and 0 <= y0 < y1 <= DATA.size, (text, facts["font"])
    assert len(seen) > 50
