"""Step 4: the training loop, exact to the bit after any interruption."""
