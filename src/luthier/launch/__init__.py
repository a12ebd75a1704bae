"""How a stage starts: a child process of this machine."""
