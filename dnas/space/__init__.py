"""Search spaces: choices, limits, objectives, and the TOML files that define them."""
