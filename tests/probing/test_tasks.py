"""Labelled data sets by name: a label stays with its picture, and what is tested has nothing in
common with what was learnt."""
import hashlib, io, re, tarfile, warnings
import numpy as np, pandas as pd, pytest
import datasets as hf
from datasets import ClassLabel, Features, Image
from PIL import Image as Picture
from ccd.data import corpora as data_corpora, images
from ccd.data.emoji import scenes as emoji
from ccd.probing import datasets as rooms
from ccd.files import UserError
from ccd.probing.datasets import (DATASETS, _CIFAR10, _class_map, _class_names, _is_photo,
                                  _label_to_text, _open_dataset, _parse_dataset_name)
from ccd.probing.tasks import _emoji_tasks, _val_mask, _within_class_rank, tasks

quietly = pytest.mark.filterwarnings("ignore::UserWarning")

def picture(number, copy=0):
    "A picture that says its number, and differs between copies."
    x = np.full((8, 8, 3), 200, np.uint8)
    x[0, 0], x[0, 1] = (number // 256, number % 256, 0), (copy // 256, copy % 256, 7)
    return x

def number_of(im):
    x = np.asarray(im)[0, 0].astype(int)
    return int(x[0] * 256 + x[1])

def png(*a): return dict(bytes=emoji.png(picture(*a)), path=None)

def table(pictures, label=None, names=None, **columns):
    "A data set as the hub has it."
    kind = ClassLabel(names=names) if names else None
    d = hf.Dataset.from_dict(dict(img=[png(*np.atleast_1d(p).tolist()) for p in pictures]),
                             features=Features(img=Image()))
    for k, v in (columns | ({"label": label} if label is not None else {})).items():
        d = d.add_column(k, list(v))
    return d.cast_column("label", kind) if kind else d

def save(path, **splits):
    hf.DatasetDict(splits).save_to_disk(str(path))
    return path

def write(root, files):
    "Pictures in folders: path -> picture."
    for name, p in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(emoji.png(picture(*p)))
    return root

def items_of(corpora): return {k: c.remove_columns("image").to_pandas() for k, c in corpora.items()}

def asked(name, seed=0):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        items = items_of(_open_dataset(name))
        (t,) = tasks(name, items, seed)
    return t, items, [str(w.message) for w in said if w.category is UserWarning]

def in_pieces(t, items): # (train, val, test) items of each fold
    return [[None if r is None else items[r.corpus].iloc[r.rows] for r in (f.train, f.val, f.test)]
            for f in t.folds]

# --- the emoji world

@pytest.fixture(scope="module")
def world(tiny):
    return {k: f(tiny.data).remove_columns(["image"]).to_pandas()
            for k, f in (("gallery", emoji.single_drawings), ("signs", emoji.word_images))}

def test_nothing_that_is_tested_in_the_emoji_world_has_kin_among_what_was_learnt(world):
    found = _emoji_tasks(**world)
    assert len({t.name for t in found}) == len(found) == 7
    for t in found:
        kin = "font" if t.label == "word" else "style_family" if t.label == "concept" else "family"
        tested = np.concatenate([f.test.rows for f in t.folds])
        assert len(set(tested)) == len(tested), t.name
        for parts in in_pieces(t, world):
            seen = [set(p[kin]) for p in parts]
            assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2]
                                      or seen[1] & seen[2]), t.name

def test_concepts_are_read_in_the_drawings_of_a_team_not_learnt_from(world):
    found = {t.name: t for t in _emoji_tasks(**world)}
    across, own = found["concept across styles"], found["concept in the held-out style"]
    assert len(across.folds) > 3 and len(own.folds) == 1
    for train, val, test in in_pieces(across, world) + in_pieces(own, world):
        assert test.style_family.nunique() == val.style_family.nunique() == 1
        # no encoder was trained on these families
        assert set(pd.concat([train, val, test]).split) == {"test"}
        assert set(test.concept) | set(val.concept) <= set(train.concept)
    assert set(in_pieces(own, world)[0][2]["style"]) == {"openmoji"}

def test_a_concept_that_one_team_drew_is_not_asked_for(world):
    g = world["gallery"].copy()
    rare = g.index[g.split == "test"][::5]
    g.loc[rare, "concept"] = "drawn by one team"
    g.loc[rare, "style_family"] = g.style_family[rare[0]]
    t = next(t for t in _emoji_tasks(g, world["signs"]) if t.name == "concept across styles")
    assert (t.folds
            and not any("drawn by one team" in set(p.concept)
                        for _, *parts in in_pieces(t, dict(gallery=g)) for p in parts))

def test_a_held_out_style_is_tested_without_its_kin(world):
    found = _emoji_tasks(**world, held_out_style="fluent-emoji-flat")
    t = next(t for t in found if t.name == "concept in the held-out style")
    (train, _, test), = in_pieces(t, world)
    assert (set(test["style"]) == {"fluent-emoji-flat"}
            and not any("fluent" in s for s in set(train["style"])))

