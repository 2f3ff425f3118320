"""Pages, reports and plots: HTML and SVG without scripts, the same bytes for the same numbers.

`facts` reads the database, `verdicts` says in plain words what it means, `views` makes sections of
it (`tables`, `pictures`), and `render` lays them out by the templates. `plots` draws for other
packages; `report` and `reward` are pages that are files.
"""
