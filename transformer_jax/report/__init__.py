"""From a directory of results to tables, figures and one page. Reads files only."""
