"""Ramify: stateful environments into scored, training-ready trajectory trees."""
