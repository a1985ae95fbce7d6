"""How long do 10,000 bootstrap draws of a whole benchmark take, beside a plain numpy loop?

VMCBench's size: 9,000 questions in 20 subsets, 8 models, all drawn together, one picture a
question; every subset, category and overall mean of every draw. The plain loop draws the questions
of each subset by `integers` and takes the mean of the rows, once per draw. Both must give the same
intervals within their Monte Carlo error.

python bench/vqa.py # 9,000 questions, 20 subsets, 8 models python bench/vqa.py --per-picture 3 #
three questions a picture: whole pictures are drawn"""
import argparse, resource, time
import numpy as np
from harness import POLICIES, fresh, interleaved, write_csv


def answers(per_picture):
    """Right or wrong of 8 models of unlike skill; [questions, models], subset and cluster of each
    question."""
    rng = np.random.default_rng(0)
    subset = np.repeat(np.arange(20), 450)
    cluster = np.arange(9000) // per_picture
    hard = rng.normal(size=9000)[:, None]
    return ((hard + rng.normal(size=(9000, 8)) < np.linspace(-0.5, 0.5, 8)).astype(float), subset,
            cluster)


def ours(draws, per_picture):
    import pandas as pd
    from ccd.vqa.benchmarks.questions import VMCBENCH
    from ccd.vqa.statistics.aggregation import Scores, aggregate, bootstrap_sums
    x, subset, cluster = answers(per_picture)
    names = [s for subsets in VMCBENCH.values() for s in subsets]
    cells = pd.DataFrame(dict(leaf=names, cell="", inside="micro"))
    s = Scores(x, subset, cluster, cells, [(str(k), 0) for k in range(8)])
    bootstrap_sums(s, 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, work = time.perf_counter(), time.process_time()
    drawn = aggregate(*bootstrap_sums(s, draws), s.cells, VMCBENCH)
    ends = {k: np.quantile(v, [0.025, 0.975], axis=0) for k, v in drawn.items()}
    seconds, work = time.perf_counter() - start, time.process_time() - work
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return dict(seconds=seconds, work=work, memory=more,
                ends=ends["overall", "overall", "macro"].tolist())


def plain(draws, per_picture):
    x, subset, cluster = answers(per_picture)
    rng, parts = np.random.default_rng(1), []
    for s in range(20):
        rows = [np.flatnonzero(cluster == c) for c in np.unique(cluster[subset == s])]
        parts.append(np.stack(rows))
    start, work, means = time.perf_counter(), time.process_time(), []
    for _ in range(draws):
        each = [x[rows[rng.integers(len(rows), size=len(rows))].ravel()].mean(0) for rows in parts]
        means.append(np.mean(each, axis=0))
    ends = np.quantile(means, [0.025, 0.975], axis=0)
    return dict(seconds=time.perf_counter() - start, work=time.process_time() - work,
                ends=ends.tolist())


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--draws", type=int, default=10_000)
    p.add_argument("--per-picture", type=int, default=1)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", default="results/bench/vqa.csv")
    a = p.parse_args()
    last = {}

    def run(name):
        last[name] = fresh(__file__, name, POLICIES["its own threads"], draws=a.draws,
                           per_picture=a.per_picture)
        return last[name]["seconds"]
    seconds = interleaved({n: lambda n=n: run(n) for n in ("ours", "plain")}, a.rounds)
    gap = np.abs(np.subtract(last["ours"]["ends"], last["plain"]["ends"])).max()
    if gap > 0.002: raise SystemExit(f"the intervals differ by {gap:.4f}")
    ratio = seconds["plain"] / seconds["ours"]
    print(f"\n{a.draws:,} draws, 9,000 questions, 20 subsets, 8 models, {a.per_picture} questions "
          "a picture")
    work = {n: f"{last[n]['work']:6.2f} s of processor" for n in last}
    print(f"  ccd         {seconds['ours']:6.2f} s   {work['ours']}   {last['ours']['memory']:.0f} "
          "MB more at its peak")
    print(f"  numpy loop  {seconds['plain']:6.2f} s   {work['plain']}   ccd is {ratio:.1f} times "
          "as fast")
    write_csv(a.out, [dict(method=n, seconds=round(s, 2), cpu_seconds=round(last[n]["work"], 2),
                           speedup_vs_plain=round(seconds["plain"] / s, 2),
                           questions_per_image=a.per_picture, n_resamples=a.draws)
                      for n, s in seconds.items()])


if __name__ == "__main__": main()
