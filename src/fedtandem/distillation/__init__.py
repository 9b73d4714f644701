"""The losses that teach a student, and the step that applies them."""
