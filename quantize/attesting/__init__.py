"""An artifact made again from its source and compared, and the statement that says so."""
