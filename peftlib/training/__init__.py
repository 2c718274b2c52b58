"""How it trains: the custom loop around Accelerate, and what it stands on."""
