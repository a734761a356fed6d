"""Who may do what: identities, method rules, visibility, limits. Pure, time is an argument."""