def test_the_fair_part_of_category_is_what_shares_no_word(world):
    found = {t.name: t for t in _emoji_tasks(**world)}
    every, fair = (in_pieces(found[n], world)[0][2]
                   for n in ("category", "category (no shared word)"))
    assert 0 < len(fair) < len(every) and set(fair.item_id) < set(every.item_id)
    lost = every[~every.item_id.isin(fair.item_id)]
    assert all(any(w[:4] in n.lower() for w in c.split("-"))
               for n, c in zip(lost.name, lost.category))

def test_classes_that_no_training_family_has_are_noted(world):
    t = next(t for t in _emoji_tasks(**world) if t.name == "subcategory")
    train, _, test = in_pieces(t, world)[0]
    new = set(test.subcategory) - set(train.subcategory)
    assert bool(new) == bool(t.notes) and (not new or f": {len(new)}, with" in t.notes[0])

def test_a_world_too_small_for_a_task_says_so(world):
    few = world["gallery"][world["gallery"].split == "train"].head(30)
    with pytest.warns(UserWarning, match="excluded.*concept across styles"):
        found = _emoji_tasks(few, world["signs"])
    assert [t.name for t in found] == ["word in new fonts"]

# --- a label stays with its picture

# tench, goldfish …
WNIDS = {0: "n01440764", 1: "n01443537", 2: "n01484850", 10: "n01530575", 999: "n15075141"}
IN_V2 = [k for k in WNIDS for _ in range(2)]

def v2_folder(home):
    return write(home / "f", {f"{k}/{c}.png": (k, c) for k in WNIDS for c in range(2)})

def v2_wnids(home):
    return write(home / "f", {f"{w}/{c}.png": (k, c) for k, w in WNIDS.items() for c in range(2)})

def v2_tar(home):
    with tarfile.open(home / "v2.tar.gz", "w:gz") as t:
        t.add(v2_folder(home), "imagenetv2-matched-frequency-format-val")
    return home / "v2.tar.gz"

def v2_hub(home): # made from the folders by ImageFolder: its classes are in the order of strings
    names = sorted(map(str, range(1000)))
    d = table([(k, c) for k in WNIDS for c in range(2)], [names.index(str(k)) for k in IN_V2],
              names)
    return save(home / "d", train=d)

def v2_numbers(home):
    return save(home / "d", test=table([(k, c) for k in WNIDS for c in range(2)], IN_V2))

def v2_webdataset(home):
    d = hf.load_dataset("webdataset", data_files=str(v2_tar(home)), split="train",
                        cache_dir=str(home / "c"))
    assert "__key__" in d.column_names and "label" not in d.column_names
    return save(home / "d", train=d)

@quietly
@pytest.mark.parametrize("made", [v2_folder, v2_wnids, v2_tar, v2_hub, v2_numbers, v2_webdataset])
def test_imagenetv2_has_the_numbers_of_imagenet_however_it_comes(tmp_path, made):
    (corpus,) = _open_dataset(f"imagenetv2:{made(tmp_path)}").values()
    assert sorted(corpus["label"]) == sorted(IN_V2)
    assert [number_of(im) for im in corpus["image"]] == list(corpus["label"])
    assert [_class_names("imagenet")[k] for k in corpus["label"]] == list(corpus["class_name"])

def test_a_class_that_is_not_of_the_set_is_an_error(tmp_path):
    write(tmp_path, {"0/a.png": (0,), "owls/b.png": (1,)})
    with pytest.raises(UserError, match="'0'.*none of the 1000|'owls'.*none of the 1000"):
        _open_dataset(f"imagenetv2:{tmp_path}")
    with pytest.raises(UserError, match="1000 known"):
        _class_map([1000], known=_class_names("imagenet"))

@pytest.mark.parametrize("label, words", [
    ("001.Black_footed_Albatross", "Black footed Albatross"),
    ("animals-and-nature", "animals and nature"), (-1, "-1"),
    ("Mercedes-Benz 300-Class 1993", "Mercedes-Benz 300-Class 1993"), ("2_of_hearts", "of hearts"),
    ("7", "7"), ("maple_tree", "maple tree")])
def test_labels_in_plain_words(label, words): assert _label_to_text(label) == words

def test_names_of_classes_win_over_their_position():
    names = _CIFAR10[::-1]
    assert _class_map([0, 9], names, _CIFAR10) == {0: (9, "truck"), 9: (0, "airplane")}
    assert _class_map(["dog"], None, _CIFAR10) == {"dog": (5, "dog")}
    # as the hub's ImageNet: no names that are known, but all in order
    other = [f"{n}, and more" for n in _CIFAR10]
    assert _class_map([5], other, _CIFAR10) == {5: (5, "dog")}
    with pytest.raises(UserError, match="none of the 10"): _class_map([5], other[:9], _CIFAR10)

def test_the_names_of_imagenet_stand_in_the_order_of_wordnet_ids():
    from timm.data import ImageNetInfo
    info, named = ImageNetInfo("imagenet-1k"), _class_names("imagenet")
    def words(s):
        return set(re.findall("[a-z]{3,}", s.lower()))
    alike = [bool(words(named[k]) & words(d)) for k, d in enumerate(info.label_descriptions())]
    assert np.mean(alike) > 0.9 and info.label_names() == sorted(info.label_names())

