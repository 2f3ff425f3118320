"""Run folders: a stage is done once, by one process, and its manifest is written last.

`folders` holds the names of runs and does a stage, `manifest` what a stage read and wrote, `locks`
who may work in a stage, `remote` the copies of runs that workers share at a URL.
"""
