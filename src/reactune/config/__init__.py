"""Settings: read from one TOML file, checked before anything is done, and frozen.

`sections` has a model for each section, with type, limits, default and meaning of every setting;
`settings` reads a file, fits the sections together, and writes them out again.
"""
