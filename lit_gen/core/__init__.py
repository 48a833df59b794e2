"""Helpers that every other package uses. Nothing here imports another package of lit_gen.

| file | content |
| --- | --- |
| `errors` | `UserError`, for input that the user can correct, and the context of its messages |
| `noise` | random numbers keyed by seed and sample index |
| `seeds` | the range of valid seeds |
| `pixels` | the maps between 8-bit images and float images in [-1, 1] |
| `modes` | evaluation mode for the length of a block |
| `accumulation` | sums over the micro-batches of an optimizer step |
| `processes` | rank, number of processes, and collective operations |
| `files` | atomic writes, and reads of regular files of bounded size |
| `records` | validated JSON files |
| `yaml` | YAML files of plain types and bounded size |
| `data_facts` | the facts about a data set that a run records |
| `imports` | the import paths that a configuration may name |
| `text` | untrusted text, escaped for terminals, figures, Markdown and CSV |
| `progress` | progress events and progress bars |
| `display` | the columns of a progress bar |
| `version` | the version of the package |
"""