@quietly
@pytest.mark.parametrize("labels, want", [
    (["red", "blue"] * 10, str), ([7, 3] * 10, int), ([-1, 1] * 10, int),
    ([True, False] * 10, bool)])
def test_labels_stay_what_they_are(tmp_path, labels, want):
    t, items, _ = asked(
        f"hf:{save(tmp_path / 'd', train=table(range(20), labels), test=table(range(50, 70), labels))}")  # noqa: E501
    for d in items.values():
        assert d.label.tolist() == labels and all(type(v) is want for v in d.label.tolist())
        assert d.class_name.tolist() == [str(v) for v in labels]

@quietly
def test_classes_named_by_numbers_keep_their_number(tmp_path):
    names = sorted(map(str, range(12))) # 0, 1, 10, 11, 2 …
    def made(a):
        return table([(k, a) for k in range(12)] * 2, [names.index(str(k)) for k in range(12)] * 2,
                     names)
    for c in _open_dataset(f"hf:{save(tmp_path / 'd', train=made(0), test=made(1))}").values():
        assert [number_of(im) for im in c["image"]] == list(c["label"])

@quietly
def test_broken_images_and_missing_labels_move_no_label(tmp_path):
    d = table(range(12), [k % 3 for k in range(12)], ["a", "b", "c"])
    rows = d.cast_column("img", Image(decode=False)).to_list()
    rows[4]["img"]["bytes"] = rows[4]["img"]["bytes"][:30]; rows[6]["label"] = None
    d = hf.Dataset.from_list(rows, features=d.features)
    with pytest.warns(UserWarning, match="1 of 12 images have no label"):
        corpora = _open_dataset(
            f"hf:{save(tmp_path / 'd', train=d, test=table(range(20, 26), [0, 1, 2] * 2, ['a', 'b', 'c']))}")  # noqa: E501
    train = next(c for k, c in corpora.items() if k.endswith("train"))
    assert [number_of(im) % 3 for im in train["image"]] == list(train["label"])
    assert len(train) == 10 and len(set(train["item_id"])) == 10

def test_a_column_is_chosen_by_name(tmp_path):
    def d(a):
        return table(range(a, a + 12), [0, 1] * 6, ["x", "y"], coarse=["k", "l", "m"] * 4,
                     weight=np.arange(12) / 7,
                            file=[f"f{k}" for k in range(12)])
    name = f"hf:{save(tmp_path / 'd', train=d(0), test=d(40))}"
    assert asked(
        f"{name}#label=coarse")[
            1][f"{_parse_dataset_name(name + '#label=coarse').key}-test"].label.unique().tolist() == list("klm")  # noqa: E501
    assert _parse_dataset_name(f"{name}#label=coarse").key != _parse_dataset_name(name).key
    with pytest.raises(UserError, match="no column 'colour'.*img, .*coarse, weight"):
        _open_dataset(f"{name}#label=colour")
    with pytest.raises(UserError, match="'weight'.*float64.*no class.*coarse"):
        _open_dataset(f"{name}#label=weight")
    bare = save(tmp_path / "e", train=table(range(4), a=range(4)), test=table(range(4), a=range(4)))
    with pytest.raises(UserError, match="no column 'label'.*img, a"): _open_dataset(f"hf:{bare}")

def test_labels_that_are_no_classes_are_errors(tmp_path):
    alone = save(tmp_path / "a", train=table(range(30), [f"n{k}" for k in range(30)]),
                 test=table([99], ["n1"]))
    with pytest.raises(UserError, match="a 'label' of its own"): _open_dataset(f"hf:{alone}")
    same = write(tmp_path / "b", {f"only/{k}.png": (k,) for k in range(5)} | {"x.png": (9,)})
    with pytest.warns(UserWarning,
                      match="1 of 6 images have no label"), pytest.raises(UserError,
                                                                          match="nothing to "
                                                                                "classify"):
        _open_dataset(f"folder:{same}")

def test_a_test_of_few_classes_or_of_one_image_each_is_a_test(tmp_path):
    train = table(range(60), [k % 30 for k in range(60)])
    for k, labels in enumerate(([3] * 30, list(range(30)))):
        t = asked(
            f"hf:{save(tmp_path / str(k), train=train, test=table(range(100, 130), labels))}")[0]
        assert len(t.folds[0].test.rows) == 30

# --- names

@pytest.mark.parametrize("name, said", [
    ("imagenett", "did you mean 'imagenet'"), ("cifar-10", "did you mean 'cifar10'"),
    ("zzz", "Expected one of emoji, imagenet"),
    ("folders:/x", "did you mean 'folder'"), ("folder:", "unknown data set"),
    ("folder:/no/where", "/no/where does not exist"),
    ("cub:/no/where", "expected a copy of cub"), ("stamps:/no/where", "tuxpaint-stamps-default")])
def test_a_name_that_means_nothing_says_what_would(name, said):
    with pytest.raises(UserError, match=said): _open_dataset(name)

