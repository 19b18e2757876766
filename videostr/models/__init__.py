"""The seam for model families: whatever depends on the family of a model is in this package, behind `base.ModelFamily`."""
