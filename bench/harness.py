"""What the benchmarks against others share: fresh processes, thread policies, interleaved rounds."""  # noqa: E501
import itertools, json, os, statistics, subprocess, sys, time
from pathlib import Path

# What ccd sets in its own processes: threads that wait soon sleep, and freed memory is kept.
CCD = dict(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="1000",
           MALLOC_TRIM_THRESHOLD_=str(1 << 30), MALLOC_MMAP_THRESHOLD_=str(1 << 30))
POLICIES = {"its own threads": {}, "ccd's threads": CCD}


def fresh(script, function, env=None, **arguments):
    """What a function of a script returns in a process of its own, into which no setting of ours
    leaks."""
    clean = {k: v for k, v in os.environ.items() if k not in CCD} | (env or {})
    program = ("import json, sys; sys.path.insert(0, sys.argv[1]);"
               f"from {Path(script).stem} import {function} as f; "
               "print('\\n' + json.dumps(f(**json.loads(sys.argv[2]))))")
    done = subprocess.run([sys.executable, "-P", "-c", program, str(Path(script).parent),
                           json.dumps(arguments)],
                          env=clean, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function}({arguments}) ended with "
                           f"{done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def interleaved(cases, rounds):
    """The median answer of each case: name -> function.

    In turn, so that a noisy machine is noisy for all."""
    found = {name: [] for name in cases}
    for k in range(rounds):
        for name, measure in cases.items():
            found[name].append(measure())
            print(f"  round {k + 1}/{rounds}  {name}: {found[name][-1]:.1f}", file=sys.stderr,
                  flush=True)
    return {name: statistics.median(v) for name, v in found.items()}


def compare(title, rates, ours="ccd"):
    """Print images per second, and how many times a peer's rate ours is; the same as rows of a
    table."""
    print(f"\n{title}")
    for name, r in rates.items():
        print(f"  {name:<42} {r:8.1f} images/s"
              + (f"   ccd is {rates[ours] / r:.2f} times as fast" if name != ours else ""))
    sys.stdout.flush()
    return [dict(case=title, program=n, images_per_second=round(r, 1),
                 ccd_speedup=round(rates[ours] / r, 2)) for n, r in rates.items()]


class Clock:
    """Images per second of a loop over batches, from the end of the warm-up to the last batch asked
    for."""
    def __init__(self, batches, batch, steps, warmup=4, sync=lambda: None):
        self.batches, self.batch, self.steps, self.warmup, self.sync = (batches, batch, steps,
                                                                        warmup, sync)

    def __len__(self): return self.warmup + self.steps

    def __iter__(self):
        source = iter(self.batches)
        for k in range(len(self)):
            if k == self.warmup: self.sync(); start = time.perf_counter()
            yield next(source)
        self.sync()
        self.rate = self.batch * self.steps / (time.perf_counter() - start)


def sync():
    "What waits until the device is done."
    import torch
    return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None


def training_rate(objective, settings, batch, steps, made=None):
    """Images per second of ccd's own steps on its own batches; `made`: what to learn from in place
    of making views."""
    from ccd.data.corpora import open_corpus
    from ccd.training.trainer import Trainer
    trainer = Trainer(objective, settings, open_corpus(settings.data).corpus)
    clock = Clock(None, batch, steps, sync=sync())
    clock.batches = trainer.feed.batches(0, len(clock))
    if made is not None:
        trainer.model.batch = lambda _: made
        clock.batches = itertools.repeat(next(clock.batches))
    for k, shown in enumerate(clock): trainer.step(k, shown)
    return clock.rate


def write_csv(path, rows):
    "A table, and beside it what measured it: the command, the machine and the hash."
    import pandas as pd
    from ccd.files import file_hash, write_json
    from ccd.device import hardware_info
    from ccd.runs import code_revision
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    write_json(path.with_suffix(".json"),
               dict(command=" ".join(["python", *sys.argv]), machine=hardware_info(),
               code=code_revision(), sha256=file_hash(path)))
    print(f"wrote {path}")