def test_what_holds_no_images_in_classes_says_so(tmp_path):
    for name in ("train", "test"): (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="PATH/train/CLASS/IMAGE"):
        _open_dataset(f"folder:{tmp_path}")
    (tmp_path / "bad.tar").write_bytes(b"this is no tar at all")
    with pytest.raises(UserError, match="no whole tar") as said:
        _open_dataset(f"imagenetv2:{tmp_path / 'bad.tar'}")
    assert "\n" not in str(said.value)

def test_a_folder_named_without_its_kind_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); (tmp_path / "birds").mkdir()
    with pytest.raises(UserError, match="folder:birds"): _parse_dataset_name("birds")

def test_the_hub_says_how_to_get_in_and_round(monkeypatch):
    def closed(*a, **k):
        raise hf.exceptions.DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset "
                                                 "on the Hub.")
    monkeypatch.setattr(rooms.hf, "load_dataset", closed)
    with pytest.raises(UserError,
                       match="accept its terms at "
                             "https://huggingface.co/datasets/ILSVRC/imagenet-1k.*hf auth login"):
        _open_dataset("imagenet")
    def away(*a, **k): raise ConnectionError("no route")
    monkeypatch.setattr(rooms.hf, "load_dataset", away)
    with pytest.raises(UserError, match="cars=hf:OWNER/NAME.*cars:PATH"): _open_dataset("cars")
    with pytest.raises(UserError, match="could not open the data set 'hf:o/n'"):
        _open_dataset("hf:o/n")

@quietly
def test_the_hub_is_asked_for_the_right_thing(monkeypatch):
    seen = []
    def load(path, config=None, **more):
        seen.append((path, config, more))
        return hf.DatasetDict(train=table(range(6), [0, 1] * 3),
                              test=table(range(9, 15), [0, 1] * 3))
    monkeypatch.setattr(rooms.hf, "load_dataset", load)
    for n in ("cars", "cars=hf:me/cars:small", "hf:me/own#label=label"): _open_dataset(n)
    assert (seen
            == [("Donghyun99/Stanford-Cars", None, {}), ("me/cars", "small", {}),
                ("me/own", None, {})])
    assert ([_parse_dataset_name(n).name for n in ("cars=hf:me/cars", "hf:me/own")]
            == ["cars", "hf:me/own"])

def test_sizes_that_were_not_published_are_said(tmp_path):
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10),
                test=table(range(50, 60), [0, 1] * 5))
    with pytest.warns(UserWarning,
                      match=r"cub has 20 images in train where 5,994.*10 images in test where "
                            r"5,794.*2 classes where 200.*Wah"):
        _open_dataset(f"cub:{path}")

# --- the cut

def many(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(list("abcdefg"))[rng.choice(7, 3000, p=[.4, .3, .2, .07, .02, .007, .003])]
    pixels = rng.integers(0, 2500, 3000).astype(str) # every third picture occurs twice or more
    first = dict(zip(pixels[::-1], labels[::-1]))
    return np.array([first[p] for p in pixels]), pixels

def test_a_tenth_of_each_class_is_held_back_whole_pictures_at_a_time():
    labels, pixels = many()
    val = _val_mask(labels, pixels)
    assert not set(pixels[val]) & set(pixels[~val])
    for c in np.unique(labels):
        n, held = (labels == c).sum(), val[labels == c].sum()
        assert 1 <= held < n and abs(held - n / 10) <= 2, (c, n, held)

def test_the_cut_depends_on_seed_and_pictures_alone():
    labels, pixels = many()
    val, order = _val_mask(labels, pixels), np.random.default_rng(1).permutation(3000)
    assert (_val_mask(labels[order], pixels[order]) == val[order]).all()
    without = labels != "a" # another class leaves, the rest stays
    assert (_val_mask(labels[without], pixels[without]) == val[without]).all()
    other = _val_mask(labels, pixels, 1)
    assert 0.03 < (val & other).sum() / val.sum() < 0.25 # by chance a tenth

def test_one_picture_of_a_class_is_never_held_back_and_two_are_shared():
    labels, pixels = np.array(list("aabbcdd")), np.array(["1", "2", "3", "3", "4", "5", "6"])
    val = _val_mask(labels, pixels)
    assert np.isnan(_within_class_rank(labels, pixels)[2:5]).all()
    assert val[:2].sum() == val[5:].sum() == 1 and not val[2:5].any()

def test_no_more_than_about_fifty_thousand_are_held_back():
    labels = np.arange(700_123) % 997
    held = np.bincount(labels[_val_mask(labels, np.arange(len(labels)).astype(str))])
    assert abs(held.sum() - 50_000) < 500 and held.min() >= 49 and np.ptp(held) <= 2

# --- leaks

def test_copies_are_left_out_of_the_test_listed_and_counted(tmp_path):
    train, test = ([(k, 0) for k in range(40)],
                   [(k, 1) for k in range(20)] + [(3, 0), (4, 0), (5, 0)])
    def label(p):
        return [k % 2 for k, _ in p]
    wrong = label(test)[:-1] + [0] # picture 5, but as another class
    path = save(tmp_path / "d", train=table(train, label(train)), test=table(test, wrong))
    t, items, said = asked(f"cars:{path}")
    ((learnt, val, tested),) = in_pieces(t, items)
    assert not set(tested.pixel_hash) & (set(learnt.pixel_hash) | set(val.pixel_hash))
    assert (len(tested) == 20
            and set(t.left_out.item_id) | set(tested.item_id) == set(items["cars-test"].item_id))
    assert (t.notes
            == ["test images that are also in train, left out: 3 of 23",
                "images under two labels: 1"])
    assert any(t.notes[0] in s for s in said) and set(val.split) == {"train"}
    assert len(learnt) + len(val) == 40 and set(val.label) == {0, 1}

def test_a_test_of_copies_alone_is_an_error(tmp_path):
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10),
                test=table(range(4), [0, 1] * 2))
    with pytest.raises(UserError, match="every test image of cars is also in train"):
        asked(f"cars:{path}")

