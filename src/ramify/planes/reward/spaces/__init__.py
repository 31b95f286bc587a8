"""Ready rewards for the spaces that a signal is read in: action, reasoning, memory.

The output space is what verifiers, rubrics and judges read. The latent space is reserved: nothing
here has access to activations, and what asks for it is refused.
"""
