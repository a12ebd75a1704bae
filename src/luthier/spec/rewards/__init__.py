"""What a reward is told: one section a type, of the same name as its implementation in `luthier.rewards`."""
