"""Draw the figures of docs/diffusion.md, for points of the plane with a known density and denoiser.

    python -m lit_gen.report.theory path --out path.png
    python -m lit_gen.report.theory trajectories --source Spiral --out trajectories.png
    python -m lit_gen.report.theory convergence --out convergence.png
    python -m lit_gen.report.theory guidance --out guidance.png
    python -m lit_gen.report.theory learned RUN [RUN ...] --out learned.png

Only the last figure needs a trained model: a run on points of the plane.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.files import replacing
from lit_gen.core.noise import Noise
from lit_gen.data.points import Checkerboard, GaussianMixture2D, PointSource, Spiral, TwoMoons, grid_of_points
from lit_gen.families.diffusion.denoisers import Denoiser, GaussianMixtureDenoiser, MixtureDenoiser
from lit_gen.families.diffusion.grids import UniformLogSNR
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.likelihood import ProbabilityFlow
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.families.diffusion.samplers.adaptive import RK45
from lit_gen.families.diffusion.samplers.ancestral import DDIM, DDPM
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.langevin import AnnealedLangevin, PredictorCorrector
from lit_gen.families.diffusion.samplers.multistep import DPMSolver, UniPC
from lit_gen.families.diffusion.samplers.ode import Heun
from lit_gen.families.diffusion.samplers.sde import EulerMaruyama
from lit_gen.families.diffusion.schedules import VE, Cosine, EDMSchedule, LinearVP, Rectified, Schedule, SubVP
from lit_gen.metrics import WassersteinDistance, wasserstein
from lit_gen.metrics.base import ScoredBatch
from lit_gen.metrics.real import RealFeatures
from lit_gen.pictures.colours import OKABE_ITO
from lit_gen.pictures.figures import new_figure
from lit_gen.pictures.points import draw_density, draw_paths, draw_points, shade
from lit_gen.pictures.trajectories import Trajectories
from lit_gen.runs.directory import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = 100  # per inch: figures of the docs are small files
SHAPE = PointSource.image_shape
SOURCES: dict[str, type[PointSource]] = {
    cls.__name__: cls for cls in (GaussianMixture2D, TwoMoons, Spiral, Checkerboard)
}
SCHEDULES: dict[str, Schedule] = {
    "LinearVP": LinearVP(),
    "SubVP": SubVP(),
    "Cosine": Cosine(),
    "Rectified": Rectified(),
    "VE": VE(),
    "EDM": EDMSchedule(),
}


def path(source: PointSource, out: Path) -> Path:
    """Draw the density of x_t with arrows from x_t to the denoised D, and the schedules."""
    figure = new_figure(10.0, 5.0, DOTS)
    levels = (0.0, 0.08, 0.2, 0.4, 0.8)
    for column, u in enumerate(levels):
        axes = figure.add_axes((0.01 + 0.198 * column, 0.555, 0.188, 0.376))
        reach = 1 + u
        draw_density(axes, source, reach, 1 - u, u)
        axes.set_title(rf"$x_t = {1 - u:g}\, x_0 + {u:g}\, \varepsilon$" if u else "$x_0$", size=9)
        if u:
            noise = Noise(0, range(40))
            x = (1 - u) * source.exact.draw(noise)[0] + u * noise.normal((2,), torch.float64)
            towards = source.exact.posterior_mean(x, *_numbers(1 - u, u)) - x
            axes.quiver(*x.T, *towards.T, angles="xy", scale_units="xy", scale=1, width=0.006, color=OKABE_ITO[1])
    plane, levels_axes = (figure.add_axes(box) for box in ((0.06, 0.1, 0.29, 0.37), (0.45, 0.1, 0.36, 0.37)))
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    for index, (name, schedule) in enumerate(SCHEDULES.items()):
        alpha, sigma = schedule(t)
        line = ["-", "--", ":", "-", "-", "--"][index]
        plane.plot(alpha, sigma, line, color=OKABE_ITO[index], linewidth=1.6)
        levels_axes.semilogy(t[1:-1], (sigma / alpha)[1:-1], line, color=OKABE_ITO[index], linewidth=1.6, label=name)
    plane.set(xlim=(-0.03, 1.06), ylim=(-0.03, 1.25), xlabel=r"$\alpha$", ylabel=r"$\sigma$")
    levels_axes.set(xlim=(0, 1), ylim=(1e-3, 300), xlabel="t", ylabel=r"$\sigma / \alpha$")
    levels_axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axes in (plane, levels_axes):
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out)


def trajectories(source: PointSource, out: Path, num_points: int = 150) -> Path:
    """Draw where each sampler moves the same noise with the exact denoiser, and some of the trajectories."""
    samplers: list[DiffusionSampler] = [
        DDIM(steps=5),
        Heun(steps=10),
        DPMSolver(steps=10),
        DPMSolver(steps=10, method="singlestep"),
        UniPC(steps=10),
        RK45(rtol=1e-3, atol=1e-3),
        DDPM(steps=50, variance="small"),
        DPMSolver(steps=50, eta=1.0),
        Heun(steps=50, S_churn=30),
        EulerMaruyama(steps=100, grid=UniformLogSNR()),
        PredictorCorrector(steps=50, norm="level"),
        AnnealedLangevin(steps=100, steps_each=10, grid=UniformLogSNR()),
    ]
    titles = ["DDIM = Euler", "Heun", "DPMSolver++ (2M)", "DPMSolver++ (2S)", "UniPC", "RK45"]
    titles += ["DDPM (small)", "DPMSolver++ (SDE)", "Heun with churn"]
    titles += ["EulerMaruyama", "PredictorCorrector", "AnnealedLangevin"]
    figure = new_figure(10.0, 8.1, DOTS)
    panels = figure.subplots(
        3, 4, gridspec_kw={"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.96, "wspace": 0.04, "hspace": 0.13}
    )
    for axes, sampler, title in zip(panels.flatten(), samplers, titles, strict=True):
        watched, exact = Trajectories(sampler, num_points), MixtureDenoiser(source.exact)
        _points(watched.sampler, exact, num_points)
        draw_density(axes, source, 1.6)
        draw_paths(axes, watched.states, num_lines=40 if sampler in samplers[:6] else 2)
        axes.set_title(f"{title}, NFE {exact.evaluations:.4g}", size=8.5)
    return _save(figure, out)


def convergence(source: PointSource, out: Path, num_points: int = 1000) -> Path:
    """Plot against NFE the distance from the end of the exact flow (left) and W_2 to the data (right)."""
    figure = new_figure(10.0, 4.2, DOTS)
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.12, "top": 0.92})
    flow = _points(RK45(rtol=1e-9, atol=1e-11), MixtureDenoiser(source.exact), num_points // 4)
    of_order: list[tuple[str, str, DiffusionSampler]] = []
    for budget in (5, 7, 11, 15, 23, 31, 47, 63, 95, 127, 191, 255):
        of_order += [
            ("DDIM = Euler", "0o-", DDIM(nfe=budget)),
            ("Heun", "1s-", Heun(nfe=budget)),
            ("DPMSolver (2M)", "2^-", DPMSolver(nfe=budget)),
            ("UniPC (order 3)", "4v-", UniPC(nfe=budget, order=3)),
        ]
    _draw_curves(left, of_order, lambda x: float((x - flow).flatten(1).norm(dim=1).median()), source, len(flow))
    left.set(xscale="log", yscale="log", xlabel="NFE", ylabel="median distance from the exact flow")
    real, *others = (source.exact.draw(Noise(seed, range(num_points)))[0] for seed in range(1, 6))
    to_data: list[tuple[str, str, DiffusionSampler]] = []
    for budget in (5, 11, 23, 47, 95, 191, 383):
        to_data += [
            ("DDIM", "0o-", DDIM(nfe=budget)),
            ("Heun", "1s-", Heun(nfe=budget)),
            ("DDPM (small)", "3D-", DDPM(nfe=budget, variance="small")),
            ("DDPM (large)", "5*-", DDPM(nfe=budget, variance="large")),
            ("EulerMaruyama", "6x-", EulerMaruyama(nfe=budget, grid=UniformLogSNR())),
            ("PredictorCorrector", "2+-", PredictorCorrector(nfe=budget, norm="level")),
        ]
    _draw_curves(right, to_data, lambda x: wasserstein(x.flatten(1), real), source, num_points)
    floor = sum(wasserstein(real, other) for other in others) / len(others)
    right.axhline(floor, color="0.4", linestyle=":", linewidth=1, label=f"two sets of data ({floor:.3f})")
    right.set(
        ylim=(0.02, 4),
        xscale="log",
        yscale="log",
        xlabel="NFE",
        ylabel=f"$W_2$ of {num_points} samples to as many data",
    )
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out)


def guidance(out: Path, num_points: int = 1500) -> Path:
    """Draw samples of three overlapping classes under classifier-free guidance with the exact denoisers."""
    source = GaussianMixture2D(num_components=3, radius=0.3, std=0.15)
    whole = source.exact
    figure = new_figure(10.0, 2.75, DOTS)
    panels = figure.subplots(
        1, 4, gridspec_kw={"left": 0.005, "right": 0.995, "bottom": 0.01, "top": 0.9, "wspace": 0.03}
    )
    settings = [(0.0, (0.0, math.inf)), (1.0, (0.0, math.inf)), (3.0, (0.0, math.inf)), (3.0, (0.1, 0.5))]
    for axes, (weight, interval) in zip(panels, settings, strict=True):
        guide = Guidance(weight, interval).by(MixtureDenoiser(whole))
        draw_density(axes, source)
        for label in range(source.num_classes):
            of_class = GaussianMixtureDenoiser(whole.means[label, None], whole.variances[label].sqrt()[None])
            noise = Noise(0, range(label, num_points, source.num_classes))
            points = Heun(steps=30, guidance=guide).sample(of_class, EDMSchedule(), noise, SHAPE)
            draw_points(axes, points, OKABE_ITO[label + 1])
        where = "" if interval == (0.0, math.inf) else rf", ${interval[0]:g} < \sigma / \alpha \leq {interval[1]:g}$"
        axes.set_title(f"w = {weight:g}{where}", size=9)
    return _save(figure, out)


def learned(runs: Sequence[Path], out: Path, num_points: int = 2000, resolution: int = 100) -> Path:
    """Draw one row per run: the density of the data, samples of the model, and the density of the model."""
    figure = new_figure(7.5, 2.65 * len(runs), DOTS)
    room = {"left": 0.01, "right": 0.99, "bottom": 0.005, "top": 1 - 0.1 / len(runs), "wspace": 0.03, "hspace": 0.12}
    panels = figure.subplots(len(runs), 3, squeeze=False, gridspec_kw=room)
    one, zero = _numbers(1, 0)
    for (true, samples, density), directory in zip(panels, runs, strict=True):
        model, data = _model_of_points(directory)
        source: PointSource = data.source
        held_out = torch.from_numpy(data.images("test")[:num_points])
        points = model.sample(Noise(0, range(num_points)))
        real = RealFeatures(held_out.flatten(1), torch.from_numpy(data.images("train")).flatten(1), net_name="points")
        metric = WassersteinDistance().prepare(real, num_points)
        metric.update(ScoredBatch(torch.arange(num_points), features=points.flatten(1)))
        distance, floor = (estimate.value for estimate in metric.compute().values())
        of_model = float(_log_density(model, held_out).mean())
        of_data = float(source.exact.log_density(held_out, one, zero).mean())
        draw_density(true, source)
        draw_density(samples, source)
        draw_points(samples, points)
        pixels = grid_of_points(1.0, resolution)
        darkest = float(source.exact.log_density(pixels, one, zero).exp().max())
        shade(density, _log_density(model, pixels), darkest=darkest)
        true.set_title(f"{data.name}: log p = {of_data:.2f}", size=9)
        samples.set_title(f"{model.title}: $W_2$ = {distance:.3f} (data {floor:.3f})", size=8)
        density.set_title(f"density of the model: log p = {of_model:.2f}", size=9)
        print(
            f"{directory}: W2 {distance:.4f} (two sets of data {floor:.4f}), mean log-density of test points "
            f"{of_model:.3f} nats (exact {of_data:.3f})"
        )
    return _save(figure, out)


def _model_of_points(directory: Path) -> tuple[Diffusion, Any]:
    """Load the model and the data module of a run.

    Raises:
        UserError: If the run is not a diffusion model of points of the plane.
    """
    from lit_gen.experiment.loading import load_model, load_objects  # imports Lightning, which takes seconds

    run = Run.open(directory)
    objects = load_objects(run)
    model, data = objects.model, objects.data
    if not isinstance(model, Diffusion) or not isinstance(data.source, PointSource):
        raise UserError(f"{directory}: not a diffusion model of points of the plane; give a run such as of points_edm")
    load_model(run, model, "ema").follow_classes(data)
    return model, data


def _log_density(model: Diffusion, x: Tensor) -> Tensor:
    flow = ProbabilityFlow(steps=32, solver="heun", divergence="exact")
    return flow.log_density(model.denoiser, model.schedule, x.reshape(-1, *SHAPE), Noise(0, range(len(x))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_gen.report.theory", description="Figures of docs/diffusion.md."
    )
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    of_source = {"path": path, "trajectories": trajectories, "convergence": convergence}
    for name, draw in [*of_source.items(), ("guidance", guidance), ("learned", learned)]:
        figure = figures.add_parser(name, help=(draw.__doc__ or "").split("\n")[0])
        figure.add_argument("--out", type=Path, default=Path(f"{name}.png"), help="the PNG to write")
        if name in of_source:
            figure.add_argument("--source", choices=SOURCES, default="TwoMoons", help="the data (default: TwoMoons)")
            figure.set_defaults(draw=lambda given, draw=of_source[name]: draw(SOURCES[given.source](), given.out))
        elif name == "guidance":
            figure.set_defaults(draw=lambda given: guidance(given.out))
        else:
            figure.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run on points of the plane")
            figure.set_defaults(draw=lambda given: learned(given.runs, given.out))
    options = parser.parse_args(arguments)
    if options.out.suffix != ".png":
        parser.error(f"--out: {options.out} does not end in .png; give such a name")
    try:
        print(options.draw(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _save(figure: "Figure", path: Path) -> Path:
    """Save a figure as a PNG of 256 colors, which takes half the space."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
        with Image.open(temporary) as drawn:
            image = drawn.convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(temporary, format="png", optimize=True)
    return path


def _numbers(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


def _points(sampler: DiffusionSampler, denoiser: Denoiser, num: int) -> Tensor:
    return sampler.sample(denoiser, EDMSchedule(), Noise(0, range(num)), SHAPE)


def _draw_curves(
    axes: "Axes",
    curves: Sequence[tuple[str, str, DiffusionSampler]],
    error: Callable[[Tensor], float],
    source: PointSource,
    num: int,
) -> None:
    """Plot one line through (NFE, error of the samples) per name; its style begins with the number of its colour."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, style, sampler in curves:
        exact = MixtureDenoiser(source.exact)
        samples = _points(sampler, exact, num)
        points.setdefault((name, style), []).append((exact.evaluations, error(samples)))
    for (name, style), curve in points.items():
        colour = OKABE_ITO[int(style[0])]
        axes.plot(*zip(*curve, strict=True), style[1:], color=colour, label=name, markersize=4, linewidth=1.2)


if __name__ == "__main__":
    raise SystemExit(main())
