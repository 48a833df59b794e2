"""How arguments become an experiment: order, overrides, identity."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.core.errors import UserError
from lit_gen.experiment.arguments import normalise_arguments
from lit_gen.experiment.identity import training_identity
from lit_gen.experiment.parser import ExperimentCLI, prefer_int
from tests.conftest import ROOT, arguments

DDPM = str(ROOT / "conf/experiment/digits_ddpm.yaml")


def resolved(*words: str) -> dict:
    return ExperimentCLI(words).resolved()


def identity(*words: str) -> str:
    return training_identity(resolved(*words), "fingerprint")


def test_arguments_mean_the_same_in_any_order() -> None:
    words = [f"--config={DDPM}", "--sampler=Heun", "--sampler.nfe=35", "--sampler.grid=Uniform", "--data.batch_size=32"]
    expected = resolved(*words)
    assert expected["sampler"]["init_args"]["nfe"] == 35
    assert expected["data"]["batch_size"] == 32
    for order in itertools.islice(itertools.permutations(words), 1, 120, 17):
        assert resolved(*order) == expected


def test_separate_values_and_null() -> None:
    words = ["--sampler.nfe", "10", "--sampler", "DDIM", "--config", DDPM, "--wandb.group=None"]
    assert normalise_arguments(words) == [
        f"--config={DDPM}",
        "--sampler=DDIM",
        "--sampler.nfe=10",
        "--wandb.group=null",
    ]
    assert resolved(f"--config={DDPM}", "--sampler=None")["sampler"] is None


def test_null_within_a_value_is_null() -> None:
    """W&B writes a list or a dictionary as Python does; YAML reads its `None` as a text."""
    words = ["--x={'a': None, 'b': [None, 'None', 1.5, True, {'c': None}]}", "--y=[None]", "--z={a: none, b: 'None'}"]
    assert normalise_arguments(words) == [
        '--x={"a": null, "b": [null, "None", 1.5, true, {"c": null}]}',
        "--y=[null]",
        "--z={a: none, b: 'None'}",
    ]
    sampler = "--sampler={'class_path': 'DDIM', 'init_args': {'steps': None, 'nfe': 7}}"
    config = resolved(f"--config={DDPM}", "--wandb={'group': None, 'project': 'p'}", sampler)
    assert (config["wandb"]["group"], config["wandb"]["project"]) == (None, "p")
    assert (config["sampler"]["init_args"]["steps"], config["sampler"]["init_args"]["nfe"]) == (None, 7)


def test_negative_numbers_are_values() -> None:
    assert normalise_arguments(["--trainer.max_steps", "-1", "--model", "EDM"]) == [
        "--model=EDM",
        "--trainer.max_steps=-1",
    ]


def test_appended_callbacks_keep_their_order() -> None:
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks+=Timer"]
    assert normalise_arguments([*words, f"--config={DDPM}"]) == [f"--config={DDPM}", *words]


def test_a_second_model_does_not_inherit_from_the_first() -> None:
    config = resolved(f"--config={DDPM}", f"--model={ROOT / 'conf/model/edm.yaml'}")
    assert config["model"]["class_path"].endswith(".EDM")
    assert "betas" not in config["model"]["init_args"]
    assert "num_timesteps" not in config["model"]["init_args"]


def test_a_group_file_and_an_override_of_it_go_together() -> None:
    config = resolved(f"--model={ROOT / 'conf/model/ddpm.yaml'}", "--model.betas=cosine", "--data.source=Digits")
    assert config["model"]["init_args"]["betas"] == "cosine"


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("model.class_conditional", "model: {conf}/model/ddpm.yaml\nmodel.class_conditional: true\n"),
        ("model.class_conditional", "model.class_conditional: true\nmodel: {conf}/model/ddpm.yaml\n"),
        ("model.init_args.betas", "model: DDPM\nmodel.init_args.betas: cosine\n"),
        ("trainer.max_steps", "model: DDPM\ntrainer: {conf}/trainer/cpu.yaml\ntrainer.max_steps: 3\n"),
    ],
)
def test_a_dotted_key_beside_its_group_in_one_file_is_refused(key: str, content: str, tmp_path: Path) -> None:
    """The parser would take the later of the two for the whole group, in part without a word."""
    file = tmp_path / "both.yaml"
    file.write_text(content.format(conf=ROOT / "conf") + "data: {source: Digits}\n")
    with pytest.raises(UserError, match=f"both.yaml: {key} conflicts with .* give --{key} on the command line"):
        ExperimentCLI([f"--config={file}"])


def test_dotted_keys_in_a_file_need_no_group(tmp_path: Path) -> None:
    file = tmp_path / "dotted.yaml"
    file.write_text(f"model: {ROOT / 'conf/model/ddpm.yaml'}\ndata.source: Digits\ndata.batch_size: 32\n")
    assert resolved(f"--config={file}")["data"]["batch_size"] == 32


def test_seed_defaults_to_zero_and_rules_the_data() -> None:
    assert resolved(f"--config={DDPM}")["seed_everything"] == 0
    config = ExperimentCLI([f"--config={DDPM}", "--seed_everything=3"]).objects()
    assert config.data.seed == 3


def test_a_model_must_be_named(tmp_path: Path) -> None:
    file = tmp_path / "nothing.yaml"
    file.write_text("data: {source: Digits}\n")
    with pytest.raises(UserError, match="model"):
        ExperimentCLI([f"--config={file}"]).objects()


@pytest.mark.slow
def test_only_what_changes_the_weights_changes_the_identity() -> None:
    base = [f"--config={DDPM}"]
    same = [
        ["--sampler=Heun", "--sampler.steps=3"],
        ["--evaluation.num_samples=77"],
        ["--data.num_workers=2"],
        ["--run.root=elsewhere", "--run.name=x"],
        ["--wandb.mode=offline", "--wandb.project=p"],
        ["--checkpoint.every=64", "--grid.every=64"],
        ["--trainer.log_every_n_steps=1"],
        ["--trainer.devices=1"],
        ["--trainer.accumulate_grad_batches=1"],
    ]
    other = [
        ["--seed_everything=1"],
        ["--model.optimizer.lr=0.5"],
        ["--model.network.channels=24"],
        ["--data.batch_size=32"],
        ["--data.flip=true"],
        ["--budget.num_images=100"],
        ["--ema.decay=0.5"],
        ["--trainer.precision=bf16-mixed"],
        ["--trainer.gradient_clip_val=1"],
        ["--trainer.devices=2"],
        ["--trainer.accumulate_grad_batches=2"],
        ["--trainer.accumulate_grad_batches=4"],
    ]
    expected = identity(*base)
    assert [identity(*base, *more) for more in same] == [expected] * len(same)
    identities = [identity(*base, *more) for more in other]
    assert len({expected, *identities}) == len(other) + 1
    assert training_identity(resolved(*base), "other images") != expected


def test_interpolation_is_resolved_after_overrides(tmp_path: Path) -> None:
    file = tmp_path / "linked.yaml"
    file.write_text(
        "model: {class_path: DDPM, init_args: {warmup: '${budget.num_images}'}}\n"
        "data: {source: Digits}\nbudget: {num_images: 640}\n"
    )
    assert resolved(f"--config={file}")["model"]["init_args"]["warmup"] == 640
    assert resolved(f"--config={file}", "--budget.num_images=1280")["model"]["init_args"]["warmup"] == 1280


def test_a_saved_configuration_gives_the_same_experiment(tmp_path: Path) -> None:
    words = arguments("WGAN", tmp_path, 640, "--sampler=null")
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(resolved(*words)))
    assert resolved(f"--config={saved}") == resolved(*words)


@pytest.mark.parametrize(
    ("model", "key", "value", "source"),
    [
        ("TokenPrior", "num_codes", 64, "the first stage"),
        ("TokenPrior", "num_codes", 32, "the first stage"),  # also what it would be
        ("LatentEDM", "image_shape", (1, 8, 8), "the data, or the first stage,"),
        ("DDPM", "num_classes", 3, "the data"),
    ],
)
def test_what_comes_from_elsewhere_cannot_be_set(
    model: str, key: str, value: object, source: str, tmp_path: Path
) -> None:
    words, given = arguments(model, tmp_path), str(value).replace("(", "[").replace(")", "]")
    with pytest.raises(UserError) as error:
        ExperimentCLI([*words, f"--model.{key}={given}"]).objects()
    assert str(error.value) == f"model.{key}: it comes from {source} and cannot be set to {value}; remove the key"
    ExperimentCLI(words).objects()
    assert key not in resolved(*words)["model"]["init_args"], "so that a run's own configuration can be read"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model.optimizer.lrr=1"], "model"),
        (["--modle=DDPM"], "modle"),
        (["--sampler=Hoin"], "Hoin"),
        (["--sampler=Heun", "--sampler.stepps=4"], "stepps"),
        (["--sampler.steps=4"], "sampler"),
        (["--data.batch_size=many"], "data.batch_size"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--evaluation.split=trial"], "evaluation.split"),
    ],
)
def test_wrong_keys_and_values_are_named_in_one_line(words: list[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        ExperimentCLI([f"--config={DDPM}", *words]).objects()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    print(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.network=UNett"], "model.network: unknown class UNett; did you mean UNet?"),
        (["--model.optimizer.lr=abc"], "model.optimizer.lr: abc is not accepted; expected float"),
        (["--model.network.channels=abc"], "model.network.channels: abc is not accepted; expected int"),
        (
            ["--model.optimiser.lr=1"],
            "model.optimiser.lr: no such key; did you mean optimizer? lit-gen fit --model.help EDM",
        ),
        (["--model.network.chanels=3"], "model.network.chanels: no such key"),
        (["--sampler=Heun", "--sampler.stepz=3"], "sampler.stepz: no such key; did you mean steps? lit-gen fit --"),
        (
            ["--sampler=Heun", "--sampler.grid=Karrass"],
            "sampler.grid: unknown class Karrass; did you mean Karras?",
        ),
        (["--sampler.steps=3"], "sampler.steps: name the class with it, --sampler CLASS (one of "),
        (["--data.batch_size=abc"], "data.batch_size: abc is not accepted; expected int"),
        (
            ["--model=GAN", "--model.loss=hing"],
            "model.loss: hing is not accepted; choose one of minimax, non_saturating,",
        ),
        (
            ["--model=GAN", "--model.augment=DiffAugment", "--model.augment.policy=cutout"],
            "model.augment.policy: cutout is not accepted; expected a sequence",
        ),
        (["--modl=EDM"], "--modl=EDM: no such key; did you mean --model?"),
        (["--budget.num_image=64"], "--budget.num_image=64: no such key; did you mean --budget.num_images?"),
        (["--ema.half", "64"], "--ema.half=64: no such key; did you mean --ema.halflife?"),
        (["--seed=3"], "--seed=3: no such key; did you mean --seed_everything?"),
    ],
)
def test_errors_name_the_whole_key_and_its_choices(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        ExperimentCLI([f"--config={ROOT}/conf/experiment/digits_edm.yaml", *words])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sampler=theirs.Heunn"],
            "sampler: theirs.Heunn cannot be imported: module 'theirs' has no attribute 'Heunn'",
        ),
        (
            ["--sampler=thiers.Heun"],
            "sampler: thiers.Heun cannot be imported: No module named 'thiers'; modules are searched in the current "
            "folder and in PYTHONPATH",
        ),
        (["--sampler=theirs.Thing"], "sampler: theirs.Thing is not a Sampler"),
        (["--model=theirs.Thing"], "model: theirs.Thing is not a GenerativeModel"),
        (
            ["--sampler=needs_more.Heun"],
            "sampler: needs_more.Heun cannot be imported: No module named 'no_such_module'",
        ),
        (["--sampler=typo.Heun"], "sampler: typo.Heun cannot be imported: invalid syntax (typo.py, line 1)"),
        (
            ["--model.network=theirs.Net"],
            "model.network: theirs.Net cannot be imported: module 'theirs' has no attribute",
        ),
        (["--data.source=theirs.Set"], "data.source: theirs.Set cannot be imported: module 'theirs' has no attribute"),
        (["--evaluation.feature_net=theirs.Thing"], "evaluation.feature_net: theirs.Thing is not a FeatureNet"),
        (["--sampler=missing.yaml"], "sampler: the file missing.yaml does not exist"),
        (["--sampler=conf/missing.yaml"], "sampler: the file conf/missing.yaml does not exist"),
    ],
)
def test_a_class_of_the_users_own_that_is_wrong(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text("class Thing: pass\n")
    (tmp_path / "needs_more.py").write_text("import no_such_module\n")
    (tmp_path / "typo.py").write_text("x = = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        ExperimentCLI([f"--config={ROOT}/conf/experiment/digits_edm.yaml", *words])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_choices_are_what_users_may_choose() -> None:
    import lit_gen.pictures.trajectories  # noqa: F401  (defines a sampler for its own use)

    with pytest.raises(UserError, match="unknown class Xyzzy") as error:
        ExperimentCLI([f"--config={ROOT}/conf/experiment/digits_edm.yaml", "--sampler=Xyzzy"])
    assert str(error.value).endswith(
        "one of AnnealedLangevin, DDIM, DDPM, DEIS, DPMSolver, Euler, EulerMaruyama, FlowMapSampler, "
        "GaussianMixturePrior, Heun, IPNDM, LMS, PredictorCorrector, RK45, Restart, Temperature, TokenSampling, "
        "Truncation, UniPC"
    )


@pytest.mark.parametrize(
    ("text", "reason"), [("model: {a: [1\nb: 2", "not valid YAML"), ("- a\n- b\n", "expected keys")]
)
def test_a_file_that_is_no_configuration_is_named(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(str(file))}: {reason}"):
        ExperimentCLI([f"--config={file}"])


@pytest.mark.parametrize(
    ("part", "value", "wanted"),
    [
        ("model.perceptual", "foo", "choose one of auto, lpips, features, none"),
        ("model.quantiser.similarity", "foo", "choose one of euclidean, cosine"),
        ("sampler.size", "[4]", "expected [int, int]"),
    ],
)
def test_what_a_value_should_be_is_said(part: str, value: str, wanted: str, tmp_path: Path) -> None:
    """On the command line and in a file."""
    of = {"model": "VQGAN", "model.quantiser": "VectorQuantiser", "sampler": "TokenSampling"}
    names = [name for name in of if part.startswith(f"{name}.")]
    text = f"{{class_path: {of[names[-1]]}, init_args: {{{part.rpartition('.')[2]}: {value}}}}}"
    if names[0] != names[-1]:
        text = f"{{class_path: {of[names[0]]}, init_args: {{quantiser: {text}}}}}"
    file = tmp_path / "wrong.yaml"
    file.write_text(f"{names[0]}: {text}")
    for words in ([*(f"--{name}={of[name]}" for name in names), f"--{part}={value}"], [f"--config={file}"]):
        with pytest.raises(UserError) as error:
            ExperimentCLI(words)
        assert str(error.value) == f"{part}: {value} is not accepted; {wanted}"


def test_a_whole_number_is_an_int_whichever_type_is_named_first() -> None:
    cli = ExperimentCLI([f"--config={DDPM}"])
    action: Any = next(action for action in cli.parser._actions if action.dest == "trainer.limit_train_batches")
    for hint in (float | int | None, int | float | None):
        action._typehint = hint
        prefer_int(cli.parser)
        for text, value in (("5", 5), ("1", 1), ("0.5", 0.5), ("1.0", 1.0)):
            parsed = cli.parser.parse_args([f"--config={DDPM}", f"--trainer.limit_train_batches={text}"])
            assert repr(parsed.trainer.limit_train_batches) == repr(value)
