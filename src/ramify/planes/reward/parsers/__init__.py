"""Parsers: what an agent said, read as an answer."""
