"""Programs of their own on top of the engine, one room each."""
