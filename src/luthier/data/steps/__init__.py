"""The refining steps, a file each under the name that `data.steps` gives it; `luthier.spec.steps` knows what they need.

The last line of each file is its step, as `STEP`.
"""
