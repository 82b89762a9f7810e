"""What all layers share: parameters, seeds, provenance, devices, sheets."""
