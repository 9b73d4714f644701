"""Studies of LaDa: which items to learn, and whether the contrast of whole paths helps."""
