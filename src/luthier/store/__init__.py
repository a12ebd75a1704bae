"""What happened: run folders, locks, hashes, atomic writes, events, registry, audit chain. A crash here cannot lie."""
