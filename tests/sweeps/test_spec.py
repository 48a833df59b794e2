import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.core.errors import UserError
from lit_gen.sweeps.spec import load_sweep
from lit_gen.sweeps.trial import option

COMMAND = ["${env}", "lit-gen", "run", "--config=conf/x.yaml", "${args}"]


def write(folder: Path, file: str = "s.yaml", **config: object) -> Path:
    path = folder / file
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def test_grid_is_the_product_in_the_order_of_the_file_last_key_fastest(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "method: grid\nparameters:\n  z: {values: [EDM, DDPM]}\n  b: {value: 3}\n"
        "  a.nfe: {min: 1, max: 3}\n  c: {distribution: q_uniform, min: 0, max: 1, q: 0.5}\n"
    )
    trials = load_sweep([path]).trials
    expected = [
        {"z": z, "b": 3, "a.nfe": nfe, "c": c} for z, nfe, c in itertools.product(["EDM", "DDPM"], [1, 2, 3], [0, 0.5])
    ]
    assert [trial.parameters for trial in trials] == expected
    assert all(list(trial.parameters) == ["z", "b", "a.nfe", "c"] for trial in trials)
    assert trials[1].arguments == ["--z=EDM", "--b=3", "--a.nfe=1", "--c=0.5"]
    assert len({trial.id for trial in trials}) == len(expected) == 12


def test_arguments_are_those_of_wandb_agent(tmp_path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    parameters = {
        "none": None,
        "yes": True,
        "no": False,
        "float": 1e-07,
        "text": "1e-3",
        "list": [1, 2.5, None, "a b"],
        "optimizer": {"lr": 0.1, "nested": {"betas": [0.9, 0.5]}},
    }
    nested = {"lr": {"value": 0.1}, "nested": {"parameters": {"betas": {"value": [0.9, 0.5]}}}}
    entries = {key: {"value": value} for key, value in parameters.items()} | {"optimizer": {"parameters": nested}}
    stored = {"args": {key: {"value": value} for key, value in parameters.items()}}
    expected = utils.create_sweep_command_args(stored)
    for macro in ("args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_append_hydra"):
        path = write(tmp_path, method="grid", parameters=entries, command=["lit-gen", "run", f"${{{macro}}}"])
        (trial,) = load_sweep([path]).trials
        assert trial.arguments == expected[macro]
        assert trial.parameters == parameters
    (trial,) = load_sweep([write(tmp_path, method="grid", parameters=entries)]).trials
    assert trial.arguments[:3] == ["--none=None", "--yes=True", "--no=False"]
    assert trial.arguments[-1] == "--optimizer={'lr': 0.1, 'nested': {'betas': [0.9, 0.5]}}"


def test_whole_floats_become_integers_as_in_the_json_of_wandb(tmp_path):
    path = write(tmp_path, method="grid", parameters={"a": {"values": [2.0, 2.5, 1e30, True]}, "b": {"value": [3.0]}})
    assert [trial.arguments for trial in load_sweep([path]).trials] == [
        ["--a=2", "--b=[3]"],
        ["--a=2.5", "--b=[3]"],
        ["--a=1e+30", "--b=[3]"],
        ["--a=True", "--b=[3]"],
    ]


def test_command_keeps_its_fixed_arguments_and_fills_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGET", "7")
    command = [
        "${env}",
        "${interpreter}",
        "-m",
        "lit_gen",
        "run",
        "--a=${envvar:BUDGET}",
        "${args}",
        3,
        "${envvar:NO_}",
    ]
    path = write(tmp_path, method="grid", parameters={"x": {"value": 1}, "y": {"value": 2}}, command=command)
    assert load_sweep([path]).trials[0].arguments == ["--a=7", "--x=1", "--y=2", "3", "NO_"]


def test_ids_depend_on_what_a_trial_does_and_not_on_where_it_stands(tmp_path):
    def only_id(**config: Any) -> str:
        (trial,) = load_sweep([write(tmp_path, method="grid", **config)]).trials
        return trial.id

    a, b = {"a": {"value": 1}}, {"b": {"value": 2}}
    base = only_id(parameters=a | b)
    assert base == only_id(parameters=b | a, name="other", command=["lit-gen", "run", "${args}"])
    assert base == only_id(parameters={"a": {"values": [1.0]}} | b)
    assert base != only_id(parameters=a | {"b": {"value": 3}})
    assert base != only_id(parameters=a | {"b": {"value": "2"}})
    assert base != only_id(parameters=a | b, command=COMMAND)


def test_several_files_form_one_queue_without_repeats(tmp_path):
    first = write(tmp_path, file="first file.yaml", method="grid", parameters={"x": {"values": [1, 2, 2]}})
    second = write(tmp_path, file="b.yaml", name="B", method="grid", parameters={"x": {"values": [3, 2, 0]}})
    sweep = load_sweep([first, second])
    assert [trial.parameters["x"] for trial in sweep.trials] == [1, 2, 3, 0]
    assert sweep.name == "first-file"
    assert load_sweep([second, first]).name == "B"
    assert load_sweep([second], name="über/x").name == "ber-x"


def test_random_search_is_seeded_and_its_draws_do_not_depend_on_each_other(tmp_path):
    spaces = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
        "opt": {"parameters": {"width": {"values": [8, 16, 32]}, "beta": {"min": 0.5, "max": 0.9}}},
    }
    path = write(tmp_path, method="random", run_cap=5, parameters=spaces)

    def draws(**options: Any) -> list[dict]:
        return [trial.parameters for trial in load_sweep([path], **options).trials]

    five = draws()
    assert five == draws(seed=0) and len(five) == 5
    assert draws(count=3) == five[:3]
    assert all(a != b for a, b in zip(draws(seed=1), five, strict=True))
    assert all(1e-5 < draw["lr"] < 1e-1 and 0.5 < draw["opt"]["beta"] < 0.9 for draw in five)
    assert len({draw["lr"] for draw in five}) == 5
    more = {"extra": {"distribution": "normal"}} | spaces
    write(tmp_path, method="random", run_cap=8, parameters=more)
    assert [{key: draw[key] for key in spaces} for draw in draws()][:5] == five


