"""Reports on a folder of runs: a page, tables and figures, and a live view in the terminal. They read the CSV and JSON
files of run folders, and load no agent."""
