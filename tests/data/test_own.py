"Your own images: groups that no split separates, near-duplicates, captions, and clear refusals."
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ccd.data.corpora import open_corpus
from ccd.data.own import _group_split, _linked, _near_duplicate_pairs, _same, own_data
from ccd.files import UserError
from ccd.settings import DataSettings

N_CLASSES, N_EACH = 6, 20

def picture(seed):
    "Return a random image of large squares, which no other seed has."
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32), 0)

def make(folder, change=lambda rows: rows):
    "Write images and their table; return the settings that open it."
    rows = []
    for index in range(N_CLASSES * N_EACH):
        label, number = divmod(index, N_EACH)
        name = f"{index}.png"
        picture(index).save(folder / name)
        rows.append(dict(path=name, label=f"class_{label}", scene=f"{label}-{number // 4}",
                         caption=f"a thing of kind {label}, number {number}"))
    pd.DataFrame(change(rows)).to_csv(folder / "images.csv", index=False)
    return f"table:{folder}/images.csv"

def frame(own):
    return own.corpus.remove_columns("image").to_pandas()

def test_no_group_is_in_two_splits_and_each_class_is_in_all(tmp_path):
    own = own_data(DataSettings(make(tmp_path), group="scene"))
    table = frame(own)
    assert table.groupby("scene").split.nunique().max() == 1
    assert table.groupby("label").split.nunique().min() == 3
    assert table.groupby("family").scene.nunique().max() == 1
    assert own.facts == dict(images=120, groups=30, captions="texts", classes=6,
                             near_duplicates=0, copies=0)
    assert len(own.part("train")) + len(own.part("val", "test")) == 120

def test_copies_and_near_duplicates_are_in_one_split(tmp_path):
    source = make(tmp_path)
    for index in range(0, 40, 2): # each odd image becomes nearly its neighbor
        near = np.asarray(picture(index)).astype(int)
        near[0] = (near[0] + 3).clip(0, 255)
        Image.fromarray(near.astype(np.uint8)).save(tmp_path / f"{index + 1}.png")
    picture(50).save(tmp_path / "90.png") # a copy, of another class
    own = own_data(DataSettings(source))
    table = frame(own).set_index("item_id")
    assert own.facts["copies"] == 1 and own.facts["near_duplicates"] >= 21
    for first, second in [*((f"{i}.png", f"{i + 1}.png") for i in range(0, 40, 2)),
                          ("50.png", "90.png")]:
        assert table.family[first] == table.family[second]
        assert table.split[first] == table.split[second]
    assert own.facts["groups"] == 120 - 21

def test_near_duplicates_are_those_of_a_plain_search(tmp_path):
    own = own_data(DataSettings(make(tmp_path)))
    small = np.stack([np.asarray(picture(i).resize((16, 16), Image.Resampling.BICUBIC), float)
                      for i in range(120)]).reshape(120, -1) / 255
    apart = np.sqrt(((small[:, None] - small[None]) ** 2).mean(-1))
    plain = {(i, j) for i, j in np.argwhere(apart < 0.02) if i < j}
    assert {tuple(pair) for pair in _near_duplicate_pairs(own.corpus)} == plain

def test_the_split_of_an_image_does_not_depend_on_the_others():
    names = np.array([f"{index}.png" for index in range(400)], object)
    labels = np.array([f"class {index % 4}" for index in range(400)], object)
    whole = _group_split(names, np.arange(400), labels)
    order = np.random.default_rng(0).permutation(400)
    assert (_group_split(names[order], np.arange(400)[order], labels[order]) == whole[order]).all()
    shares = pd.Series(whole).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2) and shares["val"] == pytest.approx(0.1)

@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_components_of_a_graph(seed):
    rng = np.random.default_rng(seed)
    links = rng.integers(0, 60, (40, 2))
    near = np.eye(60, dtype=bool)
    near[links[:, 0], links[:, 1]] = near[links[:, 1], links[:, 0]] = True
    for _ in range(6): near = near @ near # paths of up to 64 links
    found = _linked(60, links)
    assert ((found[:, None] == found[None]) == near).all()

def test_same_values_are_linked():
    values = ["a", "b", "a", "c", "b", "a"]
    groups = _linked(6, _same(values))
    assert [groups[0] == group for group in groups] == [value == "a" for value in values]