def test_run_cap_and_count_shorten_a_grid(tmp_path):
    path = write(tmp_path, method="grid", run_cap=4, parameters={"x": {"values": list(range(10))}})
    assert [trial.parameters["x"] for trial in load_sweep([path]).trials] == [0, 1, 2, 3]
    assert [trial.parameters["x"] for trial in load_sweep([path], count=2).trials] == [0, 1]


X = {"x": {"values": [1, 2]}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"parameters": X}, ["method is missing"]),
        ({"method": "bayes", "parameters": X}, ["bayes", "run_cap"]),
        ({"method": "custom", "parameters": X}, ["custom", "wandb agent"]),
        ({"method": "gird", "parameters": X}, ["gird", "grid, random"]),
        ({"method": "grid"}, ["parameters", "at least one"]),
        ({"method": "grid", "parameters": {}}, ["parameters", "at least one"]),
        ({"method": "grid", "parameters": X, "paramters": X}, ["paramters", "parameters?"]),
        ({"method": "grid", "parameters": X, "scheduler": {}}, ["scheduler", "wandb agent"]),
        ({"method": "grid", "parameters": {"x": {"values": []}}}, ["parameters.x.values", "at least one"]),
        ({"method": "grid", "parameters": {"x": {"min": 0.0, "max": 1.0}}}, ["parameters.x", "uniform", "random"]),
        ({"method": "grid", "parameters": {"x": 3}}, ["parameters.x", "values"]),
        ({"method": "grid", "parameters": {"x y": {"value": 3}}}, ["parameters", "x y"]),
        ({"method": "grid", "parameters": {"x": {"parameters": {"y": {}}}}}, ["parameters.x.parameters.y"]),
        ({"method": "grid", "parameters": {"x": {"parameters": X, "value": 1}}}, ["parameters.x", "nested"]),
        ({"method": "random", "parameters": X}, ["run_cap", "--count"]),
        ({"method": "grid", "parameters": X, "run_cap": 0}, ["run_cap", "0"]),
        ({"method": "grid", "parameters": X, "name": 3}, ["name", "3"]),
        ({"method": "grid", "parameters": X, "metric": {"goal": "minimize"}}, ["metric", "name"]),
        ({"method": "grid", "parameters": X, "metric": {"name": "a", "goal": "up"}}, ["metric.goal", "up"]),
        ({"method": "grid", "parameters": X, "command": "lit-gen run"}, ["command", "list"]),
        ({"method": "grid", "parameters": X, "command": ["python", "${args}"]}, ["command", "`run`"]),
        ({"method": "grid", "parameters": X, "command": ["run", "${args_json_file}"]}, ["command", "args_json_file"]),
    ],
)
def test_bad_sweeps_name_file_and_key(tmp_path, config, words):
    path = write(tmp_path, **config)
    with pytest.raises(UserError) as error:
        load_sweep([path])
    for word in [str(path), *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "word"), [("a: [", "not valid YAML"), ("- a", "mapping"), ("", "mapping")])
