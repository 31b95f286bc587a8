"""Where it runs: providers of sandboxes, and the parts they share."""