def test_classes_that_train_lacks_are_counted_and_kept(tmp_path):
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10),
                test=table(range(50, 56), [0, 1, 2, 2, 3, 0]))
    t, items, _ = asked(f"cars:{path}")
    assert len(t.folds[0].test.rows) == 6 and ": 2, with 3 images" in t.notes[0]

def test_classes_with_one_picture_stay_in_train(tmp_path):
    path = save(tmp_path / "d", train=table(range(21), [0, 1] * 10 + [2]),
                test=table(range(50, 56), [0, 1] * 3))
    t, items, _ = asked(f"cars:{path}")
    ((learnt, val, _),) = in_pieces(t, items)
    assert (2 in set(learnt.label) and 2 not in set(val.label)
            and t.notes == ["classes with one image in train, and none in val: 1"])
    path = save(tmp_path / "e", train=table(range(3), [0, 1, 2]),
                test=table(range(50, 53), [0, 1, 2]))
    with pytest.raises(UserError, match="no image is left for validation"): asked(f"cars:{path}")

def test_a_validation_split_is_used_but_for_its_copies(tmp_path):
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10),
                test=table(range(50, 56), [0, 1] * 3),
                validation=table([30, 31, 32, 5], [0, 1, 0, 1]))
    t, items, _ = asked(f"flowers:{path}")
    ((learnt, val, _),) = in_pieces(t, items)
    assert t.folds[0].val.corpus == t.folds[0].train.corpus == "flowers-train"
    assert (set(learnt.split) == {"train"} and set(val.split) == {"val"}
            and (len(learnt), len(val)) == (20, 3))
    assert t.left_out.item_id.tolist() == ["flowers-val-00000003"] and "validation" not in items

@pytest.mark.parametrize("secret", [-1, None])
def test_a_test_split_with_secret_labels_gives_way_to_validation(tmp_path, secret):
    names, hidden = list("ab"), table(range(90, 94), [secret] * 4, list("ab"))
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10, names),
                validation=table(range(50, 56), [0, 1] * 3, names), test=hidden)
    t, items, _ = asked(f"hf:{path}")
    ((learnt, val, tested),) = in_pieces(t, items)
    assert (len(learnt) + len(val), len(tested)) == (20, 6) and set(val.split) == {"train"}

def test_splits_that_fit_no_rule_are_named(tmp_path):
    path = save(tmp_path / "d", a=table(range(4), [0, 1] * 2), b=table(range(4), [0, 1] * 2))
    with pytest.raises(UserError, match="splits a, b: expected train"): _open_dataset(f"hf:{path}")

# --- robustness

@quietly
def test_a_robustness_set_is_only_tested(tmp_path):
    train = save(tmp_path / "d",
                 train=table([(k, 0) for k in range(40)], [k % 10 for k in range(40)], _CIFAR10),
                 test=table([(k, 5) for k in range(10)], range(10), _CIFAR10))
    new = save(tmp_path / "e",
               test=table([(k, 9) for k in range(8)] + [(7, 0)], [*range(8), 7], _CIFAR10))
    parent, items = asked(f"cifar10:{train}")[:2]
    t, own, _ = asked(f"cifar10.1=hf:{new}")
    (f,) = t.folds
    assert ((t.parent, f.train, f.val, f.test.corpus, len(f.test.rows))
            == (parent.name, None, None, "cifar10.1-test", 9))
    assert (t.classes == list(range(8)) and t.group == "robustness"
            and DATASETS["cifar10.1"].parent == "cifar10")
    (t,) = tasks(f"cifar10.1=hf:{new}", own | items) # the parent's images are known now
    assert (t.left_out.item_id.tolist() == ["cifar10.1-test-00000008"]
            and len(t.folds[0].test.rows) == 8)

def arrays(home, version="v6", n=20):
    home.mkdir(exist_ok=True)
    np.save(home / f"cifar10.1_{version}_data.npy",
            np.stack([picture(k % 10, k) for k in range(n)]))
    np.save(home / f"cifar10.1_{version}_labels.npy", np.arange(n) % 10)
    return home

