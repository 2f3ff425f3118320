"""Reports and plots: self-contained HTML and SVG, the same bytes for the same numbers.

`plots` draws, for other packages too; `report` lays out sections by the template beside it.
"""