def test_captions_can_be_made_from_labels(tmp_path):
    own = own_data(DataSettings(make(tmp_path), caption_template="a photo of a {label}"))
    assert frame(own).captions.map(list).tolist()[0] == ["a photo of a class 0"]
    assert own.facts["captions"] == "labels"

def test_captions_can_have_several_wordings_and_leave_classes_unnamed(tmp_path):
    own = own_data(DataSettings(make(tmp_path), caption_template="a {label}|one {label}",
                                unnamed_classes=("class_1",)))
    said = frame(own).groupby("label").captions.first().map(list)
    assert said["class_0"] == ["a class 0", "one class 0"]
    assert said["class_1"] == ["a picture", "one picture"]

def test_outer_folders_are_a_split(tmp_path):
    for index in range(N_CLASSES * N_EACH):
        label, number = divmod(index, N_EACH)
        place = tmp_path / ("test" if number % 4 == 0 else "train") / f"class_{label}"
        place.mkdir(parents=True, exist_ok=True)
        picture(index).save(place / f"{index}.png")
    table = frame(own_data(DataSettings(f"folder:{tmp_path}")))
    outer = table.item_id.str.partition("/")[0]
    assert ((outer == "test") == (table.split == "test")).all()
    assert table.split.value_counts().to_dict() == dict(train=78, test=30, val=12)
    assert set(table.label) == {f"class_{label}" for label in range(N_CLASSES)}

def test_a_given_split_is_kept(tmp_path):
    def change(rows):
        return [row | dict(split="test" if index % 5 == 0 else "train")
                for index, row in enumerate(rows)]
    table = frame(own_data(DataSettings(make(tmp_path, change))))
    assert ((table.split == "test") == [index % 5 == 0 for index in range(120)]).all()
    assert 5 <= (table.split == "val").sum() <= 15

def test_a_table_can_be_trained_on(tmp_path):
    data = DataSettings(make(tmp_path))
    parts = [open_corpus(data, split).corpus for split in ("train", "test")]
    assert sum(map(len, parts)) == 120 and not {*parts[0]["item_id"]} & {*parts[1]["item_id"]}
    assert parts[0]["captions"][0][0].startswith("a thing of kind")

def test_broken_images_and_double_rows_are_listed(tmp_path):
    source = make(tmp_path, lambda rows: [*rows, rows[0], dict(path="gone.png")])
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped"): own = own_data(DataSettings(source))
    assert sorted(own.skipped.file) == ["0.png", "3.png", "gone.png"]
    assert own.facts["images"] == 119

def torn(rows): # one scene in both splits
    return [row | dict(split="test" if index % 2 else "train") for index, row in enumerate(rows)]

@pytest.mark.parametrize("change, more, match", [
    (lambda rows: rows[:20], {}, "20 images are too few.*100 or more"),
    (lambda rows: rows, dict(label="kind"), "no column 'kind' for --data.label.*label"),
    (lambda rows: rows, dict(group="patient"), "no column 'patient' for --data.group"),
    (lambda rows: [row | dict(label="one") for row in rows], {}, "every image has the label 'one'"),
    (lambda rows: [row | dict(caption="a thing") for row in rows], {}, "captions are equal"),
    (lambda rows: rows, dict(caption_template="a photo"), "needs the word {label}"),
    (lambda rows: rows, dict(caption_template="a {label}", unnamed_classes=("frog",)),
     "--data.unnamed-classes frog: the classes are class_0"),
    (lambda rows: [dict(place=row["path"]) for row in rows], {}, "no column of image paths.*place"),
    (lambda rows: [row | dict(scene=index % 3) for index, row in enumerate(rows)],
     dict(group="scene"), "3 groups: expected five or more"),
    (torn, dict(group="scene"), "30 groups are in two splits"),
    (lambda rows: [row | dict(split="left") for row in rows], {}, "values left: expected train")])
def test_what_cannot_be_used_is_refused_in_words(tmp_path, change, more, match):
    data = DataSettings(make(tmp_path, change), **more)
    with pytest.raises(UserError, match=match): own_data(data)

def test_other_sources_are_refused():
    with pytest.raises(UserError, match="not a source of your own images"):
        own_data(DataSettings("emoji"))
