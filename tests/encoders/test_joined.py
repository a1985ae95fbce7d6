"""`A + B`: each side normalized, whatever pixels the sides take; the name of a path is one name."""
import numpy as np, pytest, torch
from PIL import Image
from ccd.cli import main
from ccd.data.augment import to_float
from ccd.data.corpora import ImageDecoder
from ccd.data.emoji.scenes import scenes
from ccd.encoders.inputs import check_known, embed_images
from ccd.encoders.loading import load
from ccd.encoders.names import parse_encoder_spec, split_spec
from ccd.files import UserError
from ccd.presets import preset
from ccd.vqa.command import encoder_for_vlm
from ccd.vqa.llava.settings import vlm_preset

SMOKE = preset("smoke")

def unit(vectors): return torch.nn.functional.normalize(vectors, dim=1)

@pytest.fixture(scope="module")
def pixels():
    corpus = scenes(SMOKE.data, "test").select(range(6))
    return to_float(ImageDecoder(corpus, 48)[range(6)])

def test_each_side_has_length_one(pixels):
    a, b = (load(spec, SMOKE.control) for spec in ("random:0", "random:1#feature=pooled"))
    both = load("random:0 + random:1#feature=pooled", SMOKE.control)
    assert both.shared and both.taps == ("cls", "patches")
    vectors = both.vector(pixels)
    assert torch.allclose(vectors, torch.cat([unit(a.vector(pixels)), unit(b.vector(pixels))], 1))
    patches = both.features(pixels).patches
    want = [torch.nn.functional.normalize(part.features(pixels).patches, dim=-1)
            for part in (a, b)]
    assert torch.allclose(patches, torch.cat(want, -1))
    assert both.card.name == f"{a.card.name} + {b.card.name}"

def test_the_mean_cosine_of_the_sides_is_the_cosine(pixels):
    def cosines(spec): return (v := unit(load(spec, SMOKE.control).vector(pixels))) @ v.T
    both = cosines("random:0 + random:1 + hog:8")
    mean = sum(map(cosines, ("random:0", "random:1", "hog:8"))) / 3
    assert torch.allclose(both, mean, atol=1e-5)

def test_sides_with_other_pixels_see_their_own(pixels, tmp_path):
    from ccd.encoders.exporting.command import export_encoder
    small = load("ccd:emoji/clip")
    home = export_encoder("ccd:emoji/dino", "timm", tmp_path / "dino")
    both = load(f"ccd:emoji/clip + timm:{home}#size=64")
    other = load(f"timm:{home}#size=64")
    assert not both.shared and both.taps == ("cls",)
    images = [Image.fromarray((np.asarray(p.permute(1, 2, 0)) * 255).astype(np.uint8))
              for p in pixels]
    inputs = to_float(np.stack([both.fit(image) for image in images]).transpose(0, 3, 1, 2))
    assert inputs.shape[-2:] == (64, 48 + 64)
    def seen(encoder, fit):
        part = np.stack([fit(image) for image in images]).transpose(0, 3, 1, 2)
        return unit(encoder.vector(to_float(part)))
    want = torch.cat([seen(small, lambda image: np.array(image)), seen(other, other.fit)], 1)
    assert torch.allclose(both.vector(inputs), want, atol=1e-5)

def test_images_are_embedded_as_alone(tmp_path):
    settings = SMOKE
    def vectors(spec, place):
        return embed_images(spec, "scenes", settings, tmp_path / place).vectors
    both = vectors("random:0 + random:1", "both")
    for place, side in (("random:0", both[:, :48]), ("random:1", both[:, 48:])):
        alone = vectors(place, place.replace(":", ""))
        alone = alone / np.linalg.norm(alone, axis=1, keepdims=True)
        assert np.abs(side - alone).max() < 2e-3 # stored in half precision

def test_a_name_that_is_a_path_is_not_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a + b").mkdir()
    for spec in ("ccd:a + b", "ccd:a + b#layer=2"): assert split_spec(spec) == [spec]
    assert split_spec("ccd:a + c") == ["ccd:a", "c"]
    assert split_spec("ccd:a+b") == ["ccd:a+b"] and split_spec("random:0") == ["random:0"]
    assert parse_encoder_spec("random:0 + random:1")[0] == "joined"

@pytest.mark.parametrize("spec, why", [
    ("random:0 + ", "expected a name on both sides"), ("random:0 + nobody:1", "unknown encoder"),
    ("random:0 + random:1#layer=99", "no layer 99")])
def test_a_side_that_is_not_there(spec, why):
    with pytest.raises(UserError, match=why): load(spec, SMOKE.control)
    if "nobody" in spec:
        with pytest.raises(UserError, match=why): check_known(spec, SMOKE)

def test_a_language_model_reads_joined_patches_of_one_grid():
    vlm = vlm_preset("smoke")
    encoder = encoder_for_vlm("random:0 + random:1", SMOKE, vlm)
    assert encoder.card.layer == "1 of 2 + 1 of 2" # the last but one of each
    blank = torch.zeros(1, 3, 48, 48)
    assert encoder.features(blank).patches.shape == (1, 16, 96)
    with pytest.raises(UserError, match="no patch tokens.*same number of patches"):
        encoder_for_vlm("random:0 + pixels:16", SMOKE, vlm)

def test_the_commands_take_joined_encoders(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / f"images/{label}").mkdir(parents=True)
        for number in range(20):
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) // 2 + 40 * label
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"images/{label}/{number}.png")
    main(["compare", "random:0 + random:1", "random:0 + random:2", "--images",
          str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--preset", "smoke"])
    assert (tmp_path / "out/report.html").exists()
