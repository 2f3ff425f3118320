"""Pages, reports and pictures: HTML and SVG without scripts, the same bytes for the same numbers.

`facts` reads the database, `verdicts` says in plain words what it means, `views` makes sections of
it (`tables`, `pictures`), and `render` lays them out by the templates. `pictures` draws for other
packages, too; `archive`, `report` and `reward` are pages that are files.
"""
