"""Many at once, on real stores, with everything going wrong that does: budgets must hold all the same."""
