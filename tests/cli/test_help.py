"""Help: at once for all verbs but fit and run, complete for those, and near what was misspelt."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

from lit_gen.cli import help
from lit_gen.cli.main import VERBS, main
from lit_gen.core.errors import UserError
from lit_gen.core.text import closest
from lit_gen.data import Folder
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment import key_help
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.diffusion import UNet
from lit_gen.families.diffusion.samplers import Heun

HEAVY = {"torch", "lightning", "wandb", "matplotlib", "jsonargparse", "numpy", "rich", "yaml"}
ORDER = ["fit", "run", "evaluate", "sample", "score", "reflow", "ema", "sweep", "leaderboard", "report"]
ORDER += ["export", "import", "compare", "reproduce", "reference"]
AT_ONCE = [verb for verb in ORDER if verb not in ("fit", "run")]


@pytest.fixture(scope="module")
def parser() -> Any:
    return ExperimentCLI(["--model=EDM", "--model.network=UNet", "--data.source=Digits"]).parser


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints that asks for help."""
    capsys.readouterr()
    try:
        assert main(words) == 0
    except SystemExit as ended:
        assert ended.code == 0
    return capsys.readouterr().out


def options(text: str) -> list[str]:
    """The options that a help lists, in order."""
    return re.findall(r"^  (--[\w.-]+)", text, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    asked = [["--help"], ["--version"], [], *([verb, "--help"] for verb in AT_ONCE), ["sample", "runs/x", "-h"]]
    code = f"""
import sys
from lit_gen.cli.main import main
for words in {asked}:
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == 0, words
    assert not {HEAVY} & set(sys.modules), (words, {HEAVY} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for verb in AT_ONCE:
        assert f"usage: lit-gen {verb} " in done.stdout


def test_every_verb_has_a_line_in_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = printed(capsys, "--help").splitlines()
    begin = lines.index("verbs:") + 1
    assert [line.split(maxsplit=1) for line in lines[begin : begin + len(ORDER)]] == [[v, VERBS[v]] for v in ORDER]
    assert lines[begin + len(ORDER)] == ""


@pytest.mark.parametrize("verb", AT_ONCE)
def test_every_option_has_one_line(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = printed(capsys, verb, "--help").splitlines()
    listed = [line for line in lines if re.match(r"  -", line)]
    assert len(listed) > 1 and all(re.match(r"  -\S.*?\S  +\w", line) for line in listed)
    assert not any(line.startswith(" " * 12) for line in lines), "no option goes on in a second line"


@pytest.mark.parametrize(
    ("cls", "section", "keys"), [(Evaluation, "evaluation", help.EVALUATION), (Reflow, "reflow", help.REFLOW)]
)
def test_keys_and_defaults_are_those_of_the_class(cls: type, section: str, keys: tuple[Any, ...]) -> None:
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    listed = {option.split()[0].removeprefix("--"): default for option, default, _ in keys}
    ours = {key.removeprefix(f"{section}."): default for key, default in listed.items() if key.startswith(section)}
    for name, default in ours.items():
        expected = defaults[name]
        assert default == (expected.__name__ if isinstance(expected, type) else expected), name
    assert defaults.keys() - ours.keys() <= {"teacher", "teacher_overrides"}


def test_sample_prints_the_options_that_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "sample", "--help")
    own = [name for name in help.sample_parser().names if name.startswith("--")]
    assert own and set(own) < set(options(text)) and "--sampler.steps" in options(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evalute", "runs/x"], "evalute: no such verb; did you mean evaluate?"),
        (["leader"], "leader: no such verb; did you mean leaderboard?"),
        (["xyzzy"], "xyzzy: no such verb; lit-gen --help lists them"),
        (["sweep", "x.yaml", "--jbos", "3"], "--jbos: lit-gen sweep has no such option; did you mean --jobs?"),
        (["sweep", "x.yaml", "--coun=3"], "--coun=3: lit-gen sweep has no such option; did you mean --count?"),
        (["leaderboard", "--markdow"], "--markdow: lit-gen leaderboard has no such option; did you mean --markdown?"),
        (["report", "x", "--qqq"], "--qqq: lit-gen report has no such option; lit-gen report --help lists the options"),
        (["--versio"], "--versio: lit-gen has no such option; did you mean --version?"),
        (["ema", "x", "--std=0.1", "--a=3"], "--a=3: lit-gen ema has no such option; did you mean --at?"),
        (["ema", "x"], "--std: missing; give the relative standard deviation of the average, such as 0.1"),
        (["ema"], "RUN: missing; give a run that was trained with --ema.stds"),
        (["sweep"], "SWEEP.yaml: missing; give one W&B sweep file or more"),
        (["sweep", "x.yaml", "--jobs=two"], "--jobs: invalid int value: 'two'; lit-gen sweep --help lists the options"),
        (["sample", "x", "-n", "few"], "-n: invalid int value: 'few'; lit-gen sample --help lists the options"),
        (["reflow"], "RUN: missing; give a run directory, as in lit-gen reflow runs/digits_edm-..."),
        (["fit", "--budgt.num_images=3"], "--budgt.num_images=3: no such key; did you mean --budget.num_images?"),
        (["run", "--evaluation.sed=1"], "--evaluation.sed=1: no such key; did you mean --evaluation.seed?"),
        (["fit", "--model=EMD"], "model: unknown class EMD; did you mean EDM?"),
        (
            ["run", "--model=EDM", "--model.lr=1"],
            "model.lr: no such key; lit-gen run --model.help EDM lists the keys of EDM",
        ),
        (["fit", "--model=EDM", "--model.network=UNett"], "model.network: unknown class UNett; did you mean UNet?"),
        (["fit", "--zzz=1"], "--zzz=1: no such key; lit-gen fit --help lists the keys"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_misspelt_is_one_line_with_the_closest_match(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"lit-gen: error: {said}\n")


def test_the_nearest_of_several() -> None:
    assert closest("--seed", ["--grid.seed", "--seed_everything", "--seeds_of_all_kinds"], "") == (
        "did you mean --seed_everything?"
    )
    assert closest("chanels", ["channels", "channel_mult"], "") == "did you mean channels?"
    keys = ["--run", "--budget.num_images", "--data.num_val", "--evaluation.seed"]
    assert closest("--num", keys, "") == "did you mean one of --budget.num_images, --data.num_val?"
    assert closest("--num", [*keys, "-n"], "") == "did you mean -n?"
    assert closest("--num", keys[:2], "") == "did you mean --budget.num_images?"
    assert closest("--num", keys[:1], "read the manual") == "read the manual"
    assert closest("q", ["channels"], "read the manual") == "read the manual"


@pytest.mark.parametrize("verb", ["fit", "run"])
def test_all_keys_are_listed_ours_first(verb: str, parser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = key_help.of_all(parser, verb)
    assert text.startswith(f"usage: lit-gen {verb} --config FILE") and "Lightning command" not in text
    for example in ("--model.help EDM", "--sampler.help Heun", "--model.network.help UNet"):
        assert f"lit-gen {verb} {example}" in text
    listed = options(text)
    assert len(listed) == len(set(listed))
    linked = {"data.seed", "model.init_args.image_shape", "model.init_args.num_codes", "model.init_args.num_classes"}
    keys = {action.dest for action in parser._actions if "." in action.dest and not action.dest.endswith(".help")}
    assert {f"--{key}" for key in keys - linked} <= set(listed)
    assert {"--config", "--seed_everything", "--sampler.steps", "--model.network.channels"} <= set(listed)
    of_trainer = [index for index, option in enumerate(listed) if option.startswith("--trainer.")]
    assert len(of_trainer) > 30 and of_trainer == list(range(of_trainer[0], len(listed))), "they are the last"


@pytest.mark.parametrize("words", [["fit", "--help"], ["run", "-h"], ["fit", "--config=nowhere.yaml", "--help"]])
def test_help_comes_before_all_else(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, *words).startswith(f"usage: lit-gen {words[0]} ")


@pytest.mark.parametrize(
    ("words", "key", "keys"),
    [
        (["fit", "--model.network.help", "UNet"], "model.network", set(inspect.signature(UNet).parameters)),
        (["fit", "--model.network.help=GatedPixelCNN"], "model.network", {"channels", "num_layers", "head_channels"}),
        (["fit", "--model.discriminator.help", "PatchDiscriminator"], "model.discriminator", {"channels"}),
        (["run", "--data.source.help=Folder"], "data.source", set(inspect.signature(Folder).parameters)),
        (["fit", "--sampler.help", "Heun"], "sampler", {"steps", "nfe", "grid", *inspect.signature(Heun).parameters}),
        (["fit", "--sampler.grid.help", "Karras"], "sampler.grid", {"rho", "sigma_min", "sigma_max"}),
        (["evaluate", "--evaluation.feature_net.help", "Inception"], "evaluation.feature_net", {"weights"}),
        (["fit", "--data.source.source.help=lit_gen.data.Npz"], "data.source.source", {"path", "test", "name"}),
        (["fit", "--model.optimizer.help", "SGD"], "model.optimizer", {"lr", "momentum", "nesterov", "weight_decay"}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_the_keys_of_a_class_alone(
    words: list[str], key: str, keys: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, *words)
    name = words[-1].rpartition("=")[2].rpartition(".")[2]
    assert text.startswith(f"{name}: ")
    given = {"image_shape", "num_classes", "num_params", "channelwise", "out_channels", "augment_dim", "kwargs"}
    listed = {option.removeprefix(f"--{key}.") for option in options(text)}
    assert keys - given <= listed and not listed & given
    assert all(option.startswith(f"--{key}.") for option in options(text)), "and no others"


def test_the_keys_of_a_model_are_its_own_and_those_of_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fit", "--model.help", "EDM")
    assert text.startswith("EDM: Elucidating the design space of diffusion models")
    assert {"--model.sigma_data", "--model.network", "--model.optimizer", "--model.warmup"} <= set(options(text))
    assert re.search(r"--model.sigma_data X\s[^(]*\(default:\s+0.5\)", text)
    assert "--model.image_shape" not in text and "--trainer" not in text


def test_without_a_class_the_classes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*words: str) -> list[str]:
        return re.findall(r"^  (\w+)", printed(capsys, *words), re.MULTILINE)

    models = listed("fit", "--model.help")
    assert {"EDM", "DDPM", "VAE", "WGAN", "PointFlow"} <= set(models) and "GenerativeModel" not in models
    assert "DiT" in listed("run", "--model.network.help") and "Linear" not in listed("run", "--model.network.help")
    assert {"Points", "DigitsFeatures", "Inception"} <= set(listed("fit", "--evaluation.feature_net.help"))
    assert "Optimizer" not in listed("fit", "--model.optimizer.help")


@pytest.mark.parametrize("key", ["model", "sampler", "data.source", "model.network", "evaluation.feature_net"])
def test_every_class_that_is_listed_has_help(key: str, parser: Any) -> None:
    for name, cls in key_help.choices(key_help.kinds_at(parser, key)).items():
        text = key_help.of_class(parser, "fit", key, name)
        assert text.startswith(f"{name}: ") and inspect.getdoc(cls)


def test_a_class_or_key_that_is_not_there(parser: Any) -> None:
    for key, name, wrong in (
        ("model", "EDDM", "model: unknown class EDDM; did you mean EDM?"),
        ("sampler", "os.system", "sampler: unknown class os.system; lit-gen fit --sampler.help lists the classes"),
        ("budget", "X", "budget.help: budget does not take a class; lit-gen fit --help lists the keys"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(wrong)}$"):
            key_help.of_class(parser, "fit", key, name)


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("model.network.chanels", "did you mean channels? lit-gen fit --model.network.help CLASS lists"),
        ("model.netwrk.channels", "did you mean network? lit-gen fit --model.help CLASS lists"),
        ("sampler.stpes", "did you mean steps? lit-gen fit --sampler.help CLASS lists"),
        ("model.quux", "lit-gen fit --model.help CLASS lists"),
    ],
)
def test_advice_on_a_part_that_is_misspelt(key: str, advice: str, parser: Any) -> None:
    assert key_help.of_misspelt(parser, key).startswith(advice)


def test_advice_names_the_verb_and_the_class_if_it_is_known(parser: Any) -> None:
    advice = key_help.of_misspelt(parser, "model.network.quux", "run", "model.network", "UNet")
    assert advice == "lit-gen run --model.network.help UNet lists the keys of UNet"
    advice = key_help.of_misspelt(parser, "model.netwrk.channels", "run", "model.network", "UNet")
    assert advice == "did you mean network? lit-gen run --model.help CLASS lists those of a class"
