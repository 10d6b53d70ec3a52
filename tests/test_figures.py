"""The figure draws what the table says, and its description says what the figure draws."""

import matplotlib as mpl
import pandas as pd
import pytest

from rtl_core.config import Experiment
from rtl_core.figures import describe_perplexity, plot_perplexity, save_figure, style
from rtl_core.figures.style import CURVES, draw_curves, name_ends, new_axes
from rtl_core.results import ARM_FIELDS
from rtl_core.storage import StudyError

NAN = float("nan")


def row(source, seeds, effect=(NAN, NAN, NAN), **changes):
    """Returns a row as `compare` makes it."""
    perplexity = sum(seeds) / len(seeds)
    return {name: getattr(Experiment(), name) for name in ARM_FIELDS} | {
        "source": source, "lm_tokens_used": 350_004,
        "corpus": "docstrings", "model": "lstm", "role": "arm", "vocab_size": 10_000, "unk_share": 0.021,
        "test_tokens": 150_000, "test_documents": 250, "n_seeds": len(seeds), "seeds": tuple(seeds),
        "perplexity": perplexity, "extra_tokens": 0, "converged": True, "settings": "", "lm_tokens": 350_000,
        **dict(zip(("effect_percent", "low_percent", "high_percent"), effect)),
    } | changes  # fmt: skip


def table(n_seeds=3):
    wide = [-1.0, 0.0, 1.0][:n_seeds]
    one = n_seeds == 1
    rows = [
        row("random", [150 + d for d in wide], role="baseline"),
        row("random", [156 + d for d in wide], (4.0, 2.0, 6.0), input_mode="frozen"),
        row("word2vec-sg", [130 + d for d in wide], (-13.3, -16.0, -10.5)),
        row("domain-paragraph", [147 + 2 * d for d in wide], (-2.0, -5.0, 1.1), converged=False),
        row("permuted:word2vec-sg", [151 + d for d in wide], (0.7, -2.0, 3.4)),
        row("random", [110.0], (-26.7, NAN, NAN), role="bound"),
        row("random", [640.0], (326.7, 320.0, 333.0), role="bound", model="unigram"),
    ]
    frame = pd.DataFrame(rows).astype({"converged": "boolean", "pretrain_epochs": "Int64"})
    return frame.assign(low_percent=NAN, high_percent=NAN) if one else frame


@pytest.fixture
def axes():
    """Returns a function that draws a table and closes the figure when the test ends."""
    from matplotlib import pyplot as plt

    with style():
        yield plot_perplexity
    plt.close("all")


