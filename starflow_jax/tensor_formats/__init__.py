"""Files of named tensors (safetensors, `torch.save`, distributed checkpoints), read without executing anything."""
