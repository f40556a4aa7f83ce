"""The truth on disk: records and their leases, where they come from, what they cost, where they go."""
