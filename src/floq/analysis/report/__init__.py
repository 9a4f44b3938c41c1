"""What a folder of runs comes to: as a page, as tables and figures, and live in the terminal. It reads the CSV and JSON
files of run folders, and knows no agent."""
