"""How do speed and memory of training grow with the size of the image, the batch and the depth of
the tower?

One line a cell: images per second of whole steps, and the memory that each image of a batch adds.
Every cell runs in a process of its own; its baseline is what the same model holds after a step with
the least batch, its peak the most it held afterwards. On a GPU the memory is what PyTorch allocated
there.

python bench/scale.py --out scale.csv"""
import argparse, resource, sys
from harness import fresh, write_csv

LEAST = 4 # images in the batch behind the baseline
MIDDLE = dict(size=48, batch=64, depth=4)
CELLS = ([MIDDLE | dict(size=n)
          for n in (32, 48, 64, 96)] + [MIDDLE | dict(batch=n) for n in (32, 128, 256)]
         + [MIDDLE | dict(depth=n) for n in (8, 12)])


def held(): # MB now and at most so far
    import torch
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6
    import psutil
    unit = 1 if sys.platform == "darwin" else 1024
    return (psutil.Process().memory_info().rss / 1e6,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def cell(objective, size, batch, depth, steps, scenes):
    from ccd.settings import override
    from ccd.presets import preset
    from ccd.data.corpora import open_corpus
    from ccd.training.loop import estimate_seconds
    def at(b):
        return override(preset("mini"),
                        **{"control.vit.image_size": size, "control.vit.depth": depth,
            "dino.local_size": size // 2, "data.size": size * 4 // 3, "data.scenes": scenes,
            "control.batch_size": b, "control.samples": 1000 * b})
    s = at(batch)
    corpus = open_corpus(s.data).corpus
    estimate_seconds(objective, at(LEAST), corpus, steps=2)
    before, _ = held()
    seconds = estimate_seconds(objective, s, corpus, steps)
    _, peak = held()
    return dict(objective=objective, size=size, batch=batch, depth=depth,
                images_per_second=round(s.control.samples / seconds, 1), peak_mb=round(peak),
                baseline_mb=round(before),
                mb_per_image=round((peak - before) / (batch - LEAST), 3))


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", help="a csv to write")
    p.add_argument("--objectives", nargs="+", default=["clip", "dino"])
    p.add_argument("--steps", type=int, default=6, help="timed in each cell")
    p.add_argument("--scenes", type=int, default=1024)
    p.add_argument("--cells", type=int, default=len(CELLS),
                   help="only the first so many of each objective")
    a, rows = p.parse_args(), []
    for objective in a.objectives:
        for c in CELLS[:a.cells]:
            rows.append(fresh(__file__, "cell", objective=objective, **c, steps=a.steps,
                              scenes=a.scenes))
            if len(rows) == 1: print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
            print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    if a.out: write_csv(a.out, rows)
    from ccd.device import hardware_info
    print(hardware_info())


if __name__ == "__main__": main()
