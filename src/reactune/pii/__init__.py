"""Personal data in texts is found, replaced by typed placeholders, and can be filled in again.

`detectors` opens what the settings name, `patterns` finds what has a fixed form, `tagger` finds
names, `spans` replaces what was found.
"""
