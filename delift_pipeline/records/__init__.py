"""From files to typed, identified records and immutable dataset versions."""