@quietly
def test_cifar_10_1_comes_as_arrays(tmp_path):
    arrays(arrays(tmp_path / "a"), "v4", 30) # v6 is the one that is recommended
    t, items, _ = asked(f"cifar10.1:{tmp_path / 'a'}")
    (corpus,) = _open_dataset(f"cifar10.1:{tmp_path / 'a'}").values()
    assert len(corpus) == 20 and t.classes is None
    assert ([number_of(im) for im in corpus["image"]] == list(corpus["label"])
            and corpus["class_name"][3] == "cat")
    np.save(tmp_path / "a" / "cifar10.1_v6_labels.npy", np.arange(7))
    with pytest.raises(UserError, match=r"\[20, 8, 8, 3\] and its labels \[7\]"):
        _open_dataset(f"cifar10.1:{tmp_path / 'a'}")

@quietly
def test_cifar_10_1_is_downloaded_once_and_must_be_the_published_file(tmp_path, monkeypatch):
    home, sums = arrays(tmp_path / "a"), {}
    for p in home.iterdir():
        data = p.read_bytes()
        sums[p.name] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    assert set(sums) == set(rooms._BLOBS)
    monkeypatch.setenv("CCD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="not the file that was published.*cifar10.1:FOLDER"):
        rooms._cifar101(home.as_uri() + "/")
    monkeypatch.setattr(rooms, "_BLOBS", sums)
    got = rooms._cifar101(home.as_uri() + "/")
    for p in home.iterdir(): p.unlink()
    assert rooms._cifar101(home.as_uri() + "/") == got and len(rooms._arrays(got)["test"]) == 20
    monkeypatch.setenv("CCD_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match="could not download"): rooms._cifar101(home.as_uri() + "/")

# --- folders

@quietly
def test_an_undivided_folder_is_tested_once_and_copies_fall_into_one_fold(tmp_path):
    files = ({f"{'ab'[k % 2]}/{k}.png": (k % 2, k) for k in range(30)}
             | {f"a/copy {k}.png": (0, 2 * k) for k in range(5)})
    write(tmp_path / "d", files | {"lone/x.png": (7, 7)})
    t, items, said = asked(f"folder:{tmp_path / 'd'}")
    pieces, (d,) = in_pieces(t, items), items.values()
    tested = pd.concat([test for *_, test in pieces])
    assert sorted(tested.item_id) == sorted(d.item_id[d.label != "lone"]) and len(pieces) == 5
    for parts in pieces:
        seen = [set(p.pixel_hash) for p in parts]
        assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert t.left_out.item_id.tolist() == ["lone/x.png"] and "lone" in set(pieces[0][0].label)
    assert any("no test split" in s for s in said)

@quietly
def test_folders_that_are_divided_stay_so(tmp_path):
    def own(s, n, a):
        return {f"{s}/{'ab'[k % 2]}/deep/{k}.png": (k % 2, k + a) for k in range(n)}
    write(tmp_path, own("train", 20, 0) | own("val", 4, 100) | own("test", 6, 200))
    t, items, _ = asked(f"folder:{tmp_path}")
    ((learnt, val, tested),) = in_pieces(t, items)
    assert [len(learnt), len(val), len(tested)] == [20, 4, 6] and set(tested.label) == {"a", "b"}
    for c in _open_dataset(f"folder:{tmp_path}").values():
        assert ["ab"[number_of(im)] for im in c["image"]] == list(c["label"])

@quietly
def test_too_few_to_cut_is_an_error(tmp_path):
    write(tmp_path, {"a/1.png": (1,), "b/2.png": (2,)})
    with pytest.raises(UserError, match="too few images.*2 of 2 classes"):
        asked(f"folder:{tmp_path}")

@quietly
def test_nothing_of_imagenet_is_decoded_when_it_is_opened(tmp_path, monkeypatch):
    write(tmp_path,
          {f"{s}/{w}/{c}.png": (k, c) for k, w in WNIDS.items()
           for s, n in (("train", 4), ("val", 1)) for c in range(n)})
    def no(*a): raise AssertionError("decoded")
    for module in (images, data_corpora): monkeypatch.setattr(module, "decode", no)
    t, items, _ = asked(f"imagenet:{tmp_path}")
    assert (set(items) == {"imagenet-train", "imagenet-test"}
            and sorted(items["imagenet-test"].label) == sorted(WNIDS))
    assert "not searched for" in t.notes[0] and len(t.folds[0].test.rows) == 5
    monkeypatch.undo()
    for c in _open_dataset(f"imagenet:{tmp_path}").values():
        assert [number_of(im) for im in c["image"]] == list(c["label"])

# --- others

@quietly
def test_stamps_are_photographs_in_folders_of_their_kind(tmp_path):
    rng = np.random.default_rng(0)
    def stamp(name, photo):
        x = np.zeros((40, 40, 4), np.uint8); x[5:35, 5:35] = 255
        if photo: x[5:35, 5:35, :3] = rng.integers(0, 256, (30, 30, 3))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(x).save(tmp_path / name)
    real = [f"{c}/{s}/{k}.png" for c in ("animals", "food") for s in "xy" for k in range(5)]
    for n in real + ["animals/x/cartoon/lion.png", "animals/x/0_mirror.png",
                     "seasonal/pumpkin.png"]:
        stamp(n, True)
    stamp("food/x/drawn.png", False)
    t, items, said = asked(f"stamps:{tmp_path}")
    assert (sorted(items["stamps-all"].item_id) == real
            and set(items["stamps-all"].label) == {"animals", "food"})
    assert any("20 photographs; left out: 2 drawings and 1 mirror images" in s for s in said)
    assert len(np.unique(np.concatenate([f.test.rows for f in t.folds]))) == 20

def test_a_photograph_is_known_by_its_colours(tiny):
    from sklearn.datasets import load_sample_image
    for name in ("china.jpg", "flower.jpg"):
        assert _is_photo(Picture.fromarray(load_sample_image(name)).resize((160, 106)))
    drawn = [_is_photo(im) for im in emoji.single_drawings(tiny.data)[:40]["image"]]
    assert np.mean(drawn) < 0.1

@quietly
def test_ade20k_keeps_its_masks(tmp_path):
    def scenes(a, n):
        def mask(k):
            return dict(bytes=png_of(Picture.fromarray(np.full((8, 8), k, np.uint8))), path=None)
        return hf.Dataset.from_dict(dict(annotation=[mask(k) for k in range(a, a + n)],
                                         image=[png(k) for k in range(a, a + n)]),
                                    features=Features(annotation=Image(), image=Image()))
    def png_of(im):
        out = io.BytesIO(); im.save(out, "png"); return out.getvalue()
    path = save(tmp_path / "d", train=scenes(0, 4), validation=scenes(10, 3), test=scenes(20, 2))
    corpora = _open_dataset(f"ade20k:{path}")
    assert {k: len(c) for k, c in corpora.items()} == {"ade20k-train": 4, "ade20k-test": 3}
    for c in corpora.values():
        for r in c:
            assert (np.asarray(r["annotation"]).shape == (8, 8)
                    and (np.asarray(r["annotation"]) == number_of(r["image"])).all())
    with pytest.raises(UserError, match="ccd.probing.segmentation"):
        tasks(f"ade20k:{path}", items_of(corpora))

@quietly
def test_classes_have_names(tmp_path):
    from torchvision.datasets import Flowers102
    birds = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10, birds),
                test=table(range(50, 56), [0, 1] * 3, birds))
    assert (_class_names(f"cub:{path}", items_of(_open_dataset(f"cub:{path}")))
            == {0: "Black footed Albatross", 1: "Laysan Albatross"})
    path = save(tmp_path / "e", train=table(range(20), [0, 101] * 10),
                test=table(range(50, 56), [0, 101] * 3))
    assert (_class_names("flowers", items_of(_open_dataset(f"flowers:{path}")))
            == {0: Flowers102.classes[0], 101: Flowers102.classes[101]})
    assert _class_names("cifar10") == dict(enumerate(_CIFAR10))
    with pytest.raises(UserError, match="known from its items"): _class_names("cars")

