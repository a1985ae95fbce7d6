"Grids of curves: what is in them, and whether it can be read on a desk and on a phone."
import itertools
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from ccd.report import accuracy, growth, similarity, style

PHONE = 358 # px of text width on a screen of 390
AXES = dict(size=[3e5, 1.2e6, 4.6e6, 1.25e7], drawings=[1/8, 1/4, 1/2, 1],
            samples=[128_000, 256_000, 512_000, 1_024_000], pixels=[32, 48, 64, 96])
UNDER = dict(size="parameters", drawings="share of the drawings", samples="samples seen",
             pixels="px")
MEASURES = ["category", "subcategory", "category (no shared word)", "style", "words, new fonts",
            "shapes", "emoji-masks, mIoU", "detail", "colour of the ground"]

def curves(measures, axes):
    rng, rows = np.random.default_rng(0), []
    for m, a, name in itertools.product(measures, axes, ("CLIP", "DINO")):
        v = rng.uniform(0.1, 0.9) + 0.02 * np.arange(4)
        rows.append(pd.DataFrame(dict(axis=a, metric=m, name=name, x=AXES[a], value=v,
                                      ci_low=v - 0.02,
                                      ci_high=v + 0.02)))
    return pd.concat(rows)

def texts(fig):
    """The boxes of all that is written, in px; ticks beyond the ends of an axis, or of one that is
    off, are not."""
    import matplotlib.text
    fig.canvas.draw()
    def ends(axis):
        return sorted(axis.get_view_interval())
    beyond = {id(t.label1) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)
              for lo, hi in [ends(axis)]
              for t in axis.get_major_ticks() if not (ax.axison and lo <= t.get_loc() <= hi)}
    return [(t, t.get_window_extent())
            for t in fig.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()
            and id(t) not in beyond]

@pytest.fixture(scope="module")
def grid():
    t = curves(MEASURES, AXES)
    fig = growth.scaling_curves(t, "metric", "axis", "name", UNDER, percent=True)
    yield t, fig
    style.styled_pyplot().close(fig)

def test_a_grid_draws_every_curve_once(grid):
    t, fig = grid
    def found(rows, name): # by the values that a line joins
        return sum(np.allclose(line.get_ydata(), rows.value) for ax in fig.axes
                   for line in ax.lines if line.get_label() == name)
    assert len(fig.axes) == len(MEASURES) * len(AXES)
    assert all(found(own, name) == 1 for (_, _, name), own in t.groupby(["metric", "axis", "name"]))

def test_a_measure_has_one_scale_along_all_axes(grid):
    limits = {}
    for ax in grid[1].axes: limits.setdefault(ax.get_title(loc="left"), set()).add(ax.get_ylim())
    assert len(limits) == len(MEASURES) and all(len(v) == 1 for v in limits.values())

# either may be the rows
@pytest.mark.parametrize("rows, measures, axes", [("metric", 9, 4), ("axis", 5, 3), ("axis", 1, 1)])
def test_a_grid_can_be_read_at_the_width_of_a_page(rows, measures, axes):
    t = curves(MEASURES[:measures], list(AXES)[:axes])
    fig = growth.scaling_curves(t, rows, {"metric": "axis", "axis": "metric"}[rows], "name", UNDER,
                                percent=True)
    boxes, (w, h) = texts(fig), fig.canvas.get_width_height()
    style.styled_pyplot().close(fig)
    assert w <= 780, "wider than the text of a page"
    small = min(t.get_fontsize() for t, _ in boxes) * fig.dpi / 72
    assert small >= 12 and small * min(1, PHONE / w) >= 8, "letters of fewer px than can be read"
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= w + 1 and b.y1 <= h + 1
               for _, b in boxes), "cut off at the edge"
    over = [(s.get_text(), t.get_text()) for (s, a), (t, b) in itertools.combinations(boxes, 2)
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]
    assert not over, over

def test_labels_that_would_touch_are_left_out():
    assert growth._apart(np.array([0.0, 1, 2, 3]), list("abcd")) == list("abcd")
    assert growth._apart(np.array([0.0, 1.9, 2]), ["1B", "6.9B", "7B"]) == ["1B", "", "7B"]

