"""What the stages of a comparison hold beyond what the process has, in MB: one JSON object. Vectors
lie on disk, as always.

A process of its own: memory that another test freed would be used again, and not be seen."""
import ctypes, json, re, sys, threading
from pathlib import Path
import numpy as np, pandas as pd
from ccd.comparison import agreement, attribution, neighbors, search
from ccd import stats
from ccd.encoders.embeddings import Embeddings

N, FEW, D = 40_000, 6_000, 256 # rows; where all are compared with all; dimensions

def anonymous(): # MB; pages of files, such as memory maps, are not counted
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def growth(work):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    start, most, over = anonymous(), [0.0], threading.Event()
    def watch():
        while not over.wait(0.002): most[0] = max(most[0], anonymous())
    t = threading.Thread(target=watch); t.start()
    try: work()
    finally: over.set(); t.join()
    return round(most[0] - start, 1)

def encoder(home, name, n, seed):
    rng, path = np.random.default_rng(seed), Path(home) / f"{name}-{n}.npy"
    out = np.lib.format.open_memmap(path, "w+", np.float16, (n, D))
    for a in range(0, n, 4096): out[a:a + 4096] = rng.normal(size=out[a:a + 4096].shape) + 0.1
    del out
    who = np.arange(n)
    items = pd.DataFrame(dict(item_id=[f"p{k}" for k in who], family=[f"f{k}" for k in who // 2],
                              concept=[f"c{k % 9}" for k in who]))
    return Embeddings(np.load(path, mmap_mode="r"), items, dict(name=name))

def main(home):
    a, b = (encoder(home, x, FEW, k) for k, x in enumerate("ab"))
    big, rng = encoder(home, "big", N, 2), np.random.default_rng(3)
    half = np.maximum(np.arange(FEW) - FEW // 2, 0) # one family of half of all
    lists = [(np.arange(N)[:, None] + s * np.arange(1, 101)).astype(np.int32) % N for s in (3, 5)]
    i, j = np.sort(rng.integers(0, N, (2, 400)), 0)
    mined = pd.DataFrame(dict(i=i, j=j, similar_in="a"))[i < j]
    # libraries and their threads are there from now on
    small = neighbors.nearest_neighbors(a, 10), search.mine_pairs(a, b, 10)
    jobs = dict(
        neighbors=lambda: neighbors.nearest_neighbors(a, 100),
        apart=lambda: neighbors.nearest_neighbors(a, 10, half),
        overlap=lambda: neighbors.overlap_curve(*lists, np.arange(N) % 300, n_resamples=50,
                                                permutations=2),
        pairs=lambda: search.mine_pairs(a, b, 10),
        deals=lambda: agreement.factor_agreement(mined, big.items, ["concept"], 300),
        similarity=lambda: attribution._standard(big, i, j),
        bootstrap=lambda: stats.cluster_bootstrap(np.ones(N), np.arange(N), 300),
        equal=lambda: attribution._similarity_matched_pairs(big, np.array([0.0]), anchors=50))
    print(json.dumps({name: growth(work) for name, work in jobs.items()} | dict(small=len(small))))

if __name__ == "__main__": main(sys.argv[1])