def drawn(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_every_seed_is_a_dot_and_every_mean_a_bar(axes, n_seeds):
    data = table(n_seeds)
    ax = axes(data)
    inside = data[data["model"] == "lstm"]
    dots = [sorted(line.get_xdata()) for line in drawn(ax, "seeds")]
    assert dots == [sorted(seeds) for seeds in inside["seeds"]]
    assert [line.get_xdata()[0] for line in drawn(ax, "mean")] == pytest.approx(list(inside["perplexity"]))
    heights = [set(line.get_ydata()) for line in drawn(ax, "seeds")]
    assert all(
        len(found) == len(seeds) for found, seeds in zip(heights, inside["seeds"])
    )  # none hides another


def test_intervals_of_the_difference_are_drawn_around_the_baseline(axes):
    ax = axes(table())
    assert list(drawn(ax, "interval")[1].get_xdata()) == pytest.approx([150 * 0.84, 150 * 0.895])
    assert len(drawn(ax, "interval")) == 4
    assert drawn(axes(table(1)), "interval") == []


def test_frozen_arms_and_controls_differ_in_shape_not_only_in_colour(axes):
    fine, frozen, _, _, permuted, bound = drawn(axes(table()), "seeds")
    assert len({line.get_marker() for line in (fine, frozen, bound)}) == 3
    assert permuted.get_markerfacecolor() == "white"


def test_a_bound_far_away_is_written_at_the_edge_and_does_not_stretch_the_axis(axes):
    ax = axes(table())
    assert ax.get_xlim()[0] < 110 < 160 < ax.get_xlim()[1] < 200
    assert "640.0 →" in [text.get_text() for text in ax.texts]


def test_words_on_the_figure_name_context_marks_and_settings(axes):
    ax = axes(table())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[3].split() == ["domain-paragraph,", "fine-tuned", "(not", "converged)"]  # on two lines
    assert names[-1] == "bound: unigram"
    assert "context document" in ax.get_xlabel()
    texts = [*(text.get_text() for text in ax.texts), ax.get_xlabel()]
    words = " ".join(texts).replace("\n", " ")
    for expected in (
        "dots: seeds, bar: mean, band: 95 % interval", "baseline 150.0", "−13.3 % (−16.0 to −10.5)",
        "LM text 350,004 tokens", "3 seeds an arm",
    ):  # fmt: skip
        assert expected in words
    assert "one seed: no interval" in axes(table(1)).get_xlabel()


@pytest.mark.parametrize(
    "data",
    [table(1), table(3), table().iloc[[0, 2, 3]], table().iloc[[0, 1]], table().iloc[:1]],
    ids=["one seed", "three seeds", "baseline at the right", "baseline at the left", "baseline alone"],
)
def test_no_text_lies_on_another_or_outside_the_figure(axes, data):
    ax = axes(data)
    ax.figure.canvas.draw()
    texts = [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label]
    boxes = [text.get_window_extent() for text in texts]
    clashes = [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]
    assert clashes == []
    assert min(t.get_fontsize() for t in texts) >= 9
    width, height = ax.figure.canvas.get_width_height()
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


def test_the_given_axes_are_used_and_no_style_stays_behind():
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    figure, given = plt.subplots()
    with style("slide"):
        assert mpl.rcParams["font.size"] == 14
    assert plot_perplexity(table(), ax=given) is given
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_same_figure_is_saved_as_the_same_bytes(axes, tmp_path, ending):
    for name in ("one", "two"):
        save_figure(axes(table()), tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_an_unknown_ending_and_several_groups_are_refused(axes, tmp_path):
    with pytest.raises(StudyError, match="unknown kind of figure file 'jpg'.*svg, pdf, png"):
        save_figure(axes(table()), tmp_path / "figure.jpg")
    for of_table in (plot_perplexity, describe_perplexity):
        with pytest.raises(StudyError, match="one corpus and setting, but the table holds.*ag-news"):
            of_table(pd.concat([table(), table().assign(corpus="ag-news")]))
    with pytest.raises(StudyError, match="unknown medium 'slides'. Did you mean slide"), style("slides"):
        pass
    with pytest.raises(StudyError, match="no baseline row"):
        plot_perplexity(table().query("role != 'baseline'"))


def test_the_description_matches_the_numbers():
    text = describe_perplexity(table())
    for expected in (
        "of 5 language models", "context document", "docstrings: LM text 350,004 tokens",
        "runs from 130.0 (word2vec-sg, fine-tuned) to 156.0 (random, frozen); the baseline has 150.0",
        "difference: word2vec-sg, fine-tuned −13.3 % (−16.0 to −10.5). Above it: random, frozen +4.0 % (",
        "contains zero or there is none: 2 of 4. 3 seeds are too few for a ranking.",
        "Bounds beside the arms: random, all text 110.0; unigram 640.0.",
    ):  # fmt: skip
        assert expected in text
    single = describe_perplexity(table(1))
    assert "Without intervals, which need two seeds or more, none of these differences is" in single
    assert "contains zero" not in single


def test_a_baseline_alone_can_be_drawn_and_described(axes):
    alone = table(1).iloc[:1]
    low, high = axes(alone).get_xlim()
    assert low < 150 < high
    assert "the baseline has 149.0. There is no other arm" in describe_perplexity(alone)


def test_the_description_follows_the_table():
    better = table()
    better.loc[3, ["low_percent", "high_percent"]] = (-3.0, -1.0)
    assert "contains zero or there is none: 1 of 4." in describe_perplexity(better)
    assert "domain-paragraph, fine-tuned (not converged) −2.0 % (−3.0 to −1.0)" in describe_perplexity(better)
    many = table().assign(n_seeds=5)
    assert "ranking" not in describe_perplexity(many)


def named_curves(ends):
    """Returns the Axes of named curves that end at these heights."""
    frames = (
        pd.DataFrame({"x": [0, 1], "y": [0, end], "low": [0, end - 1], "high": [0, end]}) for end in ends
    )
    curves = {f"a curve of a long name, ending at {end}": frame for end, frame in zip(ends, frames)}
    ax = new_axes(8)
    draw_curves(ax, {name: (name, look, of) for look, (name, of) in zip(CURVES, curves.items())})
    name_ends(ax)
    return ax


@pytest.mark.parametrize("ends", [(1, 50, 100), (49, 50, 51, 99), (0.1, 0.2, 0.3, 0.4, 0.5), (7,)])
def test_the_names_of_curves_stand_in_their_order_beside_their_ends_and_apart(axes, ends):
    ax = named_curves(ends)
    ax.figure.canvas.draw()
    texts = sorted(ax.texts, key=lambda text: text.get_position()[1])
    assert [float(text.get_text().split()[-1]) for text in texts] == sorted(ends)
    boxes = [text.get_window_extent() for text in texts]
    assert all(below.y1 < above.y0 for below, above in zip(boxes, boxes[1:]))
    tops = [ax.transData.transform((1, end))[1] for end in sorted(ends)]
    if min(ends) == 1:  # far apart: each name at the height of its end
        assert all(box.y0 < top < box.y1 for box, top in zip(boxes, tops))
    width, height = ax.figure.canvas.get_width_height()
    assert all(box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    samples = {line.get_marker() for line in ax.figure.findobj(mpl.lines.Line2D) if line.get_markevery()}
    assert samples == {line[0] for _, line in CURVES[: len(ends)]}


def test_colours_have_a_mark_each_and_curves_are_saved_as_the_same_bytes(axes, tmp_path):
    assert len({colour for colour, _ in CURVES}) == len({mark for _, mark in CURVES}) == len(CURVES)
    for name in ("one", "two"):
        save_figure(named_curves((1, 2, 3)), tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
