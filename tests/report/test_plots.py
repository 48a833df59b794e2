import csv
import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.report import plots
from lit_gen.report.results import load_results
from tests.report.test_leaderboard import DDIM, content, write


def draw_figure(monkeypatch, function, *arguments, **options):
    """The figure instead of its file, to look into."""
    kept = []

    def keep(figure, path, numbers=()):
        kept.append(figure)
        return Path(path)

    monkeypatch.setattr(plots, "save_figure", keep)
    function(*arguments, **options)
    return kept[0]


def legend(figure, title):
    """The labels of the legend of a title."""
    [found] = [legend for legend in figure.legends if legend.get_title().get_text() == title]
    return [text.get_text() for text in found.get_texts()]


def test_curves_go_through_the_means_in_the_order_of_nfe(tmp_path, monkeypatch):
    for index, (nfe, distance) in enumerate([(50, 1.0), (10, 4.0), (20, 2.0)]):
        write(tmp_path, content("EDM", distance, sampler=DDIM | {"steps": nfe}, nfe=nfe), f"e{index}")
    write(tmp_path, content("EDM", 3.0, sampler=DDIM | {"steps": 50}, nfe=50, seed=1), "e3")
    write(tmp_path, content("WGAN", 2.5, sampler=None))
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png")
    (axes,) = figure.axes
    curve, _, bars = axes.containers[0]
    assert curve.get_xdata().tolist() == [10, 20, 50] and curve.get_ydata().tolist() == [4, 2, 2]
    assert np.ptp(bars[0].get_segments()[2][:, 1]) == pytest.approx(2 * 12.706, rel=1e-4)  # t, one degree of freedom
    star = axes.containers[1][0]
    assert star.get_xdata().tolist() == [1] and star.get_ydata().tolist() == [2.5]
    assert curve.get_color() != star.get_color()
    assert axes.get_ylabel() == "fd_digits" and axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10", "20", "50"]
    assert "2000 generated against 1438 real images" in " ".join(text.get_text() for text in figure.texts)
    assert legend(figure, "sampler") == ["DDIM"] and legend(figure, "model") == ["EDM", "WGAN (no sampler)"]


def test_grids_are_told_apart_if_there_are_several(tmp_path, monkeypatch):
    write(tmp_path, content("EDM", 1.0), "e0")
    write(tmp_path, content("EDM", 1.0, sampler=DDIM | {"grid": {"name": "Uniform"}}), "e1")
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png")
    assert legend(figure, "sampler") == ["DDIM Karras", "DDIM Uniform"]


def test_models_of_other_data_are_marked(tmp_path, monkeypatch):
    other = {"trained_on": "63bac8b2" * 8, "given": "ab" * 32}
    write(tmp_path, content("VAE", 1.0))
    write(tmp_path, content("EDM", 2.0, run__name="only", run__identity="0", other_data=other))
    for number, name in enumerate(("first", "second")):
        run: dict[str, Any] = {"run__name": name, "run__identity": name}
        write(tmp_path, content("GAN", 3.0 + number, **run, other_data=other))
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png")
    mark = " (trained on 63bac8b2)"
    assert sorted(legend(figure, "model")) == sorted(["VAE", f"EDM{mark}", f"first{mark}", f"second{mark}"])


def test_the_leaderboard_draws_the_rows_that_it_ranks(tmp_path, monkeypatch, capsys):
    for index, (model, nfe) in enumerate([("EDM", 10), ("EDM", 20), ("DDPM", 10)]):
        found = content(model, 1.0, sampler=DDIM | {"steps": nfe}, nfe=nfe)
        found["metrics"]["inception_score"] = 5.0 + index
        write(tmp_path, found, f"e{index}")
    words = ["leaderboard", str(tmp_path), "--where=model=EDM", "--by=inception_score", "--figure=p.png"]
    figure = draw_figure(monkeypatch, main, words)
    curve = figure.axes[0].containers[0][0]
    assert curve.get_xdata().tolist() == [10, 20] and curve.get_ydata().tolist() == [5, 6]
    assert len(figure.axes[0].containers) == 1 and figure.axes[0].get_ylabel() == "inception_score"
    assert "EDM" in capsys.readouterr().out


