"""How fast a distillation is, beside its parts and a naive loop."""
