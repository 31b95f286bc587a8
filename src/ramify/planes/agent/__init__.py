"""The agent plane: who acts."""
