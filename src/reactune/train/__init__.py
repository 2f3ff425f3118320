"""Examples -> a LoRA adapter, the same with every back-end.

`trainer` runs a process for each method and survives kills; `job` is what such a process reads;
`backends` says which library trains, where and how it is started; `with_trl`, `with_unsloth`,
`with_axolotl` and `with_ray` are the processes themselves; `forward` is what TRL's steps compute.
"""
