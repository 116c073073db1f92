"""Speed of a distillation, compared with its parts and a naive loop."""
