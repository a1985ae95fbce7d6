"""How fast do JPEGs on disk become vectors here, beside the loops that people write with
transformers and timm?

Equal model, precision, preprocessing and files; `--what same` compares the vectors of both sides.
`ccd` is timed over all of `embed`, from the fingerprint of the corpus to the sealed folder; its
corpus, which has opened every file once to know its pixels, is made before the clock starts, once
for all encoders. The loops keep their vectors in memory. Each measurement is a process of its own;
the loops run twice, with the threads they would have by themselves and with ccd's.

python bench/embedding.py # ViT-Ti/16 and ViT-S/16 at 224, fp32 and bf16 python bench/embedding.py
--cases tiny:bf16 --files 256 --picture 2000x1500 python bench/embedding.py --what same # the least
cosine between the two sides python bench/embedding.py --what batches # where ccd's time goes: rows
in a batch, memory, threads python bench/embedding.py --what draft # quicker decoding of large
JPEGs, and its cosine"""
import argparse, statistics, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from harness import POLICIES, compare, fresh, interleaved, write_csv

BATCH, WARM = 64, 16 # rows in a batch of the loops; files before the clock starts
WIDTH, HEADS = dict(tiny=192, small=384), dict(tiny=3, small=6)


def write_jpegs(folder, n, width=500, height=375):
    "Emoji scenes on a photograph's scale, with its noise; quality 90."
    import numpy as np
    from PIL import Image
    from ccd.presets import preset
    from ccd.data.emoji.scenes import scenes
    rng, corpus, sizes = np.random.default_rng(0), scenes(preset("smoke").data), []
    for i in range(n):
        w, h = (width, height) if i % 4 else (height, width)
        im = corpus[i % len(corpus)]["image"].convert("RGB").resize((w, h),
                                                                    Image.Resampling.BICUBIC)
        x = np.asarray(im, np.float32) + rng.normal(0, 6, (h, w, 1))
        Image.fromarray(x.clip(0,
                               255).astype(np.uint8)).save(Path(folder) / f"{i:05d}.jpg",
                                                           quality=90)
        sizes.append((Path(folder) / f"{i:05d}.jpg").stat().st_size)
    return statistics.mean(sizes)


@dataclass(frozen=True)
class Fit:
    "Resized, and its middle taken, in one step: Pillow weighs the same pixels for it as in two."
    size: int
    shorter: int # side after resizing, px; 0: squeezed to a square
    filter: int # of Pillow

    def __call__(self, im):
        import numpy as np
        (w, h), s = im.size, self.size
        if not self.shorter: return np.asarray(im.resize((s, s), self.filter))
        a, b = ((self.shorter, int(self.shorter * h / w)) if w <= h
                else (int(self.shorter * w / h), self.shorter))
        x, y = round((a - s) / 2), round((b - s) / 2)
        box = (x * w / a, y * h / b, (x + s) * w / a, (y + s) * h / b)
        return np.asarray(im.resize((s, s), self.filter, box=box))


def hf_model(size, dtype):
    import torch
    from transformers import ViTConfig, ViTModel
    torch.manual_seed(0)
    d = WIDTH[size]
    return ViTModel(ViTConfig(hidden_size=d, intermediate_size=4 * d,
                              num_attention_heads=HEADS[size]),
                    add_pooling_layer=False).eval().to(dtype)


def timm_model(size, dtype):
    import timm, torch
    torch.manual_seed(0)
    return timm.create_model(f"vit_{size}_patch16_224", num_classes=0).eval().to(dtype)


def precise(precision):
    import torch
    return dict(fp32=torch.float32, bf16=torch.bfloat16)[precision]


def files_of(folder): return sorted(Path(folder).glob("*.jpg"))


def rate(run, folder):
    "Images per second of a function of files, and its vectors."
    run(files_of(folder)[:WARM])
    start = time.perf_counter()
    v = run(files_of(folder))
    return len(files_of(folder)) / (time.perf_counter() - start), v


def kept(found, keep): # the rate; the vectors, where they are to be compared
    import numpy as np
    if keep: np.save(keep, np.asarray(found[1], np.float32))
    return found[0]


def transformers_loop(size, precision, folder, keep=None):
    import torch
    from PIL import Image
    from transformers import ViTImageProcessor
    model, processor, dtype = (hf_model(size, precise(precision)), ViTImageProcessor(),
                               precise(precision))
    @torch.inference_mode()
    def run(files):
        out = []
        for a in range(0, len(files), BATCH):
            images = [Image.open(p).convert("RGB") for p in files[a:a + BATCH]]
            inputs = processor(images=images, return_tensors="pt").to(dtype)
            out.append(model(**inputs).last_hidden_state[:, 0].float())
        return torch.cat(out)
    return kept(rate(run, folder), keep)


class Files: # a map-style dataset, as everyone writes it
    def __init__(self, files, transform): self.files, self.transform = files, transform
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        from PIL import Image
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def timm_loop(size, precision, folder, workers, keep=None):
    import timm, torch
    from torch.utils.data import DataLoader
    model, dtype = timm_model(size, precise(precision)), precise(precision)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    @torch.inference_mode()
    def run(files):
        loader = DataLoader(Files(files, transform), BATCH, num_workers=workers)
        return torch.cat([model.forward_features(x.to(dtype))[:, 0].float() for x in loader])
    return kept(rate(run, folder), keep)


