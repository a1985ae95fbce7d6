"Families of very unequal size: what they count as, and what intervals over them are worth."
import numpy as np, pytest
from ccd.data.emoji.drawings import drawings
from ccd.stats import cluster_bootstrap, effective_groups, group_mean

pytestmark = pytest.mark.numeric

@pytest.fixture(scope="module")
def sizes():
    "Drawings in each family of held-out concepts."
    table, _ = drawings()
    return table[table.split == "test"].groupby("family").size().values

def test_groups_count_as_many_of_equal_size():
    assert effective_groups(np.repeat(list("abcd"), 7)) == pytest.approx(4)
    assert effective_groups(np.array(["NA", "nan", "1", "01"])) == pytest.approx(4)
    n, rng = np.array([9, 1, 4, 2]), np.random.default_rng(0)
    # the variance of the weighted mean is that of so many equal families
    noise = rng.normal(size=(200_000, 4))
    assert (1 / (noise @ (n / n.sum())).var()
            == pytest.approx(effective_groups(np.repeat(np.arange(4), n)), rel=0.02))

def test_the_mean_over_groups_weighs_each_the_same():
    family, right = np.array(list("aaaaaaaabc")), np.array([0] * 8 + [1, 1])
    mean, lo, hi = group_mean(right, family, 2_000)
    assert mean == pytest.approx(2 / 3) and 0 <= lo <= mean <= hi <= 1
    alone = np.arange(len(right)) # where each is a group of its own it is the plain mean
    assert group_mean(right, alone, 500) == pytest.approx(cluster_bootstrap(right, alone, 500))

def test_the_drawings_count_as_a_hundred_families(sizes):
    family = np.repeat(np.arange(len(sizes)), sizes)
    assert sizes.sum() / len(sizes) > 5 and 80 < effective_groups(family) < 120 < 300 < len(sizes)

def drawn_again(sizes, times, seed):
    """How many are right in each family, and how many there are, [times, families]; each has a
    chance of its own, 0.4 on average."""
    rng = np.random.default_rng(seed)
    n = rng.choice(sizes, (times, len(sizes)))
    return rng.binomial(n, rng.beta(0.4, 0.6, n.shape)), n

def test_intervals_cover_what_is_said_beside_them(sizes):
    times, draws, truth = 1_500, 400, 0.4
    right, n = drawn_again(sizes, times, 0)
    # as `cluster_draws` draws
    how = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)),
                                               draws)
    def ends(means):
        return np.quantile(means, (0.025, 0.975), axis=0)
    plain, macro = ends((how @ right.T) / (how @ n.T)), ends(how @ (right / n).T / len(sizes))
    family = np.repeat(np.arange(len(sizes)), n[0])
    items = np.concatenate([np.arange(k) < r for r, k in zip(right[0], n[0])])
    assert cluster_bootstrap(items, family, draws)[1:] == pytest.approx(plain[:, 0])
    assert group_mean(items, family, draws)[1:] == pytest.approx(macro[:, 0])
    def share(e):
        return ((e[0] <= truth) & (truth <= e[1])).mean()
    error = 3 * (0.92 * 0.08 / times)**0.5 # three standard errors of a share
    assert 0.91 - error < share(plain) < 0.94 + error and 0.93 - error < share(macro) < 0.95 + error
    assert share(macro) > share(plain)
