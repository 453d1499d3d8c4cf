"""Files that one process writes and another one reads: their names, their law, their records."""
