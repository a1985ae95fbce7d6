"""How fast is CLIP training here beside `open_clip_train`, from image files to the optimiser step?

The same towers (open_clip's ViT without its extra norm before the blocks), batch, precision, images
and crops. The peer's own `main` runs unchanged: webdataset shards, its workers, its loop. Both
sides are timed alike, over whole steps after a warm-up and with data still coming: the rate in the
peer's log is of one step, its average counts the start. The peer runs twice, with the threads it
would have by itself and with ccd's. The peer does autocast on a processor; this script stops where
it does not. Needs webdataset<=0.2.86, the newest that the peer can read with, and braceexpand.

python bench/clip.py # both read PNG, ccd from its Arrow file, the peer from shards python
bench/clip.py --source shards # both read the same JPEG shards, written for the occasion python
bench/clip.py --source shards:FOLDER # shards you have, with .jpg or .png beside .txt"""
import argparse, io, json, tarfile, tempfile
from pathlib import Path
from harness import POLICIES, Clock, compare, fresh, interleaved, training_rate, write_csv

SMALL = {"control.vit.image_size": 112, "control.vit.patch_size": 16, "control.vit.width": 384,
         "control.vit.depth": 12,
         "control.vit.heads": 6, "clip.text.width": 256, "clip.text.depth": 4,
         "clip.embed_dim": 256, "data.size": 128}
SIZES = {"mini": {}, "small": SMALL}


def settings(size, batch, source, scenes):
    from ccd.settings import override
    from ccd.presets import preset
    return override(preset("mini"), **SIZES[size], **{"data.source": source, "data.scenes": scenes,
                    "control.batch_size": batch, "control.samples": 1000 * batch})


def ours(size, batch, steps, source, scenes):
    return training_rate("clip", settings(size, batch, source, scenes), batch, steps)


def write_shards(size, scenes, folder, suffix, shards=8):
    "The emoji world as tar files of pictures and captions, as img2dataset leaves them."
    from ccd.data.corpora import open_corpus
    corpus = open_corpus(settings(size, 64, "emoji", scenes).data).corpus
    files = [tarfile.open(Path(folder) / f"{k:05d}.tar", "w") for k in range(shards)]
    for i, row in enumerate(corpus):
        picture = io.BytesIO()
        row["image"].save(picture, "JPEG" if suffix == "jpg" else "PNG", quality=95)
        meta = json.dumps(dict(key=f"{i:09d}", caption=row["captions"][0]))
        for end, data in ((suffix, picture.getvalue()), ("txt", row["captions"][0].encode()),
                          ("json", meta.encode())):
            info = tarfile.TarInfo(f"{i:09d}.{end}")
            info.size = len(data)
            files[i % shards].addfile(info, io.BytesIO(data))
    for f in files: f.close()


def towers(s): # of ccd, as a model configuration of open_clip
    v, c = s.control.vit, s.clip.text
    return dict(embed_dim=s.clip.embed_dim,
                vision_cfg=dict(image_size=v.image_size, patch_size=v.patch_size, width=v.width,
                                layers=v.depth,
                                head_width=v.width // v.heads, no_ln_pre=True),
                text_cfg=dict(context_length=c.context, width=c.width, heads=c.heads,
                              layers=c.depth))


def theirs(config, shards, batch, steps, workers, device, precision, warmup=4):
    import torch # before anything that would set what is not set
    from open_clip import add_model_config
    from open_clip_train import main as program
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    train, clocks, dtypes = program.train_one_epoch, [], []
    def timed(model, data, *rest, **more):
        loader, first = data["train"].dataloader, model.visual.conv1
        clocks.append(Clock(loader, batch, steps, warmup, sync))
        clocks[0].num_batches, clocks[0].num_samples = loader.num_batches, loader.num_samples
        data["train"].dataloader = clocks[0]
        hook = first.register_forward_hook(lambda *x: (dtypes.append(str(x[-1].dtype)),
                                                       hook.remove()) and None)
        train(model, data, *rest, **more)
    program.train_one_epoch = timed
    ahead = 4 * workers # batches in preparation when the clock stops
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp) / "ccd-bench.json").write_text(json.dumps(config))
        add_model_config(Path(tmp) / "ccd-bench.json")
        program.main(["--model", "ccd-bench", "--train-data", shards, "--dataset-type",
                      "webdataset",
            "--train-num-samples", str(batch * (warmup + steps + ahead)), "--batch-size",
                      str(batch),
            "--workers", str(workers), "--precision", precision, "--device", device, "--epochs",
                      "1", "--logs", tmp,
            "--beta2", "0.98", "--wd", "0.05", "--grad-clip-norm", "1", "--aug-cfg",
                      "scale=(0.9, 1.0)"])
    if ("bf16" in precision) != (dtypes == ["torch.bfloat16"]):
        raise SystemExit(f"asked for {precision}, got {dtypes}")
    return clocks[0].rate


def case(size, batch, steps, a, folder):
    "Rates of ccd and of the peer with each number of workers and thread policy."
    from ccd.files import to_plain_dict
    from ccd.device import device, precision
    s, folder, source = settings(size, batch, "emoji", a.scenes), Path(folder), a.source
    if source.startswith("shards:"): folder = Path(source.partition(":")[2])
    else:
        fresh(__file__, "write_shards", size=size, scenes=a.scenes, folder=str(folder),
              suffix="jpg" if source == "shards" else "png")
        if source == "shards": source = f"shards:{folder}"
    peer = dict(config=towers(s), shards="::".join(map(str, sorted(folder.glob("*.tar")))),
                batch=batch, steps=steps,
                device=device().type, precision="amp_bf16" if precision() == "bf16" else "fp32")
    cases = {"ccd": lambda: fresh(__file__, "ours", size=size, batch=batch, steps=steps,
                                  source=source, scenes=a.scenes)}
    for w in a.workers:
        for policy, env in POLICIES.items():
            cases[f"open_clip_train, workers={w}, {policy}"] = \
                lambda w=w, env=env: fresh(__file__, "theirs", env, workers=w, **peer)
    return compare(f"{size}, batch {batch}, {to_plain_dict(s.control.vit)}",
                   interleaved(cases, a.rounds))


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", default="emoji", help="emoji, shards or shards:FOLDER")
    p.add_argument("--cases", nargs="+", default=["mini:64", "mini:256", "small:32"],
                   help="size:batch, of sizes mini and small")
    p.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="of the peer's loader")
    p.add_argument("--scenes", type=int, default=4096)
    p.add_argument("--steps", type=int, default=20, help="timed in each round")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", help="CSV file for the table")
    a, rows = p.parse_args(), []
    for c in a.cases:
        size, batch = c.split(":")
        with tempfile.TemporaryDirectory() as folder:
            rows += case(size, int(batch), a.steps, a, folder)
    if a.out: write_csv(a.out, rows)
    from ccd.device import hardware_info
    print(hardware_info())


if __name__ == "__main__": main()
