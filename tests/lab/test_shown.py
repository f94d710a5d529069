"""Every seed is seen, nothing is shown that isn't there, and the same runs are the same picture."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from gatelib.lab import figures, rates
from gatelib.lab.style import INK
from gatelib.lab.verdict import Runs

mpl.use("Agg")
pytestmark = pytest.mark.usefixtures("style")

LENGTHS = (20, 80)
TEST = {
    ("RNN", 20): [1.0] * 9 + [0.5],
    ("RNN", 80): [0.25, 0.26, 0.27, 0.3, 0.5, 0.5, 0.51, 0.5, 0.5, 0.24],
    ("LSTM", 20): [1.0] * 10,
    ("LSTM", 80): [0.9, 0.95, 1.0, 0.7, 0.8, 0.99, 1.0, 1.0, 1.0, 0.6],
}


def made(test=TEST, failed=()):
    """A study of two cells and two lengths; 0.01 is the best of three rates."""
    lines = []
    for (cell, length), values in test.items():
        arm = {"cell": cell, "length": length}
        for lr, valid in ((0.001, 0.3), (0.01, 0.9), (0.1, 0.2)):
            lines += [arm | {"lr": lr, "seed": s, "valid": valid + s / 100} for s in (0, 1)]
        for k, value in enumerate(values):
            ended = {"failed": "nan"} if (cell, length, k) in failed else {"test": value}
            ended |= {} if "failed" in ended else {"loss": [3.0, 2.0, 1.0]}
            lines.append(arm | {"lr": 0.01, "seed": 100 + k} | ended)
    axes = {"cell": ["RNN", "LSTM"], "length": LENGTHS, "lr": rates(0.001, 0.1, 3)}
    return Runs("made", axes, choose=2, report=10, lines=lines)


def drawn(ax, marker="o"):
    """The points of each line drawn with a marker: [(n, 2)]."""
    return [line.get_xydata() for line in ax.lines if line.get_marker() == marker]


def bars(ax):
    """The intervals of a panel, with the row each is nearest to."""
    found = {}
    for line in ax.lines:
        if line.get_color() == INK and line.get_linestyle() == "-" and len(line.get_xdata()) == 2:
            found[round(float(line.get_ydata()[0]))] = line.get_xdata()
    return found


def text(ax):
    return [words.get_text() for words in ax.texts]


def test_each_panel_has_a_row_for_each_arm_and_a_dot_for_each_seed():
    panels = made().dots("test", by="length", chance=0.25, xlabel="accuracy")
    assert [ax.get_title(loc="left") for ax in panels] == ["length 20", "length 80"]
    for ax, length in zip(panels, LENGTHS, strict=True):
        for cell, dots in zip(("RNN", "LSTM"), drawn(ax), strict=True):
            np.testing.assert_array_equal(dots[:, 0], TEST[cell, length])
        assert ax.get_xlabel() == "accuracy" and text(ax) == ["chance"]


def test_only_the_left_panel_names_the_rows():
    left, right = made().dots(by="length")
    left.figure.canvas.draw()
    seen = [sum(label.get_visible() for label in ax.get_yticklabels()) for ax in (left, right)]
    assert seen == [2, 0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["RNN", "LSTM"]


def test_no_dot_hides_another_even_where_ten_seeds_end_alike():
    for ax in made().dots(by="length"):
        ax.figure.canvas.draw()
        size = next(line for line in ax.lines if line.get_marker() == "o").get_markersize()
        for dots in drawn(ax):
            points = ax.transData.transform(dots) * 72 / ax.figure.dpi
            apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
            assert apart[~np.eye(len(dots), dtype=bool)].min() > 0.98 * size
            assert np.ptp(points[:, 1]) < ax.get_window_extent().height * 72 / ax.figure.dpi / 2


def test_the_tick_is_the_mean_and_the_bar_students_interval():
    _, right = made().dots(by="length")
    values = TEST["LSTM", 80]
    want = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(bars(right)[1], [want.low, want.high])
    np.testing.assert_allclose([mean[0, 0] for mean in drawn(right, "|")][1], np.mean(values))


def test_seeds_that_all_ended_alike_have_a_mean_and_no_interval():
    left, _ = made().dots(by="length")
    assert set(bars(left)) == {0}
    assert [mean[0, 0] for mean in drawn(left, "|")] == [pytest.approx(0.95), 1.0]


def test_a_row_with_failed_runs_says_how_many_and_has_no_mean():
    runs = made(failed={("LSTM", 80, 0), ("LSTM", 80, 3)})
    _, right = runs.dots(by="length")
    assert text(right) == ["2 of 10 failed"]
    assert len(drawn(right, "|")) == 1 and set(bars(right)) == {0}
    assert [len(dots) for dots in drawn(right)] == [10, 8]


def test_runs_that_all_failed_can_be_drawn():
    runs = made(failed={(*arm, k) for arm in TEST for k in range(10)})
    runs.lines[next(iter(runs.lines))]["test"] = 0.5
    assert text(runs.dots(by="length")[0]) == ["10 of 10 failed"] * 2


def test_without_a_panel_axis_every_arm_is_a_row_and_some_can_be_chosen_and_named():
    (ax,) = made().dots()
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "RNN, 80"
    (ax,) = made().dots(arms={("LSTM", 80): "far", ("RNN", 20): "near"})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["far", "near"]
    np.testing.assert_array_equal(drawn(ax)[0][:, 0], TEST["LSTM", 80])


def test_panels_take_titles_and_rows_colours():
    left, _ = made().dots(by="length", titles={20: "20 steps"}, colours={"LSTM": "#C85200"})
    assert left.get_title(loc="left") == "20 steps"
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert [to_hex(line.get_color()).upper() for line in dots] == ["#0072B2", "#C85200"]


def test_panels_by_the_first_axis_have_the_other_as_rows():
    panels = made().dots(by="cell")
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["20", "80"]
    np.testing.assert_array_equal(drawn(panels[1])[1][:, 0], TEST["LSTM", 80])


def test_panels_share_a_scale_unless_told_otherwise():
    left, right = made().dots(by="length")
    assert left.get_xlim() == right.get_xlim()
    left, right = made().dots(by="length", share=False)
    assert left.get_xlim() != right.get_xlim()


def test_errors_lie_on_a_logarithmic_axis_and_an_interval_to_zero_ends_in_an_arrow():
    errors = {arm: [1e-4, 0.2, *np.geomspace(1e-3, 1e-2, 8)] for arm in TEST}
    left, _ = made(errors).dots(by="length", log=True, chance={"always the mean": 0.167})
    assert left.get_xscale() == "log" and text(left) == ["always the mean"]
    assert left.get_xlim()[0] < 1e-4 and len(drawn(left, "<")) == 2
    assert bars(left)[0][0] == left.get_xlim()[0]


def test_four_panels_go_on_in_a_second_line():
    lines = [{"k": k, "seed": 100 + s, "test": float(s)} for k in range(4) for s in range(3)]
    panels = Runs("four", {"k": range(4)}, report=3, lines=lines).dots(by="k")
    places = [ax.get_position() for ax in panels]
    assert places[2].y0 == places[0].y0 and places[3].y1 < places[0].y0
    assert places[3].x0 == pytest.approx(places[0].x0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda runs: runs.dots(by="length", chance=0.25)[0],
        lambda runs: runs.rate_curves()[0],
        lambda runs: runs.over("length", chance=0.25),
    ],
)
def test_the_same_runs_are_the_same_bytes(draw):
    one, other = (figures.to_bytes(draw(made()).figure) for _ in range(2))
    assert one == other and b"<text" not in one


def test_rates_show_every_choosing_seed_and_ring_the_chosen_one():
    panels = made().rate_curves(ylabel="accuracy")
    assert [ax.get_title(loc="left") for ax in panels][:2] == ["RNN\nlength 20", "RNN\nlength 80"]
    for ax in panels:
        *seeds, ring = drawn(ax)
        assert sum(map(len, seeds)) == 6 and ax.get_xscale() == "log"
        np.testing.assert_allclose(ring, [[0.01, 0.905]])
    assert panels[0].figure.get_supylabel() == "accuracy"


def test_a_column_that_ends_early_has_its_tick_labels():
    panels = made().rate_curves()
    panels[0].figure.canvas.draw()
    seen = [any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks()) for ax in panels]
    assert seen == [False, True, True, True]


def test_over_draws_a_line_through_the_means_and_every_seed():
    ax = made().over("length", ylabel="accuracy", chance=0.25)
    lines = {line.get_label(): line for line in ax.lines if line.get_marker() != "o"}
    want = [np.mean(TEST["LSTM", length]) for length in LENGTHS]
    np.testing.assert_allclose(lines["LSTM"].get_ydata(), want)
    assert sum(map(len, drawn(ax))) == 40
    assert [label.get_text() for label in ax.get_xticklabels()] == ["20", "80"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length", "accuracy")
    beside = np.concatenate(drawn(ax))
    assert len(np.unique(beside, axis=0)) == 40
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1 - 1


def test_labels_far_apart_are_spaced_by_their_logarithm():
    lines = [{"k": k, "seed": 100 + s, "test": 1.0} for k in (100, 1, 10) for s in range(3)]
    ax = Runs("far", {"k": (100, 1, 10)}, report=3, lines=lines).over("k")
    np.testing.assert_allclose(ax.get_xticks(), [0, 1, 2])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10", "100"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda runs: runs.dots("tset"), "name: expected one of"),
        (lambda runs: runs.dots("loss"), "name: expected a number, got the curve 'loss'"),
        (lambda runs: runs.dots(by="depth"), r"by: expected one of the axes \['cell', 'length'\]"),
        (lambda runs: runs.dots(by="length", arms=["GRU"]), "arms: expected some of .*got 'GRU'"),
        (lambda runs: runs.dots(arms=[]), "arms: expected some of"),
        (lambda runs: runs.dots(by="length", arms="RNN"), "arms: expected some of"),
        (lambda runs: runs.dots(by="length", titles={30: "x"}), "titles: expected some of"),
        (lambda runs: runs.dots(by="length", colours={"GRU": "k"}), "colours: expected some of"),
        (lambda runs: runs.rate_curves("tset"), "name: expected one of"),
        (lambda runs: runs.over("depth"), "axis: expected one of the axes"),
        (lambda runs: runs.over("cell"), "axis: expected two labels or more that are numbers"),
        (lambda runs: runs.over("length", arms=["GRU"]), "arms: expected some of"),
    ],
)
def test_what_the_runs_do_not_have_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(made())


@pytest.mark.parametrize("draw", [Runs.dots, lambda runs, log: runs.over("length", log=log)])
def test_a_logarithmic_axis_refuses_zero(draw):
    with pytest.raises(ValueError, match="log: expected numbers above 0, got 0"):
        draw(made({arm: [0.0] * 10 for arm in TEST}), log=True)


def test_a_study_without_rates_has_no_rate_curves():
    with pytest.raises(ValueError, match="runs: expected a study that tries rates"):
        Runs("none", {"k": [1]}, report=1).rate_curves()
