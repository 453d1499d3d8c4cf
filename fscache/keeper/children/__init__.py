"""Other processes: forks for what may wait, the worker and ``prepare``, and the table of what they may say."""