def ours(size, precision, folder, library, keep=None, keep_memory=True, **how):
    from PIL.Image import Resampling
    from ccd.device import disable_malloc_trim
    from ccd.encoders.embeddings import load_embeddings
    from ccd.encoders.extraction import embed
    from ccd.encoders.base import Encoder, EncoderCard, Features
    from ccd.data.images import load_folder as opened
    if keep_memory: disable_malloc_trim()
    dtype = precise(precision)
    if library == "timm":
        model, fit = timm_model(size, dtype), Fit(224, 248, Resampling.BICUBIC)
        def read(x):
            return Features(cls=model.forward_features(x.to(dtype))[:, 0])
    else:
        model, fit = hf_model(size, dtype), Fit(224, 0, Resampling.BILINEAR)
        def read(x):
            return Features(cls=model(pixel_values=x.to(dtype)).last_hidden_state[:, 0])
    e, corpus = Encoder(EncoderCard(library, size, "none", "0", size=224, mean=(.5,) * 3,
                                    std=(.5,) * 3), read), opened(folder).corpus
    e.fit = fit
    with tempfile.TemporaryDirectory() as out:
        def run(files):
            return load_embeddings(embed(e, corpus.select(range(len(files))),
                                         Path(out) / str(len(files)),
                                         dtype="float32", **how)).vectors
        return kept(rate(run, folder), keep)


def cosine(folder, a, b):
    "The least cosine between two runs' vectors of the files, in a process each."
    import numpy as np
    x, y = [], []
    for (name, arguments), out in ((a, x), (b, y)):
        with tempfile.TemporaryDirectory() as tmp:
            fresh(__file__, name, folder=str(folder), keep=f"{tmp}/v.npy", **arguments)
            v = np.load(f"{tmp}/v.npy")
            out.append(v / np.linalg.norm(v, axis=1, keepdims=True))
    return float((x[0] * y[0]).sum(1).min())


def beside_loops(a, folder):
    rows = []
    for c in a.cases:
        size, precision = c.split(":")
        at = dict(size=size, precision=precision, folder=folder)
        for library, loops in (("transformers",
                                {"transformers, plain loop": ("transformers_loop", {})}),
                               ("timm",
                                {f"timm, DataLoader, workers={w}": ("timm_loop", dict(workers=w))
                                 for w in (0, 2)})):
            cases = {"ccd": lambda: fresh(__file__, "ours", library=library, **at)}
            for name, (f, more) in loops.items():
                for policy, env in POLICIES.items():
                    cases[f"{name}, {policy}"] = lambda f=f, env=env, more=more: fresh(__file__, f,
                                                                                       env, **at,
                                                                                       **more)
            rows += compare(f"ViT-{size}/16, {precision}, {library}, JPEGs {a.picture}",
                            interleaved(cases, a.rounds))
    return rows


def by_batches(a, folder):
    "ccd alone: rows in a batch, memory kept or given back."
    rows = []
    for c in a.cases:
        size, precision = c.split(":")
        at = dict(size=size, precision=precision, folder=folder, library="timm")
        cases = {f"batch {b}": lambda b=b: fresh(__file__, "ours", batch=b, **at)
                 for b in (4, 8, 16, 32, 64)}
        cases["batch 16, memory given back"] = lambda: fresh(__file__, "ours", batch=16,
                                                             keep_memory=False, **at)
        rows += compare(f"ViT-{size}/16, {precision}", interleaved(cases, a.rounds), "batch 16")
    return rows


def by_draft(a, folder):
    rows = []
    for c in a.cases:
        size, precision = c.split(":")
        at = dict(size=size, precision=precision, library="timm")
        cases = {n: lambda d=d: fresh(__file__, "ours", folder=folder, draft=d, **at)
                 for n, d in (("ccd", False), ("draft", True))}
        least = cosine(folder, ("ours", at), ("ours", at | dict(draft=True)))
        rows += compare(f"ViT-{size}/16, {precision}, JPEGs {a.picture}; least cosine of draft "
                        f"{least:.5f}",
                        interleaved(cases, a.rounds))
    return rows


def same(a, folder):
    rows = []
    for c in a.cases:
        size, precision = c.split(":")
        at = dict(size=size, precision=precision)
        for library, loop in (("transformers", ("transformers_loop", at)),
                              ("timm", ("timm_loop", at | dict(workers=0)))):
            least = cosine(folder, ("ours", at | dict(library=library)), loop)
            print(f"  ViT-{size}/16, {precision}, {library}: least cosine {least:.6f}", flush=True)
            rows.append(dict(case=f"ViT-{size}/16, {precision}, {library}",
                             least_cosine=round(least, 6)))
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--what", choices=["loops", "same", "batches", "draft"], default="loops")
    p.add_argument("--cases", nargs="+",
                   default=["tiny:fp32", "tiny:bf16", "small:fp32", "small:bf16"])
    p.add_argument("--files", type=int, default=512)
    p.add_argument("--picture",
                   help="px, such as 2000x1500; otherwise 500x375, and 2000x1500 for draft")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", help="CSV file for the table")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        a.picture = a.picture or ("2000x1500" if a.what == "draft" else "500x375")
        size = tuple(map(int, a.picture.split("x")))
        print(f"{a.files} JPEGs of {size[0]} x {size[1]}, "
              f"{write_jpegs(folder, a.files, *size) / 1000:.0f} kB on average")
        rows = dict(loops=beside_loops, same=same, batches=by_batches,
                    draft=by_draft)[a.what](a, folder)
    if a.out: write_csv(a.out, rows)
    from ccd.device import hardware_info
    print(hardware_info())


if __name__ == "__main__": main()
