"""What happened, for people: one self-contained HTML file and a few lines for the terminal. No torch here."""