def test_two_trainings_of_a_model_are_two_curves(tmp_path, monkeypatch):
    for run, weights in (("0", "ema"), ("1", "ema"), ("0", "raw")):
        for nfe in (10, 20):
            changes = {"run__name": f"run-{run}", "run__identity": run, "weights": weights, "nfe": nfe}
            write(tmp_path, content("EDM", 1.0, sampler=DDIM | {"steps": nfe}, **changes), f"{weights}-{nfe}")
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png")
    (axes,) = figure.axes
    assert [container[0].get_xdata().tolist() for container in axes.containers] == [[10, 20]] * 3
    assert len({container[0].get_color() for container in axes.containers}) == 3
    assert legend(figure, "model") == ["run-0 ema", "run-0 raw", "run-1 ema"]


def test_unlike_protocols_are_not_drawn_together(tmp_path):
    write(tmp_path, content("A"))
    write(tmp_path, content("B", protocol__num_samples=3))
    with pytest.raises(UserError, match=r"protocol.num_samples"):
        plots.distance_vs_cost(load_results(tmp_path), tmp_path / "p.png")
    with pytest.raises(UserError, match="no results"):
        plots.distance_vs_cost([], tmp_path / "p.png")


def test_each_sample_stands_in_its_row_and_column_enlarged_by_whole_pixels(tmp_path):
    rng = np.random.default_rng(0)
    images = {}
    for model, channels in (("A", 1), ("B", 3)):
        path = write(tmp_path, content(model))
        images[model] = rng.integers(0, 256, (5, channels, 8, 8), dtype=np.uint8)
        np.savez(path.with_name("samples.npz"), images=images[model])
    picture = np.asarray(Image.open(plots.side_by_side(load_results(tmp_path), tmp_path / "s.png", columns=4)))[..., :3]
    size, gap = 48, 3
    windows = np.lib.stride_tricks.sliding_window_view(picture, (size, size, 3))[:, :, 0]
    places = []
    for model in ("A", "B"):
        for column in range(4):
            expected = np.broadcast_to(images[model][column].transpose(1, 2, 0), (8, 8, 3)).repeat(6, 0).repeat(6, 1)
            corners = np.argwhere((windows[:, :, :3, :3] == expected[:3, :3]).all((2, 3, 4)))
            [place] = [(y, x) for y, x in corners.tolist() if (windows[y, x] == expected).all()]
            places.append(place)
    top, left = places[0]
    assert places[:4] == [(top, left + column * (size + gap)) for column in range(4)]
    below = places[4][0]
    assert below > top + size and places[4:] == [(below, x) for _, x in places[:4]]
    right = left + 4 * (size + gap)
    assert (picture[top : top + size, right : right + gap] == 255).all(), "no fifth column"


def test_missing_samples_are_named(tmp_path):
    path = write(tmp_path, content())
    with pytest.raises(UserError, match="samples.npz: cannot read the samples") as error:
        plots.side_by_side([*load_results(tmp_path)], tmp_path / "s.png")
    assert str(path.parent) in str(error.value)


def test_both_pictures_are_written_and_nothing_else(tmp_path):
    path = write(tmp_path, content())
    np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    found = load_results(tmp_path)
    for function in (plots.distance_vs_cost, plots.side_by_side):
        written = function(found, tmp_path / "out" / f"{function.__name__}.png")
        assert Image.open(written).size[0] > 300
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"distance_vs_cost.png", "side_by_side.png"}


