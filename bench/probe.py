"""How long does a linear probe take beside the protocol of the paper's code, and beside scikit-learn?

100,000 rows of 768 features, 100 classes: means on a curved sheet of twelve dimensions, and correlated noise. The whole
path of ridges is timed, the choice on validation rows included. The protocols run on features kept in memory, which is
kinder to them than their own loader; an epoch through such a loader is timed beside it. scikit-learn solves the same
problem at one ridge as `fit_logistic`, both in float32 on features that are standardized beforehand. Beside the seconds
stand those that the cores worked, which a busy machine changes less.

    python bench/probe.py                 # about a quarter of an hour on two cores
    python bench/probe.py --n 20000 --epochs 10
"""  # noqa: E501
import argparse, os, statistics, time
from dataclasses import replace
import numpy as np
import pandas as pd
from harness import interleaved, write_csv

OURS, WRITTEN, CORRECTED = ("ccd, the path of ridges", "the authors' protocol, as written",
                            "the authors' protocol, corrected")
LOADER, ONE, SCIKIT = ("an epoch through a loader", "ccd, one ridge, float32",
                       "scikit-learn, one ridge")


def problem(n, d=768, classes=100, latent=12, seed=0):
    rng = np.random.default_rng(seed)
    place, first = rng.normal(size=(classes, latent)), rng.normal(size=(latent, 256)) / latent**0.5
    second, axes = (rng.normal(size=(256, d)) / 16,
                    np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32))
    spectrum, y = (2 * np.arange(1, d + 1, dtype=np.float32)**-0.5,
                   rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 20.0))))
    x = (np.tanh((place[y] + rng.normal(size=(n, latent))) @ first) @ second
         + rng.normal(size=d)).astype(np.float32)
    for a in range(0, n, 10_000):
        x[a:a
          + 10_000] += (rng.standard_normal((len(x[a:a + 10_000]), d),
                                            np.float32) * spectrum) @ axes.T
    return x, np.array([f"class {k:03d}" for k in range(classes)])[y]


def loader_epoch(z, code):
    "An epoch through `DataLoader(TensorDataset)` with four workers."
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    data = DataLoader(TensorDataset(torch.from_numpy(z), torch.from_numpy(code)), 1024,
                      shuffle=True, num_workers=4)
    layer = torch.nn.Linear(z.shape[1], code.max() + 1)
    opt = torch.optim.AdamW(layer.parameters(), 1e-3)
    for x, y in data:
        opt.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        opt.step()


def penalised(w, z, code, ridge):
    "The loss both minimise, in float64."
    total = 0.0
    for a in range(0, len(z), 10_000):
        s = z[a:a + 10_000].astype(np.float64) @ w[:-1] + w[-1]
        top = s.max(1)
        total += (np.log(np.exp(s - top[:, None]).sum(1)) + top
                  - s[np.arange(len(s)), code[a:a + 10_000]]).sum()
    return total / len(z) + ridge / 2 * float((w[:-1].astype(np.float64) ** 2).sum())


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=100_000,
                   help="rows to train on; a tenth as many choose, a tenth test")
    p.add_argument("--ridge", type=float, default=0.01, help="where scikit-learn is met")
    p.add_argument("--rounds", type=int, default=3,
                   help="of what takes seconds; the protocols run once")
    p.add_argument("--epochs", type=int, default=50,
                   help="of the protocols, and a tenth in each trial")
    p.add_argument("--out", help="CSV file for the table")
    o = p.parse_args()
    from sklearn.linear_model import LogisticRegression
    from ccd.device import disable_malloc_trim, hardware_info
    from ccd.probing.linear import fit_logistic, linear_probe
    from ccd.probing.protocols import PROTOCOLS, sgd_probe
    disable_malloc_trim()
    x, y = problem(o.n + 2 * (o.n // 10))
    train, val, test = np.split(np.arange(len(x)), [o.n, o.n + o.n // 10])
    mean, std = x[train].mean(0), x[train].std(0)
    z, (_, code) = (x[train] - mean) / std, np.unique(y[train], return_inverse=True)
    made, took, worked = {}, {}, {}

    def timed(name, make):
        def run():
            # of processes that it starts, too
            start, before = time.perf_counter(), sum(os.times()[:4])
            made[name] = make()
            worked.setdefault(name, []).append(sum(os.times()[:4]) - before)
            return time.perf_counter() - start
        return run
    def shorter(n):
        return replace(PROTOCOLS[n], epochs=o.epochs, trial_epochs=max(1, o.epochs // 10),
                       warmup_epochs=o.epochs // 5)
    theirs = LogisticRegression(C=1 / (o.n * o.ridge), max_iter=1000)
    quick = {OURS: timed(OURS, lambda: linear_probe(x, y, train, val)),
             LOADER: timed(LOADER, lambda: loader_epoch(z, code)),
             ONE: timed(ONE, lambda: fit_logistic(z, code, code.max() + 1, o.ridge)),
             SCIKIT: timed(SCIKIT, lambda: theirs.fit(z, code))}
    slow = {n: timed(n, lambda k=k: sgd_probe(x, y, train, val, test, shorter(k)))
            for n, k in ((WRITTEN, "as written"), (CORRECTED, "corrected"))}
    took = interleaved(quick, o.rounds) | interleaved(slow, 1)
    epochs = 12 * max(1, o.epochs // 10) + o.epochs
    rows, right = [], lambda n, part: float((made[n].predict(x[part]) == y[part]).mean())
    for name in (OURS, WRITTEN, CORRECTED):
        rows.append(dict(method=name, n=o.n, seconds=took[name],
                         ccd_speedup=took[name] / took[OURS], val_top1=right(name, val),
                         test_top1=right(name, test)))
    through = f"the same through its loader ({epochs} epochs, reckoned from one)"
    took[through], worked[through] = (epochs * took[LOADER],
                                      [epochs * statistics.median(worked[LOADER])])
    rows.append(dict(method=through, n=o.n, seconds=took[through],
                     ccd_speedup=took[through] / took[OURS]))
    losses = {ONE: made[ONE], SCIKIT: np.vstack([theirs.coef_.T, theirs.intercept_])}
    for name, w in losses.items():
        rows.append(dict(method=name, n=o.n, seconds=took[name], ccd_speedup=took[name] / took[ONE],
                         loss=penalised(w, z, code, o.ridge)))
    for r in rows: r["cpu_seconds"] = statistics.median(worked[r["method"]])
    table = pd.DataFrame(rows).round(dict(seconds=1, cpu_seconds=1, ccd_speedup=2, val_top1=4,
                                          test_top1=4, loss=6))
    print(table.to_string(index=False), made[OURS].path.round(4).to_string(index=False),
          hardware_info(), sep="\n\n")
    if o.out: write_csv(o.out, table)


if __name__ == "__main__": main()
