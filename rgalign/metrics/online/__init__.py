"""What the deployed service is worth: CTR@K, Intent Hit Rate and CSAT of two arms, and whether they may be compared."""