def test_reports_import_neither_torch_nor_matplotlib_until_they_draw():
    code = (
        "import sys, lit_gen.report.render, lit_gen.report.plots; "
        "assert not {'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_samplers_on_several_models_have_a_panel_for_each_model(tmp_path, monkeypatch):
    names = ["DDIM", "DDPM", "Heun", "Euler", "UniPC", "DPMSolver", "RK45"]
    for model in ("A", "B"):
        for place, name in enumerate(names):
            for nfe in (5, 10):
                sampler = DDIM | {"name": name, "steps": nfe}
                changes: dict[str, Any] = {"sampler": sampler, "nfe": nfe, "run__name": model, "run__identity": model}
                write(tmp_path, content(model, nfe + place, **changes), f"{name}-{nfe}")
    write(tmp_path, content("WGAN", 3.0, sampler=None))
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["A", "B"]
    for axes in panels:
        curves: list[Any] = [container[0] for container in axes.containers]
        assert len(curves) == len(names) + 1  # and the star of the family without a sampler
        heights = sorted(list(map(float, curve.get_ydata())) for curve in curves)
        assert heights == [[3.0], *([5.0 + place, 10.0 + place] for place in range(len(names)))]
        assert len({curve.get_color() for curve in curves}) == len(names) + 1
    assert sorted(label.removesuffix("(eta=0)") for label in legend(figure, "sampler")) == sorted(names)
    assert legend(figure, "model") == ["WGAN (no sampler)"]
    few = [result for result in load_results(tmp_path) if result.sampler in ("", "DDIM")]
    assert len(draw_figure(monkeypatch, plots.distance_vs_cost, few, "p.png").axes) == 1


MODELS = ["EDM", "A model of a long name (trained on 63bac8b2)", "VAE", *(f"Model{number}" for number in range(6))]


def write_models(folder, num_models, num_samplers):
    """Results of models under samplers at three budgets, with samples; the third model has no sampler."""
    for place, model in enumerate(MODELS[:num_models]):
        names = [""] if model == "VAE" else [f"{letter}Sampler" for letter in "ABCDEFGHI"[:num_samplers]]
        settings = itertools.product(names, [1] if model == "VAE" else [9, 10, 1000])
        for number, (name, nfe) in enumerate(settings):
            sampler = DDIM | {"name": name, "steps": nfe} if name else None
            changes: dict[str, Any] = {"sampler": sampler, "nfe": nfe, "run__name": f"run{place}"}
            path = write(folder, content(model, 1.0 + place + number, **changes), f"e{number}")
            np.savez(path.with_name("samples.npz"), images=np.zeros((20, 1, 8, 8), np.uint8))


@pytest.fixture
def drawn(monkeypatch):
    """The texts that were drawn last, with their places on the figure in pixels."""
    texts: dict[Text, Bbox] = {}
    draw = Text.draw

    def record(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            texts[text] = text.get_window_extent(renderer).frozen()

    monkeypatch.setattr(Text, "draw", record)
    return texts


def overlapping(texts):
    """Pairs of texts that share more than a pixel, in each direction."""
    found = []
    for (one, a), (other, b) in itertools.combinations(texts.items(), 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if width > 1 and height > 1:
            found.append((one.get_text(), other.get_text()))
    return found


@pytest.mark.parametrize("num_samplers", [1, 9])
@pytest.mark.parametrize("num_models", [1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 5)), 9])
@pytest.mark.slow
def test_no_label_overlaps_another_or_is_cut_off(tmp_path, monkeypatch, drawn, num_models, num_samplers):
    write_models(tmp_path, num_models, num_samplers)
    found = load_results(tmp_path)
    figures = []

    def keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", keep)
    plots.distance_vs_cost(found, tmp_path / "p.png")
    labels = {text.get_text() for text in drawn}
    assert {f"{name}Sampler(eta=0)" for name in "ABCDEFGHI"[:num_samplers]} <= labels
    assert all(figures[-1].bbox.x0 <= box.x0 and box.x1 <= figures[-1].bbox.x1 for box in drawn.values())
    assert all(figures[-1].bbox.y0 <= box.y0 and box.y1 <= figures[-1].bbox.y1 for box in drawn.values())
    assert not overlapping(drawn)
    drawn.clear()
    written = plots.side_by_side(found, tmp_path / "s.png", columns=2)
    assert not overlapping(drawn)
    assert {text.get_text() for text in drawn} >= set(MODELS[:num_models])
    assert sum(text.get_text().startswith("fd_digits ") for text in drawn) == len(found)
    picture = np.asarray(Image.open(written))[..., :3]
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert all((edge == 255).all() for edge in edges), "a label reaches the edge"


def test_scores_of_real_images_are_lines_and_intervals_bars(tmp_path, monkeypatch):
    floors = {
        "train": {"num_images": 2000, "scores": {"fd_digits": 0.5, "recall": 0.9}, "standard_errors": {}},
        "held_out": {"num_images": 300, "scores": {"fd_digits": 3.25}, "standard_errors": {"fd_digits": 0.1}},
    }
    for nfe, distance in ((10, 4.0), (20, 2.0)):
        data = content("EDM", distance, sampler=DDIM | {"steps": nfe}, nfe=nfe) | {"floors": floors}
        write(tmp_path, data | {"standard_errors": {"fd_digits": distance / 10}}, f"e{nfe}")
    (axes,) = draw_figure(monkeypatch, plots.distance_vs_cost, load_results(tmp_path), "p.png").axes
    heights = {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert {0.5, 3.25} <= heights
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"2000 training images, drawn again", "300 held-out images"}
    bars = axes.containers[0][2][0].get_segments()
    assert [np.ptp(bar[:, 1]) for bar in bars] == pytest.approx([2 * 1.959964 * 0.4, 2 * 1.959964 * 0.2], rel=1e-6)


def test_the_axis_may_be_operations_or_seconds(tmp_path, monkeypatch):
    for nfe, speed in ((10, 50.0), (20, 200.0)):
        data = content("EDM", 1.0, sampler=DDIM | {"steps": nfe}, nfe=nfe, timing__images_per_second=speed)
        write(tmp_path, data | ({"flops_per_image": 7_000_000} if nfe == 10 else {}), f"e{nfe}")
    found = load_results(tmp_path)
    expected = {"nfe": [10, 20], "flops": [7e6], "seconds": [0.005, 0.02]}
    for against, x in expected.items():
        (axes,) = draw_figure(monkeypatch, plots.distance_vs_cost, found, "p.png", against=against).axes
        assert axes.containers[0][0].get_xdata().tolist() == pytest.approx(x)
        assert axes.get_xlabel() == plots.AXES[against]
    with pytest.raises(UserError, match="--against: no result has the flops of an image"):
        plots.distance_vs_cost(found[1:], "p.png", against="flops")


def test_copies_are_marked(tmp_path, monkeypatch):
    for number, (model, copies) in enumerate((("EDM", True), ("VAE", False))):
        write(tmp_path, content(model, 1.0 + number) | {"copies": copies})
    found = load_results(tmp_path)
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, found, "p.png")
    rings = [line for line in figure.axes[0].lines if line.get_markeredgecolor() == "red"]
    assert [line.get_xydata().tolist() for line in rings] == [[[10.0, 1.0]]]
    assert legend(figure, "model") == ["EDM", "VAE", "copies training images"]
    assert [plots._score(result, "fd_digits") for result in found] == ["fd_digits 1 (copies)", "fd_digits 2"]
    figure = draw_figure(monkeypatch, plots.distance_vs_cost, found[1:], "p.png")
    assert legend(figure, "model") == ["VAE"]


def test_a_figure_beside_a_pareto_table_shows_its_rows(tmp_path, monkeypatch, capsys):
    for model, distance, nfe in (("EDM", 1.0, 10), ("VAE", 2.0, 20), ("GAN", 3.0, 1)):
        write(tmp_path, content(model, distance, nfe=nfe))
    drawn = []
    monkeypatch.setattr(plots, "distance_vs_cost", lambda results, *_: drawn.append([each.model for each in results]))
    for more, shown in ((["--pareto"], ["EDM", "GAN"]), ([], ["EDM", "VAE", "GAN"])):
        assert main(["leaderboard", str(tmp_path), "--csv", "--figure", str(tmp_path / "f.png"), *more]) == 0
        assert [row["model"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == drawn.pop() == shown
