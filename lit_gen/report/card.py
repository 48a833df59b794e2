"""The model card of an exported model: what it is, its data, its scores, and the commands that load and sample it."""

from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.report import leaderboard, render
from lit_gen.report.results import Result, load_results
from lit_gen.runs.directory import Run

USAGE = """\
## Load and sample

```python
import lit_gen

model = lit_gen.load("FOLDER")
images = model.sample(64, seed=0)  # uint8, (64, {shape})
```

```sh
lit-gen import FOLDER
lit-gen sample runs/RUN -n 64 --out samples.png
lit-gen evaluate runs/RUN
```

`lit-gen import` makes a run of this folder. Name the place of the images with `--data.source` to evaluate it: scores
are compared with the images whose fingerprint stands above. Reading the folder runs no code of it; a model class that
is not part of lit_gen must be on your Python path.
"""

DIFFUSERS_USAGE = """\
## Load and sample

{python}
```sh
lit-gen import FOLDER --data.source CLASS
```

`lit-gen import` makes a run of this folder{use}. Name the images it was trained on with `--data.source`.
"""
ANY_SAMPLER = ", which can be sampled and evaluated with any sampler"
FIRST_STAGE = ": a first stage, on whose latents or codes a second stage can be trained (`--first_stage.run`)"
PIPELINE = """\
```python
from diffusers import DDIMPipeline

images = DDIMPipeline.from_pretrained("FOLDER")(batch_size=64).images
```
"""


def model_card(run: Run, facts: dict[str, Any]) -> str:
    """Return the model card of an exported model in Markdown.

    Args:
        run: The run.
        facts: Content of the config.json of the exported folder.
    """
    return _card(run, facts, "lit_gen", USAGE.format(shape=", ".join(map(str, facts["data"]["image_shape"]))))


def diffusers_card(run: Run, facts: dict[str, Any], is_pipeline: bool) -> str:
    """Return the model card of a folder of diffusers in Markdown.

    Args:
        run: The run.
        facts: Facts about the run, as in the config.json of an exported folder.
        is_pipeline: Whether the folder is a pipeline.
    """
    use = FIRST_STAGE if facts["sampler"] is None else ANY_SAMPLER  # a diffusion model has one
    return _card(run, facts, "diffusers", DIFFUSERS_USAGE.format(python=PIPELINE if is_pipeline else "", use=use))


def _card(run: Run, facts: dict[str, Any], library: str, usage: str) -> str:
    data, of_run, weights = facts["data"], facts["run"], facts["weights"]
    shape = "x".join(map(str, data["image_shape"]))
    classes = "without labels" if not data["num_classes"] else f"{data['num_classes']} classes"
    conditional = facts["config"]["model"].get("init_args", {}).get("class_conditional", False)
    sampler = "its own" if facts["sampler"] is None else facts["sampler"]["name"]
    rows = [
        ("model", facts["title"]),
        ("class", f"`{facts['config']['model']['class_path']}`"),
        ("images", f"{shape}, {classes}"),
        ("data", data["name"]),
        ("fingerprint of the training images", f"`{data['images_fingerprint']}`"),
        ("images seen", f"{facts['images_seen']:,}"),
        ("weights", weights),
        ("default sampler", sampler),
        ("training run", f"`{of_run['name']}`, identity `{of_run['identity']}`, seed {of_run['seed']}"),
        ("lit_gen", facts["version"]),
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    return f"""\
---
library_name: {library}
tags: [image-generation, {"class-conditional" if conditional else "unconditional"}]
---

# {facts["title"]} on {data["name"]}

{table}

## Scores

{_scores(run, weights)}

{usage}"""


def _scores(run: Run, weights: str) -> str:
    """Return the leaderboards of the evaluations of a run with given weights, one per protocol."""
    try:
        found = [result for result in load_results(run.directory) if result.record.weights == weights]
    except UserError:  # there are none, or all are damaged
        found = []
    if not found:
        return "Not evaluated yet."
    return "\n".join(_board(results) for results in leaderboard.comparable(found)).rstrip()


def _board(results: list[Result]) -> str:
    return render.to_markdown(leaderboard.rank(results))
