"HOG and k-means of patches, against scikit-image and a plain formula."
import numpy as np
import pytest
import torch
from PIL import Image
from ccd.encoders import baselines
from ccd.encoders.loading import load
from ccd.files import UserError

@pytest.fixture(scope="module")
def images(): # [6, 48, 48, 3] uint8, smooth
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 6, 6, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC))
                     for image in small])

def floats(images): return torch.from_numpy(images.transpose(0, 3, 1, 2)) / 255

def test_hog_is_that_of_scikit_image(images):
    from skimage.feature import hog
    for cell, size in ((8, 900), (16, 144)):
        found = baselines.hog_features(cell).vector(floats(images)).numpy()
        want = [hog(image / np.float32(255), 9, (cell, cell), (2, 2), channel_axis=-1)
                for image in images]
        assert found.shape == (6, size) and np.allclose(found, want, atol=1e-5)

def test_hog_does_not_see_contrast(images):
    encoder, pixels = baselines.hog_features(), floats(images)
    pale = encoder.vector(pixels / 2 + 0.25) # an edge at the border of two orientations may change
    assert (torch.cosine_similarity(encoder.vector(pixels), pale) > 0.99).all()
    assert not encoder.vector(torch.full_like(pixels, 0.5)).any()

def test_each_cell_has_the_histograms_of_its_blocks(images):
    found = baselines.hog_features().features(floats(images))
    tokens = found.patches.reshape(6, 6, 6, 2, 2, 9)
    blocks = found.cls.reshape(6, 5, 5, 2, 2, 9)
    assert torch.equal(tokens[:, 2, 3, 0, 1], blocks[:, 2, 2, 0, 1])
    assert torch.equal(tokens[:, 2, 3, 1, 0], blocks[:, 1, 3, 1, 0])
    assert not tokens[:, 0, :, 1].any() and not tokens[:, -1, :, 0].any() # beyond the border

def test_colors_are_the_means_of_the_cells(images):
    found = baselines.hog_features(colors=True).features(floats(images))
    want = floats(images).unflatten(3, (6, 8)).unflatten(2, (6, 8)).mean((3, 5)) # [6, 3, 6, 6]
    assert torch.allclose(found.cls[:, 900:], want.flatten(1), atol=1e-6)
    assert torch.allclose(found.patches[:, 9, 36:], want[:, :, 1, 3], atol=1e-6)

def activations(image, dictionary): # [22, 22, K], one patch and one entry at a time
    out = np.zeros((22, 22, len(dictionary.centroids)))
    for row in range(22):
        for column in range(22):
            patch = image[2 * row:2 * row + 6, 2 * column:2 * column + 6].transpose(2, 0, 1) / 255
            patch = patch.ravel() - patch.mean()
            patch = patch / np.sqrt(patch.var(ddof=1) + 10 / 255**2)
            white = (patch - dictionary.mean) @ dictionary.whitening
            distance = np.linalg.norm(white - dictionary.centroids, axis=1)
            out[row, column] = np.maximum(0, distance.mean() - distance)
    return out

def test_patches_are_the_plain_formula(images):
    dictionary = baselines._fit_patch_dictionary(images, k=7, n_patches=500)
    found = baselines.patch_features(dictionary).features(floats(images[:2]))
    for index in range(2):
        plain = activations(images[index], dictionary)
        quadrants = [plain[rows, columns].mean((0, 1)) for rows in (slice(11), slice(11, 22))
                     for columns in (slice(11), slice(11, 22))]
        assert np.allclose(found.cls[index].reshape(7, 4).T, quadrants, atol=1e-3)
        corner = plain[:4, :4].mean((0, 1)) # the first of 6 x 6 cells: rows 0 to 3 of 22
        assert np.allclose(found.patches[index, 0], corner, atol=1e-3)

def test_a_dictionary_depends_on_its_seed_alone(images):
    first, second, other = (baselines._fit_patch_dictionary(images, 5, 300, seed)
                            for seed in (0, 0, 1))
    assert np.allclose(first.centroids, second.centroids, atol=1e-4)
    assert not np.allclose(first.centroids, other.centroids, atol=1e-2)

def test_whitened_patches_are_white(images):
    dictionary = baselines._fit_patch_dictionary(images, 5, 4_000)
    rng = np.random.default_rng(1)
    patches = np.stack([images[i, r:r + 6, c:c + 6].transpose(2, 0, 1).ravel() / 255
                        for i, r, c in rng.integers([0, 0, 0], [6, 43, 43], (4_000, 3))])
    normal = baselines._contrast_normalized(torch.from_numpy(patches)).numpy()
    spread = np.linalg.eigvalsh(np.cov(((normal - dictionary.mean) @ dictionary.whitening).T))
    assert spread.max() < 1.2 and spread.min() > -1e-6 # at most 1, less in directions of noise

def test_they_load_by_name(images, tmp_path):
    for index, image in enumerate(np.tile(images, (4, 1, 1, 1))):
        Image.fromarray(np.roll(image, index, 0)).save(tmp_path / f"{index}.png")
    names = {"hog:8": 900, "hog-colors:8": 1008, "hog:16#size=64": 324,
             f"patches:5#images=folder:{tmp_path}": 20}
    for name, width in names.items():
        encoder = load(name)
        size = encoder.card.size
        assert encoder.vector(torch.rand(2, 3, size, size)).shape == (2, width)
    assert load("hog-colors:8").card.name == "HOG + colors"

@pytest.mark.parametrize("name, says", [
    ("hog:7", "do not tile an image of 48 px"), ("hog:48", "2 x 2 cells"),
    ("hog:0", "whole number of 2 or more"), ("hog:8#images=emoji", "takes size="),
    ("patches:5#layer=-2", "takes size= and images="), ("random:0#images=emoji", "patches:K alone"),
    ("patches:5#images=nowhere", "unknown data source"),
    ("colors:8#size=32", "no options"), ("hogs:8", "hog:CELL")])
def test_wrong_names_say_what_is_expected(name, says):
    with pytest.raises(UserError, match=says): load(name)

def test_fewer_patches_than_entries_are_refused(images):
    with pytest.raises(UserError, match="cannot make 9 entries"):
        baselines._fit_patch_dictionary(images, 9, 8)
