"""Step 1: what is asked. Typed recipe sections, loading, resolving. No torch here or below."""