def test_items_of_another_corpus_are_refused():
    with pytest.raises(UserError, match="'cars-train' are needed.*got cars-test"):
        tasks("cars", {"cars-test": pd.DataFrame()})

# --- folders as people have them

def labels_in(corpora):
    return {k.rpartition("-")[2]: sorted(set(c["label"])) for k, c in corpora.items()}

@quietly
@pytest.mark.parametrize("names",
                         [("Train", "Test", "Validation"), ("TRAINING", "Testing", "Valid"),
                          ("train_set", "test-images", "val"),
                                   ("trainset", "Evaluation", "Dev Split")])
def test_splits_are_known_in_any_case_and_usual_spelling(tmp_path, names):
    write(tmp_path,
          {f"{s}/{'ab'[k % 2]}/{k}.png": (k % 2, k + 40 * j) for j, s in enumerate(names)
           for k in range(8)})
    t, items, _ = asked(f"folder:{tmp_path}")
    ((learnt, val, tested),) = in_pieces(t, items)
    assert [len(x) for x in (learnt, val, tested)] == [8, 8, 8]
    assert all(d.item_id.str.startswith(n).all()
               for d, n in ((learnt, names[0]), (tested, names[1]), (val, names[2])))
    assert set(tested.label) == {"a", "b"}

@pytest.mark.parametrize("name, part",
                         [("trainer", ""), ("Test", "test"), ("tests", ""), ("dataset", ""),
                          ("data", ""), ("Validation_Set", "val"), ("ä", "")])
def test_a_split_is_known_by_its_whole_name(name, part): assert rooms._part_of(name) == part

@quietly
def test_classes_that_pandas_would_rename_stay_strings(tmp_path):
    names = ["NA", "None", "nan", "null", "01", "1", "1.0", "1e3", "True", "-1", "²"]
    write(tmp_path, {f"{n}/{k}.png": (j, k) for j, n in enumerate(names) for k in range(6)})
    t, items, _ = asked(f"folder:{tmp_path}")
    (d,) = items.values()
    assert (sorted(set(d.label)) == sorted(names) and d.label.map(type).eq(str).all()
            and len(d) == 6 * len(names))
    assert sorted(_class_names(f"folder:{tmp_path}", items)) == sorted(names)
    assert len(set(_class_map(range(2), names=["01", "1"]).values())) == 2

