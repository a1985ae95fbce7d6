"""What an encoder sees belongs to its sample: not to the batch, the order or the machine's random
state."""
import re
from dataclasses import replace
import numpy as np, pytest, torch
from ccd.data import augment
from ccd.settings import Control, Dino
from ccd.data.batches import BatchLoader

pytestmark = pytest.mark.numeric

M = 2**32 - 1

def philox(c, k, rounds=10):
    "Philox4x32-10 in plain integers."
    for r in range(rounds):
        k0, k1 = (k[0] + r * 0x9E3779B9) & M, (k[1] + r * 0xBB67AE85) & M
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & M, (a >> 32) ^ c[3] ^ k1, a & M]
    return c

KNOWN = [((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"), # Random123's kat_vectors
         ((M,) * 4, (M, M), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
         ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), (0xa4093822, 0x299f31d0),
          "d16cfe09 94fdcceb 5001e420 24126ea1")]

@pytest.mark.parametrize("counter, key, want", KNOWN)
def test_philox_gives_the_published_numbers(counter, key, want):
    for f in (philox, augment._philox):
        assert " ".join(f"{int(w):08x}" for w in f(counter, key)) == want

def test_philox_is_philox():
    rng = np.random.default_rng(0)
    counters, key = (rng.integers(0, M, (200, 4), endpoint=True),
                     [int(k) for k in rng.integers(0, M, 2)])
    got = torch.stack(augment._philox(tuple(torch.from_numpy(counters).unbind(1)), key), 1)
    assert got.tolist() == [philox([int(x) for x in c], key) for c in counters]

def test_uniform_numbers_are_their_own_and_even():
    s = torch.tensor([0, 1, 2**32, 2**33 + 1])
    rows = torch.cat([augment._counter_uniform(seed, s, view, 6) for seed in (0, 1, 2**32)
                      for view in (0, 5)])
    assert len(rows.unique(dim=0)) == len(rows)
    u = augment._counter_uniform(0, torch.arange(4000), 0, 5)
    assert 0 <= u.min() and u.max() < 1
    assert (torch.allclose(u.mean(0), torch.tensor(0.5), atol=0.02)
            and u.T.corrcoef().sub(torch.eye(5)).abs().max() < 0.06)

CONTROL, DINO = Control(), Dino(flip=0.5)
IMAGES = torch.from_numpy(np.random.default_rng(0).random((12, 3, 64, 64), np.float32))
SAMPLE = torch.arange(12) * 1000 + 7
FLIP = torch.arange(12) % 2 == 0
VIEWS = dict(base=lambda x, s, f: augment.base_view(x, s, CONTROL),
             plain=lambda x, s, f: augment.eval_view(x, 48)) | {
    f"dino {v}": lambda x, s, f, v=v: augment.dino_view(x, s, v, CONTROL, DINO, f)
    for v in (0, 1, 2, 5)}

@pytest.mark.parametrize("name", VIEWS)
def test_a_view_does_not_depend_on_its_batch(name):
    view = VIEWS[name]
    whole = view(IMAGES, SAMPLE, FLIP)
    assert not torch.isnan(whole).any() and whole.min() >= 0 and whole.max() <= 1
    torch.manual_seed(int(whole.sum()))
    for rows in (torch.randperm(12), torch.tensor([3]), torch.tensor([11, 0, 5])):
        part = view(IMAGES[rows], SAMPLE[rows], FLIP[rows])
        # vector instructions round tails apart
        assert torch.allclose(part, whole[rows], rtol=0, atol=2e-7)

@pytest.mark.parametrize("v", [0, 1, 2])
def test_another_sample_view_or_seed_is_another_view(v):
    same = IMAGES[:1].expand(6, -1, -1, -1)
    def see(v, c=CONTROL):
        return augment.dino_view(same, SAMPLE[:6], v, c, DINO)
    assert len(see(v).unique(dim=0)) == 6
    assert (not torch.equal(see(v), see(v, replace(CONTROL, seed=1)))
            and not torch.equal(see(2), see(3)))

def test_the_base_view_keeps_what_it_says():
    box = augment._random_resized_crop_box(augment._counter_uniform(0, torch.arange(500), 0, 4), 64,
                                           CONTROL.base_crop)
    x, y, w, h = box.unbind(1)
    assert ((w * h / 64**2).min() > 0.8999
            and (torch.stack([x, y, 64 - x - w, 64 - y - h]) > -1e-4).all())

@pytest.fixture(scope="module")
def fed(corpus, tiny): return BatchLoader(corpus, tiny.control, tiny.data.size)

@pytest.fixture(scope="module")
def may_flip(fed, corpus, tiny): # of every row, as an epoch's batches say
    out = np.zeros(len(corpus), bool)
    for step in range(len(corpus) // tiny.control.batch_size):
        out[fed.rows(step)] = fed(step).may_flip
    return out

@pytest.mark.parametrize("v", [0, 1, 2])
def test_only_what_may_be_flipped_is_flipped(fed, tiny, v):
    images, sample, _, may, _ = fed(3)
    may = may & (torch.arange(len(may)) % 2 == 0) # some of each, whatever the batch
    def see(p):
        return augment.dino_view(augment.to_float(images), sample, v, tiny.control,
                                 replace(tiny.dino, flip=p), may)
    never, always = see(0.0), see(1.0)
    assert may.any() and not may.all()
    assert torch.equal(always[~may], never[~may])
    assert torch.allclose(always[may], never[may].flip(-1), atol=1e-5)

@pytest.mark.parametrize("column", ["word", "relation", "chart"])
def test_words_and_places_may_not_be_flipped(may_flip, corpus, column):
    has = np.array([x is not None for x in corpus[column][:]])
    assert has.any() and not may_flip[has].any() and may_flip.any()

def test_names_with_directions_may_not_be_flipped(may_flip, corpus):
    turned = re.compile(r"\b(left|right|leftwards|rightwards|clockwise|counterclockwise)\b")
    says = np.array([bool(turned.search(" ".join(c))) for c in corpus["captions"][:]])
    assert says.sum() > 10 and not may_flip[says].any()
