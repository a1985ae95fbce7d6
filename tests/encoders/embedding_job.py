"""An encoder with preprocessing of its own, slow enough to be killed; run as a script, it embeds
scenes until it is."""
import sys, time
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Fit:
    "Shorter side to 40 px, then the middle."
    size: int = 32

    def __call__(self, im):
        w, h = im.size
        im = im.resize((max(40, 40 * w // h), max(40, 40 * h // w)))
        x, y = (im.size[0] - self.size) // 2, (im.size[1] - self.size) // 2
        return np.asarray(im)[y:y + self.size, x:x + self.size]

def encoder(pause=0.0, seen=None, change=lambda v: v):
    "A small ViT; `seen` collects the rows of its batches."
    from ccd.settings import ViT
    from ccd.encoders.base import Encoder, EncoderCard, Features
    from ccd.training.towers import build_vit, weights_hash
    model = build_vit(ViT(32, 8, 48, 2, 3)).eval()
    def features(x):
        time.sleep(pause)
        if seen is not None: seen.append(len(x))
        return Features(cls=change(model(x)))
    e = Encoder(EncoderCard("job", "ViT", "none", weights_hash(model), size=32), features)
    e.fit = Fit()
    return e

def slow(): return encoder(0.1)

def images():
    from ccd.presets import preset
    from ccd.data.emoji.scenes import scenes
    return scenes(preset("smoke").data, "test")

if __name__ == "__main__":
    from ccd.encoders.extraction import embed
    embed(slow, images, sys.argv[1], flush=0.05)
