"""Who answers: how unsure the SLM is, when that is too unsure, and who is asked then (FedHLM)."""
