"""One module for each chapter after the first: its verdicts, takeaway, figures and tables, from results alone."""
