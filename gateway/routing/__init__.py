"""Where a session goes: hash ring, replica health, placement records. Pure, time is an argument."""
