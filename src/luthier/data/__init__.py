"""Step 3: what a file holds, what of it may be learned from, and how it is put to the model. No torch here."""