def test_bad_files_are_named(tmp_path, content, word):
    path = tmp_path / "s.yaml"
    with pytest.raises(UserError, match="no such sweep file"):
        load_sweep([path])
    path.write_text(content)
    with pytest.raises(UserError, match=word) as error:
        load_sweep([path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_option_reads_both_spellings():
    assert option(["--a=1", "--b", "2", "--a=3"], "a") == "3"
    assert option(["--a=1", "--b", "2"], "b") == "2"
    assert option(["--a=1", "--b"], "b") is None


def test_reading_sweeps_imports_neither_torch_nor_lightning_nor_wandb():
    code = "import sys, lit_gen.sweeps; assert not {'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_edited_configuration_file_makes_another_trial(tmp_path: Path) -> None:
    config, sweep = tmp_path / "experiment.yaml", tmp_path / "sweep.yaml"
    sweep.write_text(
        f"method: grid\ncommand: [lit-gen, run, '${{args}}']\nparameters: {{config: {{values: [{config}]}}}}\n"
    )
    config.write_text("budget: {num_images: 1}\n")
    (first,) = load_sweep([sweep]).trials
    (same,) = load_sweep([sweep]).trials
    config.write_text("budget: {num_images: 2}\n")
    (other,) = load_sweep([sweep]).trials
    assert first.id == same.id != other.id
    assert first.arguments == other.arguments


def test_an_edited_file_that_a_configuration_names_makes_another_trial(tmp_path: Path, monkeypatch) -> None:
    """Relative to the file that names it, or to the working directory; files may name one another in a circle."""
    monkeypatch.chdir(tmp_path)
    contents = {
        "conf/experiment/x.yaml": "model: ../model/m.yaml\nreflow: {teacher: conf/teacher.yaml}\n",
        "conf/model/m.yaml": "init_args: {network: ../n.yml, callbacks: [{path: ./own.yaml}]}\n",
        "conf/model/own.yaml": "class_path: X\n",
        "conf/n.yml": "teacher: conf/experiment/x.yaml\n",
        "conf/teacher.yaml": "[this, is: no YAML",
        "nested.yaml": "a: 1\n",
    }
    for name, content in contents.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    nested = {"parameters": {"network": {"value": "nested.yaml"}}}
    entries = {"config": {"value": "conf/experiment/x.yaml"}, "model": nested}
    sweep = write(tmp_path, method="grid", parameters=entries)

    def identity() -> str:
        (trial,) = load_sweep([sweep]).trials
        return trial.id

    seen = {identity()}
    assert {identity()} == seen
    for number, (name, content) in enumerate(contents.items(), start=1):
        Path(name).write_text(f"{content}# edited\n")
        seen.add(identity())
        assert len(seen) == number + 1, name


def test_a_note_says_which_training_comes_first_and_the_budget_of_each(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("budget: {num_images: 500}\n")
    Path("plain.yaml").write_text("reflow: {teacher: runs/first}\nbudget: {num_images: 3}\n")
    Path("second.yaml").write_text("reflow: {teacher: first.yaml}\nbudget: {num_images: 200}\n")
    overridden = "reflow: {teacher: first.yaml, teacher_overrides: {budget.num_images: 400}}\n"
    Path("third.yaml").write_text(overridden)
    configs = {"config": {"values": ["first.yaml", "plain.yaml", "second.yaml", "third.yaml", "nowhere.yaml"]}}

    def notes(**parameters) -> list[str]:
        return load_sweep([write(tmp_path, method="grid", parameters=configs | parameters)]).notes

    note = (
        "{}.yaml: first first.yaml: {} images (reflow.teacher.budget.num_images), "
        "then itself: {} images (budget.num_images)"
    )
    third = "the default number of"
    assert notes() == [note.format("second", 500, 200), note.format("third", 400, third)]
    assert notes(seed={"values": [1, 2]}) == notes()
    own = {"budget.num_images": {"value": 100}}
    assert notes(**own) == [note.format("second", 500, 100), note.format("third", 400, 100)]
    both = own | {"reflow.teacher.budget.num_images": {"value": 50}}
    assert notes(**both) == [note.format("second", 50, 100), note.format("third", 50, 100)]


def test_ids_are_the_hash_of_command_parameters_and_files(tmp_path: Path, monkeypatch) -> None:
    """Another rule would make every finished trial a new one."""
    monkeypatch.chdir(tmp_path)
    content = "model: {class_path: DDPM}\nreflow: {teacher: conf/there_is_none.yaml}\n"
    Path("x.yaml").write_text(content)
    entries = {"config": {"value": "./x.yaml"}, "a": {"value": [1, "b"]}, "sampler": {"value": "none.yaml"}}
    (trial,) = load_sweep([write(tmp_path, method="grid", parameters=entries)]).trials
    parameters = {"config": "./x.yaml", "a": [1, "b"], "sampler": "none.yaml"}
    hashed = [["${args}"], parameters, {"./x.yaml": hashlib.sha256(content.encode()).hexdigest()}]
    assert trial.id == hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("key", "value"), [("project", 7), ("entity", ["a", "b"]), ("description", {"a": 1})])
def test_where_a_sweep_is_logged_is_text(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, method="grid", parameters={"a": {"value": 1}}, **{key: value})
    with pytest.raises(UserError, match=rf"{path}: {key}: expected text, got .*; "):
        load_sweep([path])


def test_a_trials_own_project_comes_before_that_of_its_file(tmp_path: Path) -> None:
    place: dict[str, Any] = {"project": "files", "entity": "team"}
    both = write(tmp_path, method="grid", parameters={"wandb.project": {"value": "own"}}, **place)
    (trial,) = load_sweep([both]).trials
    assert trial.arguments == ["--wandb.project=own", "--wandb.entity=team"]
    command = ["lit-gen", "run", "--wandb.entity", "mine", "${args}"]
    fixed = write(tmp_path, method="grid", parameters={"a": {"value": 1}}, command=command, **place)
    (trial,) = load_sweep([fixed]).trials
    assert trial.arguments == ["--wandb.entity", "mine", "--a=1", "--wandb.project=files"]
