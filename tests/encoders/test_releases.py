"""Every released encoder is what it was: its weights, and what it makes of four pictures.

`python tests/test_releases.py` writes releases.csv anew."""
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from ccd.files import file_hash
from ccd.device import device
from ccd.runs import read_manifest
from ccd.encoders.base import Features, _TAPS
from ccd.encoders.trained import list_releases
from ccd.encoders.loading import load

pytestmark = pytest.mark.numeric

TABLE = Path(__file__).with_name("releases.csv")
FOUND = {f"{p.parts[-3]}/{p.name}": p for p in list_releases()}
SHOWN = 8 # numbers of the CLS token
# of the usual size of a number: float32 is within 2.1e-6 of float64 here, the kernels of two
# processors within 1e-6
NEAR = 2e-5
TAPS = list(_TAPS)

def pictures(size): # [4, 3, size, size] float in 0..1, the same on every machine
    x = np.random.RandomState(0).randint(0, 256, (4, 3, 12, 12)) # numpy keeps this stream as it is
    return torch.from_numpy(np.kron(x, np.ones((size // 12, size // 12))).astype(np.float32) / 255)

def features(folder): # its card and its features of the pictures
    e = load(f"ccd:{folder}")
    # whose convolutions round more
    with torch.backends.cudnn.flags(enabled=False):
        f = e.features(pictures(e.card.size).to(device()))
    return e.card, Features(*(None if x is None else x.cpu() for x in f))

def rows(name, folder):
    card, f = features(folder)
    norms = {t: np.full(4, np.nan) if x is None else x.flatten(1).norm(dim=1).numpy()
             for t, x in zip(TAPS, f)}
    return pd.DataFrame(dict(encoder=name, weights=card.revision,
                             image=range(4)) | {f"norm_{t}": v for t, v in norms.items()} |
                        {f"cls_{k}": f.cls[:, k].numpy() for k in range(SHOWN)})

def test_every_release_is_in_the_table():
    assert set(pd.read_csv(TABLE).encoder) == set(FOUND) and len(FOUND) > 12

@pytest.mark.parametrize("name", FOUND)
def test_weights_and_features_are_what_they_were(name):
    want, got = (t.reset_index(drop=True)
                 for t in (pd.read_csv(TABLE).query("encoder == @name"), rows(name, FOUND[name])))
    assert (file_hash(FOUND[name] / "encoder.safetensors")
            == read_manifest(FOUND[name])["outputs"]["encoder.safetensors"]["sha256"])
    assert (list(got) == list(want) and got.weights.equals(want.weights)
            and got.image.equals(want.image))
    numbers = got.columns[3:]
    scale = want.norm_cls.to_numpy()[:, None] / np.sqrt(192) # the usual size of a number
    norms = numbers.str.startswith("norm_")
    apart = np.abs(got[numbers] - want[numbers]).to_numpy() / np.where(norms, want[numbers], scale)
    assert got[numbers].isna().equals(want[numbers].isna()) and np.nanmax(apart) < NEAR, apart

if __name__ == "__main__":
    pd.concat([rows(*x) for x in FOUND.items()]).to_csv(TABLE, index=False, float_format="%.9g")
