"""Masks of a user's own images: read as they are, split by folders or by groups, probed by the
command, and a clear word about each fault."""
import numpy as np, pytest
from PIL import Image
from ccd.cli import main
from ccd.files import UserError, load_table
from ccd.presets import preset
from ccd.probing.patches import _masks_of_folder
from ccd.settings import override
from ccd.study.suite import find_suite

def written(home, names, size=48, classes=True):
    rng = np.random.default_rng(0)
    for name in names:
        for kind in ("images", "masks"): (home / kind / name).parent.mkdir(parents=True,
                                                                          exist_ok=True)
        mask = np.zeros((size, size), np.uint8)
        left, top = rng.integers(0, size // 2, 2)
        mask[top:top + size // 2, left:left + size // 2] = 1
        mask[:4] = 255
        pixels = np.where(mask[..., None] == 1, (220, 30, 30), (30, 90, 200)) + rng.integers(
            -20, 20, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(home / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(home / "masks" / f"{name}.png")
    if classes: (home / "classes.txt").write_text("sea\nball\n")
    return home

GROUPED = [f"place{group}/{k}" for group in range(40) for k in range(3)]

def test_groups_are_never_divided_and_masks_are_read(tmp_path):
    parts = _masks_of_folder(written(tmp_path, GROUPED))
    groups = [set(part.cluster) for part in parts]
    assert sum(map(len, parts)) == 120 and all(map(len, parts))
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert parts[0].classes == ["sea", "ball"]
    for part in parts:
        name = part.corpus[0]["item_id"].removesuffix(".jpg")
        stored = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        assert (part.mask(0) == stored).all() and set(np.unique(stored)) == {0, 1, 255}

def test_folders_are_the_splits(tmp_path):
    home = written(tmp_path, [f"{split}/{k}" for split, n in (("train", 5), ("val", 2), ("test", 3))
                              for k in range(n)], classes=False)
    parts = _masks_of_folder(home)
    assert [len(part) for part in parts] == [5, 2, 3]
    assert parts[0].classes == ["class 0", "class 1"]

def test_the_command_probes_them(tmp_path):
    home = written(tmp_path / "data", GROUPED)
    main(["probe", "random:0", f"masks:{home}", "--preset", "smoke", "--out",
          str(tmp_path / "out")])
    table = load_table(tmp_path / "out/tables/accuracy.csv")
    row = table[table.encoder == "random ViT"].iloc[0]
    assert row.task == "masks, mIoU" and row.linear > row.majority + 0.1 # two colors
    assert row.n_groups == table.n_groups.max() > 1

def test_a_study_of_ones_own_images_probes_them(tmp_path):
    settings = override(preset("smoke"), **{
        "data.source": f"folder:{written(tmp_path, GROUPED) / 'images'}",
        "data.masks": str(tmp_path)})
    assert f"masks:{tmp_path}" in find_suite("own", settings).datasets

def broken(home, fault):
    if fault == "missing": (home / "masks/place3/1.png").unlink()
    if fault == "colors": Image.new("RGB", (48, 48)).save(home / "masks/place3/1.png")
    if fault == "torn": (home / "masks/place3/1.png").write_bytes(b"\x89PNG nothing")
    if fault == "unknown":
        Image.fromarray(np.full((48, 48), 7, np.uint8)).save(home / "masks/place3/1.png")
    if fault == "no folder":
        import shutil
        shutil.rmtree(home / "masks")
    return home

@pytest.mark.parametrize("fault, said", [
    ("missing", "1 of 120 images have no mask, such as .*place3/1.png"),
    ("colors", "has 3 channels: expected one class number"),
    ("torn", "cannot be read"), ("unknown", "has the class 7, and there are 2"),
    ("no folder", "has no folders images and masks")])
def test_each_fault_is_told(fault, said, tmp_path):
    home = broken(written(tmp_path, GROUPED), fault)
    with pytest.raises(UserError, match=said):
        for part in _masks_of_folder(home):
            for row in range(len(part)): part.mask(row)

def test_one_group_makes_no_splits(tmp_path):
    with pytest.raises(UserError, match="no image with a mask is in"):
        _masks_of_folder(written(tmp_path, ["one/1", "one/2"]))
