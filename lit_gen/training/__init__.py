"""Everything around a training step, for all families.

| file | content |
| --- | --- |
| `processes` | number of processes, their devices, and the decisions that they share |
| `precision` | training with bfloat16 or float64 weights |
| `callbacks/budget` | stop after a number of images or a time |
| `callbacks/checkpoint` | atomic checkpoints, also on Ctrl-C and SIGTERM |
| `callbacks/ema` | averages of the weights |
| `callbacks/monitor` | learning rate, gradient norm and speed; a stop if the loss is not finite |
| `callbacks/progress` | the progress bar |
| `callbacks/sample_grid` | sample grids and other plots during training |
"""
