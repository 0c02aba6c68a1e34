"""The report page: a Jinja template, its style sheet and its script, which ``reports.html`` puts into one
file."""
