"""The audit of stores: what would make a figure measured on them wrong, or show who a patient is."""
