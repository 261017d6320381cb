"""Scale-wise distillation of diffusion models (arXiv 2503.16397), independent of any host."""
