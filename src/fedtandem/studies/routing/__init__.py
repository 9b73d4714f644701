"""Studies of routing on news topics: weak and strong classifiers, learnt thresholds, weighting, liars."""
