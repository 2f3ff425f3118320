"""Commands on files and plans, without a rollout: nothing here changes what is live.

`compare` compares the arms of any file, `offpolicy` evaluates logged choices, `tables` reads both
sorts of file, and `plan` plans a rollout and forecasts the open one.
"""
