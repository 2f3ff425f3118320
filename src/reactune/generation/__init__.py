"""What a model writes before people see it: tips as a service would draw and guard them.

`samples` draws them, `on_policy` makes training rows of the best and the worst of several, and
`judge` compares generators by rewards that other people's reactions taught.
"""
