"""The world an agent acts in. Imports contracts only."""
