"""Reference implementations for the course *Diffusion, Derived*."""
