"""How the budget for N candidates is spent: one signature for every strategy, so any swaps for any."""
