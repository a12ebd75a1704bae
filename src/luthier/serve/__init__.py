"""Step 6: an OpenAI-compatible server over one version. What it answers is what was evaluated."""