@quietly
def test_train_is_a_class_where_its_neighbours_are(tmp_path):
    write(tmp_path,
          {f"{c}/{k}.png": (j, k) for j, c in enumerate(("bus", "car", "train")) for k in range(6)})
    assert labels_in(_open_dataset(f"folder:{tmp_path}")) == dict(all=["bus", "car", "train"])

def test_a_split_without_class_folders_is_explained(tmp_path):
    write(tmp_path,
          {f"Train/{c}/{k}.png": (j, k) for j, c in enumerate(("cat", "dog")) for k in range(6)}
          | {f"Test/{k}.png": (9, k) for k in range(4)})
    with pytest.raises(UserError,
                       match=r"Test holds 4 images and no class folders: expected Test/CLASS/IMAGE "
                             r"with the classes of Train \(cat, dog\).*cut into folds"):
        _open_dataset(f"folder:{tmp_path}")
    write(tmp_path,
          {f"Valid/{c}/{k}.png": (j, k + 20) for j, c in enumerate(("cat", "dog"))
           for k in range(3)})
    with pytest.warns(UserWarning, match="it lies in no class folder"):
        found = _open_dataset(f"folder:{tmp_path}")
    # what is called Valid is tested
    assert {k.rpartition("-")[2]: len(c) for k, c in found.items()} == dict(train=12, test=6)
    assert [i for i, _ in found.skipped] == [f"Test/{k}.png" for k in range(4)]
    write(tmp_path / "flat", {f"{s}/{k}.png": (k,) for s in ("train", "test") for k in range(3)})
    with pytest.raises(UserError,
                       match="train holds 3 images and no class folders: expected "
                             "train/CLASS/IMAGE"):
        _open_dataset(f"folder:{tmp_path / 'flat'}")

def test_two_folders_of_one_split_and_folders_of_none_are_told(tmp_path):
    files = {f"{s}/{c}/{k}.png": (j, k + 10 * n) for n, s in enumerate(("train", "test", "extra"))
             for j, c in enumerate("ab") for k in range(4)}
    write(tmp_path, files | {"test/loose.png": (5, 5), "top.png": (6, 6)})
    with pytest.warns(UserWarning, match="no folder of a split"):
        found = _open_dataset(f"folder:{tmp_path}")
    assert (sorted(i for i, _ in found.skipped)
            == sorted([k for k in files if k.startswith("extra")] + ["test/loose.png", "top.png"]))
    write(tmp_path, {"Testing/a/1.png": (1, 99)})
    with pytest.raises(UserError, match="several folders of test images: Testing, test"):
        _open_dataset(f"folder:{tmp_path}")

@quietly
def test_linked_classes_are_read_and_hidden_folders_are_not(tmp_path):
    write(tmp_path / "in",
          {f"{c}/{k}.png": (j, k) for j, c in enumerate(("cat", "dog")) for k in range(6)} | {
        ".ipynb_checkpoints/x.png": (3,), "cat/.thumbs/x.png": (3,), "__MACOSX/cat/._1.png": (3,)})
    write(tmp_path / "elsewhere", {f"{k}.png": (2, k) for k in range(6)})
    (tmp_path / "in/owl").symlink_to(tmp_path / "elsewhere")
    found = _open_dataset(f"folder:{tmp_path / 'in'}")
    assert (labels_in(found) == dict(all=["cat", "dog", "owl"])
            and sum(map(len, found.values())) == 18)
    assert sum("hidden" in why for _, why in found.skipped) == 3

def test_a_test_split_whose_labels_are_secret_needs_a_validation_split(tmp_path):
    path = save(tmp_path / "d", train=table(range(20), [0, 1] * 10, list("ab")),
                test=table(range(90, 94), [-1] * 4, list("ab")))
    with pytest.raises(UserError, match="no image of its split 'test' has a label"):
        _open_dataset(f"hf:{path}")

@quietly
def test_two_images_of_one_name_are_told(tmp_path):
    path = save(tmp_path / "d", train=table(range(6), [0, 1] * 3, item_id=list("aabcde")),
                test=table(range(50, 54), [0, 1] * 2, item_id=list("aefg")))
    with pytest.raises(UserError,
                       match="1 images called as others are, first 'a': expected each item_id "
                             "once"):
        _open_dataset(f"hf:{path}")

@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "train.parquet"])
def test_a_dataset_of_the_hub_as_its_parquet_files(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rows = dict(image=[Picture.new("RGB", (8, 8), (9 * k, 0, 0)) for k in range(9)],
                label=["NA", "01", "1"] * 3)
    hf.Dataset.from_dict(rows,
                         features=Features(image=Image(),
                                           label=hf.Value("string"))).to_parquet(
                                               str(tmp_path / name))
    for at in (tmp_path, tmp_path / name):
        found = rooms._open_dataset(f"hf:{at}")
        (d,) = found.values()
        assert sorted(d["class_name"]) == sorted(rows["label"])
