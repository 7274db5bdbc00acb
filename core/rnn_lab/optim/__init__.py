"""Optimizers that treat matrices as matrices: Muon, 8-bit Muon, GaLore-Muon and GaLore-AdamW (docs/optimizers.md)."""
