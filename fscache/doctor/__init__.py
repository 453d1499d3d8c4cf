"""What this host can do, tried rather than guessed, and what to change when it cannot."""
