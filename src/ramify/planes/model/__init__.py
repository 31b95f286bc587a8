"""The policy under an agent: clients of model endpoints."""
