"""The report of a run: one offline HTML page, and the same facts as JSON."""
