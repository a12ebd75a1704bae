"""Step 5: base against tuned against honest baselines, each number with its interval."""
