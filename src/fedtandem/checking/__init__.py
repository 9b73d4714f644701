"""Whether a written path can be believed: verdicts with reasons, from checkers that need no model or one."""
