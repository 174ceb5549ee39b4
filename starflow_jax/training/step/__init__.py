"""One update as pure functions: inputs, losses, gradients, optimizer."""
