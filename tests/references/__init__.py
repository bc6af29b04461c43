"""Independent float64 references in NumPy: plain loops over the formulas, sharing no code with the package.

A reference takes the parameters as ``state`` (the ``state_dict`` as NumPy arrays) and returns its outputs in the
order of the component.
"""
