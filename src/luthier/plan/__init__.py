"""Step 2: what will happen. Memory, time, what the data can prove, and which technique ranks first. No torch here."""
