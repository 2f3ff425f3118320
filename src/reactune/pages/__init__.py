"""Pages, reports and pictures: HTML and SVG without scripts, the same bytes for the same numbers.

`facts` reads the database, `verdicts` says in plain words what it means, `overview` and `views`
make sections of it (`tables`, `pictures`), and `render` lays them out by the templates. `pictures`
draws for other packages, too; `archive`, `report` and `reward` are pages that are files, and
`terminal` is the overview for a terminal.
"""
