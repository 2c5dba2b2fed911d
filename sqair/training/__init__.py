"""How a model is trained: one step, the loop around it, optimisers, devices and machines."""