@pytest.mark.parametrize("measures", [MEASURES[:1], MEASURES[:5], MEASURES])
def test_ways_of_teaching_stand_where_their_numbers_are(measures):
    names, rng = ("CLIP", "classifier on concepts", "DINO"), np.random.default_rng(0)
    t = pd.DataFrame([dict(name=n, metric=m, few=few, value=v, total_ci_low=v - 0.02,
                           total_ci_high=v + 0.03)
                      for n in names for m in measures for few in (False, True)
                      for v in [rng.uniform(0.1, 0.9)]])
    fig = growth.supervision_plot(t, ("all", "some"), {measures[0]: 0.25})
    assert len(fig.axes) == len(measures) # no empty panel
    for ax, m in zip(fig.axes, measures):
        own = t[t.metric == m]
        dots = np.concatenate([c.get_offsets()
                               for c in ax.collections if isinstance(c, PathCollection)])
        assert sorted(dots[:, 0].round(9)) == sorted(own.value.round(9))
        assert (len(ax.lines) == 1) == (m == measures[0]) # the floor
        rows = {n: np.mean([y for x, y in dots
                            if (own.value[own.name == n] - x).abs().min() < 1e-9]) for n in names}
        # in the order that was given
        assert rows["CLIP"] > rows["classifier on concepts"] > rows["DINO"]
    boxes = texts(fig)
    style.styled_pyplot().close(fig)
    assert not [(x.get_text(), y.get_text())
                for (x, a), (y, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]

def probes(tasks):
    rng = np.random.default_rng(0)
    return pd.DataFrame([dict(encoder=e, task=t, linear=v, linear_ci_low=v - 0.05,
                              linear_ci_high=v + 0.05, majority=0.1)
                         for e in ("CLIP", "DINO", "random ViT", "raw pixels") for t in tasks
                         for v in [rng.uniform(0.2, 0.5)]])

def run_of(*names): # metrics as training writes them
    x = np.arange(0, 300_001, 3000)
    return {n: pd.DataFrame(dict(samples=x, loss=4 * np.exp(-x / 1e5) + 1)) for n in names}

FIGURES = dict(
    probes=lambda: accuracy.probe_dots(probes(MEASURES)),
    leads=lambda: accuracy.difference_dots(probes(MEASURES).assign(probe="linear").rename(
        columns=dict(encoder="a", linear="difference", linear_ci_low="ci_low",
                     linear_ci_high="ci_high"))),
    shots=lambda: accuracy.few_shot_curves(pd.DataFrame([dict(encoder=e, task=t, shots=s,
                                                              top1=0.1 + s / 50,
                                                              n_classes_below_shots=0, n_classes=9)
                                              for e in ("CLIP", "DINO", "random ViT") for t
                                                         in MEASURES for s in (1, 2, 4, 8, 16)])),
    losses=lambda: accuracy.loss_curves(run_of("CLIP", "DINO", "SigLIP"),
                                        dict.fromkeys(("CLIP", "DINO", "SigLIP"), 4.2)),
    shares=lambda: similarity.agreement_dots(pd.DataFrame([dict(similar_in=d, factor=k, share=0.5,
                                                                ci_low=0.4, ci_high=0.6, chance=0.1,
                                                                pairs=99)
                                                  for d in "ab" for k in similarity.FACTOR_NAMES])),
    arms=lambda: growth.supervision_plot(pd.DataFrame([dict(name=n, metric=m, few=few, value=0.4,
                                                            total_ci_low=0.3, total_ci_high=0.5)
                                                       for m in MEASURES
                             for n in ("CLIP", "CLIP, shuffled captions",
                                       "classifier on concepts") for few in (False, True)]),
                                         ("all", "some"), {}),
    compute=lambda: growth.compute_plot(pd.DataFrame([dict(recipe=r, metric=m, flops=10.0 ** e,
                                                           value=e / 30, total_ci_low=e / 40,
                                                           total_ci_high=e / 25, best=True)
                                                 for r in ("clip", "dino") for m in MEASURES
                                                      for e in (12, 13.5, 15)]),
                                        dict(clip="CLIP", dino="DINO")),
    pairs=lambda: similarity.pair_grid(pd.DataFrame(dict(rank=range(12), i=0, j=0, z_a=-3.1,
                                                         z_b=2.9)),
                                       lambda r: np.zeros((8, 8, 3), np.uint8)))

@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_read_on_a_phone(name):
    fig = FIGURES[name]()
    boxes, (w, h) = texts(fig), fig.canvas.get_width_height()
    style.styled_pyplot().close(fig)
    small = min(t.get_fontsize() for t, _ in boxes) * fig.dpi / 72 * min(1, PHONE / w)
    assert small >= 7.9, f"letters of {small:.1f} px"
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= w + 1 and b.y1 <= h + 1
               for _, b in boxes), "cut off at the edge"
    over = [(s.get_text(), t.get_text()) for (s, a), (t, b) in itertools.combinations(boxes, 2)
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]
    assert not over, over
