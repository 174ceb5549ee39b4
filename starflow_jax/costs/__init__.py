"""Published peaks of accelerators, and the floating-point operations of a flow."""
