"""How long does the exact search over all pairs take beside the bare matrix products, and beside
other ways?

Two encoders of n images. The measure is the bare float32 product of the two encoders' joined
vectors over the upper triangle: less arithmetic gives no exact score of every pair. Every way must
give the same pairs; what is approximate says how many of the true top 1,000 it finds.

python bench/pairs.py # 50,000 images, 384 + 384 dimensions python bench/pairs.py --n 20000 --full
"""
import argparse, os, time
import numpy as np
import pandas as pd
from harness import interleaved, write_csv

TOP = 1_000


def encoder(n, d, seed, shared):
    """Vectors as networks leave them: a few strong directions, a mean that is not zero, half
    precision."""
    from ccd.encoders.embeddings import Embeddings
    rng = np.random.default_rng(seed)
    x = (shared @ rng.normal(size=(shared.shape[1], d)) + 3 * rng.normal(size=(n, d))
         + rng.normal(size=d))
    items = pd.DataFrame(dict(item_id=np.arange(n).astype(str)))
    return Embeddings(x.astype(np.float16), items, dict(name=f"encoder {seed}"))


def bare(u, tile=4096):
    import torch
    n, best = len(u), 0.0
    for r in range(0, n, tile):
        for c in range(r, n, tile): best = torch.mm(u[r:r + tile], u[c:c + tile].T)
    return best


def plain_tiles(ua, ub, m, room=TOP, tile=2048):
    """The usual way: two products a tile, standardize, subtract, keep what beats a running
    threshold; both directions."""
    import torch
    n, kept = len(ua), {1: torch.empty(0), -1: torch.empty(0)}
    for r in range(0, n, tile):
        for c in range(r, n, tile):
            s = (ua[r:r + tile] @ ua[c:c + tile].T
                 - m.mean[0]) / m.std[0] - (ub[r:r + tile] @ ub[c:c + tile].T
                                            - m.mean[1]) / m.std[1]
            if r == c: s = s.triu(1)
            for sign in kept:
                floor = kept[sign].min() if len(kept[sign]) >= room else torch.tensor(0.0)
                new = (sign * s)[sign * s > floor]
                if len(new):
                    kept[sign] = torch.cat([kept[sign],
                                            new]).topk(min(room, len(kept[sign]) + len(new)))[0]
    return kept


def random_blocks(ua, ub, truth, recall, block=10_000, tile=2048):
    "Random blocks of pairs by both raw cosines, until so much of the true top has been met."
    n, rng, met, pairs = len(ua), np.random.default_rng(0), np.zeros(len(truth), bool), 0
    while met.mean() < recall:
        i, j = (rng.choice(n, block) for _ in range(2))
        for r in range(0, block, tile):
            for c in range(0, block, tile):
                a, b = i[r:r + tile], j[c:c + tile]
                hit = (ua[a] @ ua[b].T > 0.7) & (ub[a] @ ub[b].T < 0.5)
                pairs += hit.numel()
        rows, cols = np.isin(truth, i), np.isin(truth, j)
        met |= (rows[:, 0] & cols[:, 1]) | (rows[:, 1] & cols[:, 0])
    return pairs


def ways(a, b, full):
    "Name -> function; and what each found, filled as they run."
    import torch
    from ccd.comparison import products, search
    m, found = products.pair_moments(a, b), {}
    ua, ub = (search._normalized_float32(e) for e in (a, b))
    joined = torch.cat([ua, ub], 1)

    def ours(name, precision):
        def run():
            os.environ["CCD_PRECISION"] = precision
            found[name] = search.mine_pairs(a, b, TOP)
        return run

    def approximate(name, **how):
        def run():
            found[name] = search.mine_pairs(a, b, TOP,
                                            engine=lambda *x, **k: search.search_faiss(*x, **how,
                                                                                       **k))
        return run
    cases = {"bare float32 products": lambda: bare(joined),
             "ccd, float32": ours("ccd, float32", "fp32"),
             "ccd, bf16 and float64": ours("ccd, bf16 and float64", "bf16")}
    if products._has_fast_int8():
        cases["ccd, 8 bits and float64"] = ours("ccd, 8 bits and float64", "")
    cases |= {"plain tiles, running threshold": lambda: plain_tiles(ua, ub, m),
             "faiss, 16 of its lists": approximate("faiss, 16 of its lists", probes=16),
             "faiss, 64 of its lists": approximate("faiss, 64 of its lists", probes=64)}
    if full:
        cases["faiss, exhaustive"] = approximate("faiss, exhaustive", cells=1, probes=1)
        cases["numpy, both whole matrices"] = lambda: np.partition((ua.numpy() @ ua.numpy().T
                                                                    - ub.numpy()
                                                                    @ ub.numpy().T).ravel(), -TOP)
    def blocks():
        t = found["ccd, float32"]; t = t[t.similar_in == "a"]
        random_blocks(ua, ub, t[["i", "j"]].values, 0.9)
    cases["random blocks, until 90 % are met"] = blocks
    return cases, found


def seconds(run):
    def timed():
        start = time.perf_counter(); run()
        return time.perf_counter() - start
    return timed


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=50_000, help="images")
    p.add_argument("--d", type=int, nargs=2, default=(384, 384),
                   help="dimensions of the two encoders")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--full", action="store_true",
                   help="also what holds whole matrices, or searches them exhaustively")
    p.add_argument("--only", nargs="*", help="ways whose names contain one of these words")
    p.add_argument("--out", help="CSV file for the table")
    o = p.parse_args()
    from ccd.device import disable_malloc_trim, hardware_info
    disable_malloc_trim()
    shared = np.random.default_rng(9).normal(size=(o.n, 32))
    a, b = (encoder(o.n, d, seed, shared) for seed, d in enumerate(o.d))
    cases, found = ways(a, b, o.full)
    if o.only:
        cases = {k: f
                 for k, f in cases.items() if any(w in k for w in ("bare", "float32", *o.only))}
    took = interleaved({k: seconds(f) for k, f in cases.items()}, o.rounds)
    best, base, rows = found["ccd, float32"], took["bare float32 products"], []
    def ids(t):
        return set(zip(t.similar_in, t.i, t.j))
    for name, s in took.items():
        recall = len(ids(best) & ids(found[name])) / len(best) if name in found else np.nan
        if name.startswith("ccd") and not found[name].equals(best):
            raise SystemExit(f"{name} gives other pairs or scores")
        rows.append(dict(method=name, n=o.n, seconds=round(s, 2), time_vs_gemm=round(s / base, 2),
                         recall=recall))
        print(f"  {name:<36} {s:7.1f} s   {s / base:5.2f} of the bare products"
              + (f"   {recall:.1%} of the pairs" if name in found else ""))
    if o.out: write_csv(o.out, rows)
    print(hardware_info())


if __name__ == "__main__": main()
