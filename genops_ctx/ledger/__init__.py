"""Where charges live. The ledger is the truth, accounts are derived from it."""
